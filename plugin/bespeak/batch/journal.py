"""How far a run has come, in a file beside its output that is whole after any kill and any power cut.

The first line says what the run was begun with, each later one where it stands after a chunk; the last that is whole
counts.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any

from bespeak.batch.lines import START, Place
from bespeak.batch.tally import Tally
from bespeak.errors import InputError

MAX_BYTES = 1 << 20
"""A journal longer than this is written anew with its last line alone."""


@dataclass(frozen=True, slots=True)
class Standing:
    """All that was committed: the place in the input, and the sizes of what was written up to there."""

    place: Place = START
    output_bytes: int = 0
    rejected_bytes: int = 0
    seconds: float = 0.0  # on the clock, of all runs
    complete: bool = False  # the input was read to its end
    finished: bool = False  # and the output stands under its name
    tally: Tally = field(default_factory=Tally)


class Journal:
    """Lines of a checksum and JSON, appended and made durable one by one. Raises InputError where it cannot be."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[dict[str, Any], Standing] | None:
        """What the run was begun with, and where it stands; None where nothing was begun."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"cannot read {self.path} ({error.strerror}): check its permissions") from error
        return read_journal(content)

    def begin(self, begun: Mapping[str, Any], standing: Standing) -> None:
        """Replaces the file as a whole."""
        written = self.path.with_name(self.path.name + ".new")
        try:
            with written.open("wb") as file:
                file.write(journal_of(begun, standing))
                file.flush()
                os.fsync(file.fileno())
            os.replace(written, self.path)
            sync_folder(self.path.parent)
        except OSError as error:
            raise self._unwritten(error) from error

    def commit(self, begun: Mapping[str, Any], standing: Standing) -> None:
        """On return the standing is on the disk; a fault leaves the one before."""
        try:
            if self.path.stat().st_size > MAX_BYTES:
                self.begin(begun, standing)
                return
            with self.path.open("ab") as file:
                file.write(sealed(asdict(standing)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: OSError) -> InputError:
        return InputError(
            f"cannot note in {self.path} how far the run is ({error.strerror}): make room, then run the same command "
            "again; it goes on"
        )


def read_journal(content: bytes) -> tuple[dict[str, Any], Standing] | None:
    """What the run was begun with, and where it stands; None where no line is whole."""
    lines = content.split(b"\n")[:-1]
    rows = [row for row in takewhile(lambda row: row is not None, map(unsealed, lines)) if row]
    if not rows:
        return None
    return rows[0], _standing(rows[-1]) if len(rows) > 1 else Standing()


def journal_of(begun: Mapping[str, Any], standing: Standing) -> bytes:
    return sealed(begun) + sealed(asdict(standing))


def refuse_other(then: Mapping[str, Any], begun: Mapping[str, Any], output: object, journal: object) -> None:
    """Raises InputError where an output was begun with something else than it is now to be gone on with."""
    for name in {**then, **begun}:
        if begun.get(name) != then.get(name):
            told = "" if name == "input" else f" ({then.get(name, 'none')} then, {begun.get(name, 'none')} now)"
            raise InputError(
                f"{output} was begun with another {name}{told}: give the same again, or another --output, or delete "
                f"{journal} and the output to start anew"
            )


def sync_folder(folder: Path) -> None:
    """Makes names that were given or taken in a folder durable."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(opened)
    finally:
        os.close(opened)


def _standing(row: Mapping[str, Any]) -> Standing:
    return Standing(**{**row, "place": Place(*row["place"]), "tally": Tally.of_dict(row["tally"])})


def sealed(row: Mapping[str, Any]) -> bytes:
    """A line of a checksum and JSON."""
    text = json.dumps(row, separators=(",", ":")).encode("ascii")
    return hashlib.blake2b(text, digest_size=8).hexdigest().encode("ascii") + b" " + text + b"\n"


def unsealed(line: bytes) -> dict[str, Any] | None:
    """None for a line that was not written whole."""
    seal, _, text = line.partition(b" ")
    if hashlib.blake2b(text, digest_size=8).hexdigest().encode("ascii") != seal:
        return None
    read: dict[str, Any] = json.loads(text)
    return read
