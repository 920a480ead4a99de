"""The indices of the store: their mappings, and how they are made, searched and written.

Each has an alias and is hidden, so that a search over all indices of the cluster finds none of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

from bespeak.engines import check_index_name
from bespeak.engines.cluster import Cluster
from bespeak.errors import EngineError, StoreError

VERSION = 1  # of the mappings
EVENT_SHARDS = 3
PAGE = 1000  # documents deleted, or looked at, at once
BULK_BYTES = 8_000_000
STARTING_S = 2.0  # the shards of an index that another proxy has just made are not there at once
PATIENT_S = 30.0  # the least timeout of what no search waits for: writing events, making indices, deleting

EVENTS, CONSENT, REWRITES, LOADS = KINDS = ("events", "consent", "rewrites", "loads")

KEYWORD: Mapping[str, Any] = {"type": "keyword"}
LONG: Mapping[str, Any] = {"type": "long"}
KEPT: Mapping[str, Any] = {"type": "object", "enabled": False}  # returned unchanged, but not searchable

FIELDS: Mapping[str, Mapping[str, Any]] = {
    # `session` is the session that a turn belongs to: the event's own or, for a UBI query, which has none, that of the
    # events on it. An event with both a session and a query_id has the digest of user and query_id in `on_query`; an
    # event that still lacks a session has it in `awaits`. `at` sorts by time, then by event_id.
    EVENTS: {
        "user": KEYWORD, "at": KEYWORD, "action": KEYWORD, "session": KEYWORD, "on_query": KEYWORD, "awaits": KEYWORD,
        "event": KEPT,
    },
    CONSENT: {"user": KEYWORD},
    REWRITES: {"user": KEYWORD, "at_us": LONG, "rewrite": KEPT},
    LOADS: {"load": KEPT, "of": KEYWORD, "line_no": LONG, "reason": KEPT},
}  # fmt: skip

# The index is sorted by user and newest first, so that the searches of a profile stop after the hits they need.
# Elasticsearch 9.5 stops early if the sort fields are keywords, but not numbers or dates. So `at` is a keyword.
NEWEST_FIRST = {"user": "asc", "at": "desc"}
OLDEST_FIRST = {"at": "asc"}


class IndexSearch(NamedTuple):
    """A search in the index of one kind."""

    kind: str
    body: Mapping[str, Any]
    routing: str | None = None


class Action(NamedTuple):
    """A write in a bulk request."""

    op: str
    doc_id: str
    routing: str | None = None
    document: Mapping[str, Any] | None = None


class StoreIndices:
    """The indices that begin with `prefix`, which the first write makes. Raises `StoreError`.

    A read waits `timeout_s`, at most twice. Safe to use from several threads.
    """

    def __init__(self, cluster: Cluster, prefix: str) -> None:
        check_index_name(prefix + REWRITES)
        self.prefix = prefix
        self._cluster, self._client = cluster, cluster.client
        self._patient_s = max(cluster.timeout_s, PATIENT_S)
        self._patient = self._client.options(request_timeout=self._patient_s)
        self._any_exists = self._all_exist = False  # whether an index was seen; whether all were

    def exist(self) -> bool:
        """Whether any of the indices has been made."""
        if not self._any_exists:
            self._any_exists = bool(self._kinds())
        return self._any_exists

    def make(self) -> None:
        """Makes the indices that do not exist yet."""
        if self._all_exist:
            return
        existing = self._kinds()
        for kind in KINDS:
            if kind not in existing:
                self._create(kind)
        self._any_exists = self._all_exist = True

    def get(self, kind: str, doc_id: str) -> Mapping[str, Any] | None:
        """The document as it was last written, refreshed or not; None if there is none."""
        from elasticsearch import NotFoundError

        with self._store_errors():
            try:
                return self._client.get(index=self._name(kind), id=doc_id).body  # type: ignore[no-any-return]
            except NotFoundError:
                return None

    def search(self, searches: Sequence[IndexSearch]) -> list[list[Mapping[str, Any]]]:
        """The hits of each search, sent in one request. An index that does not exist has none."""
        lines: list[Mapping[str, Any]] = []
        for search in searches:
            target = {"index": self._name(search.kind), "routing": search.routing}
            lines.append(
                {name: value for name, value in target.items() if value} | {"allow_partial_search_results": False}
            )
            lines.append({"track_total_hits": False, **search.body})
        end = time.monotonic() + STARTING_S
        while True:
            with self._store_errors():
                answers = self._client.msearch(searches=lines)["responses"]
            if time.monotonic() >= end or all(answer.get("status") != 503 for answer in answers):
                return [self._hits(answer) for answer in answers]
            time.sleep(0.05)

    def pages(self, search: IndexSearch) -> Iterator[list[Mapping[str, Any]]]:
        """All hits of a sorted search, `size` at a time."""
        body = search.body
        while hits := self.search([search._replace(body=body)])[0]:
            yield hits
            if len(hits) < body["size"]:
                return
            body = body | {"search_after": hits[-1]["sort"]}  # type: ignore[operator]

    def write(self, kind: str, actions: Sequence[Action], refresh: bool = True) -> list[int]:
        """The status of each action: 201 made, 200 changed or deleted, 404 not there, 409 there already."""
        if not actions:
            return []
        self.make()
        answers = self._bulk(kind, actions, refresh)
        if any(_kind(answer.get("error")) == "index_not_found_exception" for answer in answers):
            self._any_exists = self._all_exist = False  # deleted meanwhile
            self.make()
            answers = self._bulk(kind, actions, refresh)
        for answer in answers:
            if answer["status"] not in (200, 201, 404, 409):
                raise self._refused(answer["status"], answer.get("error"))
        return [answer["status"] for answer in answers]

    def write_once(self, kind: str, doc_id: str, document: Mapping[str, Any], seen: Mapping[str, Any]) -> bool:
        """Writes a document unless it has changed since it was `seen`; whether it was written.

        There is no retry: if the answer to a successful write is lost, the retry would be a conflict.
        """
        from elasticsearch import ConflictError

        self.make()
        with self._store_errors(self._patient_s):
            try:
                self._patient.options(max_retries=0).index(
                    index=self._name(kind), id=doc_id, document=document, require_alias=True, **seen
                )
            except ConflictError:
                return False
        return True

    def delete(self, kind: str, query: Mapping[str, Any], routing: str | None = None) -> int:
        """Deletes until a search finds nothing, also what is written meanwhile; the number of documents deleted."""
        n_deleted, body = 0, {"query": query, "size": PAGE, "_source": False}
        self.refresh(kind)
        while hits := self.search([IndexSearch(kind, body, routing)])[0]:
            answers = self.write(kind, [Action("delete", hit["_id"], routing) for hit in hits])
            n_deleted += sum(status == 200 for status in answers)
        return n_deleted

    def refresh(self, kind: str) -> None:
        """Makes all that was written searchable."""
        with self._store_errors(self._patient_s):
            self._patient.indices.refresh(index=self._name(kind), ignore_unavailable=True)

    def count(self, kind: str) -> int:
        """How many documents there are, with those just written."""
        self.refresh(kind)
        with self._store_errors(self._patient_s):
            return int(self._patient.count(index=self._name(kind))["count"])

    def expunge(self, kinds: Sequence[str]) -> None:
        """Asks Elasticsearch to rewrite, in the background, what holds deleted documents."""
        names = [self._name(kind) for kind in kinds]
        with self._store_errors(self._patient_s):
            self._patient.indices.flush(index=names, ignore_unavailable=True)
            self._patient.indices.forcemerge(
                index=names, only_expunge_deletes=True, wait_for_completion=False, ignore_unavailable=True
            )

    def _hits(self, answer: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        if "error" not in answer:
            hits: list[Mapping[str, Any]] = answer["hits"]["hits"]
            return hits
        if _kind(answer["error"]) == "index_not_found_exception":
            self._any_exists = self._all_exist = False
            return []
        raise self._refused(answer["status"], answer["error"])

    def _bulk(self, kind: str, actions: Sequence[Action], refresh: bool) -> list[Mapping[str, Any]]:
        from elasticsearch.helpers import streaming_bulk

        # Only rewrites are written without a refresh, and a search waits for those.
        client, timeout_s = (self._patient, self._patient_s) if refresh else (self._client, None)
        with self._store_errors(timeout_s):
            answers = streaming_bulk(
                client,
                map(_bulk_line, actions),
                index=self._name(kind),
                max_chunk_bytes=BULK_BYTES,
                max_retries=3,
                initial_backoff=0.2,
                max_backoff=2,
                raise_on_error=False,
                require_alias=True,  # so that a deleted index is not made again without its mapping
                refresh=refresh,
            )
            return [next(iter(answer.values())) for _, answer in answers]

    def _kinds(self) -> set[str]:
        """The kinds of index that exist. Raises `StoreError` for one that is of a newer version or not Bespeak's."""
        with self._store_errors():
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

        with self._store_errors(self._patient_s):
            try:
                self._patient.indices.create(
                    index=f"{self._name(kind)}-{VERSION}",
                    aliases={self._name(kind): {"is_hidden": True}},
                    **store_index_body(kind),
                )
            except BadRequestError as error:
                if error.error != "resource_already_exists_exception":  # another proxy made it
                    raise

    def _name(self, kind: str) -> str:
        return self.prefix + kind

    def _refused(self, status: int, error: Any) -> StoreError:
        return StoreError(str(self._cluster.refused(status, {"error": error})))

    @contextmanager
    def _store_errors(self, timeout_s: float | None = None) -> Iterator[None]:
        """Raises a StoreError for any fault, without the client's own error, which may hold what was written."""
        try:
            with self._cluster.engine_errors(timeout_s=timeout_s):
                yield
        except EngineError as error:
            raise StoreError(str(error)) from None


