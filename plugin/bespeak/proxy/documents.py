"""Vectors of documents that lie in the cluster: kept on disk, held by the index itself, or made of their texts."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import math
import time
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import numpy as np

from bespeak.deadline import Deadline
from bespeak.dsl import read_mapping
from bespeak.encode import Encoder, encode_until
from bespeak.engines import VECTOR_FIELD, IndexInfo, document_text, text_of
from bespeak.errors import EngineError, EngineRefused
from bespeak.proxy.bounds import Bounds
from bespeak.proxy.search import Found, version_of
from bespeak.proxy.upstream import Headers, Upstream
from bespeak.records import Vector
from bespeak.vectors import VectorCache

logger = logging.getLogger("bespeak.proxy")

MAX_ANSWER_BYTES = 64_000_000
EMBEDDED_CHARS = 400
"""How much of a document is embedded: its beginning says most, and a search has no time for more (20 to 30 ms)."""
DESCRIBED_S = 60.0
"""How long a mapping is believed: a new index of an old name has its vectors made anew after this."""
ABSENT_S = 300.0
LATER_MS = 5000.0
LATER_TEXTS = 2
"""Embedded at once after an answer, so that the searches that come meanwhile wait little."""
MAX_REMEMBERED = 100_000

CREDENTIALS = (b"authorization", b"cookie", b"es-secondary-authorization", b"es-security-runas-user")


@dataclass(frozen=True, slots=True)
class Described:
    """A concrete index: what it can be searched by, and what its vectors are kept under; "" where it is not known."""

    info: IndexInfo
    space: str


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of the hits in their order, None where time was over, and those of the user's documents by doc_id."""

    hits: tuple[Vector | None, ...]
    liked: Mapping[str, Vector]


