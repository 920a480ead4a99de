"""Bodies for Elasticsearch, and mappings read back."""

from dataclasses import replace

import numpy as np

from bespeak.engines import VECTOR_FIELD, IndexInfo, dsl
from bespeak.records import Clause, Document, EngineQuery

INFO = IndexInfo("i", ("title", "text"), 3, 2, "e")


def test_a_clause_is_summed_over_the_fields():
    assert dsl.clause_query(Clause("red hat", 0.5), ("a", "b")) == {
        "multi_match": {"query": "red hat", "type": "most_fields", "fields": ["a", "b"], "boost": 0.5}
    }


def test_required_must_and_optional_should():
    query = EngineQuery("i", (Clause("a"),), (Clause("b"),), size=7)
    body = dsl.lexical_body(query, INFO, {})
    assert body["query"]["bool"] == {
        "filter": [],
        "must": [dsl.clause_query(Clause("a"), INFO.fields)],
        "should": [dsl.clause_query(Clause("b"), INFO.fields)],
    }
    assert body["size"] == 8
    assert body["_source"] == {"excludes": [VECTOR_FIELD]}


def test_recall_takes_any_clause():
    body = dsl.lexical_body(EngineQuery("i", (Clause("a"),), (Clause("b"),), recall=True), INFO, {})
    assert "must" not in body["query"]["bool"]
    assert body["query"]["bool"]["minimum_should_match"] == 1
    assert len(body["query"]["bool"]["should"]) == 2


def test_a_clause_of_no_text_matches_nothing():
    assert dsl.clause_query(Clause("  "), ("a",)) == dsl.clause_query(Clause("a"), ()) == {"match_none": {}}


def test_sizes_stay_within_what_elasticsearch_gives():
    query = EngineQuery("i", (Clause("a"),), vector=np.ones(2, np.float32), size=50_000)
    assert dsl.lexical_body(query, INFO, {})["size"] == 10_000
    near = dsl.nearest_body(query, INFO, {})["knn"]
    assert (near["k"], near["num_candidates"]) == (10_000, 10_000)


def test_a_filter_takes_the_keyword_beside_a_text():
    asked = EngineQuery("i", (), filters={"a": "x", "b": "y"})
    terms = [{"term": {"a.raw": {"value": "x"}}}, {"term": {"b": {"value": "y"}}}]
    assert dsl.filters(asked, {"a": "a.raw"}) == terms
    assert dsl.filters(replace(asked, among=("d1", "d2")), {"a": "a.raw"}) == [
        *terms,
        {"ids": {"values": ["d1", "d2"]}},
    ]


def test_the_border_is_asked_for_without_sources():
    body = dsl.lexical_body(EngineQuery("i", (Clause("a"),)), INFO, {})
    border = dsl.border_body(body)
    assert (border["query"], border["size"], border["_source"]) == (body["query"], 10_000, False)
    assert "fields" not in border
    assert body["size"] == 101


def test_a_document_and_its_hit():
    document = Document("x", {"text": "a"}, np.array([0.6, 0.8], np.float32))
    action = dsl.index_action(document)
    assert action["_id"] == "x"
    assert VECTOR_FIELD in action["_source"]
    assert VECTOR_FIELD not in document.source
    hit = dsl.read_hit({"_id": "x", "_source": {"text": "a"}, "fields": {VECTOR_FIELD: [0.6, 0.8]}}, 3, 1.5)
    assert (hit.doc_id, hit.rank, hit.score, hit.source) == ("x", 3, 1.5, {"text": "a"})
    assert hit.vector.dtype == np.float32
    assert dsl.read_document({"_id": "x"}) == Document("x", {}, None)


def test_what_is_made_is_read_back():
    body = dsl.index_body(("text", "title"), 4, "bag")
    info, keywords = dsl.read_mapping("i", {"i": {"mappings": body["mappings"]}}, 9)
    assert info == IndexInfo("i", ("text", "title"), 9, 4, "bag")
    assert keywords == {"text": "text.keyword", "title": "title.keyword"}


def test_a_foreign_mapping_is_read():
    properties = {
        "name": {"type": "text", "fields": {"raw": {"type": "keyword"}, "en": {"type": "text"}}},
        "code": {"type": "keyword"},
        "made": {"properties": {"by": {"type": "text"}, "on": {"type": "date"}}},
        "parts": {"type": "nested", "properties": {"name": {"type": "text"}}},
        "hidden": {"type": "text", "index": False},
        VECTOR_FIELD: {"type": "dense_vector", "dims": 3, "index": False},
    }
    info, keywords = dsl.read_mapping("i", {"i": {"mappings": {"properties": properties}}}, 0)
    assert info == IndexInfo("i", ("name", "made.by"), 0, None, None)
    assert keywords == {"name": "name.raw"}


def test_an_alias_over_indices_with_different_vectors_has_none():
    one, two = dsl.index_body(("a",), 4, "e"), dsl.index_body(("b",), 8, "e")
    info, _ = dsl.read_mapping("x", {"i": {"mappings": one["mappings"]}, "j": {"mappings": two["mappings"]}}, 0)
    assert info.dim is None
