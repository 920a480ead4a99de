"""A whole training: files of pairs in; adapter, card and scores out."""

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
from bespeak.models.catalogue import asset_folder, write_json
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
"""Raised when the same sequences are made into another adapter."""
CHECKPOINT = "checkpoint.pt"
SCORED = 400
"""Targets that are held out, at most: more would cost minutes and say no more."""
BESIDE = ("tokenizer.json", "vocabulary.npz", "GEMMA_TERMS.md", "NOTICE")
"""Files of the shipped folder that go with an adapter, so that its folder is one to build from."""


class Prepared(NamedTuple):
    """What is trained and scored on, and the name of this very run."""

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

    A run that was ended goes on from the checkpoint in `out`. `network` is the base if not given.
    Raises InputError and ModelError.
    """
    require_extra()
    from bespeak.training.fit import Fit, cross_entropy, score, steps
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
            score(network, prepared.held_out, {}, options.threads),
            score(network, prepared.held_out, fit.adapter, options.threads),
            sum(len(sequence.targets) for sequence in prepared.held_out),
        )
        write(out, to_arrays(fit.adapter), options, prepared, scores)
    except OSError as error:
        raise ModelError(f"cannot write to {out} ({error.strerror or error}): give another --out") from error
    return scores


def require_extra() -> None:
    """Raises ModelError where the extra is not installed."""
    try:
        import gguf  # noqa: F401
        import torch  # noqa: F401
    except ImportError as error:
        raise ModelError(
            f"training needs the extra 'train' ({error.name} is missing): run \"pip install 'bespeak[train]'\""
        ) from error


def open_network() -> Network:
    """The base from the packages of the extra. Raises ModelError."""
    from bespeak.rewriting.weights import Base, assemble_base
    from bespeak.training.network import Network

    with tempfile.TemporaryDirectory() as folder:
        return Network.of_base(Base(assemble_base(Path(folder) / "base.gguf"), asset_folder("onnx_models") / MODEL))


def prepare(options: TrainingOptions) -> Prepared:
    """The same sequences in the same order for the same files, passes and seed. Raises InputError."""
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(asset_folder("onnx_models") / MODEL / "tokenizer.json"))
    if options.held_out:
        learnt, scored = read_all(options.data), read_all([options.held_out])
    else:
        learnt, scored = split(read_all(options.data))
    if not learnt:
        raise InputError("there are no pairs to train on: give a file that has some to --data")
    sequences = mixture.sequences(learnt, tokenizer, options.seed, options.passes)
    return Prepared(sequences, thinned(mixture.plain(scored, tokenizer)), run_name(sequences, options.seed))


def read_all(paths: Sequence[Path]) -> list[Conversation]:
    def pairs() -> Iterator[Pair]:
        for path in paths:
            yield from read_pairs(path)

    return conversations(pairs())


def thinned(sequences: list[Packed]) -> list[Packed]:
    """Every n-th, so that `SCORED` targets are about the most."""
    n_targets = sum(len(sequence.targets) for sequence in sequences)
    return sequences[:: max(1, round(n_targets / SCORED))]


def run_name(sequences: Sequence[Packed], seed: int) -> str:
    """Changes with anything that the result depends on."""
    found = hashlib.sha256(f"{RECIPE} {seed}".encode("ascii"))
    for sequence in sequences:
        for array in (sequence.token_ids, sequence.branches, sequence.labels):
            found.update(array.tobytes())
    return found.hexdigest()


def write(
    out: Path, adapter: dict[str, Any], options: TrainingOptions, prepared: Prepared, scores: CrossEntropies
) -> None:
    """The adapter last, so that a folder with one is complete."""
    counts = mixture.counts(prepared.train)
    write_json(out / "scores.json", asdict(scores) | {"targets": counts})
    (out / "CARD.md").write_text(card(options, counts, scores), "utf-8")
    put(out, adapter)


def put(out: Path, adapter: dict[str, Any]) -> None:
    """Makes `out` a folder to build from, but for its card."""
    shipped = asset_folder("onnx_models") / MODEL
    for name in BESIDE:
        shutil.copyfile(shipped / name, out / name)
    with tempfile.TemporaryDirectory(dir=out) as folder:
        np.savez(Path(folder) / "adapter.npz", **adapter)
        (Path(folder) / "adapter.npz").replace(out / "adapter.npz")