class Documents:
    """Asks the cluster with the client's own credentials, and nothing that the client might not see."""

    def __init__(self, upstream: Upstream, encoder: Encoder, cache: VectorCache, bounds: Bounds) -> None:
        self._upstream, self._encoder, self._cache, self._bounds = upstream, encoder, cache, bounds
        self._described: OrderedDict[tuple[str, bytes], tuple[float, Described]] = OrderedDict()
        self._absent: OrderedDict[tuple[str, str], float] = OrderedDict()
        self._later: asyncio.Task[None] | None = None
        self._fault = ""

    async def embed(self, hits: Sequence[Found], liked: Sequence[str], asker: Headers, deadline: Deadline) -> Embedded:
        """What is not kept is fetched and embedded until the deadline, the hits first, best first."""
        names = list(dict.fromkeys(hit.index for hit in hits))
        described = {name: await self._describe(name, asker, deadline) for name in names}
        kept = await asyncio.to_thread(self._kept, hits, liked, described)
        absent = [hit for hit in hits if not hit.version or kept.get((hit.index, hit.doc_id), ("",))[0] != hit.version]
        known = {doc_id for _, doc_id in kept}
        unknown = [doc_id for doc_id in liked if doc_id not in known]
        made = await self._make(absent, unknown, described, kept, asker, deadline) if absent or unknown else {}
        vectors = {key: vector for key, (_, vector) in kept.items()} | made
        stale = {(hit.index, hit.doc_id) for hit in absent} - set(made)
        if left := [hit for hit in absent if (hit.index, hit.doc_id) in stale]:
            self._begin_later(left, described, asker)
        return Embedded(
            tuple(None if (key := (hit.index, hit.doc_id)) in stale else vectors.get(key) for hit in hits),
            {doc_id: vector for (_, doc_id), vector in vectors.items() if doc_id in set(liked)},
        )

    async def close(self) -> None:
        if self._later:
            self._later.cancel()
            await asyncio.wait([self._later])

    def _begin_later(self, hits: Sequence[Found], described: Mapping[str, Described], asker: Headers) -> None:
        """What was not done in time is done after the answer, of one answer at a time, for the next to have it."""
        if self._later is None or self._later.done():
            self._later = asyncio.create_task(self._make_later(hits, described, asker))

    async def _make_later(self, hits: Sequence[Found], described: Mapping[str, Described], asker: Headers) -> None:
        kept = {name: about for name, about in described.items() if about.space}
        for start in range(0, len(hits), LATER_TEXTS):
            some = [hit for hit in hits[start : start + LATER_TEXTS] if hit.index in kept]
            try:
                await self._make(some, [], kept, {}, asker, Deadline.after_ms(LATER_MS))
            except Exception as error:  # nobody waits for it; the next search tries again
                logger.warning("embedding after an answer failed: %s", type(error).__name__)
                return

    def _kept(
        self, hits: Sequence[Found], liked: Sequence[str], described: Mapping[str, Described]
    ) -> dict[tuple[str, str], tuple[str, Vector]]:
        """(version, vector) by index and doc_id."""
        found: dict[tuple[str, str], tuple[str, Vector]] = {}
        for name, about in described.items():
            if about.space:
                doc_ids = [hit.doc_id for hit in hits if hit.index == name] + list(liked)
                rows = self._cache.get(about.space, list(dict.fromkeys(doc_ids)))
                found |= {(name, doc_id): row for doc_id, row in rows.items()}
        if self._cache.fault != self._fault:
            self._fault = self._cache.fault
            if self._fault:
                logger.warning("vectors are not kept: %s", self._fault)
        return found

    async def _make(
        self,
        absent: Sequence[Found],
        unknown: Sequence[str],
        described: Mapping[str, Described],
        kept: Mapping[tuple[str, str], tuple[str, Vector]],
        asker: Headers,
        deadline: Deadline,
    ) -> dict[tuple[str, str], Vector]:
        made: dict[tuple[str, str], Vector] = {}
        for name, about in described.items():
            doc_ids = [hit.doc_id for hit in absent if hit.index == name]
            doc_ids += [doc_id for doc_id in unknown if not self._is_absent(about.space, doc_id)]
            if not doc_ids or deadline.over:
                continue
            there = await self._fetch(name, list(dict.fromkeys(doc_ids)), about, asker, deadline)
            self._remember_absent(about.space, set(doc_ids) - set(there))
            known = {d: kept[name, d][1] for d in there if kept.get((name, d), ("",))[0] == there[d].version}
            vectors = await self._embed({d: there[d] for d in there if d not in known}, about, deadline)
            made |= {(name, doc_id): vector for doc_id, vector in known.items()}
            rows = {doc_id: (there[doc_id].version, vector) for doc_id, vector in vectors.items()}
            if about.space and rows:
                await asyncio.to_thread(self._cache.put, about.space, rows)
            made |= {(name, doc_id): vector for doc_id, vector in vectors.items()}
        return made

    async def _embed(self, there: Mapping[str, Fetched], about: Described, deadline: Deadline) -> dict[str, Vector]:
        """The index's own vectors where it has them; of the rest those that are done in time."""
        made = {doc_id: document.vector for doc_id, document in there.items() if document.vector is not None}
        bare = [doc_id for doc_id in there if doc_id not in made]
        texts = [document_text(there[d].source, about.info.fields) or all_text(there[d].source) for d in bare]
        if bare and not deadline.over:
            cut = [text[:EMBEDDED_CHARS] for text in texts]
            vectors = await self._bounds.run(
                lambda within: encode_until(self._encoder, cut, "document", within), deadline.left_s * 1000
            )
            made |= dict(zip(bare, vectors, strict=False))
        return made

    async def _fetch(
        self, index: str, doc_ids: Sequence[str], about: Described, asker: Headers, deadline: Deadline
    ) -> dict[str, Fetched]:
        """The documents that are there, in the order asked."""
        body: dict[str, Any] = {
            "query": {"ids": {"values": list(doc_ids)}},
            "size": len(doc_ids),
            "seq_no_primary_term": True,
            "track_total_hits": False,
            "_source": list(about.info.fields) or {"excludes": [VECTOR_FIELD]},
        }
        comparable = about.info.encoder == self._encoder.name and about.info.dim == self._encoder.dim
        if comparable:
            body["fields"] = [VECTOR_FIELD]
        answer = await ask(self._upstream, "POST", f"/{quote(index, safe='')}/_search", asker, body, deadline)
        hits = {hit["_id"]: _fetched(hit, comparable) for hit in answer["hits"]["hits"]}
        return {doc_id: hits[doc_id] for doc_id in doc_ids if doc_id in hits}

    async def _describe(self, name: str, asker: Headers, deadline: Deadline) -> Described:
        """What the asker may see of an index; without the right to see its mapping nothing of it is kept."""
        key = (name, hashlib.blake2b(repr(credentials(asker)).encode(), digest_size=16).digest())
        until, about = self._described.get(key, (0.0, None))
        if about is not None and time.monotonic() < until:
            return about
        try:
            answer = await ask(self._upstream, "GET", f"/{quote(name, safe='')}", asker, None, deadline)
            info, _ = read_mapping(name, answer, 0)
            uuid = answer[name]["settings"]["index"]["uuid"]
            about = Described(info, f"{self._encoder.name} {EMBEDDED_CHARS} {uuid}")
        except (EngineError, LookupError, TypeError, AttributeError):
            about = Described(IndexInfo(name, (), 0, None, None), "")
        self._described[key] = (time.monotonic() + DESCRIBED_S, about)
        _bound(self._described)
        return about

    def _is_absent(self, space: str, doc_id: str) -> bool:
        return time.monotonic() < self._absent.get((space, doc_id), 0.0)

    def _remember_absent(self, space: str, doc_ids: Iterable[str]) -> None:
        """What the user likes may lie in another index, or be deleted: not to be asked for at every query."""
        for doc_id in doc_ids:
            self._absent[space, doc_id] = time.monotonic() + ABSENT_S
        _bound(self._absent)


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


def credentials(headers: Headers) -> list[tuple[bytes, bytes]]:
    """What of a client's headers says who it is to Elasticsearch."""
    return [(name, value) for name, value in headers if name.lower() in CREDENTIALS]


async def ask(
    upstream: Upstream, method: str, target: str, asker: Headers, content: object | None, deadline: Deadline
) -> dict[str, Any]:
    """A question of our own, with the client's credentials. Raises EngineError, and TimeoutError at the deadline."""
    body = None if content is None else json.dumps(content).encode()
    headers = [*credentials(asker), (b"accept", b"application/json")]
    if body is not None:
        headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    async with asyncio.timeout(None if deadline.at == math.inf else deadline.left_s):
        answer = await upstream.send(method, target.encode(), headers, body)
        try:
            text = await answer.read(MAX_ANSWER_BYTES)
        finally:
            await answer.close()
    if answer.status != 200:
        raise EngineRefused(f"the engine refused a question about an index (status {answer.status})")
    try:
        read = json.loads(text)
    except ValueError as error:
        raise EngineRefused("the engine's answer is no JSON") from error
    if not isinstance(read, dict):
        raise EngineRefused("the engine's answer is no JSON object")
    return read


def _bound(kept: OrderedDict[Any, Any]) -> None:
    while len(kept) > MAX_REMEMBERED:
        kept.popitem(last=False)
