from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.profiles.deriving import STRENGTHS, interest, strength
from bespeak.profiles.events import new_event
from bespeak.ranking.behaviour import gather
from bespeak.records import UserKey

START = datetime(2025, 5, 1, tzinfo=UTC)


@st.composite
def done(draw):
    action = draw(st.sampled_from([*STRENGTHS, "rating"]))
    return new_event(
        UserKey(draw(st.sampled_from(["", "a"])), draw(st.sampled_from("uvw"))), action,
        START + timedelta(seconds=draw(st.integers(0, 2))), doc_id=draw(st.sampled_from("xyz")),
        value=draw(st.sampled_from([0.5, 3.0, 5.0])) if action == "rating" else None,
    )  # fmt: skip


def pairs(behaviour):
    return sorted(
        (user, behaviour.doc_ids[doc], pytest.approx(value))
        for user, doc, value in zip(
            behaviour.users.tolist(), behaviour.docs.tolist(), behaviour.values.tolist(), strict=True
        )
    )  # fmt: skip


def expected(events, tenant):
    """The definition: all events of one user and document together, one after another."""
    users = list(dict.fromkeys(e.user.user_id for e in events if e.user.tenant == tenant))
    groups = {}
    for event in (e for e in events if e.user.tenant == tenant):
        groups.setdefault((users.index(event.user.user_id), event.doc_id), []).append(event)
    found = []
    for (user, doc_id), group in sorted(groups.items()):
        ratings = sorted((e for e in group if e.action == "rating"), key=lambda e: (e.timestamp, e.event_id))
        total = sum(strength(e) for e in group if e.action != "rating")
        total += sum(interest("rating", strength(e)) for e in ratings[-1:])
        found.append((user, doc_id, max(-1.0, min(2.0, total))))
    return found


@given(st.lists(done(), max_size=40))
def test_strengths_are_summed_and_the_newest_rating_counts_in_any_order(events):
    found = gather(events)
    assert set(found) == {e.user.tenant for e in events}
    for tenant, behaviour in found.items():
        mine = [e for e in events if e.user.tenant == tenant]
        assert expected(events, tenant) == pairs(behaviour)
        assert behaviour.n_events == len(mine)
        assert behaviour.n_users == len({e.user for e in mine})
        assert behaviour.doc_ids == sorted({e.doc_id for e in mine})


def test_columns_are_small_numbers():
    found = gather([new_event(UserKey("", "u"), "click", START, doc_id="d")])[""]
    assert [column.dtype for column in (found.users, found.docs, found.values)] == [np.int32, np.int32, np.float32]


def test_events_without_a_document_are_left_out():
    assert gather([new_event(UserKey("", "u"), "query", START, text="q")]) == {}
