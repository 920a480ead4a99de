"""Reads several texts in one run of the model, so that loading the weights from memory is paid for once."""

from __future__ import annotations

import queue
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias, TypeVar

import numpy as np

from bespeak.records import UserKey
from bespeak.rewriting.model import CACHES, ROWS, ROWS_GRAPH
from bespeak.rewriting.scorer import (
    BLOCK_TOKENS,
    EMPTY_MEMORY,
    NO_PROMPT,
    Floats,
    Memory,
    OnnxFeed,
    PromptLookup,
    ReadPrompt,
    RunCounts,
    SessionKey,
    n_common,
    open_graph,
    prompt_bytes,
    read_tokenizer,
    run_error,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KEPT_BYTES = 150_000_000
"""Keys and values of the latest prompts that are kept: more than ROWS prompts of 300 tokens."""
PADDING = 2
"""Tokens of a row without a text."""

Item = TypeVar("Item")
RunResult: TypeAlias = tuple[Floats, Memory] | Exception


class RunRequest(NamedTuple):
    """The new tokens of one text, and how many of the last are scored."""

    token_ids: Sequence[int]
    memory: Memory
    n_scored: int


class JointScorer:
    """Scores tokens for up to `ROWS` threads of one job; each run reads on in the texts of all of them.

    A prompt that starts like an earlier one is not read again, even if the earlier one was another user's: nothing is
    kept when the job ends. Budgets are ignored.
    """

    def __init__(self, folder: Path, threads: int = 2) -> None:
        self._folder, self._threads = folder, threads
        self._opening = threading.Lock()
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for row in range(ROWS):
            self._free.put(row)
        self._prompts = LatestPrompts(KEPT_BYTES)
        self.counts = RunCounts()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self._folder)

    @cached_property
    def _batcher(self) -> Batcher:
        return Batcher(open_graph(self._folder / ROWS_GRAPH, self._threads), self.counts)

    @cached_property
    def _lookup(self) -> PromptLookup:
        return PromptLookup(self.tokenizer)

    @contextmanager
    def begin(
        self,
        budget_ms: float | None,  # noqa: ARG002
        session_key: SessionKey | None = None,  # noqa: ARG002
    ) -> Iterator[OnnxFeed]:
        with self._opening:
            batcher, lookup = self._batcher, self._lookup
        row = self._free.get()
        try:
            with batcher.joined():
                yield OnnxFeed(RowRunner(row, batcher), lookup, self._prompts)
        finally:
            self._free.put(row)

    def forget(self, user: UserKey) -> None:  # noqa: ARG002
        self._prompts.clear()


class RowRunner(NamedTuple):
    """Runs one text, as a row of the joint runs."""

    row: int
    batcher: Batcher

    def run(self, token_ids: Sequence[int], memory: Memory, n_scored: int) -> tuple[Floats, Memory]:
        return self.batcher.run(self.row, RunRequest(token_ids, memory, n_scored))


class LatestPrompts:
    """Keeps keys and values of the latest prompts; the oldest go first."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._entries: list[ReadPrompt] = []

    def take(self, prompt: list[int]) -> ReadPrompt:
        """The entry that shares the longest start with the prompt. It is removed: its reader puts back a longer one."""
        with self._lock:
            shared = [n_common(known.token_ids, prompt) for known in self._entries]
            best = max(range(len(shared)), key=shared.__getitem__, default=-1)
            return self._entries.pop(best) if best >= 0 and shared[best] >= BLOCK_TOKENS else NO_PROMPT

    def put(self, prompt: ReadPrompt) -> None:
        with self._lock:
            self._entries.append(prompt)
            while sum(map(prompt_bytes, self._entries)) > self._limit_bytes:
                self._entries.pop(0)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()


class Batcher:
    """Collects one request from each text in progress; the last thread to ask runs the model for all of them."""

    def __init__(self, session: Any, counts: RunCounts) -> None:
        self._session, self._counts = session, counts
        self._changed = threading.Condition()
        self._n_joined = 0
        self._running = False
        self._requests: dict[int, RunRequest] = {}
        self._results: dict[int, RunResult] = {}

    @contextmanager
    def joined(self) -> Iterator[None]:
        """Inside the block, runs wait for a request from this text too."""
        with self._changed:
            self._n_joined += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_joined -= 1
                self._changed.notify_all()

    def run(self, row: int, request: RunRequest) -> tuple[Floats, Memory]:
        """As `Runner.run`. Raises ModelError."""
        with self._changed:
            self._requests[row] = request
            while row not in self._results:
                if not self._running and len(self._requests) == self._n_joined:
                    self._run()
                else:
                    self._changed.wait()
            result = self._results.pop(row)
        if isinstance(result, Exception):
            raise run_error(result) from result
        return result

    def _run(self) -> None:
        """Runs all requests. The lock is held before and after, and released while the model runs."""
        requests, self._requests, self._running = self._requests, {}, True
        self._changed.release()
        results: Mapping[int, RunResult]
        try:
            results = run_rows(self._session, requests)
        except Exception as error:  # onnxruntime's own exceptions have no common class below this
            results = dict.fromkeys(requests, error)
        finally:
            self._changed.acquire()
        self._counts.add(sum(len(request.token_ids) for request in requests.values()))
        self._results |= results
        self._running = False
        self._changed.notify_all()


def in_turn(groups: Iterable[Sequence[Item]], work: Callable[[Item], object], n_threads: int) -> None:
    """Calls `work` on every item, with each group in one thread so that what its items share is read once.

    Large groups come first. Raises what `work` raises, and then begins nothing new.
    """
    waiting = deque(sorted(groups, key=len, reverse=True))

    def work_off() -> None:
        while True:
            try:
                group = waiting.popleft()
            except IndexError:
                return
            for item in group:
                work(item)

    if n_threads == 1:
        work_off()
        return
    with ThreadPoolExecutor(n_threads) as threads:
        try:
            for done in [threads.submit(work_off) for _ in range(min(n_threads, len(waiting)))]:
                done.result()
        finally:
            waiting.clear()  # if this thread is interrupted, the others end sooner


def run_rows(session: Any, requests: Mapping[int, RunRequest]) -> dict[int, tuple[Floats, Memory]]:
    """One run for the rows with a request; the other rows read padding, which is not scored."""
    rows = [requests.get(row, RunRequest([0] * PADDING, EMPTY_MEMORY, 0)) for row in range(ROWS)]
    ends = np.cumsum([len(request.token_ids) for request in rows])
    scored = [np.arange(end - request.n_scored, end) for request, end in zip(rows, ends, strict=True)]
    feeds: dict[str, Any] = {
        "input_ids": np.array([[token_id for request in rows for token_id in request.token_ids]], np.int64),
        "row_tokens": np.array([len(request.token_ids) for request in rows], np.int64),
        "scored": np.concatenate(scored),
    }
    for row, request in enumerate(rows):
        feeds |= {f"past.{row}.{name}": request.memory[name] for name in CACHES}
    wanted = [f"present.{row}.{name}" for row in requests for name in CACHES]
    scores, *present = session.run(["logits", *wanted], feeds)
    split = np.split(scores[0], np.cumsum([request.n_scored for request in rows])[:-1])
    n = len(CACHES)
    return {
        row: (split[row], dict(zip(CACHES, present[place * n : (place + 1) * n], strict=True)))
        for place, row in enumerate(requests)
    }
