"""The hybrid reranker: mixes lexical, embedding and user scores into one order, with evidence for it."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

from bespeak.ranking.tuned import (
    AGREEMENT,
    AGREEMENT_DEPTH,
    BROAD_AT,
    BROAD_FROM,
    TEXT_FULL,
    TEXT_SHARE,
    TYPED_SHARE,
)
from bespeak.ranking.vectors import Addend, QueryVector, VectorSum, add_up
from bespeak.records import Evidence, Hit, Preference, Profile, Ranked, Rewrite, Vector
from bespeak.settings import Weights
from bespeak.text import analysis

if TYPE_CHECKING:
    from bespeak.ranking.learning import Learnt

COLUMNS = ("lexical", "embedding", "user")


def no_text(_hit: Hit) -> str:
    return ""


@dataclass(frozen=True, slots=True)
class Window:
    """The hits to rank, in the engine's order, and what ranking needs to know about them."""

    hits: Sequence[Hit]  # with vectors if known
    liked: Mapping[str, Vector] = field(default_factory=dict)  # vectors of the documents that the user liked, by doc_id
    text: Callable[[Hit], str] = no_text  # a hit's searched text


def user_vector(
    profile: Profile, liked: Mapping[str, Vector], last_turn: Addend | None, last_turn_share: float
) -> VectorSum | None:
    """The weighted mean of what the user liked minus what they disliked, plus a share of the session's last turn.

    None if none of these documents has a vector.
    """
    known = [p for p in profile.preferences if p.doc_id in liked and p.weight]
    total = sum(abs(p.weight) for p in known)
    addends = [
        Addend(liked[p.doc_id], p.event_id, p.title or p.doc_id, action_of(p)).times(p.weight / total)
        for p in known
        if total > 0
    ]
    if last_turn and addends:
        addends.append(last_turn.times(last_turn_share))
    return add_up(addends)


def action_of(preference: Preference) -> str:
    """The user's action on the document; `dislike` if its weight is negative."""
    return preference.action if preference.weight >= 0 else "dislike"


