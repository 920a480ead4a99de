"""One index of the embedded engine: tantivy on disk, ranked as Elasticsearch ranks.

Documents are analysed here (`analysis.terms`) and indexed as words between spaces. tantivy's BM25 (k1 1.2, b 0.75)
differs from Elasticsearch's in one thing: a document without a field counts in that field's average length and idf,
which it does not in Lucene. So such a document gets as many padding words as the field has on average, and the number
of padded documents is taken out of each term's idf.
"""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from bespeak.document import text_of, value_at
from bespeak.engines import (
    KEYWORD_CHARS,
    IndexInfo,
    RejectedDocument,
    index_differs,
    refuse_id,
    shorten,
)
from bespeak.engines.nearest import Vectors, open_vectors
from bespeak.errors import EngineRefused
from bespeak.records import Clause, Document, EngineQuery, Hit, Hits, Vector
from bespeak.text.analysis import terms

PADDING = "-"
"""A word that the analyzer never produces."""

WRITER_BYTES = 64_000_000
DESCRIPTION = "bespeak.json"


@contextmanager
def engine_errors(what: str) -> Iterator[None]:
    """Raises EngineRefused, a sentence that begins with `what`, for any fault of the file system or of tantivy."""
    try:
        yield
    except OSError as error:
        raise EngineRefused(f"{what}: {error.strerror or error}; give a folder that can be written") from error
    except ValueError as error:
        if "LockBusy" in str(error):
            raise EngineRefused(f"{what}: another process is writing to it; let it end, then try again") from error
        if "acquire Lockfile" in str(error):
            raise EngineRefused(f"{what}: its lock file is not writable; give a writable folder") from error
        raise EngineRefused(f"{what}: {str(error)[:200]}; if it is damaged, drop it and load it again") from error
    except BaseException as error:
        if type(error).__name__ != "PanicException":  # not an Exception, and pyo3 exports no class for it
            raise
        raise EngineRefused(f"{what}: its files are damaged; drop it and load it again") from error


def make_index(folder: Path, fields: Sequence[str], dim: int | None, encoder: str | None) -> None:
    """Writes an empty index into a new folder."""
    import tantivy

    folder.mkdir(mode=0o700)
    (folder / "tantivy").mkdir()
    tantivy.Index(_schema(len(fields)), path=str(folder / "tantivy"))
    description = {"format": 1, "fields": list(fields), "dim": dim, "encoder": encoder}
    (folder / DESCRIPTION).write_text(json.dumps(description), "utf-8")


def _schema(n_fields: int) -> Any:
    """Field i of the index is stored as the text field `t<i>`; `n<i>` holds its number of words."""
    import tantivy

    schema = tantivy.SchemaBuilder()
    schema.add_text_field("id", stored=True, tokenizer_name="raw", index_option="basic")
    schema.add_text_field("keys", tokenizer_name="raw", index_option="basic")
    schema.add_bytes_field("source", stored=True)
    schema.add_bytes_field("vector", stored=True)
    for i in range(n_fields):
        schema.add_text_field(f"t{i}", tokenizer_name="whitespace", index_option="freq")
        schema.add_unsigned_field(f"n{i}", fast=True)
    return schema.build()


