"""What a long run tells while it runs."""

from __future__ import annotations

import io

from bespeak.batch.journal import Standing
from bespeak.batch.run import Step
from bespeak.batch.tally import Tally
from bespeak_cli.progress import Progress


class Terminal(io.StringIO):
    def isatty(self):
        return True


def step(n_queries, read_bytes, **more):
    statuses = {"full": n_queries - n_queries // 4, "gated": n_queries // 4}
    return Step(Standing(tally=Tally(statuses, from_cache=n_queries // 2, **more)), read_bytes)


def told(stream, size, *steps):
    """As it is shown 70 s after the first of these steps."""
    now = iter([0.0, 70.0])
    progress = Progress(stream, size, clock=lambda: next(now))
    for one in steps:
        progress.tell(one)
    progress.show()
    return stream.getvalue()


def test_lines_tell_rate_time_left_and_shares():
    """From a tenth to half of the file in 70 s: the other half in 87.5 s."""
    assert told(io.StringIO(), 1000, step(1000, 100), step(4500, 500)) == (
        "50%, 4,500 queries, 50.0/s, 1:28 left, 50% cached, 25% gated\n"
    )


def test_a_terminal_has_a_bar_that_is_drawn_over():
    shown = told(Terminal(), 1000, step(1000, 100), step(4500, 500, rejected={"no query": 3}))
    assert shown.startswith("\r\x1b[K██████████░░░░░░░░░░  50%, 4,500 queries, 50.0/s, 1:28 left")


def test_of_a_stream_no_end_is_told():
    assert told(io.StringIO(), None, step(0, 0), step(700, 500)) == "700 queries, 10.0/s, 50% cached, 25% gated\n"


def test_rejected_lines_are_told():
    shown = told(io.StringIO(), None, step(0, 0), step(700, 500, rejected={"no query": 3}))
    assert shown.endswith(", 3 rejected\n")


def test_before_the_first_step_it_says_that_it_has_begun():
    assert told(io.StringIO(), 1000) == "begun, nothing is done yet\n"


def test_what_was_drawn_is_taken_away_at_the_end():
    stream = Terminal()
    with Progress(stream, 1000) as progress:
        progress.tell(step(10, 10))
        progress.show()
    assert stream.getvalue().endswith("\r\x1b[K")
