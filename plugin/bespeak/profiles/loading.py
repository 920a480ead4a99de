"""Loads files of events into a store, in batches, and resumes after an interruption."""

from __future__ import annotations

import gzip
import hashlib
import itertools
import zlib
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import IO

from bespeak.errors import InputError
from bespeak.profiles.stores import Batch, EventLoad, EventStore
from bespeak.profiles.ubi import RejectedEvent, read_line, read_lines
from bespeak.records import Event

LOAD_BATCH = 1000  # lines in one transaction


def load(path: Path, tenant: str, store: EventStore, report: Callable[[int], object] = lambda _: None) -> EventLoad:
    """Adds a file (plain or gzip) to the store, from where an interrupted run stopped.

    `report` gets the number of bytes read from the file since the last report. The load and its rejected lines stay in
    the store until `store.finish`. Raises `InputError` if the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            done, reported = store.resume(tenant, digest), 0
            for batch in _batches(_unzipped(file, done.offset), done):
                done = store.record(done, batch)
                report(file.tell() - reported)
                reported = file.tell()
            return done
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path} is cut short or damaged as a gzip file: fetch it again, then load it again"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error


def _unzipped(file: IO[bytes], offset: int) -> IO[bytes]:
    """The file from `offset` on, decompressed if it is a gzip file."""
    file.seek(0)
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream: IO[bytes] = gzip.GzipFile(fileobj=file) if zipped else file  # type: ignore[assignment]
    stream.seek(offset)
    return stream


def _batches(stream: IO[bytes], done: EventLoad) -> Iterator[Batch]:
    now, lines = datetime.now(UTC), read_lines(stream, done.line_no, done.offset)
    while chunk := list(itertools.islice(lines, LOAD_BATCH)):
        items = [(line_no, read_line(line, done.tenant, now)) for line_no, _, line in chunk]
        rejected = tuple((line_no, item.reason) for line_no, item in items if isinstance(item, RejectedEvent))
        events = tuple(item for _, item in items if isinstance(item, Event))
        line_no, offset, _ = chunk[-1]
        yield Batch(line_no, offset, events, rejected)
