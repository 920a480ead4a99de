"""Elasticsearch 8 and 9 through the official client; every fault becomes one sentence that holds no credential."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from bespeak import dsl
from bespeak.engines import (
    IndexInfo,
    Rejected,
    check_index_name,
    different,
    index_missing,
    refuse_id,
    shorten,
)
from bespeak.errors import EngineError, EngineRefused, EngineUnreachable, IndexMissing, UsageError
from bespeak.records import Document, EngineQuery, Hit, Hits

BULK_DOCUMENTS = 500
BULK_BYTES = 8_000_000


class ElasticsearchEngine:
    """One cluster. May be used from several threads. Nothing is asked of it before the first call."""

    name = "elasticsearch"

    def __init__(
        self,
        url: str,
        api_key: str | None = None,
        basic: tuple[str, str] | None = None,
        ca_file: Path | None = None,
        timeout_s: float = 30.0,
    ) -> None:
        from elasticsearch import Elasticsearch

        self.url, in_url = read_url(url)
        self.location = self.url
        basic = basic or in_url
        if api_key and basic:
            raise UsageError("give Elasticsearch an API key or a user with a password, not both")
        self._timeout_s, self._knows_who = timeout_s, bool(api_key or basic)
        options: dict[str, Any] = {"api_key": api_key, "basic_auth": basic}
        if ca_file is not None:
            options["ca_certs"] = str(ca_file)
        with self._told():
            self._client = Elasticsearch(
                self.url,
                request_timeout=timeout_s,
                max_retries=1,
                retry_on_timeout=False,
                **{name: value for name, value in options.items() if value},
            )
        self._read: dict[str, tuple[IndexInfo, dict[str, str]]] = {}

    def search(self, query: EngineQuery) -> Hits:
        began = time.perf_counter()
        info, keywords = self._mapping(query.index)
        lexical = dsl.lexical_body(shorten(query, len(info.fields)), info, keywords)
        bodies = [lexical]
        if query.recall and query.vector is not None and info.dim is not None:
            bodies.append(dsl.nearest_body(query, info, keywords))
        answers = self._ask(query.index, bodies)
        ranked = self._first(query, lexical, answers[0]["hits"]["hits"])
        found = {hit.doc_id for hit in ranked}
        near = [hit for answer in answers[1:] for hit in answer["hits"]["hits"] if hit["_id"] not in found]
        ranked += [dsl.read_hit(hit, rank, 0.0) for rank, hit in enumerate(dsl.in_order(near), len(ranked) + 1)]
        total = answers[0]["hits"]["total"]["value"]
        return Hits(tuple(ranked), total, (time.perf_counter() - began) * 1000)

    def _first(self, query: EngineQuery, body: Mapping[str, Any], hits: Sequence[Mapping[str, Any]]) -> list[Hit]:
        """The first `size` by score, then doc_id. Where scores tie across the border, all that tie are looked at."""
        size = query.size
        if len(hits) <= size or hits[size - 1]["_score"] != hits[size]["_score"]:
            chosen = dsl.in_order(hits)[:size]
            return [dsl.read_hit(hit, rank, hit["_score"]) for rank, hit in enumerate(chosen, 1)]
        everyone = self._ask(query.index, [dsl.border_body(body)])[0]["hits"]["hits"]
        chosen = dsl.in_order(everyone)[:size]
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
        if not fields:
            raise UsageError(f"the index {index!r} needs at least one text field")
        self._read.pop(index, None)
        try:
            info = self.describe(index)
        except IndexMissing:
            with self._told(index):
                self._client.indices.create(index=index, **dsl.index_body(fields, dim, encoder))
            return
        asked, there = (tuple(fields), dim, encoder), (info.fields, info.dim, info.encoder)
        if asked != there:
            raise different(index, there, asked)

    def load(self, index: str, documents: Sequence[Document]) -> list[Rejected]:
        from elasticsearch.helpers import streaming_bulk

        rejected = [Rejected(d.doc_id, reason) for d in documents if (reason := refuse_id(d.doc_id))]
        documents = [document for document in documents if not refuse_id(document.doc_id)]  # one refuses all
        with self._told(index):
            answers = streaming_bulk(
                self._client.options(request_timeout=max(self._timeout_s, 60.0)),
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
                    rejected.append(Rejected(document.doc_id, _reason(answer["index"].get("error"))))
        return rejected

    def refresh(self, index: str) -> None:
        with self._told(index):
            self._client.indices.refresh(index=index)

    def describe(self, index: str) -> IndexInfo:
        with self._told(index):
            mapping = self._client.indices.get_mapping(index=index).body
            n_docs = self._client.count(index=index)["count"]
        if not mapping:
            raise index_missing(index, self.indices())
        self._read[index] = dsl.read_mapping(index, mapping, n_docs)
        return self._read[index][0]

    def indices(self) -> list[str]:
        with self._told():
            found = self._client.indices.get_alias(index="*", expand_wildcards="open")
        names = {name for index, part in found.items() for name in (index, *part["aliases"])}
        return sorted(name for name in names if not name.startswith("."))

    def drop(self, index: str) -> None:
        check_index_name(index)
        self._read.pop(index, None)
        with self._told(index):
            self._client.indices.delete(index=index)

    def close(self) -> None:
        self._client.close()

    def _mapping(self, index: str) -> tuple[IndexInfo, dict[str, str]]:
        if index not in self._read:
            self.describe(index)
        return self._read[index]

    def _ask(self, index: str, bodies: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
        """The answers to several searches, asked at once."""
        searches = [part for body in bodies for part in ({"index": index}, body)]
        with self._told(index):
            answers: list[Mapping[str, Any]] = self._client.msearch(searches=searches)["responses"]
        for answer in answers:
            if "error" in answer:
                raise self._refused(answer["status"], answer, index)
        return answers

    @contextmanager
    def _told(self, index: str | None = None) -> Iterator[None]:
        """Turns every fault of the client's into an EngineError."""
        import elastic_transport

        from elasticsearch import ApiError, UnsupportedProductError

        try:
            yield
        except UnsupportedProductError as error:
            raise self._not_elasticsearch() from error
        except ApiError as error:
            if "x-elastic-product" not in error.meta.headers and error.meta.status in (200, 400, 404, 405, 406, 415):
                raise self._not_elasticsearch() from error
            raise self._refused(error.meta.status, error.body, index) from error
        except elastic_transport.ConnectionTimeout as error:
            raise EngineUnreachable(
                f"Elasticsearch at {self.url} did not answer within {self._timeout_s:g} s: try again in a moment"
            ) from error
        except elastic_transport.TlsError as error:
            raise EngineUnreachable(
                f"no secure connection to {self.url} ({_cause(error)}): give the certificate of its authority, or"
                " http:// where it speaks no TLS"
            ) from error
        except elastic_transport.ConnectionError as error:
            raise EngineUnreachable(
                f"no answer from Elasticsearch at {self.url} ({_cause(error)}): is it running, and is the URL right?"
            ) from error
        except elastic_transport.SerializationError as error:
            raise self._not_elasticsearch() from error

    def _not_elasticsearch(self) -> EngineRefused:
        return EngineRefused(f"what answers at {self.url} is not Elasticsearch 8 or 9: check the URL and its port")

    def _refused(self, status: int, body: Any, index: str | None) -> EngineError:
        """The error for an answer that says no."""
        error = body.get("error") if isinstance(body, Mapping) else None
        reason = _reason(error)
        if status == 401:
            what = "refused the credentials" if self._knows_who else "wants credentials"
            return EngineRefused(f"Elasticsearch at {self.url} {what}: check the API key, or user and password")
        if status == 403:
            return EngineRefused(f"Elasticsearch at {self.url} does not allow these credentials to do this: {reason}")
        if status == 404 and index is not None:
            self._read.pop(index, None)
            return index_missing(index, self._names())
        if status in (429, 502, 503, 504):
            return EngineUnreachable(
                f"Elasticsearch at {self.url} is overloaded or not ready (status {status}): try again in a moment"
            )
        if 300 <= status < 400:
            return EngineRefused(f"{self.url} sends elsewhere (status {status}): give Elasticsearch's own URL")
        return EngineRefused(f"Elasticsearch at {self.url} refused (status {status}): {reason}")

    def _names(self) -> list[str]:
        try:
            return self.indices()
        except EngineError:
            return []


