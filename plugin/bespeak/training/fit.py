"""Fits an adapter to sequences by AdamW, so that a run which was ended goes on to the very same result.

A step's gradient is the sum of its parts' in their order, each computed by one thread: how many threads there are does
not change it. Nothing random is left once the sequences are made, so adapter, optimiser and step are the whole state.
Needs the extra `train`.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import torch

from bespeak.errors import ModelError
from bespeak.training.network import Adapter, Network, Tensor, new_adapter
from bespeak.training.packing import Packed

PART_TOKENS = 600
"""What one thread computes at a time: 1.3 MB a token for the backward pass."""
STEP_PARTS = 4
LEARNING_RATE = 6e-4
LOWEST_RATE = 0.03  # of it, at the end
WARM_UP_STEPS = 25
BETAS = (0.9, 0.98)
LONGEST_GRADIENT = 1.0
CHECKPOINT_STEPS = 10

Step: TypeAlias = list[list[Packed]]
"""Its parts."""


class Progress(NamedTuple):
    """After a step."""

    step: int  # from 1
    n_steps: int
    n_targets: int  # of this step
    loss: float  # mean cross-entropy of its tokens, nats


def steps(sequences: Sequence[Packed]) -> list[Step]:
    """Consecutive sequences in parts of at most 600 tokens (or of one sequence), four parts a step."""
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


def rate(step: int, n_steps: int) -> float:
    """Of the learning rate, at a step counted from 0: rises over the first ones, then falls straight to 3 %."""
    return min(1.0, (step + 1) / WARM_UP_STEPS) * max(LOWEST_RATE, 1 - step / n_steps)


class Fit:
    """A run and its state; `checkpoint` holds that of one which was ended, of the same `name`."""

    def __init__(
        self,
        network: Network,
        plan: list[Step],
        checkpoint: Path,
        name: str,
        seed: int,
        threads: int,
        checkpoint_steps: int = CHECKPOINT_STEPS,
    ) -> None:
        self._network, self._plan, self._checkpoint, self._name = network, plan, checkpoint, name
        self._threads, self._checkpoint_steps = threads, checkpoint_steps
        self.adapter: Adapter = {k: v.requires_grad_() for k, v in new_adapter(network.shapes, seed).items()}
        self._weights = list(self.adapter.values())
        self._optimiser = torch.optim.AdamW(self._weights, LEARNING_RATE, BETAS, weight_decay=0.0)
        self.step = self._resume() if checkpoint.exists() else 0

    def run(self) -> Iterator[Progress]:
        """Step by step to the end; what is not asked for is not done."""
        with one_thread_each(), ThreadPoolExecutor(self._threads) as pool:
            while self.step < len(self._plan):
                parts = self._plan[self.step]
                loss = self._take(parts, pool)
                self.step += 1
                if self.step % self._checkpoint_steps == 0 or self.step == len(self._plan):
                    self._save()
                yield Progress(self.step, len(self._plan), sum(len(s.targets) for part in parts for s in part), loss)

    def _take(self, parts: Step, pool: ThreadPoolExecutor) -> float:
        found = list(pool.map(self._gradients, parts))
        n_tokens = sum(n for _, n, _ in found)
        for weight, *summands in zip(self._weights, *(gradients for _, _, gradients in found), strict=True):
            weight.grad = sum(summands[1:], summands[0]) / n_tokens
        torch.nn.utils.clip_grad_norm_(self._weights, LONGEST_GRADIENT)
        for group in self._optimiser.param_groups:
            group["lr"] = LEARNING_RATE * rate(self.step, len(self._plan))
        self._optimiser.step()
        return sum((loss for loss, _, _ in found), 0.0) / n_tokens

    def _gradients(self, part: Sequence[Packed]) -> tuple[float, int, tuple[Tensor, ...]]:
        loss, n_tokens = self._network.loss(part, self.adapter)
        return float(loss.detach()), n_tokens, torch.autograd.grad(loss, self._weights)

    def _save(self) -> None:
        """Whole or not at all."""
        state = {
            "name": self._name,
            "step": self.step,
            "adapter": {name: weight.detach() for name, weight in self.adapter.items()},
            "optimiser": self._optimiser.state_dict(),
        }
        partial_file = self._checkpoint.with_name(f"{self._checkpoint.name}.partial")
        with partial_file.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        partial_file.replace(self._checkpoint)

    def _resume(self) -> int:
        try:
            state: dict[str, Any] = torch.load(self._checkpoint, weights_only=True)
        except Exception as error:  # torch raises what unpickling and zip files raise
            raise ModelError(f"{self._checkpoint} cannot be read ({error}): delete it to begin anew") from error
        if state["name"] != self._name:
            raise ModelError(
                f"{self._checkpoint} is of a run with other data, options or versions: give another --out, or delete it"
            )
        with torch.no_grad():
            for name, weight in state["adapter"].items():
                self.adapter[name].copy_(weight)
        self._optimiser.load_state_dict(state["optimiser"])
        return int(state["step"])


def score(network: Network, sequences: Sequence[Packed], adapter: Adapter, threads: int) -> float:
    """Mean cross-entropy of the labelled tokens, nats."""
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
    """Two runs side by side on one thread each are faster than one on two."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)
