"""A whole run: from where it was left, chunk by chunk, to the output under its name."""

from __future__ import annotations

import hashlib
import stat
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Literal, NamedTuple, TypeAlias

from bespeak.batch.journal import Journal, Standing, refuse_other
from bespeak.batch.lines import read_chunks
from bespeak.batch.output import FileOutput, Output, StreamOutput, give_name, pack, packing_of, part_of, rejected_of
from bespeak.batch.parquet import check_parquet, make_parquet
from bespeak.batch.work import OpenTools
from bespeak.batch.workers import rewrite_chunks
from bespeak.errors import InputError, UsageError

Format: TypeAlias = Literal["jsonl", "parquet"]


class Step(NamedTuple):
    """Where a run stands after a chunk, and how much of the input as it lies there was read."""

    standing: Standing
    read_bytes: int


@dataclass(frozen=True, slots=True)
class Job:
    """What to rewrite into what. `begun_with` names all that the output depends on beside the input."""

    source: Path | IO[bytes]
    output: Path | StreamOutput
    begun_with: Mapping[str, str]
    format: Format = "jsonl"
    strict: bool = False
    n_workers: int = 1

    @property
    def resumable(self) -> bool:
        """Only what can be read again from any place can be gone on with."""
        return isinstance(self.output, Path) and isinstance(self.source, Path) and is_regular(self.source)


def rewrite_file(job: Job, open_tools: OpenTools, tell: Callable[[Step], object] = lambda _: None) -> Standing:
    """Rewrites the whole input; one run of it, or what earlier runs have left.

    A finished run is left as it is. Raises InputError, UsageError, StoreError, EngineError; after each of them, and
    after any kill, the same job goes on where it stood.
    """
    if job.format == "parquet":
        check_parquet()
    if isinstance(job.output, StreamOutput):
        if job.format == "parquet":
            raise UsageError("Parquet cannot be written to a stream: give a file with --output")
        return _rewrite(job, job.output, Standing(), open_tools, lambda _: None, tell)
    journal = Journal(progress_of(job.output))
    if job.resumable:
        return _go_on(job, job.output, journal, open_tools, tell)
    if journal.path.exists():
        raise InputError(f"{job.output} was begun from a file: go on with that, or delete {journal.path} to start anew")
    _refuse_other(job.output)
    with closing(FileOutput(job.output)) as output:
        standing = _rewrite(job, output, Standing(), open_tools, lambda _: None, tell)
    _finish(job, job.output, standing)
    return standing


def progress_of(path: Path) -> Path:
    return path.with_name(path.name + ".progress")


def is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error


def _go_on(job: Job, path: Path, journal: Journal, open_tools: OpenTools, tell: Callable[[Step], object]) -> Standing:
    assert isinstance(job.source, Path)
    begun = {**job.begun_with, "format": job.format, "input": _digest(job.source)}
    standing = _left(path, journal, begun)
    if standing.finished:
        return standing
    if not standing.complete:
        with closing(FileOutput(path, standing.output_bytes, standing.rejected_bytes)) as output:
            journal.begin(begun, standing)
            standing = _rewrite(job, output, standing, open_tools, lambda done: journal.commit(begun, done), tell)
        journal.commit(begun, standing)
    _finish(job, path, standing)
    standing = replace(standing, finished=True)
    journal.commit(begun, standing)
    return standing


def _left(path: Path, journal: Journal, begun: Mapping[str, Any]) -> Standing:
    """Where earlier runs have left it. Raises InputError where they were begun with something else."""
    found = journal.read()
    if found is None:
        _refuse_other(path)
        return Standing()
    then, standing = found
    if standing.finished and not path.exists():
        return Standing()
    refuse_other(then, begun, path, journal.path)
    return standing


def _refuse_other(path: Path) -> None:
    if path.exists():
        raise already_there(path)


def already_there(path: object) -> InputError:
    return InputError(f"{path} is there already, and not by a run that can go on: delete it, or give another --output")


def _digest(path: Path) -> str:
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error


def _rewrite(
    job: Job,
    output: Output,
    standing: Standing,
    open_tools: OpenTools,
    commit: Callable[[Standing], object],
    tell: Callable[[Step], object],
) -> Standing:
    """To the end of the input; where the run stands there, complete."""
    began = time.monotonic() - standing.seconds
    stream = _opened(job.source) if isinstance(job.source, Path) else job.source
    with (
        closing(stream),
        closing(rewrite_chunks(read_chunks(stream, standing.place), open_tools, job.n_workers)) as work,
    ):
        for done in work:
            if job.strict and done.first_bad:
                bad = done.first_bad
                raise InputError(
                    f"line {bad.line_no}: {bad.reason}; correct it, or leave out --strict to go on without it"
                )
            output.write(done.output, done.rejected)
            tally = standing.tally.plus(done.tally)
            standing = Standing(done.chunk.end, *output.sync(), time.monotonic() - began, tally=tally)
            commit(standing)
            tell(Step(standing, done.chunk.read_bytes))
    if not standing.output_bytes and isinstance(job.output, Path) and job.format == "jsonl":
        output.write(pack(b"", packing_of(job.output.name)), b"")
        standing = replace(standing, output_bytes=output.sync()[0])
    return replace(standing, complete=True)


def _finish(job: Job, path: Path, standing: Standing) -> None:
    """Gives the output its name; done again, it does the rest."""
    if not standing.rejected_bytes:
        rejected_of(path).unlink(missing_ok=True)
    if job.format == "parquet":
        make_parquet(part_of(path), path)
        return
    give_name(path)
