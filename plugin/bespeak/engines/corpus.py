"""Files of documents, read line by line: JSON lines, CSV or TSV, plain or gzip."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from bespeak.engines import VECTOR_FIELD, refuse_id
from bespeak.errors import InputError
from bespeak.records import Document

ID_FIELDS = ("_id", "id", "doc_id")
MAX_LINE_BYTES = 10_000_000


@dataclass(frozen=True, slots=True)
class Corpus:
    """A file or stream of documents, or the documents as dicts, and how to read them."""

    file: Path | IO[bytes] | Iterable[Mapping[str, Any]]
    fields: tuple[str, ...] = ()  # the searchable ones; empty: those that hold running text
    id_field: str | None = None  # None: the first of `ID_FIELDS` that a document has

    @property
    def suffix(self) -> str:
        """The kind of file by its name, such as ".csv"; "" for a stream."""
        return Path(self.file.name.lower().removesuffix(".gz")).suffix if isinstance(self.file, Path) else ""

    def __str__(self) -> str:
        return str(self.file) if isinstance(self.file, Path) else "standard input"


class Row(NamedTuple):
    """One line of a file (a CSV row by its last line): a document, or why there is none."""

    line_no: int  # from 1
    document: Document | None
    reason: str = ""


def read_documents(corpus: Corpus, after: int = 0) -> Iterator[Row]:
    """The documents of a file, from the line after line `after` on.

    A line that holds no valid document comes with the reason; of dicts, each counts as a line. Raises InputError if the
    file cannot be read to its end.
    """
    given: Any = corpus.file
    if not isinstance(given, Path) and not hasattr(given, "readline"):
        yield from _read_dicts(given, corpus.id_field)
        return
    try:
        with ExitStack() as opened:
            stream = opened.enter_context(given.open("rb")) if isinstance(given, Path) else given
            if corpus.suffix in (".csv", ".tsv"):
                delimiter = "\t" if corpus.suffix == ".tsv" else ","
                yield from _read_csv(_unpacked(stream), corpus.id_field, after, delimiter)
            else:
                yield from _read_json_lines(_unpacked(stream), corpus.id_field, after)
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {corpus} to its end: {error}") from error


def _read_dicts(documents: Iterable[Mapping[str, Any]], id_field: str | None) -> Iterator[Row]:
    for number, source in enumerate(documents, 1):
        if not isinstance(source, Mapping):
            yield Row(number, None, "not a JSON object")
            continue
        try:
            copy = json.loads(json.dumps(dict(source), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            yield Row(number, None, f"not JSON ({error})")
            continue
        try:
            yield Row(number, _document(copy, id_field))
        except ValueError as error:
            yield Row(number, None, str(error))


def find_fields(rows: Iterable[Row]) -> tuple[str, ...]:
    """The fields that hold running text: title and text first, then any other with a space in some value."""
    sources = [row.document.source for row in rows if row.document is not None]
    names = dict.fromkeys(name for source in sources for name, value in source.items() if isinstance(value, str))
    texts = [name for name in names if any(" " in str(source.get(name) or "").strip() for source in sources)]
    return tuple(name for name in ("title", "text") if name in names) + tuple(
        name for name in texts if name not in ("title", "text", *ID_FIELDS)
    )


def _unpacked(stream: IO[bytes]) -> IO[bytes]:
    """The stream, decompressed if its first bytes are those of a gzip file."""
    buffered: Any = stream if hasattr(stream, "peek") else io.BufferedReader(stream)
    unpacked: Any = buffered
    if buffered.peek(2)[:2] == b"\x1f\x8b":
        unpacked = gzip.GzipFile(fileobj=buffered, mode="rb")
    return unpacked  # type: ignore[no-any-return]


def _lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Lines without their end; None for a line that is too long."""
    first = True
    while line := stream.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield None
        else:
            yield (line.removeprefix(b"\xef\xbb\xbf") if first else line).rstrip(b"\r\n")
        first = False


def _read_json_lines(stream: IO[bytes], id_field: str | None, after: int) -> Iterator[Row]:
    for line_no, line in enumerate(_lines(stream), 1):
        if line_no <= after or (line is not None and not line.strip()):
            continue
        try:
            yield Row(line_no, _document(_parse(line), id_field))
        except ValueError as error:
            yield Row(line_no, None, str(error))


def _parse(line: bytes | None) -> dict[str, Any]:
    """The JSON object in a line. Raises ValueError with the reason if there is none."""
    if line is None:
        raise ValueError(f"longer than {MAX_LINE_BYTES} bytes")
    try:
        found = json.loads(line.decode("utf-8"), parse_constant=_no_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"not UTF-8 (byte {error.start + 1})") from None
    except json.JSONDecodeError as error:
        raise ValueError(f"not JSON ({error.msg} at character {error.colno})") from None
    except RecursionError:
        raise ValueError("nested too deeply") from None
    if not isinstance(found, dict):
        raise ValueError("not a JSON object")
    return found


def _no_constant(name: str) -> Any:
    raise ValueError(f"not JSON ({name} is no number)")


def _read_csv(stream: IO[bytes], id_field: str | None, after: int, delimiter: str) -> Iterator[Row]:
    too_long = "\udcff"  # a lone surrogate, as `surrogateescape` makes of bytes that are not UTF-8
    decoded = (too_long if line is None else line.decode("utf-8", "surrogateescape") + "\n" for line in _lines(stream))
    reader = csv.reader(decoded, delimiter=delimiter)
    header = next(reader, None)
    if header is None:
        return
    if len(set(header)) < len(header) or not all(header):
        raise InputError("the first row of a CSV file must name its columns, each once")
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            yield Row(reader.line_num, None, f"not CSV ({error})")
            continue
        if reader.line_num <= after or not cells:
            continue
        try:
            yield Row(reader.line_num, _document(_by_column(header, cells), id_field))
        except ValueError as error:
            yield Row(reader.line_num, None, str(error))


def _by_column(header: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    """Column -> cell, without empty cells. Raises ValueError with the reason for a row that does not fit."""
    if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell):
        raise ValueError(f"not UTF-8, or a line longer than {MAX_LINE_BYTES} bytes")
    if len(cells) > len(header):
        raise ValueError(f"{len(cells)} cells, but the header names {len(header)}")
    return {name: cell for name, cell in zip(header, cells, strict=False) if cell}


def _document(source: dict[str, Any], id_field: str | None) -> Document:
    """The document in an object; its id is a digest of its content if it has none. Raises ValueError with a reason."""
    try:
        content = json.dumps(source, ensure_ascii=False, sort_keys=True).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair") from None
    if id_field and source.get(id_field) is None:
        raise ValueError(f"no field {id_field!r}")
    names = [id_field] if id_field else ID_FIELDS
    given = next((source[name] for name in names if source.get(name) is not None), None)
    if isinstance(given, bool) or not isinstance(given, str | int | None):
        raise ValueError("its id is neither text nor a whole number")
    doc_id = hashlib.sha256(content).hexdigest()[:32] if given is None else str(given)
    if reason := refuse_id(doc_id):
        raise ValueError(reason)
    return Document(doc_id, {name: value for name, value in source.items() if name not in ("_id", VECTOR_FIELD)})
