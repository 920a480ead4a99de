"""Finds the settings that an operator's own evidence supports, cross-validated, or why nothing should change.

Evidence is the score of each setting in each query: nDCG@10 of judged queries (here), or how high it ranks what was
clicked (`clicks.py`). The first setting is always the present one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from bespeak.evaluation.kept import Report, silent
from bespeak.evaluation.measures import NOTICEABLE, SEED, Estimate, around, resample
from bespeak.evaluation.memory import Readings, score_settings
from bespeak.settings import Settings, Weights

Values: TypeAlias = npt.NDArray[np.float64]
Kept: TypeAlias = npt.NDArray[np.bool_]

LEXICAL_SHARES = (0.1, 0.2, 0.35, 0.5, 0.65, 0.8)
"""Shares of the lexical weight in the lexical and embedding weights. Their sum stays, and so does the user's part."""
REWRITE_WEIGHTS = (0.5, 1.0, 2.0)
LAST_TURN_WEIGHTS = (0.0, 0.05, 0.1, 0.2)
LAST_TURN_SHARES = (0.0, 0.25, 0.5, 0.75)
FOLDS = 5
FEWEST = 20
"""With fewer conversations or users than this, an interval means little."""
ROUNDING = 1e-9


@dataclass(frozen=True, slots=True)
class SettingScores:
    """The evidence of one data set. Groups are drawn and held out whole. `engine` scores the engine's own order."""

    name: str
    values: Values  # (n_settings, n_queries) in [0, 1]
    counts: Values  # (n_queries,): weights in a mean
    groups: npt.NDArray[np.int64]  # (n_queries,): conversation or user
    engine: Values | None = None  # (n_queries,); None if unknown

    def means(self, kept: Kept) -> Values:
        """Mean scores over the kept queries, `(n_settings,)`."""
        counts = self.counts[kept]
        means: Values = self.values[:, kept] @ counts / counts.sum()
        return means

    def worse(self, values: Values, kept: Kept) -> Values:
        """The share of the kept queries that are noticeably worse than in the engine's order; 0 if that is unknown."""
        if self.engine is None:
            return np.zeros(values.shape[:-1])
        noticed = values[..., kept] < self.engine[kept] - NOTICEABLE - ROUNDING
        share: Values = noticed.mean(axis=-1)
        return share


@dataclass(frozen=True, slots=True)
class HeldOutScores:
    """Held-out results of one set: the present settings, and those picked without the held-out queries."""

    name: str
    queries: int
    groups: int
    before: float
    after: float
    gain: Estimate
    worse: tuple[float, float] | None  # share of queries, before and after; None where the engine's order is unknown


@dataclass(frozen=True, slots=True)
class TuningResult:
    choice: int  # the setting picked on all evidence; 0: the present one
    agreeing: int  # how many of the FOLDS folds picked the same one
    sets: tuple[HeldOutScores, ...]
    gain: Estimate  # held out, the mean over the sets
    refusal: str  # why nothing should change, as a sentence; "" if the evidence supports the change


def cross_validate(sets: Sequence[SettingScores], group: str) -> TuningResult:
    """Picks the best setting and measures what such a pick gains. `group` names the groups: conversations, users."""
    folds = [assign(one.groups) for one in sets]
    picks = [pick(sets, [fold != n for fold in folds]) for n in range(FOLDS)]
    chosen = [np.array(picks)[fold] for fold in folds]  # by set: (n_queries,)
    after = [one.values[rows, np.arange(len(rows))] for one, rows in zip(sets, chosen, strict=True)]
    held = tuple(itertools.starmap(hold_out, zip(sets, after, strict=True)))
    gain = mean_gain(sets, after)
    choice = pick(sets, [np.ones(len(fold), bool) for fold in folds])
    return TuningResult(choice, picks.count(choice), held, gain, refusal_of(choice, held, gain, group))


