"""Whatever a search contains, only the order of its first hits is personal; the rest is the engine's own answer."""

import itertools
import json

import pytest
from hypothesis import HealthCheck, Phase, event, given, settings
from hypothesis import strategies as st

from elasticsearch_node import new_index_name
from personal_proxy import COLOURS, STUFFS, THINGS, call, personal_proxy

pytestmark = pytest.mark.elasticsearch
AS_ADA = {"X_Bespeak_User": "ada", "X_Bespeak_Session": "s"}
WINDOW = 20  # of `personal_proxy`
N_DOCS = 150
GENERATED = settings(
    max_examples=120,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)


def load(url, index, shards, first, last):
    mapping = {
        "settings": {"number_of_shards": shards, "number_of_replicas": 0},
        "mappings": {
            "properties": {
                "title": {"type": "text"},
                "text": {"type": "text", "fields": {"exact": {"type": "keyword"}}},
                "stuff": {"type": "keyword"},
                "price": {"type": "integer"},
                "made": {"type": "date"},
                "place": {"type": "geo_point"},
                "vec": {"type": "dense_vector", "dims": 4, "index": True, "similarity": "cosine"},
                "parts": {"type": "nested", "properties": {"name": {"type": "text"}, "n": {"type": "integer"}}},
            }
        },
    }
    assert call(url, f"/{index}", mapping, "PUT").status == 200
    lines = []
    for n in range(first, last):
        colour, thing, stuff = COLOURS[n % 4], THINGS[n % 5], STUFFS[n % 6]
        document = {
            "title": f"{colour} {thing}",
            "text": " ".join([colour, thing, stuff, *[thing] * (n % 3), *["coat"] * (n % 2)]),
            "stuff": stuff,
            "price": n,
            "made": f"2024-01-{1 + n % 28:02}",
            "place": {"lat": n % 60, "lon": n % 90},
            "vec": [1 + n % 3, n % 5, n % 7, 1],
            "parts": [{"name": f"{STUFFS[(n + 1) % 6]} lining", "n": n}, {"name": "coat hanger", "n": n % 7}],
        }
        lines += [{"index": {"_id": f"d{n}"}}, document]
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    assert not call(url, f"/{index}/_bulk?refresh=true", body, Content_Type="application/x-ndjson").json["errors"]


@pytest.fixture(scope="module")
def base(elasticsearch_url):
    """Two indices with some equal ids, one with three shards; and two aliases of both."""
    name = new_index_name()
    load(elasticsearch_url, f"{name}-a", 1, 0, N_DOCS)
    load(elasticsearch_url, f"{name}-b", 3, 100, 100 + N_DOCS)
    both, cheap = {"index": f"{name}-*", "alias": f"{name}-all"}, {"range": {"price": {"lt": 160}}}
    actions = [{"add": both}, {"add": both | {"alias": f"{name}-cheap", "filter": cheap}}]
    assert call(elasticsearch_url, "/_aliases", {"actions": actions}).status == 200
    yield name
    for index in ("a", "b"):
        assert call(elasticsearch_url, f"/{name}-{index}", method="DELETE").status == 200


@pytest.fixture(scope="module")
def proxy(elasticsearch_url, tmp_path_factory):
    with personal_proxy(elasticsearch_url, tmp_path_factory.mktemp("proxy")) as (url, _):
        yield url


# Bodies: the text "coat", wherever and however it is searched, and whatever may stand beside.

names = st.sampled_from(["_name"]).map(lambda name: {name: "typed"}) | st.just({})
boosts = st.sampled_from([{}, {"boost": 2.5}])


def options(*choices):
    return st.fixed_dictionaries({}, optional={name: st.sampled_from(values) for name, values in choices})