class TantivyIndex:
    """An open index: its searcher, its writer during a load, and its vectors once they are needed."""

    def __init__(self, folder: Path) -> None:
        import tantivy

        self.folder, self.name = folder, folder.name
        self._cannot_open = f"cannot open the index {self.name!r} in {folder.parent}"
        with engine_errors(self._cannot_open):
            described = json.loads((folder / DESCRIPTION).read_bytes())
            if not isinstance(described, dict) or described.get("format") != 1:
                raise ValueError("its description is of no known format")
            self.fields, self.dim, self.encoder = tuple(described["fields"]), described["dim"], described["encoder"]
            self._tantivy = tantivy.Index.open(str(folder / "tantivy"))
            self._tantivy.config_reader("manual")
        self._schema = self._tantivy.schema
        self._searcher: Any = None
        self._writer: Any = None
        self._read_version: tuple[int, int] | None = None
        self._vectors: tuple[str, Vectors] | None = None
        self._reload()

    def _reload(self) -> None:
        """Reads what any process has committed since the last call."""
        meta = self.folder / "tantivy" / "meta.json"
        with engine_errors(self._cannot_open):
            stat = meta.stat()
            if self._read_version == (stat.st_mtime_ns, stat.st_ino):
                return
            content = meta.read_bytes()
            self._tantivy.reload()
            self._searcher = self._tantivy.searcher()
            self._n_with_deleted = sum(segment["max_doc"] for segment in json.loads(content)["segments"])
        self._commit = hashlib.sha256(content).hexdigest()[:16]
        self._read_version = (stat.st_mtime_ns, stat.st_ino)

    def check_same(self, fields: Sequence[str], dim: int | None, encoder: str | None) -> None:
        wanted, existing = (tuple(fields), dim, encoder), (self.fields, self.dim, self.encoder)
        if wanted != existing:
            raise index_differs(self.name, existing, wanted)

    def describe(self) -> IndexInfo:
        self._reload()
        return IndexInfo(self.name, self.fields, self._searcher.num_docs, self.dim, self.encoder)

    def load(self, documents: Sequence[Document]) -> list[RejectedDocument]:
        taken, rejected = [], []
        for document in documents:
            texts = [text_of(value_at(document.source, field)) for field in self.fields]
            if reason := self._refuse(document, texts):
                rejected.append(RejectedDocument(document.doc_id, reason))
            else:
                taken.append((document, [terms(text or "") for text in texts]))
        if taken:
            with engine_errors(f"cannot write to the index {self.name!r} in {self.folder.parent}"):
                self._write(taken)
        return rejected

    def _refuse(self, document: Document, texts: Sequence[str | None]) -> str:
        """Why the index does not take a document, for the reasons that Elasticsearch has; "" if it does."""
        if reason := refuse_id(document.doc_id):
            return reason
        for field, text in zip(self.fields, texts, strict=True):
            if text is None:
                return f"its field {field!r} is not text"
        if document.vector is not None and document.vector.shape != (self.dim,):
            return f"its vector has the shape {document.vector.shape}, the index takes {self.dim} dimensions"
        return ""

    def _write(self, taken: Sequence[tuple[Document, list[list[str]]]]) -> None:
        if self._writer is None:
            self._writer = self._tantivy.writer(WRITER_BYTES, 1)
            self._reload()
            self._averages = [self._average(i) for i in range(len(self.fields))]
        for i, average in enumerate(self._averages):
            average.add(len(words[i]) for _, words in taken)
        for document, words in taken:
            self._writer.delete_documents_by_term("id", document.doc_id)
            self._writer.add_document(self._row(document, words))
        self._writer.commit()

    def _average(self, field: int) -> _Average:
        import tantivy

        if not self._searcher.num_docs:
            return _Average()
        every = tantivy.Query.all_query()
        totals = {"words": {"sum": {"field": f"n{field}"}}, "documents": {"value_count": {"field": f"n{field}"}}}
        found = self._searcher.aggregate(every, totals)
        return _Average(int(found["words"]["value"] or 0), int(found["documents"]["value"] or 0))

    def _row(self, document: Document, words: Sequence[Sequence[str]]) -> Any:
        import tantivy

        row = tantivy.Document()
        row.add_text("id", document.doc_id)
        row.add_bytes("source", json.dumps(document.source, ensure_ascii=False).encode())
        if document.vector is not None:
            row.add_bytes("vector", np.ascontiguousarray(document.vector, "<f4").tobytes())
        for key in keys_of(document.source):
            row.add_text("keys", key)
        for i, field in enumerate(words):
            if field:
                row.add_unsigned(f"n{i}", len(field))
            row.add_text(f"t{i}", " ".join(field or [PADDING] * self._averages[i].next()))
        return row

    def refresh(self) -> None:
        """Ends the load, so that others may write, and reads the vectors."""
        self.close()
        self._reload()
        if self.dim:
            self._matrix()

    def close(self) -> None:
        if self._writer is not None:
            writer, self._writer = self._writer, None
            with engine_errors(f"cannot write to the index {self.name!r} in {self.folder.parent}"):
                writer.wait_merging_threads()

    def search(self, query: EngineQuery) -> Hits:
        began = time.perf_counter()
        with engine_errors(f"cannot search the index {self.name!r} in {self.folder.parent}"):
            self._reload()
            ranked, total = self._lexical(shorten(query, len(self.fields)))
            if query.recall and query.vector is not None and self.dim:
                found = {doc_id for doc_id, _, _ in ranked}
                near = self._nearest(query.vector, query)
                ranked += [(doc_id, 0.0, row) for doc_id, row in near if doc_id not in found]
        hits = tuple(
            Hit(doc_id, score, rank, *_content(row)) for rank, (doc_id, score, row) in enumerate(ranked, start=1)
        )
        return Hits(hits, total, (time.perf_counter() - began) * 1000)

    def _lexical(self, query: EngineQuery) -> tuple[list[tuple[str, float, Any]], int]:
        """The first `size` matches by score, then doc_id, as (doc_id, score, row), and the number of matches."""
        tantivy_query = self._query(query)
        if tantivy_query is None:
            return [], 0
        limit = query.size + 1
        found = self._searcher.search(tantivy_query, limit)
        while len(found.hits) == limit and found.hits[-1][0] == found.hits[query.size - 1][0]:
            limit = min(4 * limit, self._searcher.num_docs + 1)  # ties beyond the first `size`: all of them compete
            found = self._searcher.search(tantivy_query, limit)
        rows = ((score, self._searcher.doc(address)) for score, address in found.hits)
        ranked = sorted(((row.get_first("id"), score, row) for score, row in rows), key=lambda hit: (-hit[1], hit[0]))
        return ranked[: query.size], found.count

    def _query(self, query: EngineQuery) -> Any:
        """The query for tantivy; None if nothing can match."""
        from tantivy import Occur, Query

        required = [self._clause(clause) for clause in query.required]
        optional = [clause for clause in map(self._clause, query.optional) if clause is not None]
        if query.recall or not required:
            any_of = [clause for clause in required if clause is not None] + optional
            parts = [(Occur.Should, clause) for clause in any_of]
        elif None in required:
            return None
        else:
            parts = [(Occur.Must, clause) for clause in required] + [(Occur.Should, clause) for clause in optional]
        if not parts:
            return None
        scored = Query.boolean_query(parts)
        filters = [
            (Occur.Must, Query.const_score_query(part, 0.0)) for part in self._filters(query.filters, query.among)
        ]
        return Query.boolean_query([(Occur.Must, scored), *filters]) if filters else scored

    def _clause(self, clause: Clause) -> Any:
        """The sum over fields and words of weight x BM25; None if the index holds none of the words."""
        from tantivy import Occur, Query

        counts = Counter(terms(clause.text))
        parts = []
        for i in range(len(self.fields)):
            n_docs = self._n_with_deleted - self._searcher.doc_freq(f"t{i}", PADDING)
            for term, count in counts.items():
                if n_with := self._searcher.doc_freq(f"t{i}", term):
                    weight = clause.weight * count * _idf(n_docs, n_with) / _idf(self._n_with_deleted, n_with)
                    query = Query.term_query(self._schema, f"t{i}", term, index_option="freq")
                    parts.append((Occur.Should, Query.boost_query(query, weight)))
        return Query.boolean_query(parts) if parts else None

    def _filters(self, filters: Mapping[str, str], among: Sequence[str] = ()) -> list[Any]:
        from tantivy import Query

        keys = [_key(path, value) for path, value in filters.items()]
        found = [Query.term_query(self._schema, "keys", key, index_option="basic") for key in keys]
        return [*found, *([Query.term_set_query(self._schema, "id", list(among))] if among else [])]

    def _nearest(self, vector: Vector, query: EngineQuery) -> list[tuple[str, Any]]:
        """The ids and rows of the `size` nearest documents that pass the filters, nearest first."""
        vectors, wanted, among = self._matrix(), query.size, set(query.among)
        while True:
            near = vectors.nearest(vector, wanted)
            rows = self._rows([doc_id for doc_id in near if not among or doc_id in among], query.filters)
            if len(rows) >= query.size or len(near) == len(vectors.doc_ids):
                return rows[: query.size]
            wanted *= 4

    def _rows(self, doc_ids: Sequence[str], filters: Mapping[str, str]) -> list[tuple[str, Any]]:
        """The ids and stored rows of the documents that exist and pass the filters, in the given order."""
        from tantivy import Occur, Query

        if not doc_ids:
            return []
        named = Query.boolean_query([(Occur.Must, part) for part in self._filters(filters, doc_ids)])
        found = self._searcher.search(named, len(doc_ids), count=False).hits
        rows = (self._searcher.doc(address) for _, address in found)
        by_id = {row.get_first("id"): row for row in rows}
        return [(doc_id, by_id[doc_id]) for doc_id in doc_ids if doc_id in by_id]

    def fetch(self, doc_ids: Sequence[str]) -> list[Document]:
        self._reload()
        with engine_errors(f"cannot read the index {self.name!r} in {self.folder.parent}"):
            return [Document(doc_id, *_content(row)) for doc_id, row in self._rows(doc_ids, {})]

    def _matrix(self) -> Vectors:
        if self._vectors is None or self._vectors[0] != self._commit:
            self._vectors = (self._commit, open_vectors(self.folder, self._commit, self.dim, self._stored_vectors))
        return self._vectors[1]

    def _stored_vectors(self) -> Iterator[tuple[str, bytes]]:
        import tantivy

        every = self._searcher.search(tantivy.Query.all_query(), max(self._searcher.num_docs, 1), count=False)
        for _, address in every.hits:
            row = self._searcher.doc(address)
            if (vector := row.get_first("vector")) is not None:
                yield row.get_first("id"), vector


