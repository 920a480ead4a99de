"""Blocks of chunks: what one machine of a cluster rewrites at a time, and the part of the output that it writes."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BufferedReader
from itertools import islice
from typing import Any, NamedTuple

from bespeak.batch.journal import seal, unseal
from bespeak.batch.lines import START, Chunk, LinePosition, is_packed, read_chunks
from bespeak.batch.tally import Tally
from bespeak.batch.work import ChunkResult
from bespeak.errors import InputError

BLOCK_CHUNKS = 8
"""Chunks in a block. A lost worker loses at most one block."""


class Block(NamedTuple):
    """Consecutive chunks of an input. `digest` covers their lines and how they are cut."""

    number: int
    after: LinePosition
    end: LinePosition
    n_chunks: int
    read_bytes: int  # of the file, before unpacking
    digest: str


def plan_blocks(stream: BufferedReader) -> Iterator[Block]:
    """All blocks of an input, which depend on its lines alone. Raises InputError if it cannot be read to its end."""
    after, n_read, chunks = START, 0, read_chunks(stream)
    number = 0
    while some := list(islice(chunks, BLOCK_CHUNKS)):
        last = some[-1]
        yield Block(number, after, last.end, len(some), last.read_bytes - n_read, _digest(some))
        number, after, n_read = number + 1, last.end, last.read_bytes


class BlockReader:
    """Reads blocks of one input. A packed input is unpacked only once if its blocks are read in order."""

    def __init__(self, open_input: Callable[[], BufferedReader]) -> None:
        self._open = open_input
        self._chunks: Iterator[Chunk] = iter(())
        self._at: LinePosition | None = None
        self._packed = False

    def read(self, block: Block) -> list[Chunk]:
        """The block's chunks. Raises InputError if the input has changed since the block was planned."""
        ahead = self._packed and self._at is not None and self._at <= block.after
        if self._at != block.after and not ahead:
            stream = self._open()
            self._packed, self._chunks = is_packed(stream), read_chunks(stream, block.after)
        self._at = None
        wanted = (chunk for chunk in self._chunks if chunk.first_no > block.after.line_no)
        chunks = list(islice(wanted, block.n_chunks))
        if _digest(chunks) != block.digest:
            raise InputError(f"lines {block.after.line_no + 1} to {block.end.line_no} of the input have changed")
        self._at = block.end
        return chunks


class BlockOutput(NamedTuple):
    """What a block adds to the output, to the rejected lines and to the report."""

    output: bytes
    rejected: bytes
    tally: Tally


def join_chunks(results: Sequence[ChunkResult]) -> BlockOutput:
    """The output of a block from the results of its chunks, in order."""
    tally = Tally()
    for result in results:
        tally = tally.plus(result.tally)
    return BlockOutput(b"".join(one.output for one in results), b"".join(one.rejected for one in results), tally)


def part_name(block: Block, begun: bytes) -> str:
    """The name of the block's part. It differs for any other input, model or option, so that runs never mix."""
    seal_of_run = hashlib.blake2b(begun + block.digest.encode("ascii"), digest_size=8).hexdigest()
    return f"{block.number:08}-{seal_of_run}"


def write_part(block: BlockOutput) -> bytes:
    """The content of the part's file."""
    digest = hashlib.blake2b(block.output + block.rejected, digest_size=16).hexdigest()
    head = {"output_bytes": len(block.output), "digest": digest, "tally": block.tally.as_dict()}
    return seal(head) + block.output + block.rejected


def read_part(content: bytes) -> BlockOutput:
    """The block that a part's file holds. Raises InputError if it is damaged."""
    line, _, rest = content.partition(b"\n")
    head: dict[str, Any] | None = unseal(line)
    if head is None or head["digest"] != hashlib.blake2b(rest, digest_size=16).hexdigest():
        raise InputError("it is damaged")
    n_bytes = head["output_bytes"]
    return BlockOutput(rest[:n_bytes], rest[n_bytes:], Tally.of_dict(head["tally"]))


def _digest(chunks: Iterable[Chunk]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for chunk in chunks:
        digest.update(b"chunk %d\n" % chunk.first_no)
        for line in chunk.lines:
            digest.update(b"too long\n" if line is None else b"%d " % len(line))
            digest.update(line or b"")
    return digest.hexdigest()
