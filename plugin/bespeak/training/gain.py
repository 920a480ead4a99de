"""The second stage of training: an adapter learns which of its rewrites find the answer that was given."""

from __future__ import annotations

import hashlib
import random
import shutil
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, TypeAlias

import numpy as np

from bespeak.errors import InputError, ModelError
from bespeak.models.catalogue import write_json
from bespeak.models.encoder import load_encoder
from bespeak.rewriting.batched import JointScorer
from bespeak.rewriting.build import adapter_file, build_rewriter, use_adapter
from bespeak.rewriting.decoding import DECODING, prompt
from bespeak.rewriting.model import PARTS
from bespeak.rewriting.weights import read_adapter
from bespeak.training import mixture
from bespeak.training.answers import Answers, Gains, encode_all, texts_of
from bespeak.training.candidates import (
    SAMPLES,
    AnsweredTurn,
    SampledRewrites,
    SampleFile,
    answered_turns,
    choose_turns,
    sample_all,
)
from bespeak.training.card import gain_card
from bespeak.training.job import CHECKPOINT, open_network, read_all, require_extra, write_adapter
from bespeak.training.options import GainOptions, MeanGains
from bespeak.training.packing import Packed, alternatives

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bespeak.models.encoder import Encoder
    from bespeak.rewriting.decoding import Scorer
    from bespeak.training.fit import FitStep
    from bespeak.training.network import Adapter, Network
    from bespeak.training.pairs import Conversation
    from bespeak.training.risk import Choice

RECIPE = 1
"""Raise this when the same data give a different adapter."""
MIN_SPREAD = 0.05
"""Least difference between the gains of a turn's best and worst candidate; turns below it teach nothing."""
CANDIDATES, AFTER, VECTORS = "candidates.jsonl", "after.jsonl", "vectors.db"
TEMPORARY = ".building-"


class StageProgress(NamedTuple):
    """Progress of a stage before or after the fitting."""

    what: str
    done: int
    size: int


Report: TypeAlias = "Callable[[StageProgress | FitStep], None]"


class GainTools(NamedTuple):
    """How a run opens the models that it needs."""

    scorer: Callable[[Path, Path, int], AbstractContextManager[Scorer]]  # adapter's folder, folder to build in, threads
    encoder: Callable[[int], Encoder]
    network: Callable[[], Network]


@contextmanager
def open_scorer(adapter: Path, beside: Path, threads: int) -> Iterator[Scorer]:
    """The model with this adapter, built temporarily inside the folder `beside`. Raises ModelError."""
    with tempfile.TemporaryDirectory(dir=beside, prefix=TEMPORARY) as cache:
        use_adapter(Path(cache), adapter)
        yield JointScorer(build_rewriter(Path(cache)), threads)


TOOLS = GainTools(open_scorer, lambda threads: load_encoder(threads=threads), open_network)


