"""The built language model, run by onnxruntime: what was read is kept, and what is likely to come is computed ahead."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from bespeak.deadline import Deadline, Late
from bespeak.errors import ModelError
from bespeak.records import UserKey
from bespeak.rewriting.gemma import HEAD
from bespeak.rewriting.model import CACHES, SINGLE_GRAPH

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DRAFTED = 7
"""Tokens computed ahead: a run of eight costs little more than one of one."""
MATCHED = 3
"""So many of the latest tokens, or fewer, are looked up in the prompt to guess what follows."""
SETTLED = 64
"""onnxruntime sums over the tokens in blocks of so many, and what it rounds in a block depends on whether more follow:
what was read is the same in every text that begins alike up to the end of its last whole block."""
KEPT_BYTES = 64_000_000
"""Of keys and values, 37 KB a token: some six sessions of the longest prompts."""

Floats: TypeAlias = npt.NDArray[np.float32]
Memory: TypeAlias = Mapping[str, Floats]
"""Keys and values of each layer, `(1, 1, n_tokens, HEAD)`."""
Whose: TypeAlias = tuple[UserKey, str]
"""User and session."""


class Written(NamedTuple):
    """A place in a text: its tokens, their keys and values (and those of more, which count no longer), and the tokens
    that were guessed to follow with the scores after each.
    """

    token_ids: list[int]
    n_prompt: int
    memory: Memory
    ahead: tuple[tuple[int, Floats], ...]


NOTHING: Memory = dict.fromkeys(CACHES, np.zeros((1, 1, 0, HEAD), np.float32))


@dataclass
class Counts:
    """What was run since the start, by all threads together."""

    runs: int = 0
    tokens: int = 0

    def add(self, n_tokens: int) -> None:
        self.runs += 1
        self.tokens += n_tokens


class OnnxScorer:
    """The built model's folder; opened when first asked. May be used from several threads."""

    def __init__(self, folder: Path, threads: int = 2, kept_bytes: int = KEPT_BYTES) -> None:
        self._folder, self._threads = folder, threads
        self._opening = threading.Lock()
        self._kept = Kept(kept_bytes)
        self.counts = Counts()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self._folder)

    @cached_property
    def _session(self) -> Any:
        return open_graph(self._folder / SINGLE_GRAPH, self._threads)

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.tokenizer)

    @contextmanager
    def begin(self, budget_ms: float | None, whose: Whose | None = None) -> Iterator[OnnxFeed]:
        with self._opening:
            session, lookup = self._session, self._lookup
        deadline = Deadline.after_ms(budget_ms)
        kept = SessionPrompt(self._kept, whose, self._kept.n_forgotten) if whose else None
        with deadline.model_run() as run:
            yield OnnxFeed(Runs(session, run, deadline, self.counts), lookup, kept)

    def forget(self, user: UserKey) -> None:
        self._kept.forget(user)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Raises ModelError."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(f"{path} cannot be read ({error}): run 'bespeak models build'") from error


