"""Trains the context encoder, which reads the session with the query: towards a person's rewrite and the answer.

Document vectors stay as they are, so nothing has to be indexed again (ConvDR; Yu et al., 2021).
"""

from __future__ import annotations

import hashlib
import random
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt

from bespeak.errors import InputError, ModelError
from bespeak.models.catalogue import (
    ModelRecord,
    asset_folder,
    default_model,
    describe_files,
    replacing_model_file,
    write_json,
    write_record,
)
from bespeak.models.encoder import OnnxEncoder, digest_of, load_encoder, open_tokenizer, read_config
from bespeak.records import Profile, Statement, Turn
from bespeak.session.context import session_text
from bespeak.session.sections import MAX_CHARS, MAX_TOKENS, sections
from bespeak.training.answers import encode_all
from bespeak.training.candidates import SHORTEST_ANSWER
from bespeak.training.card import context_card
from bespeak.training.job import CHECKPOINT, read_all, require_extra
from bespeak.training.mixture import PERSONAL_SHARE, all_statements, variants
from bespeak.training.options import MeanCosines, TrainingOptions
from bespeak.training.pairs import Conversation, Target, split
from bespeak.training.personal import personal_conversations

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bespeak.models.encoder import Encoder
    from bespeak.records import Matrix
    from bespeak.training.encoder import BertEncoder
    from bespeak.training.fit import FitStep, Objective, Schedule
    from bespeak.training.network import Adapter, Tensor

RECIPE = 1
"""Raise this when the same data give a different model."""
STEP_PARTS, PART_TEXTS = 4, 12
N_NEGATIVES = 256
"""Random rewrites, and as many answers, that serve as negatives in each step."""
TEMPERATURE = 0.05
CONTRASTIVE_WEIGHT = 0.1
"""Weight of each of the two contrastive losses, beside 1 - cosine to the rewrite."""
DUPLICATE_COSINE = 0.98
"""A negative with a higher cosine to the target counts as the same text, and is left out."""
VECTORS = "vectors.db"


class TrainingExample(NamedTuple):
    """A query in its session, as the encoder reads it, and the texts that its vector should be near."""

    text: str
    tokens: tuple[int, ...]
    query: str
    rewrite: str
    answer: str  # "" if it is not known
    source: str


@dataclass(frozen=True, slots=True)
class Minibatch:
    """Some examples with their negatives, as rows of `TargetVectors`.

    `rewrites` and `answers` are `(n,)`, with -1 for an unknown answer; the negatives are `(N_NEGATIVES,)`.
    """

    texts: list[tuple[int, ...]]
    rewrites: npt.NDArray[np.int64]
    answers: npt.NDArray[np.int64]
    negative_rewrites: npt.NDArray[np.int64]
    negative_answers: npt.NDArray[np.int64]


def train(
    options: TrainingOptions,
    out: Path,
    report: Callable[[FitStep], None] | None = None,
    encoder: Encoder | None = None,
    network: BertEncoder | None = None,
) -> MeanCosines:
    """Writes `model.onnx`, `tokenizer.json`, `config.json`, `CARD.md`, `scores.json` and the record to `out`.

    An interrupted run resumes from the checkpoint in `out`. `encoder` gives the target vectors, and `network` is
    trained; both are the shipped encoder by default. Raises InputError and ModelError.
    """
    require_extra()
    from bespeak.training.encoder import BertEncoder, read_bert_weights
    from bespeak.training.fit import Fit
    from bespeak.training.network import new_adapter

    folder = asset_folder("onnx_models") / default_model("encoder")
    reading = EncoderInput.of(folder)
    encoder = encoder or load_encoder(threads=options.threads)
    network = network or BertEncoder(read_bert_weights(folder / "model.onnx"))
    learnt, held_out = read_examples(options, reading)
    try:
        out.mkdir(parents=True, exist_ok=True)
        vectors = TargetVectors.of([*learnt, *held_out], encoder, out / VECTORS)
        objective, name = context_objective(network, vectors), run_name(learnt, options, encoder)
        start = new_adapter(network.shapes, options.seed)
        fit = Fit(objective, minibatches(learnt, vectors, options.seed), out / CHECKPOINT, name, start, options.threads)
        for progress in fit.run():
            if report:
                report(progress)
        write_model(out, folder, fit.adapter)
        scores = score_context(held_out, vectors, out, encoder)
        counts = dict(Counter(example.source for example in learnt).most_common())
        write_json(out / "scores.json", asdict(scores) | {"examples": counts})
        (out / "CARD.md").write_text(context_card(options, counts, scores, N_NEGATIVES, TEMPERATURE), "utf-8")
        put_record(out, f"bespeak models train-context; towards {encoder.name}")
    except OSError as error:
        raise ModelError(f"cannot write to {out} ({error.strerror or error}): give another --out") from error
    return scores


