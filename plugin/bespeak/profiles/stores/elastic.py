"""Events, consent and cached rewrites in Elasticsearch indices that any number of proxies share.

Four aliases, each on a hidden index, so that a search over all indices finds none of it. A document's id is a digest of
what it is, so that writing it again, by a retry or by another proxy, adds nothing.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bespeak.engines import check_index_name
from bespeak.engines.cluster import Cluster
from bespeak.errors import EngineError, StoreError
from bespeak.profiles.deriving import PREFERRING, UserEvents, derive
from bespeak.profiles.events import EPOCH, microseconds
from bespeak.profiles.stores import (
    ADD_BATCH,
    EXPORT_BATCH,
    PREFERENCES_READ,
    REWRITES_KEPT,
    SESSION_EVENTS_READ,
    STATEMENTS_READ,
    Batch,
    Forgotten,
    Load,
)
from bespeak.records import Event, Profile, Rewrite, Term, UserKey

if TYPE_CHECKING:
    from bespeak.rewriting.rewriter import RewriteKey

logger = logging.getLogger("bespeak.profiles.stores")

VERSION = 1  # of the mappings
EVENT_SHARDS = 3
PAGE = 1000  # documents looked at, or deleted, at once
BULK_BYTES = 8_000_000
SCRUBBED_AFTER_S = 60.0  # a shard keeps what was deleted for its copies for some 30 s
STARTING_S = 2.0  # the shards of an index that another proxy has just made are not there at once
PATIENT_S = 30.0  # at least, for what no search waits for: writing events, making indices, deleting

EVENTS, CONSENT, REWRITES, LOADS = KINDS = ("events", "consent", "rewrites", "loads")

KEYWORD: Mapping[str, Any] = {"type": "keyword"}
LONG: Mapping[str, Any] = {"type": "long"}
KEPT: Mapping[str, Any] = {"type": "object", "enabled": False}  # comes back as it was, found by nothing

FIELDS: Mapping[str, Mapping[str, Any]] = {
    # `session` is where a turn belongs: the event's own or, for a UBI query, which has none, that of the events on it.
    # `on_query` is the digest of user and query_id where the event tells the session of its query; `awaits` is the same
    # digest where the event has none yet. `at` sorts as time does, then event_id.
    EVENTS: {
        "user": KEYWORD, "at": KEYWORD, "action": KEYWORD, "session": KEYWORD, "on_query": KEYWORD, "awaits": KEYWORD,
        "event": KEPT,
    },
    CONSENT: {"user": KEYWORD},
    REWRITES: {"user": KEYWORD, "at_us": LONG, "rewrite": KEPT},
    LOADS: {"load": KEPT, "of": KEYWORD, "line_no": LONG, "reason": KEPT},
}  # fmt: skip

# A user's events lie together, newest first, so that a profile's searches end after the hits they want. Elasticsearch
# 9.5 ends them so where the index is sorted by keywords, but not by numbers or dates: hence `at` is a keyword.
NEWEST_FIRST = {"user": "asc", "at": "desc"}
OLDEST_FIRST = {"at": "asc"}


class Search(NamedTuple):
    kind: str
    body: Mapping[str, Any]
    routing: str | None = None


class Action(NamedTuple):
    """One line of a bulk request."""

    op: str
    doc_id: str
    routing: str | None = None
    document: Mapping[str, Any] | None = None


class ElasticsearchStore:
    """An `EventStore` in the indices that begin with `prefix`, which are made by the first write.

    What was added is found by the next profile, of whichever proxy. May be used from several threads. A read waits
    `timeout_s`, at most twice. Rewrites beyond `rewrites_kept` go, oldest first, about once in a hundredth as many. A
    minute (`scrubbed_after_s`) after the last `forget` it asks once more for the bytes.
    """

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        basic: tuple[str, str] | None = None,
        ca_file: Path | None = None,
        timeout_s: float = 5.0,
        prefix: str = "bespeak-",
        rewrites_kept: int = REWRITES_KEPT,
        scrubbed_after_s: float = SCRUBBED_AFTER_S,
    ) -> None:
        check_index_name(prefix + "rewrites")
        self.prefix = prefix
        self._rewrites_kept = rewrites_kept
        self._puts = itertools.count(1)
        self._scrubbed_after_s, self._timing = scrubbed_after_s, threading.Lock()
        self._later: threading.Timer | None = None
        self._known = self._made = False  # whether the store was seen; whether all of it was
        self._cluster = Cluster(url, api_key, basic, ca_file, timeout_s, reason=_why)
        self._client = self._cluster.client
        self._patient_s = max(timeout_s, PATIENT_S)
        self._patient = self._client.options(request_timeout=self._patient_s)

    def add(self, events: Iterable[Event]) -> int:
        """What was added before a fault stays; adding all again completes it."""
        n_new, rest = 0, iter(events)
        while some := list(itertools.islice(rest, ADD_BATCH)):
            answers = self._write(EVENTS, [_create_event(event) for event in some])
            n_new += sum(status == 201 for status in answers)
            self._find_sessions(sorted({_query_digest(event) for event in some if event.query_id}))
        return n_new

    def profile(self, user: UserKey | None, session_id: str, now: datetime, query_id: str = "") -> Profile:
        if user is None:
            return Profile(session_id=session_id)
        if not self._is_there():
            return derive(UserEvents(user, session_id), now)
        paused, statements, of_session, *of_actions = self._ask(profile_searches(user, session_id))
        preferring = _events(user, itertools.chain(*of_actions))
        known = UserEvents(
            user, session_id, _events(user, statements), _events(user, of_session), preferring, not paused
        )
        return derive(known, now, query_id)

    def export(self, user: UserKey) -> Iterator[Event]:
        """In batches, so that nothing is held open in the cluster for a slow reader."""
        if not self._is_there():
            return
        digest = _digest(*user)
        body = {"query": {"term": {"user": digest}}, "sort": _sort(OLDEST_FIRST), "size": EXPORT_BATCH}
        for hits in self._pages(Search(EVENTS, body, digest)):
            yield from _events(user, hits)

    def of_everyone(self, actions: Sequence[str]) -> Iterator[Event]:
        """In batches, as `export`."""
        if not self._is_there():
            return
        found = {"terms": {"action": list(actions)}}
        body = {"query": {"bool": {"filter": [found]}}, "sort": _sort(NEWEST_FIRST), "size": EXPORT_BATCH}
        everybody = {"query": {"match_all": {}}, "sort": _sort({"user": "asc"}), "size": PAGE}
        paused = {hit["_source"]["user"] for hits in self._pages(Search(CONSENT, everybody)) for hit in hits}
        for hits in self._pages(Search(EVENTS, body)):
            for hit in hits:
                if hit["_source"]["user"] in paused:
                    continue
                kept = hit["_source"]["event"]
                yield _read_event(UserKey(kept.get("tenant", ""), kept["user_id"]), hit["_source"])

    def forget(self, user: UserKey) -> Forgotten:
        """Nothing of it is found any more on return; its bytes leave the disks by merges that go on for a while.

        What another proxy adds meanwhile is forgotten too, or stays as if added afterwards. Raises `StoreError` also
        where all is deleted but the merges could not be asked for.
        """
        if not self._is_there():
            return Forgotten(0, 0, 0)
        digest = _digest(*user)
        of_user = {"term": {"user": digest}}
        n_events = self._delete(EVENTS, of_user, digest)
        n_rewrites = self._delete(REWRITES, of_user)  # after the events: see `put_rewrite`
        n_consent = self._delete(CONSENT, of_user)
        try:
            self.scrub()
            self._scrub_later()
        except StoreError as error:
            raise StoreError(
                f"all is deleted, but its bytes stay on the disks until Elasticsearch merges them away ({error}): "
                "run `forget` again"
            ) from None
        return Forgotten(n_events, n_rewrites, n_consent)

    def prepare(self) -> None:
        """Makes the indices where there are none, which takes a second or two, before the first event needs them."""
        with self._told(self._patient_s):
            self._make()

    def scrub(self) -> None:
        """Asks Elasticsearch to rewrite, in the background, what holds deleted documents.

        A shard keeps them for its copies for some 30 s more: asked again after that, none is left.
        """
        names = [self._name(kind) for kind in (EVENTS, REWRITES, CONSENT)]
        with self._told(self._patient_s):
            self._patient.indices.flush(index=names, ignore_unavailable=True)
            self._patient.indices.forcemerge(
                index=names, only_expunge_deletes=True, wait_for_completion=False, ignore_unavailable=True
            )

    def set_consent(self, user: UserKey, given: bool) -> None:
        digest = _digest(*user)
        if not given:
            self._write(CONSENT, [Action("index", digest, document={"user": digest})])
        elif self._is_there():
            self._write(CONSENT, [Action("delete", digest)])

    def get_rewrite(self, key: RewriteKey) -> Rewrite | None:
        found = self._get(REWRITES, _rewrite_id(key)) if self._is_there() else None
        return None if found is None else _read_rewrite(found["_source"]["rewrite"]["json"])

    def put_rewrite(self, key: RewriteKey, rewrite: Rewrite) -> None:
        """Looked at once more after the write: `forget` deletes events first, so that one of the two sees the other."""
        user, doc_id = _digest(*key.user), _rewrite_id(key)
        if not self._has_events(user):
            return
        kept = {"user": user, "at_us": time.time_ns() // 1000, "rewrite": {"json": _json(asdict(rewrite))}}
        self._write(REWRITES, [Action("index", doc_id, document=kept)], refresh=False)
        if not self._has_events(user):
            self._write(REWRITES, [Action("delete", doc_id)])
        if next(self._puts) % max(1, self._rewrites_kept // 100) == 0:
            self._trim_rewrites()

    def drop_rewrite(self, key: RewriteKey) -> None:
        if self._is_there():
            self._write(REWRITES, [Action("delete", _rewrite_id(key))], refresh=False)

    def resume(self, tenant: str, file_digest: str) -> Load:
        return self._load(tenant, file_digest)[0]

    def record(self, load: Load, batch: Batch) -> Load:
        """Events first, then the load: cut off between, it is recorded again, and `added` counts only what is new."""
        there, seen = self._load(load.tenant, load.file_digest)
        if there != load:
            raise self._same_file()
        moved = Load(
            load.tenant, load.file_digest, batch.offset, batch.line_no, load.events + len(batch.events),
            load.added + self.add(batch.events), load.rejected + len(batch.rejected),
        )  # fmt: skip
        self._write(LOADS, [_index_rejection(load, line_no, reason) for line_no, reason in batch.rejected])
        self._move(moved, seen)
        return moved

    def rejections(self, load: Load) -> Iterator[tuple[int, str]]:
        if not self._is_there():
            return
        self._refresh(LOADS)
        body = {"query": {"term": {"of": _load_id(load)}}, "sort": _sort({"line_no": "asc"}), "size": EXPORT_BATCH}
        for hits in self._pages(Search(LOADS, body)):
            yield from ((hit["_source"]["line_no"], hit["_source"]["reason"]["text"]) for hit in hits)

    def finish(self, load: Load) -> None:
        if self._is_there():
            self._delete(LOADS, {"term": {"of": _load_id(load)}})
            self._write(LOADS, [Action("delete", _load_id(load))])

    def close(self) -> None:
        """What was forgotten in the last minute is then scrubbed by the next `forget`."""
        with self._timing:
            if self._later:
                self._later.cancel()
        self._cluster.close()

    def _scrub_later(self) -> None:
        with self._timing:
            if self._later:
                self._later.cancel()
            self._later = threading.Timer(self._scrubbed_after_s, self._scrub_quietly)
            self._later.daemon = True
            self._later.start()

    def _scrub_quietly(self) -> None:
        try:
            self.scrub()
        except StoreError as error:
            logger.warning("what was forgotten is not merged away yet: %s", error)

    def _find_sessions(self, queries: Sequence[str]) -> None:
        """Gives events on these queries that have no session that of the oldest event on the same query that has one.

        Both kinds are written and can be found before this looks for the other, so that of two proxies that write
        one each at least one finds both.
        """
        if not queries:
            return
        body = {
            "query": {"terms": {"awaits": queries}}, "sort": _sort({"awaits": "asc", "at": "asc"}),
            "size": PAGE, "_source": ["awaits"],
        }  # fmt: skip
        for hits in self._pages(Search(EVENTS, body)):
            sessions = self._sessions(sorted({hit["_source"]["awaits"] for hit in hits}))
            found = [(hit, sessions[query]) for hit in hits if (query := hit["_source"]["awaits"]) in sessions]
            updates = [
                Action("update", hit["_id"], hit["_routing"], {"session": session, "awaits": None})
                for hit, session in found
            ]
            self._write(EVENTS, updates)

    def _sessions(self, queries: Sequence[str]) -> dict[str, str]:
        body = {
            "query": {"terms": {"on_query": queries}}, "collapse": {"field": "on_query"}, "sort": _sort(OLDEST_FIRST),
            "size": len(queries), "_source": ["on_query", "event.session_id"],
        }  # fmt: skip
        (hits,) = self._ask([Search(EVENTS, body)])
        return {hit["_source"]["on_query"]: hit["_source"]["event"]["session_id"] for hit in hits}

    def _has_events(self, user: str) -> bool:
        if not self._is_there():
            return False
        body = {"query": {"term": {"user": user}}, "size": 1, "terminate_after": 1, "_source": False}
        return bool(self._ask([Search(EVENTS, body, user)])[0])

    def _trim_rewrites(self) -> None:
        name = self._name(REWRITES)
        with self._told(self._patient_s):
            self._patient.indices.refresh(index=name)
            excess = self._patient.count(index=name)["count"] - self._rewrites_kept
        body = {"query": {"match_all": {}}, "sort": _sort({"at_us": "asc"}), "_source": False}
        while excess > 0:
            (hits,) = self._ask([Search(REWRITES, body | {"size": min(excess, PAGE)})])
            if not hits:
                return
            self._write(REWRITES, [Action("delete", hit["_id"]) for hit in hits])
            excess -= len(hits)

    def _delete(self, kind: str, query: Mapping[str, Any], routing: str | None = None) -> int:
        """How many documents were deleted, until a search finds none: also those that are written meanwhile."""
        n_deleted, body = 0, {"query": query, "size": PAGE, "_source": False}
        self._refresh(kind)
        while hits := self._ask([Search(kind, body, routing)])[0]:
            answers = self._write(kind, [Action("delete", hit["_id"], routing) for hit in hits])
            n_deleted += sum(status == 200 for status in answers)
        return n_deleted

    def _load(self, tenant: str, file_digest: str) -> tuple[Load, Mapping[str, Any]]:
        """The load, and what tells whether it is still the same when it is written again."""
        start = Load(tenant, file_digest)
        found = self._get(LOADS, _load_id(start)) if self._is_there() else None
        if found is None:
            return start, {"op_type": "create"}
        seen = {"if_seq_no": found["_seq_no"], "if_primary_term": found["_primary_term"]}
        return Load(**found["_source"]["load"]), seen

    def _move(self, moved: Load, seen: Mapping[str, Any]) -> None:
        from elasticsearch import ConflictError

        self._make()
        with self._told(self._patient_s):
            try:
                # Not retried: the answer to a write that was taken, but whose answer was lost, is a conflict.
                self._patient.options(max_retries=0).index(
                    index=self._name(LOADS), id=_load_id(moved), document={"load": asdict(moved)}, require_alias=True,
                    **seen,
                )  # fmt: skip
            except ConflictError:
                raise self._same_file() from None

    def _same_file(self) -> StoreError:
        return StoreError("another process is loading the same file: let it end, then load the file again")

    def _get(self, kind: str, doc_id: str) -> Mapping[str, Any] | None:
        """The document as it was written last, refreshed or not."""
        from elasticsearch import NotFoundError

        with self._told():
            try:
                return self._client.get(index=self._name(kind), id=doc_id).body  # type: ignore[no-any-return]
            except NotFoundError:
                return None

    def _ask(self, searches: Sequence[Search]) -> list[list[Mapping[str, Any]]]:
        """The hits of each search, all asked at once; an index that is not there has none."""
        lines: list[Mapping[str, Any]] = []
        for search in searches:
            target = {"index": self._name(search.kind), "routing": search.routing}
            lines.append(
                {name: value for name, value in target.items() if value} | {"allow_partial_search_results": False}
            )
            lines.append({"track_total_hits": False, **search.body})
        end = time.monotonic() + STARTING_S
        while True:
            with self._told():
                answers = self._client.msearch(searches=lines)["responses"]
            if time.monotonic() >= end or all(answer.get("status") != 503 for answer in answers):
                return [self._hits(answer) for answer in answers]
            time.sleep(0.05)

    def _hits(self, answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        if "error" not in answer:
            hits: list[Mapping[str, Any]] = answer["hits"]["hits"]
            return hits
        if _kind(answer["error"]) == "index_not_found_exception":
            self._known = self._made = False
            return []
        raise self._refused(answer["status"], answer["error"])

    def _pages(self, search: Search) -> Iterator[list[Mapping[str, Any]]]:
        """All hits of a sorted search, `size` at once."""
        body = search.body
        while hits := self._ask([search._replace(body=body)])[0]:
            yield hits
            if len(hits) < body["size"]:
                return
            body = body | {"search_after": hits[-1]["sort"]}  # type: ignore[operator]

    def _write(self, kind: str, actions: Sequence[Action], refresh: bool = True) -> list[int]:
        """The status of each: 201 made, 200 changed or deleted, 404 not there, 409 there already."""
        if not actions:
            return []
        self._make()
        answers = self._bulk(kind, actions, refresh)
        if any(_kind(answer.get("error")) == "index_not_found_exception" for answer in answers):
            self._known = self._made = False  # deleted since; what is not there cannot be deleted either
            self._make()
            answers = self._bulk(kind, actions, refresh)
        for answer in answers:
            if answer["status"] not in (200, 201, 404, 409):
                raise self._refused(answer["status"], answer.get("error"))
        return [answer["status"] for answer in answers]

    def _bulk(self, kind: str, actions: Sequence[Action], refresh: bool) -> list[Mapping[str, Any]]:
        from elasticsearch.helpers import streaming_bulk

        # Without a refresh it is a rewrite, which a search waits for.
        client, timeout_s = (self._patient, self._patient_s) if refresh else (self._client, None)
        with self._told(timeout_s):
            answers = streaming_bulk(
                client,
                map(_bulk_line, actions),
                index=self._name(kind),
                max_chunk_bytes=BULK_BYTES,
                max_retries=3,
                initial_backoff=0.2,
                max_backoff=2,
                raise_on_error=False,
                require_alias=True,  # an index that was deleted is not made anew by chance, without its mapping
                refresh=refresh,
            )
            return [next(iter(answer.values())) for _, answer in answers]

    def _refresh(self, kind: str) -> None:
        with self._told(self._patient_s):
            self._patient.indices.refresh(index=self._name(kind), ignore_unavailable=True)

    def _is_there(self) -> bool:
        if not self._known:
            self._known = bool(self._kinds())
        return self._known

    def _make(self) -> None:
        if self._made:
            return
        there = self._kinds()
        for kind in KINDS:
            if kind not in there:
                self._create(kind)
        self._known = self._made = True

    def _kinds(self) -> set[str]:
        """Those of the store's indices that are there. Raises `StoreError` where they are not of this version."""
        with self._told():
            found = self._client.indices.get_mapping(
                index=[self._name(kind) for kind in KINDS], ignore_unavailable=True, expand_wildcards="all"
            )
        kinds = set()
        for name, mapping in found.items():
            meta = mapping["mappings"].get("_meta", {}).get("bespeak")
            if meta is None:
                raise StoreError(f"{name} at {self._cluster.url} is not an index of Bespeak's: give another prefix")
            if meta["version"] > VERSION:
                raise StoreError(
                    f"{name} at {self._cluster.url} has version {meta['version']}, but this Bespeak knows at most "
                    f"{VERSION}: upgrade Bespeak, or give another prefix"
                )
            kinds.add(meta["kind"])
        return kinds

    def _create(self, kind: str) -> None:
        from elasticsearch import BadRequestError

        with self._told(self._patient_s):
            try:
                self._patient.indices.create(
                    index=f"{self._name(kind)}-{VERSION}",
                    aliases={self._name(kind): {"is_hidden": True}},
                    **index_body(kind),
                )
            except BadRequestError as error:
                if error.error != "resource_already_exists_exception":  # another proxy made it
                    raise

    def _name(self, kind: str) -> str:
        return self.prefix + kind

    def _refused(self, status: int, error: Any) -> StoreError:
        return StoreError(str(self._cluster.refused(status, {"error": error})))

    @contextmanager
    def _told(self, timeout_s: float | None = None) -> Iterator[None]:
        """Turns every fault into a StoreError, without the client's own, which may hold what was written."""
        try:
            with self._cluster.engine_errors(timeout_s=timeout_s):
                yield
        except EngineError as error:
            raise StoreError(str(error)) from None


