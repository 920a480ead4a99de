"""The way of a query on one page: profile, gate, rewrite, plan, retrieve, score, rank, page.

`plan` and `finish` do no I/O; the call to the engine stands between them, so that every face shares both.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import numpy as np

from bespeak.document import document_text
from bespeak.engines import Engine, IndexInfo
from bespeak.errors import ModelError, StoreError, UsageError
from bespeak.parts import Parts, Profiles
from bespeak.ranking.rerank import (
    Judge,
    Mixed,
    Part,
    Taste,
    agree,
    choose_window,
    cosines,
    follow,
    holds_all,
    mix,
    personal,
    rank,
    score,
    unranked,
    user_parts,
)
from bespeak.records import (
    Clause,
    Document,
    EngineQuery,
    Hit,
    Hits,
    Profile,
    Ranked,
    Request,
    RerankStatus,
    Result,
    Rewrite,
    Term,
    Turn,
    Vector,
)
from bespeak.rewriting.rewriter import rewrite_query
from bespeak.session import gate
from bespeak.settings import Settings
from bespeak.text import analysis
from bespeak.text.words import fold

if TYPE_CHECKING:
    from bespeak.ranking.learning import Learnt

MAX_QUERY_CHARS = 10_000
MAX_PREFERENCES = 50
"""How many of the strongest preferences make the user's vector."""
LAST_TURN_CHARS = 400
EMBEDDED_CHARS = 1_000
"""How much of a hit's text is embedded where the index holds no vector for it."""

TYPED_SHARE = 0.9
"""Of the query as typed in the query's vector, where it and its context find the same hits."""

PICKED_WEIGHT = 0.3
"""BM25 weight of the picked words beside the query's own 1.0."""
BESIDE_TERMS = 0.4
"""Of the last turn's weight and of its share in the query's vector, what is left where words are picked from it, or the
session is read beside the query."""
BROUGHT = 4
"""Of what was learnt, so many windows of documents are looked at for hits to bring in."""
BESIDE_CONTEXT = 0.5
"""Of the query in its vector, what is left where its session is read beside it."""

UNWRITTEN = ("no_history", "too_long", "other_language")
"""Gates that stop the rewrite alone: the hits of such a query may still be reranked."""


@dataclass(frozen=True, slots=True)
class Context:
    """What is asked as vectors: query, rewrite and last turn mixed into one, and the last turn's part by itself."""

    query: Mixed | None = None
    last_turn: Part | None = None
    typed: Part | None = None  # the query as typed, alone


@dataclass(frozen=True, slots=True)
class Plan:
    """What to ask the engine for this person, and what is needed to judge its answer."""

    request: Request
    profile: Profile
    rewrite: Rewrite
    query: EngineQuery
    info: IndexInfo
    context: Context = Context()
    picked: tuple[Term, ...] | None = None
    declined: str = ""  # why the engine's order stays as it is
    notes: tuple[str, ...] = ()

    @property
    def liked_ids(self) -> list[str]:
        """The documents whose vectors make the user's."""
        if self.declined:
            return []
        return [p.doc_id for p in self.profile.preferences[:MAX_PREFERENCES]]


def search(engine: Engine, profiles: Profiles, request: Request, parts: Parts, now: datetime | None = None) -> Result:
    """One personalised search, start to end; a profile that cannot be read leaves the engine's own answer."""
    check(request)
    info = engine.describe(request.index)
    notes: tuple[str, ...] = ()
    try:
        profile = profiles.profile(request.user, request.session_id, now or datetime.now(UTC))
    except StoreError as error:
        profile, notes = Profile(request.user, request.session_id), (f"not personalised: {error}",)
    asked = plan(request, profile, info, parts)
    hits = engine.search(asked.query)
    own = hits if asked.declined else engine.search(plain(request, parts.settings))
    liked = engine.fetch(request.index, asked.liked_ids) if asked.liked_ids else []
    result = finish(asked, hits, own, liked, parts, bring_in(engine, asked, parts))
    return replace(result, notes=notes + result.notes)


def check(request: Request) -> None:
    """Raises UsageError for what no engine could answer."""
    if not request.query.strip():
        raise UsageError("the query is empty: give at least one word")
    if len(request.query) > MAX_QUERY_CHARS:
        raise UsageError(
            f"the query is {len(request.query)} characters long, the limit is {MAX_QUERY_CHARS}: shorten it"
        )
    if request.size < 1 or request.offset < 0:
        raise UsageError(f"size must be at least 1 and offset at least 0, but are {request.size} and {request.offset}")


