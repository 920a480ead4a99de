"""Rewrites to choose from: queries whose answers are known, and what the rewriter writes of each, sampled."""

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
from bespeak.training.mixture import TIMES

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bespeak.rewriting.decoding import Feed, Scorer
    from bespeak.rewriting.scorer import Floats, SessionKey
    from bespeak.training.pairs import Conversation, Exchange

SHORTEST_ANSWER = 25
"""Characters: "Yes." says nothing of what was asked."""
SAMPLES = 3
TEMPERATURE = 0.8


@dataclass(frozen=True, slots=True)
class Asked:
    """A query after at least one turn, a person's rewrite of it, and what was answered to it."""

    conversation: int
    source: str
    query: str
    rewrite: str
    answer: str
    history: tuple[Exchange, ...]
    statements: tuple[str, ...]

    @property
    def profile(self) -> Profile:
        statements = tuple(Statement(text, str(number)) for number, text in enumerate(self.statements))
        turns = tuple(Turn(turn.query, turn.response, str(number)) for number, turn in enumerate(self.history))
        return Profile(UserKey("", str(self.conversation)), "", statements, turns)


def answered(found: Iterable[Conversation]) -> list[Asked]:
    """The answer to a query stands in the history of those that were asked after it."""
    return [
        Asked(
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


def choose(turns: Sequence[Asked], n: int, seed: int) -> list[Asked]:
    """At most `n`, by whole conversations but for the last, each the likelier the more its source weighs in `mixture`.

    Efraimidis and Spirakis, "Weighted random sampling with a reservoir" (2006).
    """
    rng = random.Random(seed)
    conversations: dict[int, list[Asked]] = {}
    for turn in turns:
        conversations.setdefault(turn.conversation, []).append(turn)
    ranked = sorted(
        conversations.values(),
        key=lambda asked: rng.random() ** (1 / TIMES.get(asked[0].source, 1.0)),
        reverse=True,
    )
    return list(chain(*ranked))[:n]


class Sampled(NamedTuple):
    """None where the rewriter refused what the model wrote."""

    greedy: str | None
    samples: tuple[str | None, ...] = ()

    def of(self, turn: Asked) -> list[str]:
        """The candidates, each once: the query, the person's rewrite, the model's."""
        own = (" ".join(text.split()) for text in (self.greedy, *self.samples) if text)
        return list(dict.fromkeys((turn.query, turn.rewrite, *own)))


class Noisy:
    """A scorer whose best token is a draw from its distribution at `TEMPERATURE` (the Gumbel-max trick)."""

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


def sample(turn: Asked, scorer: Scorer, n_samples: int, seed: tuple[int, int]) -> Sampled:
    """The greedy rewrite and `n_samples` drawn, each by a generator of its own."""
    rngs = [np.random.default_rng((*seed, number)) for number in range(n_samples)]
    models = [LanguageModel(one, "") for one in (scorer, *(Noisy(scorer, rng) for rng in rngs))]
    rewrites = [model.rewrite(turn.query, turn.profile) for model in models]
    greedy, *samples = (rewrite.text if rewrite.status == "full" else None for rewrite in rewrites)
    return Sampled(greedy, tuple(samples))


class Kept:
    """A file of what was sampled: a line for the run's name, then one a turn. Of a line that was cut nothing is left.

    Raises ModelError where it is of another run, or no such file.
    """

    def __init__(self, path: Path, name: str) -> None:
        self._path, self._name = path, name
        self.found: dict[int, Sampled] = {}
        if lines := _whole_lines(path):
            self._read(lines)
        else:
            self._append({"run": name})

    def add(self, place: int, sampled: Sampled) -> None:
        self._append({"turn": place, "greedy": sampled.greedy, "samples": sampled.samples})
        self.found[place] = sampled

    def _read(self, lines: Sequence[bytes]) -> None:
        try:
            first, *rows = map(json.loads, lines)
            name = first["run"]
            found = {int(row["turn"]): Sampled(row["greedy"], tuple(row["samples"])) for row in rows}
        except (ValueError, KeyError, TypeError) as error:
            raise ModelError(f"{self._path} cannot be read ({error}): delete it to begin anew") from error
        if name != self._name:
            raise ModelError(
                f"{self._path} is of a run with other data, options or versions: give another --out, or delete it"
            )
        self.found = found

    def _append(self, row: Any) -> None:
        with self._path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")


def _whole_lines(path: Path) -> list[bytes]:
    """Cuts off what a killed run left of a last one."""
    content = path.read_bytes() if path.exists() else b""
    end = content.rfind(b"\n") + 1
    if end < len(content):
        os.truncate(path, end)
    return content[:end].splitlines()


def sample_all(
    turns: Sequence[Asked], scorer: Scorer, kept: Kept, n_samples: int, seed: int, report: Callable[[int], None]
) -> None:
    """Adds to `kept` what is missing of `turns`; reports after each turn how many are done.

    A conversation's queries stand together. Which thread takes which changes no text.
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
