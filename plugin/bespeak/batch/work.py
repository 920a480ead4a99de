"""Rewrites one chunk, from its lines to the bytes of the output: the unit that any process can do by itself."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import NamedTuple, TypeVar

from bespeak.batch.check import RewriteCheck
from bespeak.batch.lines import Chunk
from bespeak.batch.output import Packing, compress, json_lines, output_row, rejected_lines
from bespeak.batch.queries import Form, QueryLine, RejectedQuery, read_queries
from bespeak.batch.rewriting import rewrite_all
from bespeak.batch.tally import Tally, tally
from bespeak.errors import InputError, StoreError
from bespeak.profiles.stores import EventStore
from bespeak.reading import Reading, open_reading, read_context
from bespeak.records import Profile, Rewrite
from bespeak.rewriting.rewriter import LASTING, RewriteKey, Rewriter, model_of, version_read
from bespeak.session.reader import ContextReader
from bespeak.statuses import RewriteStatus

Given = TypeVar("Given")
Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Tools:
    """What chunks are rewritten with, opened once in each process. Without a store, no line may name a user."""

    rewriter: Rewriter
    context: ContextReader | None
    store: EventStore | None
    check: RewriteCheck | None = None
    form: Form = "jsonl"
    packing: Packing = ""
    strict: bool = False
    concurrency: int = 1  # concurrent calls to the store; more than one helps if each mostly waits
    n_threads: int = 1  # queries rewritten at the same time

    def each(self, call: Callable[[Given], Answer], given: Iterable[Given]) -> list[Answer]:
        """The store's answer to each call, in order."""
        if self.concurrency == 1:
            return list(map(call, given))
        with ThreadPoolExecutor(self.concurrency) as threads:
            return list(threads.map(call, given))

    def describe(self, profiles: str) -> dict[str, str]:
        """Everything besides the input that the output depends on; `profiles` names the store."""
        facts = {"model": model_of(self.rewriter), "profiles": profiles, "form": self.form}
        if self.context:
            facts["sessions"] = self.context.name
        if self.check:
            facts["check"] = f"{self.check.index} ({self.check.mode}), {self.check.engine.location}"
        return facts

    def close(self) -> None:
        if self.store:
            self.store.close()
        if self.check:
            self.check.engine.close()


OpenTools = Callable[[], Tools]
"""Opens the tools, also in another process: a module's function, or a `partial` of one."""


class ChunkResult(NamedTuple):
    """What a chunk adds to the output and to the report. A strict run does not rewrite a chunk with a bad line."""

    chunk: Chunk
    output: bytes
    rejected: bytes
    tally: Tally
    first_bad: RejectedQuery | None


def rewrite_chunk(chunk: Chunk, tools: Tools) -> ChunkResult:
    """The result of one chunk.

    Raises StoreError, EngineError and ModelError: if the store does not answer, the user's line is not rewritten as a
    stranger's.
    """
    began = time.perf_counter()
    rows = list(read_queries(chunk.first_no, chunk.lines, tools.form))
    rejected = [row for row in rows if isinstance(row, RejectedQuery)]
    first_bad = rejected[0] if rejected else None
    chunk = chunk._replace(lines=())  # need not travel back
    if tools.strict and first_bad:
        return ChunkResult(chunk, b"", b"", Tally(), first_bad)
    lines = [row for row in rows if isinstance(row, QueryLine)]
    profiles = tools.each(lambda line: find_profile(line, tools.store), lines)
    rewrites, from_cache = find_rewrites(lines, profiles, tools)
    output = json_lines(map(output_row, lines, profiles, rewrites))
    counts = tally(rewrites, rejected, from_cache, time.perf_counter() - began, (chunk.first_no, chunk.end.line_no))
    packed = compress(output, tools.packing) if output else b""
    return ChunkResult(chunk, packed, rejected_lines(rejected), counts, first_bad)


def refuse_line(bad: RejectedQuery) -> InputError:
    """The error that ends a strict run."""
    return InputError(f"line {bad.line_no}: {bad.reason}; correct the line, or leave out --strict to skip it")


def find_profile(line: QueryLine, store: EventStore | None) -> Profile:
    """The line's own history, or else the user's stored one, without the query itself if the line gives its id.

    If the user paused personalisation, that holds for the line's own history too. Raises StoreError.
    """
    query_id = "" if line.query_id is None else str(line.query_id)
    if line.user is None:
        return line.history or Profile(session_id=line.session_id)
    if store is None:
        raise StoreError(
            f"line {line.line_no} names a user, but this machine's profiles cannot be read on a cluster: give "
            "--profiles elasticsearch, or lines with their own history and no user"
        )
    stored = store.profile(line.user, line.session_id, datetime.now(UTC), query_id)
    return replace(line.history, consent=stored.consent) if line.history else stored


def find_rewrites(lines: Sequence[QueryLine], profiles: Sequence[Profile], tools: Tools) -> tuple[list[Rewrite], int]:
    """The rewrites in order, and how many of them came from the cache.

    A cached rewrite has the status with which it was made, so that the output does not depend on earlier runs.
    """
    opened = (open_reading(line.query, profile) for line, profile in zip(lines, profiles, strict=True))
    readings = [read_context(reading, tools.context) for reading in opened]
    keys = [find_key(*pair, tools.rewriter) for pair in zip(lines, readings, strict=True)]
    cached = _read_cache(keys, tools)
    rest = [place for place, key in enumerate(keys) if key not in cached]
    made = dict(zip(rest, rewrite_all([readings[n] for n in rest], tools.rewriter, tools.n_threads), strict=True))
    rewrites = [made[place] if place in made else cached[key] for place, key in enumerate(keys)]
    if tools.check:
        rewrites = tools.check.apply(rewrites)
    _update_cache(dict(zip(keys, rewrites, strict=True)), cached, tools)
    return rewrites, sum(key in cached for key in keys)


def find_key(line: QueryLine, reading: Reading, rewriter: Rewriter) -> RewriteKey | None:
    """The key under which the proxy would look for this rewrite.

    None if it never would: for a line with its own history, and for a query that the gate leaves as typed.
    """
    if line.user is None or line.history or reading.gate:
        return None
    return RewriteKey(line.user, version_read(reading.profile), model_of(rewriter), line.query)


def _read_cache(keys: Iterable[RewriteKey | None], tools: Tools) -> dict[RewriteKey | None, Rewrite]:
    if tools.store is None:
        return {}
    once = [key for key in dict.fromkeys(keys) if key]
    found = zip(once, tools.each(tools.store.get_rewrite, once), strict=True)
    return {key: rewrite for key, rewrite in found if rewrite}


def _update_cache(
    rewrites: Mapping[RewriteKey | None, Rewrite], cached: Mapping[RewriteKey | None, Rewrite], tools: Tools
) -> None:
    """Drops cached rewrites that failed the check, and keeps new ones that last."""
    store = tools.store
    if store is None:
        return
    tools.each(store.drop_rewrite, [key for key in cached if key and rewrites[key].status == RewriteStatus.DROPPED])
    new = [key for key in rewrites if key and key not in cached and rewrites[key].status in LASTING]
    tools.each(lambda key: store.put_rewrite(key, rewrites[key]), new)
