"""A whole second stage: the model scripted, the network narrow."""

import json
import sys
from contextlib import contextmanager

import numpy as np
import pytest

from bespeak.errors import InputError, ModelError
from bespeak.models.catalogue import asset_folder
from bespeak.rewriting.decoding import END
from bespeak.rewriting.model import MODEL
from bespeak.training.answers import Gains
from bespeak.training.candidates import AnsweredTurn, SampledRewrites
from bespeak.training.card import gain_card
from bespeak.training.gain import (
    AFTER,
    CANDIDATES,
    TEMPORARY,
    GainTools,
    ScoredTurn,
    StageProgress,
    run_name,
    summary,
    train_gain,
)
from bespeak.training.job import CHECKPOINT
from bespeak.training.options import GainOptions, MeanGains
from bespeak.training.pairs import Conversation, PastTurn
from fakes import BagEncoder

pytestmark = pytest.mark.usefixtures("little_written")

TOPICS = ("whales", "glaciers", "bridges", "violins", "comets", "orchids", "castles", "beetles")


@pytest.fixture
def pairs(tmp_path):
    """Eight conversations of three queries; the answers to the first two are known."""
    path = tmp_path / "pairs.jsonl"
    with path.open("w") as file:
        for topic in TOPICS:
            turns = [
                {"query": f"Where are {topic} found?", "response": f"Most of the {topic} are found in the north."},
                {"query": "How old are they?", "response": f"Some {topic} are older than a thousand years."},
            ]
            asked = [(turns[0]["query"],) * 2, ("How old are they?", f"How old are {topic}?"), ("Why?", "Why so old?")]
            for n_before, (query, rewrite) in enumerate(asked):
                row = {"query": query, "rewrite": rewrite, "history": turns[:n_before]}
                file.write(json.dumps(row) + "\n")
    return path


def turn(query="q", rewrite="r"):
    return AnsweredTurn(0, "own", query, rewrite, "an answer", (PastTurn("before"),), ())


def scored(greedy, **gains):
    return ScoredTurn(
        turn(), SampledRewrites(greedy), {text: Gains(value, value, value) for text, value in gains.items()}
    )


def test_scores_are_means_and_a_refused_rewrite_is_the_query():
    before = [scored("g", q=0.2, r=0.8, g=0.4), scored(None, q=0.4, r=1.0)]
    after = [scored("h", q=0.2, r=0.8, h=1.0), scored("r", q=0.4, r=1.0)]
    found = summary(before, after, 1)
    assert found.query == pytest.approx(0.3)
    assert found.person == pytest.approx(0.9)
    assert found.before == pytest.approx(0.4)
    assert found.after == pytest.approx(1.0)
    assert (found.n_turns, found.n_learnt) == (2, 1)


def test_the_spread_is_between_best_and_worst():
    assert scored("g", q=0.2, r=0.8, g=0.4).spread == pytest.approx(0.6)
    assert scored(None, q=0.4).spread == 0


def test_a_runs_name_depends_on_all_its_inputs():
    data = [Conversation("own", (PastTurn("a", "b"),), ())]
    name = run_name(GainOptions(()), data, [turn()])
    assert name == run_name(GainOptions((), threads=9), data, [turn()])
    others = [
        run_name(GainOptions((), seed=1), data, [turn()]),
        run_name(GainOptions(()), data * 2, [turn()]),
        run_name(GainOptions(()), data, [turn()] * 2),
    ]
    assert len({name, *others}) == 4


def test_the_card_continues_that_of_the_first_stage(tmp_path):
    options = GainOptions((tmp_path / "a.jsonl", tmp_path / "b.jsonl"), tmp_path / "mine", 50, 7)
    text = gain_card("# An adapter\nMade so.\n", options, {"canard": 20}, MeanGains(0.1, 0.2, 0.3, 0.45, 50, 20))
    assert text.startswith("# An adapter\nMade so.\n\n## Second stage\n")
    assert "models train-gain --data a.jsonl --data b.jsonl --adapter mine --turns 50 --seed 7\n" in text
    assert "| canard | 20 | CC BY-SA 4.0 (aagohary/canard, dev split) |" in text
    assert "before 0.300 and after 0.450" in text
    assert str(tmp_path) not in text


