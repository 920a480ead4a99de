"""Trains the context reader: what of its session a query leans on, and the vector of what it means.

It is a student of the shipped encoder with fewer layers. Its vector is trained towards the encoder's vector of a
person's rewrite, or of the query itself if it leans on nothing, and of the answer; documents' vectors stay as they are
(ConvDR; Yu et al., 2021). Its heads learn which words a person added and left out (QuReTeC; Voskarides et al., 2020),
and whether the query leans on the session or on a statement.
"""

from __future__ import annotations

import hashlib
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from bespeak.errors import InputError, ModelError
from bespeak.models.catalogue import (
    asset_folder,
    default_model,
    write_json,
)
from bespeak.models.encoder import digest_of, load_encoder, open_session, open_tokenizer, read_config
from bespeak.records import Profile
from bespeak.session.reader import HEADS, ReaderInput, reader_input, run_reader
from bespeak.session.sections import MAX_CHARS, sections
from bespeak.text import analysis
from bespeak.text.words import FUNCTION_WORDS, fold, words
from bespeak.training.augment import refers
from bespeak.training.candidates import SHORTEST_ANSWER
from bespeak.training.card import reader_card
from bespeak.training.contextual import profile_of
from bespeak.training.job import CHECKPOINT, read_all, require_extra
from bespeak.training.mixture import PERSONAL_SHARE, all_statements, variants
from bespeak.training.options import ReaderScores, TrainingOptions
from bespeak.training.pairs import Conversation, Target, split
from bespeak.training.personal import personal_conversations
from bespeak.training.placing import Others, after_others, among_others, negatives, stand_alone
from bespeak.training.scenarios import written_conversations, written_queries
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
    from bespeak.training.bert import Bert, Weights
    from bespeak.training.fit import FitStep, Objective, Schedule
    from bespeak.training.network import Tensor

RECIPE = 1
"""Raise this when the same data give a different model."""
LAYERS = (0, 2, 4, 7, 9, 11)
"""The layers of the encoder that the student begins with."""
WORD_WEIGHT, LEANING_WEIGHT = 0.5, 0.3
CHECKPOINT_STEPS = 50

WRITTEN_TIMES, STATEMENT_TIMES, ALONE_TIMES = 3, 3, 3
SWITCH_SHARE, LATE_SHARE = 0.35, 0.3
"""How many queries of other conversations are asked in a session, and how many sessions begin with another one."""
PLAIN_TEXTS = 20_000
"""Texts that are read without a session."""
UNKNOWN = -1


class ReadExample(NamedTuple):
    """A query in its session, as the reader reads it, and what it should say.

    `labels` are `(n_tokens, len(HEADS))`: 1, 0, or `UNKNOWN` where nothing is to be learnt.
    """

    token_ids: npt.NDArray[np.int64]
    types: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int8]
    query: str
    rewrite: str
    answer: str  # "" if it is not known
    source: str
    kind: str

    @property
    def n_tokens(self) -> int:
        return len(self.token_ids)


class ReaderTokens(NamedTuple):
    """Turns a query and its profile into the reader's tokens."""

    tokenizer: Tokenizer
    prefix: str

    @classmethod
    def of(cls, folder: Path) -> ReaderTokens:
        return cls(open_tokenizer(folder, MAX_CHARS), read_config(folder).query_prefix)

    def read(self, query: str, profile: Profile) -> ReaderInput:
        return reader_input(sections(query, profile, self.tokenizer), self.tokenizer, self.prefix)


def read_examples(options: TrainingOptions, reading: ReaderTokens) -> tuple[list[ReadExample], list[ReadExample]]:
    """The examples to learn from, in the order of training, and those to score the model on. Raises InputError."""
    if options.held_out:
        found, scored = read_all(options.data), read_all([options.held_out])
    else:
        found, scored = split(read_all(options.data))
    if not any(target.n_before or one.statements for one in found for target in one.targets):
        raise InputError("no pair has a history or statements: give --data other pairs")
    learnt = list(training_examples(found, options, reading))
    random.Random(options.seed).shuffle(learnt)
    return learnt, [example for conversation in scored for example in examples_of(conversation, conversation, reading)]