class _Average:
    """The average number of words in a field, given as whole numbers whose mean is that average."""

    def __init__(self, words: int = 0, documents: int = 0) -> None:
        self.words, self.documents, self._owed = words, documents, 0.0

    def add(self, lengths: Iterator[int]) -> None:
        for length in lengths:
            self.words += length
            self.documents += length > 0

    def next(self) -> int:
        self._owed += self.words / self.documents if self.documents else 0.0
        given = max(round(self._owed), 1)
        self._owed -= given
        return given


def _idf(n_docs: int, n_with: int) -> float:
    """Lucene's inverse document frequency: ln(1 + (N - n + 0.5) / (n + 0.5))."""
    return math.log1p((n_docs - n_with + 0.5) / (n_with + 0.5))


def _content(row: Any) -> tuple[dict[str, Any], Vector | None]:
    """The source and the vector of a stored row."""
    vector = row.get_first("vector")
    source = json.loads(row.get_first("source"))
    return source, None if vector is None else np.frombuffer(vector, "<f4")


def _key(path: str, value: str) -> str:
    return f"{path}\x1f{value}"


def keys_of(source: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    """The keys that a document can be filtered by: name and value of everything in it that is not an object."""
    for name, value in source.items():
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                yield from keys_of(item, f"{prefix}{name}.")
            elif (text := text_of(item)) and len(text) <= KEYWORD_CHARS:
                yield _key(prefix + name, text)
