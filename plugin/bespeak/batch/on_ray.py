"""Runs a rewrite on a Ray cluster: a Ray Data pipeline over blocks, each written as a part, joined at the end.

A part gets its name once it is complete, and the name says which block of which run it holds. So after any kill, the
parts that exist say how far the run has come.
"""

from __future__ import annotations

import hashlib
import logging
import pickle
import signal
import socket
import threading
import time
import uuid
from collections.abc import Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from bespeak.batch.blocks import (
    Block,
    BlockOutput,
    BlockReader,
    join_chunks,
    part_name,
    plan_blocks,
    read_part,
    write_part,
)
from bespeak.batch.journal import RunState, journal_of, read_journal, refuse_other, seal
from bespeak.batch.output import compress, packing_of, partial_path
from bespeak.batch.parquet import check_parquet, make_parquet
from bespeak.batch.run import Format, Report, already_there, report_nothing
from bespeak.batch.storage import Storage, is_uri
from bespeak.batch.tally import Tally
from bespeak.batch.work import OpenTools, Tools, refuse_line, rewrite_chunk
from bespeak.errors import BespeakError, InputError, ModelError, UsageError
from bespeak.rewriting.rewriter import model_of

RETRIES = 100
"""How often a block may be given to another worker. A lost node uses up some of them before Ray declares it dead."""

BEGUN = 2
"""Blocks that a worker holds at once, so that it need not wait. More would leave others idle at the end."""


@dataclass(frozen=True, slots=True)
class RayJob:
    """What to rewrite, and where to: absolute paths or URIs that mean the same on every node."""

    source: str
    output: str
    begun_with: Mapping[str, str]
    format: Format = "jsonl"
    strict: bool = False
    address: str | None = None  # of the cluster; if None, the one that Ray finds


class BlockReport(NamedTuple):
    """A worker's answer: the counts of a block, or the error that prevented it."""

    number: int
    tally: Tally
    error: BespeakError | None = None


@dataclass(frozen=True, slots=True)
class WorkerSetup:
    """Everything that a worker needs besides the block."""

    source: str
    output: str
    begun: Mapping[str, Any]
    open_tools: OpenTools


def rewrite_on_ray(job: RayJob, open_tools: OpenTools, report: Report = report_nothing) -> RunState:
    """Rewrites the whole input, or the blocks that earlier runs of the same job have left.

    A finished run is left as it is. Raises what `rewrite_file` raises, and UsageError if there is no cluster.
    """
    _check(job)
    source, out = Storage(job.source), Storage(job.output)
    with closing(source.open()) as stream:
        blocks = list(plan_blocks(stream))
    begun = {**job.begun_with, "format": job.format, "input": _digest(blocks), "--on": "ray"}
    state = _read_state(out, begun)
    if not state.finished:
        setup = WorkerSetup(job.source, job.output, begun, open_tools)
        state = _rewrite(job, blocks, setup, state, report)
        _write_state(out, begun, state)
    out.delete(out.name + ".parts")
    return state


def _check(job: RayJob) -> None:
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise InputError("a run on Ray needs Ray Data: pip install 'bespeak[ray]'") from error
    if job.address and job.address.startswith("ray://"):
        raise UsageError("Ray's client (ray://) runs no pipelines: run the command on a node of the cluster")
    if job.format == "parquet":
        check_parquet()
        if is_uri(job.output):
            raise UsageError("Parquet is written to a folder that all nodes share: give a path with --output")


def _read_state(out: Storage, begun: Mapping[str, Any]) -> RunState:
    """The state that earlier runs left. It is written again, so that workers can see which run they belong to."""
    found = read_journal(out.read(out.name + ".progress") or b"")
    exists = out.exists(out.name)
    if found is None or (found[1].finished and not exists):
        if exists:
            raise already_there(out.shown)
        state = RunState()
    else:
        refuse_other(found[0], begun, out.shown, out.shown + ".progress")
        state = found[1]
    if not state.finished:
        _write_state(out, begun, state)
    return state


def _write_state(out: Storage, begun: Mapping[str, Any], state: RunState) -> None:
    out.write(out.name + ".progress", journal_of(begun, state), ".new")


def _rewrite(job: RayJob, blocks: Sequence[Block], setup: WorkerSetup, state: RunState, report: Report) -> RunState:
    """Writes the missing parts and joins all of them to the output.

    The state that is written on the way serves the clock and the display alone: what counts are the parts.
    """
    out, began = Storage(job.output), time.monotonic() - state.seconds
    names = [part_name(block, seal(setup.begun)) for block in blocks]
    existing = out.names(out.name + ".parts")
    missing = [block for block, name in zip(blocks, names, strict=True) if name not in existing]
    read_bytes = sum(block.read_bytes for block in blocks) - sum(block.read_bytes for block in missing)
    with _connected(job.address), closing(_run_blocks(missing, setup)) as reports:
        for done in reports:
            if done.error:
                raise done.error
            read_bytes += blocks[done.number].read_bytes
            state = replace(state, tally=state.tally.plus(done.tally), seconds=time.monotonic() - began)
            _write_state(out, setup.begun, state)
            report(state, read_bytes)
    joined = _join_parts(job, out, names)
    place = blocks[-1].end if blocks else RunState().place
    return replace(joined, place=place, seconds=time.monotonic() - began, complete=True, finished=True)


