"""Shows on stderr how far a long task is: a bar on a terminal, otherwise a line now and then."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Callable
from typing import TextIO

LINE_EVERY_S = 10.0
BAR_EVERY_S = 0.1
BAR_CELLS = 20


class Progress:
    """The progress of one task. As a context manager it removes the bar at the end, whatever ends the task."""

    def __init__(
        self,
        label: str,
        stream: TextIO | None = None,
        line_every_s: float = LINE_EVERY_S,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._label, self._stream, self._clock = label, stream or sys.stderr, clock
        self._bar = self._stream.isatty()
        self._every_s = BAR_EVERY_S if self._bar else line_every_s
        self._drawn_at, self._done = clock(), 0
        self._first: tuple[float, float] | None = None  # time and share of the first update

    def __enter__(self) -> Progress:
        if self._bar:
            self._draw(f"{self._label} …")
        return self

    def __exit__(self, *_: object) -> None:
        self._clear()

    def update(self, done: float, total: float | None, note: str | None = None) -> None:
        """Shows how much is done, unless the last display is too recent.

        Without a total there is no bar and no time left. The note follows the share; by default it gives both numbers.
        """
        now, share = self._clock(), done / total if total else None
        if self._first is None:
            self._first = now, share or 0.0
        if share != 1 and now - self._drawn_at < self._every_s:
            return
        self._drawn_at = now
        if note is None:
            note = f"{done:,} of {total:,}" if total else f"{done:,}"
        self._draw(f"{self._label}: {', '.join(filter(None, (self._share(share), note, self._left(now, share))))}")
        if share == 1:
            self._clear()

    def advance(self, more: int, total: int) -> None:
        """Counts what was done since the last call, such as bytes, and shows the share alone."""
        self._done += more
        self.update(self._done, total, "")

    def _share(self, share: float | None) -> str:
        if share is None:
            return ""
        full = round(share * BAR_CELLS)
        return f"{'█' * full}{'░' * (BAR_CELLS - full)} {share:4.0%}" if self._bar else f"{share:.0%}"

    def _left(self, now: float, share: float | None) -> str:
        """The time left at the speed since the first update: what came before it may be an earlier run."""
        from bespeak.batch.report import clock

        assert self._first is not None
        began_at, before = self._first
        if share is None or share in (before, 1):
            return ""
        return f"{clock((now - began_at) * (1 - share) / (share - before))} left"

    def _draw(self, line: str) -> None:
        if self._bar:
            width = shutil.get_terminal_size((80, 24)).columns
            self._stream.write(f"\r\x1b[K{line[: width - 1]}")
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def _clear(self) -> None:
        if self._bar:
            self._stream.write("\r\x1b[K")
            self._stream.flush()