by_field = st.builds(
    lambda kind, field, more, name: {kind: {field: {"query": "coat", **(more if kind == "match" else {}), **name}}},
    st.sampled_from(["match", "match_phrase", "match_phrase_prefix", "match_bool_prefix"]),
    st.sampled_from(["text", "title"]),
    options(("operator", ["and", "or"]), ("fuzziness", ["AUTO", 1]), ("minimum_should_match", [1, "75%"])),
    names,
)
by_fields = st.one_of(
    st.builds(
        lambda kind, fields, name: {"multi_match": {"query": "coat", "type": kind, "fields": fields, **name}},
        st.sampled_from(["best_fields", "most_fields", "cross_fields", "phrase", "phrase_prefix", "bool_prefix"]),
        st.sampled_from([["text"], ["title^3", "text"], ["t*"]]),
        names,
    ),
    st.just({"combined_fields": {"query": "coat", "fields": ["title", "text"]}}),
    st.sampled_from([{"query_string": {"query": "coat"}}, {"query_string": {"query": "coat", "default_field": "text"}},
                     {"simple_query_string": {"query": "coat", "fields": ["text", "title^2"]}},
                     {"intervals": {"text": {"match": {"query": "coat"}}}}]),
)  # fmt: skip
leaves = by_field | by_fields
nested = st.builds(
    lambda mode, inner: {"nested": {"path": "parts", "score_mode": mode, **inner,
                                    "query": {"match": {"parts.name": "coat"}}}},
    st.sampled_from(["avg", "max", "sum"]),
    st.sampled_from([{}, {"inner_hits": {}}, {"inner_hits": {"size": 1, "highlight": {"fields": {"parts.name": {}}}}}]),
)  # fmt: skip
FILTERS = [
    {"range": {"price": {"gte": 20}}}, {"terms": {"stuff": list(STUFFS[:4])}}, {"exists": {"field": "vec"}},
    {"bool": {"must_not": [{"term": {"stuff": "silk"}}]}}, {"match_all": {}}, {"ids": {"values": ["d1", "d110", "d7"]}},
    {"prefix": {"stuff": "l"}}, {"wildcard": {"stuff": "*e*"}}, {"regexp": {"stuff": "w.*|s.*"}},
    {"geo_distance": {"distance": "9000km", "place": {"lat": 10, "lon": 10}}},
    {"range": {"made": {"gte": "2024-01-05"}}}, {"fuzzy": {"stuff": "wol"}},
]  # fmt: skip
FUNCTIONS = [
    {"field_value_factor": {"field": "price", "factor": 1.2, "missing": 1}}, {"weight": 3},
    {"random_score": {"seed": 7, "field": "price"}}, {"gauss": {"price": {"origin": 60, "scale": 20}}},
    {"filter": {"term": {"stuff": "felt"}}, "weight": 20},
]  # fmt: skip


def around(inner):
    filters = st.lists(st.sampled_from(FILTERS), max_size=2)
    return st.one_of(
        st.builds(lambda q, f, b: {"bool": {"must": [q], "filter": f, **b}}, inner, filters, boosts),
        st.builds(lambda q, f: {"bool": {"should": [q, {"term": {"stuff": "silk"}}], "filter": f}}, inner, filters),
        st.builds(lambda q: {"dis_max": {"queries": [q, {"match": {"title": "coat"}}], "tie_breaker": 0.3}}, inner),
        st.builds(lambda q: {"constant_score": {"filter": q, "boost": 1.5}}, inner),
        st.builds(lambda q: {"boosting": {"positive": q, "negative": {"term": {"stuff": "wool"}},
                                          "negative_boost": 0.4}}, inner),
        st.builds(lambda q, f, mode: {"function_score": {"query": q, "functions": f, "boost_mode": mode}}, inner,
                  st.lists(st.sampled_from(FUNCTIONS), min_size=1, max_size=2),
                  st.sampled_from(["multiply", "sum", "replace"])),
    )  # fmt: skip


