from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.ranking.rerank import (
    Judge,
    choose_window,
    finds_same,
    holds_all,
    keep_typed,
    min_max,
    order_window,
    score_window,
    unranked,
    user_vector,
)
from bespeak.ranking.vectors import Addend, QueryVector, add_up
from bespeak.records import Hit, Preference, Profile, Rewrite, Term
from bespeak.settings import Weights

NOW = datetime(2026, 1, 1, tzinfo=UTC)
EAST = np.array([1, 0, 0, 0], np.float32)
NORTH = np.array([0, 1, 0, 0], np.float32)
UP = np.array([0, 0, 1, 0], np.float32)


def hit(doc_id, lexical, rank_, vector=None):
    return Hit(doc_id, lexical, rank_, {"text": doc_id}, vector)


def unit(vector):
    return add_up([Addend(vector)])


def of_user(preferences, vectors, last_turn=None):
    return user_vector(Profile(preferences=tuple(preferences)), vectors, last_turn, 0.5)


def liked(doc_id, weight):
    return Preference(doc_id, f"title of {doc_id}", weight, "click", f"event {doc_id}", NOW)


def test_min_max_spans_0_to_1():
    np.testing.assert_allclose(min_max(np.array([2, 4, 3], np.float32)), [0, 1, 0.5])


def test_min_max_of_equal_values_is_zero():
    np.testing.assert_array_equal(min_max(np.array([7, 7], np.float32)), [0, 0])


def test_scores_are_lexical_embedding_user():
    hits = [hit("a", 3.0, 1, EAST), hit("b", 1.0, 2, NORTH)]
    np.testing.assert_allclose(score_window(hits, unit(NORTH), unit(EAST)), [[1, 0, 1], [0, 1, 0]])


def test_a_hit_without_vector_gains_nothing_by_it():
    opposite = -EAST
    hits = [hit("a", 1, 1, EAST), hit("b", 1, 2, opposite), hit("c", 1, 3)]
    assert score_window(hits, unit(EAST), None)[:, 1].tolist() == [1, 0, 0]


def test_rank_weighs_and_divides_by_the_sum():
    hits = [hit("a", 3.0, 1, EAST), hit("b", 1.0, 2, NORTH)]
    ranking = order_window(hits, score_window(hits, unit(NORTH), None), Weights(1, 3, 0))
    assert [(r.hit.doc_id, r.rank) for r in ranking] == [("b", 1), ("a", 2)]
    assert ranking[0].score == pytest.approx(3 / (1 + 3))
    assert ranking[1].score == pytest.approx(1 / (1 + 3))


@given(st.permutations(["a", "b", "c", "d"]))
def test_ties_are_broken_by_doc_id_whatever_the_engine_order(order):
    hits = [hit(doc_id, 1.0, i, EAST) for i, doc_id in enumerate(order, 1)]
    ranking = order_window(hits, score_window(hits, unit(EAST), None), Weights())
    assert [r.hit.doc_id for r in ranking] == ["a", "b", "c", "d"]


def test_the_user_vector_is_liked_minus_disliked_by_weight():
    mixed = of_user([liked("a", 0.6), liked("b", -0.2)], {"a": EAST, "b": NORTH})
    expected = np.array([0.6 / 0.8, -0.2 / 0.8, 0, 0])
    np.testing.assert_allclose(mixed.vector, expected / np.linalg.norm(expected), rtol=1e-5)


def test_the_last_turn_adds_its_share_to_the_user_vector():
    mixed = of_user([liked("a", 1.0)], {"a": EAST}, Addend(UP, "turn", "up?", "turn"))
    np.testing.assert_allclose(mixed.vector, np.array([1, 0, 0.5, 0]) / np.sqrt(1.25), rtol=1e-5)


def test_preferences_without_vectors_give_no_user_vector():
    assert of_user([liked("a", 1.0)], {}) is None


def test_parts_that_cancel_out_give_no_vector():
    assert add_up([Addend(EAST), Addend(-EAST)]) is None


def test_the_window_is_the_same_whatever_was_fetched():
    near = [hit(f"n{i}", 0.0, 0, (EAST + i * 0.1 * NORTH) / np.linalg.norm(EAST + i * 0.1 * NORTH)) for i in range(6)]
    words = [hit(f"w{i}", 10.0 - i, i + 1, UP) for i in range(6)]
    small, rest_small = choose_window([*words[:2], *near[:2]], EAST, 2)
    large, rest_large = choose_window([*words, *near], EAST, 2)
    assert [h.doc_id for h in small] == [h.doc_id for h in large] == ["w0", "w1", "n0", "n1"]
    assert rest_small == []
    assert [h.doc_id for h in rest_large] == ["w2", "w3", "w4", "w5"]


