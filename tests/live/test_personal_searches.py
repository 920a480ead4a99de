"""Searches through the proxy against a real node: the changes, and everything that must stay."""

import gzip
import json
import random
from urllib.parse import quote

import pytest

from elasticsearch_node import new_index_name
from personal_proxy import ADA, call, load_things, personal_proxy

pytestmark = pytest.mark.elasticsearch
AS_ADA = {"X_Bespeak_User": "ada", "X_Bespeak_Session": "s"}


@pytest.fixture(scope="module")
def index(elasticsearch_url):
    name = new_index_name()
    load_things(elasticsearch_url, name)
    return name


@pytest.fixture(scope="module")
def proxy(elasticsearch_url, tmp_path_factory):
    with personal_proxy(elasticsearch_url, tmp_path_factory.mktemp("proxy")) as (url, _):
        yield url


@pytest.fixture
def both(elasticsearch_url, proxy, index):
    """A search of Ada's through the proxy, and the same without Bespeak."""

    def ask(body, path="_search", **headers):
        place = f"/{index}/{path}"
        return call(proxy, place, body, **(AS_ADA | headers)), call(elasticsearch_url, place, body)

    return ask


COAT = {"match": {"text": "coat"}}


def test_the_order_is_adas_and_says_so(both):
    ours, own = both({"query": COAT, "size": 20})
    assert ours.outcome["rewrite"] == "full"
    assert ours.outcome["rerank"] == "full"
    assert ours.outcome["query_id"]
    assert ours.ids != own.ids
    assert "silk" in ours.json["hits"]["hits"][0]["_source"]["text"]
    assert ours.headers["X-Elastic-Product"] == "Elasticsearch"


def test_a_search_that_names_no_user_gets_the_engines_answer(proxy, elasticsearch_url, index):
    body = {"query": COAT}
    ours, own = call(proxy, f"/{index}/_search", body), call(elasticsearch_url, f"/{index}/_search", body)
    assert ours.same() == own.same()
    assert "X-Bespeak" not in ours.headers


def test_a_stranger_gets_the_engines_answer_and_the_reason(both):
    ours, own = both({"query": COAT}, X_Bespeak_User="nobody-knows-me", X_Bespeak_Session="t1")
    assert ours.same() == own.same()
    assert ours.outcome["rewrite"] == "gated"
    assert ours.outcome["reason"] == "stranger"


def test_totals_aggregations_and_highlights_stay_the_clients(both):
    body = {
        "query": {"bool": {"must": [{"match": {"text": {"query": "coat", "_name": "typed"}}}],
                           "filter": [{"range": {"price": {"lt": 200}}}]}},
        "aggs": {"stuffs": {"terms": {"field": "stuff"}}},
        "suggest": {"again": {"text": "coot", "term": {"field": "text"}}},
        "post_filter": {"term": {"stuff": "wool"}},
        "min_score": 0.5,
        "highlight": {"fields": {"text": {}}},
        "size": 40,
    }  # fmt: skip
    ours, own = both(body)
    assert ours.outcome["rerank"] == "full"
    got, expected = ours.json, own.json
    assert {name: got[name] for name in ("aggregations", "suggest", "timed_out", "_shards")} == {
        name: expected[name] for name in ("aggregations", "suggest", "timed_out", "_shards")
    }
    assert got["hits"]["total"] == expected["hits"]["total"]
    assert set(ours.ids) == set(own.ids)

    def plain(answer):
        return {hit["_id"]: {k: v for k, v in hit.items() if k != "_score"} for hit in answer["hits"]["hits"]}

    assert plain(got) == plain(expected)


@pytest.mark.parametrize("size", [1, 3, 7, 10, 19, 20, 21, 33])
def test_the_pages_of_a_search_hold_each_match_once(proxy, elasticsearch_url, index, size):
    body = {"query": COAT, "track_total_hits": True}
    expected = call(elasticsearch_url, f"/{index}/_search", body | {"size": 1000}).ids
    found, scores = [], []
    for offset in range(0, len(expected) + size, size):
        page = call(proxy, f"/{index}/_search", body | {"from": offset, "size": size}, **AS_ADA)
        found += page.ids
        scores += [hit["_score"] for hit in page.json["hits"]["hits"]]
    assert sorted(found) == sorted(expected)
    assert found != expected
    assert scores[:20] == sorted(scores[:20], reverse=True)


