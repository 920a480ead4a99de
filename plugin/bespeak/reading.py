"""Reads a query for a user: what it leans on, the rewrite, the words picked from the session, and the vectors.

Nothing here knows an engine or does I/O. `read` runs all steps; the proxy runs them one by one, each within its own
budget.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Literal, TypeAlias

import numpy as np

from bespeak.errors import ModelError
from bespeak.models.encoder import RememberingEncoder
from bespeak.parts import Parts
from bespeak.ranking.tuned import (
    LAST_TURN_BESIDE_SESSION,
    LAST_TURN_CHARS,
    PICKED_WEIGHT,
    TYPED_SHARE_BESIDE_SESSION,
)
from bespeak.ranking.vectors import Addend, QueryVector, add_up
from bespeak.records import Clause, Profile, Rewrite, Term, Turn, Vector
from bespeak.rewriting.rewriter import Rewriter, model_of, run_rewriter
from bespeak.session import gate
from bespeak.settings import Settings
from bespeak.statuses import REWRITE_REASONS, Reason, RewriteStatus
from bespeak.text.words import fold

if TYPE_CHECKING:
    from bespeak.session.reader import Context, ContextReader

MAX_QUERY_CHARS = 10_000

VectorName: TypeAlias = Literal["typed", "rewrite", "session", "picked", "last_turn"]
"""`typed` and `rewrite` encode one text each, `session` the query read with its session, `last_turn` the last turn's
query and response. `picked`, used if the reader of the session was made for another encoder, encodes the query followed
by the picked words."""


@dataclass(frozen=True, slots=True)
class Reading:
    """What a query means for a user, before any engine is asked."""

    query: str
    profile: Profile  # without the turns of this very query
    gate: Reason | None  # why the session plays no part, and the query goes out as typed
    declined: Reason | None  # why the engine's order must stay
    rewrite: Rewrite
    context: Context | None = None  # what of the session the query leans on; None if nothing reads it
    picked: tuple[Term, ...] | None = None  # words of the session to search for; None if nothing reads it
    vectors: Mapping[VectorName, Vector] = field(default_factory=dict)  # empty without an encoder, or if it failed
    fault: str = ""  # why the encoder failed

    @property
    def has_clauses(self) -> bool:
        """Whether the session added words to search for."""
        return self.rewrite.changed or bool(self.picked)

    @property
    def explained(self) -> Rewrite:
        """The rewrite with the picked words appended: every word that is searched for, with its source."""
        new = [t for t in self.picked or () if all(fold(t.text) != fold(own.text) for own in self.rewrite.terms)]
        text = join_terms(self.rewrite.text, new)
        return replace(self.rewrite, text=text, terms=(*self.rewrite.terms, *new))

    @property
    def last_turn(self) -> Turn | None:
        """The last turn, if the session plays a part."""
        return self.profile.turns[-1] if self.profile.turns and not self.gate else None


def read(query: str, profile: Profile, parts: Parts) -> Reading:
    """Reads a query in full. If an encoder fails, `fault` says why; if the rewriter fails, its status does."""
    reading = open_reading(query, profile)
    try:
        reading = read_context(reading, parts.context)
        if reading.declined:
            return reading
        reading = replace(reading, rewrite=rewrite_reading(reading, parts.rewriter, parts.settings.rewrite_ms))
        return encode_reading(reading, parts)
    except ModelError as error:
        return replace(reading, fault=str(error))


def open_reading(query: str, profile: Profile) -> Reading:
    """A reading that holds the gate's decision and nothing else yet. The gate is asked only here."""
    profile = without_query(profile, query)
    return close_gate(Reading(query, profile, None, None, as_typed(query)), gate.decline_rewriting(query, profile))


def as_typed(query: str, reason: Reason | None = None) -> Rewrite:
    status = RewriteStatus.GATED if reason else RewriteStatus.OFF
    return Rewrite(query, query, status=status, reason=reason or "")


