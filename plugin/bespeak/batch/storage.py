"""Files that every machine of a cluster sees: of a shared folder, or of an object storage, as pyarrow reads them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from bespeak.batch.journal import sync_folder
from bespeak.errors import InputError, UsageError

READ_BYTES = 1 << 22
"""Of one request to an object storage."""

WHOLE_AT_ONCE = ("s3", "gcs", "abfs")
"""Kinds of storage that show nothing of an object before all of it is there."""


def is_uri(name: str) -> bool:
    return "://" in name


def shown(place: str) -> str:
    """The path or URI without what may be a secret, or an option of the storage."""
    if not is_uri(place):
        return place
    parts = urlsplit(place)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


class Storage:
    """Where a path or a URI (`s3://bucket/key`, `gs://`, `hdfs://`, `file://`) leads; names are paths in it.

    Raises UsageError for a URI of no storage that pyarrow knows, InputError for what cannot be read or written.
    """

    def __init__(self, place: str) -> None:
        try:
            from pyarrow import ArrowException
            from pyarrow.fs import FileSystem, LocalFileSystem
        except ImportError as error:
            raise InputError("Files of a cluster need pyarrow: pip install 'bespeak[ray]'") from error
        self.shown = shown(place)
        try:
            found: tuple[Any, str] = FileSystem.from_uri(place) if is_uri(place) else (LocalFileSystem(), place)
        except (ArrowException, OSError) as error:
            raise UsageError(f"{self.shown} is no path, and no URI of a storage that pyarrow knows") from error
        self._fs, self.name = found
        self._kind: str = self._fs.type_name.partition("::")[0]

    def open(self) -> BufferedReader:
        """The file itself."""
        with self._told("read", self.name):
            return BufferedReader(self._fs.open_input_file(self.name), READ_BYTES)

    def read(self, name: str) -> bytes | None:
        """None where there is no such file."""
        with self._told("read", name):
            try:
                with self._fs.open_input_stream(name) as stream:
                    content: bytes = stream.read()
                    return content
            except FileNotFoundError:
                return None

    @contextmanager
    def writing(self, name: str, until_whole: str) -> Iterator[IO[bytes]]:
        """A file that has its name once it is whole and durable, `until_whole` at its end till then.

        A fault leaves none.
        """
        made = name if self._kind in WHOLE_AT_ONCE else name + until_whole
        with self._told("write", name):
            if made != name:
                self._fs.create_dir(os.path.dirname(name), recursive=True)
            stream: Any = self._fs.open_output_stream(made)
        try:
            with self._told("write", name):
                yield stream
                stream.close()
                self._name(made, name)
        except BaseException:
            with suppress(OSError):
                stream.close()
                self._fs.delete_file(made)
            raise

    def write(self, name: str, content: bytes, until_whole: str) -> None:
        with self.writing(name, until_whole) as stream:
            stream.write(content)

    def exists(self, name: str) -> bool:
        with self._told("read", name):
            return bool(self._fs.get_file_info(name).is_file)

    def size(self) -> int:
        """Of the file itself, in bytes."""
        with self._told("read", self.name):
            return int(self._fs.get_file_info(self.name).size or 0)

    def names(self, folder: str) -> set[str]:
        """Of the files in a folder; empty where there is none."""
        from pyarrow.fs import FileSelector

        with self._told("read", folder):
            return {info.base_name for info in self._fs.get_file_info(FileSelector(folder, allow_not_found=True))}

    def delete(self, name: str) -> None:
        """A file, or a folder and all that is in it, if it is there."""
        from pyarrow.fs import FileType

        with self._told("delete", name), suppress(FileNotFoundError):
            match self._fs.get_file_info(name).type:
                case FileType.File:
                    self._fs.delete_file(name)
                case FileType.Directory:
                    self._fs.delete_dir(name)

    def _name(self, made: str, name: str) -> None:
        if self._kind != "local":
            if made != name:
                self._fs.move(made, name)
            return
        with open(made, "rb+") as file:
            os.fsync(file.fileno())
        os.replace(made, name)
        sync_folder(Path(name).parent)

    @contextmanager
    def _told(self, what: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot {what} {name} ({error.strerror or error}): see to it that it can be, then run the same "
                "command again; it goes on"
            ) from error
