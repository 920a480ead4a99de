"""The journal gives the last complete state, wherever it was cut off."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bespeak.batch import journal
from bespeak.batch.journal import Journal, RunState
from bespeak.batch.lines import LinePosition
from bespeak.batch.tally import SlowChunk, Tally
from bespeak.errors import InputError

BEGUN = {"model": "m 1", "input": "abc"}
TALLY = Tally({"full": 2, "gated": 1}, {"quoted": 1}, {"turn": 4}, {"no query": 1}, 2, 1, 0.5, (SlowChunk(3.5, 1, 5),))


def state(n):
    return RunState(LinePosition(n, 10 * n), 100 * n, n, 0.25 * n, tally=TALLY)


@pytest.fixture
def written(tmp_path):
    made = Journal(tmp_path / "out.progress")
    made.begin(BEGUN, state(0))
    for n in range(1, 4):
        made.commit(BEGUN, state(n))
    return made


def test_the_last_state_is_read_back(written):
    assert written.read() == (BEGUN, state(3))


def test_without_a_file_there_is_no_state(tmp_path):
    assert Journal(tmp_path / "none").read() is None


def test_a_journal_cut_at_any_byte_gives_its_last_complete_state(written):
    content = written.path.read_bytes()
    ends = [place + 1 for place, byte in enumerate(content) if byte == ord("\n")]
    for n_bytes in range(len(content)):
        written.path.write_bytes(content[:n_bytes])
        n_whole = sum(end <= n_bytes for end in ends)
        expected = None if not n_whole else (BEGUN, RunState() if n_whole == 1 else state(n_whole - 2))
        assert written.read() == expected


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(st.data())
def test_a_damaged_byte_is_detected(written, data):
    content = bytearray(written.path.read_bytes())
    damaged = bytearray(content)
    place = data.draw(st.integers(0, len(content) - 1))
    damaged[place] ^= data.draw(st.integers(1, 255))
    written.path.write_bytes(damaged)
    assert written.read() in (None, (BEGUN, RunState()), *((BEGUN, state(n)) for n in range(3)))
    written.path.write_bytes(content)


def test_a_long_journal_is_replaced(written, monkeypatch):
    monkeypatch.setattr(journal, "MAX_BYTES", 2_000)
    sizes = []
    for n in range(4, 60):
        written.commit(BEGUN, state(n))
        sizes.append(written.path.stat().st_size)
        assert written.read() == (BEGUN, state(n))
    assert max(sizes) < 3_000


def test_a_journal_that_cannot_be_written_is_an_error(tmp_path):
    with pytest.raises(InputError, match=r"cannot write the run.s progress to .*none/out.progress"):
        Journal(tmp_path / "none" / "out.progress").begin(BEGUN, state(0))
