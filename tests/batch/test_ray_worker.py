"""A worker of a cluster: its work on a block, and its report if it fails."""

from __future__ import annotations

import pickle

import pytest

pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `ray`)")

from functools import partial

from batch_runs import make_tools
from bespeak.batch.blocks import plan_blocks, read_part
from bespeak.batch.journal import RunState, journal_of
from bespeak.batch.on_ray import Worker, WorkerSetup
from bespeak.errors import InputError, ModelError
from bespeak.rewriting.rewriter import LastTurn, Unchanged

BEGUN = {"model": "last-turn 1", "input": "x"}


class Failing(LastTurn):
    def rewrite(self, query, profile, budget_ms=None):
        raise AssertionError("asked again")


@pytest.fixture
def blocks(runs, monkeypatch):
    """The two blocks, of two chunks each, of a run that has begun."""
    monkeypatch.setattr("bespeak.batch.blocks.BLOCK_CHUNKS", 2)
    runs.write(journal_of(BEGUN, RunState()), "out.jsonl.progress")
    with (runs.folder / "in.jsonl").open("rb") as stream:
        return list(plan_blocks(stream))


def report_of(runs, block, begun=BEGUN, **more):
    work = WorkerSetup(
        str(runs.folder / "in.jsonl"), str(runs.folder / "out.jsonl"), begun, partial(make_tools, runs.folder, **more)
    )
    return pickle.loads(Worker(work)({"block": pickle.dumps(tuple(block))})["report"])


def parts(runs):
    return sorted((runs.folder / "out.jsonl.parts").iterdir())


def test_the_parts_together_are_the_output_of_a_run_on_one_machine(runs, blocks):
    counted = [report_of(runs, block) for block in reversed(blocks)]
    assert [one.error for one in counted] == [None, None]
    (runs.folder / "out.jsonl.progress").unlink()
    state = runs.run()
    made = [read_part(path.read_bytes()) for path in parts(runs)]
    assert b"".join(part.output for part in made) == runs.read()
    assert b"".join(part.rejected for part in made) == runs.read("out.jsonl.rejected")
    assert counted[0].tally.plus(counted[1].tally).statuses == state.tally.statuses


def test_a_part_that_a_lost_worker_has_written_is_used(runs, blocks):
    first = report_of(runs, blocks[0])
    again = report_of(runs, blocks[0], rewriter=Failing)
    assert again == first
    assert len(parts(runs)) == 1


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"begun": {**BEGUN, "input": "y"}}, InputError, "out.jsonl.progress does not belong to this run"),
        ({"rewriter": Unchanged}, ModelError, "the model is none 1 here, not last-turn 1"),
        ({"strict": True}, InputError, "line 13: broken JSON"),
    ],
)
def test_a_worker_with_another_run_model_or_input_reports_it_and_writes_nothing(runs, blocks, change, error, said):
    answer = report_of(runs, blocks[1], **change)
    assert type(answer.error) is error
    assert said in str(answer.error)
    assert not (runs.folder / "out.jsonl.parts").exists()


def test_a_node_that_sees_another_input_reports_it(runs, blocks):
    runs.write(b"{}\n")
    assert "of the input have changed (on " in str(report_of(runs, blocks[1]).error)
