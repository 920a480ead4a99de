from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.profiles.deriving import PREFERENCES_KEPT, STATEMENTS_KEPT, TURNS_KEPT, UserEvents, derive
from bespeak.profiles.events import new_event
from bespeak.records import Profile, UserKey

USER = UserKey("", "u")
NOW = datetime(2025, 6, 1, tzinfo=UTC)


def event(action, ago_s=0.0, **given):
    return new_event(USER, action, NOW - timedelta(seconds=ago_s), **given)


def days(n):
    return n * 86_400.0


def profile(statements=(), turns=(), liked=(), consent=True, now=NOW, query_id=""):
    return derive(UserEvents(USER, "s", statements, turns, liked, consent), now, query_id)


def weights(*events, now=NOW):
    return {p.doc_id: p.weight for p in profile(liked=events, now=now).preferences}


def turns(*events, query_id=""):
    return [(turn.query, turn.response) for turn in profile(turns=events, query_id=query_id).turns]


def test_a_stranger_is_empty():
    assert profile() == Profile(USER, "s")


def test_statements_stand_oldest_first_and_once():
    said = [event("statement", 1, text="I like  TEA"), event("statement", 3, text="i like tea"),
            event("statement", 2, text="I am vegetarian")]  # fmt: skip
    known = profile(statements=said)
    assert [s.text for s in known.statements] == ["I am vegetarian", "I like  TEA"]
    assert known.statements[1].event_id == said[0].event_id


def test_the_newest_statements_are_kept():
    said = [event("statement", ago, text=f"number {ago}") for ago in range(STATEMENTS_KEPT + 5)]
    texts = [s.text for s in profile(statements=said).statements]
    assert texts == [f"number {ago}" for ago in reversed(range(STATEMENTS_KEPT))]


def test_a_turn_holds_the_answer_or_the_clicked_titles():
    asked = [
        event("query", 60, query_id="1", text="gold"),
        event("impression", 59, query_id="1", doc_id="x", title="Seen only"),
        event("click", 50, query_id="1", doc_id="a", title="Ring"),
        event("add_to_cart", 49, query_id="1", doc_id="a", title="Ring"),
        event("click", 48, query_id="1", doc_id="b", title="Chain"),
        event("declined_product", 47, query_id="1", doc_id="c", title="Watch"),
        event("query", 40, query_id="2", text="how old is it"),
        event("click", 39, query_id="2", doc_id="a", title="Ring"),
        event("answer", 38, query_id="2", text="Ten years"),
        event("query", 30, text="and without an id"),
    ]
    expected = [("gold", "Ring; Chain"), ("how old is it", "Ten years"), ("and without an id", "")]
    assert turns(*reversed(asked)) == expected


def test_a_turn_without_its_query_event_takes_the_text_from_the_others():
    assert turns(event("click", query_id="1", text="gold", doc_id="a", title="Ring")) == [("gold", "Ring")]
    assert turns(event("click", query_id="1", doc_id="a", title="Ring")) == []


def test_the_query_being_asked_is_no_turn():
    asked = [event("query", 9, query_id="1", text="gold"), event("query", query_id="2", text="silver")]
    assert turns(*asked, query_id="2") == [("gold", "")]


def test_the_last_turns_are_kept():
    asked = [event("query", ago, text=f"number {ago}") for ago in range(TURNS_KEPT + 3)]
    assert turns(*asked) == [(f"number {ago}", "") for ago in reversed(range(TURNS_KEPT))]


def test_the_same_query_again_is_one_turn():
    assert turns(event("query", 9, query_id="1", text="gold"), event("query", 1, query_id="2", text=" Gold")) == [
        (" Gold", "")
    ]


def test_a_query_typed_letter_by_letter_is_one_turn():
    typed = [
        event("search", 9 - i / 10, query_id=str(i), text=text) for i, text in enumerate(["g", "go", "gold", "gol"])
    ]
    assert turns(*typed, event("search", 8, query_id="9", text="silver")) == [("gol", ""), ("silver", "")]
    slow = [event("search", 60, query_id="1", text="gold"), event("search", 1, query_id="2", text="gold ring")]
    assert turns(*slow) == [("gold", ""), ("gold ring", "")]
    asked = [event("query", 2, query_id="1", text="gold"), event("query", 1, query_id="2", text="gold ring")]
    assert turns(*asked) == [("gold", ""), ("gold ring", "")]
    answered = [*typed, event("click", 8, query_id="1", doc_id="d", title="Go set")]
    assert turns(*answered) == [("go", "Go set"), ("gol", "")]


