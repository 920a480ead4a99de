"""Files that are written whole or not at all, and locks between processes."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO, Any


@contextmanager
def replacing(path: Path, mode: str = "wb", durable: bool = False, **options: Any) -> Iterator[IO[Any]]:
    """A file that replaces `path` when the block ends. If the block raises, `path` stays as it was.

    `mode` and `options` are those of `open`. `durable` also waits until content and name are on the disk. Only its
    owner can read and write the new file. Raises OSError.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".part")
    draft = Path(name)
    try:
        with open(handle, mode, **options) as file:
            yield file
            if durable:
                file.flush()
                os.fsync(file.fileno())
        draft.replace(path)
        if durable:
            sync_folder(path.parent)
    except BaseException:
        with suppress(OSError):
            draft.unlink(missing_ok=True)
        raise


def make_private_folder(folder: Path) -> None:
    """Makes the folder, for its owner alone, and those above it; one that is there keeps its mode. Raises OSError."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)


def make_private_file(path: Path) -> None:
    """Makes the file, empty and for its owner alone, unless it is there. Raises OSError."""
    os.close(os.open(path, os.O_RDONLY | os.O_CREAT, 0o600))


def rename_durably(made: Path, path: Path) -> None:
    """Gives the finished file `made` the name `path`. After a power cut `path` is the old file or the whole new one.

    Raises OSError.
    """
    with made.open("rb+") as file:
        os.fsync(file.fileno())
    made.replace(path)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Waits until the names of the folder's files are on the disk; Windows has no call for it. Raises OSError."""
    if os.name == "nt":
        return
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def replace_folder(made: Path, folder: Path) -> None:
    """Replaces `folder` with the folder `made`. Both must be on the same file system. Raises OSError."""
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as passing:
        if folder.exists():
            folder.rename(Path(passing) / "old")
        made.rename(folder)


@contextmanager
def locked(path: Path, wait_s: float = -1) -> Iterator[None]:
    """Holds the lock file `path` during the block. One process has it at a time; a killed process loses it.

    Waits for `wait_s` seconds, by default without end. Raises `filelock.Timeout` if it is still taken then.
    """
    from filelock import FileLock  # takes longer to import than most commands take to run

    with FileLock(path, timeout=wait_s):
        yield
