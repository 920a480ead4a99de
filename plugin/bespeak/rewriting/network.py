"""Gemma 3 as an ONNX graph: one that reads a single text, and one that reads several texts in one run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from bespeak.rewriting.gemma import GLOBAL_EVERY, HEAD, N_HEADS, N_LAYERS, ROTARY_BASES, WIDTH
from bespeak.rewriting.graph import BLOCK, LEVELS, Graph, quantise_blocks
from bespeak.rewriting.model import CACHES, MODEL

if TYPE_CHECKING:
    from collections.abc import Callable

    from bespeak.rewriting.weights import Base, Floats

MAX_TOKENS = 1024  # longest prompt and rewrite together; the rotary tables grow with it


def shared_graph(base: Base, report: Callable[[str, float], None]) -> Graph:
    """The nodes that both graphs share: all but those that compute how long each text is.

    `report` is called after each layer with what was done and the share of the build, in [0, 1].
    """
    graph = Graph()
    _zeros(graph)
    embedding = base.embedding()
    total = _embed(graph, embedding)
    _rotary_tables(graph)
    normed = graph.norm(total, base.tensor("blk.0.attn_norm"), "layer0.in")
    for layer in range(N_LAYERS):
        total, normed = _layer(graph, base, layer, total, normed)
        report(f"layer {layer + 1} of {N_LAYERS}", 0.45 + 0.4 * (layer + 1) / N_LAYERS)
    graph.micro(
        "MatMulNBits", [normed, "embedding.levels", "embedding.scales"], ["logits"],
        K=WIDTH, N=len(embedding), bits=8, block_size=BLOCK, accuracy_level=4,
    )  # fmt: skip
    return graph


def single_graph(graph: Graph) -> Any:
    """The graph that reads one text.

    Inputs are the text's new tokens and its past keys and values. Outputs are the extended keys and values, and the
    scores of the token after each of the tokens at the positions `scored`.
    """
    ahead = Graph(graph.weights)
    ahead.add("Shape", ["input_ids"], ["n_new"], start=1, end=2)
    _lengths(ahead, "n_new", "")
    return _with_ports([*ahead.nodes, *graph.nodes], graph.weights, [""])


def joint_graph(graph: Graph, rows: int) -> Any:
    """The graph that reads several texts at once.

    Their new tokens follow one another, `row_tokens` of each text. Every matrix product covers all texts and nothing is
    padded; only the attention is computed for each text separately.
    """
    ahead = Graph(graph.weights)
    counts = [f"n_new.{row}" for row in range(rows)]
    ahead.add("Split", ["row_tokens"], counts, axis=0, num_outputs=rows)
    for row in range(rows):
        _lengths(ahead, counts[row], f".{row}")
    nodes = [*ahead.nodes]
    for node in graph.nodes:
        nodes += _by_row(node, rows) if node.op_type == "GroupQueryAttention" else [node]
    return _with_ports(nodes, graph.weights, [f".{row}" for row in range(rows)])


def _by_row(node: Any, rows: int) -> list[Any]:
    """The attention node, once for each text."""
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


def _with_ports(nodes: list[Any], weights: dict[str, npt.NDArray[Any]], rows: list[str]) -> Any:
    """The graph with its inputs and outputs; `rows` holds a suffix for each text, "" for a single one."""
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
    """Adds the level of zero, repeated for each new token and for each scored token."""
    from onnx import numpy_helper

    zero = numpy_helper.from_array(np.array([LEVELS], np.uint8))
    for name, of, start in (("zeros", "input_ids", 1), ("zeros_scored", "scored", 0)):
        graph.add("Shape", [of], [f"n_{name}"], start=start, end=start + 1)
        graph.add("ConstantOfShape", [f"n_{name}"], [name], value=zero)


def _lengths(graph: Graph, n_new: str, row: str) -> None:
    """Adds what the attention needs of a text: its whole length as a scalar, and that length less one as a list."""
    from onnx import TensorProto

    graph.add("Shape", [f"past{row}.0.key"], [f"n_past{row}"], start=2, end=3)
    graph.add("Add", [n_new, f"n_past{row}"], [f"n_all{row}"])
    graph.add("Sub", [f"n_all{row}", graph.ints(1)], [f"n_all_less_one{row}"])
    graph.add("Cast", [f"n_all_less_one{row}"], [f"lengths{row}"], to=TensorProto.INT32)
    graph.add("Squeeze", [f"n_all{row}", graph.ints(0)], [f"n_all_scalar{row}"])
    graph.add("Cast", [f"n_all_scalar{row}"], [f"length{row}"], to=TensorProto.INT32)


def _embed(graph: Graph, embedding: Floats) -> str:
    """The tokens' embeddings, times the root of the width; the head shares their levels."""
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
    positions = np.arange(MAX_TOKENS)[:, None]
    for name, base in ROTARY_BASES.items():
        angles = positions / base ** (np.arange(0, HEAD, 2) / HEAD)[None]  # (MAX_TOKENS, HEAD / 2)
        graph.weight(f"cos_{name}", np.cos(angles).astype(np.float32))
        graph.weight(f"sin_{name}", np.sin(angles).astype(np.float32))


def _layer(graph: Graph, base: Base, layer: int, total: str, normed: str) -> tuple[str, str]:
    """Adds one layer; returns the running sum and its norm, which the next layer starts from.

    After the last attention only the scored tokens go on: nothing reads the others.
    """
    at, last = f"layer{layer}", layer == N_LAYERS - 1
    zeros = "zeros_scored" if last else "zeros"

    def scale(name: str) -> Floats:
        return base.tensor(f"blk.{layer}.{name}")

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
        return "", graph.add_norm(f"{at}.middle_sum", down, base.tensor("output_norm"), "final", None)
    following = base.tensor(f"blk.{layer + 1}.attn_norm")
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
    graph.norm(f"{at}.heads", base.tensor(f"blk.{layer}.attn_q_norm"), f"{at}.heads_normed")
    graph.add("Reshape", [f"{at}.heads_normed", graph.ints(0, -1, wide)], [f"{at}.query_normed"])
    graph.norm(parts[1], base.tensor(f"blk.{layer}.attn_k_norm"), f"{at}.key_normed")
    reach = "local" if (layer + 1) % GLOBAL_EVERY else "global"
    past = [f"past.{layer}.key", f"past.{layer}.value"]
    tables = ["lengths", "length", f"cos_{reach}", f"sin_{reach}"]
    return graph.micro(
        "GroupQueryAttention",
        [f"{at}.query_normed", f"{at}.key_normed", parts[2], *past, *tables],
        [f"{at}.attended", f"present.{layer}.key", f"present.{layer}.value"],
        num_heads=N_HEADS, kv_num_heads=1, scale=HEAD**-0.5, do_rotary=1, rotary_interleaved=0,
    )  # fmt: skip
