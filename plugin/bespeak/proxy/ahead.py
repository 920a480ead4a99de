"""Reads a session's next prompt ahead after an answer, in time that no request wants."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import replace

from bespeak.deadline import Deadline, Late
from bespeak.proxy.bounds import CLOSING_S, Bounds
from bespeak.proxy.chains import Chains
from bespeak.records import Profile, Turn, UserKey
from bespeak.rewrite import Rewriter

logger = logging.getLogger("bespeak.proxy")

AHEAD_MS = 5_000.0
"""A reading that takes longer is ended."""


class Ahead:
    """One reading at a time, for one event loop; it is ended as soon as a request wants a model."""

    def __init__(self, rewriter: Rewriter, chains: Chains, bounds: Sequence[Bounds]) -> None:
        """`bounds` are those that the requests' runs are begun by."""
        self._rewriter, self._chains, self._bounds = rewriter, chains, bounds
        self._running: tuple[UserKey, Deadline, threading.Thread] | None = None
        self._lock = threading.Lock()
        self._closed = False
        for each in bounds:
            each.on_begin(self.stop)

    def read(self, profile: Profile, begun: float) -> None:
        """In the background; left out where anything runs, or the user was forgotten since `begun` (of the chains'
        clock), when the profile was not yet read.
        """
        if profile.user is None:
            return
        # First it can be ended, then it is asked what would end it: no forgetting and no request falls in between.
        deadline = Context().run(Deadline.after_ms, AHEAD_MS)
        thread = threading.Thread(target=Context().run, args=(self._read, profile, deadline), daemon=True)
        with self._lock:
            if self._running or self._closed:
                return
            self._running = profile.user, deadline, thread
        if any(each.busy for each in self._bounds) or not self._chains.counts(profile.user, begun):
            self._end(deadline)
            return
        thread.start()

    def stop(self) -> None:
        """From any thread; does not wait for the end."""
        self._stop(lambda _: True)

    def forget(self, user: UserKey) -> None:
        """Before the rewriter forgets the user: what is then still read, it keeps no more."""
        self._stop(lambda running: running == user)

    def close(self) -> None:
        """Waits a second at most."""
        with self._lock:
            self._closed, running = True, self._running
        self.stop()
        if running and running[2].is_alive():
            running[2].join(CLOSING_S)

    def _stop(self, concerned: Callable[[UserKey], bool]) -> None:
        with self._lock:
            running = self._running
        if running and concerned(running[0]):
            running[1].cancel()

    def _read(self, profile: Profile, deadline: Deadline) -> None:
        try:
            with deadline.held():
                if not deadline.over:
                    self._rewriter.warm(profile)
        except Late:
            pass
        except Exception as error:  # nobody waits for it, and the next rewrite reads for itself
            logger.warning("reading ahead failed: %s", type(error).__name__)
        finally:
            self._end(deadline)

    def _end(self, deadline: Deadline) -> None:
        with self._lock:
            if self._running and self._running[1] is deadline:
                self._running = None


def followed(profile: Profile, query: str) -> Profile:
    """What the session's next query finds, as long as nothing was answered or clicked. The turn names no event yet."""
    return replace(profile, turns=(*profile.turns, Turn(query, "", "")), version="")
