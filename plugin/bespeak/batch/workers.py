"""Spreads chunks over processes and gives their results in the order of the chunks."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Generator, Iterator
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

from bespeak.batch.lines import Chunk
from bespeak.batch.work import ChunkResult, OpenTools, rewrite_chunk
from bespeak.errors import BespeakError

AHEAD = 2
"""How many chunks per worker may be begun before the first of them is done."""
MOST_WORKERS = 8
"""Used by default: each worker holds the model, 0.8 GB."""


def default_workers(rewriter: str) -> int:
    """How many processes rewrite if the user names no number."""
    return min(os.cpu_count() or 1, MOST_WORKERS) if rewriter == "model" else 1


def rewrite_chunks(
    chunks: Iterator[Chunk], open_tools: OpenTools, n_workers: int
) -> Generator[ChunkResult, None, None]:
    """The results in the order of the chunks. A single worker is this process itself.

    Raises what a chunk raised, and BespeakError if a worker died.
    """
    if n_workers == 1:
        tools = open_tools()
        try:
            for chunk in chunks:
                yield rewrite_chunk(chunk, tools)
        finally:
            tools.close()
        return
    workers = [_Worker(open_tools) for _ in range(n_workers)]
    try:
        yield from _in_order(chunks, workers)
    finally:
        for worker in workers:
            worker.end()


class _Worker:
    """A process that gets one chunk at a time, so that neither end of its pipe ever waits for the other."""

    def __init__(self, open_tools: OpenTools) -> None:
        context = multiprocessing.get_context("spawn")  # threads of the model's runtime do not survive a fork
        self.connection, far = context.Pipe()
        self._process: BaseProcess = context.Process(target=_serve, args=(far, open_tools), daemon=True)
        self._process.start()
        far.close()

    def give(self, chunk: Chunk) -> None:
        try:
            self.connection.send(chunk)
        except OSError as error:
            raise self._died() from error

    def take(self) -> ChunkResult:
        try:
            result = self.connection.recv()
        except (EOFError, OSError) as error:
            raise self._died() from error
        if isinstance(result, Exception):
            raise result
        taken: ChunkResult = result
        return taken

    def end(self) -> None:
        self._process.terminate()
        self._process.join()
        self.connection.close()

    def _died(self) -> BespeakError:
        self._process.join(1)
        return BespeakError(
            f"a worker process died (exit code {self._process.exitcode}), perhaps because memory ran out: run the same "
            "command again to resume, if need be with fewer --workers"
        )


def _in_order(chunks: Iterator[Chunk], workers: list[_Worker]) -> Iterator[ChunkResult]:
    idle, busy, ready = list(workers), dict[Any, tuple[int, _Worker]](), dict[int, ChunkResult]()
    n_given = n_yielded = 0
    while True:
        while idle and n_given - n_yielded < AHEAD * len(workers) and (chunk := next(chunks, None)):
            worker = idle.pop()
            worker.give(chunk)
            busy[worker.connection] = n_given, worker
            n_given += 1
        if n_yielded in ready:
            yield ready.pop(n_yielded)
            n_yielded += 1
        elif busy:
            for connection in wait(list(busy)):
                number, worker = busy.pop(connection)
                ready[number] = worker.take()
                idle.append(worker)
        else:
            return


def _serve(connection: Connection, open_tools: OpenTools) -> None:
    """Rewrites what comes through the pipe, until its other end closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is handled by the parent
    try:
        tools = open_tools()
        while True:
            connection.send(rewrite_chunk(connection.recv(), tools))
    except (EOFError, BrokenPipeError, ConnectionResetError):
        pass
    except BespeakError as error:
        connection.send(error)
