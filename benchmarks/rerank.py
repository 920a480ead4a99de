"""Reranking a window of 100 hits whose vectors are at hand, beside a bare product of the same matrix, in one run.

python benchmarks/rerank.py [--rounds 2000]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable

import numpy as np

from bespeak.pipeline import Context, rank_window, steady
from bespeak.records import Hit, Profile
from bespeak.rerank import Part, mix
from bespeak.settings import Settings

N_HITS, DIM = 100, 384


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rounds", type=int, default=2000)
    rounds = parser.parse_args().rounds
    draw = np.random.default_rng(1)
    rows = draw.normal(size=(N_HITS + 2, DIM)).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    hits = [Hit(f"d{n}", float(N_HITS - n), n + 1, {}, row) for n, row in enumerate(rows[:N_HITS])]
    typed, turn = Part(rows[-1]), Part(rows[-2] * 0.5, "turn")
    context = Context(mix([typed, turn]), None, typed)

    def rerank() -> object:
        return rank_window(hits, Profile(), steady(hits, context), {}, Settings())

    ours, bare = timed(rerank, rounds), timed(lambda: rows[:N_HITS] @ rows[-1], rounds)
    print(f"rerank of {N_HITS} hits: p50 {ours[0]:.3f} ms, p95 {ours[1]:.3f} ms")
    print(f"matrix product: p50 {bare[0]:.4f} ms; ratio {ours[0] / bare[0]:.0f}")


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
