"""`filter_path` as Bespeak applies it and as a real node does."""

import json
import urllib.request
from urllib.parse import quote

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bespeak.proxy.body.filter_path import apply

pytestmark = pytest.mark.elasticsearch

DOCUMENTS = [
    {"title": "red boots", "size": {"eu": 42, "us": 9.5}, "tags": ["red", "leather"], "odd": {"a.b": 1}},
    {"title": "red hat", "empty": {}, "none": None, "list": [], "parts": [{"name": "brim"}, {"name": "band", "n": 2}]},
    {"title": "green hat", "deep": {"a": {"b": {"a": {"b": [1, [2, {"a": 3}], {}]}}}}},
    {
        "title": "blue coat",
        "parts": [[], [{}], [{"name": "lining"}], "loose", 7],
        "flag": False,
        "odd": {"a*b": "star"},
    },
    {"title": "red coat", "odd": {"no\\te": {"x.y": {"z": 1}, "x": {"y": 2}}, "": {"blank": 1}}},
]
SEARCH = {
    "query": {"match_all": {}},
    "sort": [{"_doc": "asc"}],
    "aggs": {"tags": {"terms": {"field": "tags.keyword"}}, "none": {"terms": {"field": "nothing"}}},
    "highlight": {"fields": {"title": {}}, "highlight_query": {"match": {"title": "red"}}},
}
PATTERNS = [
    "hits.hits._id",
    "hits.hits._source",
    "hits.hits._source.title",
    "hits.*",
    "hits.**",
    "**",
    "*",
    "**._source",
    "**._id",
    "**.timed_out",
    "hits.hits.*.title",
    "hits.**.title",
    "t*",
    "*d*",
    "_shards.f*",
    "hits.total.value,timed_out",
    "-hits",
    "-hits.hits",
    "-hits.hits._source",
    "-**._source",
    "-**.title",
    "-_shards.*",
    "-**",
    "-*",
    "hits,-hits.hits",
    "hits.hits,-hits.hits._source.parts",
    "hits.hits._source,-**.name",
    "hits.hits._source.parts.name",
    "-**.parts.name",
    "aggregations",
    "aggregations.none",
    "aggregations.none.buckets",
    "-aggregations.none.sum_other_doc_count",
    "-aggregations.tags.buckets.key",
    "nothing",
    "-nothing",
    "-**.nothing",
    "nothing.at.all",
    "-",
    ",",
    ",,timed_out",
    " ",
    " timed_out , hits.total ",
    "- timed_out",
    "-timed_out,-_shards",
    "hits.hits._source.odd.a\\.b",
    "hits.hits._source.odd.a.b",
    "**.a\\.b",
    "**.x\\.y.z",
    "**.x\\.*",
    "**.x.y",
    "-**.x\\.y",
    ".timed_out",
    "hits..total",
    "hits.",
    "**.",
    "**.**.a",
    "**.a.**.b",
    "**.a.b.a",
    "hits.hits._source.deep.*.*.a",
    "***",
    "**a",
    "hits.***.title",
    "hits.hits._sour*e.t*t*e",
    "hits.hits.highlight",
    "-**.highlight.*",
    "**.a\\*b",
    "**.a*b",
    "**.no\\te",
    "**.no\\te.x\\.y",
    "hits.hits._source.**.b",
    "hits,hits.total",
    "hits.total,hits",
    "-hits.total,hits",
    "timed_out.x",
    "hits.hits.0",
    "hits.hits.*",
    "**.blank",
]


@pytest.fixture(scope="module")
def ask(elasticsearch_url):
    from elasticsearch_node import new_index_name

    index = new_index_name()

    def send(method, path, body):
        request = urllib.request.Request(
            f"{elasticsearch_url}/{index}{path}",
            json.dumps(body).encode(),
            method=method,
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)

    send(
        "PUT",
        "",
        {
            "settings": {"number_of_shards": 1},
            "mappings": {
                "properties": {
                    "odd": {"type": "object", "enabled": False},
                    "title": {"type": "text"},
                    "tags": {"type": "text", "fields": {"keyword": {"type": "keyword"}}},
                },
                "dynamic": False,
            },
        },
    )
    for number, document in enumerate(DOCUMENTS):
        send("PUT", f"/_doc/{number}?refresh=true", document)
    return lambda patterns="": send("POST", f"/_search?filter_path={quote(patterns)}", SEARCH)


def without_took(answer):
    return {name: value for name, value in answer.items() if name != "took"}


def same(ask, patterns):
    asked = f"{patterns},-took" if patterns.strip(" ,") else patterns
    assert without_took(apply(ask(), asked)) == without_took(ask(asked)), asked


@pytest.mark.parametrize("patterns", PATTERNS)
def test_an_answer_is_cut_as_the_node_cuts_it(ask, patterns):
    full, asked = ask(), ask(patterns)
    assert without_took(apply(full, patterns)) == without_took(asked)
    assert ("took" in apply(full, patterns)) == ("took" in asked)


NAMES = [
    "hits",
    "total",
    "value",
    "_source",
    "title",
    "parts",
    "name",
    "deep",
    "a",
    "b",
    "timed_out",
    "aggregations",
    "tags",
    "buckets",
    "key",
    "highlight",
    "x",
    "x\\.y",
    "a\\.b",
    "size",
    "eu",
    "list",
    "empty",
    "none",
]
GLOBS = ["*", "**", "h*s", "*e", "t*", "*a*", "***", "_*", "*\\.*", ""]
pattern = st.lists(st.sampled_from(NAMES) | st.sampled_from(GLOBS), min_size=1, max_size=5).map(".".join)
through_hits = st.just("hits.hits._source.") | st.just("**.") | st.just("")
patterns = st.lists(
    st.tuples(st.sampled_from(["", "", "-", " "]), through_hits, pattern).map("".join), min_size=1, max_size=4
).map(",".join)


@settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(patterns=patterns)
def test_any_patterns_cut_as_the_node_cuts(ask, patterns):
    same(ask, patterns)
