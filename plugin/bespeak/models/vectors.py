"""Keeps on disk the vectors of documents whose index has none, so that each text is encoded only once."""

from __future__ import annotations

import os
import sqlite3
import threading
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, TypeVar

import numpy as np

from bespeak.files import make_private_file, make_private_folder

if TYPE_CHECKING:
    from bespeak.records import Vector
from bespeak.sqlite_errors import primary_code, retry_while_busy

Value = TypeVar("Value")
Row: TypeAlias = tuple[int, bytes, bytes, bytes, int]
"""row_no, key, version, vector, checksum."""

LIMIT_ROWS = 1_000_000
"""About 1.7 GB with vectors of 384 numbers."""

REST_S = 5.0
"""How long the file is left alone after a fault, so that not every query pays for it."""

APPLICATION_ID = 0x42535056  # "BSPV"
VERSION = 1  # of the table
# `key` joins digests of space and doc_id: any text can be an id, and no id is stored. The newest row has the highest
# `row_no`, even if it replaces another row. `checksum` covers the rest of the row: nothing is synced, so a power cut
# may leave older and newer pages in one file, which SQLite cannot detect.
TABLE = """CREATE TABLE vectors (row_no INTEGER PRIMARY KEY, key BLOB NOT NULL UNIQUE ON CONFLICT REPLACE,
    version BLOB NOT NULL, vector BLOB NOT NULL, checksum INTEGER NOT NULL)"""
ASKED_AT_ONCE = 128
GET = f"""SELECT row_no, key, version, vector, checksum FROM vectors
    WHERE key IN ({", ".join("?" * ASKED_AT_ONCE)})"""
PUT = "INSERT INTO vectors (key, version, vector, checksum) VALUES (?, ?, ?, ?)"
EVICT = """DELETE FROM vectors WHERE row_no <= (SELECT max(row_no) FROM vectors) - ?
    AND row_no <= (SELECT min(row_no) FROM vectors) + ?"""
EVICTED_AT_ONCE = 5_000
PAGE_BYTES = 8192  # holds five rows of 384 numbers; SQLite's usual 4096 would hold two and waste a quarter
CACHED_KIB = 16_384


