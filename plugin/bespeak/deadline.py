"""When work has to end: by itself, also in the middle of a model's run, and not only in the eyes of who waits for it.

The deadline that a piece of work is under is that of its context, as with the cancel scopes of trio: what lies between
the caller who sets it and the model that heeds it need not pass it on.
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
    """The time is over, or nobody waits any more."""

    def __init__(self, message: str = "not done in time") -> None:
        super().__init__(message)


class Deadline:
    """A moment on the monotonic clock, and never later than the deadline that it was made under."""

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
        """What the caller's work is under; without any, one that never comes."""
        return _current.get() or cls()

    @property
    def at(self) -> float:
        return min(self._at, self._above.at) if self._above else self._at

    @property
    def left_s(self) -> float:
        """Seconds, 0 when over."""
        return max(0.0, self.at - time.monotonic())

    @property
    def over(self) -> bool:
        return time.monotonic() >= self.at

    def check(self) -> None:
        """Raises Late when over."""
        if self.over:
            raise Late

    def cancel(self) -> None:
        """It is over now; from any thread, any number of times."""
        with self._lock:
            self._at = min(self._at, time.monotonic())
            acts = tuple(self._acts)
        for act in acts:
            act()

    @contextmanager
    def held(self) -> Iterator[None]:
        """What the block does is under this deadline."""
        token = _current.set(self)
        try:
            yield
        finally:
            _current.reset(token)

    @contextmanager
    def ending(self, act: Callable[[], object]) -> Iterator[None]:
        """Should this be over before the block is, `act` is called, mostly by another thread and maybe twice."""
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
        """onnxruntime's RunOptions for any number of runs, one after another, that end when this is over.

        A run that is ended raises onnxruntime's own error. It is ended between two operators of the graph.
        """
        import onnxruntime

        run = onnxruntime.RunOptions()
        run.log_severity_level = 4  # a run that is ended in time is no error to print
        with self.ending(partial(setattr, run, "terminate", True)):
            yield run

    def _chain(self) -> list[Deadline]:
        return [self, *(self._above._chain() if self._above else [])]


_current: ContextVar[Deadline | None] = ContextVar("deadline", default=None)
