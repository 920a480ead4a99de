"""The progress that a long task shows."""

from __future__ import annotations

import io

import pytest

from bespeak.batch.journal import RunState
from bespeak.batch.report import brief
from bespeak.batch.tally import Tally
from bespeak_cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def shown(stream, *updates):
    """The output for updates 70 s apart."""
    clock = iter(range(0, 10_000, 70))
    progress = Progress("copying", stream, clock=lambda: next(clock))
    for one in updates:
        progress.update(*one)
    return stream.getvalue().splitlines()


def test_a_line_gives_share_note_and_time_left():
    """From a tenth to half of the file in 70 s: the other half takes 87.5 s."""
    assert shown(io.StringIO(), (100, 1000, "4 files"), (500, 1000, "5 files"), (1000, 1000)) == [
        "copying: 10%, 4 files",
        "copying: 50%, 5 files, 1:28 left",
        "copying: 100%, 1,000 of 1,000",
    ]


def test_a_terminal_shows_a_bar_that_is_redrawn_and_removed_at_the_end():
    stream = Terminal()
    shown(stream, (100, 1000), (500, 1000, ""))
    assert stream.getvalue().endswith("\r\x1b[Kcopying: ██████████░░░░░░░░░░  50%, 1:28 left")
    shown(stream, (1000, 1000))
    assert stream.getvalue().endswith("\r\x1b[K")


def test_an_error_removes_the_bar():
    stream = Terminal()
    with pytest.raises(ZeroDivisionError), Progress("copying", stream):
        1 / 0  # noqa: B018
    assert stream.getvalue() == "\r\x1b[Kcopying …\r\x1b[K"


def test_without_a_total_there_is_no_share():
    assert shown(io.StringIO(), (500, None), (700, None, "7 files")) == ["copying: 500", "copying: 7 files"]


def test_what_is_done_can_be_counted():
    clock, stream = iter(range(0, 500, 70)), io.StringIO()
    progress = Progress("copying", stream, clock=lambda: next(clock))
    progress.advance(100, 1000)
    progress.advance(400, 1000)
    assert stream.getvalue().splitlines() == ["copying: 10%", "copying: 50%, 1:28 left"]


def test_a_line_is_written_every_ten_seconds_and_at_the_end():
    clock, stream = iter([0, 3, 9, 11, 12, 13]), io.StringIO()
    progress = Progress("copying", stream, clock=lambda: next(clock))
    for done in range(1, 6):
        progress.update(done, 5, str(done))
    assert [line.split(", ")[1] for line in stream.getvalue().splitlines()] == ["3", "5"]


def state(n_queries, seconds=0.0, **more):
    statuses = {"full": n_queries - n_queries // 4, "gated": n_queries // 4}
    return RunState(seconds=seconds, tally=Tally(statuses, from_cache=n_queries // 2, **more))


def test_a_rewriting_run_gives_rate_and_shares():
    """The rate is that of this run: 3,500 queries in 70 s."""
    assert brief(state(4500, 100.0), state(1000, 30.0)) == "4,500 queries, 50.0/s, 50% cached, 25% gated"
    rejected = state(700, rejected={"no query": 3})
    assert brief(rejected, rejected) == "700 queries, 50% cached, 25% gated, 3 rejected"