def plan(request: Request, profile: Profile, info: IndexInfo, parts: Parts) -> Plan:
    """What to ask the engine for this person. No network."""
    declined = leave_alone(request.query, profile)
    rewrite = rewrite_query(request.query, profile, parts.rewriter, parts.settings.rewrite_ms)
    if declined:
        return Plan(request, profile, rewrite, plain(request, parts.settings), info, declined=declined)
    picked, notes = parts.pick(request.query, profile), tuple[str, ...]()
    try:
        context = contextualise(rewrite, profile, parts, picked)
    except ModelError as error:
        context, notes = Context(), (f"no embeddings: {error}",)
    added = added_clauses(rewrite, profile, parts.settings, picked)
    query = expand(request, added, info, context, parts)
    return Plan(request, profile, rewrite, query, info, context, picked, notes=notes)


def bring_in(engine: Engine, asked: Plan, parts: Parts) -> list[Hit]:
    """In recall mode, hits among what others' behaviour says this person would like: those with all words of the query.

    Of a broad query the engine's first hundred are chance, and what the user would like is mostly not among them.
    """
    learnt, _ = parts.learnt_for(asked.profile)
    if asked.declined or learnt is None or not asked.query.recall:
        return []
    among = learnt.best(asked.profile.preferences, BROUGHT * parts.settings.window)
    query = replace(asked.query, vector=None, recall=False, size=len(among), among=tuple(among))
    holds = whole(asked)
    found = {hit.doc_id: hit for hit in engine.search(query).hits if holds(hit)}
    return [found[doc_id] for doc_id in among if doc_id in found][: parts.settings.window]


def whole(asked: Plan) -> Callable[[Hit], bool]:
    """Whether a hit holds all words of what was asked."""
    said = with_picked(asked.rewrite, asked.picked or ())
    return holds_all(said.text, lambda hit: document_text(hit.source, asked.info.fields)[:EMBEDDED_CHARS])


def leave_alone(query: str, profile: Profile) -> str:
    """Why the answer stays the engine's own; "" where it may change."""
    if not personal(profile):
        return "refused" if not profile.consent else "stranger"
    reason = gate.decline(query, profile)
    return "" if reason in UNWRITTEN else reason


def plain(request: Request, settings: Settings) -> EngineQuery:
    """The query as typed, nothing added."""
    size = max(settings.window, request.offset + request.size)
    return EngineQuery(request.index, (Clause(request.query),), size=size, filters=request.filters)


def contextualise(rewrite: Rewrite, profile: Profile, parts: Parts, picked: Sequence[Term] | None = None) -> Context:
    """The query's vector: query + rewrite + query read with its session + a share of the last turn.

    Without an encoder there is none. Where nothing reads the session, the query with the words picked of it stands in
    its place; `picked` is None where nothing picks words.
    """
    if parts.encoder is None:
        return Context()
    turn, share = profile.turns[-1] if profile.turns else None, parts.settings.last_turn_share
    reader = parts.reader(rewrite.query, profile)
    vectors = parts.encoder.encode(context_texts(rewrite, profile, parts, picked), kind="query")
    typed = Part(vectors[0])
    found = [replace(typed, vector=typed.vector * BESIDE_CONTEXT) if reader else typed]
    if rewrite.changed:
        found.append(Part(vectors[1], *rewrite_source(rewrite)))
    if reader:
        found += read_parts(vectors[0], reader.encode(rewrite.query, profile), read_of(profile, picked or ()))
    elif picked is not None:
        found += read_parts(vectors[0], vectors[len(found)] if picked else vectors[0], read_of(profile, picked))
    if reader or picked is not None:
        share *= BESIDE_TERMS
    last = Part(vectors[-1], turn.event_id, turn.query, "turn") if turn else None
    if last:
        found.append(replace(last, vector=last.vector * share))
    return Context(mix(found), last, typed)


def read_parts(query: Vector, read: Vector, events: Sequence[tuple[Part, float]]) -> list[Part]:
    """The vector of the query as read with its session, as the query's own, once more, and what the session adds to it.

    What it adds is shared among `events` by their weights. One event's is all of it, so that without the
    event exactly the query's own is left; of several each share is an estimate, as they were encoded together.
    """
    total = sum(weight for _, weight in events)
    added = [replace(part, vector=((read - query) * (weight / total)).astype(np.float32)) for part, weight in events]
    return [Part(query), *added]


def read_of(profile: Profile, picked: Sequence[Term]) -> list[tuple[Part, float]]:
    """The events that gave the picked words, by how many; without such words the last turn, else all statements."""
    none, found = np.zeros(0, np.float32), []
    for event_id in dict.fromkeys(term.event_id for term in picked):
        given = [term for term in picked if term.event_id == event_id]
        words = " ".join(term.text for term in given)
        found.append((Part(none, event_id, words, given[0].source), float(len(given))))
    if not found and profile.turns:
        turn = profile.turns[-1]
        return [(Part(none, turn.event_id, turn.query, "turn"), 1.0)]
    return found or [(Part(none, said.event_id, said.text, "statement"), 1.0) for said in profile.statements]


