"""Queries with a known answer, and the rewrites that the rewriter samples for each."""

from __future__ import annotations

import json
import os
import random
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bespeak.errors import ModelError
from bespeak.records import Profile, Statement, Turn, UserKey
from bespeak.rewriting.batched import in_turn
from bespeak.rewriting.decoding import LanguageModel
from bespeak.rewriting.model import ROWS
from bespeak.training.mixture import SOURCE_WEIGHTS

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bespeak.rewriting.decoding import Feed, Scorer
    from bespeak.rewriting.scorer import Floats, SessionKey
    from bespeak.training.pairs import Conversation, PastTurn

SHORTEST_ANSWER = 25
"""In characters: an answer such as "Yes." does not show what was asked."""
SAMPLES = 3
TEMPERATURE = 0.8


@dataclass(frozen=True, slots=True)
class AnsweredTurn:
    """A query after at least one turn, with a person's rewrite and the answer that was given."""

    conversation: int
    source: str
    query: str
    rewrite: str
    answer: str
    history: tuple[PastTurn, ...]
    statements: tuple[str, ...]

    @property
    def profile(self) -> Profile:
        statements = tuple(Statement(text, str(number)) for number, text in enumerate(self.statements))
        turns = tuple(Turn(turn.query, turn.response, str(number)) for number, turn in enumerate(self.history))
        return Profile(UserKey("", str(self.conversation)), "", statements, turns)


def answered_turns(found: Iterable[Conversation]) -> list[AnsweredTurn]:
    """The turns whose answer is known from the history of later queries."""
    return [
        AnsweredTurn(
            number,
            conversation.source,
            target.query,
            target.rewrite,
            conversation.turns[target.n_before].response,
            conversation.turns[: target.n_before],
            conversation.statements,
        )
        for number, conversation in enumerate(found)
        for target in conversation.targets
        if 0 < target.n_before < len(conversation.turns)
        and target.query == conversation.turns[target.n_before].query
        and len(conversation.turns[target.n_before].response) >= SHORTEST_ANSWER
    ]


def choose_turns(turns: Sequence[AnsweredTurn], n: int, seed: int) -> list[AnsweredTurn]:
    """At most `n` turns: whole conversations, except the last, drawn with the weights of their sources.

    The method is that of Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006).
    """
    rng = random.Random(seed)
    conversations: dict[int, list[AnsweredTurn]] = {}
    for turn in turns:
        conversations.setdefault(turn.conversation, []).append(turn)
    ranked = sorted(
        conversations.values(),
        key=lambda group: rng.random() ** (1 / SOURCE_WEIGHTS.get(group[0].source, 1.0)),
        reverse=True,
    )
    return list(chain(*ranked))[:n]


class SampledRewrites(NamedTuple):
    """The rewrites sampled for one turn; None if the rewriter refused the model's text."""

    greedy: str | None
    samples: tuple[str | None, ...] = ()

    def candidates(self, turn: AnsweredTurn) -> list[str]:
        """The distinct candidates: the query, the person's rewrite, and the model's rewrites."""
        own = (" ".join(text.split()) for text in (self.greedy, *self.samples) if text)
        return list(dict.fromkeys((turn.query, turn.rewrite, *own)))


class NoisyScorer:
    """A scorer with noise: its best token is a draw from the distribution at `TEMPERATURE` (Gumbel-max trick)."""

    def __init__(self, scorer: Scorer, rng: np.random.Generator) -> None:
        self._scorer, self._rng = scorer, rng

    @property
    def tokenizer(self) -> Tokenizer:
        return self._scorer.tokenizer

    @contextmanager
    def begin(self, budget_ms: float | None, session_key: SessionKey | None = None) -> Iterator[Feed]:
        with self._scorer.begin(budget_ms, session_key) as feed:

            def noisy(token_ids: Sequence[int], past: Any) -> tuple[Floats, Any]:
                scores, past = feed(token_ids, past)
                noise = TEMPERATURE * self._rng.gumbel(size=scores.shape)
                return scores + noise.astype(np.float32), past

            yield noisy

    def forget(self, user: UserKey) -> None:
        self._scorer.forget(user)


def sample(turn: AnsweredTurn, scorer: Scorer, n_samples: int, seed: tuple[int, int]) -> SampledRewrites:
    """The greedy rewrite and `n_samples` random ones, each from its own generator."""
    rngs = [np.random.default_rng((*seed, number)) for number in range(n_samples)]
    models = [LanguageModel(one, "") for one in (scorer, *(NoisyScorer(scorer, rng) for rng in rngs))]
    rewrites = [model.rewrite(turn.query, turn.profile) for model in models]
    greedy, *samples = (rewrite.text if rewrite.status == "full" else None for rewrite in rewrites)
    return SampledRewrites(greedy, tuple(samples))


class SampleFile:
    """A file of sampled rewrites: a line with the run's name, then a line for each turn. An incomplete line is cut off.

    Raises ModelError if the file is another run's or cannot be read.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self.found: dict[int, SampledRewrites] = {}
        if lines := _complete_lines(path):
            self._read(lines)
        else:
            self._append({"run": name})

    def add(self, place: int, sampled: SampledRewrites) -> None:
        self._append({"turn": place, "greedy": sampled.greedy, "samples": sampled.samples})
        self.found[place] = sampled

    def _read(self, lines: Sequence[bytes]) -> None:
        try:
            first, *rows = map(json.loads, lines)
            name = first["run"]
            found = {int(row["turn"]): SampledRewrites(row["greedy"], tuple(row["samples"])) for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{self._path} cannot be read ({error}): delete it to start again") from error
        if name != self._name:
            raise ModelError(
                f"{self._path} belongs to a run with other data, options or versions: give another --out, or delete it"
            )
        self.found = found

    def _append(self, row: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _complete_lines(path: Path) -> list[bytes]:
    """The lines of the file; an incomplete last line, left by a killed run, is cut off."""
    content = path.read_bytes() if path.exists() else b""
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
    return content[:end].splitlines()


def sample_all(
    turns: Sequence[AnsweredTurn],
    scorer: Scorer,
    kept: SampleFile,
    n_samples: int,
    seed: int,
    report: Callable[[int], None],
) -> None:
    """Adds the missing `turns` to `kept`; reports after each turn how many are done.

    A conversation's queries are sampled by one thread. Which thread it is does not change the texts.
    """
    conversations: dict[int, list[int]] = {}
    for place, turn in enumerate(turns):
        if place not in kept.found:
            conversations.setdefault(turn.conversation, []).append(place)
    lock = threading.Lock()

    def work(place: int) -> None:
        sampled = sample(turns[place], scorer, n_samples, (seed, place))
        with lock:
            kept.add(place, sampled)
            report(len(kept.found))

    in_turn(conversations.values(), work, ROWS)
