"""The journal: a file beside the output that says how far the run has come, and that survives kills and power cuts.

Its first line holds what the run depends on; each later line holds the state after a chunk. The last complete line
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

from bespeak.batch.lines import START, LinePosition
from bespeak.batch.tally import Tally
from bespeak.errors import InputError
from bespeak.files import replacing

MAX_BYTES = 1 << 20
"""A longer journal is replaced by one that holds only its last state."""


@dataclass(frozen=True, slots=True)
class RunState:
    """Everything that was committed: the place in the input, and the sizes of what was written up to there."""

    place: LinePosition = START
    output_bytes: int = 0
    rejected_bytes: int = 0
    seconds: float = 0.0  # wall-clock time of all runs together
    complete: bool = False  # the whole input was read
    finished: bool = False  # and the output has its final name
    tally: Tally = field(default_factory=Tally)


class Journal:
    """Checksummed JSON lines, each appended durably. Raises InputError if the file cannot be read or written."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[dict[str, Any], RunState] | None:
        """What the run depends on, and its state; None if no run has begun."""
        try:
            content = self.path.read_bytes()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise InputError(f"cannot read {self.path} ({error.strerror}): check its permissions") from error
        return read_journal(content)

    def begin(self, begun: Mapping[str, Any], state: RunState) -> None:
        """Replaces the whole file."""
        try:
            with replacing(self.path, durable=True) as file:
                file.write(journal_of(begun, state))
        except OSError as error:
            raise self._unwritten(error) from error

    def commit(self, begun: Mapping[str, Any], state: RunState) -> None:
        """Makes the state durable before it returns. If it raises, the previous state still counts."""
        try:
            if self.path.stat().st_size > MAX_BYTES:
                self.begin(begun, state)
                return
            with self.path.open("ab") as file:
                file.write(seal(asdict(state)))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise self._unwritten(error) from error

    def _unwritten(self, error: OSError) -> InputError:
        return InputError(
            f"cannot write the run's progress to {self.path} ({error.strerror}): free some space, then run the same "
            "command again to resume"
        )


def read_journal(content: bytes) -> tuple[dict[str, Any], RunState] | None:
    """What the run depends on, and its state; None if no line is complete."""
    lines = content.split(b"\n")[:-1]
    rows = [row for row in takewhile(lambda row: row is not None, map(unseal, lines)) if row]
    if not rows:
        return None
    return rows[0], _state(rows[-1]) if len(rows) > 1 else RunState()


def journal_of(begun: Mapping[str, Any], state: RunState) -> bytes:
    """A journal that holds this state alone."""
    return seal(begun) + seal(asdict(state))


def refuse_other(then: Mapping[str, Any], begun: Mapping[str, Any], output: object, journal: object) -> None:
    """Raises InputError if the output was begun with another input or other options than now."""
    for name in {**then, **begun}:
        if begun.get(name) != then.get(name):
            values = "" if name == "input" else f" ({then.get(name, 'none')} then, {begun.get(name, 'none')} now)"
            raise InputError(
                f"{output} was begun with another {name}{values}: give the same again, or another --output, or delete "
                f"{journal} and the output to start over"
            )


def _state(row: Mapping[str, Any]) -> RunState:
    return RunState(**{**row, "place": LinePosition(*row["place"]), "tally": Tally.of_dict(row["tally"])})


def seal(row: Mapping[str, Any]) -> bytes:
    """The row as a line of a checksum and JSON."""
    text = json.dumps(row, separators=(",", ":")).encode("ascii")
    return hashlib.blake2b(text, digest_size=8).hexdigest().encode("ascii") + b" " + text + b"\n"


def unseal(line: bytes) -> dict[str, Any] | None:
    """The row of a line that `seal` made; None if it is incomplete or damaged."""
    checksum, _, text = line.partition(b" ")
    if hashlib.blake2b(text, digest_size=8).hexdigest().encode("ascii") != checksum:
        return None
    row: dict[str, Any] = json.loads(text)
    return row
