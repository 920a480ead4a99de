"""Trains the network that picks the words a query depends on, from pairs of queries and rewrites; needs only numpy."""

from __future__ import annotations

import itertools
import math
import random
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bespeak.errors import InputError, ModelError
from bespeak.records import Profile, Statement, Turn
from bespeak.session.candidates import Candidate, Rarity, find_candidates
from bespeak.session.features import N_FEATURES
from bespeak.session.terms import TermPicker
from bespeak.text import analysis
from bespeak.training.mixture import SOURCE_WEIGHTS
from bespeak.training.pairs import Pair, read_pairs

HIDDEN = (48, 24)
MAX_PAIRS = 6_000  # of one source
MIN_CANDIDATES = 25
"""A stem that was a candidate less often has no weight of its own."""
BATCH, PASSES, RATE, DECAY = 1024, 5, 3e-3, 0.02
OWN_DECAY = 2.0  # of the stems' own weights


@dataclass(frozen=True, slots=True)
class TrainedTerms:
    arrays: dict[str, Any]
    sources: dict[str, int]  # pairs by source
    precision: float  # average precision on held-out pairs; 0 if there are none


def train(data: Sequence[Path], held_out: Path | None, seed: int) -> TrainedTerms:
    """Trains on files of pairs. Raises InputError."""
    pairs = thin([pair for path in data for pair in read_pairs(path)], seed)
    if not pairs:
        raise InputError("no pair has a history or statements: give --data other pairs")
    rarity = rarities(pairs)
    found, features, wanted, weights = labelled_candidates(pairs, rarity)
    layers, own = fit_network(features, wanted, weights, [one.stem for one in found], seed)
    arrays: dict[str, Any] = {f"{kind}{i}": layer[j] for i, layer in enumerate(layers) for j, kind in enumerate("wb")}
    stems = sorted(rarity.by_stem)
    arrays |= {"stems": np.array(stems), "rarity": np.array([rarity.of(s) for s in stems], np.float32)}
    arrays |= {"own": np.array([own.get(s, 0.0) for s in stems], np.float32), "unseen": np.float32(rarity.unseen)}
    precision = average_precision(TermPicker(arrays), list(read_pairs(held_out)), rarity) if held_out else 0.0
    return TrainedTerms(arrays, dict(Counter(pair.source for pair in pairs)), precision)


def thin(pairs: Iterable[Pair], seed: int) -> list[Pair]:
    """The pairs with a history or statements, at most `MAX_PAIRS` of each source."""
    by: dict[str, list[Pair]] = defaultdict(list)
    for pair in pairs:
        if pair.history or pair.statements:
            by[pair.source].append(pair)
    rng = random.Random(seed)
    groups = (rng.sample(group, MAX_PAIRS) if len(group) > MAX_PAIRS else group for group in by.values())
    return [pair for group in groups for pair in group]


def rarities(pairs: Iterable[Pair]) -> Rarity:
    """ln(n_texts / (1 + texts with the stem)) / 5 - 1, for the stems of more than two texts."""
    texts = {
        t for p in pairs for t in (p.rewrite, *(x for turn in p.history[-1:] for x in (turn.query, turn.response)))
    }
    counts = Counter(stem for text in texts for stem in set(analysis.terms(text[:300])))
    found = {stem: math.log(len(texts) / (1 + n)) / 5 - 1 for stem, n in counts.items() if n > 2}
    return Rarity(found, math.log(len(texts)) / 5 - 1)


def profile_of(pair: Pair) -> Profile:
    turns = tuple(Turn(turn.query, turn.response, f"t{n}") for n, turn in enumerate(pair.history))
    return Profile(None, "", tuple(Statement(text, f"s{n}") for n, text in enumerate(pair.statements)), turns)


def labelled_candidates(pairs: Sequence[Pair], rarity: Rarity) -> tuple[list[Candidate], Any, Any, Any]:
    """Candidates, features `(n, N_FEATURES)`, whether the rewrite contains them `(n,)`, and weights `(n,)`."""
    found: list[Candidate] = []
    features, wanted, weights = [np.zeros((0, N_FEATURES), np.float32)], [], []
    for pair in pairs:
        some, rows = find_candidates(pair.query, profile_of(pair), rarity)
        stems = set(analysis.terms(pair.rewrite))
        found += some
        features.append(rows)
        wanted += [one.stem in stems for one in some]
        weights += [SOURCE_WEIGHTS.get(pair.source, 1.0)] * len(some)
    return found, np.concatenate(features), np.array(wanted, np.float32), np.array(weights, np.float32)


