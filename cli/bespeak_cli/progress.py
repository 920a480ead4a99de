"""How far a long run is, on stderr: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import shutil
import threading
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from bespeak.batch.run import Step

LINE_EVERY_S = 10.0
BAR_EVERY_S = 0.5
BAR_CELLS = 20


class Progress:
    """Shows the latest step, again and again while it is entered. Without a size there is no bar and no end."""

    def __init__(self, stream: TextIO, size: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._size, self._clock = stream, size, clock
        self._bar = stream.isatty()
        self._first: tuple[float, Step] | None = None
        self._last: Step | None = None
        self._ended = threading.Event()
        self._showing = threading.Thread(target=self._show_on, daemon=True)

    def __enter__(self) -> Progress:
        self._showing.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        self._showing.join()
        if self._bar:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def tell(self, step: Step) -> None:
        if self._first is None:
            self._first = self._clock(), step
        self._last = step

    def show(self) -> None:
        line = "begun, nothing is done yet"
        if self._first and self._last:
            began_at, first = self._first
            line = self._line(first, self._last, self._clock() - began_at)
        if self._bar:
            width = shutil.get_terminal_size((80, 24)).columns
            self._stream.write(f"\r\x1b[K{line[: width - 1]}")
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def _show_on(self) -> None:
        while not self._ended.wait(BAR_EVERY_S if self._bar else LINE_EVERY_S):
            self.show()

    def _line(self, first: Step, last: Step, elapsed_s: float) -> str:
        """Rate and time left as of this run, counts as of all."""
        from bespeak.batch.report import clock

        done, n_before = last.standing.tally, first.standing.tally.queries
        queries = max(done.queries, 1)
        parts = [f"{done.queries:,} queries"]
        if elapsed_s > 0:
            parts.append(f"{(done.queries - n_before) / elapsed_s:,.1f}/s")
        if self._size:
            share, gained = last.read_bytes / self._size, (last.read_bytes - first.read_bytes) / self._size
            full = round(share * BAR_CELLS)
            parts.insert(0, f"{'█' * full}{'░' * (BAR_CELLS - full)} {share:4.0%}" if self._bar else f"{share:.0%}")
            if gained > 0:
                parts.append(f"{clock(elapsed_s * (1 - share) / gained)} left")
        parts += [f"{done.from_cache / queries:.0%} cached", f"{done.statuses.get('gated', 0) / queries:.0%} gated"]
        if done.lines_rejected:
            parts.append(f"{done.lines_rejected:,} rejected")
        return ", ".join(parts)
