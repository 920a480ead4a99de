"""The shipped encoder with a LoRA adapter (Hu et al., 2021) in torch, for training; and back to int8.

Needs the extra `train`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import onnx
import torch
import torch.nn.functional as F  # noqa: N812
from onnx import numpy_helper

from bespeak.training.network import Adapter

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto, TensorProto

Tensor: TypeAlias = torch.Tensor
Floats: TypeAlias = npt.NDArray[np.float32]
Named: TypeAlias = Callable[[Tensor, str], Tensor]
"""Applies the weights of a name to a tensor."""

N_HEADS = 12
EPSILON = 1e-12
FIRST_ADAPTED = 2
ADAPTER_SCALE = 2.0
LEVELS = 63
"""One bit of int8 stays unused, since sums overflow otherwise on processors without VNNI."""
MATRICES = (
    "attention.self.query", "attention.self.key", "attention.self.value", "attention.output.dense",
    "intermediate.dense", "output.dense",
)  # fmt: skip


class BertEncoder:
    """The encoder with fixed weights; may be used from several threads."""

    def __init__(self, weights: Mapping[str, Floats]) -> None:
        self._weights = {name: torch.from_numpy(np.array(array)) for name, array in weights.items()}
        self._n_layers = 1 + max(int(name.split(".")[2]) for name in weights if name.startswith("encoder.layer."))

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """(n_out, n_in) of each adapted matrix, by name."""
        names = [f"encoder.layer.{n}.{name}" for n in range(FIRST_ADAPTED, self._n_layers) for name in MATRICES]
        found = {}
        for name in names:
            n_out, n_in = self._weights[f"{name}.weight"].shape
            found[name] = (n_out, n_in)
        return found

    def encode(self, texts: Sequence[Sequence[int]], adapter: Adapter) -> Tensor:
        """`(n_texts, dim)`: the last layer's first token of each text, with unit length."""
        ids, seen = padded(texts)
        # (n_texts, 1, 1, n_tokens), added to the attention's scores
        bias = torch.zeros(seen.shape).masked_fill(~seen, -1e9)[:, None, None]
        w = self._weights
        x = F.embedding(ids, w["embeddings.word_embeddings.weight"])
        x = x + w["embeddings.position_embeddings.weight"][: ids.shape[1]]
        x = self._norm(x + w["embeddings.token_type_embeddings.weight"][0], "embeddings.LayerNorm")
        for layer in range(self._n_layers):
            x = self._layer(layer, x, bias, adapter)
        return F.normalize(x[:, 0], dim=-1)

    def _layer(self, layer: int, x: Tensor, bias: Tensor, adapter: Adapter) -> Tensor:
        at = f"encoder.layer.{layer}"
        # Only the first token of the last layer is used.
        asking = x[:, :1] if layer == self._n_layers - 1 else x

        def times(y: Tensor, name: str) -> Tensor:
            key = f"{at}.{name}"
            found = F.linear(y, self._weights[f"{key}.weight"], self._weights[f"{key}.bias"])
            if f"{key}.A" not in adapter:
                return found
            return found + F.linear(F.linear(y, adapter[f"{key}.A"]), adapter[f"{key}.B"]) * ADAPTER_SCALE

        return layer_output(asking, x, bias, times, lambda y, name: self._norm(y, f"{at}.{name}"))

    def _norm(self, x: Tensor, name: str) -> Tensor:
        weight, bias = self._weights[f"{name}.weight"], self._weights[f"{name}.bias"]
        return F.layer_norm(x, weight.shape, weight, bias, EPSILON)


def layer_output(asking: Tensor, x: Tensor, bias: Tensor, times: Named, norm: Named) -> Tensor:
    """What a layer makes of the tokens `asking`, which attend to `x`; both `(n_texts, n_tokens, dim)`.

    `bias` is added to the attention's scores; `times` and `norm` apply the layer's matrix or norm of a name.
    """

    def heads(y: Tensor) -> Tensor:
        return y.unflatten(2, (N_HEADS, -1)).transpose(1, 2)

    query, key, value = (
        heads(times(y, f"attention.self.{name}")) for y, name in ((asking, "query"), (x, "key"), (x, "value"))
    )
    read = F.scaled_dot_product_attention(query, key, value, attn_mask=bias).transpose(1, 2).flatten(2)
    x = norm(asking + times(read, "attention.output.dense"), "attention.output.LayerNorm")
    return norm(x + times(F.gelu(times(x, "intermediate.dense")), "output.dense"), "output.LayerNorm")


def padded(texts: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """`(n_texts, longest)` each: tokens, and whether they are real."""
    ids = np.zeros((len(texts), max(map(len, texts))), np.int64)
    seen = np.zeros(ids.shape, bool)
    for row, text in enumerate(texts):
        ids[row, : len(text)], seen[row, : len(text)] = text, True
    return torch.from_numpy(ids), torch.from_numpy(seen)


def read_bert_weights(path: Path) -> dict[str, Floats]:
    """All weights of an int8 BERT as floats, matrices (n_out, n_in), by their original names."""
    model = onnx.load(str(path))
    arrays = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
    weights = {name: array for name, array in arrays.items() if name.endswith((".weight", ".bias"))}
    for name in ("word", "position", "token_type"):
        key = f"embeddings.{name}_embeddings.weight"
        weights[key] = to_floats(arrays, key)
    for name, node in products(model).items():
        weights[f"{name}.weight"] = np.ascontiguousarray(to_floats(arrays, stem_of(node)).T)
    return weights


def merged(path: Path, adapter: Mapping[str, Floats]) -> bytes:
    """The int8 model in `path` with the adapter merged: one scale per output channel, and no zero point."""
    model = onnx.load(str(path))
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    arrays = {name: numpy_helper.to_array(tensor) for name, tensor in tensors.items()}
    for name, node in products(model).items():
        if f"{name}.A" not in adapter:
            continue
        stem = stem_of(node)
        change = ADAPTER_SCALE * adapter[f"{name}.B"] @ adapter[f"{name}.A"]  # (n_out, n_in)
        weight = to_floats(arrays, stem) + change.T  # (n_in, n_out)
        quantise(tensors, stem, np.asarray(weight, np.float32))
    made: bytes = model.SerializeToString()
    return made


def quantise(tensors: Mapping[str, TensorProto], stem: str, weight: Floats) -> None:
    """Puts the matrix `(n_in, n_out)` in the place of another: one scale per output channel, and no zero point."""
    scale = np.maximum(np.abs(weight).max(axis=0) / LEVELS, 1e-12).astype(np.float32)
    whole = np.rint(weight / scale).astype(np.int8)
    for ending, array in (("quantized", whole), ("scale", scale), ("zero_point", np.zeros(scale.shape, np.int8))):
        tensors[f"{stem}_{ending}"].CopyFrom(numpy_helper.from_array(array, f"{stem}_{ending}"))


def products(model: ModelProto) -> dict[str, NodeProto]:
    """The products with a weight matrix, by the matrix's name: `encoder.layer.N.…`."""
    return {
        node.name.strip("/").removesuffix("/MatMul_quant").replace("/", "."): node
        for node in model.graph.node
        if node.op_type == "MatMulInteger"
    }


def stem_of(node: NodeProto) -> str:
    return str(node.input[1]).removesuffix("_quantized")


def to_floats(arrays: Mapping[str, Any], stem: str) -> Floats:
    whole, zero = (arrays[f"{stem}_{ending}"].astype(np.float32) for ending in ("quantized", "zero_point"))
    floats: Floats = (whole - zero) * arrays[f"{stem}_scale"]
    return floats
