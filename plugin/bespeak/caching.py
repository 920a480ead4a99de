"""A cache in memory, bounded in size and age."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from cachetools import Cache, LRUCache, TTLCache

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class RecentlyUsed(Generic[Key, Value]):
    """A thread-safe cache of at most `limit` entries, which drops the least recently used first.

    Each entry lives `life_s` seconds after it was put. With `size_of`, `limit` bounds the sum of the entries' sizes,
    and an entry larger than that is not kept.
    """

    def __init__(
        self,
        limit: float,
        life_s: float = math.inf,
        clock: Callable[[], float] = time.monotonic,
        size_of: Callable[[Value], float] | None = None,
    ) -> None:
        self._entries: Cache[Key, Value]
        if life_s == math.inf:  # two thirds of the time that a TTLCache takes
            self._entries = LRUCache(limit, getsizeof=size_of)
        else:
            self._entries = TTLCache(limit, life_s, timer=clock, getsizeof=size_of)
        self._n_forgotten = 0
        self._lock = threading.Lock()

    @property
    def n_forgotten(self) -> int:
        """How often `forget` or `clear` was called."""
        return self._n_forgotten

    def get(self, key: Key) -> Value | None:
        with self._lock:
            found: Value | None = self._entries.get(key)
            return found

    def put(self, key: Key, value: Value, n_forgotten: int | None = None) -> None:
        """Keeps the value, unless something was forgotten since `n_forgotten` was read: it may hold just that."""
        with self._lock:
            if n_forgotten not in (None, self._n_forgotten):
                return
            self._entries.pop(key, None)
            if self._entries.getsizeof(value) <= self._entries.maxsize:
                self._entries[key] = value

    def forget(self, concerns: Callable[[Key], bool]) -> None:
        """Drops every entry whose key `concerns` accepts."""
        with self._lock:
            self._n_forgotten += 1
            for key in [key for key in self._entries if concerns(key)]:
                self._entries.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._n_forgotten += 1
            self._entries.clear()

    def __contains__(self, key: Key) -> bool:
        with self._lock:
            return key in self._entries

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)