def test_pages_stay_consistent_whatever_the_user_does_in_between(proxy, elasticsearch_url, index):
    body = {"query": {"match": {"text": "hat"}}}
    expected = call(elasticsearch_url, f"/{index}/_search", body | {"size": 1000}).ids
    chance = random.Random(1)
    found = []
    for offset in range(0, len(expected), 6):
        found += call(proxy, f"/{index}/_search", body | {"from": offset, "size": 6}, **AS_ADA).ids
        click = {"action_name": "click", "user_id": "ada", "session_id": "s", "timestamp": "2026-01-01T00:00:00Z",
                 "event_attributes": {"object": {"object_id": chance.choice(expected)}}}  # fmt: skip
        assert call(proxy, "/_bespeak/events", click).json["taken"] == 1
    assert sorted(found) == sorted(expected)


def test_pages_of_a_point_in_time_hold_each_match_once(proxy, elasticsearch_url, index):
    pit = call(elasticsearch_url, f"/{index}/_pit?keep_alive=1m", method="POST").json["id"]
    body = {"query": COAT, "pit": {"id": pit}}
    expected = call(elasticsearch_url, "/_search", body | {"size": 1000}).ids
    pages = [call(proxy, "/_search", body | {"from": n, "size": 7}, **AS_ADA) for n in range(0, len(expected), 7)]
    assert pages[0].outcome["rerank"] == "full"
    assert sorted(i for page in pages for i in page.ids) == sorted(expected)
    after = None
    found = []
    while True:  # as clients walk through it: sorted, each page after the last hit of the one before
        sorted_body = body | {"sort": ["_score"], "size": 7} | ({"search_after": after} if after else {})
        hits = call(proxy, "/_search", sorted_body, **AS_ADA).json["hits"]["hits"]
        if not hits:
            break
        found += [hit["_id"] for hit in hits]
        after = hits[-1]["sort"]
    assert found == expected


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ({"sort": ["price"]}, "sort"),
        ({"sort": [{"price": "desc"}, "_score"], "track_scores": True}, "sort"),
        ({"sort": ["_score", "price"]}, "sort"),
        ({"size": 0, "aggs": {"a": {"terms": {"field": "stuff"}}}}, "size_0"),
        ({"sort": ["price"], "search_after": [10]}, "search_after"),
        ({"explain": True}, "explain"),
        ({"stored_fields": "_none_"}, "no_ids"),
        ({"query": {"match_all": {}}}, "no_text"),
        ({"query": {"bool": {"must": [COAT, {"match": {"title": "hat"}}]}}}, "ambiguous"),
        ({"query": {"match": {"text": '"silk coat"'}}}, "quoted"),
    ],
)
def test_searches_with_a_promised_order_pass_with_a_reason(both, body, reason):
    ours, own = both({"query": COAT} | body)
    assert ours.same() == own.same()
    assert ours.outcome["reason"] == reason


def test_a_scroll_passes(both):
    ours, own = both({"query": COAT}, "_search?scroll=1m")
    assert ours.outcome["reason"] == "scroll"
    assert ours.ids == own.ids


def test_a_sort_by_score_alone_is_no_sort(both):
    ours, own = both({"query": COAT, "sort": ["_score"]})
    assert ours.outcome["rerank"] == "full"
    assert ours.ids != own.ids


def test_collapsed_groups_keep_their_hits(both):
    body = {"query": COAT, "collapse": {"field": "stuff", "inner_hits": {"name": "all", "size": 2}}}
    ours, own = both(body)
    assert ours.outcome["rerank"] == "full"

    def groups(reply):
        return {hit["_id"]: hit["inner_hits"] for hit in reply.json["hits"]["hits"]}

    assert groups(ours) == groups(own)


def test_a_clients_own_rescorer_goes_before_ours(both):
    rescore = {"window_size": 50, "query": {"rescore_query": {"match": {"text": "leather"}}}}
    ours, own = both({"query": COAT, "rescore": rescore, "size": 20})
    assert ours.outcome["rerank"] == "full"
    scores = [hit["_score"] for hit in own.json["hits"]["hits"]]
    assert [hit["_score"] for hit in ours.json["hits"]["hits"]] == scores
    assert set(ours.ids) == set(own.ids)


