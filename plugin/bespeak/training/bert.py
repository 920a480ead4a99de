"""A BERT in torch, for training, and back to int8. Needs the extra `train`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from onnx import TensorProto, helper, numpy_helper

from bespeak.session.reader import HEADS
from bespeak.training.encoder import EPSILON, layer_output, products, quantise, stem_of, to_floats

if TYPE_CHECKING:
    from onnx import NodeProto

Tensor: TypeAlias = torch.Tensor
Floats: TypeAlias = npt.NDArray[np.float32]
Weights: TypeAlias = dict[str, Tensor]
Tokens: TypeAlias = Sequence[int] | npt.NDArray[np.int64]

DIM = 384


class Bert:
    """The layers, whose weights are trained, on top of fixed embeddings. May be used from several threads."""

    def __init__(self, embeddings: Mapping[str, Floats]) -> None:
        self._embeddings = {name: torch.from_numpy(np.array(array)) for name, array in embeddings.items()}

    def read(self, texts: Sequence[tuple[Tokens, Tokens]], weights: Weights) -> tuple[Tensor, Tensor]:
        """`(n_texts, DIM)` vectors of unit length, and `(n_texts, longest, len(HEADS))` logits.

        A text is its tokens and their types.
        """
        ids, types, seen = padded(texts)
        bias = torch.zeros(seen.shape).masked_fill(~seen, -1e9)[:, None, None]  # (n_texts, 1, 1, longest)
        w = self._embeddings
        x = F.embedding(ids, w["word_embeddings.weight"]) + w["position_embeddings.weight"][: ids.shape[1]]
        x = x + F.embedding(types, w["token_type_embeddings.weight"])
        x = F.layer_norm(x, (DIM,), w["LayerNorm.weight"], w["LayerNorm.bias"], EPSILON)
        n_layers = 1 + max(int(name.split(".")[0]) for name in weights if name[0].isdigit())
        for layer in range(n_layers):
            x = _layer(layer, x, bias, weights)
        return F.normalize(x[:, 0], dim=-1), F.linear(x, weights["heads.weight"], weights["heads.bias"])


def _layer(layer: int, x: Tensor, bias: Tensor, weights: Weights) -> Tensor:
    def times(y: Tensor, name: str) -> Tensor:
        return F.linear(y, weights[f"{layer}.{name}.weight"], weights[f"{layer}.{name}.bias"])

    def norm(y: Tensor, name: str) -> Tensor:
        return F.layer_norm(y, (DIM,), weights[f"{layer}.{name}.weight"], weights[f"{layer}.{name}.bias"], EPSILON)

    return layer_output(x, x, bias, times, norm)


def padded(texts: Sequence[tuple[Tokens, Tokens]]) -> tuple[Tensor, Tensor, Tensor]:
    """`(n_texts, longest)` each: tokens, their types, and whether they are real."""
    ids = np.zeros((len(texts), max(len(tokens) for tokens, _ in texts)), np.int64)
    types, seen = np.zeros_like(ids), np.zeros(ids.shape, bool)
    for row, (tokens, kinds) in enumerate(texts):
        n = len(tokens)
        ids[row, :n], types[row, :n], seen[row, :n] = tokens, kinds, True
    return torch.from_numpy(ids), torch.from_numpy(types), torch.from_numpy(seen)


def read_bert(path: Path, layers: Sequence[int], seed: int) -> tuple[Bert, Weights]:
    """The int8 model's embeddings, and its given layers with new heads, to train on."""
    model = onnx.load(str(path))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    embeddings = {name: to_floats(arrays, f"embeddings.{name}") for name in _tables()}
    embeddings |= {f"LayerNorm.{part}": arrays[f"embeddings.LayerNorm.{part}"] for part in ("weight", "bias")}
    found: dict[str, Floats] = {}
    matrices = products(model)
    for place, layer in enumerate(layers):
        before = f"encoder.layer.{layer}."
        for name, array in arrays.items():
            if name.startswith(before) and name.endswith((".weight", ".bias")):
                found[f"{place}.{name.removeprefix(before)}"] = array
        for name, node in matrices.items():
            if name.startswith(before):
                found[f"{place}.{name.removeprefix(before)}.weight"] = to_floats(arrays, stem_of(node)).T
    draw = np.random.default_rng(seed)
    found["heads.weight"] = draw.normal(0, 0.02, (len(HEADS), DIM)).astype(np.float32)
    found["heads.bias"] = np.full(len(HEADS), -1.0, np.float32)
    return Bert(embeddings), {name: torch.from_numpy(np.array(a, np.float32, order="C")) for name, a in found.items()}


def _tables() -> tuple[str, ...]:
    return tuple(f"{name}_embeddings.weight" for name in ("word", "position", "token_type"))


def to_onnx(base: Path, layers: Sequence[int], weights: Mapping[str, Floats]) -> bytes:
    """The base's graph with only as many layers, these weights, and two outputs: `vector` and `heads`.

    A matrix has one scale for each output channel, and no zero point.
    """
    model = onnx.load(str(base))
    graph, matrices = model.graph, products(model)
    tensors = {tensor.name: tensor for tensor in graph.initializer}
    for place in range(len(layers)):
        before = f"encoder.layer.{place}."
        for name, tensor in tensors.items():
            key = f"{place}.{name.removeprefix(before)}"
            if name.startswith(before) and key in weights:
                tensor.CopyFrom(numpy_helper.from_array(weights[key], name))
        for name, node in matrices.items():
            if name.startswith(before):
                quantise(tensors, stem_of(node), weights[f"{place}.{name.removeprefix(before)}.weight"].T)
    last = f"/encoder/layer.{len(layers) - 1}/output/LayerNorm/Add_1_output_0"
    if not any(last in node.output for node in graph.node):  # all layers are kept
        last = graph.output[0].name
    added = [
        helper.make_node("Gather", [last, "first"], ["vector"], axis=1),
        helper.make_node("MatMul", [last, "heads.weight"], ["heads_product"]),
        helper.make_node("Add", ["heads_product", "heads.bias"], ["heads"]),
    ]
    graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "first"))
    graph.initializer.append(numpy_helper.from_array(np.ascontiguousarray(weights["heads.weight"].T), "heads.weight"))
    graph.initializer.append(numpy_helper.from_array(weights["heads.bias"], "heads.bias"))
    _keep_needed(graph, added)
    made: bytes = model.SerializeToString()
    return made


def _keep_needed(graph: Any, added: Sequence[NodeProto]) -> None:
    """Leaves in the graph only the nodes and weights that `added` needs, and `added`."""
    wanted = {name for node in added for name in node.input}
    kept: list[NodeProto] = []
    for node in reversed(graph.node):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            kept.append(node)
    names = wanted | {name for node in added for name in node.output}
    tensors = [tensor for tensor in graph.initializer if tensor.name in names]
    outputs = [
        helper.make_tensor_value_info("vector", TensorProto.FLOAT, ["n", DIM]),
        helper.make_tensor_value_info("heads", TensorProto.FLOAT, ["n", "n_tokens", len(HEADS)]),
    ]
    for field, values in (
        (graph.node, [*reversed(kept), *added]),
        (graph.initializer, tensors),
        (graph.output, outputs),
    ):
        copies = [type(value).FromString(value.SerializeToString()) for value in values]
        del field[:]
        field.extend(copies)
    del graph.value_info[:]
