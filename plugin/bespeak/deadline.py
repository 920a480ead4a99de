"""Deadlines that end the work itself, even in the middle of a model's run, and not only the wait for it.

Work is under the deadline of its context, as with trio's cancel scopes: the code between the caller that sets a
deadline and the model that heeds it need not pass it on.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from typing import Any

from bespeak.errors import BespeakError


class Late(BespeakError):
    """The time is up, or nobody is waiting any more."""

    def __init__(self, message: str = "not done in time") -> None:
        super().__init__(message)


class Deadline:
    """A moment on the monotonic clock, never later than the deadline under which it was created."""

    def __init__(self, at: float = math.inf) -> None:
        """`at` in seconds of `time.monotonic()`; infinity: never."""
        self._at = at
        self._above = _current.get()
        self._acts: list[Callable[[], object]] = []
        self._lock = threading.Lock()

    @classmethod
    def after_ms(cls, budget_ms: float | None) -> Deadline:
        """`budget_ms` from now; None: only when cancelled."""
        return cls() if budget_ms is None else cls(time.monotonic() + budget_ms / 1000)

    @classmethod
    def current(cls) -> Deadline:
        """The deadline of the caller's context; without one, a deadline that never comes."""
        return _current.get() or cls()

    @property
    def at(self) -> float:
        return min(self._at, self._above.at) if self._above else self._at

    @property
    def left_s(self) -> float:
        """Seconds left; 0 when over."""
        return max(0.0, self.at - time.monotonic())

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.at

    def check(self) -> None:
        """Raises Late when over."""
        if self.over:
            raise Late

    def cancel(self) -> None:
        """Ends the deadline now. May be called from any thread, any number of times."""
        with self._lock:
            self._at = min(self._at, time.monotonic())
            acts = tuple(self._acts)
        for act in acts:
            act()

    @contextmanager
    def held(self) -> Iterator[None]:
        """Puts the block under this deadline."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    @contextmanager
    def ending(self, act: Callable[[], object]) -> Iterator[None]:
        """Calls `act` if the deadline is over before the block ends, usually from another thread and perhaps twice."""
        timer = None
        chain = self._chain()
        for deadline in chain:
            with deadline._lock:
                deadline._acts.append(act)
        try:
            if self.over:
                act()
            elif self.at < math.inf:
                timer = threading.Timer(min(self.left_s, threading.TIMEOUT_MAX), act)
                timer.daemon = True
                timer.start()
            yield
        finally:
            if timer:
                timer.cancel()
            for deadline in chain:
                with deadline._lock:
                    deadline._acts.remove(act)

    @contextmanager
    def model_run(self) -> Iterator[Any]:
        """RunOptions that end a run of onnxruntime when the deadline is over, for any number of runs in sequence.

        A run ends between two operators of the graph and then raises onnxruntime's own error.
        """
        import onnxruntime

        run = onnxruntime.RunOptions()
        run.log_severity_level = 4  # onnxruntime would print an error for each ended run
        with self.ending(partial(setattr, run, "terminate", True)):
            yield run

    def _chain(self) -> list[Deadline]:
        return [self, *(self._above._chain() if self._above else [])]


_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)
