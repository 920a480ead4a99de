"""Rewrites that find nothing, or lose what the query as typed found: told by the engine, and dropped."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bespeak.engines import Engine
from bespeak.records import Rewrite

FIRST = 10
"""Hits of the query as typed of which a rewrite has to keep one."""

WINDOW = 100
"""Among so many of its own."""


@dataclass(frozen=True, slots=True)
class Duds:
    engine: Engine
    index: str
    mode: Literal["boost", "recall"] = "recall"

    def dropped(self, rewrites: Sequence[Rewrite]) -> list[Rewrite]:
        """The rewrites, duds replaced by the query as typed. In `boost` the typed query's hits are never lost.

        Raises EngineError.
        """
        texts = list(dict.fromkeys(rewrite.text for rewrite in rewrites if rewrite.changed))
        size = WINDOW if self.mode == "recall" else 1
        found = dict(zip(texts, self.engine.find(self.index, texts, size), strict=True))
        typed: dict[str, tuple[str, ...]] = {}
        if self.mode == "recall":
            queries = list(dict.fromkeys(rewrite.query for rewrite in rewrites if rewrite.changed))
            typed = dict(zip(queries, self.engine.find(self.index, queries, FIRST), strict=True))
        return [_judged(one, found[one.text], typed.get(one.query, ())) if one.changed else one for one in rewrites]


def _judged(rewrite: Rewrite, found: Sequence[str], typed: Sequence[str]) -> Rewrite:
    """
    >>> _judged(Rewrite("tea", "green tea"), ["d1", "d2"], ["d2", "d9"]).text
    'green tea'
    >>> _judged(Rewrite("tea", "coffee"), ["d1"], ["d2"]).reason
    'loses the first hits'
    """
    reason = "finds nothing" if not found else "loses the first hits" if typed and not set(found) & set(typed) else ""
    return replace(rewrite, text=rewrite.query, terms=(), status="dud", reason=reason) if reason else rewrite
