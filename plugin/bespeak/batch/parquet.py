"""Converts the complete JSON lines to Parquet at the end of a run: a Parquet file cannot be appended to later."""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import IO, Any

from bespeak.errors import InputError
from bespeak.files import rename_durably

GROUP_ROWS = 10_000


def check_parquet() -> None:
    """Raises InputError if Parquet cannot be written here."""
    try:
        import pyarrow.parquet  # noqa: F401
    except ImportError as error:
        raise InputError("Parquet needs pyarrow: pip install 'bespeak[parquet]'") from error


def make_parquet(lines: Path, path: Path) -> None:
    """Converts the file `lines` to `path` and deletes it. If it is gone, an earlier run did so already."""
    made = path.with_name(path.name + ".made")  # a name of its own, so that a killed run leaves one draft at most
    try:
        if not lines.exists():
            return
        with lines.open("rb") as file:
            _write(file, made)
        rename_durably(made, path)
        lines.unlink()
    except OSError as error:
        raise InputError(
            f"cannot write {path} ({error.strerror or error}): free some space, then run the same command again to "
            "resume"
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
    """Rows in groups. `id` becomes text, since a column has one type."""
    while rows := [json.loads(line) for line in islice(file, GROUP_ROWS)]:
        yield [{**row, "id": str(row["id"])} for row in rows]
