"""Measures how well runs answer judged queries: nDCG@10, MRR and recall@100, means with intervals, and gains.

A run is `query_id → doc_ids, best first`. Every judged query counts: one without hits scores 0.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bespeak.errors import UsageError

Run: TypeAlias = Mapping[str, Sequence[str]]
Qrels: TypeAlias = Mapping[str, Mapping[str, int]]
"""`query_id → doc_id → grade`, 0 for not relevant."""
Values: TypeAlias = Mapping[str, float]
"""`query_id → value in [0, 1]`."""

MEASURES = ("nDCG@10", "MRR", "recall@100")
NOTICEABLE = 0.1
"""A query counts as worse or better if its nDCG@10 differs by more than this."""
RESAMPLES = 2_000
SEED = 20_231


@dataclass(frozen=True, slots=True)
class Estimate:
    """A mean over queries with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Gain:
    """A run compared with another over the same queries: the mean difference, and the shares of noticeable changes."""

    difference: Estimate
    worse: float
    better: float


def check_installed() -> None:
    """Raises `UsageError` if ir-measures is missing, before anything slow is done."""
    _ir_measures()


def judge(qrels: Qrels, run: Run) -> dict[str, dict[str, float]]:
    """`measure → query_id → value` for every judged query, by ir-measures. Raises `UsageError` if it is missing."""
    measures, calculate = _ir_measures()
    scored = {
        query_id: {doc_id: -float(rank) for rank, doc_id in enumerate(run.get(query_id, ()))} for query_id in qrels
    }
    values = {name: dict.fromkeys(qrels, 0.0) for name in MEASURES}
    names = {measure: name for name, measure in measures.items()}
    for found in calculate(list(measures.values()), qrels, scored):
        values[names[found.measure]][found.query_id] = float(found.value)
    return values


def _ir_measures() -> tuple[dict[str, Any], Any]:
    try:
        import ir_measures
    except ImportError as error:
        raise UsageError(
            "measuring needs the package ir-measures, which is not installed: pip install 'bespeak[evaluate]'"
        ) from error
    measures = (ir_measures.nDCG @ 10, ir_measures.RR, ir_measures.R @ 100)
    return dict(zip(MEASURES, measures, strict=True)), ir_measures.iter_calc


def estimate(values: Values, groups: Mapping[str, str] | None = None) -> Estimate:
    """The mean with its bootstrap interval (percentiles 2.5 and 97.5; Efron 1979). Equal values give equal results.

    `groups` names each query's conversation or user. Whole groups are drawn, since queries of one group are not
    independent of each other.
    """
    if not values:
        return Estimate(0.0, 0.0, 0.0)
    sums, counts = _group_sums(values, groups or {})
    return around(float(sums.sum() / counts.sum()), resample(sums, counts))


def resample(
    sums: npt.NDArray[np.float64], counts: npt.NDArray[np.float64], seed: int = SEED
) -> npt.NDArray[np.float64]:
    """`(RESAMPLES,)` means of groups drawn with replacement, from sums and counts of shape `(n_groups,)`."""
    drawn = np.random.default_rng(seed).integers(0, len(sums), (RESAMPLES, len(sums)))
    means: npt.NDArray[np.float64] = sums[drawn].sum(axis=1) / counts[drawn].sum(axis=1)
    return means


def around(mean: float, means: npt.NDArray[np.float64]) -> Estimate:
    """The mean with the interval that holds the middle 95 % of the resampled means."""
    low, high = np.percentile(means, [2.5, 97.5])
    return Estimate(mean, float(low), float(high))


def _group_sums(values: Values, groups: Mapping[str, str]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Sum and number of each group's values, `(n_groups,)` each, in the order of the groups' names."""
    gathered: dict[str, list[float]] = {}
    for query_id, value in values.items():
        gathered.setdefault(groups.get(query_id, query_id), []).append(value)
    members = [gathered[name] for name in sorted(gathered)]
    return np.array([sum(m) for m in members]), np.array([float(len(m)) for m in members])


def compare(values: Values, baseline: Values, groups: Mapping[str, str] | None = None) -> Gain:
    """The gain of a run over a baseline, from the nDCG@10 of the same queries. Raises `UsageError` for others."""
    if values.keys() != baseline.keys():
        raise UsageError(f"runs compare over the same queries only, but these have {len(values)} and {len(baseline)}")
    differences = {query_id: value - baseline[query_id] for query_id, value in values.items()}
    n = max(len(differences), 1)
    worse = sum(d < -NOTICEABLE - 1e-9 for d in differences.values()) / n
    better = sum(d > NOTICEABLE + 1e-9 for d in differences.values()) / n
    return Gain(estimate(differences, groups), worse, better)
