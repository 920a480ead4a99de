"""Compares two settings on live searches: pages drafted from both rankings, or one of the rankings for each user.

Team-draft interleaving (Radlinski, Kurup and Joachims, "How does clickthrough data reflect retrieval quality?",
2008): in each round a coin says which side picks first, and each side picks its best hit that is not picked yet.
A click counts for the side that picked the hit. Equal rankings get equally many clicks on both sides, up to chance.
"""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from bespeak.records import UserKey
from bespeak.settings import Settings

ENGINE = "engine"
"""The side that keeps the engine's order."""


@dataclass(frozen=True, slots=True)
class Side:
    """One of the two sides compared; `settings` is None for the engine's order."""

    name: str
    settings: Settings | None = None


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two sides to compare. With `split`, each user sees one of them instead of pages drafted from both."""

    sides: tuple[Side, Side]
    split: bool = False

    @property
    def name(self) -> str:
        """The name in events: `a:b`, or `a|b` for a split test."""
        return ("|" if self.split else ":").join(side.name for side in self.sides)

    def draft(self, orders: Sequence[Sequence[int]], user: UserKey, query_id: str) -> tuple[list[int], list[int]]:
        """The order to show, and for each place the side (0 or 1) that picked its hit."""
        if self.split:
            side = self.assign(user)
            return list(orders[side]), [side] * len(orders[side])
        return draft(orders[0], orders[1], query_id)

    def assign(self, user: UserKey) -> int:
        """The user's side in a split test: always the same in this comparison, half of the users on each."""
        key = "\0".join((self.name, *user)).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(key, digest_size=1).digest()[0] & 1


def draft(first: Sequence[int], second: Sequence[int], seed: str) -> tuple[list[int], list[int]]:
    """One order drafted from two of the same hits, and for each place the side that picked it. `seed` is the coin's.

    >>> order, sides = draft([1, 2, 3], [3, 2, 1], "q")
    >>> sorted(order), sorted(sides[:2])
    ([1, 2, 3], [0, 1])
    """
    coin, picks = random.Random(seed), (iter(first), iter(second))
    picked: dict[int, int] = {}
    while len(picked) < len(first):
        starts = coin.randrange(2)
        for side in (starts, 1 - starts):
            hit = next((hit for hit in picks[side] if hit not in picked), None)
            if hit is not None:
                picked[hit] = side
    return list(picked), list(picked.values())
