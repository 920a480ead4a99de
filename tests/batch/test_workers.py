"""Chunks in other processes: results in order, few chunks ahead, errors raised."""

from __future__ import annotations

import time
from functools import partial

import pytest

from batch_runs import make_tools
from bespeak.batch.lines import Chunk, LinePosition
from bespeak.batch.workers import AHEAD, rewrite_chunks
from bespeak.errors import ModelError, StoreError
from bespeak.records import Rewrite
from bespeak.rewriting.rewriter import LastTurn


class SlowChunk(LastTurn):
    """Takes longer for earlier lines."""

    def rewrite(self, query, profile, budget_ms=None):
        time.sleep(0.02 * (8 - int(query)))
        return Rewrite(query, f"{query} done", (), "full", model="slow 1")


def open_tools(data, rewriter=SlowChunk):
    return make_tools(data, rewriter)


def without_model():
    raise ModelError("there is no model")


def damaged(data):
    (data / "bespeak.db").write_bytes(b"not a database" * 99)
    return make_tools(data)


def chunks(n, taken=None, line=b'{"query": "%d", "history": [{"query": "h"}]}'):
    for i in range(n):
        if taken is not None:
            taken.append(i)
        yield Chunk(i + 1, ((line % i if b"%d" in line else line),), LinePosition(i + 1, 0), 0)


@pytest.mark.parametrize("n_workers", [1, 3])
def test_results_come_in_order(tmp_path, n_workers):
    taken, outputs = [], []
    for done in rewrite_chunks(chunks(8, taken), partial(open_tools, tmp_path), n_workers):
        outputs.append(done.output)
        assert len(taken) <= len(outputs) + AHEAD * n_workers
    assert [f'"rewrite":"{n} done"'.encode() in output for n, output in enumerate(outputs)] == [True] * 8


@pytest.mark.parametrize("n_workers", [1, 2])
def test_errors_of_workers_are_raised_in_this_process(tmp_path, n_workers):
    with pytest.raises(ModelError, match="there is no model"):
        list(rewrite_chunks(chunks(3), without_model, n_workers))
    asked = chunks(3, line=b'{"query": "q", "user": "ada"}')
    with pytest.raises(StoreError, match="damaged or not a database"):
        list(rewrite_chunks(asked, partial(damaged, tmp_path), n_workers))


@pytest.mark.parametrize("n_workers", [1, 2])
def test_without_chunks_there_are_no_results(tmp_path, n_workers):
    assert list(rewrite_chunks(chunks(0), partial(open_tools, tmp_path), n_workers)) == []