def test_without_the_extra_it_says_what_to_install(pairs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelError, match=r"needs the extra 'train'.*pip install 'bespeak\[train\]'"):
        train_gain(GainOptions((pairs,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Writer:
    """A fake model with the shipped tokenizer: repeats the query, or in half of the samples the person's rewrite."""

    def __init__(self, tokenizer):
        self.tokenizer = tokenizer

    @contextmanager
    def begin(self, budget_ms, session_key=None):
        yield self._feed

    def forget(self, user):
        pass

    def _feed(self, token_ids, past):
        if past is None:
            topic = next((t for t in TOPICS if t in self.tokenizer.decode(list(token_ids))), TOPICS[0])
            texts = (" How old are they?", f" How old are {topic}?")
            past = [[*self.tokenizer.encode(t, add_special_tokens=False).ids, END] for t in texts], []
        else:
            past = past[0], past[1] + list(token_ids)
        texts, written = past
        scores = np.zeros(self.tokenizer.get_vocab_size(), np.float32)
        for number, ids in enumerate(texts):
            if ids[: len(written)] == written and len(written) < len(ids):
                scores[ids[len(written)]] = max(scores[ids[len(written)]], 40 - 0.1 * number)
        return scores, past


@pytest.fixture
def tools(network, tokenizer):
    opened = []

    @contextmanager
    def scorer(adapter, beside, threads):
        opened.append(adapter)
        assert (adapter / "adapter.npz").exists()
        yield Writer(tokenizer)

    return GainTools(scorer, lambda threads: BagEncoder(dim=256), lambda: network), opened


@pytest.fixture
def adapter(network, tmp_path):
    """Of the narrow network."""
    from bespeak.training.job import write_adapter
    from bespeak.training.network import new_adapter, to_arrays

    folder = tmp_path / "mine"
    folder.mkdir()
    write_adapter(folder, to_arrays(new_adapter(network.shapes, 0)))
    (folder / "CARD.md").write_text("# Mine\n")
    return folder


@pytest.mark.train
def test_a_run_writes_a_folder_to_build_from_and_resumes_from_it(pairs, adapter, tools, tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed (extra `train`)")
    options, out, seen = GainOptions((pairs,), adapter), tmp_path / "out", []
    scores = train_gain(options, out, seen.append, tools[0])
    assert (scores.n_turns, scores.n_learnt) == (8, 8)
    assert scores.query == scores.before == scores.after < scores.person  # the scripted model learns nothing
    assert json.loads((out / "scores.json").read_text())["before"] == scores.before
    assert (out / "CARD.md").read_text().startswith("# Mine\n\n## Second stage\n")
    for name in ("tokenizer.json", "vocabulary.npz", "GEMMA_TERMS.md", "NOTICE"):
        assert (out / name).read_bytes() == (asset_folder("onnx_models") / MODEL / name).read_bytes()
    with np.load(out / "adapter.npz") as made, np.load(adapter / "adapter.npz") as began:
        assert set(made.files) == set(began.files)
        assert any(not np.array_equal(made[name], began[name]) for name in made.files)
    assert [s.what for s in seen if isinstance(s, StageProgress) and s.done == s.size] == [
        "turns rewritten", "answers encoded", "turns scored", "turns rewritten", "turns scored"
    ]  # fmt: skip
    whole = (out / "adapter.npz").read_bytes()

    tools[1].clear()
    again = []
    assert train_gain(options, out, again.append, tools[0]) == scores
    assert tools[1] == []  # no model was opened: all candidates were there
    assert all(isinstance(progress, StageProgress) for progress in again)  # nothing was fitted

    for name in (CHECKPOINT, AFTER, "adapter.npz"):
        (out / name).unlink()
    cut = (out / CANDIDATES).read_bytes()[:-300]
    (out / CANDIDATES).write_bytes(cut)
    (out / f"{TEMPORARY}x").mkdir()
    assert train_gain(options, out, None, tools[0]) == scores
    assert (out / "adapter.npz").read_bytes() == whole
    assert not list(out.glob(f"{TEMPORARY}*"))


@pytest.mark.train
def test_wrong_data_and_folders_are_reported(pairs, adapter, tools, tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed (extra `train`)")
    (tmp_path / "single.jsonl").write_text(json.dumps({"query": "Why?", "rewrite": "Why?"}) + "\n")
    with pytest.raises(InputError, match="no query of --data has a known answer"):
        train_gain(GainOptions((tmp_path / "single.jsonl",), adapter), tmp_path / "out", None, tools[0])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ModelError, match=r"has no adapter.npz: give the folder"):
        train_gain(GainOptions((pairs,), tmp_path / "empty"), tmp_path / "out", None, tools[0])
    assert not (tmp_path / "out").exists()
    with pytest.raises(InputError, match="holds the adapter to start from: give another --out"):
        train_gain(GainOptions((pairs,), adapter), adapter, None, tools[0])


@pytest.mark.train
def test_a_folder_of_another_run_is_refused(pairs, adapter, tools, tmp_path):
    pytest.importorskip("gguf", reason="gguf is not installed (extra `train`)")
    train_gain(GainOptions((pairs,), adapter), tmp_path / "out", None, tools[0])
    with pytest.raises(ModelError, match="belongs to a run with other data, options or versions"):
        train_gain(GainOptions((pairs,), adapter, seed=1), tmp_path / "out", None, tools[0])