def close_gate(reading: Reading, reason: Reason | None) -> Reading:
    """The reading in which the session plays no part, for this reason."""
    declined = decline_ranking(reading.profile, reason)
    return replace(reading, gate=reason, declined=declined, rewrite=as_typed(reading.query, reason))


def read_context(reading: Reading, reader: ContextReader | None) -> Reading:
    """The reading with what the query leans on; if that is nothing, its gate is closed. Raises Late and ModelError."""
    if reading.gate or reader is None:
        return reading
    context = reader.read(reading.query, reading.profile)
    if context.stands_alone:
        return close_gate(reading, Reason.STANDS_ALONE)
    return replace(reading, context=context, picked=context.terms(reading.profile))


def without_query(profile: Profile, query: str) -> Profile:
    """The profile without earlier turns of the same query, since a query is never its own history."""
    asked = same_text(query)
    turns = tuple(turn for turn in profile.turns if same_text(turn.query) != asked)
    if len(turns) == len(profile.turns):
        return profile
    return replace(profile, turns=turns, version=f"{profile.version} without {asked}")


def same_text(query: str) -> str:
    """The query without differences of case and white space, so that repeated queries compare equal."""
    return " ".join(query.casefold().split())


def decline_ranking(profile: Profile, gate_reason: Reason | None) -> Reason | None:
    """Why the engine's order must stay; None if it may change."""
    if not profile.consent:
        return Reason.REFUSED
    if profile.is_empty:
        return Reason.STRANGER
    if gate_reason in REWRITE_REASONS and profile.preferences:  # what the user liked still counts
        return None
    return gate_reason


def rewrite_reading(reading: Reading, rewriter: Rewriter, budget_ms: float | None = None) -> Rewrite:
    """The rewrite, or the query as typed if the gate demands it. Never raises."""
    if reading.gate:
        return replace(reading.rewrite, model=model_of(rewriter))
    return run_rewriter(reading.query, reading.profile, rewriter, budget_ms)


def rewrite_query(
    query: str, profile: Profile, rewriter: Rewriter, reader: ContextReader | None, budget_ms: float | None = None
) -> Rewrite:
    """The rewrite that a search would make of this query. Raises Late and ModelError if the session cannot be read."""
    reading = read_context(open_reading(query, profile), reader)
    return rewrite_reading(reading, rewriter, budget_ms)


def encode_reading(reading: Reading, parts: Parts) -> Reading:
    """The reading with its vectors, or unchanged without an encoder. Raises ModelError and Late."""
    if parts.encoder is None:
        return reading
    texts = texts_to_encode(reading, parts)
    rows = parts.encoder.encode(list(texts.values()), kind="query")  # (n_texts, dim)
    vectors: dict[VectorName, Vector] = dict(zip(texts, rows, strict=True))
    if reading.context and (reader := session_encoder(reading, parts)):
        vectors["session"] = reader.encode(reading.context)
    return replace(reading, vectors=vectors)


def is_remembered(reading: Reading, parts: Parts) -> bool:
    """Whether `encode_reading` will find every vector in memory, and so take no time."""
    texts, reader = list(texts_to_encode(reading, parts).values()), session_encoder(reading, parts)
    known = isinstance(parts.encoder, RememberingEncoder) and parts.encoder.knows(texts, "query")
    return known and (reading.context is None or reader is None or reader.knows_vector(reading.context))


def session_encoder(reading: Reading, parts: Parts) -> ContextReader | None:
    """What encodes the query with its session; None if the session plays no part, or its vector would not compare."""
    same = parts.encoder and parts.context and parts.context.of == parts.encoder.name
    return parts.context if reading.context and same else None


def texts_to_encode(reading: Reading, parts: Parts) -> dict[VectorName, str]:
    """The texts to encode, by the names of their vectors."""
    texts: dict[VectorName, str] = {"typed": reading.query}
    if reading.rewrite.changed:
        texts["rewrite"] = reading.rewrite.text
    if reading.picked and not session_encoder(reading, parts):
        texts["picked"] = join_terms(reading.query, reading.picked)
    if reading.last_turn:
        texts["last_turn"] = turn_text(reading.last_turn)
    return texts


