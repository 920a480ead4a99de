"""One chunk, from its lines to what is written of it: the unit that any process can do by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from bespeak.batch.duds import Duds
from bespeak.batch.lines import Chunk
from bespeak.batch.output import Packing, json_lines, output_row, pack, rejected_lines
from bespeak.batch.queries import Asked, Form, Rejected, read_queries
from bespeak.batch.rewriting import rewrite_all
from bespeak.batch.tally import Tally, tally
from bespeak.profiles.stores import EventStore
from bespeak.records import Profile, Rewrite
from bespeak.rewriting.rewriter import RewriteKey, Rewriter, model_of, version_read
from bespeak.session.gate import decline

Given = TypeVar("Given")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Tools:
    """What chunks are rewritten with; made once in each process. Without a store nobody's history is known."""

    rewriter: Rewriter
    store: EventStore
    duds: Duds | None = None
    form: Form = "jsonl"
    packing: Packing = ""
    strict: bool = False
    at_once: int = 1  # calls to the store; more where each of them mostly waits
    n_threads: int = 1  # queries rewritten at the same time

    def each(self, call: Callable[[Given], Answer], given: Iterable[Given]) -> list[Answer]:
        """What the store answers to each call, in their order."""
        if self.at_once == 1:
            return list(map(call, given))
        with ThreadPoolExecutor(self.at_once) as threads:
            return list(threads.map(call, given))

    def close(self) -> None:
        self.store.close()
        if self.duds:
            self.duds.engine.close()


OpenTools = Callable[[], Tools]
"""Makes them in another process too: a function of a module, or a `partial` of one."""


class Done(NamedTuple):
    """What to append for a chunk, and what to count; where `strict`, a chunk with a bad line is not rewritten."""

    chunk: Chunk
    output: bytes
    rejected: bytes
    tally: Tally
    first_bad: Rejected | None


def rewrite_chunk(chunk: Chunk, tools: Tools) -> Done:
    """Raises StoreError and EngineError: a line is not rewritten as a stranger's because a store was away."""
    began = time.perf_counter()
    rows = list(read_queries(chunk.first_no, chunk.lines, tools.form))
    rejected = [row for row in rows if isinstance(row, Rejected)]
    first_bad = rejected[0] if rejected else None
    chunk = chunk._replace(lines=())  # need not travel back
    if tools.strict and first_bad:
        return Done(chunk, b"", b"", Tally(), first_bad)
    asked = [row for row in rows if isinstance(row, Asked)]
    profiles = tools.each(lambda one: find_profile(one, tools.store), asked)
    rewrites, from_cache = find_rewrites(asked, profiles, tools)
    output = json_lines(map(output_row, asked, profiles, rewrites))
    counted = tally(rewrites, rejected, from_cache, time.perf_counter() - began, (chunk.first_no, chunk.end.line_no))
    return Done(chunk, pack(output, tools.packing) if output else b"", rejected_lines(rejected), counted, first_bad)


def find_profile(asked: Asked, store: EventStore) -> Profile:
    """The line's own history, else the user's in the store, without the query itself where the line gives its id.

    A user who paused personalisation has paused it for what a line says of them too.
    """
    query_id = "" if asked.query_id is None else str(asked.query_id)
    if asked.user is None:
        return asked.own or Profile(session_id=asked.session_id)
    stored = store.profile(asked.user, asked.session_id, datetime.now(UTC), query_id)
    return replace(asked.own, consent=stored.consent) if asked.own else stored


def find_rewrites(asked: Sequence[Asked], profiles: Sequence[Profile], tools: Tools) -> tuple[list[Rewrite], int]:
    """In the order asked, and how many came from the cache.

    These are `full` as when they were made, so that the output does not depend on what a run before this one has kept.
    """
    keys = [find_key(one, profile, tools.rewriter) for one, profile in zip(asked, profiles, strict=True)]
    asked_for = [key for key in dict.fromkeys(keys) if key]
    found = zip(asked_for, tools.each(tools.store.get_rewrite, asked_for), strict=True)
    cached: dict[RewriteKey | None, Rewrite] = {key: replace(one, status="full") for key, one in found if one}
    rest = [place for place, key in enumerate(keys) if key not in cached]
    pairs = [(asked[place].query, profiles[place]) for place in rest]
    made = dict(zip(rest, rewrite_all(pairs, tools.rewriter, tools.n_threads), strict=True))
    rewrites = [made[place] if place in made else cached[key] for place, key in enumerate(keys)]
    if tools.duds:
        rewrites = tools.duds.dropped(rewrites)
    final = dict(zip(keys, rewrites, strict=True))
    tools.each(tools.store.drop_rewrite, [key for key in asked_for if key in cached and final[key].status == "dud"])
    new = [key for key in asked_for if key not in cached and final[key].status == "full"]
    tools.each(lambda key: tools.store.put_rewrite(key, final[key]), new)
    return rewrites, sum(key in cached for key in keys)


def find_key(asked: Asked, profile: Profile, rewriter: Rewriter) -> RewriteKey | None:
    """Where the proxy would look for this rewrite; None for what it never asks: a line's own history, a gated query."""
    if asked.user is None or asked.own or decline(asked.query, profile):
        return None
    return RewriteKey(asked.user, version_read(profile), model_of(rewriter), asked.query)
