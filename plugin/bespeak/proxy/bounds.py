"""Bounds on how many models run at once and for how long, and a breaker for stages that keep failing."""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any, TypeAlias, TypeVar

from bespeak.deadline import Deadline, Late
from bespeak.errors import BespeakError

T = TypeVar("T")
Job: TypeAlias = tuple["Future[Any]", Callable[[Deadline], Any], Deadline]

GRACE_S = 0.05
"""How long after its deadline a run's result is still accepted, since it arrives a little after it is done."""

CLOSING_S = 1.0
PROFILE_READS = 8
"""How many profiles are read at once. A store that hangs blocks no more threads than this."""


class Busy(BespeakError):
    """Too much is running already, so this did not start."""


class Bounds:
    """Runs functions in `runs` threads of its own, for one event loop.

    The threads are daemons, so one that hangs does not keep the process from ending.
    """

    def __init__(self, runs: int | None = None, grace_s: float = GRACE_S) -> None:
        """`runs`: how many at once; half of the cores if not given, since a run may use two."""
        self.runs = max(1, (os.cpu_count() or 1) // 2) if runs is None else runs
        if self.runs < 1:
            raise ValueError(f"runs must be at least 1, but is {self.runs}")
        self._grace_s = grace_s
        self._jobs: SimpleQueue[Job | None] = SimpleQueue()
        self._running: set[Deadline] = set()
        self._lock = threading.Lock()
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._n_asked = 0
        self._on_begin: list[Callable[[], object]] = []

    @property
    def busy(self) -> bool:
        """Whether anyone is waiting for a run."""
        return self._n_asked > 0

    def on_begin(self, act: Callable[[], object]) -> None:
        """Calls `act` before each run, when `busy` is already true."""
        self._on_begin.append(act)

    async def run(self, function: Callable[[Deadline], T], budget_ms: float) -> T:
        """The result of `function`, which gets its deadline; all that it calls is under this deadline too.

        Waiting for a thread counts against the budget. Raises Busy if it did not start in time, Late if it did not end
        in time, and what `function` raises. When the waiting task is cancelled, so is the deadline.
        """
        if self._closed:
            raise Busy("no model run can start: the proxy is closing")
        if self._hangs():
            raise Busy(f"no model run can start: all {self.runs} that may run at once are long past their deadline")
        deadline = Deadline.after_ms(budget_ms)
        future: Future[T] = Future()
        waiting = asyncio.wrap_future(future)
        self._n_asked += 1
        try:
            for act in self._on_begin:
                act()
            self._begin((future, function, deadline))
            await asyncio.wait({waiting}, timeout=deadline.left_s)
            if future.cancel():
                raise Busy(f"no model run could start within {budget_ms:.0f} ms")
            if not waiting.done():
                await asyncio.wait({waiting}, timeout=deadline.left_s + self._grace_s)
            if not waiting.done():
                raise Late(f"not done in {budget_ms:.0f} ms")
            return waiting.result()
        finally:
            self._n_asked -= 1
            deadline.cancel()
            waiting.cancel()  # even if it has failed by now: asyncio warns about exceptions that nobody retrieved

    def close(self) -> None:
        """Stops what runs and lets nothing start; waits a second at most."""
        with self._lock:
            self._closed = True
            running, threads = tuple(self._running), tuple(self._threads)
        for deadline in running:
            deadline.cancel()
        for _ in threads:
            self._jobs.put(None)
        end = time.monotonic() + CLOSING_S
        for thread in threads:
            thread.join(max(0.0, end - time.monotonic()))

    def _begin(self, job: Job) -> None:
        """Queues a job. The first one starts the threads, in the process that it runs in."""
        with self._lock:
            while len(self._threads) < self.runs:
                thread = threading.Thread(target=self._serve, name="bespeak-run", daemon=True)
                self._threads.append(thread)
                thread.start()
        self._jobs.put(job)

    def _hangs(self) -> bool:
        """Whether every thread is taken by a run that should have ended long ago."""
        latest = time.monotonic() - self._grace_s
        with self._lock:
            return len(self._running) >= self.runs and all(deadline.at < latest for deadline in self._running)

    def _serve(self) -> None:
        while self._do(self._jobs.get()):
            pass

    def _do(self, job: Job | None) -> bool:
        """Runs a job and keeps no reference to it. False if no jobs are left."""
        if job is None:
            return False
        future, function, deadline = job
        if self._closed:
            future.cancel()
        if not future.set_running_or_notify_cancel():
            return True
        with self._lock:
            self._running.add(deadline)
        try:
            with deadline.held():
                if deadline.over:
                    raise Busy("no model run could start in time")
                result = function(deadline)
        except StopIteration as error:  # a coroutine cannot raise it
            self._end(deadline)
            future.set_exception(RuntimeError(f"a model run raised {error!r}"))
        except BaseException as error:
            self._end(deadline)
            future.set_exception(error)
        else:
            self._end(deadline)
            future.set_result(result)
        return True

    def _end(self, deadline: Deadline) -> None:
        with self._lock:
            self._running.discard(deadline)


@dataclass(frozen=True, slots=True)
class Runs:
    """The bounds on what a proxy runs at once: rewrites, encodings, and reads of profiles."""

    rewrites: Bounds
    encodings: Bounds
    reads: Bounds

    @classmethod
    def bounded(cls, model_runs: int | None = None) -> Runs:
        """At most `model_runs` rewrites and as many encodings; half of the cores if not given."""
        return cls(Bounds(model_runs), Bounds(model_runs), Bounds(PROFILE_READS))


class Breaker:
    """Stops a stage for `rest_s` after `faults` in a row, then admits one try at a time until one succeeds.

    Being late is a fault too; otherwise every query would wait for a result that never comes in time. `Busy` and a
    client that has gone say nothing about the stage, so call neither method for them.

        if breaker.admits():
            try: … ; breaker.succeeded()
            except …: breaker.failed()
    """

    def __init__(self, faults: int = 5, rest_s: float = 30.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._faults, self._rest_s, self._clock = faults, rest_s, clock
        self._in_a_row = 0
        self._until = 0.0
        self._lock = threading.Lock()

    @property
    def open(self) -> bool:
        """Whether the stage rests now. For display only; `admits` decides."""
        with self._lock:
            return self._in_a_row >= self._faults and self._clock() < self._until

    def admits(self) -> bool:
        """Whether the stage may be tried. After a rest one caller may, and if it never reports, another one later."""
        with self._lock:
            if self._in_a_row < self._faults:
                return True
            if self._clock() < self._until:
                return False
            self._until = self._clock() + self._rest_s
            return True

    def succeeded(self) -> None:
        with self._lock:
            self._in_a_row = 0

    def failed(self) -> None:
        with self._lock:
            self._in_a_row += 1
            self._until = self._clock() + self._rest_s
