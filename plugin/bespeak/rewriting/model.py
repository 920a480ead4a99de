"""The built language model: its name, its files, the inputs of its graphs, and whether it is up to date."""

from __future__ import annotations

from pathlib import Path

from bespeak.errors import ModelError
from bespeak.models.catalogue import Digests, asset_folder, verify
from bespeak.rewriting.gemma import N_LAYERS

MODEL = "gemma3-270m-rewriter"
"""Name of the language model: of its shipped parts in `onnx_models/`, and of what is built from them in the cache."""

RECIPE = 6
"""Raise this when the same parts are built into different files."""

COMPUTED_PARTS = ("adapter.npz", "vocabulary.npz", "tokenizer.json")
PARTS = (*COMPUTED_PARTS, "CARD.md", "GEMMA_TERMS.md", "NOTICE")
"""The files that the model is built from, besides the base's weights, and those that must accompany them."""
OWN_ADAPTER = "adapter"
"""Folder in the cache with the parts of the operator's own adapter, if one is in use."""

SINGLE_GRAPH, ROWS_GRAPH = "model.onnx", "rows.onnx"
"""The graph that reads one text, and the one that reads `ROWS` texts at once."""
ROWS = 8
CACHES = [f"{layer}.{part}" for layer in range(N_LAYERS) for part in ("key", "value")]
"""The keys and values of each layer, as inputs (`past.…`) and outputs (`present.…`) of the graphs name them."""


def find_model(cache_dir: Path) -> tuple[Path, str]:
    """Folder and version of the built language model.

    Raises ModelError if it is not built, damaged, or built from parts that are no longer in use.
    """
    folder = cache_dir / "models" / MODEL
    if not folder.is_dir():
        raise ModelError(f"the language model is not built in {folder}: run {build_command(cache_dir)}")
    record = verify(folder, cache_dir)
    if record.made != made_from(cache_dir):
        raise ModelError(f"the language model in {folder} was built from older parts: run {build_command(cache_dir)}")
    return folder, record.version


def made_from(cache_dir: Path | None) -> str:
    """A sentence that says how the model would be built now, with the digests of the parts in use."""
    folder, digests = parts_folder(cache_dir), Digests(cache_dir)
    parts = ", ".join(f"{name} {digests.sha256(folder / name)[:8]}" for name in COMPUTED_PARTS)
    digests.save()
    return f"bespeak models build, recipe {RECIPE}, of {parts}"


def build_command(cache_dir: Path) -> str:
    own = cache_dir / OWN_ADAPTER
    return f"'bespeak models build --adapter {own}'" if own.is_dir() else "'bespeak models build'"


def parts_folder(cache_dir: Path | None) -> Path:
    """The parts in use: those of the operator's own adapter if the cache holds them, otherwise the shipped ones."""
    own = cache_dir / OWN_ADAPTER if cache_dir else None
    return own if own and own.is_dir() else asset_folder("onnx_models") / MODEL
