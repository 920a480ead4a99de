"""An ONNX graph under construction: nodes, quantised weights, and the files they are saved to.

The weights of the body have 8 bits with one scale per output channel, and inputs 7 bits with one scale per token; the
embedding, which is also the head, has 8 bits in blocks of 32 (`MatMulNBits`).
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from bespeak.rewriting.gemma import EPSILON
from bespeak.rewriting.weights import Floats

LEVELS = 63
"""Levels of an input on either side of zero.

A processor without VNNI adds pairs of products of an unsigned and a signed byte in 16 bits: with weights of 127 levels
the greatest sum is 2 x 126 x 127 = 32,004, which fits."""
BLOCK = 32  # weights of the head that share one scale


class Graph:
    """A growing ONNX graph. Each node is named after its first output, and each method returns that name."""

    def __init__(self, weights: dict[str, npt.NDArray[Any]] | None = None) -> None:
        self.nodes: list[Any] = []
        self.weights = {} if weights is None else weights
        self._quantised: set[str] = set()

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
        """Adds a node of onnxruntime's own operators."""
        return self.add(kind, inputs, outputs, domain="com.microsoft", **attributes)

    def norm(self, x: str, scale: Floats, out: str) -> str:
        """x divided by its root mean square, times `scale`."""
        inputs = [x, self.weight(f"{out}.scale", scale)]
        return self.add("SimplifiedLayerNormalization", inputs, [out], axis=-1, epsilon=EPSILON, stash_type=1)

    def add_norm(self, x: str, y: str, scale: Floats, out: str, total: str | None) -> str:
        """norm(x + y); the sum itself gets the name `total`."""
        outputs = [out, "", "", total] if total else [out]
        inputs = [x, y, self.weight(f"{out}.scale", scale)]
        return self.micro("SkipSimplifiedLayerNormalization", inputs, outputs, epsilon=EPSILON)

    def matmul(self, x: str, weights: Floats, out: str, zeros: str = "zeros") -> str:
        """x W': W in 255 levels with one scale per output channel, x in 127 levels with one scale per token.

        `zeros` names a tensor that repeats the level of zero once per token of x.
        """
        from onnx import TensorProto

        scales = np.maximum(np.abs(weights).max(axis=1), 1e-12) / np.float32(127)  # (n_out,)
        levels = np.clip(np.rint(weights / scales[:, None]), -127, 127).astype(np.int8)
        self.weight(f"{out}.scales", scales.astype(np.float32))
        factors = [self.quantise(x, zeros), self.weight(f"{out}.levels", levels.T)]
        self.add("MatMulInteger", [*factors, self.weight("zero", np.array(LEVELS, np.uint8))], [f"{out}.sums"])
        self.add("Cast", [f"{out}.sums"], [f"{out}.floats"], to=TensorProto.FLOAT)
        self.add("Mul", [f"{out}.floats", f"{out}.scales"], [f"{out}.by_channel"])
        return self.add("Mul", [f"{out}.by_channel", f"{x}.scales"], [out])

    def quantise(self, x: str, zeros: str) -> str:
        """x in levels; `x.scales` holds one scale per token, so a token's levels do not depend on its neighbours.

        With one scale for all tokens (`DynamicQuantizeLinear`), a text whose start is cached would score differently.
        """
        if x not in self._quantised:
            self._quantised.add(x)
            self.add("Abs", [x], [f"{x}.sizes"])
            self.add("ReduceMax", [f"{x}.sizes", self.ints(-1)], [f"{x}.size"], keepdims=1)
            self.add("Div", [f"{x}.size", self.weight("most", np.array(LEVELS, np.float32))], [f"{x}.step"])
            self.add("Max", [f"{x}.step", self.weight("least", np.array(1e-12, np.float32))], [f"{x}.scales"])
            self.add("Reshape", [f"{x}.scales", self.ints(-1)], [f"{x}.by_token"])
            self.add("QuantizeLinear", [x, f"{x}.by_token", zeros], [f"{x}.levels"], axis=1)
        return f"{x}.levels"


def quantise_blocks(weights: Floats) -> tuple[npt.NDArray[np.uint8], Floats]:
    """Levels `(n, n_blocks, 32)` uint8 with 128 for zero, and scales `(n, n_blocks)`; a block's extreme is level 0."""
    blocks = weights.reshape(len(weights), -1, BLOCK)
    place = np.abs(blocks).argmax(axis=2)[..., None]
    scales = (np.take_along_axis(blocks, place, axis=2)[..., 0] / np.float32(-128)).astype(np.float32)
    scales[scales == 0] = 1e-12
    levels = np.clip(np.rint(blocks / scales[..., None]) + 128, 0, 255).astype(np.uint8)
    return levels, scales


def save_graph(graph: Any, path: Path) -> None:
    """Writes the graph to `path` and its weights to `<path>.data`. Raises OSError."""
    import onnx

    # Weights in a file of their own are mapped into memory as they are, which halves the time to load.
    weights = path.with_name(f"{path.name}.data")
    onnx.save(_model(graph), path, save_as_external_data=True, location=weights.name, size_threshold=1024)
    weights.chmod(0o644)  # onnx writes it for its owner alone; as the model's other files, all users may read it
    _sync(path, weights)


def save_graph_beside(graph: Any, path: Path, other: Path) -> None:
    """Writes a graph that uses the weights saved with the graph `other`. Raises OSError."""
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
    """Waits until the files are on the disk: after a crash no record may describe a model that was lost."""
    for written in paths:
        with written.open("rb+") as file:
            os.fsync(file.fileno())
