"""What became of a search, and the faults that leave it untouched."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from bespeak.proxy.body.reply import EngineHit
from bespeak.statuses import Ending, Reason, RerankStatus, RewriteStatus, Stage, stage_reason

logger = logging.getLogger("bespeak.proxy")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What was done to a search, as the header `X-Bespeak` reports it. Holds no text of the user's."""

    rewrite: RewriteStatus = RewriteStatus.OFF
    rerank: RerankStatus = RerankStatus.OFF
    reason: str = ""  # reasons, separated by commas
    query_id: str = ""

    @property
    def kind(self) -> Literal["personalised", "declined", "failed"]:
        if self.rerank == RerankStatus.FAILED:
            return "failed"
        rewritten = self.rewrite in (RewriteStatus.FULL, RewriteStatus.CACHED)
        changed = self.rerank != RerankStatus.OFF or rewritten
        return "personalised" if changed or self.reason == Reason.BEYOND_WINDOW else "declined"

    def __str__(self) -> str:
        members = {"rewrite": self.rewrite, "rerank": self.rerank, "reason": self.reason, "query_id": self.query_id}
        return "; ".join(f"{name}={value}" for name, value in members.items() if value)


@dataclass(frozen=True, slots=True)
class Declined:
    """A search whose answer stays the engine's own. `query` is the text as typed if it should be recorded."""

    outcome: Outcome
    query: str = ""


@dataclass(frozen=True, slots=True)
class Completed:
    """An answer for the client, what was done to it, and the hits that it shows, in their order."""

    text: str
    outcome: Outcome
    shown: tuple[EngineHit, ...]


class Fault(Exception):
    """A stage failed, so the client's own request must be sent instead."""

    def __init__(self, stage: Stage | Reason, ending: Ending | None = None) -> None:
        self.reason = stage_reason(stage, ending) if isinstance(stage, Stage) else str(stage)
        super().__init__(self.reason)

    @property
    def outcome(self) -> Outcome:
        """A failed ranking, unless Elasticsearch refused the search: the client then sees that refusal."""
        rerank = RerankStatus.OFF if self.reason == Reason.ENGINE_REFUSED else RerankStatus.FAILED
        return Outcome(rerank=rerank, reason=self.reason)


@contextmanager
def stage(name: Stage) -> Iterator[None]:
    """Turns any error in the block into a Fault of this stage. The log names the type of the error, but no content."""
    try:
        yield
    except Fault:
        raise
    except Exception as error:  # a fault of ours, of any kind, must not become the client's
        logger.warning("personalising failed at %s: %s", name, type(error).__name__)
        raise Fault(name) from error
