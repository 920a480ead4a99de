"""Vectors of documents that lie in the cluster: kept on disk, held by the index itself, or made of their texts."""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import quote

import numpy as np

from bespeak.deadline import Deadline
from bespeak.document import document_text, text_of
from bespeak.engines import VECTOR_FIELD, IndexInfo
from bespeak.engines.dsl import read_mapping
from bespeak.errors import EngineError
from bespeak.models.encoder import Encoder, encode_until
from bespeak.models.vectors import VectorCache
from bespeak.pipeline import EMBEDDED_CHARS
from bespeak.proxy.asking import Asker
from bespeak.proxy.body.search import Found, these, version_of
from bespeak.proxy.bounds import Bounds, Busy
from bespeak.proxy.http.upstream import Upstream
from bespeak.records import Vector

logger = logging.getLogger("bespeak.proxy")

DESCRIBED_S = 10.0
"""How long a mapping is believed: a new index of an old name has its vectors made anew after this."""
MAX_DESCRIBED = 2_000
MAX_TARGET_CHARS = 2_000
"""Of names asked at once: Elasticsearch takes 4096 bytes of a request's first line."""
ABSENT_S = 300.0
RECENT_ROWS = 20_000
"""Some 30 MB."""
LATER_MS = 5000.0
LATER_TEXTS = 2
"""Embedded at once after an answer, so that the searches that come meanwhile wait little."""
MAX_REMEMBERED = 100_000

Key: TypeAlias = tuple[str, str]
"""Index and doc_id."""


