"""The records that the stages of a query exchange: frozen, and without I/O."""

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
    """The owner of data. Tenants never share a user, even if both have a user of the same id."""

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
    text: str = ""  # a query as typed, a statement, or the response of an answer
    doc_id: str = ""  # UBI `event_attributes.object.object_id`
    title: str = ""  # UBI `event_attributes.object.description`
    value: float | None = None  # stars of a rating, 0.5 to 5
    attributes: Mapping[str, Any] = field(default_factory=dict)  # the rest of the UBI line, for `export`


@dataclass(frozen=True, slots=True)
class Statement:
    """What the user said about themselves: "I am vegetarian"."""

    text: str
    event_id: str


@dataclass(frozen=True, slots=True)
class Turn:
    """An earlier query of this session and its answer: a response text, or the titles of the clicked hits."""

    query: str
    response: str
    event_id: str
    query_id: str = field(default="", compare=False)  # shared by the events of this turn; "" if they had none


@dataclass(frozen=True, slots=True)
class Preference:
    """A document that the user liked (weight above 0), disliked (below 0) or chose and found neither good nor bad (0).

    The weight is in [-1, 1], already decayed.
    """

    doc_id: str
    title: str
    weight: float
    action: str
    event_id: str
    timestamp: datetime
    interest: float = field(default=1.0, compare=False)  # in this document rather than others, before decay, in [-1, 2]


@dataclass(frozen=True, slots=True)
class Profile:
    """What is known about a user in one session. A stranger's profile is empty, not None."""

    user: UserKey | None = None
    session_id: str = ""
    statements: tuple[Statement, ...] = ()  # oldest first
    turns: tuple[Turn, ...] = ()  # of this session, oldest first
    preferences: tuple[Preference, ...] = ()  # strongest first
    consent: bool = True  # False: the user paused personalisation
    version: str = ""  # digest of the above; equal versions personalise alike

    @property
    def is_empty(self) -> bool:
        return not (self.statements or self.turns or self.preferences)


Source: TypeAlias = Literal["turn", "statement", "function", "free"]


@dataclass(frozen=True, slots=True)
class Term:
    """A word of a rewrite that the query did not contain, and its source."""

    text: str
    source: Source
    event_id: str = ""  # of the turn or statement, if there is one
    evidence: str = ""  # the turn's query or response, or the statement, as the user knows it


@dataclass(frozen=True, slots=True)
class Rewrite:
    """A rewritten query and the query as typed. If nothing was rewritten, `text` equals `query`."""

    query: str
    text: str
    terms: tuple[Term, ...] = ()
    status: RewriteStatus = RewriteStatus.OFF
    reason: str = ""  # for gated, late, failed and dropped: which gate, which fault
    model: str = ""  # name and version of the rewriter

    @property
    def changed(self) -> bool:
        return self.text != self.query


@dataclass(frozen=True, slots=True)
class Document:
    """One document of an index. `vector` is None if the index holds none for it."""

    doc_id: str
    source: Mapping[str, Any]
    vector: Vector | None = field(default=None, repr=False, compare=False)


@dataclass(frozen=True, slots=True)
class Clause:
    """A text and how much its BM25 score counts."""

    text: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class EngineQuery:
    """A search for an engine. Every engine returns the same hits for it, up to ties.

    The lexical score of a document is the sum over clauses and fields of weight x BM25. `required` must match
    (at least one of its words in at least one field); `optional` only adds to the score of matching documents. With
    `recall`, a match of any clause is enough, and the `size` nearest documents by `vector` are found too. These have a
    lexical score of 0 if no clause matches, or if the score is not among the first `size`.
    """

    index: str
    required: tuple[Clause, ...]
    optional: tuple[Clause, ...] = ()
    vector: Vector | None = None
    recall: bool = False
    size: int = 100
    filters: Mapping[str, str] = field(default_factory=dict)  # exact value of a keyword field
    among: tuple[str, ...] = ()  # if not empty, only these doc_ids are searched


@dataclass(frozen=True, slots=True)
class Hit:
    """A document with the engine's lexical score (0 if found only by vector) and its rank there, from 1.

    On a result's page, `rank` is that in the engine's answer to the query as typed; 0 if it was not fetched there.
    """

    doc_id: str
    score: float
    rank: int
    source: Mapping[str, Any]
    vector: Vector | None = field(default=None, repr=False, compare=False)
    pinned: bool = False  # by an operator: it stays before all others


@dataclass(frozen=True, slots=True)
class Hits:
    """The engine's answer in its own order: by score, then doc_id; then hits found only by vector, nearest first."""

    hits: tuple[Hit, ...]
    total: int  # documents that match the lexical part
    took_ms: float = 0.0


@dataclass(frozen=True, slots=True)
class Request:
    """One search as the caller requested it."""

    query: str
    index: str
    user: UserKey | None = None
    session_id: str = ""
    offset: int = 0  # hits skipped before the page
    size: int = 10  # hits on the page
    filters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Evidence:
    """An event that moved a hit, in words that the user knows, and the share of the score that it gave."""

    column: Literal["lexical", "embedding", "user"]
    text: str
    event_id: str
    share: float
    action: str = ""  # turn, statement, or what the user did with a document; dislike if that counts against it


@dataclass(frozen=True, slots=True)
class Ranked:
    """A hit in its new place. `scores` is its row of the score matrix: lexical, embedding, user, each in [0, 1]."""

    hit: Hit
    rank: int
    score: float
    scores: tuple[float, float, float]
    evidence: tuple[Evidence, ...] = ()


@dataclass(frozen=True, slots=True)
class Result:
    """The requested page, and what was done to produce it."""

    request: Request
    rewrite: Rewrite
    page: tuple[Ranked, ...]
    hits: Hits
    rerank: RerankStatus
    reason: str = ""  # why the order is the engine's own, or what was left out
    notes: tuple[str, ...] = ()  # what was skipped or given up, and why, one sentence each
    weights: tuple[float, float, float] | None = None  # of the columns of `Ranked.scores`; None if nothing was ranked
    query_id: str = ""  # of the recorded query, for events on its hits; "" if it was not recorded
