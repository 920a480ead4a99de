"""What a run writes: a line for each query, and a second file with the rejected lines."""

from __future__ import annotations

import gzip
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import IO, Any, Literal, Protocol, TypeAlias

import zstandard
from filelock import Timeout

from bespeak.batch.queries import QueryLine, RejectedQuery
from bespeak.errors import InputError
from bespeak.files import locked, sync_folder
from bespeak.records import Profile, Rewrite

Packing: TypeAlias = Literal["", "gz", "zst"]


def output_row(line: QueryLine, profile: Profile, rewrite: Rewrite) -> dict[str, Any]:
    """The columns of the output. A term's `event_id` is the event's own, or its place in the line."""
    return {
        "id": line.line_no if line.query_id is None else line.query_id,
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


def rejected_lines(rejected: Iterable[RejectedQuery]) -> bytes:
    return json_lines({"line": line.line_no, "reason": line.reason, "text": line.text} for line in rejected)


def compress(content: bytes, packing: Packing) -> bytes:
    """A complete gzip member or Zstandard frame, so that a file cut between two of them can be read."""
    match packing:
        case "gz":
            return gzip.compress(content, 6, mtime=0)
        case "zst":
            return zstandard.ZstdCompressor().compress(content)
        case _:
            return content


def packing_of(name: str) -> Packing:
    return "gz" if name.endswith(".gz") else "zst" if name.endswith(".zst") else ""


@contextmanager
def sole_writer(path: Path) -> Iterator[None]:
    """Keeps other runs from writing the same output. Raises InputError if another run is writing it."""
    lock = path.with_name(path.name + ".lock")
    with ExitStack() as held:
        try:
            held.enter_context(locked(lock, wait_s=0))
        except Timeout as error:
            raise InputError(f"another process is writing {path}: wait until it ends, then try again") from error
        except OSError as error:
            raise _unwritten(lock, error) from error
        yield
        with suppress(OSError):  # the run is finished, so a process that takes the lock now has nothing to do
            lock.unlink()


class Output(Protocol):
    """Where results go. Raises InputError if it cannot be written."""

    def write(self, output: bytes, rejected: bytes) -> None: ...

    def sync(self) -> tuple[int, int]:
        """Makes everything that was written durable; gives the sizes of both files."""
        ...

    def close(self) -> None: ...


class FileOutput:
    """`OUT.part`, which is renamed to `OUT` at the end, and `OUT.rejected`."""

    def __init__(self, path: Path, output_bytes: int = 0, rejected_bytes: int = 0) -> None:
        """Opens both files and cuts them to these sizes: anything beyond was never committed."""
        self._files: list[_AppendedFile] = []
        for file, n_bytes in ((partial_path(path), output_bytes), (rejected_path(path), rejected_bytes)):
            self._files.append(_AppendedFile(file, n_bytes))

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
    """A stream, such as standard output; rejected lines go to `reject`."""

    def __init__(self, stream: IO[bytes], reject: Callable[[bytes], object]) -> None:
        self._stream, self._reject = stream, reject

    def write(self, output: bytes, rejected: bytes) -> None:
        try:
            self._stream.write(output)
            self._stream.flush()
        except BrokenPipeError:  # the reader has closed the pipe
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


class _AppendedFile:
    """A file that this process appends to."""

    def __init__(self, path: Path, n_bytes: int) -> None:
        self.path, self.n_bytes, self._synced = path, n_bytes, False
        try:
            self._opened = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        except OSError as error:
            raise _unwritten(path, error) from error
        try:
            self._start()
        except BaseException:
            self.close()
            raise

    def _start(self) -> None:
        try:
            if os.fstat(self._opened).st_size < self.n_bytes:
                raise InputError(
                    f"{self.path} is shorter than the run left it: delete it and the files beside it to start over"
                )
            os.ftruncate(self._opened, self.n_bytes)
            os.lseek(self._opened, self.n_bytes, os.SEEK_SET)
            sync_folder(self.path.parent)
        except OSError as error:
            raise _unwritten(self.path, error) from error

    def append(self, content: bytes) -> None:
        left = memoryview(content)
        try:
            while left:
                left = left[os.write(self._opened, left) :]
        except OSError as error:
            raise _unwritten(self.path, error) from error
        self.n_bytes += len(content)
        self._synced = self._synced and not content

    def sync(self) -> None:
        if self._synced:
            return
        try:
            os.fsync(self._opened)
        except OSError as error:
            raise _unwritten(self.path, error) from error
        self._synced = True

    def close(self) -> None:
        os.close(self._opened)


def _unwritten(path: Path, error: OSError) -> InputError:
    return InputError(
        f"cannot write {path} ({error.strerror}): free some space or check its permissions, then run the same command "
        "again to resume"
    )


def partial_path(path: Path) -> Path:
    """Where the output grows until it is complete."""
    return path.with_name(path.name + ".part")


def rejected_path(path: Path) -> Path:
    return path.with_name(path.name + ".rejected")


def give_name(path: Path) -> None:
    """Gives the complete and durable output its final name. Does nothing if it has it already."""
    with suppress(FileNotFoundError):
        os.replace(partial_path(path), path)
    sync_folder(path.parent)
