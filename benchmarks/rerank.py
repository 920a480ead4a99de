"""Measures reranking and reading sessions, each beside a baseline in the same run.

Reranks a window of 100 hits with known vectors, beside a bare product of the same matrix. Reads a query with its
session, also with many statements, beside encoding the query alone.

python benchmarks/rerank.py [--rounds 2000]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from bespeak.models.encoder import load_encoder
from bespeak.pipeline import rank
from bespeak.ranking.rerank import Window
from bespeak.reading import Reading
from bespeak.records import Hit, Profile, Rewrite, Statement, Turn
from bespeak.session.reader import load_reader
from bespeak.settings import Settings

N_HITS, DIM = 100, 384
STATEMENTS = (0, 100, 250)
ASKED = "and what about the other one?"
"""Numbers of statements, each of twelve words; with three turns, all words are drawn from 5,000."""


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000)
    rounds = parser.parse_args().rounds
    draw = np.random.default_rng(1)
    rows = draw.normal(size=(N_HITS + 2, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    hits = [Hit(f"d{n}", float(N_HITS - n), n + 1, {}, row) for n, row in enumerate(rows[:N_HITS])]
    profile = Profile(turns=(Turn("a turn", "", "turn"),))
    vectors = {"typed": rows[-1], "last_turn": rows[-2]}
    reading = Reading("query", profile, None, None, Rewrite("query", "query"), vectors=vectors)

    def rerank() -> object:
        return rank(reading, Window(hits), Settings())

    ours, bare = timed(rerank, rounds), timed(lambda: rows[:N_HITS] @ rows[-1], rounds)
    print(f"rerank of {N_HITS} hits: p50 {ours[0]:.3f} ms, p95 {ours[1]:.3f} ms")
    print(f"matrix product: p50 {bare[0]:.4f} ms; ratio {ours[0] / bare[0]:.0f}")
    time_reading(draw, max(1, rounds // 10))


def time_reading(draw: np.random.Generator, rounds: int) -> None:
    """A query read with its session, beside the same query encoded alone; on one thread, a new session each time."""
    encoder, reader = load_encoder(threads=1), load_reader(threads=1)

    def session() -> Profile:
        turns = tuple(Turn(drawn_text(draw, 8), drawn_text(draw, 60), f"t{i}") for i in range(3))
        return Profile(turns=turns)

    read = timed(lambda: reader.read(ASKED, session()), rounds)
    alone = timed(lambda: encoder.encode([f"{ASKED} {drawn_text(draw, 1)}"], "query"), rounds)
    print(f"a query read with its session: p50 {read[0]:.1f} ms, p95 {read[1]:.1f} ms")
    print(f"a query alone: p50 {alone[0]:.1f} ms; ratio {read[0] / alone[0]:.1f}")
    for n in STATEMENTS:
        profile = replace(session(), statements=tuple(Statement(drawn_text(draw, 12), f"s{i}") for i in range(n)))
        some = timed(lambda known=profile: reader.read(f"{ASKED} {drawn_text(draw, 1)}", known), rounds)
        print(f"a session with {n} statements: p50 {some[0]:.1f} ms")


def drawn_text(draw: np.random.Generator, n_words: int) -> str:
    return " ".join(f"word{n}s" for n in draw.integers(5_000, size=n_words))


def timed(work: Callable[[], object], rounds: int) -> tuple[float, float]:
    """Milliseconds at the median and at the 95th percentile."""
    took = []
    for _ in range(rounds):
        began = time.perf_counter()
        work()
        took.append((time.perf_counter() - began) * 1000)
    low, high = np.percentile(took, [50, 95])
    return float(low), float(high)


if __name__ == "__main__":
    main()
