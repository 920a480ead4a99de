"""Reads the input in chunks of lines, unpacked, from any place where an earlier run stopped."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import zstandard

from bespeak.errors import InputError
from bespeak.profiles.ubi import read_lines

MAX_LINE_BYTES = 1 << 20
CHUNK_LINES = 256
CHUNK_BYTES = 4 << 20
"""A chunk ends with the line that reaches either limit, so its end depends on the lines alone."""

GZIP, ZSTD = b"\x1f\x8b", b"\x28\xb5\x2f\xfd"
READ_BYTES = 1 << 16


class LinePosition(NamedTuple):
    """A place between two lines of the input. `offset` counts bytes after unpacking."""

    line_no: int = 0
    offset: int = 0


START = LinePosition()


class Chunk(NamedTuple):
    """Consecutive lines. None stands for a line that is longer than `MAX_LINE_BYTES`."""

    first_no: int
    lines: tuple[bytes | None, ...]
    end: LinePosition
    read_bytes: int  # of the file before unpacking, roughly up to the chunk's end


def read_chunks(stream: IO[bytes], after: LinePosition = START) -> Iterator[Chunk]:
    """The chunks after the end of an earlier one. Raises InputError if the input is cut short or damaged."""
    try:
        unpacked = _unpacked(stream, after.offset)
        lines, n_bytes = list[bytes | None](), 0
        end = after
        for line_no, offset, line in read_lines(unpacked, *after, MAX_LINE_BYTES):
            lines.append(_without_mark(line) if line_no == 1 and line else line)
            n_bytes += len(line or b"")
            end = LinePosition(line_no, offset)
            if len(lines) == CHUNK_LINES or n_bytes >= CHUNK_BYTES:
                yield _chunk(lines, end, stream)
                lines, n_bytes = [], 0
        if lines:
            yield _chunk(lines, end, stream)
    except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
        raise InputError(
            f"the input is cut short or damaged after line {end.line_no} ({error}): give the whole file"
        ) from error
    except OSError as error:
        raise InputError(f"the input cannot be read after line {end.line_no}: {error.strerror or error}") from error


def _without_mark(line: bytes) -> bytes:
    return line.removeprefix(b"\xef\xbb\xbf")


def _chunk(lines: list[bytes | None], end: LinePosition, stream: IO[bytes]) -> Chunk:
    read_bytes = stream.tell() if stream.seekable() else end.offset
    return Chunk(end.line_no - len(lines) + 1, tuple(lines), end, read_bytes)


def is_packed(stream: io.BufferedReader) -> bool:
    """Whether a stream at its beginning is compressed, so that it cannot be read from any place."""
    return stream.peek(4)[:4].startswith((GZIP, ZSTD))


def _unpacked(stream: IO[bytes], offset: int) -> IO[bytes]:
    """The unpacked content from `offset` on."""
    buffered: Any = stream if hasattr(stream, "peek") else io.BufferedReader(stream)
    head = buffered.peek(4)[:4]
    if head[:2] == GZIP:
        unpacked: Any = gzip.GzipFile(fileobj=buffered, mode="rb")
    elif head == ZSTD:
        unpacked = io.BufferedReader(_Zstandard(buffered), READ_BYTES)
    else:
        unpacked = buffered
        if offset:
            unpacked.seek(offset)
        return unpacked  # type: ignore[no-any-return]
    left = offset
    while left and (read := unpacked.read(min(left, READ_BYTES))):
        left -= len(read)
    return unpacked  # type: ignore[no-any-return]


class _Zstandard(io.RawIOBase):
    """Frames one after another. Unlike zstandard's own reader, it raises EOFError if the last frame is cut short."""

    def __init__(self, packed: IO[bytes]) -> None:
        self._packed, self._rest, self._ready = packed, b"", b""
        self._frame = zstandard.ZstdDecompressor().decompressobj()
        self._begun = False

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._rest or self._packed.read(READ_BYTES)
            if not packed:
                if self._begun:
                    raise EOFError("the last frame has no end")
                return 0
            self._unpack(packed)
        n = min(len(buffer), len(self._ready))
        buffer[:n], self._ready = self._ready[:n], self._ready[n:]
        return n

    def _unpack(self, packed: bytes) -> None:
        self._ready, self._rest, self._begun = self._frame.decompress(packed), b"", True
        if self._frame.eof:
            self._rest = self._frame.unused_data
            self._frame, self._begun = zstandard.ZstdDecompressor().decompressobj(), False