def test_weights_follow_the_formula():
    assert weights(
        event("purchase", doc_id="bought"),
        event("click", days(30), doc_id="clicked"),
        event("view", doc_id="seen"),
        event("view", days(60), doc_id="seen"),
        event("declined_product", doc_id="declined"),
        event("impression", doc_id="shown"),
        event("click"),
        event("rating", doc_id="four", value=4),
        event("rating", doc_id="three", value=3),
        event("rating", doc_id="half", value=0.5),
    ) == pytest.approx(
        {
            "bought": 1.0,
            "clicked": 0.3 / 2,
            "seen": 0.15 + 0.15 / 4,
            "declined": -0.5,
            "four": (4 - 3) / 2,
            "three": 0.0,
            "half": -1.0,
        }
    )


def test_interest_does_not_fade_and_a_rating_adds_to_it():
    known = profile(
        liked=[
            event("click", days(300), doc_id="clicked"),
            event("rating", doc_id="three", value=3),
            event("rating", doc_id="five", value=5),
            event("purchase", doc_id="five"),
            event("rating", doc_id="half", value=0.5),
            event("declined_product", doc_id="declined"),
        ]
    )
    assert {p.doc_id: p.interest for p in known.preferences} == pytest.approx(
        {"clicked": 0.3, "three": (3 - 3) / 2 + 1, "five": 2.0, "half": -1 + 1, "declined": -0.5}
    )


def test_a_sum_is_capped_and_the_last_rating_counts():
    assert weights(*(event("add_to_cart", ago, doc_id="d") for ago in range(5))) == {"d": 1.0}
    assert weights(event("rating", 9, doc_id="d", value=5), event("rating", doc_id="d", value=2)) == {"d": (2 - 3) / 2}


def test_an_old_taste_does_not_vanish():
    assert weights(event("purchase", days(9000), doc_id="d")) == {"d": 2**-10}


def test_what_comes_after_now_counts_as_new():
    assert weights(event("click", doc_id="d"), now=NOW - timedelta(days=300)) == {"d": 0.3}


def test_preferences_stand_strongest_first_with_the_event_that_gave_most():
    liked = [event("view", 1, doc_id="b"), event("view", 1, doc_id="a"), event("rating", doc_id="c", value=1),
             event("view", doc_id="d", title="Ring"), event("purchase", 5, doc_id="d")]  # fmt: skip
    known = profile(liked=liked).preferences
    assert [p.doc_id for p in known] == ["c", "d", "a", "b"] or [p.doc_id for p in known] == ["d", "c", "a", "b"]
    bought = next(p for p in known if p.doc_id == "d")
    assert (bought.title, bought.action, bought.event_id) == ("Ring", "purchase", liked[4].event_id)


def test_at_most_so_many_preferences():
    known = profile(liked=[event("view", days(n), doc_id=str(n)) for n in range(PREFERENCES_KEPT + 9)])
    assert len(known.preferences) == PREFERENCES_KEPT
    assert [p.doc_id for p in known.preferences[:3]] == ["0", "1", "2"]


def test_the_version_is_of_the_content_and_not_of_the_hour():
    said, asked, liked = event("statement", text="x"), event("query", text="y"), event("click", doc_id="d")
    known = profile([said], [asked], [liked])
    later = profile([said], [asked], [liked], now=NOW + timedelta(days=9))
    assert known.preferences[0].weight > later.preferences[0].weight
    assert known.version == later.version
    others = [
        profile([], [asked], [liked]),
        profile([said], [], [liked]),
        profile([said], [asked], []),
        profile([said], [asked], [liked], consent=False),
        profile([said], [asked], [liked, event("view", 1, doc_id="d")]),
    ]
    assert len({known.version, *(other.version for other in others)}) == 6


def test_an_answer_that_comes_later_is_another_version():
    asked = event("query", 5, query_id="1", text="y")
    answered = profile(turns=[asked, event("answer", query_id="1", text="z")])
    assert answered.version != profile(turns=[asked]).version


ANY = st.builds(
    event,
    st.sampled_from(["query", "search", "click", "view", "purchase", "impression"]),
    st.floats(-1e6, 1e8),
    query_id=st.sampled_from(["", "1", "2"]),
    text=st.text(max_size=3),
    doc_id=st.sampled_from(["", "a", "b"]),
    title=st.text(max_size=3),
)


@given(st.lists(ANY, max_size=8), st.randoms())
def test_the_order_of_events_does_not_matter(events, random):
    shuffled = random.sample(events, len(events))
    known = profile(turns=events, liked=events)
    assert known == profile(turns=shuffled, liked=shuffled)
    assert all(-1 <= p.weight <= 1 for p in known.preferences)