def min_max(values: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
    """Scales the values to [0, 1]. Equal values all become 0, so that a column without an opinion moves nothing."""
    if not len(values):
        return values
    low, high = float(values.min()), float(values.max())
    if high - low < 1e-9:
        return np.zeros_like(values)
    return ((values - low) / (high - low)).astype(np.float32)


def cosines(hits: Sequence[Hit], vector: Vector | None) -> npt.NDArray[np.float32]:
    """Cosines of the hits to a vector, `(n_hits,)`. A hit without a vector gets the lowest one, so it gains nothing."""
    return _cosines(*_stacked(hits), len(hits), vector)


def _stacked(hits: Sequence[Hit]) -> tuple[list[int], npt.NDArray[np.float32] | None]:
    """The places of the hits that have a vector, and their vectors `(n_rows, dim)`."""
    rows = [i for i, hit in enumerate(hits) if hit.vector is not None]
    return rows, np.array([hits[i].vector for i in rows], np.float32) if rows else None


def _cosines(
    rows: list[int], matrix: npt.NDArray[np.float32] | None, n_hits: int, vector: Vector | None
) -> npt.NDArray[np.float32]:
    found = np.zeros(n_hits, np.float32)
    if vector is None or matrix is None:
        return found
    values = matrix @ vector  # (n_rows,)
    if len(rows) < n_hits:
        found[:] = values.min()
    found[rows] = values
    return found


def finds_same(first: npt.NDArray[np.float32], second: npt.NDArray[np.float32]) -> bool:
    """Whether two scores of the same hits agree on at least six of their first ten hits.

    With fewer than forty hits, they must agree on the same share of the first quarter.
    """
    depth = min(AGREEMENT_DEPTH, len(first) // 4)
    tops = [set(np.argsort(-scores, kind="stable")[:depth].tolist()) for scores in (first, second)]
    return depth > 0 and len(tops[0] & tops[1]) >= AGREEMENT * depth


def keep_typed(hits: Sequence[Hit], query: QueryVector) -> QueryVector:
    """Moves the query's vector towards the query as typed, if both find the same hits.

    The query then lacked little, and a session that reorders good hits mostly does harm.
    """
    if len(query.mixed.addends) < 2:
        return query
    if not finds_same(cosines(hits, query.mixed.vector), cosines(hits, query.typed.vector)):
        return query
    rest = [addend.times((1 - TYPED_SHARE) / query.mixed.norm) for addend in query.mixed.addends]
    mixed = add_up([*rest, query.typed.times(TYPED_SHARE)])
    return replace(query, mixed=mixed) if mixed else query


@dataclass(frozen=True, slots=True)
class LearntScores:
    """What others' behaviour says about the window's hits."""

    preferences: Sequence[Preference]
    shares: npt.NDArray[np.float32]  # (n_hits, n_preferences): what each preference gives to each hit
    prior: npt.NDArray[np.float32]  # (n_hits,): the hit's own popularity
    rows: Mapping[str, int]  # doc_id -> row of its hit
    holds_query: npt.NDArray[np.bool_]  # (n_hits,): whether the hit holds all words of the query
    broad: float  # in [0, 1]: how little the query distinguishes the hits

    @property
    def spread(self) -> float:
        """Standard deviation of the learnt scores over the hits."""
        return float((self.shares.sum(axis=1) + self.prior).std())

    @classmethod
    def over(
        cls,
        hits: Sequence[Hit],
        preferences: Sequence[Preference],
        learnt: Learnt | None,
        holds: Callable[[Hit], bool] | None = None,
    ) -> LearntScores | None:
        """The scores of these hits; None if nothing was learnt or there are no preferences.

        `holds` says whether a hit has all words of the query.
        """
        if learnt is None or not preferences:
            return None
        doc_ids = [hit.doc_id for hit in hits]
        rows = {doc_id: n for n, doc_id in enumerate(doc_ids)}
        holding = np.array([holds is not None and holds(hit) for hit in hits], bool)
        known = np.array([doc_id in learnt.row for doc_id in doc_ids], bool)
        share = float((holding & known).mean()) if hits else 0.0
        broad = min(max((share - BROAD_FROM) / (BROAD_AT - BROAD_FROM), 0.0), 1.0)
        prior = learnt.priors(doc_ids, len(preferences))
        return cls(preferences, learnt.shares(doc_ids, preferences), prior, rows, holding, broad)

    def level(self, column: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """Levels a normalised column of the query: the broader the query, the more alike hits with all its words."""
        found: npt.NDArray[np.float32] = (1 - self.broad) * column + self.broad * self.holds_query.astype(np.float32)
        return found

    def text_scale(self, cosines: npt.NDArray[np.float32]) -> float:
        """The factor for a cosine to the user's vector before it is added."""
        spread, n = float(cosines.std()) if len(cosines) else 0.0, len(self.preferences)
        return TEXT_SHARE * self.spread * n / (n + TEXT_FULL) / spread if spread > 1e-6 else 0.0

    def column(self, cosines: npt.NDArray[np.float32]) -> npt.NDArray[np.float32]:
        """The user's column before min-max, `(n_hits,)`."""
        found: npt.NDArray[np.float32] = self.shares.sum(axis=1) + self.prior + self.text_scale(cosines) * cosines
        return found


def score_window(
    hits: Sequence[Hit], query: VectorSum | None, user: VectorSum | None, learnt: LearntScores | None = None
) -> npt.NDArray[np.float32]:
    """The score matrix, `(n_hits, 3)` in [0, 1]: BM25, cosine to the query and cosine to the user, each min-max scaled.

    `learnt` adds others' behaviour to the user's column and levels the query's two columns.
    """
    lexical, stacked = np.array([hit.score for hit in hits], np.float32), _stacked(hits)
    columns = [lexical, *(_cosines(*stacked, len(hits), found.vector if found else None) for found in (query, user))]
    if learnt:
        columns[2] = learnt.column(columns[2])
    columns = [min_max(column) for column in columns]
    if learnt:
        columns[:2] = [learnt.level(column) for column in columns[:2]]
    return np.stack(columns, axis=1)


def holds_all(text: str, read: Callable[[Hit], str]) -> Callable[[Hit], bool]:
    """A test of whether a hit, whose text `read` gives, has all stems of `text`; always False if `text` has none.

    Only words that begin like a wanted one are stemmed, so a hundred texts of a thousand letters take 1 to 2 ms.
    """
    asked = set(analysis.terms(text))
    begins = "|".join(re.escape(term[: max(len(term) - 2, 1)]) for term in asked)
    word = re.compile(rf"\b(?:{begins})\w*")
    return lambda hit: bool(asked) and asked <= set(analysis.terms(" ".join(word.findall(read(hit).lower()))))


def choose_window(
    hits: Sequence[Hit], vector: Vector | None, window: int, brought: Collection[str] = ()
) -> tuple[list[Hit], list[Hit]]:
    """The hits to rerank, and those that follow them in the engine's order.

    The window holds the first `window` lexical hits, the `window` nearest by vector, and the hits with ids in
    `brought`. It does not depend on how many hits were fetched, so later pages of a query have the same window and
    scores: a near hit beyond the first lexical hits has no lexical score, unless it is in `brought`, and hits that only
    a larger fetch found by vector are left out. `vector` is that of the engine's search; None if it used words alone.
    """
    lexical = [hit for hit in hits if hit.score > 0]
    inside = {hit.doc_id: hit for n, hit in enumerate(lexical) if n < window or hit.doc_id in brought}
    if vector is not None:
        near = sorted(zip(-cosines(hits, vector), (h.doc_id for h in hits), hits, strict=True), key=lambda n: n[:2])
        inside = {doc_id: replace(hit, score=0.0) for _, doc_id, hit in near[:window]} | inside
    chosen = [inside[hit.doc_id] for hit in hits if hit.doc_id in inside]
    return chosen, [hit for hit in lexical if hit.doc_id not in inside]


def order_window(
    hits: Sequence[Hit], scores: npt.NDArray[np.float32], weights: Weights, start: int = 1
) -> list[Ranked]:
    """Ranks hits by weighted score, then by doc_id, so that ties never depend on luck. Ranks count from `start`.

    `scores` is `(n_hits, 3)`. Totals are divided by the sum of the weights.
    """
    w = np.array(weights.as_tuple(), np.float32)
    totals: list[float] = (scores @ w / w.sum()).tolist()
    rows: list[tuple[float, float, float]] = list(map(tuple, scores.tolist()))
    order = sorted(range(len(hits)), key=lambda i: (-round(totals[i], 6), hits[i].doc_id))
    return [Ranked(hits[i], place, totals[i], rows[i]) for place, i in enumerate(order, start)]


def unranked(hits: Sequence[Hit], start: int = 1) -> list[Ranked]:
    """The hits in the engine's own order, with scores of 0; ranks count from `start`."""
    return [Ranked(hit, place, 0.0, (0.0, 0.0, 0.0)) for place, hit in enumerate(hits, start)]


@dataclass(frozen=True, slots=True)
class Judge:
    """Finds what raised a hit above the window's mean. The shares are addends of the score itself.

    A cosine to a sum of parts is a sum of products, and min-max is linear, so the share of a part in a hit's score is
    weight x part . (hit - mean of the window) / (norm of the sum x range of the column). Without the event, this share
    is gone. The words of a rewrite share the hit's lexical score equally with its other matched words.
    """

    weights: Weights
    query: VectorSum | None
    user: VectorSum | None
    mean: npt.NDArray[np.float32] | None  # (dim,)
    ranges: tuple[float, float]  # of the cosines to query and user in the window
    rewrite: Rewrite
    learnt: LearntScores | None = None
    span: float = 0.0  # range of the user's column before min-max, if something was learnt

    @classmethod
    def over(
        cls,
        hits: Sequence[Hit],
        weights: Weights,
        query: VectorSum | None,
        user: VectorSum | None,
        rewrite: Rewrite,
        learnt: LearntScores | None = None,
    ) -> Judge:
        vectors = [hit.vector for hit in hits if hit.vector is not None]
        mean = np.mean(vectors, axis=0).astype(np.float32) if vectors else None
        spans = [float(np.ptp(cosines(hits, m.vector))) if m and vectors else 0.0 for m in (query, user)]
        span = 0.0
        if learnt:
            found = cosines(hits, user.vector if user else None)
            span, scale = float(np.ptp(learnt.column(found))), learnt.text_scale(found)
            spans[1] = span / scale if scale else 0.0
        return cls(weights, query, user, mean, (spans[0], spans[1]), rewrite, learnt, span)

    def evidence(self, ranked: Ranked, words: set[str], stems: Mapping[str, str], n_matched: int) -> list[Evidence]:
        """The evidence for a hit, strongest first. `words` are its stems; `stems` maps the rewrite's terms to stems."""
        found = self._terms(ranked, words, stems, n_matched)
        if ranked.hit.vector is not None and self.mean is not None:
            away = ranked.hit.vector - self.mean
            weight = self.weights.embedding * (1 - self.learnt.broad if self.learnt else 1)
            found += self._parts("embedding", self.query, self.ranges[0], weight, away)
            found += self._parts("user", self.user, self.ranges[1], self.weights.user, away)
        found = _joined([*found, *self._learnt(ranked)])
        return sorted((e for e in found if e.share > 0.005), key=lambda e: -e.share)

    def _learnt(self, ranked: Ranked) -> list[Evidence]:
        """The share of each preference through others' behaviour, above its mean in the window."""
        learnt = self.learnt
        if learnt is None or self.span < 1e-9:
            return []
        above = learnt.shares[learnt.rows[ranked.hit.doc_id]] - learnt.shares.mean(axis=0)  # (n_preferences,)
        above *= self.weights.user / (sum(self.weights.as_tuple()) * self.span)
        return [
            Evidence("user", p.title or p.doc_id, p.event_id, float(share), action_of(p))
            for p, share in zip(learnt.preferences, above, strict=True)
        ]

    def _terms(self, ranked: Ranked, words: set[str], stems: Mapping[str, str], n_matched: int) -> list[Evidence]:
        each = self.weights.lexical * ranked.scores[0] / max(n_matched, 1)
        return [
            Evidence("lexical", term.text, term.event_id, each / sum(self.weights.as_tuple()), term.source)
            for term in self.rewrite.terms
            if term.event_id and stems.get(term.text) in words
        ]

    def _parts(
        self,
        column: Literal["embedding", "user"],
        mixed: VectorSum | None,
        span: float,
        weight: float,
        away: npt.NDArray[np.float32],
    ) -> list[Evidence]:
        if mixed is None or span < 1e-9:
            return []
        scale = weight / (sum(self.weights.as_tuple()) * mixed.norm * span)
        return [
            Evidence(column, p.text, p.event_id, scale * float(p.vector @ away), p.action)
            for p in mixed.addends
            if p.event_id
        ]


def _joined(found: Sequence[Evidence]) -> list[Evidence]:
    """Adds up the shares that one event has in the user's column, by its text and through others' behaviour."""
    joined: dict[str, Evidence] = {}
    for one in found:
        if one.column == "user":
            before = joined.get(one.event_id)
            joined[one.event_id] = replace(one, share=one.share + before.share) if before else one
    return [one for one in found if one.column != "user"] + list(joined.values())