def assign(groups: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """The fold of each query, `(n_queries,)`. Folds hold whole groups, about equally many, the same on every run."""
    names, rows = np.unique(groups, return_inverse=True)
    folds: npt.NDArray[np.int64] = np.random.default_rng(SEED).permutation(len(names))[rows] % FOLDS
    return folds


def pick(sets: Sequence[SettingScores], kept: Sequence[Kept]) -> int:
    """The setting with the best mean over the sets; the first of equal ones.

    Settings that make more queries of any set noticeably worse than the present one does are left out.
    """
    usable = [(one, mask) for one, mask in zip(sets, kept, strict=True) if mask.any()]
    if not usable:
        return 0
    means: Values = np.mean([one.means(mask) for one, mask in usable], axis=0)
    for one, mask in usable:
        worse = one.worse(one.values, mask)
        means[worse > worse[0] + ROUNDING] = -np.inf
    return int(np.argmax(means > means.max() - ROUNDING))


def hold_out(scores: SettingScores, after: Values) -> HeldOutScores:
    everything = np.ones(len(after), bool)
    before = scores.values[0]
    shares = [float(scores.worse(values, everything)) for values in (before, after)]
    return HeldOutScores(
        scores.name, len(after), len(np.unique(scores.groups)), float(np.average(before, weights=scores.counts)),
        float(np.average(after, weights=scores.counts)), mean_gain([scores], [after]),
        None if scores.engine is None else (shares[0], shares[1]),
    )  # fmt: skip


def mean_gain(sets: Sequence[SettingScores], after: Sequence[Values]) -> Estimate:
    """The mean over the sets of their mean gains. Groups are drawn within each set."""
    means, drawn = [], []
    for n, (one, values) in enumerate(zip(sets, after, strict=True)):
        _, rows = np.unique(one.groups, return_inverse=True)
        sums: Values = np.bincount(rows, one.counts * (values - one.values[0])).astype(float)
        counts: Values = np.bincount(rows, one.counts).astype(float)
        means.append(sums.sum() / counts.sum())
        drawn.append(resample(sums, counts, SEED + n))
    return around(float(np.mean(means)), np.mean(drawn, axis=0))


def refusal_of(choice: int, held: Sequence[HeldOutScores], gain: Estimate, group: str) -> str:
    n_groups = sum(one.groups for one in held)
    if n_groups < FEWEST:
        return f"there are {n_groups} {group}, fewer than the {FEWEST} that are needed: collect more"
    if not choice:
        return "no other settings are better than the present ones"
    if gain.low <= 0:
        return f"the held-out gain {gain.mean:+.3f} [{gain.low:+.3f} {gain.high:+.3f}] may be chance: collect more"
    if raised := [one.name for one in held if one.worse and one.worse[1] > one.worse[0] + ROUNDING]:
        return f"held out, more queries of {raised[0]} become noticeably worse than in the engine's order"
    return ""


# Judgments


def grid(present: Settings, rewritten: bool = True) -> list[Settings]:
    """The present settings, then all combinations to try. Without rewrites, their weight stays as it is."""
    both = present.weights.lexical + present.weights.embedding
    found = [present]
    for share, of_rewrite, of_turn, turn_share in itertools.product(
        LEXICAL_SHARES, REWRITE_WEIGHTS if rewritten else (present.rewrite_weight,), LAST_TURN_WEIGHTS, LAST_TURN_SHARES
    ):
        weights = Weights(round(share * both, 4), round((1 - share) * both, 4), present.weights.user)
        found.append(
            replace(
                present, weights=weights, rewrite_weight=of_rewrite, last_turn_weight=of_turn,
                last_turn_share=turn_share,
            )
        )  # fmt: skip
    return list(dict.fromkeys(found))


def judged(readings: Readings, settings: Sequence[Settings], report: Report = silent) -> SettingScores:
    """nDCG@10 of each setting, and of the engine's order for the query as typed, grouped by conversation."""
    rows = []
    for done, one in enumerate(settings, 1):
        rows.append(score_settings(readings, one)["hybrid"])
        report(done, len(settings))
    collection = readings.collection
    as_typed = replace(settings[0], rewrite_weight=0.0, last_turn_weight=0.0)
    return SettingScores(
        collection.name, np.stack(rows), np.ones(len(collection.topics)),
        numbered([topic.conversation for topic in collection.topics]), score_settings(readings, as_typed)["lexical"],
    )  # fmt: skip


def numbered(names: Sequence[object]) -> npt.NDArray[np.int64]:
    """A number for each different name, `(n_names,)`, in order of appearance."""
    numbers: Mapping[object, int] = {name: n for n, name in enumerate(dict.fromkeys(names))}
    return np.array([numbers[name] for name in names], np.int64)
