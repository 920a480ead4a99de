"""Keeps vectors and rewrites on disk between measurements. File names change with everything the content depends on."""

from __future__ import annotations

import hashlib
import json
import re
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, Literal

import numpy as np

from bespeak.errors import StoreError
from bespeak.files import replacing
from bespeak.records import Matrix, Profile, Rewrite, Term, UserKey, Vector
from bespeak.rewriting.rewriter import LASTING
from bespeak.statuses import RewriteStatus

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder
    from bespeak.rewriting.rewriter import Rewriter

PROBE = "Which hotel near the station has quiet rooms?"
BATCH = 64
"""Texts encoded between two reports of progress."""
Report = Callable[[int, int], object]
"""Called with (done, total) during something slow."""


def silent(_done: int, _total: int) -> None:
    pass


class KeptEncoder:
    """An encoder that encodes no text twice.

    Its file is named by a digest of a probe's vectors, so that it depends on the weights and not on the encoder's name.
    """

    def __init__(self, encoder: Encoder, folder: Path, label: str, report: Report = silent) -> None:
        self.name, self.dim = encoder.name, encoder.dim
        self._encoder, self._report = encoder, report
        self._path = folder / f"vectors-{label}-{probe(encoder)}.npz"
        self._vectors: dict[str, Vector] = _read_vectors(self._path, self.dim)

    def encode(self, texts: Sequence[str], kind: Literal["query", "document"] = "document") -> Matrix:
        keys = [hashlib.sha256(f"{kind}\0{text}".encode()).hexdigest()[:32] for text in texts]
        missing = {key: text for key, text in zip(keys, texts, strict=True) if key not in self._vectors}
        names = list(missing)
        for start in range(0, len(names), BATCH):
            batch = names[start : start + BATCH]
            rows = self._encoder.encode([missing[key] for key in batch], kind=kind)
            self._vectors.update(zip(batch, rows, strict=True))
            if len(names) > BATCH:
                self._report(start + len(batch), len(names))
        if not keys:
            return np.zeros((0, self.dim), np.float32)
        return np.stack([self._vectors[key] for key in keys])

    def save(self) -> None:
        """Writes all vectors; replaces what another process wrote meanwhile. Raises StoreError."""
        keys = sorted(self._vectors)
        rows = np.stack([self._vectors[key] for key in keys]) if keys else np.zeros((0, self.dim), np.float32)
        with _replacing(self._path) as file:
            np.savez(file, keys=np.array(keys, dtype="U32"), rows=rows)


def probe(encoder: Encoder) -> str:
    """A digest of the encoder's vectors of one text, as a query and as a document."""
    rows = (encoder.encode([PROBE], kind=kind) for kind in ("query", "document"))
    return hashlib.sha256(b"".join(row.tobytes() for row in rows)).hexdigest()[:16]


def _read_vectors(path: Path, dim: int) -> dict[str, Vector]:
    """Empty if the file is missing or damaged: the vectors are then computed again."""
    try:
        with path.open("rb") as file, np.load(file) as kept:
            keys, rows = kept["keys"].tolist(), kept["rows"]
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return {}
    return dict(zip(keys, rows, strict=True)) if rows.shape == (len(keys), dim) else {}


class KeptRewriter:
    """A rewriter that rewrites no query of a profile twice.

    Only finished rewrites are kept, so that a slow machine does not change a measure.
    """

    def __init__(self, rewriter: Rewriter, folder: Path, label: str) -> None:
        self.name, self.version = rewriter.name, rewriter.version
        self._rewriter = rewriter
        self._path = folder / f"rewrites-{label}-{file_name(self.name)}-{file_name(self.version)}.json"
        self._rewrites = _read_rewrites(self._path)

    def rewrite(self, query: str, profile: Profile, budget_ms: float | None = None) -> Rewrite:
        key = hashlib.sha256(f"{profile.version}\0{query}".encode()).hexdigest()[:32]
        if key in self._rewrites:
            return self._rewrites[key]
        made = self._rewriter.rewrite(query, profile, budget_ms)
        if made.status in (*LASTING, RewriteStatus.CACHED):
            status = RewriteStatus.FULL if made.status == RewriteStatus.CACHED else made.status
            self._rewrites[key] = replace(made, status=status)
        return made

    def warm(self, profile: Profile) -> None:
        self._rewriter.warm(profile)

    def forget(self, user: UserKey) -> None:
        self._rewriter.forget(user)

    def save(self) -> None:
        rows = {key: asdict(rewrite) for key, rewrite in sorted(self._rewrites.items())}
        with _replacing(self._path) as file:
            file.write(json.dumps(rows, ensure_ascii=False, indent=0).encode())


@contextmanager
def _replacing(path: Path) -> Iterator[IO[bytes]]:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as file:
            yield file
    except OSError as error:
        raise StoreError(f"cannot write {path} ({error.strerror}): give a writable --cache-dir") from error


def _read_rewrites(path: Path) -> dict[str, Rewrite]:
    try:
        rows: Mapping[str, Any] = json.loads(path.read_text("utf-8"))
        return {
            key: Rewrite(**(row | {"terms": tuple(Term(**term) for term in row["terms"])})) for key, row in rows.items()
        }
    except (OSError, ValueError, TypeError, KeyError):
        return {}


def file_name(text: str) -> str:
    """A file name that every file system accepts; different texts get different names."""
    plain = re.sub(r"[^A-Za-z0-9.]+", "-", text)[:40].strip("-.")
    return plain if plain == text else f"{plain}-{hashlib.sha256(text.encode()).hexdigest()[:8]}"
