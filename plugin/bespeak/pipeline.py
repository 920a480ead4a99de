"""The path of every query: profile, read, retrieve, rank, page.

`read` (in `reading.py`) and `rank` do no I/O and serve every face. `search` runs the whole path for our own engines;
the proxy sends a client's own search instead of calling `ask` and `retrieve`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from operator import attrgetter
from typing import TYPE_CHECKING

import numpy as np

from bespeak.arguments import require, require_text, require_whole_number
from bespeak.document import hit_text
from bespeak.engines import Engine, IndexInfo
from bespeak.errors import ModelError, StoreError, UsageError
from bespeak.parts import Parts, Profiles
from bespeak.profiles.events import check_id
from bespeak.ranking.rerank import (
    Judge,
    LearntScores,
    Window,
    choose_window,
    holds_all,
    keep_typed,
    order_window,
    score_window,
    unranked,
    user_vector,
)
from bespeak.ranking.tuned import EMBEDDED_CHARS, LEARNT_WINDOWS, MAX_PREFERENCES
from bespeak.ranking.vectors import Embedded
from bespeak.reading import MAX_QUERY_CHARS, Reading, clauses, query_vector, read
from bespeak.records import (
    Clause,
    Document,
    EngineQuery,
    Hit,
    Hits,
    Profile,
    Ranked,
    Request,
    Result,
    Vector,
)
from bespeak.settings import Settings
from bespeak.statuses import Reason, RerankStatus, Stage
from bespeak.text import analysis

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder
    from bespeak.ranking.learning import Learnt


def search(engine: Engine, profiles: Profiles, request: Request, parts: Parts, now: datetime | None = None) -> Result:
    """Runs one personalised search. If the profile cannot be read, the answer is the engine's own.

    Raises UsageError and EngineError.
    """
    check_request(request)
    info = engine.describe(request.index)
    notes: tuple[str, ...] = ()
    try:
        profile = profiles.profile(request.user, request.session_id, now or datetime.now(UTC))
    except StoreError as error:
        profile, notes = Profile(request.user, request.session_id), (f"not personalised: {error}",)
    reading = read(request.query, profile, parts)
    result = show_page(request, reading, retrieve(engine, request, info, reading, parts), parts)
    return replace(result, notes=notes + result.notes)


def check_request(request: Request) -> None:
    """Raises UsageError for a request that no engine could answer."""
    check_query(request.query)
    require_text("index", request.index)
    check_id("session", request.session_id)
    require("filters", request.filters, Mapping, "a dict of fields and values")
    for name, value in (("size", request.size), ("offset", request.offset)):
        require_whole_number(name, value)
    if request.size < 1 or request.offset < 0:
        raise UsageError(f"size must be at least 1 and offset at least 0, but are {request.size} and {request.offset}")


def check_query(query: str) -> None:
    """Raises UsageError for a query that is empty or too long."""
    require_text("query", query)
    if not query.strip():
        raise UsageError("the query is empty: give at least one word")
    if len(query) > MAX_QUERY_CHARS:
        raise UsageError(f"the query is {len(query)} characters long, the limit is {MAX_QUERY_CHARS}: shorten it")


# Ask and retrieve: the embedded engine, or searches of our own in Elasticsearch.


@dataclass(frozen=True, slots=True)
class Retrieved:
    """What an engine returned for a reading."""

    info: IndexInfo
    as_typed: Hits  # the answer to the query as typed: shown if nothing is ranked, and the order that hits moved from
    hits: Hits  # the answer to the query with everything that was added
    liked: tuple[Document, ...] = ()  # documents of this index that the user liked
    added: tuple[Hit, ...] = ()  # hits that others' behaviour suggests
    vector: Vector | None = None  # of the engine's search; None if it searched by words alone


def retrieve(engine: Engine, request: Request, info: IndexInfo, reading: Reading, parts: Parts) -> Retrieved:
    """Asks the engine for the hits to rank. Raises EngineError."""
    as_typed = engine.search(ask_as_typed(request, parts.settings))
    if reading.declined or reading.fault:
        return Retrieved(info, as_typed, as_typed)
    query = ask(request, info, reading, parts)
    hits = engine.search(query)
    doc_ids = liked_ids(reading.profile)
    liked = tuple(engine.fetch(request.index, doc_ids)) if doc_ids else ()
    return Retrieved(info, as_typed, hits, liked, tuple(suggest(engine, query, info, reading, parts)), query.vector)


def liked_ids(profile: Profile) -> list[str]:
    """Ids of the documents whose vectors make up the user's vector, strongest preference first."""
    return [preference.doc_id for preference in profile.preferences[:MAX_PREFERENCES]]


def liked_titles(profile: Profile) -> dict[str, str]:
    """Titles of the same documents, by doc_id, as far as they are known."""
    return {p.doc_id: p.title for p in profile.preferences[:MAX_PREFERENCES] if p.title}


