"""Blocks can be read again from any place and in any order; a changed input or a damaged part is refused."""

from __future__ import annotations

import gzip
import io
import random

import pytest
import zstandard

from batch_runs import INPUT, make_tools
from bespeak.batch import blocks
from bespeak.batch.blocks import BlockOutput, BlockReader, join_chunks, part_name, plan_blocks, read_part, write_part
from bespeak.batch.lines import read_chunks
from bespeak.batch.tally import Tally
from bespeak.batch.work import rewrite_chunk
from bespeak.errors import InputError

CONTENT = "\n".join(INPUT * 7).encode()
PACKED = {"plain": bytes, "gzip": gzip.compress, "zstandard": zstandard.ZstdCompressor().compress}


@pytest.fixture(autouse=True)
def small_blocks(monkeypatch):
    monkeypatch.setattr(blocks, "BLOCK_CHUNKS", 3)


def opened(content):
    return io.BufferedReader(io.BytesIO(content))


@pytest.mark.parametrize("packed", PACKED)
@pytest.mark.parametrize("order", ["forward", "any"])
def test_blocks_are_the_chunks_of_a_run_on_one_machine(packed, order):
    content = PACKED[packed](CONTENT)
    chunks = [(chunk.first_no, chunk.lines, chunk.end) for chunk in read_chunks(opened(content))]
    planned = list(plan_blocks(opened(content)))
    assert [block.number for block in planned] == list(range(-(-len(chunks) // 3)))
    assert sum(block.read_bytes for block in planned) == len(content)
    reader = BlockReader(lambda: opened(content))
    wanted = planned if order == "forward" else random.Random(1).sample(planned * 2, len(planned) * 2)
    for block in wanted:
        read = [(chunk.first_no, chunk.lines, chunk.end) for chunk in reader.read(block)]
        assert read == chunks[3 * block.number : 3 * block.number + 3]


def test_a_packed_input_is_opened_once_if_blocks_are_read_in_order():
    content, n_opened = gzip.compress(CONTENT), 0

    def count():
        nonlocal n_opened
        n_opened += 1
        return opened(content)

    reader = BlockReader(count)
    for block in list(plan_blocks(opened(content)))[1::2]:
        reader.read(block)
    assert n_opened == 1


@pytest.mark.parametrize("change", [
    lambda content: content.replace(b"q3", b"q4", 1),
    lambda content: content + b"\n{}",
    lambda content: content[:-3],
    lambda content: b"",
])  # fmt: skip
def test_a_changed_input_is_refused(change):
    reader = BlockReader(lambda: opened(change(CONTENT)))
    with pytest.raises(InputError, match="of the input have changed"):
        list(map(reader.read, plan_blocks(opened(CONTENT))))


def test_a_part_holds_the_results_of_its_chunks(tmp_path):
    tools = make_tools(tmp_path)
    done = [rewrite_chunk(chunk, tools) for chunk in read_chunks(opened(CONTENT))]
    part = join_chunks(done)
    assert part.output == b"".join(one.output for one in done)
    assert part.rejected == b"".join(one.rejected for one in done)
    assert part.tally.queries == 16 * 7
    assert read_part(write_part(part)) == part


@pytest.mark.parametrize("damage", [
    lambda content: content[:-1],
    lambda content: content + b"x",
    lambda content: content.replace(b"rewrite", b"rewrote"),
    lambda content: content[1:],
    lambda content: b"",
])  # fmt: skip
def test_a_damaged_part_is_refused(damage):
    with pytest.raises(InputError, match="damaged"):
        read_part(damage(write_part(BlockOutput(b'{"rewrite":"x"}\n', b"{}\n", Tally()))))


def test_the_name_of_a_part_depends_on_its_block_and_its_run():
    planned = list(plan_blocks(opened(CONTENT)))
    other = list(plan_blocks(opened(CONTENT.replace(b"q1", b"q0"))))
    names = {part_name(block, begun) for block in (*planned, other[0]) for begun in (b"one", b"two")}
    assert len(names) == 2 * (len(planned) + 1)
    assert part_name(planned[2], b"one").startswith("00000002-")
