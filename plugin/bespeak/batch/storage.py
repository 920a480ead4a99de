"""Files that every machine of a cluster can reach: in a shared folder or in object storage, through pyarrow."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from io import BufferedReader
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

from bespeak.errors import InputError, UsageError
from bespeak.files import rename_durably

READ_BYTES = 1 << 22
"""Size of one request to an object storage."""

WHOLE_AT_ONCE = ("s3", "gcs", "abfs")
"""Kinds of storage in which an object appears only once it is complete."""


def is_uri(name: str) -> bool:
    return "://" in name


def shown(place: str) -> str:
    """The path, or the URI without credentials and options."""
    if not is_uri(place):
        return place
    parts = urlsplit(place)
    return f"{parts.scheme}://{parts.hostname or ''}{parts.path}"


class Storage:
    """The file system behind a path or a URI (`s3://bucket/key`, `gs://`, `hdfs://`, `file://`); names are its paths.

    Raises UsageError for a URI that pyarrow does not know, InputError if something cannot be read or written.
    """

    def __init__(self, place: str) -> None:
        try:
            from pyarrow import ArrowException
            from pyarrow.fs import FileSystem, LocalFileSystem
        except ImportError as error:
            raise InputError("files of a cluster need pyarrow: pip install 'bespeak[ray]'") from error
        self.shown = shown(place)
        try:
            found: tuple[Any, str] = FileSystem.from_uri(place) if is_uri(place) else (LocalFileSystem(), place)
        except (ArrowException, OSError) as error:
            raise UsageError(f"{self.shown} is neither a path nor a URI of a storage that pyarrow knows") from error
        self._fs, self.name = found
        self._kind: str = self._fs.type_name.partition("::")[0]

    def open(self) -> BufferedReader:
        """Opens the file that the path or URI names."""
        with self._naming_errors("read", self.name):
            return BufferedReader(self._fs.open_input_file(self.name), READ_BYTES)

    def read(self, name: str) -> bytes | None:
        """The content; None if there is no such file."""
        with self._naming_errors("read", name):
            try:
                with self._fs.open_input_stream(name) as stream:
                    content: bytes = stream.read()
                    return content
            except FileNotFoundError:
                return None

    @contextmanager
    def writing(self, name: str, part_suffix: str) -> Iterator[IO[bytes]]:
        """A file that gets its name once it is complete and durable; until then `part_suffix` follows the name.

        If the block raises, no new file remains.
        """
        unfinished = name if self._kind in WHOLE_AT_ONCE else name + part_suffix
        with self._naming_errors("write", name):
            if unfinished != name:
                self._fs.create_dir(os.path.dirname(name), recursive=True)
            stream: Any = self._fs.open_output_stream(unfinished)
        try:
            with self._naming_errors("write", name):
                yield stream
                stream.close()
                self._name(unfinished, name)
        except BaseException:
            with suppress(OSError):
                stream.close()
                self._fs.delete_file(unfinished)
            raise

    def write(self, name: str, content: bytes, part_suffix: str) -> None:
        with self.writing(name, part_suffix) as stream:
            stream.write(content)

    def exists(self, name: str) -> bool:
        with self._naming_errors("read", name):
            return bool(self._fs.get_file_info(name).is_file)

    def size(self) -> int:
        """The size in bytes of the file that the path or URI names."""
        with self._naming_errors("read", self.name):
            return int(self._fs.get_file_info(self.name).size or 0)

    def names(self, folder: str) -> set[str]:
        """The names of the files in a folder; empty if there is no such folder."""
        from pyarrow.fs import FileSelector

        with self._naming_errors("read", folder):
            return {info.base_name for info in self._fs.get_file_info(FileSelector(folder, allow_not_found=True))}

    def delete(self, name: str) -> None:
        """Deletes a file, or a folder with everything in it, if it exists."""
        from pyarrow.fs import FileType

        with self._naming_errors("delete", name), suppress(FileNotFoundError):
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
        rename_durably(Path(made), Path(name))

    @contextmanager
    def _naming_errors(self, what: str, name: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise InputError(
                f"cannot {what} {name} ({error.strerror or error}): correct this, then run the same command again to "
                "resume"
            ) from error
