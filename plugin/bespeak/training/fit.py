"""Fits an adapter to sequences with AdamW; an interrupted run resumes and gives exactly the same result.

A step's gradient is the sum of its parts' gradients in order, each computed by one thread, so the number of threads
does not change it. Fitting uses no random numbers, so adapter, optimiser and step number are the whole state. Needs the
extra `train`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeAlias, TypeVar

import torch

from bespeak.errors import ModelError
from bespeak.files import replacing
from bespeak.training.network import Adapter, Network, Tensor
from bespeak.training.packing import Packed

PART_TOKENS = 600
"""Tokens that one thread computes at a time; the backward pass takes 1.3 MB a token."""
STEP_PARTS = 4
BETAS = (0.9, 0.98)
LONGEST_GRADIENT = 1.0
CHECKPOINT_STEPS = 10

StepParts: TypeAlias = list[list[Packed]]
"""The parts of one step."""
P = TypeVar("P")
"""A part: what one thread computes at a time."""


class Schedule(NamedTuple):
    """The learning rate: a linear rise, then a linear fall, which may be slow at first and steep at the end."""

    highest: float
    warm_up_steps: int
    lowest: float  # at the end, as a share of the highest
    bend: tuple[float, float] = (0.0, 1.0)  # where the fall becomes steep: share of the steps, share of the highest


class Objective(NamedTuple, Generic[P]):
    """What a step minimises: the sum of its parts' losses divided by the sum of their weights."""

    loss: Callable[[P, Adapter], tuple[Tensor, float]]  # of a part, and its weight
    n_targets: Callable[[P], int]
    schedule: Schedule


PAIRS = Schedule(6e-4, 25, 0.03)


class FitStep(NamedTuple):
    """What a step of the fitting reports when it is done."""

    step: int  # from 1
    n_steps: int
    n_targets: int  # of this step
    loss: float  # of pairs: mean cross-entropy of their tokens, nats


def steps(sequences: Sequence[Packed]) -> list[StepParts]:
    """Groups consecutive sequences into parts of at most 600 tokens (or one sequence), and four parts into a step."""
    parts: list[list[Packed]] = []
    room = 0
    for sequence in sequences:
        size = len(sequence.token_ids)
        if not parts or size > room:
            parts.append([])
            room = PART_TOKENS
        parts[-1].append(sequence)
        room -= size
    return [parts[i : i + STEP_PARTS] for i in range(0, len(parts), STEP_PARTS)]


def rate(step: int, n_steps: int, schedule: Schedule = PAIRS) -> float:
    """The learning rate at a step, counted from 0."""
    done, (bend, height) = step / n_steps, schedule.bend
    fall = 1 - (1 - height) * done / bend if done < bend else height * (1 - done) / (1 - bend)
    return schedule.highest * min(1.0, (step + 1) / schedule.warm_up_steps) * max(schedule.lowest, fall)


def cross_entropy(network: Network) -> Objective[list[Packed]]:
    """The mean cross-entropy of the labelled tokens, as an objective."""
    return Objective(network.loss, lambda part: sum(len(sequence.targets) for sequence in part), PAIRS)


class Fit(Generic[P]):
    """A run and its state, which is saved to `checkpoint`; a run of the same `name` resumes from there."""

    def __init__(
        self,
        objective: Objective[P],
        plan: Sequence[Sequence[P]],
        checkpoint: Path,
        name: str,
        start: Adapter,
        threads: int,
        checkpoint_steps: int = CHECKPOINT_STEPS,
    ) -> None:
        """`plan` holds the parts of each step. `start` is the adapter to fit; it is changed in place."""
        self._objective, self._plan, self._checkpoint, self._name = objective, plan, checkpoint, name
        self._threads, self._checkpoint_steps = threads, checkpoint_steps
        self.adapter: Adapter = {name: weight.requires_grad_() for name, weight in start.items()}
        self._weights = list(self.adapter.values())
        self._optimiser = torch.optim.AdamW(self._weights, objective.schedule.highest, BETAS, weight_decay=0.0)
        self.step = self._resume() if checkpoint.exists() else 0

    def run(self) -> Iterator[FitStep]:
        """Runs the remaining steps, one for each item that is requested."""
        with one_thread_each(), ThreadPoolExecutor(self._threads) as pool:
            while self.step < len(self._plan):
                parts = self._plan[self.step]
                loss = self._take(parts, pool)
                self.step += 1
                if self.step % self._checkpoint_steps == 0 or self.step == len(self._plan):
                    self._save()
                yield FitStep(self.step, len(self._plan), sum(map(self._objective.n_targets, parts)), loss)

    def _take(self, parts: Sequence[P], pool: ThreadPoolExecutor) -> float:
        found = list(pool.map(self._gradients, parts))
        weight_sum = sum(n for _, n, _ in found)
        for weight, *summands in zip(self._weights, *(gradients for _, _, gradients in found), strict=True):
            weight.grad = sum(summands[1:], summands[0]) / weight_sum
        torch.nn.utils.clip_grad_norm_(self._weights, LONGEST_GRADIENT)
        for group in self._optimiser.param_groups:
            group["lr"] = rate(self.step, len(self._plan), self._objective.schedule)
        self._optimiser.step()
        return sum((loss for loss, _, _ in found), 0.0) / weight_sum

    def _gradients(self, part: P) -> tuple[float, float, tuple[Tensor, ...]]:
        loss, weight = self._objective.loss(part, self.adapter)
        return float(loss.detach()), weight, torch.autograd.grad(loss, self._weights)

    def _save(self) -> None:
        state = {
            "name": self._name,
            "step": self.step,
            "adapter": {name: weight.detach() for name, weight in self.adapter.items()},
            "optimiser": self._optimiser.state_dict(),
        }
        with replacing(self._checkpoint, durable=True) as file:
            torch.save(state, file)

    def _resume(self) -> int:
        try:
            state: dict[str, Any] = torch.load(self._checkpoint, weights_only=True)
        except Exception as error:  # torch raises what unpickling and zip files raise
            raise ModelError(f"{self._checkpoint} cannot be read ({error}): delete it to start again") from error
        if state["name"] != self._name:
            raise ModelError(
                f"{self._checkpoint} belongs to a run with other data, options or versions: "
                "give another --out, or delete it"
            )
        with torch.no_grad():
            for name, weight in state["adapter"].items():
                self.adapter[name].copy_(weight)
        self._optimiser.load_state_dict(state["optimiser"])
        return int(state["step"])


def mean_cross_entropy(network: Network, sequences: Sequence[Packed], adapter: Adapter, threads: int) -> float:
    """The mean cross-entropy of the labelled tokens, in nats."""
    parts = [part for step in steps(sequences) for part in step]
    with one_thread_each(), ThreadPoolExecutor(threads) as pool:
        found = list(pool.map(partial(_score, network, adapter=adapter), parts))
    return sum(loss for loss, _ in found) / max(1, sum(n for _, n in found))


def _score(network: Network, part: Sequence[Packed], adapter: Adapter) -> tuple[float, int]:
    with torch.inference_mode():
        loss, n_tokens = network.loss(part, adapter)
    return float(loss), n_tokens


@contextmanager
def one_thread_each() -> Iterator[None]:
    """Limits torch to one thread: two runs on one thread each are faster than one run on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
