"""What is known about the cluster's indices: their fields, and whether their vectors can be used."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

from bespeak.caching import RecentlyUsed
from bespeak.deadline import Deadline
from bespeak.engines import IndexInfo
from bespeak.engines.dsl import read_mapping
from bespeak.errors import EngineError
from bespeak.models.encoder import Encoder
from bespeak.proxy.asking import Asker
from bespeak.proxy.http.upstream import Upstream
from bespeak.ranking.tuned import EMBEDDED_CHARS

DESCRIBED_S = 10.0
"""How long a mapping is trusted. After that, a new index with an old name gets new vectors."""
MAX_DESCRIBED = 2_000
MAX_TARGET_CHARS = 2_000
"""Characters of names in one request: Elasticsearch accepts 4096 bytes in a request's first line."""


@dataclass(frozen=True, slots=True)
class KnownIndex:
    """A concrete index, as far as one client may see it."""

    info: IndexInfo
    space: str  # the key that its vectors are kept under; "" if they are not kept
    is_sourceless: bool = False  # it does not store the sources of its documents
    is_comparable: bool = False  # it holds vectors of the encoder's own


class IndexDescriptions:
    """Describes indices from their mappings, as each client may see them."""

    def __init__(self, upstream: Upstream, encoder: Encoder, clock: Callable[[], float] = time.monotonic) -> None:
        self._upstream, self._encoder = upstream, encoder
        self._known = RecentlyUsed[tuple[str, bytes], KnownIndex](MAX_DESCRIBED, DESCRIBED_S, clock)

    async def describe(self, names: Sequence[str], asker: Asker, deadline: Deadline) -> dict[str, KnownIndex]:
        """By name, in order. If the asker may not see the mapping of an index, no vectors are kept for it.

        Raises TimeoutError at the deadline.
        """
        whose = asker.digest()
        found = {name: index for name in names if (index := self._known.get((name, whose)))}
        for chunk in chunks([name for name in names if name not in found]):
            answer = await self._mappings(chunk, asker, deadline)
            for name in chunk:
                found[name] = self._read(name, answer)
                self._known.put((name, whose), found[name])
        return {name: found[name] for name in names}

    async def _mappings(self, names: Sequence[str], asker: Asker, deadline: Deadline) -> Mapping[str, Any]:
        """Asks by the indices' own names, or else by the client's: it may have a right on an alias alone."""
        for target in (",".join(names), asker.index):
            if target and "*" not in target:
                with suppress(EngineError):
                    return await asker.ask(self._upstream, f"/{quote(target, safe=',')}", deadline)
        return {}

    def _read(self, name: str, answer: Mapping[str, Any]) -> KnownIndex:
        try:
            info, _ = read_mapping(name, {name: answer[name]}, 0)
            uuid = answer[name]["settings"]["index"]["uuid"]
            is_sourceless = answer[name]["mappings"].get("_source", {}).get("enabled") in (False, "false")
        except (LookupError, TypeError, AttributeError):
            return KnownIndex(IndexInfo(name, (), 0, None, None), "")
        is_comparable = info.encoder == self._encoder.name and info.dim == self._encoder.dim
        # All that a vector is made from is in the key, so a client's vectors hold nothing of fields hidden from it.
        space = repr((self._encoder.name, EMBEDDED_CHARS, uuid, info.fields, is_comparable))
        return KnownIndex(info, space, is_sourceless, is_comparable)


def chunks(names: Sequence[str]) -> Iterator[list[str]]:
    """The names in groups that each fit into the first line of a request."""
    chunk: list[str] = []
    for name in names:
        if chunk and len(quote(",".join([*chunk, name]), safe=",")) > MAX_TARGET_CHARS:
            yield chunk
            chunk = []
        chunk.append(name)
    if chunk:
        yield chunk
