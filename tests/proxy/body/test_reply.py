"""Pages cut from the engine's answers."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.errors import InputError
from bespeak.proxy.body.reply import read_reply, write_page
from bespeak.proxy.body.search import read_search


def search(body=None, params=(), index="i"):
    return read_search(index, tuple(params), "" if body is None else json.dumps(body))


def answer_of(*hits, **members):
    return json.dumps({"took": 1, "hits": {"total": {"value": 9}, "max_score": 3.0, "hits": list(hits)}} | members)


def hit(doc_id, score, index="i", **members):
    return {"_index": index, "_id": doc_id, "_score": score, "_source": {"n": 1}} | members


def test_an_answer_keeps_all_but_its_order():
    text = (
        '{ "took":1,"hits":{"total":7,"hits":[{"_index":"i","_id":"a","_score":3.0,"_source":{"n":1.50, "b":[1, 2]}},'
    )
    text += '{"_index":"i","_id":"b","_score":2.0,"_source":{"n":-0.0}}]},"aggregations":{"x":1E2}}'
    made = write_page(read_reply(text), [1, 0], search(), {})
    assert '"_source":{"n":1.50, "b":[1, 2]}' in made
    assert made.startswith('{ "took":1,"hits":{"total":7,"hits":[')
    assert made.endswith(']},"aggregations":{"x":1E2}}')
    assert [(h["_id"], h["_score"]) for h in json.loads(made)["hits"]["hits"]] == [("b", 3.0), ("a", 2.0)]


@given(st.permutations(range(8)), st.integers(0, 9), st.integers(1, 9))
def test_a_page_is_cut_from_the_new_order(order, offset, size):
    reply = read_reply(answer_of(*(hit(f"d{n}", 9.0 - n, _seq_no=n, _primary_term=1) for n in range(8))))
    page = json.loads(write_page(reply, order, search({"from": offset, "size": size}), {"bespeak": {}}))
    hits = page["hits"]["hits"]
    assert [h["_id"] for h in hits] == [f"d{n}" for n in order[offset : offset + size]]
    assert [h["_score"] for h in hits] == [9.0 - n for n in range(8)][offset : offset + size]
    assert not any("_seq_no" in h or "_primary_term" in h for h in hits)
    assert "bespeak" in page


def test_versions_stay_if_the_client_asked_for_them():
    reply = read_reply(answer_of(hit("a", 1.0, _seq_no=5, _primary_term=1)))
    for asked in (search({"seq_no_primary_term": True}), search({}, [("seq_no_primary_term", "")])):
        assert json.loads(write_page(reply, [0], asked, {}))["hits"]["hits"][0]["_seq_no"] == 5
    assert reply.hits[0].version == "1.5"


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"hits": {}}', '{"hits": {"hits": {}}}', answer_of({"_id": "a"}), answer_of(hit("a", None)),
     answer_of(hit("a", "high")), answer_of([])],
)  # fmt: skip
def test_an_answer_without_ids_and_scores_is_refused(text):
    with pytest.raises(InputError):
        read_reply(text)