def ask(request: Request, info: IndexInfo, reading: Reading, parts: Parts) -> EngineQuery:
    """The engine query with what the session adds as optional clauses, so that boost mode keeps the matching set."""
    settings = parts.settings
    query = ask_as_typed(request, settings)
    if reading.declined or reading.fault:
        return query
    recall = settings.mode == "recall"
    found = query_vector(reading, settings) if recall and is_comparable(info, parts.encoder) else None
    return replace(
        query, optional=clauses(reading, settings), vector=found.mixed.vector if found else None, recall=recall
    )


def ask_as_typed(request: Request, settings: Settings) -> EngineQuery:
    """The engine query with nothing added."""
    size = max(settings.window, request.offset + request.size)
    return EngineQuery(request.index, (Clause(request.query),), size=size, filters=request.filters)


def suggest(engine: Engine, query: EngineQuery, info: IndexInfo, reading: Reading, parts: Parts) -> list[Hit]:
    """Hits to add to those of `query` in recall mode: documents that others' behaviour suggests and that hold all its
    words.

    For a broad query, the engine's first hundred hits are nearly arbitrary and mostly lack them. Raises EngineError.
    """
    learnt, _ = parts.learnt_for(reading.profile)
    if learnt is None or parts.settings.mode != "recall":
        return []
    likely = learnt.best(reading.profile.preferences, LEARNT_WINDOWS * parts.settings.window)
    query = replace(query, vector=None, recall=False, size=len(likely), among=tuple(likely))
    holds = holds_query(reading, lambda hit: hit_text(hit.source, info.fields))
    found = {hit.doc_id: hit for hit in engine.search(query).hits if holds(hit)}
    return [found[doc_id] for doc_id in likely if doc_id in found][: parts.settings.window]


# Rank: one place for every rule, wherever the hits come from.


@dataclass(frozen=True, slots=True)
class Ranking:
    """A window's hits in this user's order, and why."""

    hits: tuple[Ranked, ...]  # pinned ones first
    status: RerankStatus
    reason: str = ""  # why the status is `off` or `failed`, or what else was left out
    explain: Callable[[Sequence[Ranked]], tuple[Ranked, ...]] = field(default=tuple, repr=False, compare=False)
    """Adds to hits of this ranking the evidence that raised them."""


def rank(
    reading: Reading, window: Window, settings: Settings, learnt: Learnt | None = None, reason: str = ""
) -> Ranking:
    """Orders the window's hits for the reading's user. No I/O.

    `learnt` holds what was learnt from other users; `reason` says why it is missing if it could not be read.
    """
    if reading.declined:
        return Ranking(tuple(unranked(window.hits)), RerankStatus.OFF, reading.declined)
    if reading.fault:
        return Ranking(tuple(unranked(window.hits)), RerankStatus.FAILED, Stage.ENCODE)
    pinned = [hit for hit in window.hits if hit.pinned]
    # Sorted by id, so that equal scores never depend on the order in which the hits arrived.
    free = sorted((hit for hit in window.hits if not hit.pinned), key=attrgetter("doc_id"))
    vector = query_vector(reading, settings)
    if vector:
        vector = keep_typed(free, vector)
    user = user_vector(reading.profile, window.liked, vector.last_turn if vector else None, settings.last_turn_share)
    holds = holds_query(reading, window.text) if learnt else None
    learnt_scores = LearntScores.over(free, reading.profile.preferences, learnt, holds)
    query = vector.mixed if vector else None
    scores = score_window(free, query, user, learnt_scores)
    order = order_window(free, scores, settings.weights, start=len(pinned) + 1)

    def explain(hits: Sequence[Ranked]) -> tuple[Ranked, ...]:
        explained = reading.explained
        return explain_hits(
            hits, Judge.over(free, settings.weights, query, user, explained, learnt_scores), window.text
        )

    complete = vector is not None and all(hit.vector is not None for hit in free)
    reasons = [reason] if reading.vectors else [Reason.NO_ENCODER, reason]
    return Ranking(
        (*unranked(pinned), *order),
        RerankStatus.FULL if complete else RerankStatus.PARTIAL,
        ",".join(filter(None, reasons)),
        explain,
    )


def holds_query(reading: Reading, text: Callable[[Hit], str]) -> Callable[[Hit], bool]:
    """A test of whether a hit holds all words of the query and its rewrite."""
    return holds_all(reading.explained.text, lambda hit: text(hit)[:EMBEDDED_CHARS])


def explain_hits(hits: Sequence[Ranked], judge: Judge, text: Callable[[Hit], str]) -> tuple[Ranked, ...]:
    """The hits with their evidence; a hit without scores gets none."""
    rewrite = judge.rewrite
    query = set(analysis.terms(f"{rewrite.query} {rewrite.text}"))
    stems = {term.text: stem for term in rewrite.terms for stem in analysis.terms(term.text)[:1]}
    found = []
    for ranked in hits:
        if not any(ranked.scores):
            found.append(ranked)
            continue
        words = set(analysis.terms(text(ranked.hit)))
        found.append(replace(ranked, evidence=tuple(judge.evidence(ranked, words, stems, len(query & words)))))
    return tuple(found)


# Page: what the caller of our own search sees.


