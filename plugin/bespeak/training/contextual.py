"""Trains the context encoder, which reads the session with the query: towards a person's rewrite and the answer.

Document vectors stay as they are, so nothing has to be indexed again (ConvDR; Yu et al., 2021).
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from bespeak.errors import InputError, ModelError
from bespeak.models.catalogue import (
    asset_folder,
    default_model,
    write_json,
)
from bespeak.models.encoder import OnnxEncoder, digest_of, load_encoder, open_tokenizer, read_config
from bespeak.records import Profile, Statement, Turn
from bespeak.session.context import session_text
from bespeak.session.sections import MAX_CHARS, sections
from bespeak.training.candidates import SHORTEST_ANSWER
from bespeak.training.card import context_card
from bespeak.training.job import CHECKPOINT, read_all, require_extra
from bespeak.training.mixture import PERSONAL_SHARE, all_statements, variants
from bespeak.training.options import MeanCosines, TrainingOptions
from bespeak.training.pairs import Conversation, Target, split
from bespeak.training.personal import personal_conversations
from bespeak.training.targets import (
    N_NEGATIVES,
    TEMPERATURE,
    VECTORS,
    Minibatch,
    TargetVectors,
    minibatches,
    put_record,
    target_loss,
    write_model,
)

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bespeak.models.encoder import Encoder
    from bespeak.training.encoder import BertEncoder
    from bespeak.training.fit import FitStep, Objective, Schedule
    from bespeak.training.network import Adapter, Tensor

RECIPE = 1
"""Raise this when the same data give a different model."""


class TrainingExample(NamedTuple):
    """A query in its session, as the encoder reads it, and the texts that its vector should be near."""

    text: str
    tokens: tuple[int, ...]
    query: str
    rewrite: str
    answer: str  # "" if it is not known
    source: str

    @property
    def n_tokens(self) -> int:
        return len(self.tokens)


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
    from bespeak.training.encoder import BertEncoder, merged, read_bert_weights
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
        weights = {name: tensor.detach().numpy() for name, tensor in fit.adapter.items()}
        write_model(out, folder, merged(folder / "model.onnx", weights))
        scores = score_context(held_out, vectors, out, encoder)
        counts = dict(Counter(example.source for example in learnt).most_common())
        write_json(out / "scores.json", asdict(scores) | {"examples": counts})
        (out / "CARD.md").write_text(context_card(options, counts, scores, N_NEGATIVES, TEMPERATURE), "utf-8")
        put_record(out, "context-encoder", f"bespeak models train-context; towards {encoder.name}")
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


def context_objective(network: BertEncoder, vectors: TargetVectors) -> Objective[Minibatch[TrainingExample]]:
    """1 - cosine to the rewrite, plus a tenth of the contrastive losses of rewrite and answer."""
    import torch

    from bespeak.training.fit import Objective

    rewrites, answers = torch.from_numpy(vectors.rewrites), torch.from_numpy(vectors.answers)

    def loss(part: Minibatch[TrainingExample], adapter: Adapter) -> tuple[Tensor, float]:
        found = network.encode([example.tokens for example in part.examples], adapter)  # (n, dim)
        return target_loss(found, part, rewrites, answers), float(len(part.examples))

    return Objective(loss, lambda part: len(part.examples), _schedule())


def _schedule() -> Schedule:
    from bespeak.training.fit import Schedule

    return Schedule(5e-4, 20, 0.03)


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


def run_name(learnt: Sequence[TrainingExample], options: TrainingOptions, encoder: Encoder) -> str:
    """A digest of everything that the result depends on, except the versions of libraries."""
    digest = hashlib.sha256(f"{RECIPE} {options.seed} {encoder.name}".encode())
    for example in learnt:
        digest.update(np.array(example.tokens, np.int32).tobytes())
        digest.update(digest_of(f"{example.rewrite}\0{example.answer}", "query"))
    return digest.hexdigest()
