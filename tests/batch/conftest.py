import pytest

from batch_runs import INPUT, Runs
from bespeak.batch import lines


@pytest.fixture(autouse=True)
def small_chunks(monkeypatch):
    monkeypatch.setattr(lines, "CHUNK_LINES", 5)


@pytest.fixture
def runs(tmp_path):
    made = Runs(tmp_path)
    made.write(INPUT)
    return made
