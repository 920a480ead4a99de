"""Drops rewrites that find nothing, or that lose what the query as typed found."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from bespeak.engines import Engine
from bespeak.records import Rewrite
from bespeak.statuses import RewriteStatus

FIRST = 10
"""A rewrite must keep at least one of this many first hits of the query as typed."""

WINDOW = 100
"""How deep in the rewrite's own hits that one may be."""


@dataclass(frozen=True, slots=True)
class RewriteCheck:
    """Checks rewrites against an index."""

    engine: Engine
    index: str
    mode: Literal["boost", "recall"] = "recall"

    def apply(self, rewrites: Sequence[Rewrite]) -> list[Rewrite]:
        """The rewrites, each one that fails replaced by the query as typed, with status `dropped`.

        In mode `boost` only a rewrite without hits fails, since boosting never loses the typed query's hits. Raises
        EngineError.
        """
        changed = [rewrite for rewrite in rewrites if rewrite.changed]
        found = self._find([rewrite.text for rewrite in changed], WINDOW if self.mode == "recall" else 1)
        typed = self._find([rewrite.query for rewrite in changed], FIRST) if self.mode == "recall" else {}
        return [_checked(one, found[one.text], typed.get(one.query, ())) if one.changed else one for one in rewrites]

    def _find(self, texts: Iterable[str], size: int) -> dict[str, tuple[str, ...]]:
        once = list(dict.fromkeys(texts))
        return dict(zip(once, self.engine.find(self.index, once, size), strict=True)) if once else {}


def _checked(rewrite: Rewrite, found: Sequence[str], typed: Sequence[str]) -> Rewrite:
    """
    >>> _checked(Rewrite("tea", "green tea"), ["d1", "d2"], ["d2", "d9"]).text
    'green tea'
    >>> _checked(Rewrite("tea", "coffee"), ["d1"], ["d2"]).reason
    'loses the first hits'
    """
    reason = "finds nothing" if not found else "loses the first hits" if typed and not set(found) & set(typed) else ""
    return (
        replace(rewrite, text=rewrite.query, terms=(), status=RewriteStatus.DROPPED, reason=reason)
        if reason
        else rewrite
    )
