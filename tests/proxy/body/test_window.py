"""The request that the engine gets instead of a search."""

import json

import pytest

from bespeak.proxy.body.reply import read_reply
from bespeak.proxy.body.search import read_search, typed_text
from bespeak.proxy.body.window import hits_query, widen, words_body
from bespeak.records import Clause

COAT = {"match": {"text": "coat"}}


def search(body=None, params=(), index="i"):
    return read_search(index, tuple(params), "" if body is None else json.dumps(body))


def widened(body, window=20, clauses=(), params=()):
    found = search(body, params)
    asked = widen(found, window, typed_text(found), clauses, "p")
    return asked, json.loads(asked.text)


def answer_of(*hits, **members):
    return json.dumps({"took": 1, "hits": {"total": {"value": 9}, "max_score": 3.0, "hits": list(hits)}} | members)


def hit(doc_id, score, index="i", **members):
    return {"_index": index, "_id": doc_id, "_score": score, "_source": {"n": 1}} | members


@pytest.mark.parametrize(
    ("body", "window", "offset", "size"),
    [
        ({"query": COAT}, 20, 0, 20),
        ({"query": COAT, "from": 15, "size": 10}, 20, 0, 25),
        ({"query": COAT, "from": 20, "size": 10}, 0, 20, 10),
        ({"query": COAT, "size": 50}, 20, 0, 50),
        ({"query": COAT, "knn": {"field": "v", "query_vector": [1], "k": 5}}, 20, 0, 20),
        ({"query": COAT, "knn": {"field": "v", "query_vector": [1]}}, 10, 0, 10),
        ({"query": COAT, "knn": [{"field": "v", "k": 3}, {"field": "v"}], "size": 7}, 7, 0, 7),
        ({"query": COAT, "knn": {"field": "v"}, "from": 5, "size": 7}, 0, 5, 7),
        ({"query": {"bool": {"must": [COAT, {"knn": {"field": "v", "k": 3}}]}}}, 10, 0, 10),
        ({"query": {"bool": {"must": [COAT, {"knn": {"field": "v", "k": 3, "num_candidates": 9}}]}}}, 20, 0, 20),
        ({"query": COAT, "terminate_after": 9, "size": 5}, 5, 0, 5),
        ({"query": COAT, "terminate_after": 0, "size": 5}, 20, 0, 20),
        ({"query": COAT, "rescore": {"window_size": 12, "query": {}}}, 12, 0, 12),
        ({"query": COAT, "rescore": [{"query": {}}, {"window_size": 50, "query": {}}], "size": 5}, 10, 0, 10),
        ({"query": COAT, "rescore": {"window_size": 5, "query": {}}, "size": 15}, 5, 0, 15),
        ({"query": {"semantic": {"field": "f", "query": "coat"}}, "size": 30}, 20, 0, 30),
        ({"retriever": {"rrf": {"retrievers": [], "rank_window_size": 15}}}, 15, 0, 15),
        ({"retriever": {"rrf": {"retrievers": []}}, "size": 5}, 10, 0, 10),
        ({"retriever": {"rrf": {"retrievers": []}}, "from": 10}, 0, 10, 10),
        ({"retriever": {"rescorer": {"retriever": {"standard": {}}, "rescore": {"window_size": 12}}}}, 12, 0, 12),
        ({"retriever": {"rescorer": {"retriever": {"rrf": {"rank_window_size": 5}}, "rescore": {"window_size": 12}}},
          "size": 2}, 5, 0, 5),
    ],
)  # fmt: skip
def test_the_window_is_asked_for_if_nothing_else_changes(body, window, offset, size):
    asked, sent = widened(body)
    assert (asked.window, sent["from"], sent["size"]) == (window, offset, size)
    rest = {name: value for name, value in sent.items() if name not in ("from", "size", "seq_no_primary_term")}
    assert rest == {name: value for name, value in body.items() if name not in ("from", "size")}


@pytest.mark.parametrize(
    "more",
    [
        {"collapse": {"field": "f", "inner_hits": {}}},
        {"aggs": {"a": {"terms": {}, "aggs": {"b": {"top_hits": {}}}}}},
        {"query": {"bool": {"must": [COAT, {"nested": {"path": "p", "query": COAT, "inner_hits": {}}}]}}},
    ],
)
def test_versions_are_not_asked_for_if_others_would_show_them(more):
    assert "seq_no_primary_term" not in widened({"query": COAT} | more)[1]
    assert widened({"query": COAT})[1]["seq_no_primary_term"] is True


def test_the_clients_preference_stays():
    asked, _ = widened({"query": COAT}, params=[("preference", "mine"), ("routing", "7"), ("filter_path", "took")])
    assert asked.params == (("preference", "mine"), ("routing", "7"))
    assert widened({"query": COAT, "pit": {"id": "x"}})[0].params == ()


def test_hits_are_found_by_index_and_id():
    hits = read_reply(answer_of(hit("a", 3.0), hit("b", 2.0, "j"), hit("a", 1.0, "j"))).hits
    one = {"bool": {"filter": [{"term": {"_index": "i"}}, {"ids": {"values": ["a"]}}]}}
    other = {"bool": {"filter": [{"term": {"_index": "j"}}, {"ids": {"values": ["b", "a"]}}]}}
    assert hits_query(hits) == {"bool": {"should": [one, other], "minimum_should_match": 1}}
    assert hits_query(hits[:1]) == one


def test_the_words_of_the_rewrite_are_scored_only_in_the_hits():
    asked = search({"query": COAT, "pit": {"id": "p"}, "runtime_mappings": {"r": {}}})
    hits = read_reply(answer_of(hit("a", 3.0))).hits
    body = words_body(asked, typed_text(asked), [Clause("silk coat")], hits)
    assert (body["pit"], body["size"], body["runtime_mappings"]) == ({"id": "p"}, 1, {"r": {}})
    assert body["query"]["bool"]["filter"] == [hits_query(hits)]
    assert words_body(asked, typed_text(asked), [], hits) is None
    assert words_body(asked, typed_text(asked), [Clause("silk")], []) is None
    recall = search({"query": COAT, "ext": {"bespeak": {"mode": "recall"}}})
    assert words_body(recall, typed_text(recall), [Clause("silk")], hits) is None
