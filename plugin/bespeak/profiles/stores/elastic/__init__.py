"""Events, consent and cached rewrites in Elasticsearch indices that any number of proxies share."""

from __future__ import annotations

import itertools
import logging
import threading
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bespeak.engines.cluster import Cluster
from bespeak.errors import StoreError
from bespeak.profiles.deriving import UserEvents, derive
from bespeak.profiles.stores import ADD_BATCH, EXPORT_BATCH, REWRITES_KEPT, Batch, EventLoad, ForgottenCounts
from bespeak.profiles.stores.elastic.documents import (
    create_event,
    digest,
    index_rejection,
    load_id,
    profile_searches,
    query_digest,
    restore_event,
    restore_events,
    rewrite_document,
    rewrite_id,
)
from bespeak.profiles.stores.elastic.indices import (
    CONSENT,
    EVENTS,
    LOADS,
    NEWEST_FIRST,
    OLDEST_FIRST,
    PAGE,
    REWRITES,
    Action,
    IndexSearch,
    StoreIndices,
    reason_without_content,
    sort_by,
)
from bespeak.profiles.stores.text import read_rewrite
from bespeak.records import Event, Profile, Rewrite, UserKey

if TYPE_CHECKING:
    from bespeak.rewriting.rewriter import RewriteKey

logger = logging.getLogger("bespeak.profiles.stores")

SCRUBBED_AFTER_S = 60.0  # a shard keeps deleted documents for its copies for some 30 s