@dataclass(frozen=True, slots=True)
class Described:
    """A concrete index: what it can be searched by, and what its vectors are kept under; "" where it is not known."""

    info: IndexInfo
    space: str
    sourceless: bool = False  # its documents' sources are not stored


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of the hits in their order, None where time was over, and those of the user's documents by doc_id."""

    hits: tuple[Vector | None, ...]
    liked: Mapping[str, Vector]


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
        """`bounds` are those of the embedding that a search waits for; what comes after an answer has its own.

        `clock`: by which what is known of an index, or of what it lacks, grows old.
        """
        self._upstream, self._encoder, self._cache, self._bounds = upstream, encoder, cache, bounds
        self._later_bounds = Bounds(1)
        self._clock = clock
        self._described: OrderedDict[tuple[str, bytes], tuple[float, Described]] = OrderedDict()
        self._absent: OrderedDict[tuple[bytes, str], float] = OrderedDict()
        self._recent: OrderedDict[tuple[str, str], tuple[str, Vector]] = OrderedDict()
        self._remembering = threading.Lock()
        self._later: asyncio.Task[None] | None = None
        self._fault = ""

    async def embed(self, hits: Sequence[Found], liked: Sequence[str], asker: Asker, deadline: Deadline) -> Embedded:
        """What is not kept is fetched and embedded until the deadline, the hits first, best first.

        What the user likes is looked for in the indices that the hits are of. Raises EngineError and TimeoutError.
        """
        described = await self._describe(list(dict.fromkeys(hit.index for hit in hits)), asker, deadline)
        kept = await self._kept(hits, liked, described)
        absent = [hit for hit in hits if not hit.version or kept.get(key_of(hit), ("",))[0] != hit.version]
        known, whose = {doc_id for _, doc_id in kept}, asker.digest()
        unknown = [doc_id for doc_id in liked if doc_id not in known and not self._is_absent(whose, doc_id)]
        made = (
            await self._make(absent, unknown, described, kept, asker, deadline, self._bounds)
            if absent or unknown
            else {}
        )
        vectors = {key: vector for key, (_, vector) in kept.items()} | made
        if left := [hit for hit in absent if key_of(hit) not in made]:
            self._begin_later(left, described, asker)
        late = {key_of(hit) for hit in left}
        found: dict[str, Vector] = {}
        for doc_id in liked:
            for name in described:
                if (name, doc_id) in vectors:
                    found.setdefault(doc_id, vectors[name, doc_id])
        return Embedded(tuple(None if key_of(h) in late else vectors.get(key_of(h)) for h in hits), found)

    async def close(self) -> None:
        if self._later:
            self._later.cancel()
            await asyncio.wait([self._later])
        self._later_bounds.close()

    def _begin_later(self, hits: Sequence[Found], described: Mapping[str, Described], asker: Asker) -> None:
        """What was not done in time is done after the answer, of one answer at a time, for the next to have it."""
        if self._later is None or self._later.done():
            self._later = asyncio.create_task(self._make_later(hits, described, asker))

    async def _make_later(self, hits: Sequence[Found], described: Mapping[str, Described], asker: Asker) -> None:
        kept = {name: about for name, about in described.items() if about.space}
        left = [hit for hit in hits if hit.index in kept]
        for start in range(0, len(left), LATER_TEXTS):
            try:
                some = left[start : start + LATER_TEXTS]
                await self._make(some, [], kept, {}, asker, Deadline.after_ms(LATER_MS), self._later_bounds)
            except Exception as error:  # nobody waits for it; the next search tries again
                logger.warning("embedding after an answer failed: %s", type(error).__name__)
                return

    async def _kept(
        self, hits: Sequence[Found], liked: Sequence[str], described: Mapping[str, Described]
    ) -> dict[Key, tuple[str, Vector]]:
        """(version, vector). What is liked is taken as it was last embedded; it moves an order, and is not shown."""
        versions = {key_of(hit): hit.version for hit in hits}
        wanted = [*versions, *((name, doc_id) for name in described for doc_id in liked)]
        found: dict[Key, tuple[str, Vector]] = {}
        rest: dict[str, list[str]] = {}
        for name, doc_id in dict.fromkeys(wanted):
            row = self._recent.get((described[name].space, doc_id))
            if row is not None and versions.get((name, doc_id), row[0]) == row[0]:
                found[name, doc_id] = row
            elif described[name].space:
                rest.setdefault(name, []).append(doc_id)
        if rest:
            found |= await asyncio.to_thread(self._read_kept, rest, described)
        return found

    def _read_kept(
        self, doc_ids: Mapping[str, list[str]], described: Mapping[str, Described]
    ) -> dict[Key, tuple[str, Vector]]:
        found: dict[Key, tuple[str, Vector]] = {}
        for name, asked in doc_ids.items():
            rows = self._cache.get(described[name].space, asked)
            self._remember(described[name].space, rows)
            found |= {(name, doc_id): row for doc_id, row in rows.items()}
        if self._cache.fault != self._fault:
            self._fault = self._cache.fault
            if self._fault:
                logger.warning("vectors are not kept: %s", self._fault)
        return found

    def _keep(self, space: str, rows: Mapping[str, tuple[str, Vector]]) -> None:
        self._cache.put(space, rows)
        self._remember(space, rows)

    def _remember(self, space: str, rows: Mapping[str, tuple[str, Vector]]) -> None:
        """The latest rows stay in memory: the same documents are found again and again."""
        with self._remembering:
            for doc_id, row in rows.items():
                self._recent[space, doc_id] = row
            while len(self._recent) > RECENT_ROWS:
                self._recent.popitem(last=False)

    async def _make(
        self,
        absent: Sequence[Found],
        unknown: Sequence[str],
        described: Mapping[str, Described],
        kept: Mapping[Key, tuple[str, Vector]],
        asker: Asker,
        deadline: Deadline,
        bounds: Bounds,
    ) -> dict[Key, Vector]:
        """Vectors of the documents that are there, hits first; those kept for the same version as they are."""
        if deadline.over:
            return {}
        there = await self._fetch(absent, unknown, described, asker, deadline)
        self._remember_absent(asker.digest(), set(unknown) - {doc_id for _, doc_id in there})
        known = {key: kept[key][1] for key in there if kept.get(key, ("",))[0] == there[key].version}
        vectors = await self._embed({key: there[key] for key in there if key not in known}, described, deadline, bounds)
        for name, about in described.items():
            rows = {key[1]: (there[key].version, vector) for key, vector in vectors.items() if key[0] == name}
            if about.space and rows:
                await asyncio.to_thread(self._keep, about.space, rows)
        return known | vectors

    async def _embed(
        self, there: Mapping[Key, Fetched], described: Mapping[str, Described], deadline: Deadline, bounds: Bounds
    ) -> dict[Key, Vector]:
        """The index's own vectors where it has them; of the rest those that are done in time.

        A document without any text is near to nothing: its vector is all 0.
        """
        made = {key: document.vector for key, document in there.items() if document.vector is not None}
        texts = {key: text_in(there[key], described[key[0]].info.fields) for key in there if key not in made}
        made |= {key: np.zeros(self._encoder.dim, np.float32) for key, text in texts.items() if not text.strip()}
        bare = [key for key in texts if key not in made]
        if bare and not deadline.over:
            cut = [texts[key][:EMBEDDED_CHARS] for key in bare]
            with suppress(Busy):  # others are embedding: these come later
                vectors = await bounds.run(
                    lambda within: encode_until(self._encoder, cut, "document", within), deadline.left_s * 1000
                )
                made |= dict(zip(bare, vectors, strict=False))
        return made

    async def _fetch(
        self,
        hits: Sequence[Found],
        liked: Sequence[str],
        described: Mapping[str, Described],
        asker: Asker,
        deadline: Deadline,
    ) -> dict[Key, Fetched]:
        """The documents that are there: the hits in the order given, then what is liked."""
        of_these = {"terms": {"_index": list(described)}}
        wanted = {"bool": {"filter": [of_these, {"ids": {"values": list(liked)}}]}}
        asked = [(these(hits), 2)] * bool(hits) + [(wanted, 1)] * bool(liked)  # hits first, whatever else has such ids
        fields = {field for about in described.values() for field in about.info.fields}
        source: object = sorted(fields)
        if not all(about.info.fields for about in described.values()):
            source = {"excludes": [VECTOR_FIELD]}
        if any(about.sourceless for about in described.values()):
            source = True  # no part of what is not there may be asked for
        comparable = {name for name, about in described.items() if self._compares(about.info)}
        body: dict[str, Any] = {
            "query": {"bool": {"should": [{"constant_score": {"filter": q, "boost": b}} for q, b in asked]}},
            "size": len(hits) + 2 * len(liked),
            "seq_no_primary_term": True,
            "track_total_hits": False,
            "_source": source,
        }
        if comparable:
            body["fields"] = [VECTOR_FIELD]
        found = {
            (hit["_index"], hit["_id"]): _fetched(hit, hit["_index"] in comparable)
            for hit in await asker.search(self._upstream, body, deadline)
            if hit["_index"] in described
        }
        return {key: found[key] for key in dict.fromkeys([*map(key_of, hits), *found]) if key in found}

    def _compares(self, info: IndexInfo) -> bool:
        return info.encoder == self._encoder.name and info.dim == self._encoder.dim

    async def _describe(self, names: Sequence[str], asker: Asker, deadline: Deadline) -> dict[str, Described]:
        """What the asker may see of these indices; without the right to see its mapping nothing of one is kept."""
        whose = asker.digest()
        found = {}
        for name in names:
            until, about = self._described.get((name, whose), (0.0, None))
            if about is not None and self._clock() < until:
                found[name] = about
        for some in chunks([name for name in names if name not in found]):
            answer = await self._mappings(some, asker, deadline)
            for name in some:
                found[name] = self._read(name, answer)
                self._described[name, whose] = (self._clock() + DESCRIBED_S, found[name])
        _bound(self._described, MAX_DESCRIBED)
        return {name: found[name] for name in names}

    async def _mappings(self, names: Sequence[str], asker: Asker, deadline: Deadline) -> Mapping[str, Any]:
        """By the indices' own names, else by the client's: a right may be on an alias alone."""
        for target in (",".join(names), asker.index):
            if target and "*" not in target:
                with suppress(EngineError):
                    place = f"/{quote(target, safe=',')}"
                    return await asker.ask(self._upstream, place, deadline)
        return {}

    def _read(self, name: str, answer: Mapping[str, Any]) -> Described:
        """Vectors are kept apart by all that they are made of, so that fields that are kept from one are from none."""
        try:
            info, _ = read_mapping(name, {name: answer[name]}, 0)
            uuid = answer[name]["settings"]["index"]["uuid"]
            sourceless = answer[name]["mappings"].get("_source", {}).get("enabled") in (False, "false")
        except (LookupError, TypeError, AttributeError):
            return Described(IndexInfo(name, (), 0, None, None), "")
        of = repr((self._encoder.name, EMBEDDED_CHARS, uuid, info.fields, self._compares(info)))
        return Described(info, of, sourceless)

    def _is_absent(self, whose: bytes, doc_id: str) -> bool:
        return self._clock() < self._absent.get((whose, doc_id), 0.0)

    def _remember_absent(self, whose: bytes, doc_ids: Iterable[str]) -> None:
        """What the user likes may lie in another index, or be deleted: not to be asked for at every query."""
        for doc_id in doc_ids:
            self._absent[whose, doc_id] = self._clock() + ABSENT_S
        _bound(self._absent, MAX_REMEMBERED)


