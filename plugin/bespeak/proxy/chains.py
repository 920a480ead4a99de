"""The pages of one search: later pages follow what its first page decided."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from bespeak.caching import RecentlyUsed
from bespeak.records import Clause, Rewrite, UserKey
from bespeak.statuses import RerankStatus

MAX_CHAINS = 10_000
LIFE_S = 600.0


@dataclass(frozen=True, slots=True)
class Chain:
    """What the first page decided. `order` holds keys of the window's hits as they were ranked.

    If the first page was the engine's own, for whatever reason, so are the others: `untouched`. If two settings are
    compared, `sides` says for each of `order` which of them placed it, from 1; 0: neither.
    """

    query_id: str
    rewrite: Rewrite
    clauses: tuple[Clause, ...] = ()
    order: Sequence[int] = ()
    sides: bytes = b""
    rerank: RerankStatus = RerankStatus.FULL  # of the first page, whose order the others follow
    reason: str = ""  # what was left out of it
    untouched: bool = False
    consent: bool = True  # to recording the user's queries and hits
    begun: float = 0.0  # by the clock of `Chains`


class Chains:
    """The latest chains by user and search, in memory for `life_s` seconds. May be used from several threads."""

    def __init__(
        self, limit: int = MAX_CHAINS, life_s: float = LIFE_S, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.clock = clock
        self._kept = RecentlyUsed[tuple[UserKey, bytes], Chain](limit, life_s, clock)
        self._forgotten_at = RecentlyUsed[UserKey, float](limit)
        self._lock = threading.Lock()  # a chain is put, or its user forgotten, but not both at once

    def get(self, user: UserKey, search: bytes) -> Chain | None:
        return self._kept.get((user, search))

    def put(self, user: UserKey, search: bytes, chain: Chain) -> None:
        """Does nothing if the user was forgotten after the chain began."""
        with self._lock:
            if self.is_current(user, chain.begun):
                self._kept.put((user, search), chain)

    def is_current(self, user: UserKey, begun: float) -> bool:
        """Whether the user was not forgotten since `begun`."""
        forgotten_at = self._forgotten_at.get(user)
        return forgotten_at is None or begun > forgotten_at

    def forget(self, user: UserKey) -> None:
        with self._lock:
            self._kept.forget(lambda key: key[0] == user)
            self._forgotten_at.put(user, self.clock())
