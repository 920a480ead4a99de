"""The output as Parquet, made of its JSON lines once they are whole: a Parquet file cannot be gone on with."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from bespeak.batch.journal import sync_folder
from bespeak.errors import InputError

GROUP_ROWS = 10_000


def check_parquet() -> None:
    """Raises InputError where it cannot be written here."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise InputError("Parquet needs pyarrow: pip install 'bespeak[parquet]'") from error


def make_parquet(lines: Path, path: Path) -> None:
    """Writes `path` in place of `lines`; where a run before has done so, `lines` alone is taken away."""
    made = path.with_name(path.name + ".made")
    try:
        if not lines.exists():
            return
        with lines.open("rb") as file:
            _write(file, made)
        with made.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(made, path)
        sync_folder(path.parent)
        lines.unlink()
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror or error}): make room, then run the same command again; it goes on"
        ) from error


def _write(file: IO[bytes], path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    text = pa.string()
    terms = pa.list_(pa.struct([("text", text), ("source", text), ("event_id", text)]))
    names = ("id", "query", "rewrite", "terms", "status", "reason", "model", "profile")
    schema = pa.schema([(name, terms if name == "terms" else text) for name in names])
    with pq.ParquetWriter(path, schema, compression="zstd") as writer:
        for rows in _groups(file):
            writer.write_table(pa.Table.from_pylist(rows, schema=schema))


def _groups(file: IO[bytes]) -> Iterator[list[dict[str, Any]]]:
    """`id` is text here, for a column has one type."""
    while rows := [json.loads(line) for line in islice(file, GROUP_ROWS)]:
        yield [{**row, "id": str(row["id"])} for row in rows]