def clauses(reading: Reading, settings: Settings) -> tuple[Clause, ...]:
    """The clauses that a search adds to the query as typed: its rewrite, the picked words and the last turn's words."""
    if not reading.has_clauses:
        return ()
    added = [Clause(reading.rewrite.text, settings.rewrite_weight)] if reading.rewrite.changed else []
    if reading.picked:
        added.append(Clause(" ".join(term.text for term in reading.picked), PICKED_WEIGHT))
    weight = settings.last_turn_weight * (1.0 if reading.picked is None else LAST_TURN_BESIDE_SESSION)
    if reading.last_turn and weight > 0:
        added.append(Clause(turn_text(reading.last_turn), weight))
    return tuple(added)


def query_vector(reading: Reading, settings: Settings) -> QueryVector | None:
    """One vector mixed from the query, its rewrite, its session and a share of the last turn.

    None if nothing was encoded or the addends cancel out.
    """
    vectors = reading.vectors
    if "typed" not in vectors:
        return None
    typed, reads_session = Addend(vectors["typed"]), "session" in vectors
    addends = [typed.times(TYPED_SHARE_BESIDE_SESSION) if reads_session else typed]
    if "rewrite" in vectors:
        addends.append(rewrite_addend(reading.rewrite, vectors["rewrite"]))
    if reads_session or reading.picked is not None:
        with_session = vectors.get("session", vectors.get("picked", vectors["typed"]))
        addends += session_addends(vectors["typed"], with_session, session_events(reading))
    last_turn = None
    if (turn := reading.last_turn) and "last_turn" in vectors:
        last_turn = Addend(vectors["last_turn"], turn.event_id, turn.query, "turn")
        beside = reads_session or reading.picked is not None
        share = settings.last_turn_share * (LAST_TURN_BESIDE_SESSION if beside else 1.0)
        addends.append(last_turn.times(share))
    mixed = add_up(addends)
    return QueryVector(mixed, typed, last_turn) if mixed else None


def rewrite_addend(rewrite: Rewrite, vector: Vector) -> Addend:
    """The rewrite's vector, credited to the event that gave most of its words."""
    events = [term.event_id for term in rewrite.terms if term.event_id]
    if not events:
        return Addend(vector)
    event_id = max(events, key=events.count)
    given = [term for term in rewrite.terms if term.event_id == event_id]
    return Addend(vector, event_id, " ".join(term.text for term in given), given[0].source)


def session_addends(typed: Vector, with_session: Vector, events: Sequence[tuple[Addend, float]]) -> list[Addend]:
    """The query's vector, then what the session adds to it, split among `events` by their weights.

    A single event gets all of it: without that event, exactly the query remains. With several events each share is an
    estimate, because they were encoded together.
    """
    total = sum(weight for _, weight in events)
    added = with_session - typed  # (dim,)
    return [Addend(typed), *(replace(event, vector=added).times(weight / total) for event, weight in events)]


def session_events(reading: Reading) -> list[tuple[Addend, float]]:
    """The events behind the session's vector, with weights.

    They are the events that gave the picked words, weighted by the number of words; without picked words, the last
    turn; without turns, all statements.
    """
    none, picked, profile = np.zeros(0, np.float32), reading.picked or (), reading.profile
    if picked:
        by_event: dict[str, list[Term]] = {}
        for term in picked:
            by_event.setdefault(term.event_id, []).append(term)
        return [
            (Addend(none, event_id, " ".join(t.text for t in given), given[0].source), float(len(given)))
            for event_id, given in by_event.items()
        ]
    if turn := reading.last_turn:
        return [(Addend(none, turn.event_id, turn.query, "turn"), 1.0)]
    return [(Addend(none, one.event_id, one.text, "statement"), 1.0) for one in profile.statements]


def join_terms(query: str, terms: Sequence[Term]) -> str:
    return " ".join([query, *(term.text for term in terms)])


def turn_text(turn: Turn) -> str:
    return f"{turn.query} {turn.response}".strip()[:LAST_TURN_CHARS]
