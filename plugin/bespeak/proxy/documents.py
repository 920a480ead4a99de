"""Vectors of documents in the cluster: kept on disk, held by the index itself, or made from their texts."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np

from bespeak.caching import RecentlyUsed
from bespeak.deadline import Deadline
from bespeak.document import hit_text
from bespeak.engines import VECTOR_FIELD
from bespeak.models.encoder import Encoder, encode_until
from bespeak.models.vectors import VectorCache
from bespeak.proxy.asking import Asker
from bespeak.proxy.body.reply import EngineHit, version_of
from bespeak.proxy.body.window import hits_query
from bespeak.proxy.bounds import Bounds, Busy
from bespeak.proxy.http.upstream import Upstream
from bespeak.proxy.indices import IndexDescriptions, KnownIndex
from bespeak.ranking.tuned import EMBEDDED_CHARS
from bespeak.ranking.vectors import Embedded
from bespeak.records import Vector

logger = logging.getLogger("bespeak.proxy")

ABSENT_S = 300.0
RECENT_ROWS = 20_000
"""About 30 MB."""
LATER_MS = 5000.0
LATER_TEXTS = 2
"""How many texts are embedded at once after an answer. Few, so that other searches wait only briefly."""
MAX_ABSENT = 100_000

Key: TypeAlias = tuple[str, str]
"""Index and doc_id."""
Row: TypeAlias = tuple[str, Vector]
"""Version and vector."""


@dataclass(frozen=True, slots=True)
class DocumentLookup:
    """Documents to fetch and embed, in whose name, and until when."""

    hits: Sequence[EngineHit]
    liked: Sequence[str]
    indices: Mapping[str, KnownIndex]
    asker: Asker
    deadline: Deadline


class Documents:
    """Asks the cluster with the client's own credentials, and nothing that the client might not see."""

    def __init__(
        self,
        upstream: Upstream,
        encoder: Encoder,
        cache: VectorCache,
        bounds: Bounds,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`bounds` are for the embedding that a search waits for; what is embedded after an answer has its own.

        By `clock`, what is known of an index, or what it lacks, expires.
        """
        self._upstream, self._encoder, self._cache, self._bounds = upstream, encoder, cache, bounds
        self._later_bounds = Bounds(1)
        self._indices = IndexDescriptions(upstream, encoder, clock)
        self._absent = RecentlyUsed[tuple[bytes, str], bool](MAX_ABSENT, ABSENT_S, clock)
        self._recent = RecentlyUsed[Key, Row](RECENT_ROWS)  # by space and doc_id
        self._later: asyncio.Task[None] | None = None
        self._fault = ""

    async def embed(
        self, hits: Sequence[EngineHit], liked: Sequence[str], asker: Asker, deadline: Deadline
    ) -> Embedded:
        """Vectors that are not kept are made until the deadline, those of the hits first, best first.

        Documents that the user likes are looked for in the indices of the hits. Raises EngineError and TimeoutError.
        """
        indices = await self._indices.describe(list(dict.fromkeys(hit.index for hit in hits)), asker, deadline)
        kept = await self._kept(hits, liked, indices)
        absent = [hit for hit in hits if not hit.version or kept.get(key_of(hit), ("",))[0] != hit.version]
        known, whose = {doc_id for _, doc_id in kept}, asker.digest()
        unknown = [doc_id for doc_id in liked if doc_id not in known and (whose, doc_id) not in self._absent]
        lookup = DocumentLookup(absent, unknown, indices, asker, deadline)
        made = await self._make(lookup, kept, self._bounds) if absent or unknown else {}
        vectors = {key: vector for key, (_, vector) in kept.items()} | made
        if unfinished := [hit for hit in absent if key_of(hit) not in made]:
            self._begin_later(replace(lookup, hits=unfinished, liked=()))
        late = {key_of(hit) for hit in unfinished}
        return Embedded(
            tuple(None if key_of(hit) in late else vectors.get(key_of(hit)) for hit in hits),
            liked_vectors(liked, indices, vectors),
            {name: index.info.fields for name, index in indices.items()},
        )

    async def close(self) -> None:
        if self._later:
            self._later.cancel()
            await asyncio.wait([self._later])
        self._later_bounds.close()

    def _begin_later(self, lookup: DocumentLookup) -> None:
        """Embeds after the answer what there was no time for, for the next search; one answer's at a time."""
        if self._later is None or self._later.done():
            self._later = asyncio.create_task(self._make_later(lookup))

    async def _make_later(self, lookup: DocumentLookup) -> None:
        indices = {name: index for name, index in lookup.indices.items() if index.space}
        hits = [hit for hit in lookup.hits if hit.index in indices]
        for start in range(0, len(hits), LATER_TEXTS):
            try:
                batch, deadline = hits[start : start + LATER_TEXTS], Deadline.after_ms(LATER_MS)
                part = replace(lookup, hits=batch, indices=indices, deadline=deadline)
                await self._make(part, {}, self._later_bounds)
            except Exception as error:  # nobody waits for it; the next search tries again
                logger.warning("embedding after an answer failed: %s", type(error).__name__)
                return

    async def _kept(
        self, hits: Sequence[EngineHit], liked: Sequence[str], indices: Mapping[str, KnownIndex]
    ) -> dict[Key, Row]:
        """Liked documents are taken as they were last embedded: they move an order and are not shown."""
        versions = {key_of(hit): hit.version for hit in hits}
        wanted = [*versions, *((name, doc_id) for name in indices for doc_id in liked)]
        found: dict[Key, Row] = {}
        rest: dict[str, list[str]] = {}
        for name, doc_id in dict.fromkeys(wanted):
            row = self._recent.get((indices[name].space, doc_id))
            if row is not None and versions.get((name, doc_id), row[0]) == row[0]:
                found[name, doc_id] = row
            elif indices[name].space:
                rest.setdefault(name, []).append(doc_id)
        if rest:
            found |= await asyncio.to_thread(self._read_kept, rest, indices)
        return found

    def _read_kept(self, doc_ids: Mapping[str, list[str]], indices: Mapping[str, KnownIndex]) -> dict[Key, Row]:
        found: dict[Key, Row] = {}
        for name, asked in doc_ids.items():
            rows = self._cache.get(indices[name].space, asked)
            self._remember(indices[name].space, rows)
            found |= {(name, doc_id): row for doc_id, row in rows.items()}
        if self._cache.fault != self._fault:
            self._fault = self._cache.fault
            if self._fault:
                logger.warning("vectors are not kept: %s", self._fault)
        return found

    def _keep(self, space: str, rows: Mapping[str, Row]) -> None:
        self._cache.put(space, rows)
        self._remember(space, rows)

    def _remember(self, space: str, rows: Mapping[str, Row]) -> None:
        """The latest rows stay in memory, since the same documents are found again and again."""
        for doc_id, row in rows.items():
            self._recent.put((space, doc_id), row)

    async def _make(self, lookup: DocumentLookup, kept: Mapping[Key, Row], bounds: Bounds) -> dict[Key, Vector]:
        """Vectors of the documents that exist, hits first; those `kept` for the same version are used."""
        if lookup.deadline.over:
            return {}
        fetched = await self._fetch(lookup)
        whose, fetched_ids = lookup.asker.digest(), {doc_id for _, doc_id in fetched}
        for doc_id in set(lookup.liked) - fetched_ids:  # in another index, or deleted: not asked for at every query
            self._absent.put((whose, doc_id), True)
        known = {key: kept[key][1] for key in fetched if kept.get(key, ("",))[0] == fetched[key].version}
        vectors = await self._embed({key: fetched[key] for key in fetched if key not in known}, lookup, bounds)
        for name, index in lookup.indices.items():
            rows = {key[1]: (fetched[key].version, vector) for key, vector in vectors.items() if key[0] == name}
            if index.space and rows:
                await asyncio.to_thread(self._keep, index.space, rows)
        return known | vectors

    async def _embed(
        self, fetched: Mapping[Key, FetchedDocument], lookup: DocumentLookup, bounds: Bounds
    ) -> dict[Key, Vector]:
        """The index's own vectors if it has them; for the others, those that are made in time.

        A document without text has the vector 0.
        """
        made = {key: document.vector for key, document in fetched.items() if document.vector is not None}
        texts = {
            key: hit_text(fetched[key].source, lookup.indices[key[0]].info.fields) for key in fetched if key not in made
        }
        made |= {key: np.zeros(self._encoder.dim, np.float32) for key, text in texts.items() if not text.strip()}
        bare = [key for key in texts if key not in made]
        if bare and not lookup.deadline.over:
            cut = [texts[key][:EMBEDDED_CHARS] for key in bare]
            with suppress(Busy):  # others are embedding; these come later
                vectors = await bounds.run(
                    lambda within: encode_until(self._encoder, cut, "document", within), lookup.deadline.left_s * 1000
                )
                made |= dict(zip(bare, vectors, strict=False))
        return made

    async def _fetch(self, lookup: DocumentLookup) -> dict[Key, FetchedDocument]:
        """The documents that exist: the hits in the order given, then the liked ones."""
        found = {
            (hit["_index"], hit["_id"]): _fetched(hit, lookup.indices[hit["_index"]].is_comparable)
            for hit in await lookup.asker.search(self._upstream, fetch_body(lookup), lookup.deadline)
            if hit["_index"] in lookup.indices
        }
        return {key: found[key] for key in dict.fromkeys([*map(key_of, lookup.hits), *found]) if key in found}


def fetch_body(lookup: DocumentLookup) -> dict[str, Any]:
    """A search for the documents, hits first, whatever other documents have the ids of the liked ones."""
    indices, liked = lookup.indices.values(), list(lookup.liked)
    in_indices = {"terms": {"_index": list(lookup.indices)}}
    liked_query = {"bool": {"filter": [in_indices, {"ids": {"values": liked}}]}}
    queries = [(hits_query(lookup.hits), 2)] * bool(lookup.hits) + [(liked_query, 1)] * bool(liked)
    body: dict[str, Any] = {
        "query": {"bool": {"should": [{"constant_score": {"filter": q, "boost": b}} for q, b in queries]}},
        "size": len(lookup.hits) + 2 * len(liked),
        "seq_no_primary_term": True,
        "track_total_hits": False,
        "_source": _source_of(indices),
    }
    if any(index.is_comparable for index in indices):
        body["fields"] = [VECTOR_FIELD]
    return body


def _source_of(indices: Iterable[KnownIndex]) -> object:
    """Which part of the documents is asked for, as `_source` takes it."""
    if any(index.is_sourceless for index in indices):
        return True  # Elasticsearch refuses to filter a source that is not stored
    if not all(index.info.fields for index in indices):
        return {"excludes": [VECTOR_FIELD]}
    return sorted({name for index in indices for name in index.info.fields})


def liked_vectors(liked: Sequence[str], indices: Iterable[str], vectors: Mapping[Key, Vector]) -> dict[str, Vector]:
    """By doc_id, each from the first of the indices that has it."""
    found: dict[str, Vector] = {}
    for doc_id in liked:
        for name in indices:
            if (name, doc_id) in vectors:
                found.setdefault(doc_id, vectors[name, doc_id])
    return found


def key_of(hit: EngineHit) -> Key:
    return hit.index, hit.doc_id


@dataclass(frozen=True, slots=True)
class FetchedDocument:
    """A document as the cluster holds it; `vector` is the index's own, of unit length."""

    source: Mapping[str, Any]
    version: str
    vector: Vector | None


def _fetched(hit: Mapping[str, Any], is_comparable: bool) -> FetchedDocument:
    given = hit.get("fields", {}).get(VECTOR_FIELD) if is_comparable else None
    vector = None if given is None else np.array(given, np.float32)
    if vector is not None:
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return FetchedDocument(hit.get("_source") or {}, version_of(hit), vector)
