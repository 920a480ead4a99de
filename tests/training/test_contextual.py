"""Training the encoder that reads sessions, on the shipped encoder's own weights and a few examples."""

import json

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `train`)")
pytestmark = pytest.mark.train

from bespeak.errors import InputError, ModelError  # noqa: E402
from bespeak.models.catalogue import asset_folder, default_model, read_record  # noqa: E402
from bespeak.models.encoder import OnnxEncoder, load_encoder, read_config  # noqa: E402
from bespeak.training import contextual  # noqa: E402
from bespeak.training.contextual import context_objective, train, training_examples  # noqa: E402
from bespeak.training.encoder import BertEncoder, merged, read_bert_weights  # noqa: E402
from bespeak.training.job import read_all  # noqa: E402
from bespeak.training.network import new_adapter  # noqa: E402
from bespeak.training.options import TrainingOptions  # noqa: E402
from bespeak.training.targets import TEMPERATURE, TargetVectors, contrastive_loss, minibatches  # noqa: E402

BASE = asset_folder("onnx_models") / default_model("encoder")
TEXTS = ["How much does it cost?", "Is the Alhambra open in winter? [SEP] It opens at half past eight."]


@pytest.fixture(scope="module")
def network():
    return BertEncoder(read_bert_weights(BASE / "model.onnx"))


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.fixture
def pairs(tmp_path):
    names = ("Alba", "Bruno", "Carla", "Dario", "Elena", "Fabio", "Greta", "Hugo", "Irma", "Jonas")
    rows = [
        {
            "query": query,
            "rewrite": query.replace("they", name).replace("them", name),
            "history": history,
            "source": "own",
        }
        for name in names
        for history in [[{"query": f"Do you know {name}?", "response": f"Yes, {name} is a baker here in town."}]]
        for query in ("Where do they live?", "What do people say of them?")
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


def test_the_network_computes_what_the_shipped_encoder_does(network, encoder):
    shipped = OnnxEncoder(BASE)
    ids = [shipped._tokenizer.encode(shipped.config.query_prefix + text).ids for text in TEXTS]
    with torch.inference_mode():
        found = network.encode(ids, {}).numpy()
    assert (found * encoder.encode(TEXTS, "query")).sum(1).min() > 0.99


def test_an_adapter_that_changes_nothing_leaves_the_model_as_it_was(network, encoder, tmp_path):
    adapter = {name: tensor.numpy() for name, tensor in new_adapter(network.shapes, 0).items()}
    (tmp_path / "model.onnx").write_bytes(merged(BASE / "model.onnx", adapter))
    for name in ("tokenizer.json", "config.json"):
        (tmp_path / name).write_bytes((BASE / name).read_bytes())
    cosines = (OnnxEncoder(tmp_path).encode(TEXTS, "query") * encoder.encode(TEXTS, "query")).sum(1)
    assert cosines.min() > 0.98


def test_duplicates_of_the_target_are_no_negatives():
    own = torch.tensor([[1.0, 0.0]])
    alone = contrastive_loss(own, own, own)
    assert float(alone) == pytest.approx(0, abs=1e-6)
    other = contrastive_loss(own, own, torch.tensor([[0.8, 0.6]]))
    assert float(other) == pytest.approx(np.log1p(np.exp((0.8 - 1) / TEMPERATURE)), rel=1e-4)


def test_a_few_steps_bring_the_rewrite_nearer(network, encoder, pairs, tmp_path):
    from bespeak.training.fit import Fit

    learnt = training_examples(read_all([pairs]), TrainingOptions((pairs,), passes=2), contextual.EncoderInput.of(BASE))
    vectors = TargetVectors.of(learnt, encoder, tmp_path / "vectors.db")
    objective, steps = context_objective(network, vectors), minibatches(learnt, vectors, 0)
    start = new_adapter(network.shapes, 0)
    losses = [progress.loss for progress in Fit(objective, steps * 6, tmp_path / "c.pt", "a run", start, 1).run()]
    assert losses[-1] < losses[0]


def test_a_run_writes_a_model_and_resumes_from_its_checkpoint(pairs, tmp_path, monkeypatch):
    options = TrainingOptions((pairs,), pairs, passes=0.5)
    scores = train(options, tmp_path / "whole")
    assert scores.n_held_out == 20
    assert read_config(tmp_path / "whole").of == load_encoder().name
    record = read_record(tmp_path / "whole")
    assert (record.name, record.kind) == ("whole", "context-encoder")
    assert set(record.files) == {"CARD.md", "config.json", "model.onnx", "tokenizer.json"}
    card = (tmp_path / "whole" / "CARD.md").read_text("utf-8")
    assert "| own |" in card
    assert "CC BY-SA" not in card

    class Killed(Exception):
        pass

    def kill(_progress):
        raise Killed

    with pytest.raises(Killed):
        train(options, tmp_path / "cut", kill)
    train(options, tmp_path / "cut")
    made = [(tmp_path / name / "model.onnx").read_bytes() for name in ("whole", "cut")]
    assert made[0] == made[1]


def test_a_checkpoint_of_another_run_is_refused(pairs, tmp_path):
    train(TrainingOptions((pairs,), pairs, passes=0.5), tmp_path / "out")
    with pytest.raises(ModelError, match="another --out"):
        train(TrainingOptions((pairs,), pairs, passes=0.5, seed=1), tmp_path / "out")


def test_pairs_without_a_session_are_refused(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"query": "a b", "rewrite": "a b"}), "utf-8")
    with pytest.raises(InputError, match="history"):
        train(TrainingOptions((path,), path), tmp_path / "out")