def index_body(kind: str) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "hidden": True,
        "number_of_shards": EVENT_SHARDS if kind == EVENTS else 1,
        "auto_expand_replicas": "0-1",
        "merge.policy.expunge_deletes_allowed": 0,  # `scrub` leaves no segment out
    }
    mappings: dict[str, Any] = {
        "_meta": {"bespeak": {"kind": kind, "version": VERSION}},
        "dynamic": "strict",
        "properties": FIELDS[kind],
    }
    if kind == EVENTS:
        settings |= {"sort.field": list(NEWEST_FIRST), "sort.order": list(NEWEST_FIRST.values())}
        mappings["_routing"] = {"required": True}
    return {"settings": {"index": settings}, "mappings": mappings}


def profile_searches(user: UserKey, session_id: str) -> list[Search]:
    """Whether the user paused; the newest statements, events of the session, and events of each preferring action."""
    digest = _digest(*user)

    def newest(field: str, value: str, size: int) -> Search:
        body = {
            "query": {"bool": {"filter": [{"term": {"user": digest}}, {"term": {field: value}}]}},
            "sort": _sort(NEWEST_FIRST), "size": size, "_source": {"excludes": ["event.attributes"]},
        }  # fmt: skip
        return Search(EVENTS, body, digest)

    return [
        Search(CONSENT, {"query": {"ids": {"values": [digest]}}, "size": 1, "_source": False}),
        newest("action", "statement", STATEMENTS_READ),
        newest("session", session_id, SESSION_EVENTS_READ),
        *(newest("action", action, PREFERENCES_READ) for action in PREFERRING),
    ]