class VectorCache:
    """The latest `rows` vectors, in one file that any number of threads and processes can share.

    Vectors come back bit for bit, so pages ranked with kept vectors match pages ranked with new ones. No fault of the
    file is raised. While the file is locked, full, read-only or another program's, nothing is found or kept, and
    `fault` says why. A damaged file is moved to `<name>.damaged` and replaced by a new one.
    """

    def __init__(
        self,
        path: Path,
        rows: int = LIMIT_ROWS,
        *,
        timeout_s: float = 0.1,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.path, self._rows = path, rows
        # Two connections, so that readers never wait for writers.
        self._reader, self._writer = (_Connection(path, timeout_s, clock) for _ in range(2))

    @property
    def fault(self) -> str:
        """A sentence that says why nothing is found or kept; "" if there is no fault."""
        return self._reader.fault or self._writer.fault

    def get(self, space: str, doc_ids: Sequence[str]) -> dict[str, tuple[str, Vector]]:
        """doc_id -> (version, vector) of the documents that are kept; only vectors as long as the newest one."""
        start = _space_digest(space)
        by_key = {_key(start, doc_id): doc_id for doc_id in doc_ids}
        nothing: list[Row] = []
        rows = [row for row in self._reader.use(lambda c: _select(c, list(by_key)), nothing) if _is_sound(row)]
        n_bytes = len(max(rows)[3]) if rows else 0
        return {
            by_key[key]: (_text(version), np.frombuffer(vector, "<f4"))
            for _, key, version, vector, _ in rows
            if key in by_key and len(vector) == n_bytes
        }

    def put(self, space: str, rows: Mapping[str, tuple[str, Vector]]) -> None:
        """Keeps these vectors and replaces older ones. Vectors with values that are not finite are left out."""
        start = _space_digest(space)
        kept = [
            _row(_key(start, doc_id), _bytes(version), np.asarray(vector, "<f4").tobytes())
            for doc_id, (version, vector) in rows.items()
            if _is_vector(vector)
        ]
        if kept:
            self._writer.use(lambda connection: _insert(connection, kept, self._rows), None)

    def close(self) -> None:
        """Closes the file; from now on nothing is found or kept."""
        self._reader.close()
        self._writer.close()


class _Foreign(Exception):
    """The file is an intact database of another program."""


class _OldVersion(Exception):
    pass


class _Connection:
    """One connection to the file, for one thread at a time; it is opened again when the file was replaced."""

    def __init__(self, path: Path, timeout_s: float, clock: Callable[[], float]) -> None:
        self.fault = ""
        self._path, self._timeout_s, self._clock = path, timeout_s, clock
        self._lock = threading.Lock()
        self._connection: sqlite3.Connection | None = None
        self._file: tuple[int, int] | None = None
        self._resting_until = 0.0
        self._closed = False

    def use(self, act: Callable[[sqlite3.Connection], Value], otherwise: Value) -> Value:
        """The result of `act`, or `otherwise` if the file cannot be used."""
        with self._lock:
            if self._closed or self._clock() < self._resting_until:
                return otherwise
            try:
                found = act(self._opened())
            except (sqlite3.Error, OSError, _Foreign, _OldVersion) as error:
                self._give_up(error)
                return otherwise
            self.fault = ""
            return found

    def close(self) -> None:
        with self._lock:
            self._closed = True
            self._shut()

    def _opened(self) -> sqlite3.Connection:
        if self._connection is None or self._file != _identity(self._path):
            self._shut()
            make_private_folder(self._path.parent)
            self._connection = _connect(self._path, self._timeout_s)
            self._file = _identity(self._path)
        return self._connection

    def _shut(self) -> None:
        if self._connection is not None:
            self._connection.close()
        self._connection = None

    def _give_up(self, error: Exception) -> None:
        kind = _error_code(error)
        self.fault = _explain(self._path, kind)
        if kind not in ("SQLITE_NOTADB", "SQLITE_CORRUPT", "SQLITE_FORMAT", "version"):
            self._resting_until = self._clock() + REST_S
            return
        is_replaced = self._connection is not None and self._file != _identity(self._path)
        self._shut()
        if is_replaced:
            return  # another process saw the damage first, and has made a new file
        try:
            _move_away(self._path)
        except OSError:
            self._resting_until = self._clock() + REST_S


def _connect(path: Path, timeout_s: float) -> sqlite3.Connection:
    make_private_file(path)
    connection = sqlite3.connect(path, timeout=timeout_s, isolation_level=None, check_same_thread=False)
    try:
        connection.execute(f"PRAGMA page_size = {PAGE_BYTES}")
        is_new = _is_new(connection)
        retry_while_busy(lambda: connection.execute("PRAGMA journal_mode = WAL"), timeout_s)
        for pragma in ("synchronous = OFF", "temp_store = MEMORY", f"cache_size = -{CACHED_KIB}"):
            connection.execute(f"PRAGMA {pragma}")
        if is_new:
            _make(connection)
    except BaseException:
        connection.close()
        raise
    return connection


def _is_new(connection: sqlite3.Connection) -> bool:
    """Whether the file is empty. Raises _Foreign and _OldVersion, before anything is changed."""
    application_id, version = _number(connection, "application_id"), _number(connection, "user_version")
    if application_id != APPLICATION_ID:
        if connection.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
            raise _Foreign
        return True
    if version != VERSION:
        raise _OldVersion
    return False


def _make(connection: sqlite3.Connection) -> None:
    with _writing(connection):
        if _is_new(connection):  # unless another process was faster
            connection.execute(TABLE)
            connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
            connection.execute(f"PRAGMA user_version = {VERSION}")


def _select(connection: sqlite3.Connection, keys: list[bytes]) -> list[Row]:
    """The rows with these keys. Each statement gets the same number of keys, so that SQLite prepares it once."""
    found: list[Row] = []
    for i in range(0, len(keys), ASKED_AT_ONCE):
        some: list[bytes | None] = [*keys[i : i + ASKED_AT_ONCE]]
        some += [None] * (ASKED_AT_ONCE - len(some))
        found += connection.execute(GET, some)
    return found


def _insert(connection: sqlite3.Connection, rows: Iterable[tuple[object, ...]], limit: int) -> None:
    """Inserts the rows and evicts the oldest beyond `limit`; a lowered limit is reached step by step."""
    with _writing(connection):
        n_added = connection.executemany(PUT, rows).rowcount
        connection.execute(EVICT, (limit, 2 * n_added + EVICTED_AT_ONCE))


@contextmanager
def _writing(connection: sqlite3.Connection) -> Iterator[None]:
    connection.execute("BEGIN IMMEDIATE")
    try:
        yield
        connection.execute("COMMIT")
    except BaseException:
        with suppress(sqlite3.Error):  # the first error is the one to report
            if connection.in_transaction:
                connection.execute("ROLLBACK")
        raise


def _move_away(path: Path) -> None:
    """Moves a damaged file away. Its log goes first: beside a new file it would cause further damage."""
    for end in ("-wal", "-shm"):
        path.with_name(path.name + end).unlink(missing_ok=True)
    with suppress(FileNotFoundError):
        os.replace(path, path.with_name(path.name + ".damaged"))


def _identity(path: Path) -> tuple[int, int] | None:
    try:
        found = path.stat()
    except FileNotFoundError:
        return None
    return found.st_dev, found.st_ino


def _number(connection: sqlite3.Connection, pragma: str) -> int:
    (value,) = connection.execute(f"PRAGMA {pragma}").fetchone()
    return int(value)


def _error_code(error: Exception) -> str:
    """SQLite's primary error code, or what else kept the file from being used."""
    match error:
        case _Foreign():
            return "foreign"
        case _OldVersion():
            return "version"
        case OSError():
            return "SQLITE_CANTOPEN"
    return primary_code(error)


def _explain(path: Path, kind: str) -> str:
    match kind:
        case "SQLITE_BUSY" | "SQLITE_LOCKED":
            return f"{path} is locked by another process, so no vectors are kept: wait until it ends"
        case "SQLITE_READONLY" | "SQLITE_CANTOPEN" | "SQLITE_PERM" | "SQLITE_AUTH":
            return f"{path} cannot be written, so no vectors are kept: give a writable folder"
        case "SQLITE_FULL":
            return f"the disk of {path} is full, so no more vectors are kept: make room"
        case "SQLITE_NOTADB" | "SQLITE_CORRUPT" | "SQLITE_FORMAT":
            return f"{path} was damaged and is replaced by a new file: check the disk if that happens again"
        case "version":
            return f"{path} was made by another version of Bespeak and is replaced by a new file"
        case "foreign":
            return f"{path} is another program's database, so no vectors are kept: give another file"
        case "SQLITE_IOERR":
            return f"the disk of {path} reports an error, so no vectors are kept: check the disk"
        case _:
            return f"{path} cannot be used ({kind}), so no vectors are kept: move it away to start anew"


def _is_vector(vector: Vector) -> bool:
    return vector.ndim == 1 and vector.size > 0 and bool(np.isfinite(vector).all())


def _row(key: bytes, version: bytes, vector: bytes) -> tuple[Any, ...]:
    return key, version, vector, _checksum(key, version, vector)


def _is_sound(row: Row) -> bool:
    """Whether the row's checksum is right; in a damaged file any value may be of any type."""
    try:
        return _checksum(row[1], row[2], row[3]) == row[4]
    except TypeError:
        return False


def _checksum(key: bytes, version: bytes, vector: bytes) -> int:
    return zlib.crc32(vector, zlib.crc32(version, zlib.crc32(key)))


def _space_digest(space: str) -> bytes:
    return blake2b(_bytes(space), digest_size=8).digest()


def _key(start: bytes, doc_id: str) -> bytes:
    return start + blake2b(_bytes(doc_id), digest_size=16).digest()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(encoded: bytes) -> str:
    return encoded.decode("utf-8", "surrogatepass")
