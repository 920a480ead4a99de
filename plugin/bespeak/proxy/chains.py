"""The pages of one search: what its first page decided holds for the later ones."""

from __future__ import annotations

import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bespeak.records import Clause, Rewrite, UserKey

MAX_CHAINS = 10_000
LIFE_S = 600.0


@dataclass(frozen=True, slots=True)
class Chain:
    """What the first page decided. `order` holds keys of the window's hits as they were ranked.

    Where the first page was the engine's own, for whatever reason, so are all: `untouched`. Where two settings are
    compared, `sides` holds for each of `order` which of them put it there, from 1; 0: neither.
    """

    query_id: str
    rewrite: Rewrite
    clauses: tuple[Clause, ...] = ()
    order: Sequence[int] = ()
    sides: bytes = b""
    untouched: bool = False
    consent: bool = True  # to the recording of what is asked and shown
    begun: float = 0.0  # by the clock of `Chains`


class Chains:
    """The latest chains by user and search, for ten minutes, in memory: a user who is forgotten leaves none."""

    def __init__(
        self, limit: int = MAX_CHAINS, life_s: float = LIFE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock = clock
        self._limit, self._life_s = limit, life_s
        self._forgotten: OrderedDict[UserKey, float] = OrderedDict()
        self._kept: OrderedDict[tuple[UserKey, bytes], tuple[float, Chain]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, user: UserKey, search: bytes) -> Chain | None:
        with self._lock:
            ends, chain = self._kept.get((user, search), (0.0, None))
        return chain if self.clock() < ends else None

    def put(self, user: UserKey, search: bytes, chain: Chain) -> None:
        """Left out where the user was forgotten since it began."""
        with self._lock:
            if chain.begun <= self._forgotten.get(user, -1.0):
                return
            self._kept[user, search] = (self.clock() + self._life_s, chain)
            self._kept.move_to_end((user, search))
            while len(self._kept) > self._limit:
                self._kept.popitem(last=False)

    def counts(self, user: UserKey, begun: float) -> bool:
        """Was the user not forgotten since a chain began?"""
        with self._lock:
            return begun > self._forgotten.get(user, -1.0)

    def forget(self, user: UserKey) -> None:
        with self._lock:
            for key in [key for key in self._kept if key[0] == user]:
                del self._kept[key]
            self._forgotten[user] = self.clock()
            self._forgotten.move_to_end(user)
            while len(self._forgotten) > self._limit:
                self._forgotten.popitem(last=False)
