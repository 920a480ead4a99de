"""What the vectors of queries read with their sessions are trained towards: the rewrite's vector, and the answer's."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Generic, Protocol, TypeVar

import numpy as np
import numpy.typing as npt

from bespeak.models.catalogue import (
    ModelKind,
    ModelRecord,
    describe_files,
    replacing_model_file,
    write_json,
    write_record,
)
from bespeak.models.encoder import load_encoder, read_config
from bespeak.session.sections import MAX_TOKENS
from bespeak.training.answers import encode_all

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder
    from bespeak.records import Matrix
    from bespeak.training.network import Tensor

STEP_PARTS, PART_TEXTS = 4, 12
N_NEGATIVES = 256
"""Random rewrites, and as many answers, that serve as negatives in each step."""
TEMPERATURE = 0.05
CONTRASTIVE_WEIGHT = 0.1
"""Weight of each of the two contrastive losses, beside 1 - cosine to the rewrite."""
DUPLICATE_COSINE = 0.98
"""A negative with a higher cosine to the target counts as the same text, and is left out."""
VECTORS = "vectors.db"


class AimedExample(Protocol):
    """An example with the texts that its vector should be near; `answer` is "" if it is not known."""

    @property
    def rewrite(self) -> str: ...

    @property
    def answer(self) -> str: ...

    @property
    def n_tokens(self) -> int: ...


Example = TypeVar("Example", bound=AimedExample)


@dataclass(frozen=True, slots=True)
class TargetVectors:
    """The target vectors: `rewrites` and `answers`, `(n, dim)` each, and the row of each text."""

    rewrites: Matrix
    answers: Matrix
    rewrite_rows: dict[str, int]
    answer_rows: dict[str, int]

    @classmethod
    def of(cls, learnt: Iterable[AimedExample], encoder: Encoder, kept: Path) -> TargetVectors:
        """Encodes the examples' targets; the answers' vectors are kept in the file `kept`."""
        learnt = list(learnt)
        rewrites = list(dict.fromkeys(example.rewrite for example in learnt))
        answers = list(dict.fromkeys(example.answer for example in learnt if example.answer))
        matrix = encode_all(answers, encoder, kept, lambda _: None) if answers else np.zeros((0, encoder.dim), "f4")
        rows = {text: row for row, text in enumerate(rewrites)}
        return cls(encoder.encode(rewrites, "query"), matrix, rows, {text: row for row, text in enumerate(answers)})


@dataclass(frozen=True, slots=True)
class Minibatch(Generic[Example]):
    """Some examples with their negatives, as rows of `TargetVectors`.

    `rewrites` and `answers` are `(n,)`, with -1 for an unknown answer; the negatives are `(N_NEGATIVES,)`.
    """

    examples: list[Example]
    rewrites: npt.NDArray[np.int64]
    answers: npt.NDArray[np.int64]
    negative_rewrites: npt.NDArray[np.int64]
    negative_answers: npt.NDArray[np.int64]


def minibatches(learnt: Sequence[Example], vectors: TargetVectors, seed: int) -> list[list[Minibatch[Example]]]:
    """The parts of each step, with texts of similar length together; the last step may be smaller."""
    draw = np.random.default_rng(seed)
    steps = []
    for start in range(0, len(learnt), STEP_PARTS * PART_TEXTS):
        batch = sorted(learnt[start : start + STEP_PARTS * PART_TEXTS], key=lambda example: example.n_tokens)
        negative_rewrites = draw.integers(len(vectors.rewrites), size=N_NEGATIVES)
        negative_answers = draw.integers(max(len(vectors.answers), 1), size=N_NEGATIVES if len(vectors.answers) else 0)
        steps.append(
            [
                Minibatch(
                    part,
                    np.array([vectors.rewrite_rows[example.rewrite] for example in part], np.int64),
                    np.array([vectors.answer_rows.get(example.answer, -1) for example in part], np.int64),
                    negative_rewrites,
                    negative_answers,
                )
                for part in (batch[i : i + PART_TEXTS] for i in range(0, len(batch), PART_TEXTS))
            ]
        )
    return steps


def target_loss(found: Tensor, part: Minibatch[Example], rewrites: Tensor, answers: Tensor) -> Tensor:
    """1 - cosine to the rewrite, plus a tenth of the contrastive losses of rewrite and answer, summed over the texts.

    `found` is `(n, dim)`; `rewrites` and `answers` are those of `TargetVectors`.
    """
    wanted = rewrites[part.rewrites]
    total = (1 - (found * wanted).sum(1)).sum() + CONTRASTIVE_WEIGHT * contrastive_loss(
        found, wanted, rewrites[part.negative_rewrites]
    )
    known = part.answers >= 0
    if known.any():
        own = answers[part.answers[known]]
        total = total + CONTRASTIVE_WEIGHT * contrastive_loss(found[known], own, answers[part.negative_answers])
    return total


def contrastive_loss(found: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """The summed InfoNCE loss (van den Oord et al., 2018) of the targets among negatives, without duplicates of them.

    `found` and `targets` are `(n, dim)`, `negatives` `(n_negatives, dim)`.
    """
    import torch
    import torch.nn.functional as F  # noqa: N812

    near = (found @ negatives.T).masked_fill(targets @ negatives.T > DUPLICATE_COSINE, -1.0)
    scores = torch.cat([(found * targets).sum(1, keepdim=True), near], 1) / TEMPERATURE
    return F.cross_entropy(scores, torch.zeros(len(found), dtype=torch.long), reduction="sum")


def write_model(out: Path, base: Path, made: bytes) -> None:
    """Writes a model that was made from the base, with the base's tokenizer and its own configuration."""
    with replacing_model_file(out / "model.onnx") as file:
        file.write(made)
    shutil.copyfile(base / "tokenizer.json", out / "tokenizer.json")
    config, shipped = read_config(base), load_encoder().name
    write_json(out / "config.json", asdict(config) | {"max_tokens": MAX_TOKENS, "document_prefix": "", "of": shipped})


def put_record(out: Path, kind: ModelKind, how: str) -> None:
    """Writes the record of the model's files, without the checkpoint."""
    names = ("CARD.md", "config.json", "model.onnx", "tokenizer.json")
    files = {name: file for name, file in describe_files(out).items() if name in names}
    write_record(out, ModelRecord(out.resolve().name, kind, files, "see CARD.md", "bge-small-en-v1.5-int8", how))
