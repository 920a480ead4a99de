"""One search from its arrival to its answer, with its header and the events to record."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Any

from bespeak.errors import BespeakError, InputError
from bespeak.models.encoder import well_formed
from bespeak.proxy.body import splice
from bespeak.proxy.body.reply import EngineHit, read_reply
from bespeak.proxy.body.search import Search
from bespeak.proxy.identity import Identity
from bespeak.proxy.outcome import Completed, Declined, Fault, Outcome
from bespeak.proxy.personal import PersonalSearch
from bespeak.proxy.recording import ShownHit, impressions, query_recorded
from bespeak.reading import Reading
from bespeak.records import Event
from bespeak.statuses import Reason, RewriteStatus, Stage

MAX_PERSONAL_SEARCHES = 20
"""How many searches of one `_msearch` are personalised. This bounds the header too, which clients and load balancers
accept up to a few thousand bytes."""
MAX_TITLE_CHARS = 300


@dataclass(frozen=True, slots=True)
class Exchange:
    """A search, its user, and its state so far. Each stage returns a copy that holds more."""

    search: Search
    identity: Identity
    head: str = ""  # its header line in an `_msearch`
    personal: PersonalSearch | None = None  # None: its answer stays the engine's own
    reading: Reading | Fault | None = None  # with its vectors
    outcome: Outcome = field(default_factory=Outcome)
    query: str = ""  # as typed, if it is to be recorded
    text: str | None = None  # its answer, once there is one
    shown: Sequence[EngineHit] = ()  # the hits of its answer, if they are to be recorded

    @property
    def concerns_us(self) -> bool:
        """Whether the client named a user, or sent anything for Bespeak."""
        return self.identity.user is not None or bool(self.identity.reason) or self.search.edited

    @property
    def lines(self) -> str:
        """The client's two lines of an `_msearch`, without anything for Bespeak."""
        return f"{self.head}\n{self.search.text}\n"

    @property
    def engine_lines(self) -> str:
        """The two lines that the engine is asked in their place."""
        if self.personal is None:
            return self.lines
        widened = self.personal.widened
        changes = {name: json.dumps(value) for name, value in widened.params if name == "preference"}
        return f"{splice.edit_object(self.head, 0, changes)}\n{widened.text}\n"

    def prepared(self, found: PersonalSearch | Declined) -> Exchange:
        if isinstance(found, PersonalSearch):
            return replace(self, personal=found, query=found.typed.text)
        return replace(self, personal=None, outcome=found.outcome, query=found.query)

    def failed(self, fault: Fault) -> Exchange:
        """With the engine's own answer, for this fault; nothing of it is recorded."""
        return replace(self, personal=None, outcome=fault.outcome, query="", text=None)

    def completed(self, done: Completed) -> Exchange:
        return replace(self, outcome=done.outcome, text=done.text, shown=done.shown)

    def answered_by_engine(self, answer: str) -> Exchange:
        return replace(self, text=answer, shown=shown_hits(answer) if self.query else ())


def check_status(status: int) -> None:
    """Raises Fault unless it is 200. A refusal is usually the client's own mistake, and the client sees it."""
    if status != 200:
        raise Fault(Stage.ENGINE_STATUS if status >= 500 or status == 429 else Reason.ENGINE_REFUSED)


def header(*outcomes: Outcome) -> tuple[bytes, bytes]:
    """`X-Bespeak` with one member for each search, in order, and one for all those beyond the limit."""
    members = map(str, outcomes[: MAX_PERSONAL_SEARCHES + 1])
    return b"X-Bespeak", ", ".join(members).encode("ascii", "replace")


def edited_lines(exchanges: Sequence[Exchange]) -> str | None:
    """The body of an `_msearch` without anything for Bespeak; None if there was nothing."""
    if not any(exchange.search.edited for exchange in exchanges):
        return None
    return "".join(exchange.lines for exchange in exchanges)


def events_of(exchange: Exchange, at: datetime) -> list[Event]:
    """The events to record: the query once, on its first page, and the hits of every page."""
    identity, search, query_id = exchange.identity, exchange.search, exchange.outcome.query_id
    if not exchange.query or identity.user is None or not query_id:
        return []
    shown = [ShownHit(hit.doc_id, recorded_title(hit.source), hit.noted) for hit in exchange.shown]
    whose = (identity.user, identity.session_id, query_id)
    try:
        events = impressions(*whose, shown, search.offset + 1, at)
        if search.offset == 0:
            return [query_recorded(*whose, exchange.query, search.index, at), *events]
    except BespeakError:  # an id or a text that no event can hold
        return []
    return events


def last_rewritten(exchanges: Sequence[Exchange]) -> PersonalSearch | None:
    """The last first page of these that was rewritten: it is its session's latest turn."""
    for exchange in reversed(exchanges):
        personal = exchange.personal
        if (
            personal
            and personal.reading
            and personal.chain.rewrite.status in (RewriteStatus.FULL, RewriteStatus.CACHED)
        ):
            return personal
    return None


def shown_hits(answer: str) -> tuple[EngineHit, ...]:
    """The hits of an answer in the engine's own order; none if they have no ids."""
    try:
        return read_reply(answer).hits
    except InputError:
        return ()


def recorded_title(source: Mapping[str, Any]) -> str:
    """The hit's title or name, else ""."""
    found = next((source[name] for name in ("title", "name") if isinstance(source.get(name), str)), "")
    return well_formed(str(found)[:MAX_TITLE_CHARS])