queries = st.recursive(leaves | nested, around, max_leaves=3)
knns = st.builds(
    lambda k, more: {"field": "vec", "query_vector": [1, 2, 3, 4], **k, **more},
    st.sampled_from([{}, {"k": 7}, {"k": 40, "num_candidates": 90}, {"num_candidates": 60}]),
    st.sampled_from([{}, {"filter": {"term": {"stuff": "silk"}}}, {"boost": 0.5}, {"similarity": 0.2}]),
)
beside = st.fixed_dictionaries(
    {},
    optional={
        "aggs": st.just({"stuffs": {"terms": {"field": "stuff"}, "aggs": {"dear": {"max": {"field": "price"}}}},
                         "best": {"top_hits": {"size": 2, "_source": ["title"]}}}),
        "suggest": st.just({"again": {"text": "cot", "term": {"field": "text"}}}),
        "post_filter": st.sampled_from(FILTERS[:4]),
        "min_score": st.sampled_from([0.3, 1.0]),
        "highlight": st.sampled_from([{"fields": {"text": {}}},
                                      {"fields": {"*": {}}, "highlight_query": {"match": {"text": "wool"}}}]),
        "fields": st.just(["title", {"field": "made", "format": "yyyy"}]),
        "docvalue_fields": st.just(["price", "stuff"]),
        "_source": st.sampled_from([False, ["title"], {"excludes": ["vec"]}]),
        "track_total_hits": st.sampled_from([True, False, 5, 1000]),
        "terminate_after": st.sampled_from([5, 1000]),
        "timeout": st.just("10s"),
        "version": st.just(True),
        "seq_no_primary_term": st.booleans(),
        "track_scores": st.just(True),
        "collapse": st.sampled_from([{"field": "stuff"}, {"field": "price"},
                                     {"field": "stuff", "inner_hits": {"name": "all", "size": 2}}]),
        "sort": st.sampled_from([["_score"], "_score", [{"_score": {"order": "desc"}}], ["_score", "_score"],
                                 ["_score", "price"], ["_doc"], [{"_score": "asc"}]]),
        "runtime_mappings": st.just({}),
        "stats": st.just(["group"]),
        "explain": st.just(False),
    },
)  # fmt: skip
rescores = st.sampled_from(
    [{}] * 3 + [{"rescore": {"window_size": 50, "query": {"rescore_query": {"match": {"text": "silk"}}}}},
                {"rescore": [{"window_size": 4, "query": {"rescore_query": {"match": {"text": "wool"}},
                                                          "score_mode": "max"}}]}]
)  # fmt: skip
retrievers = st.one_of(
    st.builds(lambda q: {"standard": {"query": q}}, leaves),
    st.builds(lambda q: {"standard": {"query": q, "filter": FILTERS[0], "min_score": 0.2}}, leaves),
    st.builds(lambda q: {"standard": {"query": q, "collapse": {"field": "stuff", "inner_hits": {"name": "c"}}}},
              leaves),
    st.builds(lambda q: {"standard": {"query": q, "sort": ["price"]}}, leaves),
    st.builds(lambda q, n: {"rescorer": {"retriever": {"standard": {"query": q}}, "rescore": {
        "window_size": n, "query": {"rescore_query": {"match": {"text": "silk"}}}}}}, leaves,
        st.sampled_from([10, 15, 50])),
)  # fmt: skip
without = {"collapse": "rescore", "sort": "rescore"}  # what Elasticsearch refuses beside one another


def join(query, more, knn, rescore):
    body = {"query": query, **more, **rescore}
    if knn is not None:
        body["knn"] = knn
    return {name: value for name, value in body.items() if without.get(name) not in body}


bodies = st.one_of(
    st.builds(join, queries, beside, st.none(), rescores),
    st.builds(join, queries, beside, knns, st.just({})),
    st.builds(lambda q, k: {"query": {"bool": {"should": [q, {"knn": k}]}}}, queries, knns),
    st.builds(lambda r, more: {"retriever": r, **{name: more[name] for name in ("aggs", "highlight") if name in more}},
              retrievers, beside),
)  # fmt: skip
places = st.sampled_from(["{}-a", "{}-b", "{}-a,{}-b", "{}-*", "{}-all", "{}-cheap", "{}-b,-{}-a"])


def key(hit):
    return hit["_index"], hit["_id"]


def around_hits(answer):
    outer = {name: value for name, value in answer.items() if name not in ("hits", "took")}
    return outer, {name: value for name, value in answer["hits"].items() if name != "hits"}


def plain(hits):
    return {key(hit): {name: value for name, value in hit.items() if name != "_score"} for hit in hits}


def check(ours, own):
    """Compares two answers to one search whose hits are all inside the window."""
    assert ours.status == own.status
    if ours.outcome["rerank"] != "full":
        assert ours.same() == own.same()
        return
    got, expected = ours.json, own.json
    assert around_hits(got) == around_hits(expected)
    found, wanted = got["hits"]["hits"], expected["hits"]["hits"]
    assert plain(found) == plain(wanted)
    assert len(found) == len(wanted)
    scores = [hit["_score"] for hit in found]
    assert scores == sorted((hit["_score"] for hit in wanted), reverse=True)


@GENERATED
@given(bodies, places)
def test_everything_but_the_order_is_the_engines(elasticsearch_url, proxy, base, body, place):
    path = f"/{place.replace('{}', base)}/_search"
    own = call(elasticsearch_url, path, body | {"size": WINDOW})
    ours = call(proxy, path, body | {"size": WINDOW}, **AS_ADA)
    event(f"rerank={ours.outcome['rerank']} {ours.outcome.get('reason', '')}")
    assert ours.outcome.get("reason") != "prepare"
    check(ours, own)


