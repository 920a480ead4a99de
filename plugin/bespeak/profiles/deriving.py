"""From events to a profile: pure, so that every store derives alike.

Weight of a document, for events i of the user on it with strength s_i (`STRENGTHS`; of a rating r on 0.5 to 5:
(r - 3) / 2) and age a_i in days: clip(sum_i s_i * max(2^(-a_i / 30), 2^-10), -1, 1). Of several ratings of one
document the newest alone counts. A click of 30 days ago (0.3 / 2) and a purchase of today (1.0): clip(1.15) = 1.

Interest in a document, beside those not chosen: clip(sum_i s_i, -1, 2), a rating counting 1 more, because who rates a
document chose it first: three stars, of weight 0, are an interest of 1.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
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
FLOOR = 2.0**-10  # an old taste fades but is not lost: beyond ten half-lives only the strengths order
NEUTRAL_RATING = 3.0
RATED = 1.0
STATEMENTS_KEPT = 250  # each costs 17 us to derive at every query, and 50 us to read for picking at the first
TURNS_KEPT = 20
PREFERENCES_KEPT = 2_000  # as many as the stores read of all actions
TYPING = timedelta(seconds=5)  # a search box asks at every key; within it a longer or shorter query is the same one


def derive(
    user: UserKey | None,
    session_id: str,
    statements: Iterable[Event],
    session_events: Iterable[Event],
    preference_events: Iterable[Event],
    consent: bool,
    now: datetime,
    query_id: str = "",
) -> Profile:
    """The profile as these events give it, in any order; those later than `now` (clocks differ) count as new.

    The query being asked now is not an earlier turn: leave its event out, or name its `query_id`.
    """
    said = _statements(statements)
    turns = _turns(session_events, query_id)
    liked, counted = _preferences(preference_events, now)
    version = _version(user, session_id, said, turns, counted, consent)
    return Profile(user, session_id, said, turns, liked, consent, version)


def _statements(events: Iterable[Event]) -> tuple[Statement, ...]:
    """Said again, a statement stands where it was said last."""
    newest: dict[str, Event] = {}
    for event in sorted(events, key=_in_time):
        key = " ".join(event.text.casefold().split())
        newest.pop(key, None)
        newest[key] = event
    return tuple(Statement(event.text, event.event_id) for event in newest.values())[-STATEMENTS_KEPT:]


class _Asked(NamedTuple):
    event: Event  # that holds the query's text
    response: str
    typed: bool  # a search box asked it while its user typed


def _turns(events: Iterable[Event], query_id: str) -> tuple[Turn, ...]:
    asked: list[_Asked] = []
    for turn in sorted(_by_query(events, query_id), key=lambda turn: _in_time(turn.event)):
        if asked and _goes_on(asked[-1], turn):
            asked.pop()
        asked.append(turn)
    return tuple(
        Turn(turn.event.text, turn.response, turn.event.event_id, turn.event.query_id) for turn in asked[-TURNS_KEPT:]
    )


def _by_query(events: Iterable[Event], query_id: str) -> list[_Asked]:
    """One for each query whose text is known; its events hold together by their `query_id`."""
    groups: dict[str, list[Event]] = {}
    for event in sorted(events, key=_in_time):
        own_id = event.event_id if event.action in ("query", *TYPED) else ""
        key = event.query_id or own_id
        if key and key != query_id and event.action != "impression":
            groups.setdefault(key, []).append(event)
    turns = (_asked(group) for group in groups.values())
    return [turn for turn in turns if turn]


def _asked(group: list[Event]) -> _Asked | None:
    """The query's own event if it is there, else any event that repeats its text."""
    texts = [event for event in group if event.text.strip() and event.action not in ("answer", "statement")]
    if not texts:
        return None
    order = {"query": 0, **dict.fromkeys(TYPED, 1)}
    event = min(texts, key=lambda event: order.get(event.action, 2))
    answers = [event.text for event in group if event.action == "answer"]
    titles = dict.fromkeys(event.title for event in group if event.title and STRENGTHS.get(event.action, 0) > 0)
    typed = any(event.action in TYPED for event in group)
    return _Asked(event, answers[-1] if answers else "; ".join(titles), typed)


def _goes_on(earlier: _Asked, later: _Asked) -> bool:
    """Whether nothing was answered to the earlier query and the later is the same one: again, or typed further."""
    if earlier.response:
        return False
    before, after = earlier.event.text.strip().casefold(), later.event.text.strip().casefold()
    if before == after:
        return True
    soon = later.event.timestamp - earlier.event.timestamp <= TYPING
    return earlier.typed and later.typed and soon and (after.startswith(before) or before.startswith(after))


def _preferences(events: Iterable[Event], now: datetime) -> tuple[tuple[Preference, ...], list[str]]:
    """Strongest first, and the ids of all events that count in them."""
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
    last_rating = next((event for event in reversed(group) if event.action == "rating"), None)
    return [event for event in group if event.action != "rating" or event is last_rating]


def _preference(group: list[Event], now: datetime) -> Preference:
    """Of one document; it names the event that gave the most."""
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
    """In [-1, 1], before decay."""
    if event.action == "rating" and event.value is not None:
        return max(-1.0, (event.value - NEUTRAL_RATING) / 2)
    return STRENGTHS.get(event.action, 0.0)


def interest(action: str, strength: float) -> float:
    """Of one event; of several on a document the sum counts, clipped."""
    return strength + RATED if action == "rating" else strength


def clip_interest(total: float) -> float:
    return max(-1.0, min(2.0, total))


def _version(
    user: UserKey | None,
    session_id: str,
    statements: tuple[Statement, ...],
    turns: tuple[Turn, ...],
    counted: list[str],
    consent: bool,
) -> str:
    """Of what was said and done, not of the weights: decay alone does not change it. Empty for a stranger."""
    if consent and not (statements or turns or counted):
        return ""
    content = [
        user,
        session_id,
        consent,
        [s.event_id for s in statements],
        [(t.event_id, t.response) for t in turns],
        counted,
    ]
    return hashlib.blake2b(json.dumps(content).encode("ascii"), digest_size=16).hexdigest()


_in_time = attrgetter("timestamp", "event_id")
