"""Blocks of chunks: what one machine of many does at a time, and the part that it makes of the output."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from io import BufferedReader
from itertools import islice
from typing import Any, NamedTuple

from bespeak.batch.journal import sealed, unsealed
from bespeak.batch.lines import START, Chunk, Place, is_packed, read_chunks
from bespeak.batch.tally import Tally
from bespeak.batch.work import Done
from bespeak.errors import InputError

BLOCK_CHUNKS = 8
"""Chunks of a block; what is lost with a worker is no more than one of these."""


class Block(NamedTuple):
    """Consecutive chunks of an input; `digest` is of their lines and of how they are cut."""

    number: int
    after: Place
    end: Place
    n_chunks: int
    read_bytes: int  # of the input as it lies there
    digest: str


def plan_blocks(stream: BufferedReader) -> Iterator[Block]:
    """All of an input. They depend on its lines alone. Raises InputError for what cannot be read to its end."""
    after, n_read, chunks = START, 0, read_chunks(stream)
    number = 0
    while some := list(islice(chunks, BLOCK_CHUNKS)):
        last = some[-1]
        yield Block(number, after, last.end, len(some), last.read_bytes - n_read, _digest(some))
        number, after, n_read = number + 1, last.end, last.read_bytes


class BlockReader:
    """Reads blocks of one input again; a packed one is unpacked once, as long as they are asked for in order."""

    def __init__(self, open_input: Callable[[], BufferedReader]) -> None:
        self._open = open_input
        self._chunks: Iterator[Chunk] = iter(())
        self._at: Place | None = None
        self._packed = False

    def read(self, block: Block) -> list[Chunk]:
        """Raises InputError where the input is not the one that the block was planned from."""
        ahead = self._packed and self._at is not None and self._at <= block.after
        if self._at != block.after and not ahead:
            stream = self._open()
            self._packed, self._chunks = is_packed(stream), read_chunks(stream, block.after)
        self._at = None
        wanted = (chunk for chunk in self._chunks if chunk.first_no > block.after.line_no)
        chunks = list(islice(wanted, block.n_chunks))
        if _digest(chunks) != block.digest:
            raise InputError(
                f"lines {block.after.line_no + 1} to {block.end.line_no} of the input are not what they were"
            )
        self._at = block.end
        return chunks


class Part(NamedTuple):
    """What a block came to."""

    output: bytes
    rejected: bytes
    tally: Tally


def part_of_block(done: Sequence[Done]) -> Part:
    counted = Tally()
    for one in done:
        counted = counted.plus(one.tally)
    return Part(b"".join(one.output for one in done), b"".join(one.rejected for one in done), counted)


def part_name(block: Block, begun: bytes) -> str:
    """Another one for another input, model or option, so that no part of another run is ever taken for it."""
    seal = hashlib.blake2b(begun + block.digest.encode("ascii"), digest_size=8).hexdigest()
    return f"{block.number:08}-{seal}"


def write_part(part: Part) -> bytes:
    digest = hashlib.blake2b(part.output + part.rejected, digest_size=16).hexdigest()
    head = {"output_bytes": len(part.output), "digest": digest, "tally": part.tally.as_dict()}
    return sealed(head) + part.output + part.rejected


def read_part(content: bytes) -> Part:
    """Raises InputError for one that is damaged."""
    line, _, rest = content.partition(b"\n")
    head: dict[str, Any] | None = unsealed(line)
    if head is None or head["digest"] != hashlib.blake2b(rest, digest_size=16).hexdigest():
        raise InputError("it is damaged")
    n_bytes = head["output_bytes"]
    return Part(rest[:n_bytes], rest[n_bytes:], Tally.of_dict(head["tally"]))


def _digest(chunks: Iterable[Chunk]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for chunk in chunks:
        digest.update(b"chunk %d\n" % chunk.first_no)
        for line in chunk.lines:
            digest.update(b"too long\n" if line is None else b"%d " % len(line))
            digest.update(line or b"")
    return digest.hexdigest()