def _sort(fields: Mapping[str, str]) -> list[dict[str, str]]:
    return [{field: order} for field, order in fields.items()]


def _create_event(event: Event) -> Action:
    user = _digest(*event.user)
    found = {"user": user, "at": _at(event), "action": event.action, "event": _kept(event)}
    if event.query_id and event.session_id:
        found["on_query"] = _query_digest(event)
    if event.action != "impression":  # no part of a profile, only of an export
        if event.session_id:
            found["session"] = event.session_id
        elif event.query_id:
            found["awaits"] = _query_digest(event)
    return Action("create", _digest(*event.user, event.event_id), user, found)


def _at(event: Event) -> str:
    return f"{microseconds(event.timestamp) + (1 << 62):016x}-{event.event_id}"  # years before 1970 sort too


def _kept(event: Event) -> dict[str, Any]:
    """All that gives the event again. Its attributes as text: any JSON comes back as it was."""
    kept = {
        "event_id": event.event_id, "at_us": microseconds(event.timestamp), "tenant": event.user.tenant,
        "user_id": event.user.user_id, "session_id": event.session_id,
        "query_id": event.query_id, "text": event.text, "doc_id": event.doc_id, "title": event.title,
        "value": event.value, "attributes": _json(event.attributes) if event.attributes else "",
    }  # fmt: skip
    return {name: value for name, value in kept.items() if value not in ("", None)}


