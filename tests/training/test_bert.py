"""The network that the context reader is trained as, against the model that is written from it."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch is not installed (extra `train`)")
pytestmark = pytest.mark.train

from bespeak.models.catalogue import asset_folder, default_model  # noqa: E402
from bespeak.models.encoder import load_encoder, open_session, open_tokenizer, read_config  # noqa: E402
from bespeak.records import Profile, Statement, Turn  # noqa: E402
from bespeak.session.reader import HEADS, ReaderInput, reader_input, run_reader, sections  # noqa: E402
from bespeak.training.bert import DIM, read_bert, to_onnx  # noqa: E402
from bespeak.training.reader import LAYERS  # noqa: E402

BASE = asset_folder("onnx_models") / default_model("encoder")
SESSION = Profile(
    statements=(Statement("I live in Ghent.", "s"),),
    turns=(Turn("two person tent", "The Vango Banshee is a light tent.", "t"),),
)
QUERIES = ["is it waterproof", "shops near me that sell one", "who wrote Middlemarch", ""]


@pytest.fixture(scope="module")
def read():
    """What is read of each query, of different lengths."""
    tokenizer, prefix = open_tokenizer(BASE, 1_000), read_config(BASE).query_prefix
    profiles = (SESSION, Profile(statements=SESSION.statements), Profile(), SESSION)
    return [
        reader_input(sections(query, profile, tokenizer), tokenizer, prefix)
        for query, profile in zip(QUERIES, profiles, strict=True)
    ]


def forward(network, weights, read):
    """The vectors, and the heads of each text without padding."""
    with torch.inference_mode():
        vectors, heads = network.read([(one.token_ids, one.types) for one in read], weights)
    return vectors.numpy(), [row[: len(one.token_ids)].numpy() for row, one in zip(heads, read, strict=True)]


def write(path, layers, weights):
    path.write_bytes(to_onnx(BASE / "model.onnx", layers, {name: w.numpy() for name, w in weights.items()}))
    return open_session(path, 1)


def test_the_written_model_computes_what_the_network_does(read, tmp_path):
    network, weights = read_bert(BASE / "model.onnx", LAYERS, 0)
    # Heads as large as trained ones, so that their errors show.
    weights["heads.weight"] = 0.3 * torch.randn(len(HEADS), DIM, generator=torch.Generator().manual_seed(1))
    session = write(tmp_path / "model.onnx", LAYERS, weights)
    vectors, heads = forward(network, weights, read)
    for one, vector, of_tokens in zip(read, vectors, heads, strict=True):
        found, logits = run_reader(session, one, "made")
        assert found @ vector > 0.99
        assert logits.shape == of_tokens.shape == (len(one.token_ids), len(HEADS))
        assert np.abs(logits - of_tokens).mean() < 0.15 * np.abs(of_tokens).mean()
    assert len((tmp_path / "model.onnx").read_bytes()) < 0.75 * (BASE / "model.onnx").stat().st_size


def test_with_all_layers_the_vectors_are_the_encoders(tmp_path):
    layers, texts = range(12), ["How much does it cost?", "Is the Alhambra open in winter?"]
    network, weights = read_bert(BASE / "model.onnx", layers, 0)
    session = write(tmp_path / "model.onnx", layers, weights)
    tokenizer, prefix = open_tokenizer(BASE, 1_000), read_config(BASE).query_prefix
    expected = load_encoder().encode(texts, "query")
    for text, vector in zip(texts, expected, strict=True):
        ids = tokenizer.encode(prefix + text).ids
        one = ReaderInput(ids, [0] * len(ids), [])
        assert forward(network, weights, [one])[0][0] @ vector > 0.99
        assert run_reader(session, one, "made")[0] @ vector > 0.98


def test_a_text_reads_the_same_alone_and_beside_longer_ones(read):
    network, weights = read_bert(BASE / "model.onnx", LAYERS, 0)
    vectors, heads = forward(network, weights, read)
    for row, one in enumerate(read):
        vector, of_tokens = forward(network, weights, [one])
        assert vector[0] == pytest.approx(vectors[row], abs=1e-5)
        assert of_tokens[0] == pytest.approx(heads[row], abs=1e-4)


def test_the_types_tell_the_session_from_the_query(read):
    network, weights = read_bert(BASE / "model.onnx", LAYERS, 0)
    untyped = read[0]._replace(types=[0] * len(read[0].types))
    (typed, _), (plain, _) = (forward(network, weights, [one]) for one in (read[0], untyped))
    assert np.abs(typed - plain).max() > 1e-3


def test_only_the_heads_are_new_and_a_seed_gives_the_same_ones():
    (_, one), (_, same), (_, other) = (read_bert(BASE / "model.onnx", LAYERS, seed) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert {name for name in one if not torch.equal(one[name], other[name])} == {"heads.weight"}
    assert {int(name.split(".")[0]) for name in one if name[0].isdigit()} == set(range(len(LAYERS)))
