"""The seam to where events are kept: one file on this machine, or indices that any number of proxies share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING, NamedTuple, Protocol

from bespeak.records import Event, Profile, Rewrite, UserKey

if TYPE_CHECKING:
    from bespeak.rewriting.rewriter import RewriteKey

# The most that a profile reads, newest first, so that its cost does not grow with the history.
STATEMENTS_READ = 500  # more than a profile keeps, since a statement may be stored several times
SESSION_EVENTS_READ = 200
PREFERENCES_READ = 200  # for each action
REWRITES_KEPT = 100_000
ADD_BATCH = 1000
EXPORT_BATCH = 500


class Batch(NamedTuple):
    """What some lines of a file hold, up to `line_no` and `offset`."""

    line_no: int
    offset: int
    events: tuple[Event, ...]
    rejected: tuple[tuple[int, str], ...]  # line number and reason


@dataclass(frozen=True, slots=True)
class EventLoad:
    """How far a file has been loaded for a tenant. `offset` counts bytes after decompression."""

    tenant: str
    file_digest: str
    offset: int = 0
    line_no: int = 0
    events: int = 0  # readable events up to `offset`
    added: int = 0  # those of them that were new to the store
    rejected: int = 0

    def after(self, batch: Batch, added: int) -> EventLoad:
        """The load once the batch is stored, of which `added` events were new."""
        n_events, n_rejected = self.events + len(batch.events), self.rejected + len(batch.rejected)
        counts = (n_events, self.added + added, n_rejected)
        return EventLoad(self.tenant, self.file_digest, batch.offset, batch.line_no, *counts)


class ForgottenCounts(NamedTuple):
    """How many entries `forget` deleted."""

    events: int
    rewrites: int
    consent: int


class EventStore(Protocol):
    """Keeps events and derives profiles from them. Raises `StoreError`. A store that does not exist yet is empty."""

    def add(self, events: Iterable[Event]) -> int:
        """Adds events and returns how many were new. An event that is already there stays as it is."""
        ...

    def profile(self, user: UserKey | None, session_id: str, now: datetime, query_id: str = "") -> Profile:
        """What is known about the user in this session.

        The query that is being asked must not become a turn: ask before its event is added or, if the client has sent
        the event already, name its `query_id`.
        """
        ...

    def export(self, user: UserKey) -> Iterator[Event]:
        """All events of the user, oldest first."""
        ...

    def of_everyone(self, actions: Sequence[str]) -> Iterator[Event]:
        """The events with these actions of all users of all tenants, grouped by user.

        Users who paused personalisation are left out, since their behaviour must not serve others.
        """
        ...

    def forget(self, user: UserKey) -> ForgottenCounts:
        """Deletes the user's events, consent and cached rewrites, so that no byte of them stays in the store.

        In a cluster nothing of them is found any more on return, but the bytes go later, when its files are merged.
        """
        ...

    def set_consent(self, user: UserKey, given: bool) -> None: ...

    def get_rewrite(self, key: RewriteKey) -> Rewrite | None: ...

    def put_rewrite(self, key: RewriteKey, rewrite: Rewrite) -> None:
        """Keeps the rewrite if the user has events, so that a user who was just forgotten leaves no trace."""
        ...

    def drop_rewrite(self, key: RewriteKey) -> None: ...

    def resume(self, tenant: str, file_digest: str) -> EventLoad:
        """How far an interrupted load of this file has come; its beginning if there is none."""
        ...

    def record(self, load: EventLoad, batch: Batch) -> EventLoad:
        """Adds the batch and moves the load to its end, in one transaction."""
        ...

    def rejections(self, load: EventLoad) -> Iterator[tuple[int, str]]:
        """(line number, reason) of every rejected line of this load, in order."""
        ...

    def finish(self, load: EventLoad) -> None:
        """Deletes the load, so that the next load of the file reads it from its beginning."""
        ...

    def close(self) -> None: ...
