import json
import sys

import numpy as np
import pytest

from bespeak.errors import InputError, ModelError
from bespeak.models.catalogue import asset_folder
from bespeak.rewriting.model import MODEL
from bespeak.training.card import LICENCES, card
from bespeak.training.job import CHECKPOINT, prepare, run_name, thinned, train
from bespeak.training.mixture import SOURCE_WEIGHTS
from bespeak.training.options import CrossEntropies, TrainingOptions

pytestmark = pytest.mark.usefixtures("little_written")

TOPICS = ("whales", "glaciers", "bridges", "violins", "comets", "orchids", "castles", "beetles")


@pytest.fixture
def pairs(tmp_path):
    """Of 80 conversations."""
    path = tmp_path / "pairs.jsonl"
    with path.open("w") as file:
        for number in range(80):
            topic = TOPICS[number % len(TOPICS)]
            history = [{"query": f"Where do {topic} live, number {number}?", "response": f"In the north, {topic} do."}]
            row = {"query": "How old are they?", "rewrite": f"How old are {topic}?", "history": history}
            file.write(json.dumps(row) + "\n")
    return path


def test_what_is_held_out_is_not_trained_on(pairs):
    prepared = prepare(TrainingOptions((pairs,)))
    learnt, scored = ({sequence.token_ids.tobytes() for sequence in part} for part in prepared[:2])
    assert scored
    assert learnt.isdisjoint(scored)


def test_a_runs_name_depends_on_all_its_inputs(pairs):
    plain = prepare(TrainingOptions((pairs,)))
    assert prepare(TrainingOptions((pairs,), threads=7)).name == plain.name
    assert prepare(TrainingOptions((pairs, pairs))).name != plain.name
    assert prepare(TrainingOptions((pairs,), seed=1)).name != plain.name
    assert run_name(plain.train, 0) == plain.name
    assert len({run_name(plain.train, 0), run_name(plain.train[1:], 0), run_name(plain.train, 1)}) == 3


def test_with_held_out_pairs_all_other_data_are_trained_on(pairs):
    prepared = prepare(TrainingOptions((pairs,), held_out=pairs))
    people = [t for sequence in prepared.train for t in sequence.targets if t.kind == "person"]
    assert len(people) == 80
    assert sum(len(sequence.targets) for sequence in prepared.held_out) == 80


def test_a_file_without_pairs_is_reported(tmp_path):
    (tmp_path / "pairs.jsonl").write_text("\n")
    with pytest.raises(InputError, match="no pairs to train on"):
        prepare(TrainingOptions((tmp_path / "pairs.jsonl",)))


def test_the_number_of_held_out_targets_is_bounded(pairs):
    (sequence, *_) = prepare(TrainingOptions((pairs,))).held_out
    assert len(thinned([sequence] * 50)) == 50
    assert len(thinned([sequence] * 4000)) == 400


def test_without_the_extra_it_says_what_to_install(pairs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ModelError, match=r"needs the extra 'train'.*pip install 'bespeak\[train\]'"):
        train(TrainingOptions((pairs,)), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_weighed_source_has_its_licence():
    assert set(SOURCE_WEIGHTS) <= set(LICENCES)


def test_the_card_names_the_data_and_the_command(tmp_path):
    counts = {"source": {"canard": 20, "mine": 3}, "kind": {"person": 23}, "change": {"cut": 4}}
    options = TrainingOptions((tmp_path / "a.jsonl", tmp_path / "b.jsonl"), tmp_path / "c.jsonl", 0.5, 7)
    text = card(options, counts, CrossEntropies(1.5, 0.75, 95))
    assert "bespeak models train --data a.jsonl --data b.jsonl --held-out c.jsonl --passes 0.5 --seed 7\n" in text
    assert "23 targets" in text
    assert "| canard | 20 | CC BY-SA 4.0 (aagohary/canard, dev split) |" in text
    assert "| mine | 3 | as its owner says |" in text
    assert "95 held-out rewrites, nats per token: 0.750; the base without the adapter 1.500" in text
    assert "modified version of Gemma 3 270M" in text
    assert str(tmp_path) not in text


@pytest.mark.train
def test_a_run_writes_a_folder_to_build_from_and_resumes_from_its_checkpoint(pairs, tmp_path, network):
    pytest.importorskip("gguf", reason="gguf is not installed (extra `train`)")
    seen = []
    scores = train(TrainingOptions((pairs,), passes=0.5), tmp_path / "out", seen.append, network)
    assert [progress.step for progress in seen] == list(range(1, seen[0].n_steps + 1))
    assert scores.n_held_out > 0
    shipped = asset_folder("onnx_models") / MODEL
    for name in ("tokenizer.json", "vocabulary.npz", "GEMMA_TERMS.md", "NOTICE"):
        assert (tmp_path / "out" / name).read_bytes() == (shipped / name).read_bytes()
    with np.load(tmp_path / "out" / "adapter.npz") as made, np.load(shipped / "adapter.npz") as known:
        assert set(made.files) == set(known.files)
        assert all(made[name].dtype == known[name].dtype for name in made.files)
    assert json.loads((tmp_path / "out" / "scores.json").read_text())["adapter"] == scores.adapter
    assert (tmp_path / "out" / "CARD.md").exists()
    assert (tmp_path / "out" / CHECKPOINT).exists()
    before = (tmp_path / "out" / "adapter.npz").read_bytes()
    again = []
    assert train(TrainingOptions((pairs,), passes=0.5), tmp_path / "out", again.append, network) == scores
    assert again == []  # it was at its end
    assert (tmp_path / "out" / "adapter.npz").read_bytes() == before