@GENERATED
@given(bodies, places, st.integers(1, 12))
def test_a_page_is_part_of_the_reranked_window(elasticsearch_url, proxy, base, body, place, size):
    path = f"/{place.replace('{}', base)}/_search"
    own = call(elasticsearch_url, path, body | {"size": size})
    ours = call(proxy, path, body | {"size": size}, **AS_ADA)
    assert ours.status == own.status
    if ours.outcome["rerank"] != "full":
        assert ours.same() == own.same()
        return
    assert around_hits(ours.json) == around_hits(own.json)
    shown = plain(ours.json["hits"]["hits"])
    if shown != plain(own.json["hits"]["hits"]):
        wider = call(elasticsearch_url, path, body | {"size": WINDOW})
        if wider.status != 200:  # a rescorer's own window is smaller
            wider = call(elasticsearch_url, path, body | {"size": 10})
        listed = plain(wider.json["hits"]["hits"])
        assert shown == {place_: listed.get(place_) for place_ in shown}
    scores = [hit["_score"] for hit in ours.json["hits"]["hits"]]
    assert scores == sorted(scores, reverse=True)
    assert len(scores) == len(own.json["hits"]["hits"])


@settings(GENERATED, max_examples=40)
@given(st.lists(st.tuples(bodies, st.sampled_from([{}, {"from": 3, "size": 4}, {"size": WINDOW}])), min_size=1,
                max_size=5))  # fmt: skip
def test_several_searches_are_answered_as_single_ones_are(elasticsearch_url, proxy, base, searches):
    texts = [body | page for body, page in searches]
    lines = "".join(f"{json.dumps({'index': f'{base}-b'})}\n{json.dumps(text)}\n" for text in texts).encode()
    ours = call(proxy, "/_msearch", lines, Content_Type="application/x-ndjson", **AS_ADA)
    own = call(elasticsearch_url, "/_msearch", lines, Content_Type="application/x-ndjson")
    assert ours.status == own.status
    if own.status != 200:
        return
    told = [dict(part.split("=", 1) for part in one.split("; ")) for one in ours.headers["X-Bespeak"].split(", ")]
    for text, one, got, expected in zip(texts, told, ours.json["responses"], own.json["responses"], strict=True):
        for answer in (got, expected):
            answer.pop("took", None)
        if one["rerank"] != "full":
            assert got == expected
        else:
            assert around_hits(got) == around_hits(expected)
            if text.get("size") == WINDOW:
                assert plain(got["hits"]["hits"]) == plain(expected["hits"]["hits"])


PARAMETERS = list(
    itertools.chain(
        ["q=coat", "q=text:coat", "q=coat&df=text&default_operator=AND", "q=coat&sort=price", "q=coat&sort=_score"],
        ["q=coat&_source=title", "q=coat&_source=false", "q=coat&stored_fields=_none_", "q=coat&docvalue_fields=price"],
        ["q=coat&track_total_hits=false", "q=coat&rest_total_hits_as_int=true", "q=coat&typed_keys", "q=coat&pretty"],
        [
            "q=coat&human",
            "q=coat&error_trace=true",
            "q=coat&error_trace=true&size=none",
            "q=coat&explain=true",
            "q=coat&version=true",
            "q=coat&lenient",
        ],
        ["q=coat&seq_no_primary_term=true", "q=coat&search_type=dfs_query_then_fetch", "q=coat&preference=mine"],
        ["q=coat&terminate_after=1000", "q=coat&timeout=5s", "q=coat&suggest_field=text"],
        ["q=coat&ignore_unavailable=true&expand_wildcards=all", "q=coat&allow_no_indices=false", "q=coat&format=json"],
        ["q=coat&nonsense=1", "q=coat&size=1_0", "q=coat&from=-1", "q=coat&size=&from=2", "q=coat&routing=7"],
        [
            "q=coat&request_cache=true",
            "q=coat&from=2&from=0",
            "q=coat;size=20",
            "q=coat&min_score=1",
            "q=coat&analyzer=standard",
        ],
    )
)


@pytest.mark.parametrize("query", PARAMETERS)
def test_parameters_of_the_url(elasticsearch_url, proxy, base, query):
    path = f"/{base}-*/_search?{query}" + ("" if "size=" in query else f"&size={WINDOW}")
    ours, own = call(proxy, path, **AS_ADA), call(elasticsearch_url, path)
    if own.status != 200:
        assert ours.status == own.status
        assert ours.same() == own.same()
    else:
        check(ours, own)


@pytest.mark.parametrize(
    "place", ["/_all", "", "/_search", "/{}-nothing", "/{}-a,{}-nothing", "/{}-nothing*", "/<{}-{{now%2Fd}}>,{}-a"]
)
def test_places_of_all_kinds(elasticsearch_url, proxy, base, place):
    ours = {"terms": {"_index": [f"{base}-a", f"{base}-b"]}}
    body = {"query": {"bool": {"must": [{"match": {"text": "coat"}}], "filter": [ours]}}, "size": WINDOW}
    path = f"{place.replace('{}', base)}/_search?ignore_unavailable={json.dumps('<' in place)}"
    check(call(proxy, path, body, **AS_ADA), call(elasticsearch_url, path, body))
