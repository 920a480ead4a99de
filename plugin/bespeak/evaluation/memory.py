"""A judged collection as an engine in memory, so that hundreds of settings can be measured on it in minutes.

Each topic is read once. For each group of settings, the pipeline's own functions ask and rank.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bespeak.document import hit_text
from bespeak.engines import IndexInfo
from bespeak.evaluation.kept import Report, silent
from bespeak.evaluation.topics import Collection
from bespeak.models.encoder import Encoder
from bespeak.parts import Parts
from bespeak.pipeline import Retrieved, ask, show_page
from bespeak.reading import Reading, encode_reading, query_vector, read
from bespeak.records import Clause, Document, EngineQuery, Hit, Hits, Matrix, Profile, Request, Vector
from bespeak.settings import Settings
from bespeak.statuses import Reason
from bespeak.text import analysis

K1, B = 1.2, 0.75
DEPTH = 100
"""How many hits of a query are judged, at most."""
Array: TypeAlias = npt.NDArray[np.float32]
Rows: TypeAlias = npt.NDArray[np.int64]


class Bm25:
    """BM25 over a few thousand documents in memory, summed over the fields as the engines do.

    Robertson and Zaragoza, "The Probabilistic Relevance Framework" (2009), in Lucene's form: idf = ln(1 + (N - n +
    0.5) / (n + 0.5)) with N the documents that have the field, and a document's length rounded to one byte.
    """

    def __init__(self, documents: Sequence[Document], fields: Sequence[str]) -> None:
        self._n_docs = len(documents)
        self._fields = [self._postings([str(d.source.get(name) or "") for d in documents]) for name in fields]

    def scores(self, text: str) -> Array:
        """Scores of all documents, `(n_docs,)`; 0 if no term matches. A repeated term counts twice."""
        found = np.zeros(self._n_docs, np.float32)
        for term, count in Counter(analysis.terms(text)).items():
            for postings in self._fields:
                if term in postings:
                    rows, impacts = postings[term]
                    found[rows] += count * impacts
        return found

    def _postings(self, texts: Sequence[str]) -> dict[str, tuple[Rows, Array]]:
        counts = [Counter(analysis.terms(text)) for text in texts]
        lengths = np.array([float(sum(c.values())) for c in counts])
        norms = np.array([float(rounded_length(int(length))) for length in lengths])
        n_docs = int((lengths > 0).sum())
        mean = max(float(lengths.sum()) / max(n_docs, 1), 1e-9)
        gathered: dict[str, list[tuple[int, int]]] = {}
        for row, counted in enumerate(counts):
            for term, count in counted.items():
                gathered.setdefault(term, []).append((row, count))
        postings = {}
        for term, found in gathered.items():
            rows, tf = np.array([row for row, _ in found]), np.array([float(count) for _, count in found])
            idf = np.log(1 + (n_docs - len(rows) + 0.5) / (len(rows) + 0.5))
            impacts = idf * tf * (K1 + 1) / (tf + K1 * (1 - B + B * norms[rows] / mean))
            postings[term] = (rows, impacts.astype(np.float32))
        return postings


def rounded_length(length: int) -> int:
    """A length rounded to one byte as in Lucene's SmallFloat: exact to 39, then three bits below the leading one.

    >>> [rounded_length(n) for n in (39, 41, 42, 100, 1000)]
    [39, 40, 42, 96, 984]
    """
    free = 24
    if length < free:
        return length
    rest = length - free
    shift = max(rest.bit_length() - 4, 0)
    return free + ((rest >> shift) << shift)


class CollectionEngine:
    """Answers as the embedded engine would over the same documents. Scores each text once."""

    def __init__(self, collection: Collection, encoder: Encoder | None) -> None:
        self._documents = collection.documents
        self.vectors = embed(collection, encoder) if encoder else None
        self.info = IndexInfo(
            collection.name, collection.fields, len(self._documents), encoder.dim if encoder else None,
            encoder.name if encoder else None,
        )  # fmt: skip
        self._bm25 = Bm25(self._documents, collection.fields)
        self._known: dict[str, Array] = {}

    def search(self, query: EngineQuery) -> Hits:
        required, optional = self._sum(query.required), self._sum(query.optional)
        scores = required + optional  # (n_docs,)
        if not query.recall:
            scores = np.where(required > 0, scores, 0)
        by_words = best(scores, query.size)
        rows = by_words[scores[by_words] > 0].tolist()
        if query.vector is not None and self.vectors is not None:
            near = best(self.vectors @ query.vector, query.size).tolist()
            rows += [row for row in near if row not in set(rows)]
        found = tuple(self._hit(row, float(scores[row]), rank) for rank, row in enumerate(rows, 1))
        return Hits(found, int((scores > 0).sum()))

    def _hit(self, row: int, score: float, rank: int) -> Hit:
        document = self._documents[row]
        vector = None if self.vectors is None else self.vectors[row]
        return Hit(document.doc_id, score, rank, document.source, vector)

    def _sum(self, clauses: Sequence[Clause]) -> Array:
        total = np.zeros(len(self._documents), np.float32)
        for clause in clauses:
            if clause.text not in self._known:
                self._known[clause.text] = self._bm25.scores(clause.text)
            total += clause.weight * self._known[clause.text]
        return total


@dataclass(frozen=True, slots=True)
class Readings:
    """A collection with the readings of its topics."""

    collection: Collection
    parts: Parts
    readings: tuple[Reading, ...]  # in the order of the topics
    engine: CollectionEngine


def read_to_rank(query: str, profile: Profile, parts: Parts) -> Reading:
    """The reading, of which the order by meaning is measured even if the query stands alone.

    A search would then show the engine's own order, as to a stranger.
    """
    reading = read(query, profile, parts)
    if reading.gate == reading.declined == Reason.STANDS_ALONE:
        return encode_reading(replace(reading, declined=None), parts)
    return reading


def make_readings(collection: Collection, parts: Parts, report: Report = silent) -> Readings:
    """Reads every topic, for any settings to rank later. Pass a KeptRewriter and a KeptEncoder for speed."""
    readings = []
    for done, topic in enumerate(collection.topics, 1):
        readings.append(read_to_rank(topic.text, topic.profile, parts))
        report(done, len(collection.topics))
    return Readings(collection, parts, tuple(readings), CollectionEngine(collection, parts.encoder))


def rank_topics(found: Readings, settings: Settings, depth: int = DEPTH) -> dict[str, list[list[str]]]:
    """Ranks every topic as served: `stage → doc_ids of each topic, best first`, for lexical, dense and hybrid."""
    parts, engine = replace(found.parts, settings=settings), found.engine
    rankings: dict[str, list[list[str]]] = {"lexical": [], "dense": [], "hybrid": []}
    for topic, reading in zip(found.collection.topics, found.readings, strict=True):
        request = Request(topic.text, engine.info.index, size=depth)
        query = ask(request, engine.info, reading, parts)
        hits = engine.search(query)
        rankings["lexical"].append([hit.doc_id for hit in hits.hits if hit.score > 0][:depth])
        if engine.vectors is not None and parts.encoder is not None:
            rows = best(engine.vectors @ search_vector(reading, settings, parts.encoder), depth).tolist()
            rankings["dense"].append([found.collection.documents[row].doc_id for row in rows])
        retrieved = Retrieved(engine.info, hits, hits, vector=query.vector)
        page = show_page(request, reading, retrieved, parts).page
        rankings["hybrid"].append([ranked.hit.doc_id for ranked in page])
    return rankings


def search_vector(reading: Reading, settings: Settings, encoder: Encoder) -> Vector:
    """The reading's query vector, `(dim,)`; that of the query as typed if nothing was encoded."""
    if found := query_vector(reading, settings):
        return found.mixed.vector
    vector: Vector = encoder.encode([reading.query], kind="query")[0]
    return vector


