import copy
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.proxy.body.filter_path import apply

ANSWER = {
    "took": 3,
    "hits": {
        "total": {"value": 2},
        "hits": [
            {"_id": "a", "_source": {"title": "red", "a.b": 1}},
            {"_id": "b", "_source": {"parts": [{"n": 1}, 2]}},
        ],
    },
    "aggregations": {"kinds": {"buckets": []}},
}


@pytest.mark.parametrize(
    ("patterns", "expected"),
    [
        ("", ANSWER),
        (" , ", ANSWER),
        ("took", {"took": 3}),
        ("hits.hits._id", {"hits": {"hits": [{"_id": "a"}, {"_id": "b"}]}}),
        ("**.title,t*k", {"took": 3, "hits": {"hits": [{"_source": {"title": "red"}}]}}),
        ("**.took", {}),
        ("took.*", {}),
        ("nothing", {}),
        ("hits.hits._source.parts.n", {"hits": {"hits": [{"_source": {"parts": [{"n": 1}]}}]}}),
        (r"**.a\.b", {"hits": {"hits": [{"_source": {"a.b": 1}}]}}),
        ("**.a.b", {}),
        ("-hits,-took", {"aggregations": ANSWER["aggregations"]}),
        ("hits.total,-hits.total.value", {}),
        ("aggregations,-**.nothing", {"aggregations": ANSWER["aggregations"]}),
        ("took*k", {}),
        ("t*ok*k", {}),
        ("**.buckets.*", {}),
    ],
)
def test_an_answer_is_cut_by_its_patterns(patterns, expected):
    before = copy.deepcopy(ANSWER)
    assert apply(ANSWER, patterns) == expected
    assert before == ANSWER


def test_asterisks_in_a_name_take_linear_time():
    name = "a" * 20_000
    assert apply({name: 1}, "*a" * 2_000 + "*b") == {}


def test_depth_is_no_limit():
    deep = {}
    for _ in range(10_000):
        deep = {"a": deep, "b": [1]}
    found = apply(deep, "**.b,-**.c")
    for _ in range(9_999):
        found = found["a"]
    assert found == {"b": [1]} or found == {}


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text("ab.*\\", max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("ab.*\\", max_size=2), inner, max_size=3),
    max_leaves=20,
)


@given(json_values, st.text("ab.*\\-, ", max_size=20))
def test_the_result_is_part_of_the_answer(answer, patterns):
    before = json.dumps(answer)
    found = apply(answer, patterns)
    assert json.dumps(answer) == before
    assert is_part(found, answer)


def is_part(found, whole):
    if isinstance(found, dict) and isinstance(whole, dict):
        return all(name in whole and is_part(value, whole[name]) for name, value in found.items())
    if isinstance(found, list) and isinstance(whole, list):
        rest = iter(whole)
        return all(any(is_part(value, other) for other in rest) for value in found)
    return found == whole and type(found) is type(whole)
