from dataclasses import replace
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.errors import IndexMissing, ModelError, StoreError, UsageError
from bespeak.parts import Parts
from bespeak.pipeline import search
from bespeak.reading import MAX_QUERY_CHARS, read
from bespeak.records import Clause, EngineQuery, Preference, Profile, Request, Statement, Term, Turn
from bespeak.rewriting.rewriter import Unchanged
from bespeak.settings import Settings, Weights
from fakes import ADA, BagEncoder, MemoryEngine, ScriptedRewriter

NOW = datetime(2026, 1, 1, tzinfo=UTC)
THINGS = {
    "bike": "a bicycle with two wheels and a chain",
    "trike": "a bicycle with three wheels for children",
    "car": "a car with four wheels and an engine",
    "boat": "a boat with an engine and a sail",
    "kite": "a kite with a long tail for children",
}
TURNS = (Turn("which boat has a sail", "a small boat", "turn 1"),)
LIKES = (Preference("kite", "a kite", 1.0, "click", "click 1", NOW),)


class Known:
    """A store with one fixed profile."""

    def __init__(self, **profile):
        self.known = replace(Profile(ADA), **profile)

    def profile(self, user, session_id, now):
        return self.known if user == ADA else Profile(user, session_id)


class Locked:
    def profile(self, user, session_id, now):
        raise StoreError("the store is locked: try again")


class BrokenEncoder(BagEncoder):
    def encode(self, texts, kind="document"):
        raise ModelError("the encoder is out of memory")


def ask(query, user=ADA, **request):
    return Request(query, "things", user, "s", **request)


def parts(rewriter=None, encoder=None, **settings):
    return Parts(Settings(**settings), rewriter or Unchanged(), encoder or BagEncoder())


def ids(result):
    return [ranked.hit.doc_id for ranked in result.page]


ENGINE = MemoryEngine(BagEncoder(), THINGS)
SAIL = ScriptedRewriter({"and an engine": "boat and an engine"}, [Term("boat", "turn", "turn 1", TURNS[0].query)])


def test_a_stranger_gets_the_engines_own_answer():
    result = search(ENGINE, Known(), ask("wheels"), parts(), NOW)
    assert (result.rerank, result.rewrite.status, result.notes) == ("off", "gated", ("stranger",))
    assert [r.hit.doc_id for r in result.page] == [h.doc_id for h in result.hits.hits]


def test_a_user_who_refused_gets_the_same_answer_as_a_stranger():
    refused = search(ENGINE, Known(turns=TURNS, preferences=LIKES, consent=False), ask("wheels"), parts(), NOW)
    stranger = search(ENGINE, Known(), ask("wheels", user=None), parts(), NOW)
    assert refused.page == stranger.page
    assert refused.notes == ("refused",)


NOTHING_TO_PERSONALISE = {
    "a stranger": ({}, "wheels engine", None),
    "known, with neither events nor history": ({}, "wheels engine", ADA),
    "known, but the query is quoted": ({"turns": TURNS, "preferences": LIKES}, '"wheels engine"', ADA),
}


@pytest.mark.parametrize(("known", "query", "user"), NOTHING_TO_PERSONALISE.values(), ids=NOTHING_TO_PERSONALISE)
@pytest.mark.parametrize("weights", [Weights(), Weights(1, 0, 0), Weights(0, 1, 0), Weights(0, 0, 1)], ids=str)
@pytest.mark.parametrize("mode", ["boost", "recall"])
def test_without_anything_to_personalise_the_engines_order_stays_whatever_the_weights(
    known, query, user, weights, mode
):
    settings = {"weights": weights, "mode": mode, "rewrite_weight": 5.0, "last_turn_weight": 5.0}
    result = search(ENGINE, Known(**known), ask(query, user=user), parts(**settings), NOW)
    own = ENGINE.search(EngineQuery("things", (Clause(query),))).hits
    assert len(own) > 1
    assert ids(result) == [hit.doc_id for hit in own]


def test_the_rewrite_reaches_the_engine_beside_the_query_as_typed():
    engine = MemoryEngine(BagEncoder(), THINGS)
    result = search(engine, Known(turns=TURNS), ask("and an engine"), parts(SAIL), NOW)
    asked = engine.asked[1]
    assert [c.text for c in asked.required] == ["and an engine"]
    assert asked.optional[0].text == "boat and an engine"
    assert ids(result)[0] == "boat"


def test_the_word_that_came_from_an_earlier_turn_is_named_as_evidence():
    result = search(ENGINE, Known(turns=TURNS), ask("and an engine"), parts(SAIL), NOW)
    top = result.page[0]
    assert ("lexical", "boat", "turn 1") in [(e.column, e.text, e.event_id) for e in top.evidence]