def _events(user: UserKey, hits: Iterable[Mapping[str, Any]]) -> list[Event]:
    return [_read_event(user, hit["_source"]) for hit in hits]


def _read_event(user: UserKey, found: Mapping[str, Any]) -> Event:
    kept = found["event"]
    return Event(
        event_id=kept["event_id"],
        user=user,
        action=found["action"],
        timestamp=EPOCH + timedelta(microseconds=kept["at_us"]),
        session_id=kept.get("session_id", ""),
        query_id=kept.get("query_id", ""),
        text=kept.get("text", ""),
        doc_id=kept.get("doc_id", ""),
        title=kept.get("title", ""),
        value=kept.get("value"),
        attributes=json.loads(kept["attributes"]) if "attributes" in kept else {},
    )


def _index_rejection(load: Load, line_no: int, reason: str) -> Action:
    found = {"of": _load_id(load), "line_no": line_no, "reason": {"text": reason}}
    return Action("index", _digest(_load_id(load), str(line_no)), document=found)


def _bulk_line(action: Action) -> dict[str, Any]:
    line: dict[str, Any] = {"_op_type": action.op, "_id": action.doc_id}
    if action.routing:
        line["routing"] = action.routing
    if action.op == "update":
        line |= {"doc": action.document, "retry_on_conflict": 3}
    elif action.document is not None:
        line["_source"] = action.document
    return line


