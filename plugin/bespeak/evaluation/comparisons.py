"""Finds which of two settings users prefer, by their clicks on pages that `bespeak serve --compare` recorded."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from operator import attrgetter
from typing import Any

import numpy as np

from bespeak.evaluation.measures import RESAMPLES, SEED, Estimate, estimate, resample
from bespeak.records import Event, UserKey

IMPRESSION = "impression"
CLICKS = ("click", "click_through", "item_click")
ACTIONS = (IMPRESSION, *CLICKS)
"""Events to read from a store, each user's together."""
LEVEL = 0.05
"""Significance level: a side is better if chance alone would give such a difference less often."""


@dataclass(frozen=True, slots=True)
class InterleavedPages:
    """The result for pages that mix hits of both sides. The side with more clicked hits wins a search."""

    sides: tuple[str, str]
    searches: int
    wins: tuple[int, int]
    ties: int  # searches with as many clicks on one side as on the other
    users: tuple[int, int]  # users for whom the first, or the second, side won more searches
    preference: Estimate  # (wins of second - wins of first) / clicked searches, in [-1, 1]
    p_value: float  # of the sign test over users

    @property
    def better(self) -> str:
        """The side that is significantly better; "" if neither is."""
        return "" if self.p_value >= LEVEL else self.sides[self.users[1] > self.users[0]]


@dataclass(frozen=True, slots=True)
class SplitTest:
    """The result of a split test, by the reciprocal rank of each search's first clicked hit; 0 without a click."""

    sides: tuple[str, str]
    searches: tuple[int, int]
    users: tuple[int, int]
    values: tuple[Estimate, Estimate]  # means over searches
    difference: Estimate  # second - first

    @property
    def better(self) -> str:
        if self.difference.low <= 0 <= self.difference.high:
            return ""
        return self.sides[self.difference.low > 0]


@dataclass(slots=True)
class ComparedSearch:
    """One compared search: the side and the rank of each hit, and which hits were clicked."""

    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    clicked: set[str] = field(default_factory=set)

    def clicks(self, side: str) -> int:
        return sum(self.places[doc_id][0] == side for doc_id in self.clicked & self.places.keys())

    @property
    def reciprocal_rank(self) -> float:
        return max((1 / self.places[doc_id][1] for doc_id in self.clicked & self.places.keys()), default=0.0)


def judge_comparisons(events: Iterable[Event]) -> list[InterleavedPages | SplitTest]:
    """A result for each comparison in the events, by name. `events` are ACTIONS, each user's together.

    Intervals come from drawing whole users, since searches of one user are not independent.
    """
    compared: dict[str, dict[UserKey, list[ComparedSearch]]] = defaultdict(dict)
    for user, of_user in groupby(events, key=attrgetter("user")):
        for name, searches in read_searches(of_user).items():
            compared[name][user] = searches
    return [(judge_split if "|" in name else judge_interleaved)(name, compared[name]) for name in sorted(compared)]


def read_searches(events: Iterable[Event]) -> dict[str, list[ComparedSearch]]:
    """The compared searches of one user, by comparison. Clicks belong to the search whose `query_id` they name."""
    found: dict[tuple[str, str], ComparedSearch] = defaultdict(ComparedSearch)
    clicks = []
    for event in events:
        if event.action != IMPRESSION:
            clicks.append(event)
        elif found_side := shown_side(event):
            name, side, rank = found_side
            found[name, event.query_id].places[event.doc_id] = (side, rank)
    searches: dict[str, list[ComparedSearch]] = defaultdict(list)
    for (name, query_id), shown in found.items():
        shown.clicked.update(click.doc_id for click in clicks if click.query_id == query_id)
        searches[name].append(shown)
    return searches


def read_impression(event: Event) -> tuple[int, dict[str, Any]] | None:
    """The rank of an impression and what `bespeak serve` recorded about it; None if it recorded nothing."""
    inner: Any = event.attributes.get("event_attributes")
    recorded = inner.get("bespeak") if isinstance(inner, dict) else None
    position = inner.get("position") if isinstance(inner, dict) else None
    if not isinstance(recorded, dict) or not isinstance(position, dict):
        return None
    rank = position.get("ordinal")
    return (rank, recorded) if isinstance(rank, int) and rank >= 1 else None


