"""What settings are tuned on: every signal of every topic over the whole collection, computed once, so that a setting
costs a few matrix sums. The pipeline's way of mixing is repeated here on arrays; a test holds the two together."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from bespeak.evaluation.kept import Report, silent
from bespeak.evaluation.topics import Collection, Topic
from bespeak.pipeline import BESIDE_CONTEXT, BESIDE_TERMS, PICKED_WEIGHT, TYPED_SHARE, leave_alone, turn_text
from bespeak.ranking.rerank import agree, min_max
from bespeak.records import Document, Matrix
from bespeak.session import gate
from bespeak.settings import Settings
from bespeak.text import analysis

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder
    from bespeak.rewriting.rewriter import Rewriter
    from bespeak.session.context import ContextEncoder
    from bespeak.session.terms import TermPicker

K1, B = 1.2, 0.75
TEXTS = ("query", "rewrite", "turn")
"""What a score is mixed of: the query as typed, its rewrite, the last turn's query and response."""
Array: TypeAlias = npt.NDArray[np.float32]
Rows: TypeAlias = npt.NDArray[np.int64]


class Bm25:
    """BM25 over a few thousand documents in memory: the sum over the fields, as the engines score.

    Robertson and Zaragoza, "The Probabilistic Relevance Framework" (2009), in Lucene's form: idf = ln(1 + (N - n +
    0.5) / (n + 0.5)) with N the documents that have the field, and a document's length as one byte holds it.
    """

    def __init__(self, documents: Sequence[Document], fields: Sequence[str]) -> None:
        self._n_docs = len(documents)
        self._fields = [self._postings([str(d.source.get(name) or "") for d in documents]) for name in fields]

    def scores(self, text: str) -> Array:
        """`(n_docs,)`, 0 where no term matches; a term said twice counts twice."""
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
    """A length as one byte holds it: exact to 39, then with three bits below the leading one (Lucene's SmallFloat).

    >>> [rounded_length(n) for n in (39, 41, 42, 100, 1000)]
    [39, 40, 42, 96, 984]
    """
    free = 24
    if length < free:
        return length
    rest = length - free
    shift = max(rest.bit_length() - 4, 0)
    return free + ((rest >> shift) << shift)


@dataclass(frozen=True, slots=True)
class Signals:
    """Rows are topics and columns documents, both in the collection's order; zeros where a topic lacks the text."""

    collection: Collection
    lexical: Mapping[str, Array]  # by TEXTS, at times by "terms": (n_topics, n_docs) BM25
    vectors: Mapping[str, Matrix]  # by TEXTS, at times by "context", else by "terms": (n_topics, dim)
    documents: Matrix  # (n_docs, dim)
    alone: npt.NDArray[np.bool_]  # (n_topics,): left alone by the gate, so the engine's order stays
    rewritten: npt.NDArray[np.bool_]  # (n_topics,)


def gather(
    collection: Collection,
    encoder: Encoder,
    rewriter: Rewriter | None,
    report: Report = silent,
    terms: TermPicker | None = None,
    context: ContextEncoder | None = None,
) -> Signals:
    """All signals. Without a rewriter no topic is rewritten; hand in a KeptRewriter and a KeptEncoder to be fast."""
    bm25 = Bm25(collection.documents, collection.fields)
    texts = texts_of(collection.topics, rewriter, report)
    picked = _picked(collection.topics, terms)
    vectors = {name: _encode(encoder, found) for name, found in (texts | _asked_with(texts["query"], picked)).items()}
    if context:
        vectors["context"] = read_sessions(collection.topics, context)
    documents = [" ".join(str(d.source[f]) for f in collection.fields if d.source.get(f)) for d in collection.documents]
    return Signals(
        collection,
        {name: np.stack([bm25.scores(text) for text in found]) for name, found in (texts | picked).items()},
        vectors,
        encoder.encode(documents, kind="document"),
        np.array([bool(leave_alone(topic.text, topic.profile)) for topic in collection.topics]),
        np.array([bool(text) for text in texts["rewrite"]]),
    )


