"""The built language model, run by onnxruntime: it keeps what it read, and computes likely tokens ahead."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from bespeak.caching import RecentlyUsed
from bespeak.deadline import Deadline, Late
from bespeak.errors import ModelError
from bespeak.records import UserKey
from bespeak.rewriting.gemma import HEAD
from bespeak.rewriting.model import CACHES, SINGLE_GRAPH

if TYPE_CHECKING:
    from tokenizers import Tokenizer

DRAFT_TOKENS = 7
"""Tokens that are guessed and computed ahead: a run of eight costs little more than a run of one."""
MATCH_TOKENS = 3
"""At most this many of the latest tokens are looked up in the prompt to guess what follows."""
BLOCK_TOKENS = 64
"""onnxruntime sums over tokens in blocks of this size, and the rounding inside a block depends on whether more tokens
follow. So two texts that start alike have the same keys and values up to the end of the last whole block they share."""
KEPT_BYTES = 64_000_000
"""Keys and values that are kept, 37 KB a token: about six sessions with the longest prompts."""

Floats: TypeAlias = npt.NDArray[np.float32]
Memory: TypeAlias = Mapping[str, Floats]
"""Keys and values of each layer, `(1, 1, n_tokens, HEAD)`."""
SessionKey: TypeAlias = tuple[UserKey, str]
"""User and session."""


class ReadPrompt(NamedTuple):
    """The tokens of a prompt, and their keys and values."""

    token_ids: list[int]
    memory: Memory


class TextState(NamedTuple):
    """A place in a text.

    `memory` may hold keys and values of more tokens than `token_ids`; those no longer count. `guessed` holds the tokens
    that were computed ahead, each with the scores after it.
    """

    token_ids: list[int]
    n_prompt: int
    memory: Memory
    guessed: tuple[tuple[int, Floats], ...]


EMPTY_MEMORY: Memory = dict.fromkeys(CACHES, np.zeros((1, 1, 0, HEAD), np.float32))
NO_PROMPT = ReadPrompt([], EMPTY_MEMORY)


@dataclass
class RunCounts:
    """How many runs of the model, over how many tokens, since the start; by all threads together."""

    runs: int = 0
    tokens: int = 0

    def add(self, n_tokens: int) -> None:
        self.runs += 1
        self.tokens += n_tokens


class OnnxScorer:
    """Scores tokens with the model built in `folder`, which is opened at the first text. May be used from several
    threads.
    """

    def __init__(self, folder: Path, threads: int = 2, kept_bytes: int = KEPT_BYTES) -> None:
        self._folder, self._threads = folder, threads
        self._opening = threading.Lock()
        self._prompts: RecentlyUsed[SessionKey, ReadPrompt] = RecentlyUsed(kept_bytes, size_of=prompt_bytes)
        self.counts = RunCounts()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self._folder)

    @cached_property
    def _session(self) -> Any:
        return open_graph(self._folder / SINGLE_GRAPH, self._threads)

    @cached_property
    def _lookup(self) -> PromptLookup:
        return PromptLookup(self.tokenizer)

    @contextmanager
    def begin(self, budget_ms: float | None, session_key: SessionKey | None = None) -> Iterator[OnnxFeed]:
        with self._opening:
            session, lookup = self._session, self._lookup
        deadline = Deadline.after_ms(budget_ms)
        prompts = SessionPrompt(self._prompts, session_key, self._prompts.n_forgotten) if session_key else None
        with deadline.model_run() as run:
            yield OnnxFeed(SingleRunner(session, run, deadline, self.counts), lookup, prompts)

    def forget(self, user: UserKey) -> None:
        self._prompts.forget(lambda session_key: session_key[0] == user)


def read_tokenizer(folder: Path) -> Tokenizer:
    """Raises ModelError."""
    from tokenizers import Tokenizer

    path = folder / "tokenizer.json"
    try:
        return Tokenizer.from_file(str(path))
    except Exception as error:  # tokenizers raises plain Exception
        raise ModelError(f"{path} cannot be read ({error}): run 'bespeak models build'") from error


def open_graph(path: Path, threads: int) -> Any:
    """An onnxruntime session for one of the built graphs. Raises ModelError."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 4  # onnxruntime would print an error for each stopped run
    # The graph is written with fused operators; searching for more takes time and finds none.
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own exceptions have no common class below this
        raise ModelError(f"{path} cannot be loaded ({error}): run 'bespeak models build'") from error


class OnnxFeed:
    """Reads one text. A token that was guessed right costs nothing, so copied words are written several at a time."""

    def __init__(self, runner: Runner, lookup: PromptLookup, prompts: PromptCache | None = None) -> None:
        self._runner, self._lookup, self._prompts = runner, lookup, prompts

    def __call__(self, token_ids: Sequence[int], past: TextState | None) -> tuple[Floats, TextState]:
        if past is None:
            return self._begin(list(token_ids))
        if past.guessed and [past.guessed[0][0]] == list(token_ids):
            _, scores = past.guessed[0]
            return scores, past._replace(token_ids=[*past.token_ids, *token_ids], guessed=past.guessed[1:])
        return self._read([*past.token_ids, *token_ids], past.n_prompt, len(past.token_ids), past.memory)

    def _begin(self, prompt: list[int]) -> tuple[Floats, TextState]:
        known = self._prompts.take(prompt) if self._prompts else NO_PROMPT
        n_known = min(n_common(known.token_ids, prompt), len(prompt) - 1) // BLOCK_TOKENS * BLOCK_TOKENS
        scores, written = self._read(prompt, len(prompt), n_known, known.memory)
        if self._prompts:
            self._prompts.put(ReadPrompt(prompt, first_tokens(written.memory, len(prompt))))
        return scores, written

    def _read(self, token_ids: list[int], n_prompt: int, n_known: int, memory: Memory) -> tuple[Floats, TextState]:
        # onnxruntime attends differently from a single token than from several. With at least two, a text comes out the
        # same whatever was kept and guessed.
        guessed = self._lookup.guess(token_ids, n_prompt) or token_ids[-1:]
        new = [*token_ids[n_known:], *guessed]
        scores, memory = self._runner.run(new, first_tokens(memory, n_known), len(guessed) + 1)
        ahead = tuple(zip(guessed, scores[1:], strict=True))
        return scores[0], TextState(token_ids, n_prompt, memory, ahead)