def fit_network(
    x: Any, y: Any, weights: Any, stems: Sequence[str], seed: int
) -> tuple[list[tuple[Any, Any]], dict[str, float]]:
    """Three layers and the common stems' own weights, by Adam with decoupled decay on a weighted cross-entropy."""
    rng = np.random.default_rng(seed)
    mean, spread = x.mean(0), x.std(0) + 1e-3
    common = [stem for stem, n in Counter(stems).most_common(2_000) if n >= MIN_CANDIDATES]
    row = {stem: i for i, stem in enumerate(common, 1)}
    rows = np.array([row.get(stem, 0) for stem in stems])
    sizes = (x.shape[1], *HIDDEN, 1)
    values = [rng.normal(0, math.sqrt(2 / a), (a, b)) for a, b in itertools.pairwise(sizes)]
    values += [np.zeros(b) for b in sizes[1:]] + [np.zeros(len(common) + 1)]
    values = [value.astype(np.float32) for value in values]
    first, second = [np.zeros_like(v) for v in values], [np.zeros_like(v) for v in values]
    size = min(BATCH, len(x))
    n_steps, step = PASSES * (len(x) // size), 0
    for _ in range(PASSES):
        order = rng.permutation(len(x))
        for start in range(0, len(x) - size + 1, size):
            batch, step = order[start : start + size], step + 1
            standard = (x[batch] - mean) / spread
            grads = gradients(values, standard, y[batch], weights[batch], rows[batch])
            rate = RATE * (1 - step / n_steps) + 1e-5
            for i, grad in enumerate(grads):
                first[i] = 0.9 * first[i] + 0.1 * grad
                second[i] = 0.999 * second[i] + 0.001 * grad * grad
                values[i] *= 1 - rate * (OWN_DECAY if i == 6 else DECAY)
                values[i] -= rate * (first[i] / (1 - 0.9**step)) / (np.sqrt(second[i] / (1 - 0.999**step)) + 1e-8)
    w, b = values[:3], values[3:6]
    b[0] = b[0] - (mean / spread) @ w[0]  # the first layer takes over the standardisation
    w[0] = w[0] / spread[:, None]
    layers = [(w[i].astype(np.float32), b[i].astype(np.float32)) for i in range(3)]
    return layers, {stem: float(values[6][i]) for stem, i in row.items()}


def gradients(values: Sequence[Any], x: Any, y: Any, weights: Any, rows: Any) -> list[Any]:
    """Gradients of the mean weighted cross-entropy, for three matrices, three biases and the stems' own weights."""
    w, b, own = values[:3], values[3:6], values[6]
    one = np.maximum(x @ w[0] + b[0], 0)
    two = np.maximum(one @ w[1] + b[1], 0)
    z = (two @ w[2])[:, 0] + b[2][0] + own[rows] * (rows > 0)
    dz = ((1 / (1 + np.exp(-z)) - y) * weights / weights.sum())[:, None]  # (n, 1)
    d2 = (dz @ w[2].T) * (two > 0)
    d1 = (d2 @ w[1].T) * (one > 0)
    d_own = np.bincount(rows, dz[:, 0] * (rows > 0), len(own))
    return [x.T @ d1, one.T @ d2, two.T @ dz, d1.sum(0), d2.sum(0), dz.sum(0), d_own]


def average_precision(picker: TermPicker, pairs: Sequence[Pair], rarity: Rarity) -> float:
    """The average precision over all candidates of all pairs."""
    found, features, wanted, _ = labelled_candidates(pairs, rarity)
    order = np.argsort(-picker.probabilities(found, features), kind="stable")
    hits = wanted[order]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits > 0].mean()) if hits.any() else 0.0


def write_terms(learnt: TrainedTerms, out: Path) -> None:
    """Writes `terms.npz` to the folder. Raises ModelError."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        np.savez_compressed(out / "terms.npz", **learnt.arrays)
    except OSError as error:
        raise ModelError(f"cannot write to {out} ({error.strerror or error}): give another --out") from error