def context_texts(rewrite: Rewrite, profile: Profile, parts: Parts, picked: Sequence[Term] | None = None) -> list[str]:
    """What the encoder reads: the query, a rewrite that differs, the query with words picked where nothing reads its
    session, the last turn."""
    texts = [rewrite.query] + ([rewrite.text] if rewrite.changed else [])
    if picked and not parts.reader(rewrite.query, profile):
        texts.append(with_terms(rewrite.query, picked))
    return [*texts, turn_text(profile.turns[-1])] if profile.turns else texts


def with_terms(query: str, picked: Sequence[Term]) -> str:
    return " ".join([query, *(term.text for term in picked)])


def with_picked(rewrite: Rewrite, picked: Sequence[Term]) -> Rewrite:
    """With the picked words among its own: all that was searched for, and where it came from."""
    new = [term for term in picked if all(fold(term.text) != fold(own.text) for own in rewrite.terms)]
    return replace(rewrite, text=with_terms(rewrite.text, new), terms=(*rewrite.terms, *new))


def rewrite_source(rewrite: Rewrite) -> tuple[str, str, str]:
    """The event that gave most of a rewrite's words, those words, and whether it was a turn or a statement."""
    events = [term.event_id for term in rewrite.terms if term.event_id]
    if not events:
        return "", "", ""
    event_id = max(events, key=events.count)
    found = [term for term in rewrite.terms if term.event_id == event_id]
    return event_id, " ".join(term.text for term in found), found[0].source


def turn_text(turn: Turn) -> str:
    return f"{turn.query} {turn.response}".strip()[:LAST_TURN_CHARS]


def expand(request: Request, added: Sequence[Clause], info: IndexInfo, context: Context, parts: Parts) -> EngineQuery:
    """The query with what is added as optional clauses, so that in boost mode the matching set stays."""
    settings = parts.settings
    recall = settings.mode == "recall"
    comparable = parts.encoder is not None and info.encoder == parts.encoder.name
    return replace(
        plain(request, settings),
        optional=tuple(added),
        vector=context.query.vector if context.query and recall and comparable else None,
        recall=recall,
    )


def added_clauses(
    rewrite: Rewrite, profile: Profile, settings: Settings, picked: Sequence[Term] | None = None
) -> tuple[Clause, ...]:
    """What is searched beside the query as typed: its rewrite, words picked of the session, those of the last turn."""
    added = [Clause(rewrite.text, settings.rewrite_weight)] if rewrite.changed else []
    if picked:
        added.append(Clause(" ".join(term.text for term in picked), PICKED_WEIGHT))
    weight = settings.last_turn_weight * (1.0 if picked is None else BESIDE_TERMS)
    if profile.turns and weight > 0:
        added.append(Clause(turn_text(profile.turns[-1]), weight))
    return tuple(added)


def finish(
    asked: Plan, hits: Hits, own: Hits, liked: Sequence[Document], parts: Parts, brought: Sequence[Hit] = ()
) -> Result:
    """The engine's hits reranked for this person, cut to the asked page. No network.

    `own` is the engine's answer to the query as typed: what every hit is said to have moved from, and what is shown
    where nothing could be reranked. `brought` are hits beside them, for the window.
    """
    if asked.declined:
        return cut(asked, own, unranked(own.hits), "off", asked.declined)
    added = {hit.doc_id for hit in brought}
    try:
        embedded = embed_hits(join(hits.hits, brought), asked, parts, added)
        vectors = embed_liked(liked, asked, parts)
    except ModelError as error:
        return cut(asked, own, unranked(own.hits), "failed", f"not reranked: {error}")
    window, rest = choose_window(embedded, asked.query.vector, parts.settings.window, added)
    context = steady(window, asked.context)
    learnt, note = parts.learnt_for(asked.profile)
    said = with_picked(asked.rewrite, asked.picked or ())
    holds = whole(asked) if learnt else None
    ranking, user, taste = rank_window(window, asked.profile, context, vectors, parts.settings, learnt, holds)
    judge = Judge.over(window, parts.settings.weights, context.query, user, said, taste)
    complete = context.query is not None and all(hit.vector is not None for hit in window)
    result = cut(asked, own, follow(ranking, rest), "full" if complete else "partial", note)
    page = explain(result.page, judge, said, lambda hit: document_text(hit.source, asked.info.fields))
    return replace(result, page=page, weights=parts.settings.weights.as_tuple())


def steady(window: Sequence[Hit], context: Context) -> Context:
    """The context, with most of the query as typed in it where both find the same hits: then little is missing from
    what was typed, and a context that reorders good hits mostly harms."""
    if context.query is None or context.typed is None or len(context.query.parts) < 2:
        return context
    if not agree(cosines(window, context.query.vector), cosines(window, context.typed.vector)):
        return context
    left = (1 - TYPED_SHARE) / context.query.norm
    parts = [replace(part, vector=part.vector * left) for part in context.query.parts]
    return replace(context, query=mix([*parts, replace(context.typed, vector=context.typed.vector * TYPED_SHARE)]))


