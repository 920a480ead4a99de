"""Several texts read in one run of the model: what costs most, bringing the weights from memory, is paid once."""

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
    NOTHING,
    SETTLED,
    Counts,
    Floats,
    Lookup,
    Memory,
    OnnxFeed,
    Whose,
    common,
    failure,
    n_bytes,
    open_graph,
    read_tokenizer,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

KEPT_BYTES = 150_000_000
"""Of keys and values of the latest prompts: more than ROWS of 300 tokens."""
PADDING = 2
"""Tokens of a row that has no text."""

Item = TypeVar("Item")
Answer: TypeAlias = tuple[Floats, Memory] | Exception


class Asked(NamedTuple):
    """What is to be read of one text."""

    token_ids: Sequence[int]
    memory: Memory
    n_scored: int


class JointScorer:
    """For up to `ROWS` threads of one job; a run reads on in the texts of all of them.

    What was read of a prompt need not be read again where a later one begins alike, whosever it is: nothing is kept
    when the job ends. There are no budgets.
    """

    def __init__(self, folder: Path, threads: int = 2) -> None:
        self._folder, self._threads = folder, threads
        self._opening = threading.Lock()
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for row in range(ROWS):
            self._free.put(row)
        self._prompts = LatestPrompts(KEPT_BYTES)
        self.counts = Counts()

    @cached_property
    def tokenizer(self) -> Tokenizer:
        return read_tokenizer(self._folder)

    @cached_property
    def _meeting(self) -> Meeting:
        return Meeting(open_graph(self._folder / ROWS_GRAPH, self._threads), self.counts)

    @cached_property
    def _lookup(self) -> Lookup:
        return Lookup(self.tokenizer)

    @contextmanager
    def begin(self, budget_ms: float | None, whose: Whose | None = None) -> Iterator[OnnxFeed]:  # noqa: ARG002
        with self._opening:
            meeting, lookup = self._meeting, self._lookup
        row = self._free.get()
        try:
            with meeting.joined():
                yield OnnxFeed(Row(row, meeting), lookup, self._prompts)
        finally:
            self._free.put(row)

    def forget(self, user: UserKey) -> None:  # noqa: ARG002
        self._prompts.clear()


class Row(NamedTuple):
    """A text's place in the runs."""

    number: int
    meeting: Meeting

    def run(self, token_ids: Sequence[int], memory: Memory, n_scored: int) -> tuple[Floats, Memory]:
        return self.meeting.ask(self.number, Asked(token_ids, memory, n_scored))


class LatestPrompts:
    """What was read of the latest prompts, the oldest first to go."""

    def __init__(self, limit_bytes: int) -> None:
        self._limit_bytes = limit_bytes
        self._lock = threading.Lock()
        self._entries: list[tuple[list[int], Memory]] = []

    def take(self, prompt: list[int]) -> tuple[list[int], Memory]:
        """That which begins most like it, which is given away: whoever goes on from there puts back more."""
        with self._lock:
            alike = [common(known, prompt) for known, _ in self._entries]
            best = max(range(len(alike)), key=alike.__getitem__, default=-1)
            return self._entries.pop(best) if best >= 0 and alike[best] >= SETTLED else ([], {})

    def put(self, prompt: list[int], memory: Memory) -> None:
        with self._lock:
            self._entries.append((prompt, memory))
            while sum(n_bytes(kept) for _, kept in self._entries) > self._limit_bytes:
                self._entries.pop(0)

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()


class Meeting:
    """Where the texts under way wait until all of them have asked; the last one to ask runs the model for all."""

    def __init__(self, session: Any, counts: Counts) -> None:
        self._session, self._counts = session, counts
        self._changed = threading.Condition()
        self._n_joined = 0
        self._running = False
        self._asked: dict[int, Asked] = {}
        self._answers: dict[int, Answer] = {}

    @contextmanager
    def joined(self) -> Iterator[None]:
        """A text is under way."""
        with self._changed:
            self._n_joined += 1
        try:
            yield
        finally:
            with self._changed:
                self._n_joined -= 1
                self._changed.notify_all()

    def ask(self, row: int, asked: Asked) -> tuple[Floats, Memory]:
        """What `Reader.run` gives. Raises ModelError."""
        with self._changed:
            self._asked[row] = asked
            while row not in self._answers:
                if not self._running and len(self._asked) == self._n_joined:
                    self._run()
                else:
                    self._changed.wait()
            answer = self._answers.pop(row)
        if isinstance(answer, Exception):
            raise failure(answer) from answer
        return answer

    def _run(self) -> None:
        """The lock is held, and let go while the model runs."""
        asked, self._asked, self._running = self._asked, {}, True
        self._changed.release()
        found: Mapping[int, Answer]
        try:
            found = read(self._session, asked)
        except Exception as error:  # onnxruntime's own exceptions have no common class below this
            found = dict.fromkeys(asked, error)
        finally:
            self._changed.acquire()
        self._counts.add(sum(len(one.token_ids) for one in asked.values()))
        self._answers |= found
        self._running = False
        self._changed.notify_all()


def in_turn(groups: Iterable[Sequence[Item]], work: Callable[[Item], object], n_threads: int) -> None:
    """Each group's items by one thread, one after another, so that what they share is read once; large groups first.

    Raises what `work` raises; nothing new is begun then.
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
            waiting.clear()  # where this thread is interrupted, the others end sooner


def read(session: Any, asked: Mapping[int, Asked]) -> dict[int, tuple[Floats, Memory]]:
    """One run for the rows that asked; the others read tokens that nobody asks for."""
    rows = [asked.get(row, Asked([0] * PADDING, NOTHING, 0)) for row in range(ROWS)]
    ends = np.cumsum([len(one.token_ids) for one in rows])
    scored = [np.arange(end - one.n_scored, end) for one, end in zip(rows, ends, strict=True)]
    feeds: dict[str, Any] = {
        "input_ids": np.array([[token_id for one in rows for token_id in one.token_ids]], np.int64),
        "row_tokens": np.array([len(one.token_ids) for one in rows], np.int64),
        "scored": np.concatenate(scored),
    }
    for row, one in enumerate(rows):
        feeds |= {f"past.{row}.{name}": one.memory[name] for name in CACHES}
    wanted = [f"present.{row}.{name}" for row in asked for name in CACHES]
    scores, *present = session.run(["logits", *wanted], feeds)
    split = np.split(scores[0], np.cumsum([one.n_scored for one in rows])[:-1])
    n = len(CACHES)
    return {
        row: (split[row], dict(zip(CACHES, present[place * n : (place + 1) * n], strict=True)))
        for place, row in enumerate(asked)
    }
