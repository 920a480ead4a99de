"""The vectors of an embedded index as one matrix on disk, searched by brute force.

The matrix is derived from a commit of the index and named after it: a folder that is there is whole, because it gets
its name only when its files are written; one that is missing or of another commit is made anew.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bespeak.records import Matrix, Vector


@dataclass(frozen=True, slots=True)
class Vectors:
    """Row i of `matrix` is the vector of `doc_ids[i]`; rows are ordered by doc_id, so that ties fall that way."""

    doc_ids: list[str]
    matrix: Matrix

    def nearest(self, vector: Vector, size: int) -> list[str]:
        """The `size` documents of greatest dot product, best first; ties by doc_id."""
        scores = self.matrix @ vector  # (n,)
        if size < len(scores):
            border = np.partition(scores, len(scores) - size)[len(scores) - size]
            rows = np.flatnonzero(scores >= border)
        else:
            rows = np.arange(len(scores))
        return [self.doc_ids[row] for row in rows[np.argsort(-scores[rows], kind="stable")][:size]]


def open_vectors(folder: Path, commit: str, dim: int, read: Callable[[], Iterable[tuple[str, bytes]]]) -> Vectors:
    """The vectors of this commit, from the folder or, where they are not there, from `read`; then they are kept.

    `read` gives each document's id and its vector as little-endian float32. A folder that cannot be written costs
    time at the next start, nothing else.
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
    """Writes both files beside and gives them their name in one step."""
    written = Path(tempfile.mkdtemp(prefix="vectors-", suffix=".part", dir=kept.parent))
    try:
        np.save(written / "matrix.npy", vectors.matrix)
        (written / "ids.json").write_text(json.dumps(vectors.doc_ids))
        shutil.rmtree(kept, ignore_errors=True)  # one that is damaged
        os.replace(written, kept)
    except OSError:
        shutil.rmtree(written, ignore_errors=True)
        raise
