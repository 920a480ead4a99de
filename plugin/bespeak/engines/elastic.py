"""Documents in Elasticsearch 8 and 9."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

from bespeak.engines import (
    IndexInfo,
    RejectedDocument,
    check_index_name,
    dsl,
    index_differs,
    index_missing,
    refuse_id,
    require_fields,
    shorten,
)
from bespeak.engines.cluster import Cluster, reason_of
from bespeak.errors import EngineError, IndexMissing
from bespeak.records import Clause, Document, EngineQuery, Hit, Hits

BULK_DOCUMENTS = 500
BULK_BYTES = 8_000_000
SEARCHES_AT_ONCE = 64


class ElasticsearchEngine:
    """The indices of one cluster. Safe to use from several threads. Sends nothing before the first call."""

    name = "elasticsearch"

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        basic: tuple[str, str] | None = None,
        ca_file: Path | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        self._cluster = Cluster(url, api_key, basic, ca_file, timeout_s)
        self._client = self._cluster.client
        self.url = self.location = self._cluster.url
        self._mappings: dict[str, tuple[IndexInfo, dict[str, str]]] = {}

    def search(self, query: EngineQuery) -> Hits:
        began = time.perf_counter()
        info, keywords = self._mapping(query.index)
        lexical = dsl.lexical_body(shorten(query, len(info.fields)), info, keywords)
        bodies = [lexical]
        if query.recall and query.vector is not None and info.dim is not None:
            bodies.append(dsl.nearest_body(query, info, keywords))
        answers = self._ask(query.index, bodies)
        ranked = self._top_hits(query, lexical, answers[0]["hits"]["hits"])
        found = {hit.doc_id for hit in ranked}
        near = [hit for answer in answers[1:] for hit in answer["hits"]["hits"] if hit["_id"] not in found]
        ranked += [dsl.read_hit(hit, rank, 0.0) for rank, hit in enumerate(dsl.in_order(near), len(ranked) + 1)]
        total = answers[0]["hits"]["total"]["value"]
        return Hits(tuple(ranked), total, (time.perf_counter() - began) * 1000)

    def find(self, index: str, texts: Sequence[str], size: int) -> list[tuple[str, ...]]:
        info, keywords = self._mapping(index)
        queries = [EngineQuery(index, (Clause(text),), size=size) for text in texts]
        bodies = [dsl.ids_of(dsl.lexical_body(shorten(q, len(info.fields)), info, keywords)) for q in queries]
        found = []
        for start in range(0, len(queries), SEARCHES_AT_ONCE):
            some = slice(start, start + SEARCHES_AT_ONCE)
            for query, body, answer in zip(queries[some], bodies[some], self._ask(index, bodies[some]), strict=True):
                found.append(tuple(hit.doc_id for hit in self._top_hits(query, body, answer["hits"]["hits"])))
        return found

    def _top_hits(self, query: EngineQuery, body: Mapping[str, Any], hits: Sequence[Mapping[str, Any]]) -> list[Hit]:
        """The first `size` hits by score, then doc_id. If scores tie at that border, all the tied documents compete."""
        size = query.size
        if len(hits) <= size or hits[size - 1]["_score"] != hits[size]["_score"]:
            chosen = dsl.in_order(hits)[:size]
            return [dsl.read_hit(hit, rank, hit["_score"]) for rank, hit in enumerate(chosen, 1)]
        candidates = self._ask(query.index, [dsl.border_body(body)])[0]["hits"]["hits"]
        chosen = dsl.in_order(candidates)[:size]
        documents = {hit["_id"]: dsl.read_document(hit) for hit in hits}
        absent = [hit["_id"] for hit in chosen if hit["_id"] not in documents]
        documents |= {document.doc_id: document for document in self.fetch(query.index, absent)}
        there = [(hit["_score"], documents[hit["_id"]]) for hit in chosen if hit["_id"] in documents]
        return [Hit(d.doc_id, score, rank, d.source, d.vector) for rank, (score, d) in enumerate(there, 1)]

    def fetch(self, index: str, doc_ids: Sequence[str]) -> list[Document]:
        if not doc_ids:
            return []
        info, _ = self._mapping(index)
        chunks = [doc_ids[start : start + 1000] for start in range(0, len(doc_ids), 1000)]
        answers = self._ask(index, [dsl.ids_body(chunk, info) for chunk in chunks])
        found = {hit["_id"]: dsl.read_document(hit) for answer in answers for hit in answer["hits"]["hits"]}
        return [found[doc_id] for doc_id in doc_ids if doc_id in found]

    def create(self, index: str, fields: Sequence[str], dim: int | None, encoder: str | None) -> None:
        check_index_name(index)
        require_fields(index, fields)
        self._mappings.pop(index, None)
        try:
            info = self.describe(index)
        except IndexMissing:
            with self._engine_errors(index):
                self._client.indices.create(index=index, **dsl.index_body(fields, dim, encoder))
            return
        wanted, existing = (tuple(fields), dim, encoder), (info.fields, info.dim, info.encoder)
        if wanted != existing:
            raise index_differs(index, existing, wanted)

    def load(self, index: str, documents: Sequence[Document]) -> list[RejectedDocument]:
        from elasticsearch.helpers import streaming_bulk

        rejected = [RejectedDocument(d.doc_id, reason) for d in documents if (reason := refuse_id(d.doc_id))]
        documents = [
            document for document in documents if not refuse_id(document.doc_id)
        ]  # one such id fails the whole request
        with self._engine_errors(index):
            answers = streaming_bulk(
                self._client.options(request_timeout=max(self._cluster.timeout_s, 60.0)),
                (dsl.index_action(document) for document in documents),
                index=index,
                chunk_size=BULK_DOCUMENTS,
                max_chunk_bytes=BULK_BYTES,
                max_retries=3,
                initial_backoff=0.5,
                max_backoff=5,
                raise_on_error=False,
                require_alias=False,
            )
            for document, (taken, answer) in zip(documents, answers, strict=True):
                if not taken:
                    rejected.append(RejectedDocument(document.doc_id, reason_of(answer["index"].get("error"))))
        return rejected

    def refresh(self, index: str) -> None:
        with self._engine_errors(index):
            self._client.indices.refresh(index=index)

    def describe(self, index: str) -> IndexInfo:
        with self._engine_errors(index):
            mapping = self._client.indices.get_mapping(index=index).body
            n_docs = self._client.count(index=index)["count"]
        if not mapping:
            raise index_missing(index, self.indices())
        self._mappings[index] = dsl.read_mapping(index, mapping, n_docs)
        return self._mappings[index][0]

    def indices(self) -> list[str]:
        with self._engine_errors():
            found = self._client.indices.get_alias(index="*", expand_wildcards="open")
        names = {name for index, part in found.items() for name in (index, *part["aliases"])}
        return sorted(name for name in names if not name.startswith("."))

    def drop(self, index: str) -> None:
        check_index_name(index)
        self._mappings.pop(index, None)
        with self._engine_errors(index):
            self._client.indices.delete(index=index)

    def close(self) -> None:
        self._cluster.close()

    def _mapping(self, index: str) -> tuple[IndexInfo, dict[str, str]]:
        if index not in self._mappings:
            self.describe(index)
        return self._mappings[index]

    def _ask(self, index: str, bodies: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The answers to several searches, sent in one request."""
        searches = [part for body in bodies for part in ({"index": index}, body)]
        with self._engine_errors(index):
            answers: list[Mapping[str, Any]] = self._client.msearch(searches=searches)["responses"]
        for answer in answers:
            if "error" in answer:
                raise self._cluster.refused(answer["status"], answer, partial(self._missing, index))
        return answers

    def _engine_errors(self, index: str | None = None) -> AbstractContextManager[None]:
        return self._cluster.engine_errors(None if index is None else partial(self._missing, index))

    def _missing(self, index: str) -> EngineError:
        self._mappings.pop(index, None)
        return index_missing(index, self._names())

    def _names(self) -> list[str]:
        try:
            return self.indices()
        except EngineError:
            return []
