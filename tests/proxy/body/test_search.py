"""One search taken apart and put together again, without any engine."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.errors import InputError
from bespeak.proxy.body.reply import read_reply, write_page
from bespeak.proxy.body.search import decline, read_search, typed_text
from bespeak.proxy.body.window import hits_query, widen, words_body
from bespeak.records import Clause, UserKey

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
def test_a_page_that_the_engine_refuses_is_not_read(value):
    for name in ("from", "size"):
        with pytest.raises(InputError):
            read_search("i", (), json.dumps({name: value}))


def test_the_url_goes_before_the_body():
    found = search({"from": 3, "size": 4}, [("size", "2"), ("from", "1")])
    assert (found.offset, found.size) == (1, 2)
    asked = widen(found, 20, typed_text(found), (), "p")
    assert asked.params == (("preference", "p"),)
    assert json.loads(asked.text)["size"] == 20


def test_what_is_for_bespeak_is_taken_out_and_no_other_byte():
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
def test_no_search(text):
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
def test_whose_order_it_is(body, params, reason):
    assert decline(search(body, params)) == reason


def widened(body, window=20, clauses=(), params=()):
    found = search(body, params)
    asked = widen(found, window, typed_text(found), clauses, "p")
    return asked, json.loads(asked.text)


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
def test_the_window_is_asked_where_it_changes_nothing_else(body, window, offset, size):
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
def test_versions_are_not_asked_where_others_would_show_them(more):
    assert "seq_no_primary_term" not in widened({"query": COAT} | more)[1]
    assert widened({"query": COAT})[1]["seq_no_primary_term"] is True


def test_a_preference_of_the_clients_stays():
    asked, _ = widened({"query": COAT}, params=[("preference", "mine"), ("routing", "7"), ("filter_path", "took")])
    assert asked.params == (("preference", "mine"), ("routing", "7"))
    assert widened({"query": COAT, "pit": {"id": "x"}})[0].params == ()


def test_pages_are_told_apart_by_user_session_and_search_alone():
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


# Answers.


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
def test_a_page_is_cut_of_the_new_order(order, offset, size):
    reply = read_reply(answer_of(*(hit(f"d{n}", 9.0 - n, _seq_no=n, _primary_term=1) for n in range(8))))
    page = json.loads(write_page(reply, order, search({"from": offset, "size": size}), {"bespeak": {}}))
    hits = page["hits"]["hits"]
    assert [h["_id"] for h in hits] == [f"d{n}" for n in order[offset : offset + size]]
    assert [h["_score"] for h in hits] == [9.0 - n for n in range(8)][offset : offset + size]
    assert not any("_seq_no" in h or "_primary_term" in h for h in hits)
    assert "bespeak" in page


def test_versions_stay_where_they_were_asked_for():
    reply = read_reply(answer_of(hit("a", 1.0, _seq_no=5, _primary_term=1)))
    for asked in (search({"seq_no_primary_term": True}), search({}, [("seq_no_primary_term", "")])):
        assert json.loads(write_page(reply, [0], asked, {}))["hits"]["hits"][0]["_seq_no"] == 5
    assert reply.hits[0].version == "1.5"


@pytest.mark.parametrize(
    "text",
    ["", "{}", "[]", '{"hits": {}}', '{"hits": {"hits": {}}}', answer_of({"_id": "a"}), answer_of(hit("a", None)),
     answer_of(hit("a", "high")), answer_of([])],
)  # fmt: skip
def test_no_answer_to_rank(text):
    with pytest.raises(InputError):
        read_reply(text)


def test_hits_are_named_by_index_and_id():
    hits = read_reply(answer_of(hit("a", 3.0), hit("b", 2.0, "j"), hit("a", 1.0, "j"))).hits
    one = {"bool": {"filter": [{"term": {"_index": "i"}}, {"ids": {"values": ["a"]}}]}}
    other = {"bool": {"filter": [{"term": {"_index": "j"}}, {"ids": {"values": ["b", "a"]}}]}}
    assert hits_query(hits) == {"bool": {"should": [one, other], "minimum_should_match": 1}}
    assert hits_query(hits[:1]) == one


def test_the_rewrites_words_are_asked_of_the_hits_alone():
    asked = search({"query": COAT, "pit": {"id": "p"}, "runtime_mappings": {"r": {}}})
    hits = read_reply(answer_of(hit("a", 3.0))).hits
    body = words_body(asked, typed_text(asked), [Clause("silk coat")], hits)
    assert (body["pit"], body["size"], body["runtime_mappings"]) == ({"id": "p"}, 1, {"r": {}})
    assert body["query"]["bool"]["filter"] == [hits_query(hits)]
    assert words_body(asked, typed_text(asked), [], hits) is None
    assert words_body(asked, typed_text(asked), [Clause("silk")], []) is None
    recall = search({"query": COAT, "ext": {"bespeak": {"mode": "recall"}}})
    assert words_body(recall, typed_text(recall), [Clause("silk")], hits) is None


# Requests.