def shown_side(event: Event) -> tuple[str, str, int] | None:
    """The comparison, the side and the rank of an impression; None if nothing was compared."""
    if not (found := read_impression(event)):
        return None
    rank, recorded = found
    name, side = recorded.get("compared"), recorded.get("side")
    if not isinstance(name, str) or not isinstance(side, str) or side not in sides_of(name):
        return None
    return name, side, rank


def sides_of(name: str) -> tuple[str, str]:
    first, _, second = name.partition("|" if "|" in name else ":")
    return first, second


def judge_interleaved(name: str, searches: dict[UserKey, list[ComparedSearch]]) -> InterleavedPages:
    sides = sides_of(name)
    signs = {(user, n): _sign(shown, sides) for user, own in searches.items() for n, shown in enumerate(own)}
    clicked = {key: sign for key, sign in signs.items() if sign is not None}
    sums: dict[UserKey, int] = defaultdict(int)
    for (user, _), sign in clicked.items():
        sums[user] += sign
    wins = (sum(s < 0 for s in clicked.values()), sum(s > 0 for s in clicked.values()))
    users = (sum(s < 0 for s in sums.values()), sum(s > 0 for s in sums.values()))
    named = {_key(user, n): float(sign) for (user, n), sign in clicked.items()}
    groups = {_key(user, n): _key(user) for user, n in clicked}
    ties, preference = len(clicked) - sum(wins), estimate(named, groups)
    return InterleavedPages(sides, len(signs), wins, ties, users, preference, sign_test(*users))


def _sign(shown: ComparedSearch, sides: tuple[str, str]) -> int | None:
    """-1 if the first side won, 1 if the second did, 0 for a tie; None without a click."""
    first, second = (shown.clicks(side) for side in sides)
    return (second > first) - (second < first) if first or second else None


def _key(*parts: object) -> str:
    return repr(parts)


def sign_test(first: int, second: int) -> float:
    """The two-sided p-value of the sign test (Dixon and Mood, "The statistical sign test", 1946).

    >>> sign_test(0, 5)  # 2 / 2^5
    0.0625
    """
    n, least = first + second, min(first, second)
    whole = math.lgamma(n + 1) - n * math.log(2)
    tail = sum(math.exp(whole - math.lgamma(k + 1) - math.lgamma(n - k + 1)) for k in range(least + 1))
    return round(min(1.0, 2 * tail), 12)


def judge_split(name: str, searches: dict[UserKey, list[ComparedSearch]]) -> SplitTest:
    sides = sides_of(name)
    arms = [list(_arm(searches, side)) for side in sides]
    values = [estimate(dict(_flat(arm)), {key: key.rsplit("\0", 1)[0] for key, _ in _flat(arm)}) for arm in arms]
    means = [_resampled(arm) for arm in arms]
    difference = values[1].mean - values[0].mean
    low, high = np.percentile(means[1] - means[0], [2.5, 97.5]) if all(arms) else (-1.0, 1.0)
    n_searches = [sum(len(own) for own in arm) for arm in arms]
    return SplitTest(
        sides, (n_searches[0], n_searches[1]), (len(arms[0]), len(arms[1])), (values[0], values[1]),
        Estimate(difference, float(low), float(high)),
    )  # fmt: skip


def _arm(searches: dict[UserKey, list[ComparedSearch]], side: str) -> Iterator[list[float]]:
    """For each user of this side, the values of their searches."""
    for of_user in searches.values():
        if values := [
            shown.reciprocal_rank for shown in of_user if side in {found for found, _ in shown.places.values()}
        ]:
            yield values


def _flat(arm: list[list[float]]) -> Iterator[tuple[str, float]]:
    for user, of_user in enumerate(arm):
        for n, value in enumerate(of_user):
            yield f"{user}\0{n}", value


def _resampled(arm: list[list[float]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """`(RESAMPLES,)` means over searches, with whole users drawn."""
    sums, counts = np.array([sum(of_user) for of_user in arm]), np.array([float(len(of_user)) for of_user in arm])
    if not len(sums):
        return np.zeros(RESAMPLES)
    return resample(sums, counts, SEED + len(arm))
