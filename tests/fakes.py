"""Small parts with known answers, shared by the tests: an encoder that needs no model, an engine in memory."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Literal

import numpy as np

from bespeak.engines import IndexInfo, RejectedDocument
from bespeak.errors import IndexMissing
from bespeak.reading import Reading
from bespeak.records import Clause, Document, EngineQuery, Hit, Hits, Matrix, Profile, Rewrite, Term, UserKey, Vector
from bespeak.session.reader import Context, Leaning, ReadWord
from bespeak.statuses import RewriteStatus
from bespeak.text.analysis import terms
from bespeak.text.words import words

ADA = UserKey("", "ada")


class BagEncoder:
    """Unit vectors of word counts, hashed into `dim` places: texts that share words are near."""

    def __init__(self, dim: int = 64, name: str = "bag") -> None:
        self.name, self.dim = name, dim

    def encode(self, texts: Sequence[str], kind: Literal["query", "document"] = "document") -> Matrix:
        rows = np.zeros((len(texts), self.dim), np.float32)
        for row, text in zip(rows, texts, strict=True):
            for word in terms(text):
                row[int(hashlib.md5(word.encode()).hexdigest(), 16) % self.dim] += 1
            if not row.any():
                row[0] = 1
        return rows / np.linalg.norm(rows, axis=1, keepdims=True)


class ScriptedRewriter:
    """Answers from a table; other queries stay as they are."""

    name = "scripted"
    version = "1"

    def __init__(self, table: Mapping[str, str], terms: Sequence[Term] = ()) -> None:
        self.table, self.terms = table, tuple(terms)

    def rewrite(self, query: str, profile: Profile, budget_ms: float | None = None) -> Rewrite:
        if query not in self.table:
            return Rewrite(query, query, status=RewriteStatus.FULL, model="scripted 1")
        return Rewrite(query, self.table[query], self.terms, RewriteStatus.FULL, model="scripted 1")

    def warm(self, profile: Profile) -> None:
        pass

    def forget(self, user: UserKey) -> None:
        pass


class ScriptedReader:
    """Says that a query leans on the words that a table gives for it; other queries stand alone."""

    name = "scripted reader"

    def __init__(self, table: Mapping[str, Sequence[str]], encoder: BagEncoder | None = None) -> None:
        self.table, self._encoder = table, encoder or BagEncoder()
        self.of = self._encoder.name
        self.asked: list[str] = []

    def read(self, query: str, profile: Profile) -> Context:
        self.asked.append(query)
        said = self.table.get(query, ())
        added = tuple(ReadWord(word, *_place_of(word, profile), 0.9) for word in said)
        dropped = tuple(ReadWord(word, "query", place, 0.0) for place, word in enumerate(words(query)))
        leaning = Leaning(*(0.9 * any(one.source == source for one in added) for source in ("turn", "statement")))
        return Context(leaning, added, dropped, " ".join([query, *said]))

    def encode(self, context: Context) -> Vector:
        vector: Vector = self._encoder.encode([context.text])[0]
        return vector

    def knows_vector(self, context: Context) -> bool:
        return False

    def knows(self, query: str, profile: Profile) -> bool:
        return False

    def forget(self, user: UserKey) -> None:
        self.asked.clear()


def _place_of(word: str, profile: Profile) -> tuple[Literal["turn", "statement"], int]:
    for place in range(len(profile.turns) - 1, -1, -1):
        if word in words(f"{profile.turns[place].query} {profile.turns[place].response}"):
            return "turn", place
    return "statement", next(i for i, one in enumerate(profile.statements) if word in words(one.text))


class MemoryEngine:
    """Counts matching words instead of BM25; otherwise as EngineQuery says."""

    name = "memory"

    def __init__(self, encoder: BagEncoder | None, documents: Mapping[str, str]) -> None:
        self.encoder_name = encoder.name if encoder else None
        vectors = encoder.encode(list(documents.values())) if encoder else [None] * len(documents)
        self.documents = {
            doc_id: Document(doc_id, {"text": text}, vector)
            for (doc_id, text), vector in zip(documents.items(), vectors, strict=True)
        }
        self.asked: list[EngineQuery] = []

    def search(self, query: EngineQuery) -> Hits:
        self.describe(query.index)
        self.asked.append(query)
        scores = {}
        for document in self.documents.values():
            if query.among and document.doc_id not in query.among:
                continue
            held = set(terms(document.source["text"]))
            required = sum(c.weight * len(held & set(terms(c.text))) for c in query.required)
            optional = sum(c.weight * len(held & set(terms(c.text))) for c in query.optional)
            if required or (query.recall and optional):
                scores[document.doc_id] = required + optional
        order = sorted(scores, key=lambda doc_id: (-scores[doc_id], doc_id))[: query.size]
        if query.vector is not None:
            near = sorted(self.documents.values(), key=lambda d: (-float(d.vector @ query.vector), d.doc_id))
            order += [d.doc_id for d in near[: query.size] if d.doc_id not in order]
        found = [self.documents[doc_id] for doc_id in order]
        hits = [
            Hit(d.doc_id, float(scores.get(d.doc_id, 0)), rank, d.source, d.vector)
            for rank, d in enumerate(found, start=1)
        ]
        return Hits(tuple(hits), len(scores))

    def find(self, index: str, texts: Sequence[str], size: int) -> list[tuple[str, ...]]:
        queries = [EngineQuery(index, (Clause(text),), size=size) for text in texts]
        return [tuple(hit.doc_id for hit in self.search(query).hits) for query in queries]

    def fetch(self, index: str, doc_ids: Sequence[str]) -> list[Document]:
        return [self.documents[doc_id] for doc_id in doc_ids if doc_id in self.documents]

    def describe(self, index: str) -> IndexInfo:
        if index != "things":
            raise IndexMissing(f"no index {index!r}")
        dim = 64 if self.encoder_name else None
        return IndexInfo(index, ("text",), len(self.documents), dim, self.encoder_name)

    def indices(self) -> list[str]:
        return ["things"]

    def create(self, index: str, fields: Sequence[str], dim: int | None, encoder: str | None) -> None:
        raise AssertionError("not used")

    def load(self, index: str, documents: Sequence[Document]) -> list[RejectedDocument]:
        raise AssertionError("not used")

    def refresh(self, index: str) -> None:
        pass

    def drop(self, index: str) -> None:
        raise AssertionError("not used")

    def close(self) -> None:
        pass


def reading_of(query: str, profile: Profile, **members: object) -> Reading:
    """A reading that changed nothing about the query, except for `members`."""
    rewrite = Rewrite(query, query, status=RewriteStatus.FULL)
    reading = replace(Reading(query, profile, None, None, rewrite), **members)
    return replace(reading, picked=reading.context.terms(profile)) if reading.context else reading


def shown_text(hit: Hit) -> str:
    return str(hit.source.get("text", ""))
