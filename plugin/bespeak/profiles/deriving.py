"""Derives a profile from events. It does no I/O, so that all stores derive alike.

The weight of a document is clip(sum_i s_i * max(2^(-a_i / 30), 2^-10), -1, 1) over the user's events i on it, with
strength s_i (`STRENGTHS`; for a rating r from 0.5 to 5: (r - 3) / 2) and age a_i in days. Only the newest rating of a
document counts. A click 30 days ago (0.3 / 2) and a purchase today (1.0): clip(1.15) = 1.

The interest in a document, compared with documents that were not chosen, is clip(sum_i s_i, -1, 2). A rating counts 1
more, because a user who rates a document chose it first: three stars, of weight 0, are an interest of 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from operator import attrgetter
from typing import NamedTuple

from bespeak.profiles.events import TYPED
from bespeak.records import Event, Preference, Profile, Statement, Turn, UserKey

STRENGTHS = {
    "purchase": 1.0,
    "add_to_cart": 0.7,
    "watch": 0.5,
    "click": 0.3,
    "click_through": 0.3,
    "item_click": 0.3,
    "view": 0.15,
    "declined_product": -0.5,
}
PREFERRING = (*STRENGTHS, "rating")
HALF_LIFE = timedelta(days=30)
FLOOR = 2.0**-10  # old preferences fade but are not lost: after ten half-lives only their strengths differ
NEUTRAL_RATING = 3.0
RATED = 1.0
STATEMENTS_KEPT = 250  # each takes 17 us to derive at every query, and 50 us to read for term picking once
TURNS_KEPT = 20
PREFERENCES_KEPT = 2_000  # as many as the stores read for all actions
TYPING = timedelta(seconds=5)  # a search box sends a query at every key; this soon it is still the same query


@dataclass(frozen=True, slots=True)
class UserEvents:
    """The events, in any order, that a store has read for the profile of a user in one session."""

    user: UserKey
    session_id: str
    statements: Sequence[Event] = ()
    session_events: Sequence[Event] = ()
    preference_events: Sequence[Event] = ()
    consent: bool = True


def derive(events: UserEvents, now: datetime, query_id: str = "") -> Profile:
    """The profile of a user in one session. Events later than `now` (clocks differ) count as new.

    The query that is being asked now is not an earlier turn: leave its event out, or name its `query_id`.
    """
    statements = _statements(events.statements)
    turns = _turns(events.session_events, query_id)
    preferences, counted = _preferences(events.preference_events, now)
    profile = Profile(events.user, events.session_id, statements, turns, preferences, events.consent)
    return replace(profile, version=_version(profile, counted))


def _statements(events: Iterable[Event]) -> tuple[Statement, ...]:
    """The statements, each once, in the order in which they were last made."""
    newest: dict[str, Event] = {}
    for event in sorted(events, key=_in_time):
        key = " ".join(event.text.casefold().split())
        newest.pop(key, None)
        newest[key] = event
    return tuple(Statement(event.text, event.event_id) for event in newest.values())[-STATEMENTS_KEPT:]


class _SessionQuery(NamedTuple):
    """A query of the session and its answer."""

    event: Event  # that holds the query's text
    response: str
    typed: bool  # a search box sent it while the user was typing


def _turns(events: Iterable[Event], query_id: str) -> tuple[Turn, ...]:
    queries: list[_SessionQuery] = []
    for turn in sorted(_by_query(events, query_id), key=lambda turn: _in_time(turn.event)):
        if queries and _continues(queries[-1], turn):
            queries.pop()
        queries.append(turn)
    return tuple(
        Turn(turn.event.text, turn.response, turn.event.event_id, turn.event.query_id) for turn in queries[-TURNS_KEPT:]
    )


def _by_query(events: Iterable[Event], query_id: str) -> list[_SessionQuery]:
    """One for each query whose text is known. Events belong to the query with their `query_id`."""
    groups: dict[str, list[Event]] = {}
    for event in sorted(events, key=_in_time):
        own_id = event.event_id if event.action in ("query", *TYPED) else ""
        key = event.query_id or own_id
        if key and key != query_id and event.action != "impression":
            groups.setdefault(key, []).append(event)
    turns = (_session_query(group) for group in groups.values())
    return [turn for turn in turns if turn]


def _session_query(group: list[Event]) -> _SessionQuery | None:
    """The query of these events, by its own event or by one that repeats its text; None if none does."""
    texts = [event for event in group if event.text.strip() and event.action not in ("answer", "statement")]
    if not texts:
        return None
    order = {"query": 0, **dict.fromkeys(TYPED, 1)}
    event = min(texts, key=lambda event: order.get(event.action, 2))
    answers = [event.text for event in group if event.action == "answer"]
    titles = dict.fromkeys(event.title for event in group if event.title and STRENGTHS.get(event.action, 0) > 0)
    typed = any(event.action in TYPED for event in group)
    return _SessionQuery(event, answers[-1] if answers else "; ".join(titles), typed)


def _continues(earlier: _SessionQuery, later: _SessionQuery) -> bool:
    """Whether the later query continues the earlier one, without an answer between: repeated, or typed further."""
    if earlier.response:
        return False
    before, after = earlier.event.text.strip().casefold(), later.event.text.strip().casefold()
    if before == after:
        return True
    soon = later.event.timestamp - earlier.event.timestamp <= TYPING
    return earlier.typed and later.typed and soon and (after.startswith(before) or before.startswith(after))


def _preferences(events: Iterable[Event], now: datetime) -> tuple[tuple[Preference, ...], list[str]]:
    """The preferences, strongest first, and the ids of all events that count in them."""
    by_doc: dict[str, list[Event]] = {}
    for event in sorted(events, key=_in_time):
        if event.doc_id and event.action in PREFERRING:
            by_doc.setdefault(event.doc_id, []).append(event)
    counting = {doc_id: _counting(group) for doc_id, group in by_doc.items()}
    liked = [_preference(group, now) for group in counting.values() if group]
    liked = [preference for preference in liked if preference.weight or preference.interest]
    liked.sort(key=lambda preference: (-abs(preference.weight), preference.doc_id))
    kept = tuple(liked[:PREFERENCES_KEPT])
    return kept, sorted(event.event_id for preference in kept for event in counting[preference.doc_id])


def _counting(group: list[Event]) -> list[Event]:
    """The events on a document that count: all but its older ratings."""
    last_rating = next((event for event in reversed(group) if event.action == "rating"), None)
    return [event for event in group if event.action != "rating" or event is last_rating]


def _preference(group: list[Event], now: datetime) -> Preference:
    """The preference for the document of these events; it names the event that contributes most."""
    shares = [
        strength(event) * max(0.5 ** (max(now - event.timestamp, timedelta()) / HALF_LIFE), FLOOR) for event in group
    ]
    weight = max(-1.0, min(1.0, sum(shares)))
    strongest = max(zip(shares, group, strict=True), key=lambda pair: pair[0] if weight > 0 else -pair[0])[1]
    title = next((event.title for event in reversed(group) if event.title), "")
    return Preference(
        strongest.doc_id, title, weight, strongest.action, strongest.event_id, strongest.timestamp,
        clip_interest(sum(interest(event.action, strength(event)) for event in group)),
    )  # fmt: skip


def strength(event: Event) -> float:
    """The strength of an event, in [-1, 1], before decay."""
    if event.action == "rating" and event.value is not None:
        return max(-1.0, (event.value - NEUTRAL_RATING) / 2)
    return STRENGTHS.get(event.action, 0.0)


def interest(action: str, strength: float) -> float:
    """The interest that one event shows. That of several on a document is their sum, clipped by `clip_interest`."""
    return strength + RATED if action == "rating" else strength


def clip_interest(total: float) -> float:
    """The total in [-1, 2]."""
    return max(-1.0, min(2.0, total))


def _version(profile: Profile, counted: list[str]) -> str:
    """A digest of what was said and done, not of the weights, so that decay alone does not change it.

    `counted` are the ids of the events that the preferences come from. Empty for a stranger.
    """
    if profile.consent and not (profile.statements or profile.turns or counted):
        return ""
    content = [
        profile.user,
        profile.session_id,
        profile.consent,
        [statement.event_id for statement in profile.statements],
        [(turn.event_id, turn.response) for turn in profile.turns],
        counted,
    ]
    return hashlib.blake2b(json.dumps(content).encode("ascii"), digest_size=16).hexdigest()


_in_time = attrgetter("timestamp", "event_id")