class EncoderInput(NamedTuple):
    """Turns a text into the encoder's tokens."""

    tokenizer: Tokenizer
    prefix: str

    @classmethod
    def of(cls, folder: Path) -> EncoderInput:
        return cls(open_tokenizer(folder, MAX_CHARS), read_config(folder).query_prefix)

    def tokens(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(self.prefix + text).ids)


def read_examples(
    options: TrainingOptions, reading: EncoderInput
) -> tuple[list[TrainingExample], list[TrainingExample]]:
    """The examples to learn from, and those to score the model on. Raises InputError."""
    if options.held_out:
        found, scored = read_all(options.data), read_all([options.held_out])
    else:
        found, scored = split(read_all(options.data))
    learnt = training_examples(found, options, reading)
    if not learnt:
        raise InputError("no pair has a history or statements: give --data other pairs")
    return learnt, [example for conversation in scored for example in examples_of(conversation, conversation, reading)]


def training_examples(
    found: Sequence[Conversation], options: TrainingOptions, reading: EncoderInput
) -> list[TrainingExample]:
    """All training examples, in the order of training."""
    rng = random.Random(options.seed)
    examples = [
        example
        for original, varied in variants(found, rng, options.passes)
        for example in examples_of(varied, original, reading)
    ]
    for conversation in personal_conversations(round(PERSONAL_SHARE * len(examples)), all_statements(found), rng):
        examples += examples_of(conversation, conversation, reading)
    rng.shuffle(examples)
    return examples


def examples_of(varied: Conversation, original: Conversation, reading: EncoderInput) -> list[TrainingExample]:
    """The queries with a history or statements; answers come from the original conversation."""
    made = []
    for target in varied.targets:
        if target.n_before or varied.statements:
            text = session_text(sections(target.query, profile_of(varied, target.n_before), reading.tokenizer))
            answer = answer_to(target, original)
            made.append(
                TrainingExample(text, reading.tokens(text), target.query, target.rewrite, answer, varied.source)
            )
    return made


def profile_of(conversation: Conversation, n_before: int) -> Profile:
    statements = tuple(Statement(text, "") for text in conversation.statements)
    turns = tuple(Turn(turn.query, turn.response, "") for turn in conversation.turns[:n_before])
    return Profile(None, "", statements, turns)


def answer_to(target: Target, original: Conversation) -> str:
    """The answer, from the history of later queries; "" if it is unknown or too short to mean anything."""
    if target.kind != "person" or target.n_before >= len(original.turns):
        return ""
    turn = original.turns[target.n_before]
    return turn.response if turn.query == target.query and len(turn.response) >= SHORTEST_ANSWER else ""


class HasTargets(Protocol):
    """An example with the texts that its vector should be near."""

    @property
    def rewrite(self) -> str: ...

    @property
    def answer(self) -> str: ...


@dataclass(frozen=True, slots=True)
class TargetVectors:
    """The target vectors: `rewrites` and `answers`, `(n, dim)` each, and the row of each text."""

    rewrites: Matrix
    answers: Matrix
    rewrite_rows: dict[str, int]
    answer_rows: dict[str, int]

    @classmethod
    def of(cls, learnt: Iterable[HasTargets], encoder: Encoder, kept: Path) -> TargetVectors:
        """Encodes the examples' targets; the answers' vectors are kept in the file `kept`."""
        learnt = list(learnt)
        rewrites = list(dict.fromkeys(example.rewrite for example in learnt))
        answers = list(dict.fromkeys(example.answer for example in learnt if example.answer))
        matrix = encode_all(answers, encoder, kept, lambda _: None) if answers else np.zeros((0, encoder.dim), "f4")
        rows = {text: row for row, text in enumerate(rewrites)}
        return cls(encoder.encode(rewrites, "query"), matrix, rows, {text: row for row, text in enumerate(answers)})


def minibatches(learnt: Sequence[TrainingExample], vectors: TargetVectors, seed: int) -> list[list[Minibatch]]:
    """The parts of each step, with texts of similar length together; the last step may be smaller."""
    draw = np.random.default_rng(seed)
    steps = []
    for start in range(0, len(learnt), STEP_PARTS * PART_TEXTS):
        batch = sorted(learnt[start : start + STEP_PARTS * PART_TEXTS], key=lambda example: len(example.tokens))
        negative_rewrites = draw.integers(len(vectors.rewrites), size=N_NEGATIVES)
        negative_answers = draw.integers(max(len(vectors.answers), 1), size=N_NEGATIVES if len(vectors.answers) else 0)
        steps.append(
            [
                Minibatch(
                    [example.tokens for example in part],
                    np.array([vectors.rewrite_rows[example.rewrite] for example in part], np.int64),
                    np.array([vectors.answer_rows.get(example.answer, -1) for example in part], np.int64),
                    negative_rewrites,
                    negative_answers,
                )
                for part in (batch[i : i + PART_TEXTS] for i in range(0, len(batch), PART_TEXTS))
            ]
        )
    return steps