def _query_digest(event: Event) -> str:
    return _digest(*event.user, event.query_id)


def _rewrite_id(key: RewriteKey) -> str:
    return _digest(*key.user, key.profile_version, key.model_version, key.query)


def _load_id(load: Load) -> str:
    return _digest(load.tenant, load.file_digest)


def _digest(*parts: str) -> str:
    """Ids of any length and characters become ids that Elasticsearch takes; different parts never the same."""
    return hashlib.blake2b(json.dumps(parts).encode("ascii"), digest_size=16).hexdigest()


def _read_rewrite(text: str) -> Rewrite:
    read = json.loads(text)
    return Rewrite(**{**read, "terms": tuple(Term(**term) for term in read["terms"])})


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False, separators=(",", ":"))


HINTS = {
    "index_closed_exception": "an index of the profiles is closed: open it with POST /INDEX/_open",
    "cluster_block_exception": "the indices of the profiles are blocked, as they are when a disk is full",
    "security_exception": "the profiles' indices need the privileges that docs/events.md names",
}


def _why(error: Any) -> str:
    """By the kind of the fault alone: Elasticsearch's own words may hold what was written."""
    kind = _kind(error)
    return f"{HINTS[kind]} ({kind})" if kind in HINTS else kind


def _kind(error: Any) -> str:
    if not isinstance(error, Mapping):
        return "it gave no reason"
    roots = error.get("root_cause") or [error]
    return str(roots[0].get("type") or error.get("type") or "it gave no reason")
