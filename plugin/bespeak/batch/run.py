"""A whole run: from where the last one stopped, chunk by chunk, to the finished output."""

from __future__ import annotations

import hashlib
import stat
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import closing
from dataclasses import dataclass, replace
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, Literal, TypeAlias

from bespeak.batch.journal import Journal, RunState, refuse_other
from bespeak.batch.lines import LinePosition, read_chunks
from bespeak.batch.output import (
    FileOutput,
    Output,
    StreamOutput,
    compress,
    give_name,
    packing_of,
    partial_path,
    rejected_path,
    sole_writer,
)
from bespeak.batch.parquet import check_parquet, make_parquet
from bespeak.batch.work import ChunkResult, OpenTools, refuse_line
from bespeak.batch.workers import rewrite_chunks
from bespeak.errors import InputError, UsageError

Format: TypeAlias = Literal["jsonl", "parquet"]
Report: TypeAlias = Callable[[RunState, int], object]
"""Called after each chunk with the state of the run and the bytes of the input read so far, before unpacking."""


def report_nothing(_state: RunState, _read_bytes: int) -> None:
    pass


@dataclass(frozen=True, slots=True)
class Job:
    """What to rewrite, and where to. `begun_with` names everything besides the input that the output depends on."""

    source: Path | IO[bytes]
    output: Path | StreamOutput
    begun_with: Mapping[str, str]
    format: Format = "jsonl"
    strict: bool = False
    n_workers: int = 1

    @property
    def resumable(self) -> bool:
        """Whether an interrupted run can resume: only if the input can be read again from any place."""
        return isinstance(self.output, Path) and isinstance(self.source, Path) and is_regular(self.source)


def rewrite_file(job: Job, open_tools: OpenTools, report: Report = report_nothing) -> RunState:
    """Rewrites the whole input, or what earlier runs have left of it.

    A finished run is left as it is. Raises InputError, UsageError, StoreError and EngineError; after any of them, and
    after any kill, the same job resumes.
    """
    if job.format == "parquet":
        check_parquet()
    if isinstance(job.output, StreamOutput):
        if job.format == "parquet":
            raise UsageError("Parquet cannot be written to a stream: give a file with --output")
        return _write(job, job.output, RunState(), open_tools, report)
    with sole_writer(job.output):
        if job.resumable:
            return _resume(job, job.output, open_tools, report)
        return _rewrite_stream(job, job.output, open_tools, report)


def progress_path(path: Path) -> Path:
    return path.with_name(path.name + ".progress")


def is_regular(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.stat().st_mode)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error


def _rewrite_stream(job: Job, path: Path, open_tools: OpenTools, report: Report) -> RunState:
    """From a stream to a file."""
    journal = progress_path(path)
    if journal.exists():
        raise InputError(f"{path} was begun from a file: resume with that file, or delete {journal} to start over")
    _refuse_existing(path)
    with closing(FileOutput(path)) as output:
        state = _write(job, output, RunState(), open_tools, report)
    _finish(job, path, state)
    return state


def _resume(job: Job, path: Path, open_tools: OpenTools, report: Report) -> RunState:
    """From a file to a file, after what earlier runs have committed."""
    assert isinstance(job.source, Path)
    journal = Journal(progress_path(path))
    begun = {**job.begun_with, "format": job.format, "input": _digest(job.source)}
    state = _read_state(path, journal, begun)
    if state.finished:
        return state

    def commit(state: RunState, read_bytes: int) -> None:
        journal.commit(begun, state)
        report(state, read_bytes)

    if not state.complete:
        with closing(FileOutput(path, state.output_bytes, state.rejected_bytes)) as output:
            journal.begin(begun, state)
            state = _write(job, output, state, open_tools, commit)
        journal.commit(begun, state)
    _finish(job, path, state)
    state = replace(state, finished=True)
    journal.commit(begun, state)
    return state


def _read_state(path: Path, journal: Journal, begun: Mapping[str, Any]) -> RunState:
    """The state that earlier runs left. Raises InputError if they were begun with another input or other options."""
    found = journal.read()
    if found is None:
        _refuse_existing(path)
        return RunState()
    then, state = found
    if state.finished and not path.exists():
        return RunState()
    refuse_other(then, begun, path, journal.path)
    return state


def _refuse_existing(path: Path) -> None:
    if path.exists():
        raise already_there(path)


def already_there(path: object) -> InputError:
    return InputError(f"{path} exists, and no run that could resume wrote it: delete it, or give another --output")


def _digest(path: Path) -> str:
    with _opened(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _opened(path: Path) -> BufferedReader:
    try:
        return path.open("rb")
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error


def _write(job: Job, output: Output, state: RunState, open_tools: OpenTools, committed: Report) -> RunState:
    """Rewrites the rest of the input; gives the state at its end. Calls `committed` after each durable chunk."""
    began = time.monotonic() - state.seconds
    with closing(_results(job, state.place, open_tools)) as results:
        for result in results:
            output.write(result.output, result.rejected)
            tally = state.tally.plus(result.tally)
            state = RunState(result.chunk.end, *output.sync(), time.monotonic() - began, tally=tally)
            committed(state, result.chunk.read_bytes)
    if not state.output_bytes and isinstance(job.output, Path) and job.format == "jsonl":
        output.write(compress(b"", packing_of(job.output.name)), b"")
        state = replace(state, output_bytes=output.sync()[0])
    return replace(state, complete=True)


def _results(job: Job, after: LinePosition, open_tools: OpenTools) -> Generator[ChunkResult, None, None]:
    """The results of the chunks after a place. Raises InputError at the first rejected line of a strict job."""
    stream = _opened(job.source) if isinstance(job.source, Path) else job.source
    with closing(stream), closing(rewrite_chunks(read_chunks(stream, after), open_tools, job.n_workers)) as results:
        for result in results:
            if job.strict and result.first_bad:
                raise refuse_line(result.first_bad)
            yield result


def _finish(job: Job, path: Path, state: RunState) -> None:
    """Gives the output its final name. May be repeated after a kill."""
    if not state.rejected_bytes:
        rejected_path(path).unlink(missing_ok=True)
    if job.format == "parquet":
        make_parquet(partial_path(path), path)
    else:
        give_name(path)
