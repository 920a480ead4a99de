"""Rewrites that find nothing, or lose what the query as typed found: told by the engine, and dropped."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bespeak.engines import Engine
from bespeak.records import Rewrite
from bespeak.statuses import RewriteStatus

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
        changed = [rewrite for rewrite in rewrites if rewrite.changed]
        found = self._find([rewrite.text for rewrite in changed], WINDOW if self.mode == "recall" else 1)
        typed = self._find([rewrite.query for rewrite in changed], FIRST) if self.mode == "recall" else {}
        return [_judged(one, found[one.text], typed.get(one.query, ())) if one.changed else one for one in rewrites]

    def _find(self, texts: Iterable[str], size: int) -> dict[str, tuple[str, ...]]:
        once = list(dict.fromkeys(texts))
        return dict(zip(once, self.engine.find(self.index, once, size), strict=True)) if once else {}


def _judged(rewrite: Rewrite, found: Sequence[str], typed: Sequence[str]) -> Rewrite:
    """
    >>> _judged(Rewrite("tea", "green tea"), ["d1", "d2"], ["d2", "d9"]).text
    'green tea'
    >>> _judged(Rewrite("tea", "coffee"), ["d1"], ["d2"]).reason
    'loses the first hits'
    """
    reason = "finds nothing" if not found else "loses the first hits" if typed and not set(found) & set(typed) else ""
    return (
        replace(rewrite, text=rewrite.query, terms=(), status=RewriteStatus.DROPPED, reason=reason)
        if reason
        else rewrite
    )
