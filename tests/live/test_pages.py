"""The pages of a personal search, also while documents and indices change."""

import json
import threading

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from bespeak.engines import VECTOR_FIELD
from bespeak.engines.elastic import ElasticsearchEngine
from bespeak.records import Document
from elasticsearch_node import new_index_name
from fakes import BagEncoder
from personal_proxy import call, load_things, personal_proxy

pytestmark = pytest.mark.elasticsearch
AS_ADA = {"X_Bespeak_User": "ada", "X_Bespeak_Session": "s"}
WINDOW = 20  # of `personal_proxy`
COAT = {"match": {"text": "coat"}}
MATCHES = {"query": {"match_all": {}}, "sort": ["_doc"], "size": 1000}
GENERATED = settings(
    max_examples=40,
    derandomize=True,
    database=None,
    suppress_health_check=list(HealthCheck),
    phases=(Phase.explicit, Phase.generate, Phase.shrink),
)


def put(url, index, documents, refresh=True):
    lines = [line for doc_id, source in documents.items() for line in ({"index": {"_id": doc_id}}, source)]
    body = "".join(json.dumps(line) + "\n" for line in lines).encode()
    answer = call(url, f"/{index}/_bulk?refresh={json.dumps(refresh)}", body, Content_Type="application/x-ndjson")
    assert not answer.json["errors"], answer.body[:500]


def make(url, index, shards=1, settings_=None, **mappings):
    body = {"settings": {"number_of_shards": shards, "number_of_replicas": 0, **(settings_ or {})}}
    assert call(url, f"/{index}", body | ({"mappings": mappings} if mappings else {}), "PUT").status == 200


@pytest.fixture(scope="module")
def base(elasticsearch_url):
    """Two indices with the same ids, of one shard and of four, in which documents of a kind tie."""
    name = new_index_name()
    load_things(elasticsearch_url, f"{name}-a")
    make(elasticsearch_url, f"{name}-b", 4, properties={"text": {"type": "text"}, "price": {"type": "integer"}})
    documents = {f"d{n}": {"text": ["coat", "silk coat", "linen coat", "hat"][n % 4], "price": n} for n in range(90)}
    put(elasticsearch_url, f"{name}-b", documents)
    return name


@pytest.fixture(scope="module")
def proxy(elasticsearch_url, tmp_path_factory):
    with personal_proxy(elasticsearch_url, tmp_path_factory.mktemp("proxy")) as (url, _):
        yield url


@pytest.fixture
def fresh(elasticsearch_url, tmp_path):
    """A proxy without requests so far. Ada's last query was for a silk scarf."""
    with personal_proxy(elasticsearch_url, tmp_path / "fresh") as (url, _):
        yield url


def keys(answer):
    return [(hit["_index"], hit["_id"]) for hit in answer.json["hits"]["hits"]]


queries = st.sampled_from([
    COAT, {"match": {"text": "linen coat"}}, {"constant_score": {"filter": COAT}},
    {"bool": {"must": [COAT], "filter": [{"range": {"price": {"lt": 150}}}]}},
    {"function_score": {"query": COAT, "functions": [{"weight": 5, "filter": {"match": {"text": "silk"}}}]}},
    {"multi_match": {"query": "silk coat", "fields": ["text", "title"]}},
])  # fmt: skip
parts = st.sampled_from([{}, {}, {"collapse": {"field": "price"}}, {"min_score": 0.4}, {"_source": False},
                         {"track_total_hits": False}, {"sort": "_score"}])  # fmt: skip


@GENERATED
@given(queries, parts, st.sampled_from(["{}-a", "{}-b", "{}-a,{}-b", "{}-*"]),
       st.lists(st.integers(1, 23), min_size=1, max_size=4))  # fmt: skip
def test_pages_of_any_size_neither_repeat_nor_lose_hits(elasticsearch_url, proxy, base, query, more, place, sizes):
    path, body = f"/{place.replace('{}', base)}/_search", {"query": query, **more}
    # As the proxy asks: a preference keeps ties in one order.
    expected = keys(call(elasticsearch_url, path, body | {"size": 1000}))
    found, scores, offset, n = [], [], 0, 0
    while offset < len(expected):
        size = sizes[n % len(sizes)]
        page = call(proxy, path, body | {"from": offset, "size": size}, **AS_ADA)
        assert page.outcome["rerank"] == "full" or page.outcome["reason"] == "beyond_window"
        found += keys(page)
        scores += [hit["_score"] for hit in page.json["hits"]["hits"]]
        offset, n = offset + size, n + 1
    assert sorted(found) == sorted(expected)
    assert set(found[:WINDOW]) == set(expected[:WINDOW])
    assert found[WINDOW:] == expected[WINDOW:]
    assert scores == sorted(scores, reverse=True)