def train_gain(options: GainOptions, out: Path, report: Report | None = None, tools: GainTools = TOOLS) -> MeanGains:
    """Writes `adapter.npz`, `CARD.md`, `scores.json` and what goes with them to the folder `out`.

    An interrupted run resumes from what is in `out`. Raises InputError and ModelError.
    """
    require_extra()
    for name in PARTS:
        adapter_file(options.start, name)
    if out.resolve() == options.start.resolve():
        raise InputError(f"{out} holds the adapter to start from: give another --out")
    found = read_all(options.data)
    turns = choose_turns(answered_turns(found), options.turns, options.seed)
    if not turns:
        raise InputError(
            "no query of --data has a known answer: give conversations of several turns, one after another, whose "
            "'history' holds the 'response' to each earlier query"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for left in out.glob(f"{TEMPORARY}*"):  # left by killed runs
            shutil.rmtree(left, ignore_errors=True)
        return GainRun(options, out, report or (lambda _: None), tools, found, turns).train()
    except OSError as error:
        raise ModelError(f"cannot write to {out} ({error.strerror or error}): give another --out") from error


class ScoredTurn(NamedTuple):
    """A turn's candidates, including the query and the person's rewrite, with their gains."""

    turn: AnsweredTurn
    sampled: SampledRewrites
    gains: dict[str, Gains]

    @property
    def spread(self) -> float:
        means = [gains.mean for gains in self.gains.values()]
        return max(means) - min(means)

    @property
    def greedy(self) -> float:
        """The gain of the greedy rewrite, or of the query as typed if that rewrite was refused."""
        text = " ".join((self.sampled.greedy or self.turn.query).split())
        return self.gains[text].mean


@dataclass(frozen=True)
class GainRun:
    options: GainOptions
    out: Path
    report: Report
    tools: GainTools
    found: Sequence[Conversation]
    turns: Sequence[AnsweredTurn]

    def train(self) -> MeanGains:
        name = run_name(self.options, self.found, self.turns)
        sampled = self._sample(self.options.start, CANDIDATES, name, SAMPLES)
        answers = self._answers()
        before = self._score(sampled, answers)
        learnt = [scored for scored in before if scored.spread >= MIN_SPREAD]
        if not learnt:
            raise InputError("no query has rewrites that differ in what they find: give --data more conversations")
        adapter = self._fit(learnt, name)
        with self._written(adapter) as folder:
            after = self._score(self._sample(folder, AFTER, name, 0), answers)
        scores = summary(before, after, len(learnt))
        self._write(adapter, scores, learnt)
        return scores

    def _sample(self, adapter: Path, file: str, name: str, n_samples: int) -> list[SampledRewrites]:
        kept = SampleFile(self.out / file, name)
        if len(kept.found) < len(self.turns):
            with self.tools.scorer(adapter, self.out, self.options.threads) as scorer:
                report = self._reporter("turns rewritten", len(self.turns))
                sample_all(self.turns, scorer, kept, n_samples, self.options.seed, report)
        return [kept.found[place] for place in range(len(self.turns))]

    def _answers(self) -> Answers:
        texts, encoder = texts_of(self.found), self.tools.encoder(self.options.threads)
        report = self._reporter("answers encoded", len(texts))
        return Answers(texts, encode_all(texts, encoder, self.out / VECTORS, report), encoder)

    def _score(self, sampled: Sequence[SampledRewrites], answers: Answers) -> list[ScoredTurn]:
        scored, report = [], self._reporter("turns scored", len(self.turns))
        for turn, one in zip(self.turns, sampled, strict=True):
            texts = one.candidates(turn)
            scored.append(ScoredTurn(turn, one, dict(zip(texts, answers.gains(turn, texts), strict=True))))
            report(len(scored))
        return scored

    def _fit(self, learnt: Sequence[ScoredTurn], name: str) -> Adapter:
        import torch

        from bespeak.training.fit import Fit, steps
        from bespeak.training.risk import minimum_risk, risk_steps

        arrays = read_adapter(self.options.start / "adapter.npz")
        start = {key: torch.from_numpy(array.astype(np.float32)) for key, array in arrays.items()}
        choices, pairs = self._sequences(learnt)
        ordinary = [one for step in steps(pairs) for one in step]
        objective, threads = minimum_risk(self.tools.network()), self.options.threads
        fit = Fit(objective, risk_steps(choices, ordinary), self.out / CHECKPOINT, name, start, threads)
        for progress in fit.run():
            self.report(progress)
        return fit.adapter

    def _sequences(self, learnt: Sequence[ScoredTurn]) -> tuple[list[Choice], list[Packed]]:
        """The candidates of each turn, in the order of training, and the ordinary pairs."""
        from tokenizers import Tokenizer

        tokenizer = Tokenizer.from_file(str(self.options.start / "tokenizer.json"))
        order = list(learnt)
        random.Random(self.options.seed).shuffle(order)
        n_targets = sum(len(conversation.targets) for conversation in self.found)
        passes = min(1.0, 2 * len(order) / n_targets)
        pairs = mixture.sequences(self.found, tokenizer, self.options.seed, passes)
        return [choice(scored, tokenizer) for scored in order], pairs

    @contextmanager
    def _written(self, adapter: Adapter) -> Iterator[Path]:
        """A temporary folder with the adapter, to build from while it is scored."""
        from bespeak.training.network import to_arrays

        with tempfile.TemporaryDirectory(dir=self.out, prefix=TEMPORARY) as folder:
            write_adapter(Path(folder), to_arrays(adapter))
            shutil.copyfile(self.options.start / "CARD.md", Path(folder) / "CARD.md")
            yield Path(folder)

    def _write(self, adapter: Adapter, scores: MeanGains, learnt: Sequence[ScoredTurn]) -> None:
        """Writes the adapter last, so that a folder with an adapter is complete."""
        from bespeak.training.network import to_arrays

        began = (self.options.start / "CARD.md").read_text("utf-8")
        sources = [scored.turn.source for scored in learnt]
        counts = {source: sources.count(source) for source in dict.fromkeys(sources)}
        write_json(self.out / "scores.json", asdict(scores) | {"turns": counts})
        (self.out / "CARD.md").write_text(gain_card(began, self.options, counts, scores), "utf-8")
        write_adapter(self.out, to_arrays(adapter))

    def _reporter(self, what: str, size: int) -> Callable[[int], None]:
        return lambda done: self.report(StageProgress(what, done, size))


def choice(scored: ScoredTurn, tokenizer: Tokenizer) -> Choice:
    from bespeak.training.risk import Choice

    texts, turn = list(scored.gains), scored.turn
    sequence = alternatives(prompt(turn.query, turn.profile, tokenizer), texts, tokenizer)
    means = np.array([gains.mean for gains in scored.gains.values()], np.float32)
    return Choice(sequence, means, texts.index(turn.rewrite))


def summary(before: Sequence[ScoredTurn], after: Sequence[ScoredTurn], n_learnt: int) -> MeanGains:
    def mean(values: Iterable[float]) -> float:
        return float(np.mean(list(values)))

    return MeanGains(
        mean(scored.gains[scored.turn.query].mean for scored in before),
        mean(scored.gains[scored.turn.rewrite].mean for scored in before),
        mean(scored.greedy for scored in before),
        mean(scored.greedy for scored in after),
        len(before),
        n_learnt,
    )


def run_name(options: GainOptions, found: Sequence[Conversation], turns: Sequence[AnsweredTurn]) -> str:
    """A digest of everything that the result depends on, except the versions of libraries."""
    digest = hashlib.sha256(f"{RECIPE} {DECODING} {options.seed} {len(turns)}".encode("ascii"))
    digest.update((options.start / "adapter.npz").read_bytes())
    for conversation in found:
        digest.update(repr(conversation).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
