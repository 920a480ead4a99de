"""All users' events as columns of numbers, by tenant: the input for learning."""

from __future__ import annotations

from array import array
from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from bespeak.profiles.deriving import interest, strength
from bespeak.profiles.events import microseconds
from bespeak.records import Event

Floats: TypeAlias = npt.NDArray[np.float32]
Rows: TypeAlias = npt.NDArray[np.int32]
Places: TypeAlias = npt.NDArray[np.int64]

ID_BYTES = 32
"""Length of an event's id, a digest in hexadecimal."""


@dataclass(frozen=True)
class Behaviour:
    """One tenant's interests, `(user, document) → interest`, as three columns, and the documents' ids."""

    doc_ids: list[str]
    n_users: int
    n_events: int
    users: Rows
    docs: Rows
    values: Floats


def gather(events: Iterable[Event]) -> dict[str, Behaviour]:
    """The behaviour of each tenant's users. Events may come in any order.

    A user's events on the same document add up; only the newest of several ratings counts.
    """
    tenants: dict[str, _TenantEvents] = {}
    for event in events:
        if event.doc_id:
            tenants.setdefault(event.user.tenant, _TenantEvents()).add(event)
    return {tenant: found.behaviour() for tenant, found in tenants.items()}


class _TenantEvents:
    """One tenant's events as columns; a million of them take tens of megabytes."""

    def __init__(self) -> None:
        self._users: dict[str, int] = {}
        self._docs: dict[str, int] = {}
        self._actions, self._ratings = _Columns(), _Columns()
        self._times, self._ids = array("q"), bytearray()  # of the ratings

    def add(self, event: Event) -> None:
        user = self._users.setdefault(event.user.user_id, len(self._users))
        doc = self._docs.setdefault(event.doc_id, len(self._docs))
        if event.action != "rating":
            self._actions.add(user, doc, strength(event))
            return
        self._ratings.add(user, doc, interest("rating", strength(event)))
        self._times.append(microseconds(event.timestamp))
        self._ids += event.event_id.encode().ljust(ID_BYTES)[:ID_BYTES]

    def behaviour(self) -> Behaviour:
        doc_ids = sorted(self._docs)
        place = np.empty(len(doc_ids), np.int64)
        place[[self._docs[doc_id] for doc_id in doc_ids]] = np.arange(len(doc_ids))
        done, rated = self._actions.arrays(place), self._ratings.arrays(place)
        pairs = np.concatenate([done.pairs, rated.pairs[newest := self._newest(rated.pairs)]])
        values = np.concatenate([done.values, rated.values[newest]])
        found, at = np.unique(pairs, return_inverse=True)
        values = np.clip(np.bincount(at, values, len(found)), -1, 2).astype(np.float32)
        users, docs = (half.astype(np.int32) for half in np.divmod(found, len(doc_ids)))
        return Behaviour(doc_ids, len(self._users), len(done.pairs) + len(rated.pairs), users, docs, values)

    def _newest(self, pairs: Places) -> Places:
        """Indices of each user's newest rating of each document, by time, then id."""
        ids = np.frombuffer(bytes(self._ids), f"S{ID_BYTES}")
        order = np.lexsort((ids, np.array(self._times), pairs))
        ordered = pairs[order]
        last = np.ones(len(order), bool)
        last[:-1] = ordered[1:] != ordered[:-1]
        return order[last]


class _Arrays(NamedTuple):
    pairs: Places  # user x documents + document
    values: npt.NDArray[np.float64]


class _Columns:
    def __init__(self) -> None:
        self._users, self._docs, self._values = array("i"), array("i"), array("d")

    def add(self, user: int, doc: int, value: float) -> None:
        self._users.append(user)
        self._docs.append(doc)
        self._values.append(value)

    def arrays(self, place: Places) -> _Arrays:
        """The columns, with the documents renumbered by `place`."""
        users, docs = np.array(self._users, np.int64), np.array(self._docs, np.int64)
        return _Arrays(users * len(place) + place[docs], np.array(self._values))
