"""Files of documents into an index: read line by line, embedded, loaded in batches, and gone on with after any kill."""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import json
import os
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple

from bespeak.document import document_text
from bespeak.engines import VECTOR_FIELD, Engine, refuse_id
from bespeak.errors import IndexMissing, InputError
from bespeak.records import Document

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder

ID_FIELDS = ("_id", "id", "doc_id")
MAX_LINE_BYTES = 10_000_000
BATCH = 128
"""Documents between two checkpoints; with an encoder a few seconds' work."""

PLAIN_BATCH = 2_000
"""The same without an encoder."""

SAMPLE = 200
"""Documents that are looked at to find the text fields."""

REJECTIONS_KEPT = 20


class Row(NamedTuple):
    """One line of a file (a CSV row by its last line): a document, or why there is none."""

    line_no: int  # from 1
    document: Document | None
    reason: str = ""


@dataclass(frozen=True)
class Loaded:
    """How far a load came; what a checkpoint holds."""

    lines: int = 0  # read so far
    loaded: int = 0
    rejected: int = 0
    rejections: tuple[tuple[int, str], ...] = ()  # the first ones: line and reason
    fields: tuple[str, ...] = ()
    proof: tuple[str, ...] = ()  # the first and the last doc_id loaded: the index must still hold them
    resumed_at: int = 0  # the line after which this run went on


def read_documents(file: Path | IO[bytes], id_field: str | None = None, after: int = 0) -> Iterator[Row]:
    """Documents of JSON lines, or of a file named .csv or .tsv with a header row; plain or gzip.

    Lines up to `after` are skipped. A line that cannot be taken is given with its reason. Raises InputError for a
    file that cannot be read on.
    """
    name = file.name.lower().removesuffix(".gz") if isinstance(file, Path) else ""
    read = _read_csv if name.endswith((".csv", ".tsv")) else _read_json_lines
    try:
        with ExitStack() as opened:
            stream = opened.enter_context(file.open("rb")) if isinstance(file, Path) else file
            yield from read(_unpacked(stream), id_field, after, "\t" if name.endswith(".tsv") else ",")
    except (OSError, EOFError, zlib.error) as error:
        raise InputError(f"cannot read {_called(file)} to its end: {error}") from error


def read_mappings(documents: Iterable[Mapping[str, Any]], id_field: str | None = None) -> Iterator[Row]:
    """Documents given as dicts, each counted as a line; one that is not JSON is given with its reason."""
    for number, source in enumerate(documents, 1):
        try:
            copy = json.loads(json.dumps(dict(source), allow_nan=False))
        except (TypeError, ValueError, RecursionError) as error:
            yield Row(number, None, f"not JSON ({error})")
            continue
        try:
            yield Row(number, _document(copy, id_field))
        except ValueError as error:
            yield Row(number, None, str(error))


def _unpacked(stream: IO[bytes]) -> IO[bytes]:
    buffered: Any = stream if hasattr(stream, "peek") else io.BufferedReader(stream)
    unpacked: Any = buffered
    if buffered.peek(2)[:2] == b"\x1f\x8b":
        unpacked = gzip.GzipFile(fileobj=buffered, mode="rb")
    return unpacked  # type: ignore[no-any-return]


def _lines(stream: IO[bytes]) -> Iterator[bytes | None]:
    """Lines without their end; None for one that is longer than allowed."""
    first = True
    while line := stream.readline(MAX_LINE_BYTES + 1):
        if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
            while (rest := stream.readline(MAX_LINE_BYTES)) and not rest.endswith(b"\n"):
                pass
            yield None
        else:
            yield (line.removeprefix(b"\xef\xbb\xbf") if first else line).rstrip(b"\r\n")
        first = False


def _read_json_lines(stream: IO[bytes], id_field: str | None, after: int, _: str) -> Iterator[Row]:
    for line_no, line in enumerate(_lines(stream), 1):
        if line_no <= after or (line is not None and not line.strip()):
            continue
        try:
            yield Row(line_no, _document(_parse(line), id_field))
        except ValueError as error:
            yield Row(line_no, None, str(error))