def context_objective(network: BertEncoder, vectors: TargetVectors) -> Objective[Minibatch]:
    """1 - cosine to the rewrite, plus a tenth of the contrastive losses of rewrite and answer."""
    import torch

    from bespeak.training.fit import Objective

    rewrites, answers = torch.from_numpy(vectors.rewrites), torch.from_numpy(vectors.answers)

    def loss(part: Minibatch, adapter: Adapter) -> tuple[Tensor, float]:
        found = network.encode(part.texts, adapter)  # (n, dim)
        wanted = rewrites[part.rewrites]
        total = (1 - (found * wanted).sum(1)).sum() + CONTRASTIVE_WEIGHT * contrastive_loss(
            found, wanted, rewrites[part.negative_rewrites]
        )
        known = part.answers >= 0
        if known.any():
            own = answers[part.answers[known]]
            total = total + CONTRASTIVE_WEIGHT * contrastive_loss(found[known], own, answers[part.negative_answers])
        return total, float(len(part.texts))

    return Objective(loss, lambda part: len(part.texts), _schedule())


def _schedule() -> Schedule:
    from bespeak.training.fit import Schedule

    return Schedule(5e-4, 20, 0.03)


def contrastive_loss(found: Tensor, targets: Tensor, negatives: Tensor) -> Tensor:
    """The summed InfoNCE loss (van den Oord et al., 2018) of the targets among negatives, without duplicates of them.

    `found` and `targets` are `(n, dim)`, `negatives` `(n_negatives, dim)`.
    """
    import torch
    import torch.nn.functional as F  # noqa: N812

    near = (found @ negatives.T).masked_fill(targets @ negatives.T > DUPLICATE_COSINE, -1.0)
    scores = torch.cat([(found * targets).sum(1, keepdim=True), near], 1) / TEMPERATURE
    return F.cross_entropy(scores, torch.zeros(len(found), dtype=torch.long), reduction="sum")


def write_model(out: Path, base: Path, adapter: Adapter) -> None:
    """Writes the base with the adapter merged, its tokenizer and its configuration."""
    from bespeak.training.encoder import merged

    made = merged(base / "model.onnx", {name: tensor.detach().numpy() for name, tensor in adapter.items()})
    with replacing_model_file(out / "model.onnx") as file:
        file.write(made)
    shutil.copyfile(base / "tokenizer.json", out / "tokenizer.json")
    config, shipped = read_config(base), load_encoder().name
    write_json(out / "config.json", asdict(config) | {"max_tokens": MAX_TOKENS, "document_prefix": "", "of": shipped})


def score_context(
    held_out: Sequence[TrainingExample], vectors: TargetVectors, out: Path, encoder: Encoder
) -> MeanCosines:
    """Scores the model that was written to `out`."""
    if not held_out:
        return MeanCosines(0.0, 0.0, 0)
    made = OnnxEncoder(out)
    wanted = vectors.rewrites[[vectors.rewrite_rows[example.rewrite] for example in held_out]]
    typed = encoder.encode([example.query for example in held_out], "query")
    read = made.encode([example.text for example in held_out], "query")
    query, context = (float((rows * wanted).sum(1).mean()) for rows in (typed, read))
    return MeanCosines(query, context, len(held_out))


def put_record(out: Path, how: str) -> None:
    """Writes the record of the model's files, without the checkpoint."""
    names = ("CARD.md", "config.json", "model.onnx", "tokenizer.json")
    files = {name: file for name, file in describe_files(out).items() if name in names}
    write_record(
        out, ModelRecord(out.resolve().name, "context-encoder", files, "see CARD.md", "bge-small-en-v1.5-int8", how)
    )


def run_name(learnt: Sequence[TrainingExample], options: TrainingOptions, encoder: Encoder) -> str:
    """A digest of everything that the result depends on, except the versions of libraries."""
    digest = hashlib.sha256(f"{RECIPE} {options.seed} {encoder.name}".encode())
    for example in learnt:
        digest.update(np.array(example.tokens, np.int32).tobytes())
        digest.update(digest_of(f"{example.rewrite}\0{example.answer}", "query"))
    return digest.hexdigest()