def key_of(hit: Found) -> Key:
    return hit.index, hit.doc_id


def text_in(document: Fetched, fields: Sequence[str]) -> str:
    return document_text(document.source, fields) or all_text(document.source)


def chunks(names: Sequence[str]) -> Iterator[list[str]]:
    """Names that fit into one request's first line."""
    some: list[str] = []
    for name in names:
        if some and len(quote(",".join([*some, name]), safe=",")) > MAX_TARGET_CHARS:
            yield some
            some = []
        some.append(name)
    if some:
        yield some


@dataclass(frozen=True, slots=True)
class Fetched:
    source: Mapping[str, Any]
    version: str
    vector: Vector | None


def _fetched(hit: Mapping[str, Any], comparable: bool) -> Fetched:
    given = hit.get("fields", {}).get(VECTOR_FIELD) if comparable else None
    vector = None if given is None else np.array(given, np.float32)
    if vector is not None:
        vector = vector / max(float(np.linalg.norm(vector)), 1e-12)
    return Fetched(hit.get("_source") or {}, version_of(hit), vector)


def all_text(source: Mapping[str, Any]) -> str:
    """All texts of a document, for an index whose mapping is not known."""
    return " ".join(value for value in source.values() if isinstance(value, str) and text_of(value))


def _bound(kept: OrderedDict[Any, Any], limit: int) -> None:
    while len(kept) > limit:
        kept.popitem(last=False)
