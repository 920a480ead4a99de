"""The records that travel along the way of a query; frozen, plain, and free of behaviour that does I/O."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
import numpy.typing as npt

from bespeak.statuses import RerankStatus, RewriteStatus

Vector: TypeAlias = npt.NDArray[np.float32]
"""`(dim,)` float32 of unit length."""

Matrix: TypeAlias = npt.NDArray[np.float32]
"""`(n, dim)` float32, rows of unit length unless said otherwise."""


class UserKey(NamedTuple):
    """Whose data: two tenants never share a user, whatever the user is called."""

    tenant: str
    user_id: str


@dataclass(frozen=True, slots=True)
class Event:
    """One thing a user did, in User Behavior Insights form (schema 1.3) plus `statement` and `rating`.

    `event_id` is a digest of the event's own content, so that the same event loaded twice is one event.
    """

    event_id: str
    user: UserKey
    action: str  # UBI `action_name`: query, impression, click, add_to_cart, purchase, view, watch, statement, rating, …
    timestamp: datetime  # aware, UTC
    session_id: str = ""
    query_id: str = ""
    text: str = ""  # of a query: as typed; of a statement: what was said; of an answer: the response
    doc_id: str = ""  # UBI `event_attributes.object.object_id`
    title: str = ""  # UBI `event_attributes.object.description`
    value: float | None = None  # of a rating: 0.5 to 5
    attributes: Mapping[str, Any] = field(default_factory=dict)  # everything else of the line, for `export`


@dataclass(frozen=True, slots=True)
class Statement:
    """What the user said about themselves: "I am vegetarian"."""

    text: str
    event_id: str


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier query of this session with what was answered: a response text, or the titles of the clicked hits."""

    query: str
    response: str
    event_id: str


@dataclass(frozen=True, slots=True)
class Preference:
    """A document that the user liked (weight above 0), disliked (below 0) or chose and found neither good nor bad (0);
    weight in [-1, 1], already decayed."""

    doc_id: str
    title: str
    weight: float
    action: str
    event_id: str
    timestamp: datetime
    interest: float = field(default=1.0, compare=False)  # in it rather than others, before decay, in [-1, 2]


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known of a user in one session. A stranger's profile is empty, not None."""

    user: UserKey | None = None
    session_id: str = ""
    statements: tuple[Statement, ...] = ()  # oldest first
    turns: tuple[Turn, ...] = ()  # of this session, oldest first
    preferences: tuple[Preference, ...] = ()  # strongest first
    consent: bool = True  # False: the user paused personalisation
    version: str = ""  # digest of all above; two equal versions personalise alike

    @property
    def is_empty(self) -> bool:
        return not (self.statements or self.turns or self.preferences)


Source: TypeAlias = Literal["turn", "statement", "function", "free"]


@dataclass(frozen=True, slots=True)
class Term:
    """One word of a rewrite that the query did not hold, with where it came from."""

    text: str
    source: Source
    event_id: str = ""  # of the turn or statement, if one
    evidence: str = ""  # the turn's query or response, or the statement, as the user knows it


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A rewrite keeps the query it came from. Where nothing was rewritten, `text` equals `query`."""

    query: str
    text: str
    terms: tuple[Term, ...] = ()
    status: RewriteStatus = RewriteStatus.OFF
    reason: str = ""  # of gated, late, failed, dropped: which gate, which fault
    model: str = ""  # name and version of the rewriter

    @property
    def changed(self) -> bool:
        return self.text != self.query


@dataclass(frozen=True, slots=True)
class Document:
    """One document of an index. `vector` is None where the index holds none for it."""

    doc_id: str
    source: Mapping[str, Any]
    vector: Vector | None = None


@dataclass(frozen=True, slots=True)
class Clause:
    """A text and how much its BM25 score counts."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class EngineQuery:
    """What an engine is asked; every engine answers the same hits for it, up to ties.

    The lexical score of a document is the sum over clauses and fields of weight x BM25. `required` must match
    (at least one of its words in at least one field); `optional` only adds to the score of what matches, unless
    `recall` is set: then a match of any clause is enough, and the `size` nearest documents by `vector` come too,
    with a lexical score of 0 where no clause matches or it lies beyond the first `size`.
    """

    index: str
    required: tuple[Clause, ...]
    optional: tuple[Clause, ...] = ()
    vector: Vector | None = None
    recall: bool = False
    size: int = 100
    filters: Mapping[str, str] = field(default_factory=dict)  # exact value of a keyword field
    among: tuple[str, ...] = ()  # ids of the only documents that are looked at, where there are any


@dataclass(frozen=True, slots=True)
class Hit:
    """A document with the engine's lexical score (0 where only the vector found it) and its rank there, from 1.

    On a result's page `rank` is that in the engine's answer to the query as typed; 0: it was not among those fetched.
    """

    doc_id: str
    score: float
    rank: int
    source: Mapping[str, Any]
    vector: Vector | None = None
    pinned: bool = False  # an operator put it there: it keeps its place before all others


@dataclass(frozen=True, slots=True)
class Hits:
    """The engine's answer in its own order: by score, then doc_id; then what only the vector found, nearest first."""

    hits: tuple[Hit, ...]
    total: int  # documents that match the lexical part
    took_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """One search as the caller asked it."""

    query: str
    index: str
    user: UserKey | None = None
    session_id: str = ""
    offset: int = 0  # hits skipped before the page
    size: int = 10  # hits on the page
    filters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evidence:
    """What moved a hit: the event, in the words the user knows it by, and how much of the score it gave."""

    column: Literal["lexical", "embedding", "user"]
    text: str
    event_id: str
    share: float
    action: str = ""  # of the event: turn, statement, or what was done to a document; dislike where it spoke against it


@dataclass(frozen=True, slots=True)
class Ranked:
    """A hit in its new place. `scores` are the hit's row of the matrix: lexical, embedding, user, each in [0, 1]."""

    hit: Hit
    rank: int
    score: float
    scores: tuple[float, float, float]
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """The asked page, and all that was done to it."""

    request: Request
    rewrite: Rewrite
    page: tuple[Ranked, ...]
    hits: Hits
    rerank: RerankStatus
    reason: str = ""  # of `rerank`: why the order is the engine's own, or what was left out
    notes: tuple[str, ...] = ()  # what was skipped or given up, and why, one sentence each
    weights: tuple[float, float, float] | None = None  # of the columns of `Ranked.scores`; None: no ranking of ours