def rank_window(
    window: Sequence[Hit],
    profile: Profile,
    context: Context,
    liked: Mapping[str, Vector],
    settings: Settings,
    learnt: Learnt | None = None,
    holds: Callable[[Hit], bool] | None = None,
) -> tuple[list[Ranked], Mixed | None, Taste | None]:
    """The window's hits in this person's order, the user's vector, and what others' behaviour says of the hits.

    `liked`: vectors of what the user likes; `holds`: whether a hit has all words of the query.
    """
    last = (profile.turns[-1], context.last_turn.vector) if context.last_turn else None
    user = mix(user_parts(profile.preferences, liked, last, settings.last_turn_share))
    taste = Taste.over(window, profile.preferences, learnt, holds)
    scores = score(window, context.query.vector if context.query else None, user.vector if user else None, taste)
    return rank(window, scores, settings.weights), user, taste


def join(hits: Sequence[Hit], brought: Sequence[Hit]) -> list[Hit]:
    """The hits, then those that were brought in beside them; one that the vector alone had found gets its score."""
    by_id = {hit.doc_id: hit for hit in brought}
    known = [by_id[hit.doc_id] if hit.score == 0 and hit.doc_id in by_id else hit for hit in hits]
    there = {hit.doc_id for hit in hits}
    return [*known, *(hit for hit in brought if hit.doc_id not in there)]


def embed_hits(hits: Sequence[Hit], asked: Plan, parts: Parts, brought: Collection[str] = ()) -> list[Hit]:
    """The hits with vectors that compare with the query's: the index's own, or made from their texts."""
    if parts.encoder is None or asked.context.query is None:
        return [replace(hit, vector=None) for hit in hits]
    comparable = asked.info.encoder == parts.encoder.name
    bare = [
        i
        for i, hit in enumerate(hits)
        if (i < parts.settings.window or hit.doc_id in brought) and (hit.vector is None or not comparable)
    ]
    found = [hit if comparable else replace(hit, vector=None) for hit in hits]
    texts = [document_text(hits[i].source, asked.info.fields)[:EMBEDDED_CHARS] for i in bare]
    for i, vector in zip(bare, parts.encoder.encode(texts), strict=True):
        found[i] = replace(found[i], vector=vector)
    return found


def embed_liked(liked: Sequence[Document], asked: Plan, parts: Parts) -> dict[str, Vector]:
    """Vectors of what the user liked, by doc_id; of a document that the index lacks, from its title."""
    if parts.encoder is None:
        return {}
    comparable = asked.info.encoder == parts.encoder.name
    vectors = {d.doc_id: d.vector for d in liked if d.vector is not None and comparable}
    texts = {p.doc_id: p.title for p in asked.profile.preferences[:MAX_PREFERENCES] if p.title}
    texts |= {d.doc_id: document_text(d.source, asked.info.fields)[:EMBEDDED_CHARS] for d in liked}
    bare = [doc_id for doc_id in texts if doc_id not in vectors]
    made = parts.encoder.encode([texts[doc_id] for doc_id in bare])
    return vectors | dict(zip(bare, made, strict=True))


def cut(asked: Plan, own: Hits, ranking: Sequence[Ranked], status: RerankStatus, note: str = "") -> Result:
    """The asked page of a ranking, each hit with its rank in the engine's own answer, 0 where it was not in it."""
    request = asked.request
    ranks = {hit.doc_id: hit.rank for hit in own.hits}
    page = tuple(
        replace(ranked, hit=replace(ranked.hit, rank=ranks.get(ranked.hit.doc_id, 0)))
        for ranked in ranking[request.offset : request.offset + request.size]
    )
    notes = (*asked.notes, note) if note else asked.notes
    return Result(request, asked.rewrite, page, own, status, notes)


def explain(page: Sequence[Ranked], judge: Judge, rewrite: Rewrite, read: Callable[[Hit], str]) -> tuple[Ranked, ...]:
    """The page with the evidence that raised each hit, none for those beyond the window; `read` gives the text that a
    hit was found by."""
    query = set(analysis.terms(f"{rewrite.query} {rewrite.text}"))
    stems = {term.text: stem for term in rewrite.terms for stem in analysis.terms(term.text)[:1]}
    found = []
    for ranked in page:
        if not any(ranked.scores):
            found.append(ranked)
            continue
        words = set(analysis.terms(read(ranked.hit)))
        found.append(replace(ranked, evidence=tuple(judge.evidence(ranked, words, stems, len(query & words)))))
    return tuple(found)