def test_a_near_hit_scores_alike_whether_its_words_were_fetched_or_not():
    words = [hit(f"w{i}", 10.0 - i, i + 1, UP) for i in range(4)]
    found_by_vector = choose_window([*words[:2], hit("near", 0.0, 3, EAST)], EAST, 2)
    found_by_words = choose_window([*words, hit("near", 1.0, 5, EAST)], EAST, 2)
    assert [(h.doc_id, h.score) for h in found_by_words[0]] == [("w0", 10.0), ("w1", 9.0), ("near", 0.0)]
    assert [(h.doc_id, h.score) for h in found_by_vector[0]] == [("w0", 10.0), ("w1", 9.0), ("near", 0.0)]
    assert [h.doc_id for h in found_by_words[1]] == ["w2", "w3"]


def test_hits_beyond_the_window_keep_the_engines_order():
    inside = order_window([hit("a", 2, 1)], score_window([hit("a", 2, 1)], None, None), Weights())
    assert [(r.hit.doc_id, r.rank) for r in [*inside, *unranked([hit("b", 1, 2)], start=2)]] == [("a", 1), ("b", 2)]


@pytest.mark.parametrize(
    ("query", "text", "held"),
    [
        ("run", "He was running", True),
        ("happy relations", "Relational happiness", True),
        ("the story", "Stories of blue", True),
        ("sci-fi", "Sci-Fi and Horror", True),
        ("o'neil", "by O'Neil", True),
        ("vegan cake", "vegan bread", False),
        ("cake", "pancake", False),
        ("the", "the and of", False),
        ("(a+b", "(a+b", True),
        ("", "anything", False),
    ],
)
def test_a_hit_holds_all_words_as_stems(query, text, held):
    assert holds_all(query, lambda hit: hit.source["text"])(hit(text, 1.0, 1)) is held


def judged(preferences, words=(), terms=()):
    hits = [hit("a", 2.0, 1, EAST), hit("b", 1.0, 2, NORTH), hit("c", 1.5, 3, UP)]
    user = of_user(preferences, {"x": EAST, "y": NORTH})
    rewrite = Rewrite("q", "q", tuple(terms))
    weights = Weights(1, 1, 1)
    judge = Judge.over(hits, weights, None, user, rewrite)
    ranking = order_window(hits, score_window(hits, None, user), weights)
    stems = {term.text: term.text for term in terms}
    return {r.hit.doc_id: (r, judge.evidence(r, set(words), stems, len(words))) for r in ranking}


def test_evidence_names_the_event_that_raised_a_hit():
    _, evidence = judged([liked("x", 1.0), liked("y", 0.2)])["a"]
    assert [(e.column, e.event_id, e.text) for e in evidence] == [("user", "event x", "title of x")]


def test_without_the_named_event_the_score_is_lower():
    with_x, _ = judged([liked("x", 1.0), liked("y", 0.2)])["a"]
    without_x, _ = judged([liked("y", 0.2)])["a"]
    assert without_x.score < with_x.score


def test_shares_add_up_to_the_distance_from_the_mean_of_the_window():
    both = judged([liked("x", 0.7), liked("y", -0.3)])
    ranked, evidence = both["a"]
    mean = np.mean([r.scores[2] for r, _ in both.values()])
    raised = sum(e.share for e in evidence)
    assert raised == pytest.approx((ranked.scores[2] - mean) / 3, rel=1e-3)


def test_a_word_of_the_rewrite_is_evidence_only_for_hits_that_contain_it():
    term = Term("vegan", "statement", "event s", "I am vegan")
    _, evidence = judged([], words=("vegan", "q"), terms=(term,))["a"]
    assert [(e.column, e.text, e.event_id) for e in evidence] == [("lexical", "vegan", "event s")]
    assert evidence[0].share == pytest.approx(1 / 2 / 3)
    assert judged([], words=("q",), terms=(term,))["a"][1] == []


def test_scores_agree_if_most_of_the_first_ten_hits_are_the_same():
    falling = np.arange(40, 0, -1).astype(np.float32)
    assert finds_same(falling, np.roll(falling, 4))
    assert not finds_same(falling, np.roll(falling, 5))
    assert not finds_same(falling[:3], falling[:3])


@pytest.mark.parametrize(("session", "kept"), [((1, 0.1), True), ((-1, 0.3), False)])
def test_the_query_as_typed_dominates_if_its_session_finds_the_same_hits(session, kept):
    angles = np.linspace(0, np.pi, 40)
    hits = [Hit(str(n), 0.0, n, {}, np.array([np.cos(a), np.sin(a)], np.float32)) for n, a in enumerate(angles)]
    typed, turn = Addend(np.array([1, 0], np.float32)), Addend(np.array(session, np.float32) * 2, "turn 1")
    before = QueryVector(add_up([typed, turn]), typed, turn)
    after = keep_typed(hits, before)
    assert (after.mixed.vector @ typed.vector > before.mixed.vector @ typed.vector + 1e-6) == kept
    assert np.linalg.norm(after.mixed.vector) == pytest.approx(1)
