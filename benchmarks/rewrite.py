"""Compares batches with one query at a time, and with llama.cpp on the same base, prompts and number of tokens.

    python benchmarks/rewrite.py FILE [--lines N] [--rounds N] [--llama N] [--cores N] [--cache-dir DIR]

FILE is the input of `bespeak rewrite` as JSON lines. N of its lines with a history, from the middle, are rewritten in
each way in each round; the fastest round of each way counts. The ways:

- `one at a time`: as for queries of unrelated users, nothing of a session is kept
- `one, kept`: line after line, what was read of a session is kept
- `batch P x T`: P processes of T threads, as `bespeak rewrite --workers P`, without files
- `llama.cpp`: one at a time, keeping what a prompt has in common with the one before; only the first lines (`--llama`),
  as published (Q4_K_M) and in eight bits (Q8_0), with `one at a time` and `one, kept` of the same lines. Left out if it
  is not installed:

      CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import platformdirs
from rewriter import llamas, text_of

from bespeak.batch.lines import Chunk, LinePosition
from bespeak.batch.queries import QueryLine, read_queries
from bespeak.batch.work import Tools
from bespeak.batch.workers import rewrite_chunks
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.reading import rewrite_query
from bespeak.records import Profile, UserKey
from bespeak.rewriting.model import ROWS
from bespeak.rewriting.opening import choose_rewriter
from bespeak.session.reader import load_reader

CHUNK = 128
WARMING = 16
"""Lines that each process rewrites before the measurement."""


class Spent(NamedTuple):
    """Time per query in milliseconds; CPU time of all processes."""

    wall_ms: float
    cpu_ms: float


class Clock:
    """Measures from its creation until `per` is called."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), cpu_seconds()

    def per(self, n_queries: int) -> Spent:
        wall, cpu = time.perf_counter() - self._wall, cpu_seconds() - self._cpu
        return Spent(wall * 1000 / n_queries, cpu * 1000 / n_queries)


def cpu_seconds() -> float:
    """CPU seconds of this process and of its ended children."""
    spent = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in spent)


def choose_lines(path: Path, n_lines: int) -> list[bytes]:
    lines = [line for line in path.read_bytes().splitlines() if json.loads(line).get("history")]
    start = max(0, (len(lines) - n_lines) // 2)
    return lines[start : start + n_lines]


def one_by_one(lines: Sequence[bytes], cache: Path, cores: int, kept: bool) -> tuple[Spent, list[str]]:
    reader = load_reader(cache, cores)
    rewriter = choose_rewriter("model", cache, threads=cores, context=reader)
    asked = [
        (one.query, one.history)
        for one in read_queries(1, lines, "jsonl")
        if isinstance(one, QueryLine) and one.history
    ]
    pairs = [(query, of_session(profile) if kept else profile) for query, profile in asked]
    for pair in pairs[:WARMING]:
        rewrite_query(*pair, rewriter, reader)
    clock = Clock()
    made = [rewrite_query(*pair, rewriter, reader).text for pair in pairs]
    return clock.per(len(pairs)), made


def of_session(profile: Profile) -> Profile:
    """The profile of a user with only this conversation."""
    first = f"{profile.statements[:1]} {profile.turns[0].query if profile.turns else ''}"
    return replace(profile, user=UserKey("benchmark", first), session_id="s")


def in_batches(lines: Sequence[bytes], cache: Path, n_workers: int, threads: int) -> tuple[Spent, list[str]]:
    warming = [lines[:WARMING]] * n_workers
    parts = [*warming, *(lines[at : at + CHUNK] for at in range(0, len(lines), CHUNK))]
    chunks = (Chunk(1, tuple(part), LinePosition(len(part)), 0) for part in parts)
    with tempfile.TemporaryDirectory() as folder:
        done = rewrite_chunks(chunks, partial(open_tools, Path(folder), cache, threads), n_workers)
        for _ in warming:
            next(done)
        clock, written = Clock(), b""
        for one in done:
            written += one.output
        spent = clock.per(len(lines))
    return spent, [json.loads(line)["rewrite"] for line in written.splitlines()]


def open_tools(folder: Path, cache: Path, threads: int) -> Tools:
    rewriter = choose_rewriter("model", cache, threads=threads, joint=True)
    return Tools(rewriter, SqliteStore(folder / f"{os.getpid()}.db"), n_threads=ROWS)


def by_llama(lines: Sequence[bytes], written: Sequence[str], cache: Path, cores: int) -> Iterator[tuple[str, Spent]]:
    tokenizer: Any = choose_rewriter("model", cache)._scorer.tokenizer  # type: ignore[attr-defined]
    asked = [
        (one.query, one.history)
        for one in read_queries(1, lines, "jsonl")
        if isinstance(one, QueryLine) and one.history
    ]
    texts = [text_of(*pair, tokenizer) for pair in asked]
    with llamas(cores) as others:
        for name, other in others.items():
            other.complete(texts[0], written[0])
            clock = Clock()
            for text, rewrite in zip(texts, written, strict=False):
                other.complete(text, rewrite)
            yield name, clock.per(len(texts))


def measure(lines: Sequence[bytes], cores: int, cache: Path, n_llama: int) -> Iterator[tuple[str, Spent]]:
    """Raises AssertionError if a batch writes other rewrites than one query at a time."""
    spent, expected = one_by_one(lines, cache, cores, kept=False)
    yield "one at a time", spent
    for name, work in {
        "one, kept": partial(one_by_one, lines, cache, cores, kept=True),
        **{f"batch {n} x {cores // n}": partial(in_batches, lines, cache, n, cores // n) for n in {1: 0, cores: 0}},
    }.items():
        spent, made = work()
        assert made == expected, name
        yield name, spent
    few = lines[:n_llama]
    for kept in (False, True):
        yield f"of {len(few)}, {'kept' if kept else 'one'}", one_by_one(few, cache, cores, kept)[0]
    yield from by_llama(few, expected, cache, cores)


def show(best: dict[str, Spent]) -> None:
    own, few = best["one at a time"], next(spent for name, spent in best.items() if name.startswith("of "))
    print(f"\n{'':22}{'ms a query':>11}{'CPU ms':>9}{'queries/s':>11}{'times one at a time':>21}{'by CPU':>8}")
    for name, spent in best.items():
        against = few if name.startswith(("of ", "llama")) else own
        print(
            f"{name:22}{spent.wall_ms:11.0f}{spent.cpu_ms:9.0f}{1000 / spent.wall_ms:11.1f}"
            f"{against.wall_ms / spent.wall_ms:21.2f}{against.cpu_ms / spent.cpu_ms:8.2f}"
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path)
    parser.add_argument("--lines", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--llama", type=int, default=32)
    parser.add_argument("--cores", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--cache-dir", type=Path, default=platformdirs.user_cache_path("bespeak"))
    options = parser.parse_args()
    lines = choose_lines(options.file, options.lines)
    best: dict[str, Spent] = {}
    for _ in range(options.rounds):
        for name, spent in measure(lines, options.cores, options.cache_dir, options.llama):
            best[name] = min(spent, best.get(name, spent))
            print(f"{name}: {spent.wall_ms:.0f} ms", flush=True)
    print(f"\n{len(lines)} lines, {options.cores} cores")
    show(best)


if __name__ == "__main__":
    main()
