"""Prints nDCG@10 for grids of settings: on the conversational sets, and of the user's weight on MovieLens.

Vectors and rewrites are kept in the cache folder, so only the first run is slow.

    python scripts/tune_defaults.py --data ../shared/data --cache DIR [--rewriter model|last-turn|none]
"""

from __future__ import annotations

import argparse
import itertools
import sys
from pathlib import Path

from bespeak.engines.embedded import EmbeddedEngine
from bespeak.evaluation.kept import KeptEncoder, KeptRewriter, Report
from bespeak.evaluation.memory import Readings, embed, make_readings, score_settings
from bespeak.evaluation.movielens import LENGTHS, Setup, measure_systems, read_movielens
from bespeak.evaluation.systems import load_collection, unhurried
from bespeak.evaluation.topics import read_collection
from bespeak.models.encoder import load_encoder
from bespeak.parts import Models, open_parts
from bespeak.rewriting.opening import choose_rewriter
from bespeak.settings import Settings, Weights

SETS = ("ikat", "dialogue", "mtragun")
REWRITE_WEIGHTS = (0.0, 0.5, 1.0, 2.0)
LAST_TURN_WEIGHTS = (0.0, 0.05, 0.1, 0.2, 0.3)
LAST_TURN_SHARES = (0.0, 0.2, 0.35, 0.5, 0.7)
LEXICAL_WEIGHTS = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
USER_WEIGHTS = (0.0, 0.15, 0.3, 0.6, 1.0, 2.0, 4.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--rewriter", default="model", choices=["model", "last-turn", "none"])
    parser.add_argument("--sets", default=",".join(SETS))
    parser.add_argument("--every", type=int, default=1, help="use every Nth topic")
    parser.add_argument("--personal", action="store_true", help="measure only the user's weight on MovieLens")
    options = parser.parse_args()
    if options.personal:
        show_personal(options)
        return
    readings = {name: readings_of(options, name) for name in options.sets.split(",")}
    show("lexical: rewrite_weight, last_turn_weight", readings, "lexical", lexical_grid())
    show("dense: last_turn_share", readings, "dense", dense_grid())
    show("hybrid: lexical : embedding, last_turn_weight, last_turn_share", readings, "hybrid", hybrid_grid())


def readings_of(options: argparse.Namespace, name: str) -> Readings:
    """The set's readings. Everything computed is kept for the next run, even when interrupted."""
    collection = read_collection(options.data / name).cut(every=options.every)
    folder = options.cache / "evaluation"
    encoder = KeptEncoder(load_encoder(None, options.cache), folder, collection.digest, progress(f"{name}: vectors"))
    rewriter = KeptRewriter(choose_rewriter(options.rewriter, options.cache), folder, collection.digest)
    try:
        parts = open_parts(Models(options.cache, rewriter, encoder), unhurried(Settings()))
        return make_readings(collection, parts, progress(f"{name}: rewrites"))
    finally:
        encoder.save()
        rewriter.save()


def show_personal(options: argparse.Namespace) -> None:
    """Prints a line for each setting: nDCG@10 by length of history, over every fifth user."""
    data = read_movielens(options.data / "movielens", every=5)
    encoder = KeptEncoder(
        load_encoder(None, options.cache), options.cache / "evaluation", data.movies.digest, progress("movies: vectors")
    )
    vectors = embed(data.movies, encoder)
    engine = EmbeddedEngine(options.cache / "evaluation" / "indices")
    load_collection(data.movies, engine, encoder, "tune-movielens")
    encoder.save()
    print(f"{'lexical embedding user':24}", *(f"{length:>6}" for length in LENGTHS))
    for (lexical, embedding), user in itertools.product([(0.5, 0.5), (0.2, 0.8), (1.0, 0.0)], USER_WEIGHTS):
        means = Setup(engine, "tune-movielens", encoder, vectors, Weights(lexical, embedding, user))
        cells = measure_systems(data, ["user"], means)
        scores = (f"{cell.scores['nDCG@10'].mean:6.3f}" for cell in cells)
        print(f"{f'{lexical:7} {embedding:9} {user:4}':24}", *scores, flush=True)


def progress(label: str) -> Report:
    def report(done: int, total: int) -> None:
        print(f"\r{label} {done}/{total}", end="\n" if done == total else "", file=sys.stderr, flush=True)

    return report


def lexical_grid() -> dict[str, Settings]:
    return {
        f"{r:4} {t:4}": Settings(rewrite_weight=r, last_turn_weight=t)
        for r, t in itertools.product(REWRITE_WEIGHTS, LAST_TURN_WEIGHTS)
    }


def dense_grid() -> dict[str, Settings]:
    return {f"{share:4}": Settings(last_turn_share=share) for share in LAST_TURN_SHARES}


def hybrid_grid() -> dict[str, Settings]:
    return {
        f"{w:4}:{1 - w:.2f} {t:4} {share:4}": Settings(
            weights=Weights(w, 1 - w, 0.0), last_turn_weight=t, last_turn_share=share
        )
        for w, t, share in itertools.product(LEXICAL_WEIGHTS, LAST_TURN_WEIGHTS, LAST_TURN_SHARES)
    }


def show(title: str, readings: dict[str, Readings], stage: str, grid: dict[str, Settings]) -> None:
    """A line a setting: nDCG@10 of each set, their mean; best mean first."""
    rows = []
    for label, settings in grid.items():
        scores = [float(score_settings(s, settings)[stage].mean()) for s in readings.values()]
        rows.append((sum(scores) / len(scores), label, scores))
    print(f"\n{title}\n{'':24} {' '.join(f'{name:>9}' for name in readings)}      mean")
    for mean, label, scores in sorted(rows, reverse=True):
        print(f"{label:24} {' '.join(f'{score:9.4f}' for score in scores)} {mean:9.4f}")


if __name__ == "__main__":
    main()
