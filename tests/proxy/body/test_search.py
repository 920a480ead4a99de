"""A client's search: how it is read, and whether its hits may be reordered."""

import json

import pytest

from bespeak.errors import InputError
from bespeak.proxy.body.search import decline_reordering, read_search, typed_text
from bespeak.proxy.body.window import widen
from bespeak.records import UserKey

ADA = UserKey("", "ada")
COAT = {"match": {"text": "coat"}}


def search(body=None, params=(), index="i"):
    return read_search(index, tuple(params), "" if body is None else json.dumps(body))


@pytest.mark.parametrize(
    ("given_", "offset", "size"),
    [({}, 0, 10), ({"from": 3, "size": 4}, 3, 4), ({"size": "7"}, 0, 7), ({"size": 5.7}, 0, 5), ({"size": "+5"}, 0, 5)],
)
def test_a_page_is_read_as_the_engine_reads_it(given_, offset, size):
    assert (search(given_).offset, search(given_).size) == (offset, size)


@pytest.mark.parametrize("value", [None, -1, True, "many", "1_0", " 5", "٣", 1e400, float("nan"), [], 2**31, ""])
def test_an_invalid_page_is_refused(value):
    for name in ("from", "size"):
        with pytest.raises(InputError):
            read_search("i", (), json.dumps({name: value}))


def test_the_url_takes_precedence_over_the_body():
    found = search({"from": 3, "size": 4}, [("size", "2"), ("from", "1")])
    assert (found.offset, found.size) == (1, 2)
    asked = widen(found, 20, typed_text(found), (), "p")
    assert asked.params == (("preference", "p"),)
    assert json.loads(asked.text)["size"] == 20


def test_only_what_is_for_bespeak_is_removed():
    text = (
        '{ "query": {"match": {"text": "coat"}}, "n": 1.50, "ext": {"ubi": {"query_id": "q"}, "x": 1E2, "bespeak": {}}}'
    )
    found = read_search("i", (), text)
    assert found.ubi == {"query_id": "q"}
    assert found.edited
    assert '"x":1E2' in found.text
    assert '"n":1.50' in found.text
    assert "ubi" not in found.text
    assert "bespeak" not in found.text
    assert "ext" not in json.loads(read_search("i", (), '{"ext": {"ubi": {}}}').text)


@pytest.mark.parametrize("text", ["[]", "{} {}", '{"a": 1, "a": 2}', "nothing", "\ufeff{}", '{"a": NaN}x', "{"])
def test_a_broken_search_is_refused(text):
    with pytest.raises(InputError):
        read_search("i", (), text)


@pytest.mark.parametrize(
    ("body", "params", "reason"),
    [
        ({"sort": ["price"]}, [], "sort"),
        ({"sort": ["_score"]}, [], ""),
        ({"sort": ["_score", "_score"]}, [], "sort"),
        ({"sort": [{"_score": "asc"}]}, [], "sort"),
        ({"sort": "_score", "pit": {"id": "x"}}, [], "sort"),
        ({"pit": {"id": "x"}}, [], ""),
        ({}, [("sort", "_score")], ""),
        ({}, [("sort", "price:desc,_score")], "sort"),
        ({"size": 0}, [], "size_0"),
        ({}, [("scroll", "1m")], "scroll"),
        ({"search_after": [1]}, [], "search_after"),
        ({"retriever": {"standard": {"query": COAT, "sort": ["price"]}}}, [], "sort"),
        ({"retriever": {"standard": {"query": COAT, "search_after": [1]}}}, [], "search_after"),
        ({"retriever": {"standard": {"query": COAT}}}, [], ""),
        ({"explain": True}, [], "explain"),
        ({"explain": False}, [], ""),
        ({}, [("profile", "")], "profile"),
        ({"stored_fields": "_none_"}, [], "no_ids"),
        ({}, [("format", "yaml")], "format"),
        ({}, [("format", "json")], ""),
        ({"slice": {"id": 0, "max": 2}}, [], "slice"),
    ],
)
def test_searches_whose_order_must_stay_are_declined(body, params, reason):
    assert (decline_reordering(search(body, params)) or "") == reason


def test_pages_belong_together_by_user_session_and_search():
    first = search({"query": COAT, "size": 5})
    same = [search({"size": 7, "from": 5, "query": COAT}), search({"query": COAT}, [("size", "3")])]
    assert {found.digest(ADA, "s") for found in same} == {first.digest(ADA, "s")}
    others = [
        first.digest(UserKey("t", "ada"), "s"),
        first.digest(UserKey("", "bob"), "s"),
        first.digest(ADA, "t"),
        search({"query": COAT}, index="j").digest(ADA, "s"),
        search({"query": COAT}, [("routing", "1")]).digest(ADA, "s"),
        search({"query": {"match": {"text": "hat"}}}).digest(ADA, "s"),
        search({"query": COAT, "ext": {"bespeak": {"mode": "recall"}}}).digest(ADA, "s"),
    ]
    assert len({*others, first.digest(ADA, "s")}) == len(others) + 1