def test_a_retriever_is_reranked(both):
    ours, own = both({"retriever": {"standard": {"query": COAT}}, "size": 20})
    assert ours.outcome["rerank"] == "full"
    assert set(ours.ids) == set(own.ids)
    assert ours.ids != own.ids


def test_a_filter_path_is_honoured(both):
    for path in ("hits.hits._source.title", "hits.total,took", "-hits.hits._source", "hits.hits._id", "nothing"):
        ours, own = both({"query": COAT, "size": 20}, f"_search?filter_path={quote(path)}")
        got, expected = ours.json, own.json
        for answer in (got, expected):
            answer.pop("took", None)

        def in_any_order(answer):
            hits = answer.get("hits", {}).get("hits", [])
            return sorted(json.dumps({k: v for k, v in hit.items() if k != "_score"}) for hit in hits)

        assert in_any_order(got) == in_any_order(expected)
        assert set(got) == set(expected)


@pytest.mark.parametrize(
    "body",
    [{"_source": False}, {"_source": ["title"]}, {"fields": ["title"], "_source": False},
     {"stored_fields": ["title"]}, {"seq_no_primary_term": True}, {"version": True}],
)  # fmt: skip
def test_a_hit_holds_what_the_client_asked_for(both, body):
    ours, own = both({"query": COAT, "size": 40} | body)
    assert ours.outcome["rerank"] == "full"

    def hits(reply):
        return {h["_id"]: {k: v for k, v in h.items() if k != "_score"} for h in reply.json["hits"]["hits"]}

    assert hits(ours) == hits(own)


def test_a_query_of_the_url_is_a_search_too(proxy, elasticsearch_url, index):
    path = f"/{index}/_search?q=coat&df=text&size=20"
    ours, own = call(proxy, path, **AS_ADA), call(elasticsearch_url, path)
    assert ours.outcome["rewrite"] == "full"
    assert set(ours.ids) == set(own.ids)
    assert ours.ids != own.ids
    recall = {"ext": {"bespeak": {"mode": "recall"}}}
    wider = call(proxy, f"/{index}/_search?q=coat&df=text&default_operator=AND&size=20", recall, **AS_ADA)
    assert wider.json["hits"]["total"]["value"] > own.json["hits"]["total"]["value"]
    source = quote(json.dumps({"query": COAT, "size": 20}))
    path = f"/{index}/_search?source={source}&source_content_type=application/json"
    assert call(proxy, path, **AS_ADA).outcome["rewrite"] == "full"


def test_a_body_with_get_and_no_index(proxy, index):
    body = {"query": {"bool": {"must": [COAT], "filter": [{"term": {"_index": index}}]}}}
    reply = call(proxy, "/_search", body, method="GET", **AS_ADA)
    assert reply.outcome["rerank"] == "full"


def test_the_body_may_name_the_user(proxy, elasticsearch_url, index):
    body = {"query": COAT, "size": 20,
            "ext": {"ubi": {"client_id": "ada", "user_query": "coat", "query_id": "my-own"},
                    "bespeak": {"explain": True}}}  # fmt: skip
    ours = call(proxy, f"/{index}/_search", body)
    told = ours.json["bespeak"]
    assert ours.outcome["query_id"] == told["query_id"] == "my-own"
    assert [hit["_id"] for hit in told["hits"]] == ours.ids
    own = call(elasticsearch_url, f"/{index}/_search", {"query": COAT, "size": 100})
    scores = {hit["_id"]: hit["_score"] for hit in own.json["hits"]["hits"]}
    assert {hit["_id"]: hit["engine"]["score"] for hit in told["hits"]} == {i: scores[i] for i in ours.ids}


