"""Reads a session's next prompt ahead, after a search and after its answer, while no request needs a model.

Most of that prompt is the answer, which arrives as an event if there is one.
"""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from contextvars import Context
from dataclasses import replace
from datetime import UTC, datetime

from bespeak.deadline import Deadline, Late
from bespeak.parts import Profiles
from bespeak.proxy.bounds import CLOSING_S, Bounds
from bespeak.proxy.chains import Chains
from bespeak.records import Profile, Turn, UserKey
from bespeak.rewriting.rewriter import Rewriter

logger = logging.getLogger("bespeak.proxy")

AHEAD_MS = 5_000.0
"""A reading that takes longer is stopped."""


class ReadAhead:
    """One reading at a time, for one event loop; it stops as soon as a request needs a model."""

    def __init__(self, rewriter: Rewriter, profiles: Profiles, chains: Chains, bounds: Sequence[Bounds]) -> None:
        """`bounds` are those of the requests' model runs."""
        self._rewriter, self._profiles, self._chains, self._bounds = rewriter, profiles, chains, bounds
        self._running: tuple[UserKey, Deadline, threading.Thread] | None = None
        self._lock = threading.Lock()
        self._closed = False
        for each in bounds:
            each.on_begin(self.stop)

    def read(self, profile: Profile, begun: float) -> None:
        """Starts in the background, unless anything runs or the user was forgotten since `begun`.

        `begun` is a time by the chains' clock, before the profile was read.
        """
        if profile.user is not None:
            self._begin(profile.user, begun, lambda: profile)

    def read_session(self, user: UserKey, session_id: str) -> None:
        """As `read`, with the stored session; its profile is read in the background too."""
        self._begin(user, self._chains.clock(), lambda: self._profiles.profile(user, session_id, datetime.now(UTC)))

    def _begin(self, user: UserKey, begun: float, profile: Callable[[], Profile]) -> None:
        # It can be stopped before it asks whether it should stop, so no forgetting and no request is missed.
        deadline = Context().run(Deadline.after_ms, AHEAD_MS)
        thread = threading.Thread(target=Context().run, args=(self._read, profile, deadline), daemon=True)
        with self._lock:
            if self._running or self._closed:
                return
            self._running = user, deadline, thread
        if any(each.busy for each in self._bounds) or not self._chains.is_current(user, begun):
            self._end(deadline)
            return
        thread.start()

    def stop(self) -> None:
        """Stops what runs, without waiting for its end. From any thread."""
        self._stop(lambda _: True)

    def forget(self, user: UserKey) -> None:
        """Call this before the rewriter forgets the user: it keeps nothing of what is still being read."""
        self._stop(lambda running: running == user)

    def close(self) -> None:
        """Stops what runs, and waits a second for it at most."""
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

    def _read(self, profile: Callable[[], Profile], deadline: Deadline) -> None:
        try:
            with deadline.held():
                known = profile()
                if known.consent and (known.turns or known.statements) and not deadline.over:
                    self._rewriter.warm(known)
        except Late:
            pass
        except Exception as error:  # nobody waits for it; the next rewrite reads for itself
            logger.warning("reading ahead failed: %s", type(error).__name__)
        finally:
            self._end(deadline)

    def _end(self, deadline: Deadline) -> None:
        with self._lock:
            if self._running and self._running[1] is deadline:
                self._running = None


def with_turn(profile: Profile, query: str) -> Profile:
    """The profile as the session's next query finds it, before any answer or click. The turn has no event yet."""
    return replace(profile, turns=(*profile.turns, Turn(query, "", "")), version="")
