"""What a run writes: a line for each query, and beside it the lines that were rejected."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeAlias

import zstandard

from bespeak.batch.journal import sync_folder
from bespeak.batch.queries import Asked, Rejected
from bespeak.errors import InputError
from bespeak.records import Profile, Rewrite

try:
    import fcntl
except ImportError:  # Windows: two runs on one output are not kept apart there
    fcntl = None  # type: ignore[assignment]

Packing: TypeAlias = Literal["", "gz", "zst"]


def output_row(asked: Asked, profile: Profile, rewrite: Rewrite) -> dict[str, Any]:
    """The columns of the output. A term's `event_id` is that of the event, or its place in the line."""
    return {
        "id": asked.line_no if asked.query_id is None else asked.query_id,
        "query": rewrite.query,
        "rewrite": rewrite.text,
        "terms": [{"text": t.text, "source": t.source, "event_id": t.event_id} for t in rewrite.terms],
        "status": rewrite.status,
        "reason": rewrite.reason,
        "model": rewrite.model,
        "profile": profile.version,
    }


def json_lines(rows: Iterable[dict[str, Any]]) -> bytes:
    return b"".join(json.dumps(row, ensure_ascii=False, separators=(",", ":")).encode() + b"\n" for row in rows)


def rejected_lines(rejected: Iterable[Rejected]) -> bytes:
    return json_lines({"line": line.line_no, "reason": line.reason, "text": line.text} for line in rejected)


def pack(content: bytes, packing: Packing) -> bytes:
    """A gzip member or Zstandard frame by itself, so that a file cut between two of them is whole."""
    match packing:
        case "gz":
            return gzip.compress(content, 6, mtime=0)
        case "zst":
            return zstandard.ZstdCompressor().compress(content)
        case _:
            return content


def packing_of(name: str) -> Packing:
    return "gz" if name.endswith(".gz") else "zst" if name.endswith(".zst") else ""


class Output(Protocol):
    """Raises InputError where it cannot be written."""

    def write(self, output: bytes, rejected: bytes) -> None: ...

    def sync(self) -> tuple[int, int]:
        """Makes all that was written durable; the sizes of both files."""
        ...

    def close(self) -> None: ...


class FileOutput:
    """`OUT.part`, which gets its name at the end, and `OUT.rejected`."""

    def __init__(self, path: Path, output_bytes: int = 0, rejected_bytes: int = 0) -> None:
        """Opens both at these sizes; what is beyond was never committed."""
        self.path, self.part, self.rejected = path, part_of(path), rejected_of(path)
        self._files: list[_Growing] = []
        for file, n_bytes in ((self.part, output_bytes), (self.rejected, rejected_bytes)):
            self._files.append(_Growing(file, n_bytes))

    def write(self, output: bytes, rejected: bytes) -> None:
        for file, content in zip(self._files, (output, rejected), strict=True):
            file.append(content)

    def sync(self) -> tuple[int, int]:
        for file in self._files:
            file.sync()
        return self._files[0].n_bytes, self._files[1].n_bytes

    def close(self) -> None:
        for file in self._files:
            file.close()


class StreamOutput:
    """A stream that somebody reads; rejected lines go to `reject`."""

    def __init__(self, stream: IO[bytes], reject: Callable[[bytes], object]) -> None:
        self._stream, self._reject = stream, reject

    def write(self, output: bytes, rejected: bytes) -> None:
        try:
            self._stream.write(output)
            self._stream.flush()
        except BrokenPipeError:  # who read it has enough
            raise
        except OSError as error:
            raise InputError(
                f"cannot write to standard output ({error.strerror}): give a file with --output"
            ) from error
        if rejected:
            self._reject(rejected)

    def sync(self) -> tuple[int, int]:
        return 0, 0

    def close(self) -> None:
        pass


class _Growing:
    """A file that this process alone appends to."""

    def __init__(self, path: Path, n_bytes: int) -> None:
        self.path, self.n_bytes, self._synced = path, n_bytes, False
        try:
            self._opened = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        except OSError as error:
            raise self._unwritten(error) from error
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        try:
            if fcntl:
                fcntl.flock(self._opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.fstat(self._opened).st_size < self.n_bytes:
                raise InputError(
                    f"{self.path} is shorter than it was left: delete it and the files beside it to start anew"
                )
            os.ftruncate(self._opened, self.n_bytes)
            os.lseek(self._opened, self.n_bytes, os.SEEK_SET)
            sync_folder(self.path.parent)
        except BlockingIOError as error:
            raise InputError(f"another process is writing {self.path}: let it end, then try again") from error
        except OSError as error:
            raise self._unwritten(error) from error

    def append(self, content: bytes) -> None:
        left = memoryview(content)
        try:
            while left:
                left = left[os.write(self._opened, left) :]
        except OSError as error:
            raise self._unwritten(error) from error
        self.n_bytes += len(content)
        self._synced = self._synced and not content

    def sync(self) -> None:
        if self._synced:
            return
        try:
            os.fsync(self._opened)
        except OSError as error:
            raise self._unwritten(error) from error
        self._synced = True

    def close(self) -> None:
        os.close(self._opened)

    def _unwritten(self, error: OSError) -> InputError:
        return InputError(
            f"cannot write {self.path} ({error.strerror}): see to it that it can be, then run the same command again; "
            "it goes on"
        )


def part_of(path: Path) -> Path:
    """Where the output grows."""
    return path.with_name(path.name + ".part")


def rejected_of(path: Path) -> Path:
    return path.with_name(path.name + ".rejected")


def give_name(path: Path) -> None:
    """The part is whole and durable, and gets the output's name; where it has it already, nothing is done."""
    with suppress(FileNotFoundError):
        os.replace(part_of(path), path)
    sync_folder(path.parent)
