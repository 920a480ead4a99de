"""A run on a Ray cluster: its blocks as a Ray Data pipeline, each written as a part, the parts put together in the end.

A part has its name once it is whole, and the name tells which block of which run it is: after any kill the parts that
are there say how far the run has come.
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
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

from bespeak.batch.blocks import (
    Block,
    BlockReader,
    Part,
    part_name,
    part_of_block,
    plan_blocks,
    read_part,
    write_part,
)
from bespeak.batch.journal import Standing, journal_of, read_journal, refuse_other, sealed
from bespeak.batch.output import pack, packing_of, part_of
from bespeak.batch.parquet import check_parquet, make_parquet
from bespeak.batch.run import Format, Step, already_there
from bespeak.batch.storage import Storage, is_uri
from bespeak.batch.tally import Tally
from bespeak.batch.work import OpenTools, Tools, rewrite_chunk
from bespeak.errors import BespeakError, InputError, ModelError, UsageError
from bespeak.rewriting.rewriter import model_of

RETRIES = 100
"""Times that a block is given to another worker. A node that is lost takes some of them before Ray calls it dead."""


BEGUN = 2
"""Blocks that a worker is given at once, so that it need not wait; more would leave others idle at the end."""


@dataclass(frozen=True, slots=True)
class RayJob:
    """What to rewrite into what: whole paths or URIs that mean the same on every node."""

    source: str
    output: str
    begun_with: Mapping[str, str]
    format: Format = "jsonl"
    strict: bool = False
    address: str | None = None  # of the cluster; where none is given, the one that Ray finds


class Told(NamedTuple):
    """What a worker says of a block: what it counted, or why it could not be done."""

    number: int
    tally: Tally
    error: BespeakError | None = None


def rewrite_on_ray(job: RayJob, open_tools: OpenTools, tell: Callable[[Step], object] = lambda _: None) -> Standing:
    """Rewrites the whole input; the blocks that earlier runs of the same job have not done.

    A finished run is left as it is. Raises as `rewrite_file`, UsageError where there is no cluster.
    """
    _check(job)
    source, out = Storage(job.source), Storage(job.output)
    with closing(source.open()) as stream:
        blocks = list(plan_blocks(stream))
    begun = {**job.begun_with, "format": job.format, "input": _digest(blocks), "--on": "ray"}
    standing = _left(out, begun)
    if not standing.finished:
        standing = _rewrite(job, out, blocks, begun, standing, open_tools, tell)
        _note(out, begun, standing)
    out.delete(out.name + ".parts")
    return standing


def _check(job: RayJob) -> None:
    try:
        import ray.data  # noqa: F401
    except ImportError as error:
        raise InputError("A run on Ray needs Ray Data: pip install 'bespeak[ray]'") from error
    if job.address and job.address.startswith("ray://"):
        raise UsageError("Ray's client (ray://) runs no pipelines: run the command on a node of the cluster")
    if job.format == "parquet":
        check_parquet()
        if is_uri(job.output):
            raise UsageError("Parquet is written to a folder that all nodes share: give a path with --output")


def _left(out: Storage, begun: Mapping[str, Any]) -> Standing:
    """Where earlier runs have left it; noted, so that workers can see which run they are of."""
    found = read_journal(out.read(out.name + ".progress") or b"")
    is_there = out.exists(out.name)
    if found is None or (found[1].finished and not is_there):
        if is_there:
            raise already_there(out.shown)
        standing = Standing()
    else:
        refuse_other(found[0], begun, out.shown, out.shown + ".progress")
        standing = found[1]
    if not standing.finished:
        _note(out, begun, standing)
    return standing


def _note(out: Storage, begun: Mapping[str, Any], standing: Standing) -> None:
    out.write(out.name + ".progress", journal_of(begun, standing), ".new")


def _rewrite(
    job: RayJob,
    out: Storage,
    blocks: Sequence[Block],
    begun: Mapping[str, Any],
    standing: Standing,
    open_tools: OpenTools,
    tell: Callable[[Step], object],
) -> Standing:
    """To the output under its name. What is noted on the way counts for the clock and for the eye alone."""
    began = time.monotonic() - standing.seconds
    names = [part_name(block, sealed(begun)) for block in blocks]
    there = out.names(out.name + ".parts")
    missing = [block for block, name in zip(blocks, names, strict=True) if name not in there]
    read_bytes = sum(block.read_bytes for block in blocks) - sum(block.read_bytes for block in missing)
    work = Work(job.source, job.output, begun, open_tools)
    with _connected(job.address), closing(_told(missing, work)) as all_told:
        for told in all_told:
            if told.error:
                raise told.error
            read_bytes += blocks[told.number].read_bytes
            standing = replace(standing, tally=standing.tally.plus(told.tally), seconds=time.monotonic() - began)
            _note(out, begun, standing)
            tell(Step(standing, read_bytes))
    done = _put_together(job, out, names)
    place = blocks[-1].end if blocks else Standing().place
    return replace(done, place=place, seconds=time.monotonic() - began, complete=True, finished=True)


def _put_together(job: RayJob, out: Storage, names: Sequence[str]) -> Standing:
    """The parts in the input's order; sizes and counts."""
    lines = str(part_of(Path(out.name))) if job.format == "parquet" else out.name
    n_output = n_rejected = 0
    counted = Tally()
    with out.writing(lines, ".part") as output, out.writing(out.name + ".rejected", ".part") as rejected:
        for name in names:
            part = _read_part(out, name)
            output.write(part.output)
            rejected.write(part.rejected)
            n_output, n_rejected = n_output + len(part.output), n_rejected + len(part.rejected)
            counted = counted.plus(part.tally)
        if not n_output and job.format == "jsonl":
            n_output = output.write(pack(b"", packing_of(out.name)))
    if not n_rejected:
        out.delete(out.name + ".rejected")
    if job.format == "parquet":
        make_parquet(Path(lines), Path(out.name))
    return Standing(output_bytes=n_output, rejected_bytes=n_rejected, tally=counted)


