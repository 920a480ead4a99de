"""A complete proxy in front of a real node, with fast models, and helpers to send requests to both."""

from __future__ import annotations

import contextlib
import json
import re
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from bespeak.parts import Parts
from bespeak.profiles.events import new_event
from bespeak.profiles.stores import EventStore
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.proxy import Upstream
from bespeak.proxy.assembly import ProxyOptions, assemble
from bespeak.ranking.learning import LearntFolder
from bespeak.records import UserKey
from bespeak.session.reader import ContextReader
from bespeak.settings import Settings
from fakes import BagEncoder, ScriptedRewriter
from proxy_server import serving

ADA = UserKey("", "ada")
COLOURS = ("red", "blue", "green", "black")
THINGS = ("shoe", "boot", "coat", "hat", "scarf")
STUFFS = ("wool", "silk", "leather", "cotton", "linen", "felt")
N_DOCS = 240


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes

    @property
    def json(self) -> Any:
        return json.loads(self.body)

    @property
    def ids(self) -> list[str]:
        return [hit["_id"] for hit in self.json["hits"]["hits"]]

    @property
    def outcome(self) -> dict[str, str]:
        """The header `X-Bespeak` of one search, as a mapping."""
        return dict(part.split("=", 1) for part in self.headers.get("X-Bespeak", "").split("; ") if part)

    def same(self) -> bytes:
        """The body without the parts that differ between equal answers."""
        return re.sub(rb'"took":\d+', b'"took":0', self.body)


def call(url: str, path: str, body: Any = None, method: str = "", **headers: str) -> Reply:
    """Sends a request. `body` is sent as it is if it is bytes, otherwise as JSON; `headers` use "_" for "-"."""
    data = body if isinstance(body, bytes) or body is None else json.dumps(body).encode()
    given = {name.replace("_", "-"): value for name, value in headers.items()}
    if data is not None:
        given.setdefault("Content-Type", "application/json")
    request = urllib.request.Request(url + path, data, given, method=method or ("POST" if data else "GET"))
    try:
        with urllib.request.urlopen(request, timeout=30) as answer:
            return Reply(answer.status, answer.headers, answer.read())
    except urllib.error.HTTPError as error:
        with error:
            return Reply(error.code, error.headers, error.read())


def load_things(url: str, index: str) -> None:
    """Loads clothes of all colours and stuffs; each word is in several of them. One shard keeps scores simple."""
    mapping = {
        "settings": {"number_of_shards": 1, "number_of_replicas": 0},
        "mappings": {
            "properties": {
                "title": {"type": "text"},
                "text": {"type": "text"},
                "stuff": {"type": "keyword"},
                "price": {"type": "integer"},
                "parts": {"type": "nested", "properties": {"name": {"type": "text"}}},
            }
        },
    }
    assert call(url, f"/{index}", mapping, "PUT").status == 200
    lines = []
    for n in range(N_DOCS):
        colour, thing, stuff = COLOURS[n % 4], THINGS[n % 5], STUFFS[n % 6]
        words = " ".join([colour, thing, stuff, *[thing] * (n % 3), *[STUFFS[n % 7 % 6]] * (n % 2)])
        document = {
            "title": f"{colour} {thing}",
            "text": words,
            "stuff": stuff,
            "price": n,
            "parts": [{"name": STUFFS[(n + 1) % 6]}],
        }
        lines += [{"index": {"_id": f"d{n}"}}, document]
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    assert not call(url, f"/{index}/_bulk?refresh=true", body, Content_Type="application/x-ndjson").json["errors"]


def know_ada(store: EventStore, session_id: str = "s") -> None:
    """Ada asked for silk scarfs in this session, likes linen and said that she is allergic to wool."""
    now = datetime.now(UTC)
    store.add(
        [
            new_event(ADA, "query", now, session_id=session_id, query_id="q1", text="silk scarf"),
            new_event(ADA, "answer", now, session_id=session_id, query_id="q1", text="silk is light"),
            new_event(ADA, "click", now, doc_id="d4", title="linen", session_id=session_id),
            new_event(ADA, "statement", now, text="I love felt."),
        ]
    )


COATS = [
    {
        "_index": "i",
        "_id": f"d{n}",
        "_score": 9.0 - n,
        "_source": {"text": f"coat {n}"},
        "_seq_no": 1,
        "_primary_term": 1,
    }
    for n in range(4)
]


async def coats(scope, receive, send):
    """Answers every search with the same four hits, and anything else with a description of an index."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    found = {"took": 1, "timed_out": False, "status": 200,
             "hits": {"total": {"value": 4, "relation": "eq"}, "max_score": 9.0, "hits": COATS}}  # fmt: skip
    if scope["path"].endswith("_msearch"):
        answer = {"took": 1, "responses": [found] * (body.count(b"\n") // 2)}
    elif scope["path"].endswith("_search"):
        answer = found
    else:
        index = {"uuid": "u"}
        answer = {"i": {"mappings": {"properties": {"text": {"type": "text"}}}, "settings": {"index": index}}}
    own = [(b"content-type", b"application/json"), (b"x-elastic-product", b"Elasticsearch")]
    await send({"type": "http.response.start", "status": 200, "headers": own})
    await send({"type": "http.response.body", "body": json.dumps(answer).encode()})


@contextlib.contextmanager
def personal_proxy(
    url: str,
    folder: Path,
    *,
    encoder: Any = None,
    rewriter: Any = None,
    settings: Settings | None = None,
    store: EventStore | None = None,
    learnt: LearntFolder | None = None,
    context: ContextReader | None = None,
    **options: Any,
) -> Iterator[tuple[str, EventStore]]:
    """The URL of a proxy in front of `url`, and its store, which knows Ada."""
    folder.mkdir(exist_ok=True)
    store = store or SqliteStore(folder / "bespeak.db", timeout_s=0.2)
    know_ada(store)
    rewriter = rewriter or ScriptedRewriter({"coat": "silk coat", "shoe": "silk shoe"})
    settings = settings or Settings(window=20)
    encoder = None if encoder == "none" else encoder or BagEncoder()
    parts = Parts(settings, rewriter, encoder, learnt=learnt, context=context)
    app = assemble(Upstream([url]), store, parts, folder / "vectors.db", ProxyOptions(**options))
    with serving(app) as proxy_url:
        yield proxy_url, store