def texts_of(topics: Sequence[Topic], rewriter: Rewriter | None, report: Report = silent) -> dict[str, list[str]]:
    """By TEXTS: one text a topic, "" where there is none or the query is left alone."""
    texts: dict[str, list[str]] = {name: [] for name in TEXTS}
    for done, topic in enumerate(topics, 1):
        profile = topic.profile
        alone = bool(leave_alone(topic.text, profile))
        rewrite = rewriter.rewrite(topic.text, profile) if rewriter and not alone else None
        texts["query"].append(topic.text)
        texts["rewrite"].append(rewrite.text if rewrite and rewrite.changed else "")
        texts["turn"].append(turn_text(profile.turns[-1]) if profile.turns and not alone else "")
        report(done, len(topics))
    return texts


def read_sessions(topics: Sequence[Topic], context: ContextEncoder) -> Matrix:
    """`(n_topics, dim)`: each query read with its session, a row of zeros where there is none."""
    rows = np.zeros((len(topics), context.encoder.dim), np.float32)
    for row, topic in enumerate(topics):
        if not gate.decline(topic.text, topic.profile):
            rows[row] = context.encode(topic.text, topic.profile)
    return rows


def _picked(topics: Sequence[Topic], picker: TermPicker | None) -> dict[str, list[str]]:
    """The words picked of each session, "" where there are none; nothing without a picker."""
    if picker is None:
        return {}
    return {"terms": [" ".join(term.text for term in picker.pick(t.text, t.profile)) for t in topics]}


def _asked_with(queries: Sequence[str], picked: Mapping[str, Sequence[str]]) -> dict[str, list[str]]:
    """Each query followed by its picked words."""
    return {
        name: [f"{query} {words}".strip() for query, words in zip(queries, found, strict=True)]
        for name, found in picked.items()
    }


def _encode(encoder: Encoder, texts: Sequence[str]) -> Matrix:
    """`(n_texts, dim)`, a row of zeros for an empty text."""
    rows = np.zeros((len(texts), encoder.dim), np.float32)
    there = [n for n, text in enumerate(texts) if text]
    if there:
        rows[there] = encoder.encode([texts[n] for n in there], kind="query")
    return rows


def rank_all(signals: Signals, settings: Settings, depth: int = 100) -> dict[str, list[Rows]]:
    """`stage → one array a topic of document rows, best first`, for the stages lexical, dense and hybrid."""
    beside = BESIDE_TERMS if "terms" in signals.lexical else 1.0
    lexical = (
        signals.lexical["query"]
        + settings.rewrite_weight * signals.lexical["rewrite"]
        + settings.last_turn_weight * beside * signals.lexical["turn"]
    )  # (n_topics, n_docs)
    if "terms" in signals.lexical:
        lexical = lexical + np.where(signals.alone[:, None], 0, PICKED_WEIGHT * signals.lexical["terms"])
    if settings.mode == "boost":  # only what the query as typed matches
        lexical = np.where(signals.lexical["query"] > 0, lexical, 0)
    context = mix_vectors(signals, settings.last_turn_share)  # (n_topics, dim)
    context /= np.maximum(np.linalg.norm(context, axis=1, keepdims=True), 1e-6)
    cosines = context @ signals.documents.T  # (n_topics, n_docs)
    typed = signals.vectors["query"] @ signals.documents.T  # (n_topics, n_docs)
    rankings: dict[str, list[Rows]] = {"lexical": [], "dense": [], "hybrid": []}
    for words, near, own, alone in zip(lexical, cosines, typed, signals.alone, strict=True):
        by_words = best(words, max(depth, settings.window))
        by_words = by_words[words[by_words] > 0]
        by_vector = best(near, max(depth, settings.window))
        rankings["lexical"].append(by_words[:depth])
        rankings["dense"].append(by_vector[:depth])
        mixed = by_words if alone else mix_window(words, near, own, by_words, by_vector, settings)
        rankings["hybrid"].append(mixed[:depth])
    return rankings