def _read_part(out: Storage, name: str) -> Part:
    path = f"{out.name}.parts/{name}"
    content = out.read(path)
    try:
        if content is None:
            raise InputError("it is not there: do all nodes write to the same place?")
        return read_part(content)
    except InputError as error:
        out.delete(path)
        raise InputError(f"cannot use {path} ({error}): run the same command again, it makes this part anew") from error


def _digest(blocks: Sequence[Block]) -> str:
    return hashlib.sha256("".join(block.digest for block in blocks).encode("ascii")).hexdigest()


@dataclass(frozen=True, slots=True)
class Work:
    """All that a worker is told beside the block."""

    source: str
    output: str
    begun: Mapping[str, Any]
    open_tools: OpenTools


class Worker:
    """An actor of the pipeline. It opens its tools with its first block, and keeps them."""

    def __init__(self, work: Work) -> None:
        self._work = work
        self._out = Storage(work.output)
        self._blocks = BlockReader(Storage(work.source).open)
        self._tools: Tools | None = None

    def __call__(self, row: Mapping[str, Any]) -> dict[str, Any]:
        """A fault that a person has to see to is told, not raised, for Ray would only try again."""
        block = Block(*pickle.loads(row["block"]))
        try:
            told = Told(block.number, self._do(block))
        except BespeakError as error:
            told = Told(block.number, Tally(), type(error)(f"{error} (on {socket.gethostname()})"))
        return {"told": pickle.dumps(told)}

    def _do(self, block: Block) -> Tally:
        """Writes the block's part; one that a worker wrote before it was lost is not made again."""
        tools = self._tools = self._tools or self._opened()
        path = f"{self._out.name}.parts/{part_name(block, sealed(self._work.begun))}"
        written = self._out.read(path)
        if written is not None:
            return read_part(written).tally
        done = [rewrite_chunk(chunk, tools) for chunk in self._blocks.read(block)]
        for bad in (one.first_bad for one in done if tools.strict and one.first_bad):
            raise InputError(f"line {bad.line_no}: {bad.reason}; correct it, or leave out --strict to go on without it")
        part = part_of_block(done)
        self._out.write(path, write_part(part), f".{uuid.uuid4().hex}")
        return part.tally

    def _opened(self) -> Tools:
        """Raises where this node would write elsewhere, or rewrite otherwise, than the run was begun."""
        found = read_journal(self._out.read(self._out.name + ".progress") or b"")
        if found is None or found[0] != self._work.begun:
            raise InputError(
                f"{self._out.name}.progress is not that of this run: give an --output that all nodes share"
            )
        tools = self._work.open_tools()
        model = model_of(tools.rewriter)
        if model != self._work.begun.get("model", model):
            tools.close()
            raise ModelError(
                f"the model is {model} here, not {self._work.begun['model']}: install the same on all nodes"
            )
        return tools


def _told(blocks: Sequence[Block], work: Work) -> Generator[Told, None, None]:
    """What workers say of each block, in the order in which they are done.

    A worker for each CPU of the cluster; Ray adds some with its nodes, and takes some away with them.
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
    told = rows.map(Worker, fn_constructor_args=(work,), compute=pool, num_cpus=1, max_task_retries=RETRIES)
    try:
        for row in told.iter_rows():
            yield pickle.loads(row["told"])
    except RayError as error:
        raise BespeakError(
            f"the cluster could not do all blocks ({_first_line(error)}): see to its nodes and their logs, then run "
            "the same command again; it goes on"
        ) from error


def _first_line(error: Exception) -> str:
    return f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"


@contextmanager
def _connected(address: str | None) -> Iterator[None]:
    """To a cluster that is there. Ray says what is lost, and no more; the caller's answer to a signal is kept."""
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