def _parse(line: bytes | None) -> dict[str, Any]:
    """The object that a line holds. Raises ValueError with a reason."""
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
    too_long = "\udcff"  # what cannot be decoded stands as a lone surrogate, and so does a line that is too long
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
            yield Row(reader.line_num, _document(_named(header, cells), id_field))
        except ValueError as error:
            yield Row(reader.line_num, None, str(error))


def _named(header: Sequence[str], cells: Sequence[str]) -> dict[str, Any]:
    if any("\udc80" <= character <= "\udcff" for cell in cells for character in cell):
        raise ValueError(f"not UTF-8, or a line longer than {MAX_LINE_BYTES} bytes")
    if len(cells) > len(header):
        raise ValueError(f"{len(cells)} cells, but the header names {len(header)}")
    return {name: cell for name, cell in zip(header, cells, strict=False) if cell}


def _document(source: dict[str, Any], id_field: str | None) -> Document:
    """The document of an object; without an id it gets a digest of its content. Raises ValueError with a reason."""
    try:
        content = json.dumps(source, ensure_ascii=False, sort_keys=True).encode()
    except UnicodeEncodeError:
        raise ValueError("holds half of a surrogate pair") from None
    if id_field and source.get(id_field) is None:
        raise ValueError(f"no field {id_field!r}")
    given = next(
        (source[name] for name in ([id_field] if id_field else ID_FIELDS) if source.get(name) is not None), None
    )
    if isinstance(given, bool) or not isinstance(given, str | int | None):
        raise ValueError("its id is neither text nor a whole number")
    doc_id = hashlib.sha256(content).hexdigest()[:32] if given is None else str(given)
    if reason := refuse_id(doc_id):
        raise ValueError(reason)
    return Document(doc_id, {name: value for name, value in source.items() if name not in ("_id", VECTOR_FIELD)})


def find_fields(rows: Iterable[Row]) -> tuple[str, ...]:
    """The fields that hold running text: title and text first, then others where some value has a space in it."""
    sources = [row.document.source for row in rows if row.document is not None]
    names = dict.fromkeys(name for source in sources for name, value in source.items() if isinstance(value, str))
    texts = [name for name in names if any(" " in str(source.get(name) or "").strip() for source in sources)]
    return tuple(name for name in ("title", "text") if name in names) + tuple(
        name for name in texts if name not in ("title", "text", *ID_FIELDS)
    )


