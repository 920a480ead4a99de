"""Events for what a search showed, and a queue that writes them without delaying an answer."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from types import MappingProxyType
from typing import Any, NamedTuple

from bespeak.caching import RecentlyUsed
from bespeak.errors import InputError, StoreError
from bespeak.profiles.events import new_event
from bespeak.profiles.stores import EventStore
from bespeak.records import Event, UserKey

logger = logging.getLogger("bespeak.proxy")

BATCH = 500
TITLE_CHARS = 200
PATIENCE_S = 60.0
"""How long a batch is retried before it is dropped, while the store fails."""

FIRST_PAUSE_S, LONGEST_PAUSE_S = 0.1, 5.0
FORGOTTEN_S = 600.0
"""How long a forgotten user's older events are refused. Longer than any search takes."""
MAX_FORGOTTEN = 1_000_000


class RecorderCounts(NamedTuple):
    """Events since the start: `queued` now, `written` to the store, `dropped` because it did not keep up."""

    queued: int
    written: int
    dropped: int


class ShownHit(NamedTuple):
    """A hit on a page. `noted`: its `scores`, the `side` that placed it, and the comparison (`compared`)."""

    doc_id: str
    title: str
    noted: Mapping[str, Any] = MappingProxyType({})


class Recorder:
    """Takes events at once, and writes them to the store in a thread of its own, in order."""

    def __init__(
        self,
        store: EventStore,
        limit: int = 10_000,
        patience_s: float = PATIENCE_S,
        clock: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        """At most `limit` events wait. `clock` is the one of the events' timestamps."""
        self._store, self._limit, self._patience_s, self._clock = store, limit, patience_s, clock
        self._changed = threading.Condition()
        self._queue: deque[tuple[int, Event]] = deque()
        self._batch: list[tuple[int, Event]] = []  # taken from the queue, neither written nor dropped yet
        self._in_store: frozenset[UserKey] = frozenset()  # whose events the store is writing at this moment
        self._forgotten_at = RecentlyUsed[UserKey, datetime](
            MAX_FORGOTTEN, FORGOTTEN_S, lambda: self._clock().timestamp()
        )
        self._taken = self._written = self._dropped = 0
        self._closing = False
        self._thread = threading.Thread(target=self._write_all, name="bespeak-recorder", daemon=True)
        self._thread.start()

    def record(self, events: Sequence[Event]) -> int:
        """Returns how many were dropped because the queue is full. Never blocks, never raises.

        Events from before their user was forgotten are left out and not counted.
        """
        with self._changed:
            fit = [event for event in events if not self._is_forgotten(event)]
            room = 0 if self._closing else max(0, self._limit - len(self._queue) - len(self._batch))
            for event in fit[:room]:
                self._taken += 1
                self._queue.append((self._taken, event))
            dropped = len(fit) - min(room, len(fit))
            self._dropped += dropped
            self._changed.notify_all()
            return dropped

    def forget(self, user: UserKey) -> None:
        """Keeps the user's events until now out of the store; those already there must be forgotten there next.

        Waits while the store writes some of them.
        """
        with self._changed:
            self._forgotten_at.put(user, self._clock())
            self._queue = deque(entry for entry in self._queue if entry[1].user != user)
            self._batch = [entry for entry in self._batch if entry[1].user != user]
            self._changed.notify_all()
            self._changed.wait_for(lambda: user not in self._in_store)

    def flush(self, timeout_s: float | None = None) -> None:
        """Waits until everything recorded before is written or dropped, at most `timeout_s`."""
        with self._changed:
            last = self._taken
            self._changed.wait_for(lambda: self._oldest() > last, timeout_s)

    def close(self) -> None:
        """Writes what is queued, without retries, and ends the thread. May be called again."""
        with self._changed:
            self._closing = True
            self._changed.notify_all()
        self._thread.join()

    @property
    def counts(self) -> RecorderCounts:
        with self._changed:
            return RecorderCounts(len(self._queue) + len(self._batch), self._written, self._dropped)

    def _is_forgotten(self, event: Event) -> bool:
        forgotten_at = self._forgotten_at.get(event.user)
        return forgotten_at is not None and event.timestamp <= forgotten_at

    def _oldest(self) -> float:
        entries = self._batch or self._queue
        return entries[0][0] if entries else math.inf

    def _write_all(self) -> None:
        while self._take_batch():
            self._write_batch()

    def _take_batch(self) -> bool:
        """False when closed and empty."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._closing)
            self._batch = [self._queue.popleft() for _ in range(min(BATCH, len(self._queue)))]
            return bool(self._batch)

    def _write_batch(self) -> None:
        end, pause_s = time.monotonic() + self._patience_s, FIRST_PAUSE_S
        while not self._try(give_up=time.monotonic() >= end):
            with self._changed:
                self._changed.wait_for(lambda: self._closing or not self._batch, pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _try(self, give_up: bool) -> bool:
        """Whether the batch is done: written, or dropped."""
        with self._changed:
            events = [event for _, event in self._batch]
            self._in_store = frozenset(event.user for event in events)
            give_up = give_up or self._closing
        written, again = self._add(events)
        with self._changed:
            self._in_store = frozenset()
            done = written or give_up or not again
            if written:
                self._written += len(events)
            elif done:
                self._dropped += len(self._batch)
            if done:
                self._batch = []
            self._changed.notify_all()
            return done

    def _add(self, events: Sequence[Event]) -> tuple[bool, bool]:
        """Whether they were written, and if not, whether a retry may help."""
        try:
            if events:
                self._store.add(events)
            return True, False
        except StoreError as error:
            logger.warning("events were not written: %s", error)
            return False, True
        except Exception as error:  # the thread must live on for the events to come
            logger.error("events were not written: %s", type(error).__name__)
            return False, False


def query_recorded(user: UserKey, session_id: str, query_id: str, text: str, index: str, now: datetime) -> Event:
    """The event of a query that was asked at `now`. Raises InputError for a text or an id that is too long."""
    attributes = {"query_attributes": {"index": index}} if index else {}
    return new_event(
        user, "query", now, session_id=session_id, query_id=query_id, text=text, attributes=attributes
    )  # fmt: skip


def impressions(
    user: UserKey, session_id: str, query_id: str, hits: Sequence[ShownHit], first_rank: int, now: datetime
) -> list[Event]:
    """One event for each hit shown, in their order; `first_rank` counts from 1 over all pages.

    A hit whose id is too long for an event is left out.
    """
    found = []
    for rank, (doc_id, title, noted) in enumerate(hits, start=first_rank):
        ours = {"bespeak": dict(noted)} if noted else {}
        attributes = {"event_attributes": {"position": {"ordinal": rank}, **ours}}
        try:
            found.append(new_event(user, "impression", now, session_id=session_id, query_id=query_id, doc_id=doc_id,
                                   title=title[:TITLE_CHARS], attributes=attributes))  # fmt: skip
        except InputError:
            continue
    return found