def training_examples(
    found: Sequence[Conversation], options: TrainingOptions, reading: ReaderTokens
) -> Iterator[ReadExample]:
    rng, written = random.Random(options.seed), written_conversations()
    statements = all_statements([*found, *written])
    others = Others([c for c in (*found, *written) if c.turns], statements)
    rewrites = sorted({target.rewrite for conversation in found for target in conversation.targets})
    whole = [text for text in rewrites if not refers(text)]
    n = 0
    for original, varied in variants(found, rng, options.passes):
        if varied.turns and rng.random() < LATE_SHARE:
            varied = after_others(varied, others, rng)
        examples = examples_of(varied, original, reading)
        n += len(examples)
        yield from examples
        n_switched = sum(rng.random() < SWITCH_SHARE for _ in examples)
        for _ in range(n_switched if whole else 0):
            made = stand_alone(rng.choice(whole), others, rng)
            yield from examples_of(made, made, reading)
    made_ones = [among_others(one, others, rng) for one in written for _ in range(WRITTEN_TIMES)]
    made_ones += (among_others(one, others, rng) for one in written if not one.turns for _ in range(STATEMENT_TIMES))
    made_ones += negatives(written_queries(), others, rng, ALONE_TIMES)
    made_ones += personal_conversations(round(PERSONAL_SHARE * n), statements, rng)
    for one in made_ones:
        yield from examples_of(one, one, reading)
    for text in rng.sample(rewrites, min(len(rewrites), PLAIN_TEXTS)):
        yield make_example(Target(0, text, text), Conversation("plain", (), ()), "", reading)


def examples_of(varied: Conversation, original: Conversation, reading: ReaderTokens) -> list[ReadExample]:
    """The queries with a history or statements; answers come from the original conversation."""
    return [
        make_example(target, varied, answer_to(target, original), reading)
        for target in varied.targets
        if target.n_before or varied.statements
    ]


def make_example(target: Target, varied: Conversation, answer: str, reading: ReaderTokens) -> ReadExample:
    read = reading.read(target.query, profile_of(varied, target.n_before))
    return ReadExample(
        np.array(read.token_ids, np.int64),
        np.array(read.types, np.int64),
        labels(read, target),
        target.query,
        target.rewrite,
        answer,
        varied.source,
        target.kind,
    )


def labels(read: ReaderInput, target: Target) -> npt.NDArray[np.int8]:
    """`(n_tokens, len(HEADS))`: what a person did with each word; see `HEADS`."""
    found = np.full((len(read.token_ids), len(HEADS)), UNKNOWN, np.int8)
    typed, wanted = content_stems(target.query), content_stems(target.rewrite)
    kept = {fold(word) for word in words(target.rewrite)}
    added, sources = wanted - typed, set[str]()
    named = set[str]()  # stems of the turns
    for word in read.words:
        stems = content_stems(word.text)
        if word.section.source == "query":
            gone = fold(word.text) not in kept and not (stems and stems <= wanted)
            found[word.start : word.end, HEADS.index("dropped")] = gone
        elif stems and not stems <= typed:
            is_added = stems <= wanted
            found[word.start : word.end, HEADS.index("added")] = is_added
            if is_added:
                if word.section.source == "turn":
                    named |= stems
                if word.section.source == "turn" or not stems <= named:
                    sources.add(word.section.source)
    if sources or not added:
        for head in ("session", "statement"):
            found[0, HEADS.index(head)] = ("turn" if head == "session" else "statement") in sources
    return found


def content_stems(text: str) -> set[str]:
    return {stem for word in words(text) if fold(word) not in FUNCTION_WORDS for stem in analysis.terms(word)}


def answer_to(target: Target, original: Conversation) -> str:
    """The answer, from the history of later queries; "" if it is unknown or too short to mean anything."""
    if target.kind != "person":
        return ""
    found = (turn.response for turn in original.turns if turn.query == target.query)
    return next((text for text in found if len(text) >= SHORTEST_ANSWER), "")


def reader_objective(network: Bert, vectors: TargetVectors) -> Objective[Minibatch[ReadExample]]:
    """The losses of vector, words and leaning, each a mean over a text's own labels, summed over the texts."""
    import torch
    import torch.nn.functional as F  # noqa: N812

    from bespeak.training.fit import Objective

    rewrites, answers = torch.from_numpy(vectors.rewrites), torch.from_numpy(vectors.answers)

    def loss(part: Minibatch[ReadExample], weights: Weights) -> tuple[Tensor, float]:
        found, heads = network.read([(example.token_ids, example.types) for example in part.examples], weights)
        total = target_loss(found, part, rewrites, answers)
        true = np.full(heads.shape, UNKNOWN, np.float32)
        for row, example in enumerate(part.examples):
            true[row, : len(example.labels)] = example.labels
        target = torch.from_numpy(true)
        says = target != UNKNOWN
        errors = F.binary_cross_entropy_with_logits(heads, target.clamp(min=0), reduction="none") * says
        words_part = errors[..., :2].sum((1, 2)) / says[..., :2].sum((1, 2)).clamp(min=1)
        total = total + WORD_WEIGHT * words_part.sum() + LEANING_WEIGHT * errors[..., 2:].sum()
        return total, float(len(part.examples))

    return Objective(loss, lambda part: len(part.examples), _schedule())


def _schedule() -> Schedule:
    from bespeak.training.fit import Schedule

    return Schedule(3e-4, 40, 0.02, bend=(0.8, 1 - 800 / 1437))


