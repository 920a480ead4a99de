"""What is kept in memory for a while, within bounds."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Hashable
from typing import Generic, TypeVar

from cachetools import TTLCache

Key = TypeVar("Key", bound=Hashable)
Value = TypeVar("Value")


class RecentlyUsed(Generic[Key, Value]):
    """At most `limit` entries, each for `life_s` seconds after it was put; the one least recently used goes first.

    May be used from several threads.
    """

    def __init__(self, limit: int, life_s: float = math.inf, clock: Callable[[], float] = time.monotonic) -> None:
        self._entries: TTLCache[Key, Value] = TTLCache(limit, life_s, timer=clock)
        self._lock = threading.Lock()

    def get(self, key: Key) -> Value | None:
        with self._lock:
            found: Value | None = self._entries.get(key)
            return found

    def put(self, key: Key, value: Value) -> None:
        with self._lock:
            self._entries[key] = value

    def forget(self, concerns: Callable[[Key], bool]) -> None:
        """Drops every entry whose key `concerns` accepts."""
        with self._lock:
            for key in [key for key in self._entries if concerns(key)]:
                self._entries.pop(key, None)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()

    def __contains__(self, key: Key) -> bool:
        with self._lock:
            return key in self._entries

    def __len__(self) -> int:
        with self._lock:
            return len(self._entries)