def store_index_body(kind: str) -> dict[str, Any]:
    """Settings and mapping of an index of the store."""
    settings: dict[str, Any] = {
        "hidden": True,
        "number_of_shards": EVENT_SHARDS if kind == EVENTS else 1,
        "auto_expand_replicas": "0-1",
        "merge.policy.expunge_deletes_allowed": 0,  # so that `expunge` leaves no segment out
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


def sort_by(fields: Mapping[str, str]) -> list[dict[str, str]]:
    return [{field: order} for field, order in fields.items()]


def _bulk_line(action: Action) -> dict[str, Any]:
    line: dict[str, Any] = {"_op_type": action.op, "_id": action.doc_id}
    if action.routing:
        line["routing"] = action.routing
    if action.op == "update":
        line |= {"doc": action.document, "retry_on_conflict": 3}
    elif action.document is not None:
        line["_source"] = action.document
    return line


HINTS = {
    "index_closed_exception": "an index of the profiles is closed: open it with POST /INDEX/_open",
    "cluster_block_exception": "the indices of the profiles are blocked, as they are when a disk is full",
    "security_exception": "the profiles' indices need the privileges that docs/events.md names",
}


def reason_without_content(error: Any) -> str:
    """The reason of a fault by its kind alone, since Elasticsearch's own words may hold what was written."""
    kind = _kind(error)
    return f"{HINTS[kind]} ({kind})" if kind in HINTS else kind


def _kind(error: Any) -> str:
    if not isinstance(error, Mapping):
        return "it gave no reason"
    roots = error.get("root_cause") or [error]
    return str(roots[0].get("type") or error.get("type") or "it gave no reason")
