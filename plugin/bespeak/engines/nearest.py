"""The vectors of an embedded index as one matrix on disk, searched by brute force.

The folder of the matrix is named after the commit of the index that it was made from. It gets its name once its files
are written, so it is complete if it exists. If it is missing, damaged or of another commit, it is made again.
"""

from __future__ import annotations

import json
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bespeak.files import replace_folder
from bespeak.records import Matrix, Vector


@dataclass(frozen=True, slots=True)
class Vectors:
    """Row i of `matrix` is the vector of `doc_ids[i]`. Rows are sorted by doc_id, which breaks ties."""

    doc_ids: list[str]
    matrix: Matrix

    def nearest(self, vector: Vector, size: int) -> list[str]:
        """The ids of the `size` documents with the greatest dot product, best first; ties by doc_id."""
        scores = self.matrix @ vector  # (n,)
        if size < len(scores):
            border = np.partition(scores, len(scores) - size)[len(scores) - size]
            rows = np.flatnonzero(scores >= border)
        else:
            rows = np.arange(len(scores))
        return [self.doc_ids[row] for row in rows[np.argsort(-scores[rows], kind="stable")][:size]]


def open_vectors(folder: Path, commit: str, dim: int, read: Callable[[], Iterable[tuple[str, bytes]]]) -> Vectors:
    """The vectors of this commit: from the folder or, if it does not hold them, from `read`, and then written there.

    `read` gives each document's id and its vector as `dim` little-endian float32. If the folder cannot be written, the
    next start reads them again.
    """
    kept = folder / f"vectors-{commit}"
    try:
        return _read(kept)
    except (OSError, ValueError):
        vectors = _gather(read(), dim)
    try:
        _keep(vectors, kept)
    except OSError:
        return vectors
    for old in folder.glob("vectors-*"):
        if old != kept:
            shutil.rmtree(old, ignore_errors=True)
    return vectors


def _gather(rows: Iterable[tuple[str, bytes]], dim: int) -> Vectors:
    ordered = sorted(rows)
    matrix = np.frombuffer(b"".join(row for _, row in ordered), "<f4").reshape(-1, dim)
    return Vectors([doc_id for doc_id, _ in ordered], matrix)


def _read(kept: Path) -> Vectors:
    doc_ids = json.loads((kept / "ids.json").read_bytes())
    matrix = np.load(kept / "matrix.npy", mmap_mode="r" if doc_ids else None, allow_pickle=False)
    if len(matrix) != len(doc_ids):
        raise ValueError(f"{len(matrix)} rows, {len(doc_ids)} ids")
    return Vectors(doc_ids, matrix)


def _keep(vectors: Vectors, kept: Path) -> None:
    """Writes both files into a new folder, which then takes the place of `kept`."""
    with tempfile.TemporaryDirectory(prefix="vectors-", suffix=".part", dir=kept.parent) as beside:
        made = Path(beside) / "made"
        made.mkdir(mode=0o700)
        np.save(made / "matrix.npy", vectors.matrix)
        (made / "ids.json").write_text(json.dumps(vectors.doc_ids))
        replace_folder(made, kept)
