"""The settings that an operator may choose, checked at construction."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from bespeak.arguments import require, require_number, require_whole_number
from bespeak.errors import UsageError

MAX_WINDOW = 10_000
"""The most hits that Elasticsearch returns for one search, by its default of `index.max_result_window`."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How much each column of the score matrix counts. Raises UsageError if one is negative or all are 0."""

    lexical: float = 0.2
    embedding: float = 0.8
    user: float = 0.15

    def __post_init__(self) -> None:
        for name, value in zip(("lexical", "embedding", "user"), self.as_tuple(), strict=True):
            require_number(f"the {name} weight", value, 0)
        if not any(self.as_tuple()):
            raise UsageError("the weights are all 0: at least one must be above it")

    def as_tuple(self) -> tuple[float, float, float]:
        return (self.lexical, self.embedding, self.user)


@dataclass(frozen=True, slots=True)
class Settings:
    """How queries are rewritten and hits ranked. Raises UsageError for a value out of range."""

    weights: Weights = field(default_factory=Weights)
    # How many hits are reranked. Those beyond keep the engine's order.
    window: int = 100
    # boost: only the order changes; recall: the rewrite and the vector may also find more hits.
    mode: Literal["boost", "recall"] = "recall"
    # Time for a rewrite, in milliseconds. A query whose rewrite takes longer goes out as typed.
    rewrite_ms: float = 3000.0
    # Time for reading the profile and for reranking a window, in milliseconds. Only the proxy limits these.
    profile_ms: float = 500.0
    rerank_ms: float = 250.0
    # BM25 weight of the rewritten text beside the query's own 1.0.
    rewrite_weight: float = 1.0
    # BM25 weight of the last turn's words (query and response), and its share in the query's vector.
    last_turn_weight: float = 0.1
    last_turn_share: float = 0.5

    def __post_init__(self) -> None:
        require("weights", self.weights, Weights, "Weights")
        require_whole_number("window", self.window)
        if not 1 <= self.window <= MAX_WINDOW:
            raise UsageError(f"window must be between 1 and {MAX_WINDOW}, but is {self.window}")
        for name in ("rewrite_ms", "profile_ms", "rerank_ms"):
            require_number(name, getattr(self, name), 0, or_equal=False)
        for name in ("rewrite_weight", "last_turn_weight", "last_turn_share"):
            require_number(name, getattr(self, name), 0)
        if self.mode not in ("boost", "recall"):
            raise UsageError(f"mode must be boost or recall, but is {self.mode!r}")
