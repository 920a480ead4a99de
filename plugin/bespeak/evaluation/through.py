"""Measures a judged collection through a running proxy: what its clients are served, within its budgets."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal, TypeAlias
from urllib.parse import quote

from bespeak.errors import EngineRefused, EngineUnreachable
from bespeak.evaluation.kept import Report, silent
from bespeak.evaluation.memory import DEPTH
from bespeak.evaluation.systems import Cell, tabulate
from bespeak.evaluation.topics import Collection, Topic

Mode: TypeAlias = Literal["direct", "boost", "recall"]
MODES: tuple[Mode, ...] = ("direct", "boost", "recall")
"""The engine's own answer, and the proxy's two modes."""
STAGE = "served"
TENANT, SESSION = "bespeak-evaluation", "s"
TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True)
class RunningProxy:
    """A proxy that answers at `url`; `token` gives access to its own routes."""

    url: str
    token: str = ""

    def rank(self, topic: Topic, index: str, fields: Sequence[str], mode: Mode) -> list[str]:
        """The doc_ids that a client is served, best first, at most `DEPTH`. Raises EngineError."""
        query = {"multi_match": {"query": topic.text, "type": "most_fields", "fields": list(fields)}}
        body: dict[str, Any] = {"query": query, "size": DEPTH, "_source": False}
        headers = {}
        if mode != "direct":
            body["ext"] = {"bespeak": {"mode": mode}}
            headers = {"X-Bespeak-User": user_of(topic), "X-Bespeak-Session": SESSION, "X-Bespeak-Tenant": TENANT}
        answer = self._ask("POST", f"/{quote(index)}/_search", body, headers)
        return [hit["_id"] for hit in answer["hits"]["hits"]]

    def tell(self, topic: Topic) -> None:
        """Sends the topic's session and statements to the proxy, as one user's. Raises EngineError."""
        if events := events_of(topic):
            answer = self._ask("POST", "/_bespeak/events", events)
            if answer.get("rejected"):
                raise EngineRefused(f"the proxy at {self.url} rejected query {topic.query_id}: is it another version?")

    def forget(self, topic: Topic) -> None:
        self._ask("DELETE", f"/_bespeak/profile/{quote(user_of(topic), safe='')}")

    def _ask(self, method: str, path: str, content: object = None, headers: Mapping[str, str] | None = None) -> Any:
        given = {"Content-Type": "application/json", **(headers or {})}
        if path.startswith("/_bespeak"):
            given["X-Bespeak-Tenant"] = TENANT
            if self.token:
                given["Authorization"] = f"Bearer {self.token}"
        data = None if content is None else json.dumps(content).encode()
        request = urllib.request.Request(self.url.rstrip("/") + path, data, given, method=method)
        try:
            with urllib.request.urlopen(request, timeout=TIMEOUT_S) as answer:
                return json.loads(answer.read() or b"{}")
        except urllib.error.HTTPError as error:
            with error:
                raise EngineRefused(f"the proxy at {self.url} refused {path} ({error.code}): check its log") from error
        except (OSError, ValueError) as error:
            raise EngineUnreachable(f"no answer from a proxy at {self.url}: is `bespeak serve` running?") from error


def measure_served(
    collection: Collection, index: str, proxy: RunningProxy, modes: Sequence[Mode] = MODES, report: Report = silent
) -> list[Cell]:
    """Measures each mode over all topics. Gains are over the engine's own answer. Raises EngineError.

    Each topic is searched as a user of its own, whom the proxy forgets afterwards.
    """
    runs: dict[tuple[str, str], dict[str, list[str]]] = {}
    for done, topic in enumerate(collection.topics, 1):
        for mode in dict.fromkeys(("direct", *modes)):
            if mode != "direct":
                proxy.tell(topic)
            try:
                found = proxy.rank(topic, index, collection.fields, mode)
            finally:
                if mode != "direct":
                    proxy.forget(topic)
            runs.setdefault((mode, STAGE), {})[topic.query_id] = found
        report(done, len(collection.topics))
    cells = tabulate(runs, collection.judged, collection.groups, "direct")
    return [cell for mode in dict.fromkeys(modes) for cell in cells if cell.system == mode]


def user_of(topic: Topic) -> str:
    return f"evaluation {topic.query_id}"


def events_of(topic: Topic) -> list[dict[str, Any]]:
    """The topic's statements and earlier turns as UBI events, a second apart, the last one a second ago."""
    events: list[dict[str, Any]] = [{"action_name": "statement", "message": text} for text in topic.statements]
    for n, (query, response) in enumerate(topic.history):
        turn = {"session_id": SESSION, "query_id": f"t{n}"}
        events.append({"user_query": query, **turn})
        if response:
            events.append({"action_name": "answer", "message": response, **turn})
    start = datetime.now(UTC) - timedelta(seconds=len(events))
    times = ((start + timedelta(seconds=n)).isoformat() for n in range(len(events)))
    return [{"user_id": user_of(topic), "timestamp": at, **event} for at, event in zip(times, events, strict=True)]