def _join_parts(job: RayJob, out: Storage, names: Sequence[str]) -> RunState:
    """Joins the parts in the order of the input; gives the sizes and counts."""
    lines = str(partial_path(Path(out.name))) if job.format == "parquet" else out.name
    n_output = n_rejected = 0
    tally = Tally()
    with out.writing(lines, ".part") as output, out.writing(out.name + ".rejected", ".part") as rejected:
        for name in names:
            part = _read_part(out, name)
            output.write(part.output)
            rejected.write(part.rejected)
            n_output, n_rejected = n_output + len(part.output), n_rejected + len(part.rejected)
            tally = tally.plus(part.tally)
        if not n_output and job.format == "jsonl":
            n_output = output.write(compress(b"", packing_of(out.name)))
    if not n_rejected:
        out.delete(out.name + ".rejected")
    if job.format == "parquet":
        make_parquet(Path(lines), Path(out.name))
    return RunState(output_bytes=n_output, rejected_bytes=n_rejected, tally=tally)


def _read_part(out: Storage, name: str) -> BlockOutput:
    path = f"{out.name}.parts/{name}"
    content = out.read(path)
    try:
        if content is None:
            raise InputError("it does not exist: do all nodes write to the same place?")
        return read_part(content)
    except InputError as error:
        out.delete(path)
        raise InputError(f"cannot use {path} ({error}): run the same command again to write this part anew") from error


def _digest(blocks: Sequence[Block]) -> str:
    return hashlib.sha256("".join(block.digest for block in blocks).encode("ascii")).hexdigest()


class Worker:
    """An actor of the pipeline. It opens its tools with its first block and keeps them."""

    def __init__(self, setup: WorkerSetup) -> None:
        self._setup = setup
        self._out = Storage(setup.output)
        self._blocks = BlockReader(Storage(setup.source).open)
        self._tools: Tools | None = None

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """Returns a fault that needs a person instead of raising it, since Ray would only retry."""
        block = Block(*pickle.loads(row["block"]))
        try:
            report = BlockReport(block.number, self._rewrite(block))
        except BespeakError as error:
            report = BlockReport(block.number, Tally(), type(error)(f"{error} (on {socket.gethostname()})"))
        return {"report": pickle.dumps(report)}

    def _rewrite(self, block: Block) -> Tally:
        """Writes the block's part, unless a worker wrote it before it was lost."""
        tools = self._tools = self._tools or self._open_tools()
        path = f"{self._out.name}.parts/{part_name(block, seal(self._setup.begun))}"
        written = self._out.read(path)
        if written is not None:
            return read_part(written).tally
        results = [rewrite_chunk(chunk, tools) for chunk in self._blocks.read(block)]
        for bad in (one.first_bad for one in results if tools.strict and one.first_bad):
            raise refuse_line(bad)
        part = join_chunks(results)
        self._out.write(path, write_part(part), f".{uuid.uuid4().hex}")
        return part.tally

    def _open_tools(self) -> Tools:
        """Raises InputError if this node would write elsewhere, ModelError if it would rewrite with another model."""
        found = read_journal(self._out.read(self._out.name + ".progress") or b"")
        if found is None or found[0] != self._setup.begun:
            raise InputError(
                f"{self._out.name}.progress does not belong to this run: give an --output that all nodes share"
            )
        tools = self._setup.open_tools()
        model = model_of(tools.rewriter)
        if model != self._setup.begun.get("model", model):
            tools.close()
            raise ModelError(
                f"the model is {model} here, not {self._setup.begun['model']}: install the same on all nodes"
            )
        return tools


def _run_blocks(blocks: Sequence[Block], setup: WorkerSetup) -> Generator[BlockReport, None, None]:
    """The reports of the blocks, in the order in which workers finish them.

    There is a worker for each CPU of the cluster; Ray adds workers with new nodes, and loses them with lost ones.
    """
    import ray.data
    from ray.exceptions import RayError

    if not blocks:
        return
    rows = ray.data.from_items(
        [{"block": pickle.dumps(tuple(block))} for block in blocks], override_num_blocks=len(blocks)
    )
    n_workers = max(1, min(len(blocks), int(ray.cluster_resources().get("CPU", 1))))
    pool = ray.data.ActorPoolStrategy(min_size=1, initial_size=n_workers, max_tasks_in_flight_per_actor=BEGUN)
    reports = rows.map(Worker, fn_constructor_args=(setup,), compute=pool, num_cpus=1, max_task_retries=RETRIES)
    try:
        for row in reports.iter_rows():
            yield pickle.loads(row["report"])
    except RayError as error:
        raise BespeakError(
            f"the cluster could not rewrite all blocks ({_first_line(error)}): check its nodes and their logs, then "
            "run the same command again to resume"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """Connects to a running cluster. Ray prints errors only, and the caller's handler of SIGTERM stays in place."""
    import ray.data

    before = signal.getsignal(signal.SIGTERM)
    try:
        ray.init(address or "auto", log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, ValueError) as error:
        raise UsageError(
            f"no Ray cluster {'at ' + address if address else 'is found'}: start one (ray start --head), or name one "
            "with --ray-address"
        ) from error
    try:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, before)
        ray.data.DataContext.get_current().enable_progress_bars = False
        logging.getLogger("ray.data").setLevel(logging.ERROR)
        yield
    finally:
        ray.shutdown()
