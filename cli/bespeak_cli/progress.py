"""How far a long run is, on stderr: a bar on a terminal, else a line every ten seconds."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from bespeak.batch.run import Step

LINE_EVERY_S = 10.0
BAR_EVERY_S = 0.2
BAR_CELLS = 20


class Progress:
    """Tells each step that comes late enough after the last one told. Without a size there is no bar and no end."""

    def __init__(self, stream: TextIO, size: int | None, clock: Callable[[], float] = time.monotonic) -> None:
        self._stream, self._size, self._clock = stream, size, clock
        self._bar = stream.isatty()
        self._told_at = self._began_at = clock()
        self._first: Step | None = None

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar:
            self._stream.write("\r\x1b[K")
            self._stream.flush()

    def tell(self, step: Step) -> None:
        now = self._clock()
        if self._first is None:
            self._first, self._began_at = step, now
        if now - self._told_at < (BAR_EVERY_S if self._bar else LINE_EVERY_S):
            return
        self._told_at = now
        line = self._line(step, now - self._began_at)
        if self._bar:
            width = shutil.get_terminal_size((80, 24)).columns
            self._stream.write(f"\r\x1b[K{line[: width - 1]}")
        else:
            self._stream.write(line + "\n")
        self._stream.flush()

    def _line(self, step: Step, elapsed_s: float) -> str:
        """Rate and time left as of this run, counts as of all."""
        from bespeak.batch.report import clock

        assert self._first
        done, first = step.standing.tally, self._first.standing.tally
        queries = max(done.queries, 1)
        parts = [f"{done.queries:,} queries"]
        if elapsed_s > 0:
            parts.append(f"{(done.queries - first.queries) / elapsed_s:,.1f}/s")
        if self._size:
            share = min(step.read_bytes / self._size, 1.0)
            gained = (step.read_bytes - self._first.read_bytes) / self._size
            full = round(share * BAR_CELLS)
            parts.insert(0, f"{'█' * full}{'░' * (BAR_CELLS - full)} {share:4.0%}" if self._bar else f"{share:.0%}")
            if gained > 0:
                parts.append(f"{clock(elapsed_s * (1 - share) / gained)} left")
        parts += [f"{done.from_cache / queries:.0%} cached", f"{done.statuses.get('gated', 0) / queries:.0%} gated"]
        if done.lines_rejected:
            parts.append(f"{done.lines_rejected:,} rejected")
        return ", ".join(parts)
