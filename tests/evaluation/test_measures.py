"""Measures equal their formulas, written out; intervals and gains are correct."""

import sys
from math import log2

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.errors import UsageError
from bespeak.evaluation.measures import MEASURES, compare, estimate, judge

QRELS = {"q1": {"a": 1, "b": 1, "c": 0}, "q2": {"d": 1}}


def test_values_are_those_of_the_formulas():
    run = {"q1": ["c", "a", "x", "b"], "q2": ["x", "y", "d"]}
    values = judge(QRELS, run)
    assert values["nDCG@10"]["q1"] == pytest.approx((1 / log2(3) + 1 / log2(5)) / (1 / log2(2) + 1 / log2(3)))
    assert values["nDCG@10"]["q2"] == pytest.approx((1 / log2(4)) / 1)
    assert values["MRR"] == pytest.approx({"q1": 1 / 2, "q2": 1 / 3})
    assert values["recall@100"] == pytest.approx({"q1": 2 / 2, "q2": 1 / 1})


def test_grades_are_gains():
    values = judge({"q": {"a": 3, "b": 1}}, {"q": ["b", "a"]})
    assert values["nDCG@10"]["q"] == pytest.approx((1 / log2(2) + 3 / log2(3)) / (3 / log2(2) + 1 / log2(3)))


@pytest.mark.parametrize("run", [{}, {"q1": [], "q2": []}, {"q1": ["x"], "q2": ["y"]}], ids=["no", "empty", "wrong"])
def test_a_judged_query_without_hits_scores_0(run):
    assert judge(QRELS, run) == {name: {"q1": 0.0, "q2": 0.0} for name in MEASURES}


def test_a_query_that_nobody_judged_does_not_count():
    values = judge(QRELS, {"q1": ["a"], "other": ["a"]})
    assert all(found.keys() == {"q1", "q2"} for found in values.values())


def test_recall_uses_100_hits_and_ndcg_10():
    run = {"q1": [f"x{n}" for n in range(10)] + ["a"] + [f"y{n}" for n in range(89)] + ["b"]}
    values = judge({"q1": QRELS["q1"]}, run)
    assert values["nDCG@10"]["q1"] == 0
    assert values["recall@100"]["q1"] == 1 / 2
    assert values["MRR"]["q1"] == pytest.approx(1 / 11)


@given(st.permutations(["a", "b", "c", "d", "e", "f"]), st.sets(st.sampled_from("abcdefgh"), min_size=1))
def test_only_the_order_of_a_run_counts_not_the_document_ids(order, relevant):
    found = judge({"q": dict.fromkeys(sorted(relevant), 1)}, {"q": order})["nDCG@10"]["q"]
    gain = sum(1 / log2(1 + rank) for rank, doc_id in enumerate(order, 1) if doc_id in relevant)
    assert found == pytest.approx(gain / sum(1 / log2(1 + rank) for rank in range(1, len(relevant) + 1)))


def test_without_ir_measures_the_error_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    with pytest.raises(UsageError, match=r"pip install 'bespeak\[evaluate\]'"):
        judge(QRELS, {})


VALUES = {f"q{n}": n / 20 for n in range(20)}


def test_an_estimate_is_the_mean_inside_its_interval_and_the_same_each_time():
    first = estimate(VALUES)
    assert first.mean == pytest.approx(sum(n / 20 for n in range(20)) / 20)
    assert 0 < first.low < first.mean < first.high < 1
    assert estimate(dict(reversed(VALUES.items()))) == first


def test_equal_values_have_an_empty_interval_and_no_values_give_zero():
    same = estimate({"q1": 0.25, "q2": 0.25})
    assert (same.mean, same.low, same.high) == (0.25, 0.25, 0.25)
    assert estimate({}).mean == 0


def test_queries_of_one_conversation_are_drawn_together():
    values = {f"q{n}": float(n < 10) for n in range(20)}
    two = {f"q{n}": "first" if n < 10 else "second" for n in range(20)}
    alone, together = estimate(values), estimate(values, two)
    assert alone.mean == together.mean == 0.5
    assert (together.low, together.high) == (0.0, 1.0)
    assert alone.low > 0.2
    assert alone.high < 0.8


def test_every_query_weighs_the_same_however_long_its_conversation_is():
    groups = {"a": "long", "b": "long", "c": "long", "d": "short"}
    assert estimate({"a": 0.0, "b": 0.0, "c": 0.0, "d": 1.0}, groups).mean == 1 / 4


def test_a_gain_counts_differences_of_more_than_a_tenth():
    baseline = {"a": 0.5, "b": 0.5, "c": 0.5, "d": 0.5, "e": 0.5}
    gain = compare({"a": 0.6, "b": 0.61, "c": 0.4, "d": 0.39, "e": 0.0}, baseline)
    assert (gain.better, gain.worse) == (1 / 5, 2 / 5)
    assert gain.difference.mean == pytest.approx((0.1 + 0.11 - 0.1 - 0.11 - 0.5) / 5)


def test_a_constant_gain_is_certain():
    gain = compare({q: v + 0.2 for q, v in VALUES.items()}, VALUES)
    assert gain.difference.low == pytest.approx(0.2)
    assert gain.difference.high == pytest.approx(0.2)


def test_runs_over_different_queries_cannot_be_compared():
    with pytest.raises(UsageError, match="same queries"):
        compare({"a": 1.0}, {"b": 1.0})