def test_each_search_of_several_is_handled_separately(proxy, elasticsearch_url, index):
    searches = [
        {"query": COAT, "size": 20},
        {"query": COAT, "sort": ["price"]},
        {"query": {"match_all": {}}, "from": 20_000},
        {"query": {"match": {"text": "shoe"}}, "from": 2, "size": 5},
    ]
    lines = "".join(f"{{}}\n{json.dumps(search)}\n" for search in searches).encode()
    kind = {"Content_Type": "application/x-ndjson"}
    ours = call(proxy, f"/{index}/_msearch", lines, **AS_ADA, **kind)
    own = call(elasticsearch_url, f"/{index}/_msearch", lines, **kind)
    told = [dict(part.split("=", 1) for part in one.split("; ")) for one in ours.headers["X-Bespeak"].split(", ")]
    assert [one["rerank"] for one in told] == ["full", "off", "off", "full"]
    assert [one.get("reason") for one in told] == [None, "sort", "no_text", None]
    got, expected = ours.json["responses"], own.json["responses"]
    for answer in got + expected:
        answer.pop("took", None)
    assert got[1:3] == expected[1:3]
    assert {hit["_id"] for hit in got[0]["hits"]["hits"]} == {hit["_id"] for hit in expected[0]["hits"]["hits"]}
    single = call(proxy, f"/{index}/_search", searches[0], **AS_ADA)
    assert [hit["_id"] for hit in got[0]["hits"]["hits"]] == single.ids


def test_bodies_may_be_packed_both_ways(proxy, index):
    packed = gzip.compress(json.dumps({"query": COAT, "size": 20}).encode())
    headers = {"Content_Encoding": "gzip", "Accept_Encoding": "gzip"}
    reply = call(proxy, f"/{index}/_search", packed, **AS_ADA, **headers)
    assert reply.outcome["rerank"] == "full"
    assert reply.headers["Content-Encoding"] == "gzip"
    assert len(json.loads(gzip.decompress(reply.body))["hits"]["hits"]) == 20


def test_the_client_sees_the_engines_own_refusal(both):
    ours, own = both({"query": {"match": {"text": {"query": "coat", "nonsense": 1}}}})
    assert ours.status == own.status == 400
    assert ours.same() == own.same()
    assert ours.outcome["reason"] == "engine_refused"


def test_recall_finds_more_and_keeps_the_filters(both):
    body = {"query": {"bool": {"must": [COAT], "filter": [{"term": {"stuff": "silk"}}]}}, "size": 100}
    boost, own = both(body)
    recall, _ = both(body | {"ext": {"bespeak": {"mode": "recall"}}})
    assert boost.json["hits"]["total"] == own.json["hits"]["total"]
    assert recall.json["hits"]["total"]["value"] > own.json["hits"]["total"]["value"]
    assert {hit["_source"]["stuff"] for hit in recall.json["hits"]["hits"]} == {"silk"}


def test_shown_hits_are_recorded_and_can_be_forgotten(elasticsearch_url, index, tmp_path):
    with personal_proxy(elasticsearch_url, tmp_path / "p") as (url, store):
        first = call(url, f"/{index}/_search", {"query": COAT, "size": 3}, **AS_ADA)
        shown = call(url, "/_bespeak/profile/ada").body.decode().splitlines()
        events = [json.loads(line) for line in shown]
        mine = [event for event in events if event.get("query_id") == first.outcome["query_id"]]
        assert [event.get("action_name", "query") for event in mine].count("query") == 1
        seen = [event["event_attributes"] for event in mine if event.get("action_name") == "impression"]
        ranked = sorted(seen, key=lambda attributes: attributes["position"]["ordinal"])
        assert [attributes["object"]["object_id"] for attributes in ranked] == first.ids
        assert call(url, "/_bespeak/profile/ada", method="DELETE").status == 200
        again = call(url, f"/{index}/_search", {"query": COAT, "size": 3}, **AS_ADA)
        stranger = call(url, f"/{index}/_search", {"query": COAT, "size": 3}, X_Bespeak_User="somebody")
        assert again.same() == stranger.same()
        assert again.outcome["reason"] == "stranger"
    assert list(store.export(ADA))  # the query after it


def test_a_share_of_zero_makes_every_user_a_control(elasticsearch_url, index, tmp_path):
    with personal_proxy(elasticsearch_url, tmp_path / "p", share=0.0) as (url, _):
        body = {"query": COAT}
        ours, own = call(url, f"/{index}/_search", body, **AS_ADA), call(elasticsearch_url, f"/{index}/_search", body)
        assert ours.same() == own.same()
        assert ours.outcome["reason"] == "control"
        assert ours.outcome["query_id"]
