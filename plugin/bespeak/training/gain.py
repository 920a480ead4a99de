"""The second stage of a training: an adapter learns from which of its rewrites find what was answered."""

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
from bespeak.training.candidates import SAMPLES, Asked, Kept, Sampled, answered, choose, sample_all
from bespeak.training.card import gain_card
from bespeak.training.job import CHECKPOINT, open_network, put, read_all, require_extra
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
"""Raised when the same data are made into another adapter."""
LEAST_SPREAD = 0.05
"""Of a turn whose best and worst candidate gain nearly the same, nothing is to be learnt."""
CANDIDATES, AFTER, VECTORS = "candidates.jsonl", "after.jsonl", "vectors.db"
TEMPORARY = ".building-"


class Stage(NamedTuple):
    """How far is what comes before and after the fitting."""

    what: str
    done: int
    size: int


Report: TypeAlias = "Callable[[Stage | FitStep], None]"


class Tools(NamedTuple):
    """What a run needs beside its data, opened when it is needed."""

    scorer: Callable[[Path, Path, int], AbstractContextManager[Scorer]]  # of an adapter's folder; a folder to build in
    encoder: Callable[[int], Encoder]
    network: Callable[[], Network]


@contextmanager
def open_scorer(adapter: Path, beside: Path, threads: int) -> Iterator[Scorer]:
    """The model with the adapter, built for this once in `beside`. Raises ModelError."""
    with tempfile.TemporaryDirectory(dir=beside, prefix=TEMPORARY) as cache:
        use_adapter(Path(cache), adapter)
        yield JointScorer(build_rewriter(Path(cache)), threads)


TOOLS = Tools(open_scorer, lambda threads: load_encoder(threads=threads), open_network)


def train_gain(options: GainOptions, out: Path, report: Report | None = None, tools: Tools = TOOLS) -> MeanGains:
    """Writes `adapter.npz`, `CARD.md`, `scores.json` and what goes with them to the folder `out`.

    A run that was ended goes on from what lies in `out`. Raises InputError and ModelError.
    """
    require_extra()
    for name in PARTS:
        adapter_file(options.start, name)
    if out.resolve() == options.start.resolve():
        raise InputError(f"{out} holds the adapter to begin with: give another --out")
    found = read_all(options.data)
    turns = choose(answered(found), options.turns, options.seed)
    if not turns:
        raise InputError(
            "no query of --data has a known answer: give conversations of several turns, one after another, whose "
            "'history' holds the 'response' to each earlier query"
        )
    try:
        out.mkdir(parents=True, exist_ok=True)
        for left in out.glob(f"{TEMPORARY}*"):  # by a run that was killed
            shutil.rmtree(left, ignore_errors=True)
        return Run(options, out, report or (lambda _: None), tools, found, turns).train()
    except OSError as error:
        raise ModelError(f"cannot write to {out} ({error.strerror or error}): give another --out") from error


class Scored(NamedTuple):
    """A turn's candidates, the query and the person's rewrite among them, and what each gains."""

    turn: Asked
    sampled: Sampled
    gains: dict[str, Gains]

    @property
    def spread(self) -> float:
        means = [gains.mean for gains in self.gains.values()]
        return max(means) - min(means)

    @property
    def greedy(self) -> float:
        """What a search would gain that leaves the query as typed where the rewrite was refused."""
        text = " ".join((self.sampled.greedy or self.turn.query).split())
        return self.gains[text].mean