def show_page(request: Request, reading: Reading, retrieved: Retrieved, parts: Parts) -> Result:
    """The requested page of the ranked hits. No I/O."""
    as_typed = retrieved.as_typed
    if reading.declined or reading.fault:
        ranking = rank(reading, Window(as_typed.hits), parts.settings)
        return cut(request, reading, as_typed, ranking, note=fault_note(reading.fault) or ranking.reason)
    try:
        window, rest = prepare_window(retrieved, reading, parts)
    except ModelError as error:
        failed = Ranking(tuple(unranked(as_typed.hits)), RerankStatus.FAILED, Stage.EMBED)
        return cut(request, reading, as_typed, failed, note=fault_note(str(error)))
    learnt, damage = parts.learnt_for(reading.profile)
    ranking = rank(reading, window, parts.settings, learnt, Reason.LEARNT_UNREADABLE if damage else "")
    result = cut(request, reading, as_typed, ranking, rest, damage)
    return replace(result, page=ranking.explain(result.page), weights=parts.settings.weights.as_tuple())


def fault_note(fault: str) -> str:
    return f"not reranked: {fault}" if fault else ""


def prepare_window(retrieved: Retrieved, reading: Reading, parts: Parts) -> tuple[Window, list[Hit]]:
    """The window to rank, and the hits beyond it. Raises ModelError."""
    added, info, settings = {hit.doc_id for hit in retrieved.added}, retrieved.info, parts.settings
    hits = join(retrieved.hits.hits, retrieved.added)
    encoder = parts.encoder if reading.vectors else None
    inside = [i < settings.window or hit.doc_id in added for i, hit in enumerate(hits)]
    embedded = embed(hits, inside, retrieved, reading.profile, encoder)
    found = [replace(hit, vector=vector) for hit, vector in zip(hits, embedded.hits, strict=True)]
    chosen, rest = choose_window(found, retrieved.vector, settings.window, added)
    return Window(chosen, embedded.liked, lambda hit: hit_text(hit.source, info.fields)), rest


def is_comparable(info: IndexInfo, encoder: Encoder | None) -> bool:
    """Whether the index's own vectors compare with the encoder's."""
    return encoder is not None and info.encoder == encoder.name


def join(hits: Sequence[Hit], added: Sequence[Hit]) -> list[Hit]:
    """The hits, then the added ones. A hit found only by vector takes its lexical score from `added`."""
    by_id = {hit.doc_id: hit for hit in added}
    joined = [by_id[hit.doc_id] if hit.score == 0 and hit.doc_id in by_id else hit for hit in hits]
    there = {hit.doc_id for hit in hits}
    return [*joined, *(hit for hit in added if hit.doc_id not in there)]


def embed(
    hits: Sequence[Hit], inside: Sequence[bool], retrieved: Retrieved, profile: Profile, encoder: Encoder | None
) -> Embedded:
    """The hits with vectors comparable to the query's: the index's own, or made from their texts. Raises ModelError."""
    if encoder is None:
        return Embedded((None,) * len(hits))
    info, comparable = retrieved.info, is_comparable(retrieved.info, encoder)
    vectors = [hit.vector if comparable else None for hit in hits]
    bare = [i for i, vector in enumerate(vectors) if vector is None and inside[i]]
    for i, vector in zip(
        bare, embed_texts([hit_text(hits[i].source, info.fields) for i in bare], encoder), strict=True
    ):
        vectors[i] = vector
    liked = {d.doc_id: d.vector for d in retrieved.liked if d.vector is not None and comparable}
    texts = liked_titles(profile) | {d.doc_id: hit_text(d.source, info.fields) for d in retrieved.liked}
    missing = [doc_id for doc_id in texts if doc_id not in liked]
    liked |= dict(zip(missing, embed_texts([texts[doc_id] for doc_id in missing], encoder), strict=True))
    return Embedded(tuple(vectors), liked, {info.index: info.fields})


def embed_texts(texts: Sequence[str], encoder: Encoder) -> list[Vector]:
    """A vector for the beginning of each text; zeros for one without text. Raises ModelError."""
    there = [text for text in texts if text.strip()]
    rows = iter(encoder.encode([text[:EMBEDDED_CHARS] for text in there]))
    return [next(rows) if text.strip() else np.zeros(encoder.dim, np.float32) for text in texts]


def cut(
    request: Request, reading: Reading, as_typed: Hits, ranking: Ranking, rest: Sequence[Hit] = (), note: str = ""
) -> Result:
    """The requested page of a ranking and the hits beyond it; a hit's rank is that in the engine's own answer, or 0."""
    ranks = {hit.doc_id: hit.rank for hit in as_typed.hits}
    order = [*ranking.hits, *unranked(rest, start=len(ranking.hits) + 1)]
    page = tuple(
        replace(ranked, hit=replace(ranked.hit, rank=ranks.get(ranked.hit.doc_id, 0)))
        for ranked in order[request.offset : request.offset + request.size]
    )
    notes = (note,) if note else ()
    return Result(request, reading.rewrite, page, as_typed, ranking.status, ranking.reason, notes)