def test_boost_keeps_the_matching_set_and_recall_may_widen_it():
    known = Known(turns=TURNS, preferences=LIKES)
    untouched = search(ENGINE, Known(), ask("and an engine"), parts(), NOW)
    boosted = search(ENGINE, known, ask("and an engine"), parts(SAIL, mode="boost"), NOW)
    widened = search(ENGINE, known, ask("and an engine"), parts(SAIL, mode="recall"), NOW)
    assert sorted(ids(boosted)) == sorted(ids(untouched))
    assert set(ids(widened)) > set(ids(untouched))


def test_documents_that_the_user_liked_move_up():
    before = search(ENGINE, Known(), ask("children"), parts(), NOW)
    after = search(ENGINE, Known(preferences=LIKES), ask("children"), parts(mode="boost"), NOW)
    trike = Known(preferences=(replace(LIKES[0], doc_id="trike", title="trike"),))
    other = search(ENGINE, trike, ask("children"), parts(mode="boost", weights=Weights(0, 0, 1)), NOW)
    assert ids(before) == ["kite", "trike"]
    assert ids(after)[0] == "kite"
    assert ids(other)[0] == "trike"
    assert other.page[0].evidence[0].event_id == "click 1"


@given(st.integers(1, 6), st.integers(1, 6))
def test_pages_repeat_and_lose_nothing(size, window):
    known = Known(turns=TURNS, preferences=LIKES)
    whole = search(ENGINE, known, ask("wheels engine children", size=100), parts(window=window, mode="boost"), NOW)
    pages = []
    for offset in range(0, len(whole.page) + size, size):
        request = ask("wheels engine children", offset=offset, size=size)
        pages += ids(search(ENGINE, known, request, parts(window=window, mode="boost"), NOW))
    assert pages == ids(whole)


@pytest.mark.parametrize("query", ['"two wheels"', "SKU-48812-B", "text:wheels AND children"])
def test_exact_queries_are_left_alone(query):
    result = search(ENGINE, Known(turns=TURNS, preferences=LIKES), ask(query), parts(SAIL), NOW)
    assert result.rerank == "off"
    assert result.rewrite.status == "gated"
    assert result.notes == (result.rewrite.reason,)


def test_a_query_that_the_rewriter_cannot_read_is_still_reranked():
    result = search(ENGINE, Known(turns=TURNS, preferences=LIKES), ask("自転車は何輪ですか wheels"), parts(SAIL), NOW)
    assert (result.rewrite.status, result.rewrite.reason) == ("gated", "other_language")
    assert result.rerank == "full"


def test_a_locked_store_costs_the_personal_part_and_says_so():
    result = search(ENGINE, Locked(), ask("wheels"), parts(), NOW)
    assert [r.hit.doc_id for r in result.page] == [h.doc_id for h in result.hits.hits]
    assert result.notes == ("not personalised: the store is locked: try again", "stranger")


def test_a_broken_encoder_leaves_the_engines_order_and_says_so():
    result = search(ENGINE, Known(preferences=LIKES), ask("wheels"), parts(encoder=BrokenEncoder()), NOW)
    assert result.rerank == "failed"
    assert ids(result) == [h.doc_id for h in result.hits.hits]
    assert any("out of memory" in note for note in result.notes)


def test_hits_of_an_index_without_vectors_are_embedded():
    plain = MemoryEngine(None, THINGS)
    known = Known(turns=TURNS, preferences=LIKES)
    own = search(ENGINE, known, ask("wheels"), parts(mode="boost"), NOW)
    made = search(plain, known, ask("wheels"), parts(mode="boost"), NOW)
    assert ids(made) == ids(own)
    assert made.rerank == "full"


def test_vectors_of_another_encoder_are_not_compared():
    foreign = MemoryEngine(BagEncoder(name="foreign"), THINGS)
    search(foreign, Known(turns=TURNS), ask("wheels"), parts(), NOW)
    assert foreign.asked[1].vector is None


def test_reading_keeps_the_query_as_typed():
    profile = Profile(ADA, turns=TURNS, statements=(Statement("I sail", "s"),))
    reading = read("and an engine", profile, parts(SAIL))
    assert (reading.query, reading.rewrite.query, reading.profile) == ("and an engine", "and an engine", profile)


@pytest.mark.parametrize("query", ["", "   ", "\n\t"])
def test_an_empty_query_is_refused(query):
    with pytest.raises(UsageError, match="empty"):
        search(ENGINE, Known(), ask(query), parts(), NOW)


def test_a_query_beyond_the_limit_is_refused_with_both_numbers():
    with pytest.raises(UsageError, match=f"100000 characters long, the limit is {MAX_QUERY_CHARS}"):
        search(ENGINE, Known(), ask("x" * 100_000), parts(), NOW)


def test_a_missing_index_is_the_engines_own_error():
    with pytest.raises(IndexMissing):
        search(ENGINE, Known(), replace(ask("wheels"), index="nothing"), parts(), NOW)
