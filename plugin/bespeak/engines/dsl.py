"""Elasticsearch's query DSL: pure functions that turn records into request bodies, and answers into records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from bespeak.engines import KEYWORD_CHARS, VECTOR_FIELD, IndexInfo
from bespeak.records import Clause, Document, EngineQuery, Hit
from bespeak.settings import MAX_WINDOW

TEXT_TYPES = ("text", "match_only_text")
KEYWORD_TYPES = ("keyword", "constant_keyword", "wildcard")


def index_body(fields: Sequence[str], dim: int | None, encoder: str | None) -> dict[str, Any]:
    """Settings and mapping of a new index: the fields with the analyzer `english`, all other strings as keywords."""
    keyword = {"type": "keyword", "ignore_above": KEYWORD_CHARS}
    text = {"type": "text", "analyzer": "english", "fields": {"keyword": keyword}}
    properties: dict[str, Any] = dict.fromkeys(fields, text)
    if dim:
        properties[VECTOR_FIELD] = {
            "type": "dense_vector",
            "dims": dim,
            "index": True,
            "similarity": "cosine",
            "index_options": {"type": "hnsw"},  # not quantised, so that both engines find the same neighbours
        }
    return {
        "settings": {"index": {"auto_expand_replicas": "0-1", "mapping": {"ignore_malformed": True}}},
        "mappings": {
            "_meta": {"bespeak": {"fields": list(fields), "encoder": encoder}},
            "date_detection": False,
            "dynamic_templates": [{"strings": {"match_mapping_type": "string", "mapping": keyword}}],
            "properties": properties,
        },
    }


def lexical_body(query: EngineQuery, info: IndexInfo, keywords: Mapping[str, str]) -> dict[str, Any]:
    """The search for the first `size` documents by BM25 and one more, to see whether scores tie at the border."""
    required = [clause_query(clause, info.fields) for clause in query.required]
    optional = [clause_query(clause, info.fields) for clause in query.optional]
    clauses: dict[str, Any] = {"filter": filters(query, keywords)}
    if query.recall or not required:
        clauses |= {"should": required + optional, "minimum_should_match": 1}
    else:
        clauses |= {"must": required, "should": optional}
    if not required and not optional:
        clauses = {"must_not": [{"match_all": {}}]}
    size = min(query.size + 1, MAX_WINDOW)
    return {"query": {"bool": clauses}, "size": size, "track_total_hits": True, **parts_to_send(info)}


def border_body(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same search for the ids and scores of as many hits as possible."""
    return ids_of(body) | {"size": MAX_WINDOW}


def ids_of(body: Mapping[str, Any]) -> dict[str, Any]:
    """The same search for ids and scores alone."""
    left = {name: value for name, value in body.items() if name not in ("fields", "_source")}
    return left | {"_source": False, "track_total_hits": False}


def clause_query(clause: Clause, fields: Sequence[str]) -> dict[str, Any]:
    """The query for the sum over the fields of the clause's BM25 score, times its weight."""
    match = {"query": clause.text, "type": "most_fields", "fields": list(fields), "boost": clause.weight}
    return {"multi_match": match} if clause.text.strip() and fields else {"match_none": {}}


def nearest_body(query: EngineQuery, info: IndexInfo, keywords: Mapping[str, str]) -> dict[str, Any]:
    """The search for the `size` documents nearest to the query's vector."""
    assert query.vector is not None
    size = min(query.size, MAX_WINDOW)
    knn = {
        "field": VECTOR_FIELD,
        "query_vector": query.vector.tolist(),
        "k": size,
        "num_candidates": min(max(3 * size, 500), MAX_WINDOW),
        "filter": filters(query, keywords),
    }
    return {"knn": knn, "size": size, **parts_to_send(info)}


def ids_body(doc_ids: Sequence[str], info: IndexInfo) -> dict[str, Any]:
    return {"query": {"ids": {"values": list(doc_ids)}}, "size": len(doc_ids), **parts_to_send(info)}


def filters(query: EngineQuery, keywords: Mapping[str, str]) -> list[dict[str, Any]]:
    """The filters of the query. `keywords` maps a text field to the keyword field that holds its exact value."""
    found = [{"term": {keywords.get(path, path): {"value": value}}} for path, value in query.filters.items()]
    return [*found, *([{"ids": {"values": list(query.among)}}] if query.among else [])]


def parts_to_send(info: IndexInfo) -> dict[str, Any]:
    """Asks for the source of each hit without the vector, and for the vector on its own."""
    if info.dim is None:
        return {}
    return {"_source": {"excludes": [VECTOR_FIELD]}, "fields": [VECTOR_FIELD]}


def index_action(document: Document) -> dict[str, Any]:
    """The action of a bulk request that adds or replaces the document."""
    source = dict(document.source)
    if document.vector is not None:
        source[VECTOR_FIELD] = document.vector.tolist()
    return {"_op_type": "index", "_id": document.doc_id, "_source": source}


def read_document(hit: Mapping[str, Any]) -> Document:
    vector = hit.get("fields", {}).get(VECTOR_FIELD)
    return Document(hit["_id"], hit.get("_source") or {}, None if vector is None else np.array(vector, np.float32))


def read_hit(hit: Mapping[str, Any], rank: int, score: float) -> Hit:
    document = read_document(hit)
    return Hit(document.doc_id, score, rank, document.source, document.vector)


def in_order(hits: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """The hits by score, then doc_id."""
    return sorted(hits, key=lambda hit: (-hit["_score"], hit["_id"]))


def read_mapping(index: str, answer: Mapping[str, Any], n_docs: int) -> tuple[IndexInfo, dict[str, str]]:
    """The contents of an index or alias, and a map from each text field to its keyword field, if it has one.

    The fields are those that `bespeak index` recorded, or else every text field of the mapping without
    sub-fields, nested objects and fields that are not indexed.
    """
    mappings = [part["mappings"] for part in answer.values()]
    described: Mapping[str, Any] = next(
        (m["_meta"]["bespeak"] for m in mappings if "bespeak" in m.get("_meta", {})), {}
    )
    found = dict(field for mapping in mappings for field in leaves(mapping.get("properties", {})))
    text = {path: kind for path, kind in found.items() if kind["type"] in TEXT_TYPES and kind.get("index", True)}
    fields = tuple(field for field in described.get("fields", text) if field in text)
    dims = {vector_dim(mapping.get("properties", {}).get(VECTOR_FIELD, {})) for mapping in mappings}
    dim = dims.pop() if len(dims) == 1 else None
    keywords = {path: f"{path}.{sub}" for path, kind in text.items() if (sub := _keyword(kind)) is not None}
    return IndexInfo(index, fields, n_docs, dim, described.get("encoder")), keywords


def vector_dim(kind: Mapping[str, Any]) -> int | None:
    """The dimensions of a vector field; None if it holds no searchable vectors."""
    return kind.get("dims") if kind.get("type") == "dense_vector" and kind.get("index", True) else None


def leaves(properties: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The fields of a mapping with their full names, also those in objects but not those in nested objects."""
    for name, kind in properties.items():
        if "properties" in kind and kind.get("type", "object") == "object":
            yield from leaves(kind["properties"], f"{prefix}{name}.")
        elif "type" in kind:
            yield prefix + name, kind


def _keyword(kind: Mapping[str, Any]) -> str | None:
    return next((name for name, sub in kind.get("fields", {}).items() if sub.get("type") in KEYWORD_TYPES), None)
