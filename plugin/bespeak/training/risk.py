"""Minimum risk training of the rewriter (Shen et al., "Minimum Risk Training for Neural Machine Translation", 2016).

The candidates of a turn that find its answer become likelier than those that do not. The person's rewrite and ordinary
pairs are trained on too, so that the model still writes like a person. Needs the extra `train`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
import torch

from bespeak.training.fit import Objective, Schedule
from bespeak.training.network import Adapter, Network, Tensor
from bespeak.training.packing import Packed

SHARPNESS = 0.4
"""Exponent on the candidates' probabilities, which lie far apart."""
PERSON = 0.05
ORDINARY = 0.5
STEP_TURNS = 12
STEP_PARTS = 2
SCHEDULE = Schedule(1.5e-4, 6, 0.05)


@dataclass(frozen=True, slots=True)
class Choice:
    """The candidates of a turn, one branch each, and their gains."""

    sequence: Packed
    gains: npt.NDArray[np.float32]  # (n_candidates,)
    person: int  # index of the person's rewrite


@dataclass(frozen=True, slots=True)
class OrdinaryPairs:
    """Ordinary pairs; their mean cross-entropy counts as much as `weight` turns."""

    sequences: list[Packed]
    weight: float


RiskPart: TypeAlias = Choice | OrdinaryPairs


def risk_steps(choices: Sequence[Choice], ordinary: Sequence[list[Packed]]) -> list[list[RiskPart]]:
    """The parts of each step: twelve turns, and two parts of ordinary pairs, which repeat if there are too few."""
    steps: list[list[RiskPart]] = []
    for start in range(0, len(choices), STEP_TURNS):
        turns = choices[start : start + STEP_TURNS]
        first = STEP_PARTS * len(steps)
        pairs = [ordinary[(first + n) % len(ordinary)] for n in range(STEP_PARTS)] if ordinary else []
        steps.append([*turns, *(OrdinaryPairs(part, ORDINARY * len(turns) / STEP_PARTS) for part in pairs)])
    return steps


def risk(log_p: Tensor, sizes: Tensor, gains: Tensor, person: int) -> Tensor:
    """The negative expected gain, plus a share of the cross-entropy per token of the person's rewrite.

    `log_p`, `sizes` and `gains` are `(n_candidates,)`.
    """
    expected = (torch.softmax(SHARPNESS * log_p, 0) * gains).sum()
    return -expected - PERSON * log_p[person] / sizes[person]


def minimum_risk(network: Network) -> Objective[RiskPart]:
    return Objective(partial(_loss, network), _n_targets, SCHEDULE)


def _loss(network: Network, part: RiskPart, adapter: Adapter) -> tuple[Tensor, float]:
    if isinstance(part, Choice):
        log_p, sizes = network.log_likelihoods(part.sequence, adapter)
        return risk(log_p, sizes, torch.from_numpy(part.gains), part.person), 1.0
    loss, n_tokens = network.loss(part.sequences, adapter)
    return part.weight * loss / n_tokens, 0.0


def _n_targets(part: RiskPart) -> int:
    if isinstance(part, Choice):
        return len(part.gains)
    return sum(len(sequence.targets) for sequence in part.sequences)
