"""A training run: reads files of pairs, writes an adapter, a card and scores."""

from __future__ import annotations

import hashlib
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from bespeak.errors import InputError, ModelError
from bespeak.models.catalogue import asset_folder, replacing_model_file, write_json
from bespeak.rewriting.model import MODEL
from bespeak.training import mixture
from bespeak.training.card import card
from bespeak.training.options import CrossEntropies, TrainingOptions
from bespeak.training.pairs import Conversation, Pair, conversations, read_pairs, split

if TYPE_CHECKING:
    from bespeak.training.fit import FitStep
    from bespeak.training.network import Network
    from bespeak.training.packing import Packed

RECIPE = 1
"""Raise this when the same sequences give a different adapter."""
CHECKPOINT = "checkpoint.pt"
MAX_HELD_OUT = 400
"""Hold out about this many targets at most: more would take minutes and say no more."""
COPIED_FILES = ("tokenizer.json", "vocabulary.npz", "GEMMA_TERMS.md", "NOTICE")
"""Shipped files that are copied beside an adapter, so that its folder is complete to build from."""


class Prepared(NamedTuple):
    """The sequences to train and to score on, and the name of this run."""

    train: list[Packed]
    held_out: list[Packed]
    name: str


def train(
    options: TrainingOptions,
    out: Path,
    report: Callable[[FitStep], None] | None = None,
    network: Network | None = None,
) -> CrossEntropies:
    """Writes `adapter.npz`, `CARD.md`, `scores.json` and what goes with them to the folder `out`.

    An interrupted run resumes from the checkpoint in `out`. `network` is the base by default.
    Raises InputError and ModelError.
    """
    require_extra()
    from bespeak.training.fit import Fit, cross_entropy, mean_cross_entropy, steps
    from bespeak.training.network import new_adapter, to_arrays

    prepared = prepare(options)
    network = network or open_network()
    try:
        out.mkdir(parents=True, exist_ok=True)
        plan, start = steps(prepared.train), new_adapter(network.shapes, options.seed)
        fit = Fit(cross_entropy(network), plan, out / CHECKPOINT, prepared.name, start, options.threads)
        for progress in fit.run():
            if report:
                report(progress)
        scores = CrossEntropies(
            mean_cross_entropy(network, prepared.held_out, {}, options.threads),
            mean_cross_entropy(network, prepared.held_out, fit.adapter, options.threads),
            sum(len(sequence.targets) for sequence in prepared.held_out),
        )
        write_results(out, to_arrays(fit.adapter), options, prepared, scores)
    except OSError as error:
        raise ModelError(f"cannot write to {out} ({error.strerror or error}): give another --out") from error
    return scores


def require_extra() -> None:
    """Raises ModelError if the extra is not installed."""
    try:
        import gguf  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"training needs the extra 'train' ({error.name} is missing): run \"pip install 'bespeak[train]'\""
        ) from error


def open_network() -> Network:
    """The base, from the packages of the extra. Raises ModelError."""
    from bespeak.rewriting.weights import Base, assemble_base
    from bespeak.training.network import Network

    with tempfile.TemporaryDirectory() as folder:
        return Network.of_base(Base(assemble_base(Path(folder) / "base.gguf"), asset_folder("onnx_models") / MODEL))


def prepare(options: TrainingOptions) -> Prepared:
    """A run's sequences: the same in the same order for the same files, passes and seed. Raises InputError."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(asset_folder("onnx_models") / MODEL / "tokenizer.json"))
    if options.held_out:
        learnt, scored = read_all(options.data), read_all([options.held_out])
    else:
        learnt, scored = split(read_all(options.data))
    if not learnt:
        raise InputError("there are no pairs to train on: give --data a file that has some")
    sequences = mixture.sequences(learnt, tokenizer, options.seed, options.passes)
    return Prepared(sequences, thinned(mixture.unvaried(scored, tokenizer)), run_name(sequences, options.seed))


def read_all(paths: Sequence[Path]) -> list[Conversation]:
    def pairs() -> Iterator[Pair]:
        for path in paths:
            yield from read_pairs(path)

    return conversations(pairs())


def thinned(sequences: list[Packed]) -> list[Packed]:
    """Every Nth sequence, so that about `MAX_HELD_OUT` targets are left."""
    n_targets = sum(len(sequence.targets) for sequence in sequences)
    return sequences[:: max(1, round(n_targets / MAX_HELD_OUT))]


def run_name(sequences: Sequence[Packed], seed: int) -> str:
    """A digest of everything that the result depends on."""
    found = hashlib.sha256(f"{RECIPE} {seed}".encode("ascii"))
    for sequence in sequences:
        for array in (sequence.token_ids, sequence.branches, sequence.labels):
            found.update(array.tobytes())
    return found.hexdigest()


def write_results(
    out: Path, adapter: dict[str, Any], options: TrainingOptions, prepared: Prepared, scores: CrossEntropies
) -> None:
    """Writes the adapter last, so that a folder with an adapter is complete."""
    counts = mixture.counts(prepared.train)
    write_json(out / "scores.json", asdict(scores) | {"targets": counts})
    (out / "CARD.md").write_text(card(options, counts, scores), "utf-8")
    write_adapter(out, adapter)


def write_adapter(out: Path, adapter: dict[str, Any]) -> None:
    """Writes the adapter and everything that a build needs to `out`, except the card."""
    shipped = asset_folder("onnx_models") / MODEL
    for name in COPIED_FILES:
        shutil.copyfile(shipped / name, out / name)
    with replacing_model_file(out / "adapter.npz") as file:
        np.savez(file, **adapter)