def read_url(url: str) -> tuple[str, tuple[str, str] | None]:
    """The URL with its port and without credentials; the credentials. Raises UsageError.

    >>> read_url("https://me:secret@search.example/")
    ('https://search.example:443', ('me', 'secret'))
    """
    try:
        parts = urlsplit(url)
        port = parts.port or {"http": 9200, "https": 443}[parts.scheme]
    except (ValueError, KeyError):
        parts, port = urlsplit(""), 0
    if not parts.hostname:
        raise UsageError("the URL of Elasticsearch must read like http://127.0.0.1:9200 or https://search.example")
    host = f"[{parts.hostname}]" if ":" in parts.hostname else parts.hostname
    who = (unquote(parts.username), unquote(parts.password or "")) if parts.username else None
    return f"{parts.scheme}://{host}:{port}{parts.path.rstrip('/')}", who


def _cause(error: Any) -> str:
    """The innermost message of a chain, without the objects' addresses that urllib3 puts before it."""
    while getattr(error, "errors", ()):
        error = error.errors[0]
    told = str(getattr(error, "reason", None) or error)
    return re.sub(r"^(<.*>|HTTPS?Connection(Pool)?\(.*?\)): |Failed to establish a new connection: ", "", told)[:200]


def _reason(error: Any) -> str:
    """Elasticsearch's own reason, the root's if it names one, on one line."""
    if isinstance(error, Mapping):
        inner = error.get("caused_by") or next(iter(error.get("root_cause", ())), None) or error
        while isinstance(inner.get("caused_by"), Mapping):
            inner = inner["caused_by"]
        error = inner.get("reason") or error.get("reason") or error.get("type")
    return " ".join(str(error or "it gave no reason").split())[:300]