def score_settings(found: Readings, settings: Settings) -> dict[str, npt.NDArray[np.float64]]:
    """nDCG@10 of one group of settings, `stage → (n_topics,)`."""
    qrels = [found.collection.qrels[topic.query_id] for topic in found.collection.topics]
    return {
        stage: np.array([ndcg(doc_ids, grades) for doc_ids, grades in zip(ranked, qrels, strict=True)])
        for stage, ranked in rank_topics(found, settings).items()
        if ranked
    }


def embed(collection: Collection, encoder: Encoder) -> Matrix:
    """Vectors of the documents, `(n_docs, dim)`, in the collection's order."""
    return encoder.encode([hit_text(d.source, collection.fields) for d in collection.documents], kind="document")


def best(values: Array, n: int) -> Rows:
    """Rows of the `n` highest values, highest first, ties by row."""
    if n < len(values):
        floor = np.partition(values, len(values) - n)[len(values) - n]
        rows = np.flatnonzero(values >= floor)
    else:
        rows = np.arange(len(values))
    found: Rows = rows[np.argsort(-values[rows], kind="stable")][:n]
    return found


def ndcg(doc_ids: Sequence[str], grades: Mapping[str, int]) -> float:
    """nDCG@10 with the grade as gain (Järvelin and Kekäläinen 2002): sum of grade / log2(1 + rank), over the ideal's.

    >>> round(ndcg(["d7", "d5"], {"d5": 1}), 4)  # 1 / log2(3)
    0.6309
    """
    ideal = sorted(grades.values(), reverse=True)[:10]
    best_gain = sum(grade / np.log2(1 + rank) for rank, grade in enumerate(ideal, 1))
    gain = sum(grades.get(doc_id, 0) / np.log2(1 + rank) for rank, doc_id in enumerate(doc_ids[:10], 1))
    return float(gain / best_gain) if best_gain > 0 else 0.0