def mix_vectors(signals: Signals, last_turn_share: float) -> Matrix:
    """`(n_topics, dim)`, not yet of unit length, as `pipeline.contextualise` mixes."""
    vectors = signals.vectors
    query, picked, read = vectors["query"], vectors.get("terms"), vectors.get("context")
    added = np.zeros_like(query) if picked is None else np.where(signals.alone[:, None], 0, picked)
    beside = np.full((len(query), 1), 1.0 if picked is None else BESIDE_TERMS, np.float32)
    if read is not None:
        is_read = read.any(axis=1, keepdims=True)  # (n_topics, 1)
        added, beside = np.where(is_read, read, added), np.where(is_read, BESIDE_TERMS, beside)
        query = np.where(is_read, BESIDE_CONTEXT, 1) * query
    mixed: Matrix = query + vectors["rewrite"] + added + last_turn_share * beside * vectors["turn"]
    return mixed


def best(values: Array, n: int) -> Rows:
    """Rows of the `n` highest values, highest first, ties by row."""
    if n < len(values):
        floor = np.partition(values, len(values) - n)[len(values) - n]
        rows = np.flatnonzero(values >= floor)
    else:
        rows = np.arange(len(values))
    found: Rows = rows[np.argsort(-values[rows], kind="stable")][:n]
    return found


def mix_window(words: Array, near: Array, typed: Array, by_words: Rows, by_vector: Rows, settings: Settings) -> Rows:
    """The window's rows by the weighted columns, then the other lexical ones, as `pipeline.finish` ranks."""
    window = by_words[: settings.window]
    if settings.mode == "recall":
        window = np.union1d(window, by_vector[: settings.window])
    window = np.sort(window)
    found = np.where(np.isin(window, by_words[: settings.window]), words[window], 0).astype(np.float32)
    weights, cosines = settings.weights, near[window]
    if agree(cosines, typed[window]):
        cosines = (1 - TYPED_SHARE) * cosines + TYPED_SHARE * typed[window]
    total = (weights.lexical * min_max(found) + weights.embedding * min_max(cosines)) / sum(weights.as_tuple())
    order = window[np.argsort(-np.round(total, 6), kind="stable")]
    return np.concatenate([order, by_words[~np.isin(by_words, window)]])


def score_settings(signals: Signals, settings: Settings) -> dict[str, npt.NDArray[np.float64]]:
    """`stage → (n_topics,)` nDCG@10 of one setting."""
    column = {document.doc_id: n for n, document in enumerate(signals.collection.documents)}
    grades = [
        {
            column[doc_id]: grade
            for doc_id, grade in signals.collection.qrels[topic.query_id].items()
            if doc_id in column
        }
        for topic in signals.collection.topics
    ]
    all_grades = [
        sorted(signals.collection.qrels[t.query_id].values(), reverse=True) for t in signals.collection.topics
    ]
    return {
        stage: np.array([ndcg(rows, grades[n], all_grades[n]) for n, rows in enumerate(rankings)])
        for stage, rankings in rank_all(signals, settings).items()
    }


def ndcg(rows: Sequence[int] | Rows, grades: Mapping[int, int], ideal: Sequence[int]) -> float:
    """nDCG@10 with the grade as gain (Järvelin and Kekäläinen 2002): sum of grade / log2(1 + rank), over the ideal's.

    >>> round(ndcg([7, 5], {5: 1}, [1]), 4)  # 1 / log2(3)
    0.6309
    """
    best_gain = sum(grade / np.log2(1 + rank) for rank, grade in enumerate(ideal[:10], 1))
    gain = sum(grades.get(int(row), 0) / np.log2(1 + rank) for rank, row in enumerate(rows[:10], 1))
    return float(gain / best_gain) if best_gain > 0 else 0.0
