"""The counts of a report, summed over chunks and over all runs on a file."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, NamedTuple

from bespeak.batch.queries import RejectedQuery
from bespeak.records import Rewrite

SLOWEST_KEPT = 5


class SlowChunk(NamedTuple):
    """The lines of a chunk, and the mean time of a query in it."""

    ms_a_query: float
    first_no: int
    last_no: int


@dataclass(frozen=True, slots=True)
class Tally:
    statuses: Mapping[str, int] = field(default_factory=dict)
    gates: Mapping[str, int] = field(default_factory=dict)  # gated queries, by reason
    sources: Mapping[str, int] = field(default_factory=dict)  # terms, by where they come from
    rejected: Mapping[str, int] = field(default_factory=dict)  # lines, by kind of reason
    changed: int = 0  # rewrites that differ from their query
    from_cache: int = 0  # rewrites that came from the cache
    work_s: float = 0.0  # spent on chunks by all processes together
    slowest: tuple[SlowChunk, ...] = ()

    @property
    def queries(self) -> int:
        return sum(self.statuses.values())

    @property
    def terms(self) -> int:
        return sum(self.sources.values())

    @property
    def lines_rejected(self) -> int:
        return sum(self.rejected.values())

    def plus(self, other: Tally) -> Tally:
        slowest = tuple(sorted(self.slowest + other.slowest, reverse=True)[:SLOWEST_KEPT])
        return Tally(
            _sum(self.statuses, other.statuses),
            _sum(self.gates, other.gates),
            _sum(self.sources, other.sources),
            _sum(self.rejected, other.rejected),
            self.changed + other.changed,
            self.from_cache + other.from_cache,
            self.work_s + other.work_s,
            slowest,
        )

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)

    @staticmethod
    def of_dict(read: Mapping[str, Any]) -> Tally:
        return Tally(**{**read, "slowest": tuple(SlowChunk(*slow) for slow in read["slowest"])})


def tally(
    rewrites: Iterable[Rewrite],
    rejected: Iterable[RejectedQuery],
    from_cache: int,
    took_s: float,
    span: tuple[int, int],
) -> Tally:
    """The counts of one chunk. `span` holds the numbers of its first and its last line."""
    rewrites = list(rewrites)
    slowest = (SlowChunk(round(took_s * 1000 / len(rewrites), 3), *span),) if rewrites else ()
    return Tally(
        Counter(rewrite.status for rewrite in rewrites),
        Counter(rewrite.reason for rewrite in rewrites if rewrite.status == "gated"),
        Counter(term.source for rewrite in rewrites for term in rewrite.terms),
        Counter(line.kind for line in rejected),
        sum(rewrite.changed for rewrite in rewrites),
        from_cache,
        took_s,
        slowest,
    )


def _sum(one: Mapping[str, int], other: Mapping[str, int]) -> dict[str, int]:
    return dict(Counter(one) + Counter(other))