def train(
    options: TrainingOptions,
    out: Path,
    report: Callable[[FitStep], None] | None = None,
    encoder: Encoder | None = None,
) -> ReaderScores:
    """Writes `model.onnx`, `tokenizer.json`, `config.json`, `CARD.md`, `scores.json` and the record to `out`.

    An interrupted run resumes from the checkpoint in `out`. `encoder` gives the target vectors; it is the shipped one
    by default. Raises InputError and ModelError.
    """
    require_extra()
    from bespeak.training.bert import read_bert, to_onnx
    from bespeak.training.fit import Fit

    base = asset_folder("onnx_models") / default_model("encoder")
    reading = ReaderTokens.of(base)
    encoder = encoder or load_encoder(threads=options.threads)
    network, start = read_bert(base / "model.onnx", LAYERS, options.seed)
    learnt, held_out = read_examples(options, reading)
    try:
        out.mkdir(parents=True, exist_ok=True)
        vectors = TargetVectors.of([*learnt, *held_out], encoder, out / VECTORS)
        objective, name = reader_objective(network, vectors), run_name(learnt, options, encoder)
        plan = minibatches(learnt, vectors, options.seed)[: options.steps]
        fit = Fit(objective, plan, out / CHECKPOINT, name, start, options.threads, CHECKPOINT_STEPS)
        for progress in fit.run():
            if report:
                report(progress)
        weights = {name: tensor.detach().numpy() for name, tensor in fit.adapter.items()}
        write_model(out, base, to_onnx(base / "model.onnx", LAYERS, weights))
        scores = score_reader(held_out, vectors, out, encoder)
        read = [example for step in plan for part in step for example in part.examples]
        counts = dict(Counter(example.source for example in read).most_common())
        write_json(out / "scores.json", asdict(scores) | {"examples": counts})
        recipe = {"n_layers": len(LAYERS), "n_negatives": N_NEGATIVES, "temperature": TEMPERATURE}
        (out / "CARD.md").write_text(reader_card(options, counts, scores, recipe), "utf-8")
        put_record(out, "context-reader", f"bespeak models train-reader; towards {encoder.name}")
    except OSError as error:
        raise ModelError(f"cannot write to {out} ({error.strerror or error}): give another --out") from error
    return scores


def score_reader(held_out: Sequence[ReadExample], vectors: TargetVectors, out: Path, encoder: Encoder) -> ReaderScores:
    """Scores the model that was written to `out`."""
    if not held_out:
        return ReaderScores(0.0, 0.0, 0.0, 0.0, 0)
    session = open_session(out / "model.onnx", None)
    wanted = vectors.rewrites[[vectors.rewrite_rows[example.rewrite] for example in held_out]]
    typed = encoder.encode([example.query for example in held_out], "query")
    rows, said, true, leaning, leans = [], [], [], [], []
    for example in held_out:
        found, heads = run_reader(session, ReaderInput(list(example.token_ids), list(example.types), []), out.name)
        rows.append(found)
        known = example.labels[:, 0] != UNKNOWN
        said.append(heads[known, 0])
        true.append(example.labels[known, 0])
        if example.labels[0, 2] != UNKNOWN:
            leaning.append(heads[0, 2:].max())
            leans.append(example.labels[0, 2:].max())
    query, context = (float((some * wanted).sum(1).mean()) for some in (typed, np.array(rows)))
    return ReaderScores(
        query,
        context,
        average_precision(np.concatenate(said), np.concatenate(true)),
        area_under_curve(np.array(leaning), np.array(leans)),
        len(held_out),
    )


def average_precision(scores: npt.NDArray[np.float32], true: npt.NDArray[np.int8]) -> float:
    hits = true[np.argsort(-scores, kind="stable")]
    return float((np.cumsum(hits) / np.arange(1, len(hits) + 1))[hits > 0].mean()) if hits.any() else 0.0


def area_under_curve(scores: npt.NDArray[np.float32], true: npt.NDArray[np.int8]) -> float:
    """The probability that a true one has a higher score than one that is not; 0 if one of the two is missing."""
    yes, no = scores[true > 0], scores[true == 0]
    if not len(yes) or not len(no):
        return 0.0
    above = (yes[:, None] > no[None]) + 0.5 * (yes[:, None] == no[None])  # (n_yes, n_no)
    return float(above.mean())


def run_name(learnt: Sequence[ReadExample], options: TrainingOptions, encoder: Encoder) -> str:
    """A digest of everything that the result depends on, except the versions of libraries."""
    digest = hashlib.sha256(f"{RECIPE} {options.seed} {options.steps} {encoder.name}".encode())
    for example in learnt:
        digest.update(example.token_ids.tobytes() + example.labels.tobytes())
        digest.update(digest_of(f"{example.rewrite}\0{example.answer}", "query"))
    return digest.hexdigest()
