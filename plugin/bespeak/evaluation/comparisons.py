"""Which of two compared settings users' clicks speak for, from the events that `bespeak serve --compare` recorded."""

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

SHOWN = "impression"
CLICKED = ("click", "click_through", "item_click")
ACTIONS = (SHOWN, *CLICKED)
"""What is to be read of a store, one user's events together."""
LEVEL = 0.05


@dataclass(frozen=True, slots=True)
class Drafted:
    """What came of pages drafted from two sides. A search is won by the side with more clicked hits."""

    sides: tuple[str, str]
    searches: int  # that were compared
    wins: tuple[int, int]
    ties: int  # clicked, as often on either side
    users: tuple[int, int]  # who have more wins of the one side than of the other
    preference: Estimate  # (wins of the second - of the first) / clicked searches, in [-1, 1]; users are drawn
    p_value: float  # of the sign test over users

    @property
    def better(self) -> str:
        """The side that is better beyond chance; "" where neither is."""
        return "" if self.p_value >= LEVEL else self.sides[self.users[1] > self.users[0]]


@dataclass(frozen=True, slots=True)
class Split:
    """What came of a split test: the reciprocal rank of a search's first clicked hit, 0 without a click."""

    sides: tuple[str, str]
    searches: tuple[int, int]
    users: tuple[int, int]
    values: tuple[Estimate, Estimate]  # mean over searches; users are drawn
    difference: Estimate  # second - first

    @property
    def better(self) -> str:
        if self.difference.low <= 0 <= self.difference.high:
            return ""
        return self.sides[self.difference.low > 0]


@dataclass(slots=True)
class Shown:
    """One compared search: by hit its side and rank, and which of them were clicked."""

    places: dict[str, tuple[str, int]] = field(default_factory=dict)
    clicked: set[str] = field(default_factory=set)

    def clicks(self, side: str) -> int:
        return sum(self.places[doc_id][0] == side for doc_id in self.clicked & self.places.keys())

    @property
    def reciprocal_rank(self) -> float:
        return max((1 / self.places[doc_id][1] for doc_id in self.clicked & self.places.keys()), default=0.0)


def report(events: Iterable[Event]) -> list[Drafted | Split]:
    """One for each comparison that the events tell of, by name. `events`: ACTIONS, those of one user together."""
    compared: dict[str, dict[UserKey, list[Shown]]] = defaultdict(dict)
    for user, own in groupby(events, key=attrgetter("user")):
        for name, searches in read_searches(own).items():
            compared[name][user] = searches
    return [judge_split(name, of) if "|" in name else judge_drafted(name, of) for name, of in sorted(compared.items())]


def read_searches(events: Iterable[Event]) -> dict[str, list[Shown]]:
    """By comparison, the compared searches of one user, each with the clicks that name its `query_id`."""
    found: dict[tuple[str, str], Shown] = defaultdict(Shown)
    clicks = []
    for event in events:
        if event.action != SHOWN:
            clicks.append(event)
        elif noted := noted_by(event):
            name, side, rank = noted
            found[name, event.query_id].places[event.doc_id] = (side, rank)
    searches: dict[str, list[Shown]] = defaultdict(list)
    for (name, query_id), shown in found.items():
        shown.clicked.update(click.doc_id for click in clicks if click.query_id == query_id)
        searches[name].append(shown)
    return searches


def noted_by(event: Event) -> tuple[str, str, int] | None:
    """The comparison, the side and the rank of an impression; None where nothing was compared."""
    inner: Any = event.attributes.get("event_attributes")
    noted = inner.get("bespeak") if isinstance(inner, dict) else None
    position = inner.get("position") if isinstance(inner, dict) else None
    if not isinstance(noted, dict) or not isinstance(position, dict):
        return None
    name, side, rank = noted.get("compared"), noted.get("side"), position.get("ordinal")
    if not isinstance(name, str) or not isinstance(side, str) or not isinstance(rank, int) or rank < 1:
        return None
    return (name, side, rank) if side in sides_of(name) else None


def sides_of(name: str) -> tuple[str, str]:
    first, _, second = name.partition("|" if "|" in name else ":")
    return first, second


def judge_drafted(name: str, searches: dict[UserKey, list[Shown]]) -> Drafted:
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
    return Drafted(sides, len(signs), wins, len(clicked) - sum(wins), users, estimate(named, groups), sign_test(*users))


def _sign(shown: Shown, sides: tuple[str, str]) -> int | None:
    """-1, 0 or 1 for the first side, neither or the second; None without a click."""
    first, second = (shown.clicks(side) for side in sides)
    return (second > first) - (second < first) if first or second else None


def _key(*parts: object) -> str:
    return repr(parts)


def sign_test(first: int, second: int) -> float:
    """Two-sided p of as uneven a split or a more uneven one, each side as likely (Dixon and Mood 1946).

    >>> sign_test(0, 5)  # 2 / 2^5
    0.0625
    """
    n, least = first + second, min(first, second)
    whole = math.lgamma(n + 1) - n * math.log(2)
    tail = sum(math.exp(whole - math.lgamma(k + 1) - math.lgamma(n - k + 1)) for k in range(least + 1))
    return round(min(1.0, 2 * tail), 12)


def judge_split(name: str, searches: dict[UserKey, list[Shown]]) -> Split:
    sides = sides_of(name)
    arms = [list(_arm(searches, side)) for side in sides]
    values = [estimate(dict(_flat(arm)), {key: key.rsplit("\0", 1)[0] for key, _ in _flat(arm)}) for arm in arms]
    means = [_resampled(arm) for arm in arms]
    difference = values[1].mean - values[0].mean
    low, high = np.percentile(means[1] - means[0], [2.5, 97.5]) if all(arms) else (-1.0, 1.0)
    n_searches = [sum(len(own) for own in arm) for arm in arms]
    return Split(
        sides, (n_searches[0], n_searches[1]), (len(arms[0]), len(arms[1])), (values[0], values[1]),
        Estimate(difference, float(low), float(high)),
    )  # fmt: skip


def _arm(searches: dict[UserKey, list[Shown]], side: str) -> Iterator[list[float]]:
    """The values of each user whose searches were this side's."""
    for own in searches.values():
        if values := [shown.reciprocal_rank for shown in own if side in {found for found, _ in shown.places.values()}]:
            yield values


def _flat(arm: list[list[float]]) -> Iterator[tuple[str, float]]:
    for user, own in enumerate(arm):
        for n, value in enumerate(own):
            yield f"{user}\0{n}", value


def _resampled(arm: list[list[float]]) -> np.ndarray[Any, np.dtype[np.float64]]:
    """`(RESAMPLES,)` means over searches, whole users drawn."""
    sums, counts = np.array([sum(own) for own in arm]), np.array([float(len(own)) for own in arm])
    if not len(sums):
        return np.zeros(RESAMPLES)
    return resample(sums, counts, SEED + len(arm))
