"""Measures reranking, picking words and reading sessions, each beside a baseline in the same run.

Reranks a window of 100 hits with known vectors, beside a bare product of the same matrix. Picks the words of a session
with many statements, first and again, beside picking from turns alone. Reads a query with its session, beside reading
it with eight more words.

python benchmarks/rerank.py [--rounds 2000]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from bespeak.models.encoder import load_encoder
from bespeak.pipeline import rank
from bespeak.ranking.rerank import Window
from bespeak.reading import Reading
from bespeak.records import Hit, Profile, Rewrite, Statement, Turn, UserKey
from bespeak.session.context import load_context
from bespeak.session.terms import load_terms
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
    reading = Reading("query", profile, None, None, Rewrite("query", "query"), None, vectors)

    def rerank() -> object:
        return rank(reading, Window(hits), Settings())

    ours, bare = timed(rerank, rounds), timed(lambda: rows[:N_HITS] @ rows[-1], rounds)
    print(f"rerank of {N_HITS} hits: p50 {ours[0]:.3f} ms, p95 {ours[1]:.3f} ms")
    print(f"matrix product: p50 {bare[0]:.4f} ms; ratio {ours[0] / bare[0]:.0f}")
    time_picking(draw, max(1, rounds // 10))
    time_reading(draw, max(1, rounds // 10))


def time_picking(draw: np.random.Generator, rounds: int) -> None:
    picker, none = load_terms(), 0.0
    for n in STATEMENTS:
        profile = Profile(
            statements=tuple(Statement(drawn_text(draw, 12), f"s{i}") for i in range(n)),
            turns=tuple(Turn(drawn_text(draw, 8), drawn_text(draw, 60), f"t{i}") for i in range(3)),
        )

        def first(profile: Profile = profile) -> object:
            picker.forget(UserKey("", "u"))
            return picker.pick(ASKED, profile)

        anew, again = timed(first, rounds), timed(lambda known=profile: picker.pick(ASKED, known), rounds)
        none = none or again[0]
        print(f"words of {n} statements: first p50 {anew[0]:.2f} ms, again {again[0]:.2f} ms; ", end="")
        print(f"ratio to none {anew[0] / none:.1f}, {again[0] / none:.1f}")


def time_reading(draw: np.random.Generator, rounds: int) -> None:
    """A query read with its session, beside the same query followed by eight picked words; on one thread."""
    encoder = load_encoder(threads=1)
    context = load_context(encoder, threads=1)
    assert context
    turns = tuple(Turn(drawn_text(draw, 8), drawn_text(draw, 60), f"t{i}") for i in range(3))
    profile = Profile(turns=turns)
    read = timed(lambda: context.encode(ASKED, profile), rounds)
    picked = timed(lambda: encoder.encode([f"{ASKED} {drawn_text(draw, 8)}"], "query"), rounds)
    text = timed(lambda: context.text(ASKED, profile), rounds)
    print(
        f"a query read with its session: p50 {read[0]:.1f} ms, p95 {read[1]:.1f} ms, cutting its text {text[0]:.2f} ms"
    )
    print(f"a query with eight words: p50 {picked[0]:.1f} ms; ratio {read[0] / picked[0]:.1f}")


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