def test_concurrent_pages_neither_repeat_nor_lose_hits(elasticsearch_url, proxy, base):
    body = {"query": {"match": {"text": "silk coat"}}}
    expected = keys(call(elasticsearch_url, f"/{base}-a/_search", body | {"size": 1000}))
    pages = {}

    def ask(offset):
        pages[offset] = keys(call(proxy, f"/{base}-a/_search", body | {"from": offset, "size": 6}, **AS_ADA))

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(0, 30, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(key for page in pages.values() for key in page) == sorted(expected[:30])


def test_two_sessions_of_a_user_do_not_affect_each_other(elasticsearch_url, proxy, base):
    body = {"query": COAT, "size": 7}
    first = call(proxy, f"/{base}-a/_search", body, **AS_ADA)
    other = AS_ADA | {"X_Bespeak_Session": "another"}
    assert call(proxy, f"/{base}-a/_search", body, **other).outcome["query_id"] != first.outcome["query_id"]
    second = call(proxy, f"/{base}-a/_search", body | {"from": 7}, **AS_ADA)
    assert second.outcome["query_id"] == first.outcome["query_id"]
    assert not set(keys(first)) & set(keys(second))


@pytest.mark.parametrize("knn", [{}, {"num_candidates": 50}])
def test_a_knn_without_a_number_of_hits_finds_no_more(elasticsearch_url, proxy, index_name, knn):
    vector = {"type": "dense_vector", "dims": 2, "index": True, "similarity": "l2_norm"}
    make(elasticsearch_url, index_name, properties={"vec": vector})
    put(elasticsearch_url, index_name, {f"d{n}": {"text": "coat", "vec": [n, 1]} for n in range(40)})
    near = {"field": "vec", "query_vector": [3, 1], **knn}
    for body in (
        {"query": COAT, "knn": near, "size": 5},
        {"query": {"bool": {"must": [COAT, {"knn": near}]}}, "size": 5},
        {"query": {"bool": {"must": [COAT, {"knn": near}]}}, "size": 5, "from": 5},
    ):
        ours, own = (call(url, f"/{index_name}/_search", body, **AS_ADA) for url in (proxy, elasticsearch_url))
        assert ours.json["hits"]["total"] == own.json["hits"]["total"]
        assert sorted(keys(ours)) == sorted(keys(own))
        assert "failed" not in ours.outcome["rerank"]


SILK_LAST = {"rescore_query": {"match": {"text": "coat"}}, "score_mode": "multiply", "rescore_query_weight": 0.01}


@pytest.mark.parametrize("size", [1, 4, 9, 20])
@pytest.mark.parametrize(
    "more", [{"terminate_after": 3}, {"terminate_after": 10, "track_total_hits": False},
             {"rescore": {"window_size": 6, "query": SILK_LAST}}]
)  # fmt: skip
def test_a_search_whose_hits_depend_on_how_many_are_asked(elasticsearch_url, proxy, base, more, size):
    body = {"query": {"match": {"text": "linen coat"}}, "size": size, **more}
    for place in (f"{base}-a", f"{base}-b"):
        ours, own = (call(url, f"/{place}/_search", body, **AS_ADA) for url in (proxy, elasticsearch_url))
        assert ours.outcome["rerank"] == "full"
        if "rescore" not in more or size >= 6:  # within its window the rescorer's first hits may change places
            assert sorted(keys(ours)) == sorted(keys(own))
        assert ours.json["hits"].get("total") == own.json["hits"].get("total")
        assert ours.json["hits"]["max_score"] == own.json["hits"]["max_score"]
        assert ours.json.get("terminated_early") == own.json.get("terminated_early")


@pytest.mark.parametrize("size", [3, 10, 4])
def test_a_result_window_that_is_smaller_than_ours(elasticsearch_url, proxy, index_name, size):
    make(elasticsearch_url, index_name, settings_={"max_result_window": 10})
    put(elasticsearch_url, index_name, {f"d{n}": {"text": "coat"} for n in range(40)})
    for page in ({"size": size}, {"from": 6, "size": size}):
        ours, own = (
            call(url, f"/{index_name}/_search", {"query": COAT} | page, **AS_ADA) for url in (proxy, elasticsearch_url)
        )
        assert (ours.status, ours.same()) == (own.status, own.same())
        assert ours.outcome["reason"] == "engine_refused"


def test_a_size_beyond_the_result_window_is_refused_by_the_engine(elasticsearch_url, proxy, base):
    body = {"query": COAT, "size": 10_001}
    ours, own = (call(url, f"/{base}-a/_search", body, **AS_ADA) for url in (proxy, elasticsearch_url))
    assert ours.status == own.status == 400
    assert ours.same() == own.same()


# Kept vectors of documents.

LINEN_FIRST = {"query": {"match": {"text": "scarf"}}, "size": 4, "ext": {"bespeak": {"explain": True}}}


def embedding_scores(answer):
    return {hit["_id"]: hit["scores"]["embedding"] for hit in answer.json["bespeak"]["hits"]}


def test_a_changed_document_is_embedded_again(elasticsearch_url, fresh, index_name):
    make(elasticsearch_url, index_name)
    put(elasticsearch_url, index_name, {"a": {"text": "scarf silk"}, "b": {"text": "scarf leather"}})
    before = embedding_scores(call(fresh, f"/{index_name}/_search", LINEN_FIRST, **AS_ADA))
    put(elasticsearch_url, index_name, {"b": {"text": "scarf silk"}, "a": {"text": "scarf leather"}})
    after = embedding_scores(call(fresh, f"/{index_name}/_search", LINEN_FIRST, **AS_ADA))
    assert before["a"] != before["b"]
    assert (after["a"], after["b"]) == (before["b"], before["a"])


def test_documents_without_text_and_without_source(elasticsearch_url, proxy, index_name):
    make(elasticsearch_url, index_name, properties={"kind": {"type": "keyword"}})
    put(elasticsearch_url, index_name, {f"d{n}": {"kind": "coat", "n": n} for n in range(5)})
    bare = f"{index_name}-bare"
    make(elasticsearch_url, bare, _source={"enabled": False}, properties={"text": {"type": "text"}})
    put(elasticsearch_url, bare, {f"d{n}": {"text": "coat " * (n + 1)} for n in range(5)})
    either = {"multi_match": {"query": "coat", "fields": ["kind", "text"]}}
    asked = {index_name: {"match": {"kind": "coat"}}, bare: COAT, f"{index_name},{bare}": either}
    for place, query in asked.items():
        body = {"query": query}
        ours, own = (call(url, f"/{place}/_search", body, **AS_ADA) for url in (proxy, elasticsearch_url))
        assert ours.outcome == {**ours.outcome, "rerank": "full"}
        assert sorted(keys(ours)) == sorted(keys(own))


ODD_IDS = ["a/b", "a,b", "ä ö", "日本", "🙂", "x" * 512, "é" * 256, '"quoted"', "back\\slash", "*", "a b", "%2F", "..",
           "\u0001", "\x7f", "line\nbreak", "-1", "null", "_id"]  # fmt: skip


def test_unusual_ids_work(elasticsearch_url, proxy, index_name):
    make(elasticsearch_url, index_name)
    odd = {doc_id: {"text": f"coat {'silk ' * (n % 3)}", "title": "\ud800 lone"} for n, doc_id in enumerate(ODD_IDS)}
    put(elasticsearch_url, index_name, odd)
    body = {"query": COAT, "size": WINDOW, "_source": ["text"]}
    for _ in range(2):  # made, then kept
        ours, own = (call(url, f"/{index_name}/_search", body, **AS_ADA) for url in (proxy, elasticsearch_url))
        assert ours.outcome["rerank"] == "full"
        assert sorted(ours.ids) == sorted(own.ids) == sorted(ODD_IDS)
    pages = [call(proxy, f"/{index_name}/_search", body | {"from": n, "size": 5}, **AS_ADA) for n in range(0, 20, 5)]
    assert sorted(i for page in pages for i in page.ids) == sorted(ODD_IDS)


ODD_SOURCES = [
    b'{"text":"coat","n":123456789012345678901234567890}', b'{"text":"coat silk","n":-0.0,"m":1E+5,"o":1.50}',
    b'{"text":"coat","s":"\\ud800 \\u0000 \\u001f"}', 
    b'{ "text" : "coat" ,\n"deep":[[[]],{}] }', '{"text":"coat","ü":"日本 \u2028"}'.encode(),
    b'{"text":"coat","_score":7,"hits":{"hits":[1]}}', b'{"text":"coat","n":1e400}',
]  # fmt: skip


def test_documents_arrive_byte_for_byte(elasticsearch_url, proxy, index_name):
    make(elasticsearch_url, index_name, dynamic=False, properties={"text": {"type": "text"}})
    for n, source in enumerate(ODD_SOURCES):
        assert call(elasticsearch_url, f"/{index_name}/_doc/d{n}?refresh=true", source, "PUT").status == 201
    for path in ("_search", "_search?filter_path=hits.hits._source,hits.hits._id"):
        ours, own = (
            call(url, f"/{index_name}/{path}", {"query": COAT, "size": WINDOW}, **AS_ADA)
            for url in (proxy, elasticsearch_url)
        )
        if "filter_path" in path:
            assert {str(hit) for hit in ours.json["hits"]["hits"]} == {str(hit) for hit in own.json["hits"]["hits"]}
        else:
            assert ours.outcome["rerank"] == "full"
            for source in ODD_SOURCES:
                assert (source in ours.body) == (source in own.body)


def test_lone_surrogates_in_titles_cost_no_other_events(elasticsearch_url, index_name, tmp_path):
    make(elasticsearch_url, index_name)
    put(elasticsearch_url, index_name, {"d1": {"text": "coat", "title": "half \ud800"}, "d2": {"text": "coat silk"}})
    with personal_proxy(elasticsearch_url, tmp_path / "p") as (url, _):
        first = call(url, f"/{index_name}/_search", {"query": COAT}, **AS_ADA)
        lines = call(url, "/_bespeak/profile/ada").body.decode().splitlines()
        mine = [line for line in lines if json.loads(line).get("query_id") == first.outcome["query_id"]]
        assert len(mine) == 3


def test_an_index_made_again_under_its_old_name_is_embedded_again(elasticsearch_url, index_name, tmp_path):
    """Ids and versions are the same, but texts differ: vectors of the old texts must not be used."""
    with personal_proxy(elasticsearch_url, tmp_path / "p") as (url, _):
        make(elasticsearch_url, index_name)
        put(elasticsearch_url, index_name, {"a": {"text": "scarf silk"}, "b": {"text": "scarf leather"}})
        before = embedding_scores(call(url, f"/{index_name}/_search", LINEN_FIRST, **AS_ADA))
        assert call(elasticsearch_url, f"/{index_name}", method="DELETE").status == 200
        make(elasticsearch_url, index_name)
        put(elasticsearch_url, index_name, {"a": {"text": "scarf leather"}, "b": {"text": "scarf silk"}})
    # Later, or another proxy, with the same file of vectors.
    with personal_proxy(elasticsearch_url, tmp_path / "p") as (url, _):
        after = embedding_scores(call(url, f"/{index_name}/_search", LINEN_FIRST, **AS_ADA))
    assert (after["a"], after["b"]) == (before["b"], before["a"])


@pytest.mark.parametrize("maker", ["bag", "another"])
def test_vectors_of_the_index_itself(elasticsearch_url, fresh, index_name, maker):
    """Vectors of the same encoder are used, others are not. Here each says that the document is of silk."""
    encoder, engine = BagEncoder(name=maker), ElasticsearchEngine(elasticsearch_url)
    texts = {"a": "scarf leather", "b": "scarf silk", "c": "scarf wool"}
    silk = encoder.encode(["scarf silk"])[0]
    leather = encoder.encode(["scarf leather"])[0]
    engine.create(index_name, ["text"], encoder.dim, encoder.name)
    vectors = {"a": silk, "b": leather, "c": None}
    engine.load(index_name, [Document(i, {"text": text}, vectors[i]) for i, text in texts.items()])
    engine.refresh(index_name)
    engine.close()
    own = call(elasticsearch_url, f"/{index_name}/_search", LINEN_FIRST | {"ext": {}})
    ours = call(fresh, f"/{index_name}/_search", LINEN_FIRST, **AS_ADA)
    scores = embedding_scores(ours)
    assert ours.outcome["rerank"] == "full"
    assert (scores["a"] > scores["b"]) == (maker == "bag")
    for answer in (ours, own):
        assert all(VECTOR_FIELD not in hit.get("fields", {}) for hit in answer.json["hits"]["hits"])
    sources = ({hit["_id"]: hit["_source"] for hit in answer.json["hits"]["hits"]} for answer in (ours, own))
    assert next(sources) == next(sources)


def test_hits_found_through_an_alias_are_fetched_through_it(elasticsearch_url, proxy, base, index_name):
    """Bespeak's own requests do not contain what its filter hides."""
    alias = {"actions": [{"add": {"index": f"{base}-a", "alias": index_name, "filter": {"term": {"stuff": "silk"}}}}]}
    assert call(elasticsearch_url, "/_aliases", alias).status == 200
    ours, own = (
        call(url, f"/{index_name}/_search", {"query": COAT, "size": WINDOW}, **AS_ADA)
        for url in (proxy, elasticsearch_url)
    )
    remove = {"actions": [{"remove": {"index": f"{base}-a", "alias": index_name}}]}
    assert call(elasticsearch_url, "/_aliases", remove).status == 200
    assert ours.outcome["rerank"] == "full"
    assert sorted(keys(ours)) == sorted(keys(own))
    assert ours.json["hits"]["total"] == own.json["hits"]["total"]