class Runner(Protocol):
    """Runs the model over the new tokens of one text."""

    def run(self, token_ids: Sequence[int], memory: Memory, n_scored: int) -> tuple[Floats, Memory]:
        """`(n_scored, n_vocabulary)` scores of the token after each of the last tokens, and the extended memory.

        Raises Late and ModelError.
        """
        ...


class PromptCache(Protocol):
    """Keeps keys and values of earlier prompts."""

    def take(self, prompt: list[int]) -> ReadPrompt:
        """A prompt that may start like this one; `NO_PROMPT` if there is none."""
        ...

    def put(self, prompt: ReadPrompt) -> None: ...


class SingleRunner:
    """Runs the graph of one text, under one deadline."""

    def __init__(self, session: Any, run: Any, deadline: Deadline, counts: RunCounts) -> None:
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
            raise run_error(error) from error
        return scores[0], dict(zip(CACHES, present, strict=True))


def run_error(error: Exception) -> ModelError:
    return ModelError(f"the language model failed ({error}): run 'bespeak models verify'")


class PromptLookup:
    """Guesses the next tokens from the prompt, since most words of a rewrite are copied from it.

    This is prompt lookup decoding (Saxena, 2023); here a token also matches its capitalised form, and its form at the
    start of a line.
    """

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._normalised: dict[int, str] = {}
        (self._line_end,) = tokenizer.encode("\n", add_special_tokens=False).ids
        self._question = tokenizer.encode("Q:", add_special_tokens=False).ids

    def guess(self, token_ids: Sequence[int], n_prompt: int) -> list[int]:
        """At most `DRAFT_TOKENS` tokens; none if the prompt holds nothing like the latest ones."""
        if len(token_ids) == n_prompt:
            return self._query(token_ids)
        prompt = [self._normalise(token_id) for token_id in token_ids[:n_prompt]]
        latest = [self._normalise(token_id) for token_id in token_ids[-MATCH_TOKENS:]]
        for size in range(len(latest), 0, -1):
            wanted = latest[-size:]
            for at in range(n_prompt - size - 1, -1, -1):
                if prompt[at : at + size] == wanted:
                    return self._line(token_ids[at + size : min(at + size + DRAFT_TOKENS, n_prompt)])
        return []

    def _query(self, prompt: Sequence[int]) -> list[int]:
        """The query itself, as it would be written after a space."""
        size = len(self._question)
        for at in range(len(prompt) - size - 1, -1, -1):
            if list(prompt[at : at + size]) == self._question:
                line = self._line(prompt[at + size : at + size + DRAFT_TOKENS + 1])
                if line and not self._normalise(line[0]):  # a lone space
                    line = line[1:]
                return [self._spaced(line[0]), *line[1:DRAFT_TOKENS]] if line else []
        return []

    def _line(self, token_ids: Sequence[int]) -> list[int]:
        found = list(token_ids)
        return found[: found.index(self._line_end)] if self._line_end in found else found

    def _spaced(self, token_id: int) -> int:
        """The token of the same word after a space, if the vocabulary has one."""
        token: str = self._tokenizer.id_to_token(token_id) or ""
        spaced: int | None = self._tokenizer.token_to_id(f"▁{token.lstrip('▁')}")
        return token_id if spaced is None else spaced

    def _normalise(self, token_id: int) -> str:
        """The token in lower case, without the space before it."""
        if token_id not in self._normalised:
            token: str = self._tokenizer.id_to_token(token_id) or ""
            self._normalised[token_id] = token.lstrip("▁").lower()
        return self._normalised[token_id]


@dataclass(frozen=True, slots=True)
class SessionPrompt:
    """The latest prompt of one session, for a text that was begun when `n_forgotten` users had been forgotten."""

    prompts: RecentlyUsed[SessionKey, ReadPrompt]
    session_key: SessionKey
    n_forgotten: int

    def take(self, prompt: list[int]) -> ReadPrompt:  # noqa: ARG002
        return self.prompts.get(self.session_key) or NO_PROMPT

    def put(self, prompt: ReadPrompt) -> None:
        self.prompts.put(self.session_key, prompt, self.n_forgotten)


def prompt_bytes(prompt: ReadPrompt) -> int:
    """The size of the prompt's keys and values."""
    return sum(array.nbytes for array in prompt.memory.values())


def n_common(one: Sequence[int], other: Sequence[int]) -> int:
    """How many tokens the two have in common at their start."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def first_tokens(memory: Memory, n_tokens: int) -> Memory:
    return {name: array[:, :, :n_tokens] for name, array in memory.items()}
