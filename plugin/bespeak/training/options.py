"""Options of the trainings of language models, and the scores that they report."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bespeak.models.catalogue import asset_folder
from bespeak.rewriting.model import MODEL


@dataclass(frozen=True, slots=True)
class TrainingOptions:
    """For an adapter of the rewriter, and for the context encoder."""

    data: tuple[Path, ...]
    held_out: Path | None = None  # None: one conversation in twenty of `data`
    passes: float = 1.0
    seed: int = 0
    threads: int = 2  # changes only the time
    steps: int | None = None  # of the context reader; None: all that the passes give


@dataclass(frozen=True, slots=True)
class GainOptions:
    """For the second stage of an adapter."""

    data: tuple[Path, ...]
    adapter: Path | None = None  # folder of the adapter to start from; None: the shipped one
    turns: int = 800
    seed: int = 0
    threads: int = 2  # changes only the time

    @property
    def start(self) -> Path:
        """The folder of the adapter that the training starts from."""
        return self.adapter or asset_folder("onnx_models") / MODEL


@dataclass(frozen=True, slots=True)
class CrossEntropies:
    """Mean cross-entropy of the words of held-out rewrites, in nats per token."""

    base: float
    adapter: float
    n_held_out: int  # targets


@dataclass(frozen=True, slots=True)
class MeanGains:
    """Mean gains over all turns, including those that were trained on."""

    query: float
    person: float
    before: float  # of the greedy rewrite
    after: float
    n_turns: int
    n_learnt: int  # turns whose candidates differ


@dataclass(frozen=True, slots=True)
class ReaderScores:
    """How well the context reader does on held-out pairs."""

    query: float  # mean cosine of the query as typed to the rewrite
    context: float  # the same of the query read with its session
    words: float  # average precision of the words that a person added, over all words of the sessions
    leaning: float  # probability that a query which leans on something is told from one that does not
    n_held_out: int


@dataclass(frozen=True, slots=True)
class MeanCosines:
    """Mean cosine to the vectors of held-out rewrites."""

    query: float  # of the query as typed
    context: float
    n_held_out: int