def open_graph(path: Path, threads: int) -> Any:
    """The session of one of the built graphs. Raises ModelError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # a run that is ended in time is no error to print
    # The graph is written with fused operators; looking for more costs time and finds none.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common class below this
        raise ModelError(f"{path} cannot be loaded ({error}): run 'bespeak models build'") from error


class OnnxFeed:
    """One text. What comes as it was guessed costs nothing, so that copied words are written several at a time."""

    def __init__(self, runs: Reader, lookup: Lookup, kept: Prompts | None = None) -> None:
        self._runs, self._lookup, self._kept = runs, lookup, kept

    def __call__(self, token_ids: Sequence[int], past: Written | None) -> tuple[Floats, Written]:
        if past is None:
            return self._begin(list(token_ids))
        if past.ahead and [past.ahead[0][0]] == list(token_ids):
            _, scores = past.ahead[0]
            return scores, past._replace(token_ids=[*past.token_ids, *token_ids], ahead=past.ahead[1:])
        return self._read([*past.token_ids, *token_ids], past.n_prompt, len(past.token_ids), past.memory)

    def _begin(self, prompt: list[int]) -> tuple[Floats, Written]:
        known, memory = self._kept.take(prompt) if self._kept else ([], {})
        n_known = min(common(known, prompt), len(prompt) - 1) // SETTLED * SETTLED
        scores, written = self._read(prompt, len(prompt), n_known, memory or NOTHING)
        if self._kept:
            self._kept.put(prompt, cut(written.memory, len(prompt)))
        return scores, written

    def _read(self, token_ids: list[int], n_prompt: int, n_known: int, memory: Memory) -> tuple[Floats, Written]:
        # onnxruntime attends from one token otherwise than from several: with two at least a text comes out the same
        # whatever was kept and guessed.
        guessed = self._lookup.guess(token_ids, n_prompt) or token_ids[-1:]
        scores, memory = self._runs.run([*token_ids[n_known:], *guessed], cut(memory, n_known), len(guessed) + 1)
        ahead = tuple(zip(guessed, scores[1:], strict=True))
        return scores[0], Written(token_ids, n_prompt, memory, ahead)


class Reader(Protocol):
    """Runs the model over the new tokens of one text."""

    def run(self, token_ids: Sequence[int], memory: Memory, n_scored: int) -> tuple[Floats, Memory]:
        """`(n_scored, n_vocabulary)` scores of what follows each of the last tokens, and the memory with all of them.

        Raises Late and ModelError.
        """
        ...


class Prompts(Protocol):
    """What was read of earlier prompts."""

    def take(self, prompt: list[int]) -> tuple[list[int], Memory]:
        """Tokens and memory of one that may begin like this; none where nothing is kept."""
        ...

    def put(self, prompt: list[int], memory: Memory) -> None: ...


class Runs:
    """Runs of the graph under one deadline."""

    def __init__(self, session: Any, run: Any, deadline: Deadline, counts: Counts) -> None:
        self._session, self._run, self._deadline, self._counts = session, run, deadline, counts
        self._outputs = ["logits", *(f"present.{name}" for name in CACHES)]

    def run(self, token_ids: Sequence[int], memory: Memory, n_scored: int) -> tuple[Floats, Memory]:
        self._deadline.check()
        self._counts.add(len(token_ids))
        scored = np.arange(len(token_ids) - n_scored, len(token_ids))
        feeds: dict[str, Any] = {"input_ids": np.array([token_ids], np.int64), "scored": scored}
        feeds |= {f"past.{name}": memory[name] for name in CACHES}
        try:
            scores, *present = self._session.run(self._outputs, feeds, self._run)
        except Exception as error:  # onnxruntime's own exceptions have no common class below this
            if self._deadline.over or self._run.terminate:
                raise Late from error
            raise failure(error) from error
        return scores[0], dict(zip(CACHES, present, strict=True))


def failure(error: Exception) -> ModelError:
    return ModelError(f"the language model failed ({error}): run 'bespeak models verify'")


class Lookup:
    """Guesses what follows from what stands in the prompt: most words of a rewrite are copied.

    Prompt lookup decoding (Saxena, 2023), where a token also stands for its capital and for its first place in a line.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._plain: dict[int, str] = {}
        (self._line_end,) = tokenizer.encode("\n", add_special_tokens=False).ids
        self._asked = tokenizer.encode("Q:", add_special_tokens=False).ids

    def guess(self, token_ids: Sequence[int], n_prompt: int) -> list[int]:
        """At most `DRAFTED` tokens, none where nothing like the latest ones stands in the prompt."""
        if len(token_ids) == n_prompt:
            return self._query(token_ids)
        prompt = [self.plain(token_id) for token_id in token_ids[:n_prompt]]
        latest = [self.plain(token_id) for token_id in token_ids[-MATCHED:]]
        for size in range(len(latest), 0, -1):
            wanted = latest[-size:]
            for at in range(n_prompt - size - 1, -1, -1):
                if prompt[at : at + size] == wanted:
                    return self._line(token_ids[at + size : min(at + size + DRAFTED, n_prompt)])
        return []

    def _query(self, prompt: Sequence[int]) -> list[int]:
        """The query itself, as it would stand after a space."""
        size = len(self._asked)
        for at in range(len(prompt) - size - 1, -1, -1):
            if list(prompt[at : at + size]) == self._asked:
                line = self._line(prompt[at + size : at + size + DRAFTED + 1])
                if line and not self.plain(line[0]):  # a space by itself
                    line = line[1:]
                return [self._spaced(line[0]), *line[1:DRAFTED]] if line else []
        return []

    def _line(self, token_ids: Sequence[int]) -> list[int]:
        found = list(token_ids)
        return found[: found.index(self._line_end)] if self._line_end in found else found

    def _spaced(self, token_id: int) -> int:
        """The token of the same word after a space, where there is one."""
        token: str = self._tokenizer.id_to_token(token_id) or ""
        spaced: int | None = self._tokenizer.token_to_id(f"▁{token.lstrip('▁')}")
        return token_id if spaced is None else spaced

    def plain(self, token_id: int) -> str:
        """The token without the space before it, in small letters."""
        if token_id not in self._plain:
            token: str = self._tokenizer.id_to_token(token_id) or ""
            self._plain[token_id] = token.lstrip("▁").lower()
        return self._plain[token_id]


class Kept:
    """What was read of each session's latest prompt, in memory; the sessions longest unasked go first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._entries: OrderedDict[Whose, tuple[list[int], Memory]] = OrderedDict()
        self._bytes = 0
        self._n_forgotten = 0
        self._lock = threading.Lock()

    @property
    def n_forgotten(self) -> int:
        return self._n_forgotten

    def get(self, whose: Whose) -> tuple[list[int], Memory]:
        """Tokens and memory; none where nothing is kept."""
        with self._lock:
            return self._entries.get(whose, ([], {}))

    def put(self, whose: Whose, token_ids: list[int], memory: Memory, n_forgotten: int) -> None:
        """Left out where somebody was forgotten since the text was begun, at `n_forgotten`: it may be this user."""
        with self._lock:
            if n_forgotten != self._n_forgotten:
                return
            self._drop(whose)
            self._entries[whose] = (token_ids, memory)
            self._bytes += n_bytes(memory)
            while self._bytes > self._limit_bytes:
                self._drop(next(iter(self._entries)))

    def forget(self, user: UserKey) -> None:
        with self._lock:
            self._n_forgotten += 1
            for whose in [whose for whose in self._entries if whose[0] == user]:
                self._drop(whose)

    def _drop(self, whose: Whose) -> None:
        _, memory = self._entries.pop(whose, ([], {}))
        self._bytes -= n_bytes(memory)


@dataclass(frozen=True, slots=True)
class SessionPrompt:
    """The latest prompt of one session, for a text that was begun at `n_forgotten`."""

    kept: Kept
    whose: Whose
    n_forgotten: int

    def take(self, prompt: list[int]) -> tuple[list[int], Memory]:  # noqa: ARG002
        return self.kept.get(self.whose)

    def put(self, prompt: list[int], memory: Memory) -> None:
        self.kept.put(self.whose, prompt, memory, self.n_forgotten)


def n_bytes(memory: Memory) -> int:
    return sum(array.nbytes for array in memory.values())


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many of the first tokens are the same."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def cut(memory: Memory, n_tokens: int) -> Memory:
    return {name: array[:, :, :n_tokens] for name, array in memory.items()}
