"""What is stored about users: adds, exports and deletes events, and keeps consent."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from bespeak.profiles.deriving import STRENGTHS
from bespeak.profiles.stores import EventStore, ForgottenCounts
from bespeak.profiles.ubi import RejectedEvent, read_events
from bespeak.proxy.recording import Recorder
from bespeak.records import Event, UserKey

REJECTED_LISTED = 1000
EVENTS_BATCH = 500
"""Events that a thread reads or writes at a time."""
FLUSH_S = 2.0
"""How long an export waits for queued events to be written."""

ANSWERING = {"answer", *(action for action, strength in STRENGTHS.items() if strength > 0)}
"""Actions that say what came of a query; the session's next rewrite reads them."""


class AddedEvents(NamedTuple):
    """How many events of a body were taken, (line number, reason) for the first that were not, and the user and session
    of the last one that says what came of a query.
    """

    taken: int
    n_rejected: int
    rejected: list[tuple[int, str]]
    answered: tuple[UserKey, str] | None = None


class UserData:
    """Users' data: queued, stored and derived. Its methods wait for the store, so they belong in threads.

    All of them raise StoreError.
    """

    def __init__(
        self,
        store: EventStore,
        recorder: Recorder,
        forgets: Sequence[Callable[[UserKey], object]] = (),
        learnt: Callable[[str], bool] = lambda _tenant: False,
    ) -> None:
        """`forgets` are called once the store has forgotten a user. `learnt` says whether something was learnt from a
        tenant's users, which may still count one of them.
        """
        self._store, self._recorder = store, recorder
        self._forgets, self._learnt = tuple(forgets), learnt

    def add(self, lines: bytes, tenant: str) -> AddedEvents:
        """Writes straight to the store, so that the next search knows the events. Raises InputError."""
        items = read_events(io.BytesIO(lines), tenant)
        taken, n_rejected, listed = 0, 0, list[tuple[int, str]]()
        answered: tuple[UserKey, str] | None = None
        while some := list(itertools.islice(items, EVENTS_BATCH)):
            events = [item for _, item in some if isinstance(item, Event)]
            rejected = [(line_no, item.reason) for line_no, item in some if isinstance(item, RejectedEvent)]
            if events:
                self._store.add(events)
            answers = [event for event in events if event.session_id and event.action in ANSWERING]
            answered = (answers[-1].user, answers[-1].session_id) if answers else answered
            taken, n_rejected = taken + len(events), n_rejected + len(rejected)
            listed += rejected[: REJECTED_LISTED - len(listed)]
        return AddedEvents(taken, n_rejected, listed, answered)

    def export(self, user: UserKey) -> Iterator[Event]:
        """All events, also those that are still queued."""
        self._recorder.flush(FLUSH_S)
        return self._store.export(user)

    def forget(self, user: UserKey) -> ForgottenCounts:
        """Deletes queued events first, then the store's, then what was derived from them."""
        try:
            self._recorder.forget(user)
            return self._store.forget(user)
        finally:
            self._forget_derived(user)

    def set_consent(self, user: UserKey, given: bool) -> None:
        self._store.set_consent(user, given)
        self._forget_derived(user)  # the next page starts a new chain too

    def is_learnt_from(self, user: UserKey) -> bool:
        """Whether something was learnt from everyone in the user's tenant: no single user can be taken out of it."""
        return self._learnt(user.tenant)

    def _forget_derived(self, user: UserKey) -> None:
        for forget in self._forgets:
            forget(user)