class Checkpoints:
    """One small file per load that was begun and not ended, replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str) -> Loaded:
        try:
            found = json.loads((self.folder / f"{key}.json").read_bytes())
            rejections = tuple((int(line), str(reason)) for line, reason in found.pop("rejections"))
            fields, proof = tuple(found.pop("fields")), tuple(found.pop("proof"))
            return Loaded(**found, rejections=rejections, fields=fields, proof=proof)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return Loaded()

    def write(self, key: str, done: Loaded) -> None:
        """Raises InputError where the folder cannot be written."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            handle, written = tempfile.mkstemp(dir=self.folder, suffix=".part")
            with open(handle, "w", encoding="utf-8") as file:
                json.dump(asdict(done), file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(written, self.folder / f"{key}.json")
        except OSError as error:
            raise InputError(f"cannot note in {self.folder} how far the load is: {error.strerror}") from error

    def drop(self, key: str) -> None:
        with suppress(OSError):
            (self.folder / f"{key}.json").unlink()


def load(
    engine: Engine,
    index: str,
    file: Path | IO[bytes] | Iterable[Mapping[str, Any]],
    encoder: Encoder | None,
    fields: Sequence[str] = (),
    id_field: str | None = None,
    checkpoints: Checkpoints | None = None,
    progress: Callable[[Loaded], None] | None = None,
) -> Loaded:
    """Loads a file, or dicts, into an index, which is made where it is not there; documents are replaced by id.

    Without `fields` they are the index's, or those of the file that hold running text. A load of a file (not of a
    stream) that was cut off goes on after its last durable batch. Raises InputError, UsageError, EngineError.
    """
    key = _key(engine, index, file, encoder, fields, id_field) if checkpoints and isinstance(file, Path) else ""
    done = checkpoints.read(key) if checkpoints and key else Loaded()
    if done.lines and not _still_there(engine, index, done):
        done = Loaded()
    given: Any = file
    is_file = isinstance(file, Path) or hasattr(file, "readline")
    rows = read_documents(given, id_field, done.lines) if is_file else read_mappings(given, id_field)
    fields = fields or done.fields or _fields_of(engine, index)
    if not fields:
        sample = _sample(rows)
        fields, rows = find_fields(sample), chain(sample, rows)
    if not fields:
        rejections = [(row.line_no, row.reason or "no field that holds text") for row in rows]
        return Loaded(rejected=len(rejections), rejections=tuple(rejections[:REJECTIONS_KEPT]))
    engine.create(index, fields, encoder.dim if encoder else None, encoder.name if encoder else None)
    done = replace(done, fields=tuple(fields), resumed_at=done.lines)
    while batch := list(islice(rows, BATCH if encoder else PLAIN_BATCH)):
        done = _load_batch(engine, index, batch, encoder, done)
        if checkpoints and key:
            checkpoints.write(key, done)
        if progress:
            progress(done)
    engine.refresh(index)
    if checkpoints and key:
        checkpoints.drop(key)
    return done


def _load_batch(engine: Engine, index: str, batch: Sequence[Row], encoder: Encoder | None, done: Loaded) -> Loaded:
    """Embeds and loads the documents of a batch; how far the load then is."""
    rejected = {row.line_no: row.reason for row in batch if row.document is None}
    taken: dict[int, Document] = {}
    texts: list[str] = []
    for row in batch:
        if row.document is None:
            continue
        if text := document_text(row.document.source, done.fields):
            taken[row.line_no] = row.document
            texts.append(text)
        else:
            rejected[row.line_no] = f"no text in {', '.join(done.fields)}"
    documents = list(taken.values())
    if encoder and texts:
        vectors = encoder.encode(texts, "document")
        documents = [replace(document, vector=vector) for document, vector in zip(documents, vectors, strict=True)]
    reasons = {refused.doc_id: refused.reason for refused in engine.load(index, documents)} if documents else {}
    rejected |= {line: reasons[document.doc_id] for line, document in taken.items() if document.doc_id in reasons}
    kept = [document.doc_id for document in documents if document.doc_id not in reasons]
    return replace(
        done,
        lines=batch[-1].line_no,
        loaded=done.loaded + len(kept),
        rejected=done.rejected + len(rejected),
        rejections=(done.rejections + tuple(sorted(rejected.items())))[:REJECTIONS_KEPT],
        proof=(*(done.proof[:1] or kept[:1]), *(kept[-1:] or done.proof[1:])),
    )


def _sample(rows: Iterator[Row]) -> list[Row]:
    """The rows up to the first `SAMPLE` documents."""
    sample, n_documents = [], 0
    for row in rows:
        sample.append(row)
        n_documents += row.document is not None
        if n_documents == SAMPLE:
            break
    return sample


def _fields_of(engine: Engine, index: str) -> tuple[str, ...]:
    try:
        return engine.describe(index).fields
    except IndexMissing:
        return ()


def _still_there(engine: Engine, index: str, done: Loaded) -> bool:
    """Whether the index that a checkpoint speaks of is there: it might have been dropped, or made anew."""
    try:
        engine.refresh(index)
        return len(engine.fetch(index, list(dict.fromkeys(done.proof)))) == len(set(done.proof))
    except IndexMissing:
        return False


def _key(
    engine: Engine, index: str, file: Path, encoder: Encoder | None, fields: Sequence[str], id_field: str | None
) -> str:
    """What makes two loads the same load: engine, index, how documents are read, and the file's content."""
    try:
        with file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {file}: {error.strerror}") from error
    name = file.name.lower().removesuffix(".gz").rpartition(".")[2]
    parts = [
        engine.name,
        engine.location,
        index,
        encoder.name if encoder else "",
        *fields,
        id_field or "",
        name,
        content,
    ]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]


def _called(file: Path | IO[bytes]) -> str:
    return str(file) if isinstance(file, Path) else "standard input"