@dataclass(frozen=True)
class Run:
    options: GainOptions
    out: Path
    report: Report
    tools: Tools
    found: Sequence[Conversation]
    turns: Sequence[Asked]

    def train(self) -> MeanGains:
        name = run_name(self.options, self.found, self.turns)
        sampled = self._sample(self.options.start, CANDIDATES, name, SAMPLES)
        answers = self._answers()
        before = self._score(sampled, answers)
        learnt = [scored for scored in before if scored.spread >= LEAST_SPREAD]
        if not learnt:
            raise InputError("of no query do the rewrites differ in what they find: give more conversations to --data")
        adapter = self._fit(learnt, name)
        with self._written(adapter) as folder:
            after = self._score(self._sample(folder, AFTER, name, 0), answers)
        scores = summary(before, after, len(learnt))
        self._write(adapter, scores, learnt)
        return scores

    def _sample(self, adapter: Path, file: str, name: str, n_samples: int) -> list[Sampled]:
        kept = Kept(self.out / file, name)
        if len(kept.found) < len(self.turns):
            with self.tools.scorer(adapter, self.out, self.options.threads) as scorer:
                tell = self._tell("turns rewritten", len(self.turns))
                sample_all(self.turns, scorer, kept, n_samples, self.options.seed, tell)
        return [kept.found[place] for place in range(len(self.turns))]

    def _answers(self) -> Answers:
        texts, encoder = texts_of(self.found), self.tools.encoder(self.options.threads)
        tell = self._tell("answers encoded", len(texts))
        return Answers(texts, encode_all(texts, encoder, self.out / VECTORS, tell), encoder)

    def _score(self, sampled: Sequence[Sampled], answers: Answers) -> list[Scored]:
        scored, tell = [], self._tell("turns scored", len(self.turns))
        for turn, one in zip(self.turns, sampled, strict=True):
            texts = one.of(turn)
            scored.append(Scored(turn, one, dict(zip(texts, answers.gains(turn, texts), strict=True))))
            tell(len(scored))
        return scored

    def _fit(self, learnt: Sequence[Scored], name: str) -> Adapter:
        import torch

        from bespeak.training.fit import Fit, steps
        from bespeak.training.risk import minimum_risk, plan

        arrays = read_adapter(self.options.start / "adapter.npz")
        start = {key: torch.from_numpy(array.astype(np.float32)) for key, array in arrays.items()}
        choices, pairs = self._sequences(learnt)
        ordinary = [one for step in steps(pairs) for one in step]
        objective, threads = minimum_risk(self.tools.network()), self.options.threads
        fit = Fit(objective, plan(choices, ordinary), self.out / CHECKPOINT, name, start, threads)
        for progress in fit.run():
            self.report(progress)
        return fit.adapter

    def _sequences(self, learnt: Sequence[Scored]) -> tuple[list[Choice], list[Packed]]:
        """The candidates of each turn in the order in which they are learnt from, and the pairs beside them."""
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
        """A folder to build from, for as long as the scores are not known."""
        from bespeak.training.network import to_arrays

        with tempfile.TemporaryDirectory(dir=self.out, prefix=TEMPORARY) as folder:
            put(Path(folder), to_arrays(adapter))
            shutil.copyfile(self.options.start / "CARD.md", Path(folder) / "CARD.md")
            yield Path(folder)

    def _write(self, adapter: Adapter, scores: MeanGains, learnt: Sequence[Scored]) -> None:
        """The adapter last, so that a folder with one is complete."""
        from bespeak.training.network import to_arrays

        began = (self.options.start / "CARD.md").read_text("utf-8")
        sources = [scored.turn.source for scored in learnt]
        counts = {source: sources.count(source) for source in dict.fromkeys(sources)}
        write_json(self.out / "scores.json", asdict(scores) | {"turns": counts})
        (self.out / "CARD.md").write_text(gain_card(began, self.options, counts, scores), "utf-8")
        put(self.out, to_arrays(adapter))

    def _tell(self, what: str, size: int) -> Callable[[int], None]:
        return lambda done: self.report(Stage(what, done, size))


def choice(scored: Scored, tokenizer: Tokenizer) -> Choice:
    from bespeak.training.risk import Choice

    texts, turn = list(scored.gains), scored.turn
    sequence = alternatives(prompt(turn.query, turn.profile, tokenizer), texts, tokenizer)
    means = np.array([gains.mean for gains in scored.gains.values()], np.float32)
    return Choice(sequence, means, texts.index(turn.rewrite))


def summary(before: Sequence[Scored], after: Sequence[Scored], n_learnt: int) -> MeanGains:
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


def run_name(options: GainOptions, found: Sequence[Conversation], turns: Sequence[Asked]) -> str:
    """Changes with anything that the result depends on, but for the versions of what it is computed with."""
    digest = hashlib.sha256(f"{RECIPE} {DECODING} {options.seed} {len(turns)}".encode("ascii"))
    digest.update((options.start / "adapter.npz").read_bytes())
    for conversation in found:
        digest.update(repr(conversation).encode("utf-8", "surrogatepass"))
    return digest.hexdigest()