class ElasticsearchStore:
    """An `EventStore` in the indices that begin with `prefix`, which are made by the first write.

    Every proxy finds an event in the next profile it reads. Safe to use from several threads. A read waits `timeout_s`,
    at most twice. Of the cached rewrites about `rewrites_kept` stay, the newest. `scrubbed_after_s` after the last
    `forget`, the bytes are expunged once more.
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
        self._cluster = Cluster(url, api_key, basic, ca_file, timeout_s, reason=reason_without_content)
        self._indices = StoreIndices(self._cluster, prefix)
        self._rewrites_kept = rewrites_kept
        self._puts = itertools.count(1)
        self._scrubbed_after_s, self._timing = scrubbed_after_s, threading.Lock()
        self._scrub_timer: threading.Timer | None = None

    def add(self, events: Iterable[Event]) -> int:
        """Events that were added before a fault stay. Adding all of them again completes the rest."""
        n_new, rest = 0, iter(events)
        while some := list(itertools.islice(rest, ADD_BATCH)):
            answers = self._indices.write(EVENTS, [create_event(event) for event in some])
            n_new += sum(status == 201 for status in answers)
            self._find_sessions(sorted({query_digest(event) for event in some if event.query_id}))
        return n_new

    def profile(self, user: UserKey | None, session_id: str, now: datetime, query_id: str = "") -> Profile:
        if user is None:
            return Profile(session_id=session_id)
        if not self._indices.exist():
            return derive(UserEvents(user, session_id), now)
        paused, statements, of_session, *of_actions = self._indices.search(profile_searches(user, session_id))
        preferring = restore_events(user, itertools.chain(*of_actions))
        known = UserEvents(
            user, session_id, restore_events(user, statements), restore_events(user, of_session), preferring, not paused
        )
        return derive(known, now, query_id)

    def export(self, user: UserKey) -> Iterator[Event]:
        """In batches, so that nothing is held open in the cluster for a slow reader."""
        if not self._indices.exist():
            return
        user_digest = digest(*user)
        body = {"query": {"term": {"user": user_digest}}, "sort": sort_by(OLDEST_FIRST), "size": EXPORT_BATCH}
        for hits in self._indices.pages(IndexSearch(EVENTS, body, user_digest)):
            yield from restore_events(user, hits)

    def of_everyone(self, actions: Sequence[str]) -> Iterator[Event]:
        """In batches, like `export`."""
        if not self._indices.exist():
            return
        found = {"terms": {"action": list(actions)}}
        body = {"query": {"bool": {"filter": [found]}}, "sort": sort_by(NEWEST_FIRST), "size": EXPORT_BATCH}
        everybody = {"query": {"match_all": {}}, "sort": sort_by({"user": "asc"}), "size": PAGE}
        paused = {
            hit["_source"]["user"] for hits in self._indices.pages(IndexSearch(CONSENT, everybody)) for hit in hits
        }
        for hits in self._indices.pages(IndexSearch(EVENTS, body)):
            for hit in hits:
                if hit["_source"]["user"] in paused:
                    continue
                kept = hit["_source"]["event"]
                yield restore_event(UserKey(kept.get("tenant", ""), kept["user_id"]), hit["_source"])

    def forget(self, user: UserKey) -> ForgottenCounts:
        """Nothing of the user is found on return. The bytes leave the disks by merges, which take a while.

        What another proxy adds meanwhile is deleted too, or stays as if it had been added afterwards. Also raises
        `StoreError` if all is deleted, but the merges could not be requested.
        """
        if not self._indices.exist():
            return ForgottenCounts(0, 0, 0)
        user_digest = digest(*user)
        of_user = {"term": {"user": user_digest}}
        n_events = self._indices.delete(EVENTS, of_user, user_digest)
        n_rewrites = self._indices.delete(REWRITES, of_user)  # after the events: see `put_rewrite`
        n_consent = self._indices.delete(CONSENT, of_user)
        try:
            self.scrub()
            self._scrub_later()
        except StoreError as error:
            raise StoreError(
                f"all is deleted, but its bytes stay on the disks until Elasticsearch merges them away ({error}): "
                "run `forget` again"
            ) from None
        return ForgottenCounts(n_events, n_rewrites, n_consent)

    def prepare(self) -> None:
        """Makes the indices if there are none, which takes a second or two, before the first event needs them."""
        self._indices.make()

    def scrub(self) -> None:
        """Asks Elasticsearch to expunge, in the background, the bytes of deleted documents.

        A shard keeps them for its copies for some 30 s. A second request after that leaves none.
        """
        self._indices.expunge((EVENTS, REWRITES, CONSENT))

    def set_consent(self, user: UserKey, given: bool) -> None:
        user_digest = digest(*user)
        if not given:
            self._indices.write(CONSENT, [Action("index", user_digest, document={"user": user_digest})])
        elif self._indices.exist():
            self._indices.write(CONSENT, [Action("delete", user_digest)])

    def get_rewrite(self, key: RewriteKey) -> Rewrite | None:
        found = self._indices.get(REWRITES, rewrite_id(key)) if self._indices.exist() else None
        return None if found is None else read_rewrite(found["_source"]["rewrite"]["json"])

    def put_rewrite(self, key: RewriteKey, rewrite: Rewrite) -> None:
        """Looks for events again after the write: `forget` deletes events first, so one of the two sees the other."""
        user, doc_id = digest(*key.user), rewrite_id(key)
        if not self._has_events(user):
            return
        kept = rewrite_document(key.user, time.time_ns() // 1000, rewrite)
        self._indices.write(REWRITES, [Action("index", doc_id, document=kept)], refresh=False)
        if not self._has_events(user):
            self._indices.write(REWRITES, [Action("delete", doc_id)])
        if next(self._puts) % max(1, self._rewrites_kept // 100) == 0:
            self._trim_rewrites()

    def drop_rewrite(self, key: RewriteKey) -> None:
        if self._indices.exist():
            self._indices.write(REWRITES, [Action("delete", rewrite_id(key))], refresh=False)

    def resume(self, tenant: str, file_digest: str) -> EventLoad:
        return self._load(tenant, file_digest)[0]

    def record(self, load: EventLoad, batch: Batch) -> EventLoad:
        """Adds the events first. If it is interrupted before the load moves, the batch is recorded again."""
        stored, seen = self._load(load.tenant, load.file_digest)
        if stored != load:
            raise same_file()
        moved = load.after(batch, self.add(batch.events))
        self._indices.write(LOADS, [index_rejection(load, line_no, reason) for line_no, reason in batch.rejected])
        if not self._indices.write_once(LOADS, load_id(moved), {"load": asdict(moved)}, seen):
            raise same_file()
        return moved

    def rejections(self, load: EventLoad) -> Iterator[tuple[int, str]]:
        if not self._indices.exist():
            return
        self._indices.refresh(LOADS)
        body = {"query": {"term": {"of": load_id(load)}}, "sort": sort_by({"line_no": "asc"}), "size": EXPORT_BATCH}
        for hits in self._indices.pages(IndexSearch(LOADS, body)):
            yield from ((hit["_source"]["line_no"], hit["_source"]["reason"]["text"]) for hit in hits)

    def finish(self, load: EventLoad) -> None:
        if self._indices.exist():
            self._indices.delete(LOADS, {"term": {"of": load_id(load)}})
            self._indices.write(LOADS, [Action("delete", load_id(load))])

    def close(self) -> None:
        """Bytes that were forgotten in the last minute are then expunged by the next `forget`."""
        with self._timing:
            if self._scrub_timer:
                self._scrub_timer.cancel()
        self._cluster.close()

    def _scrub_later(self) -> None:
        with self._timing:
            if self._scrub_timer:
                self._scrub_timer.cancel()
            self._scrub_timer = threading.Timer(self._scrubbed_after_s, self._scrub_quietly)
            self._scrub_timer.daemon = True
            self._scrub_timer.start()

    def _scrub_quietly(self) -> None:
        try:
            self.scrub()
        except StoreError as error:
            logger.warning("what was forgotten is not merged away yet: %s", error)

    def _find_sessions(self, queries: Sequence[str]) -> None:
        """Gives events without a session the session of the oldest event on the same query that has one.

        It looks only once its own events can be found, so that of two proxies that write one event each, at least one
        finds both.
        """
        if not queries:
            return
        body = {
            "query": {"terms": {"awaits": queries}}, "sort": sort_by({"awaits": "asc", "at": "asc"}),
            "size": PAGE, "_source": ["awaits"],
        }  # fmt: skip
        for hits in self._indices.pages(IndexSearch(EVENTS, body)):
            sessions = self._sessions(sorted({hit["_source"]["awaits"] for hit in hits}))
            found = [(hit, sessions[query]) for hit in hits if (query := hit["_source"]["awaits"]) in sessions]
            updates = [
                Action("update", hit["_id"], hit["_routing"], {"session": session, "awaits": None})
                for hit, session in found
            ]
            self._indices.write(EVENTS, updates)

    def _sessions(self, queries: Sequence[str]) -> dict[str, str]:
        body = {
            "query": {"terms": {"on_query": queries}}, "collapse": {"field": "on_query"}, "sort": sort_by(OLDEST_FIRST),
            "size": len(queries), "_source": ["on_query", "event.session_id"],
        }  # fmt: skip
        (hits,) = self._indices.search([IndexSearch(EVENTS, body)])
        return {hit["_source"]["on_query"]: hit["_source"]["event"]["session_id"] for hit in hits}

    def _has_events(self, user: str) -> bool:
        if not self._indices.exist():
            return False
        body = {"query": {"term": {"user": user}}, "size": 1, "terminate_after": 1, "_source": False}
        return bool(self._indices.search([IndexSearch(EVENTS, body, user)])[0])

    def _trim_rewrites(self) -> None:
        excess = self._indices.count(REWRITES) - self._rewrites_kept
        body = {"query": {"match_all": {}}, "sort": sort_by({"at_us": "asc"}), "_source": False}
        while excess > 0:
            (hits,) = self._indices.search([IndexSearch(REWRITES, body | {"size": min(excess, PAGE)})])
            if not hits:
                return
            self._indices.write(REWRITES, [Action("delete", hit["_id"]) for hit in hits])
            excess -= len(hits)

    def _load(self, tenant: str, file_digest: str) -> tuple[EventLoad, Mapping[str, Any]]:
        """The load as it is stored, and the version that `write_once` compares."""
        start = EventLoad(tenant, file_digest)
        found = self._indices.get(LOADS, load_id(start)) if self._indices.exist() else None
        if found is None:
            return start, {"op_type": "create"}
        seen = {"if_seq_no": found["_seq_no"], "if_primary_term": found["_primary_term"]}
        return EventLoad(**found["_source"]["load"]), seen


def same_file() -> StoreError:
    return StoreError("another process is loading the same file: let it end, then load the file again")
