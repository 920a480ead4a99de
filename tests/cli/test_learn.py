from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from bespeak.events import new_event
from bespeak.learning import LearntFolder
from bespeak.records import UserKey
from bespeak.stores.sqlite import SqliteStore
from bespeak_cli import cli

START = datetime(2025, 5, 1, tzinfo=UTC)


@pytest.fixture
def learn(tmp_path):
    def run(events):
        store = SqliteStore(tmp_path / "bespeak.db")
        store.add(events)
        store.close()
        return CliRunner().invoke(cli, ["--data-dir", str(tmp_path), "learn"])

    return run


def bought(tenant, n_users):
    return [
        new_event(UserKey(tenant, f"u{n}"), "purchase", START + timedelta(hours=d), doc_id=f"{tenant}{d}")
        for n in range(n_users)
        for d in range(6)
    ]


def test_learns_each_tenant_and_says_so(learn, tmp_path):
    result = learn([*bought("a", 20), *bought("b", 20)])
    assert result.exit_code == 0
    assert result.stdout.count("Learnt from 120 events of 20 users on 6 documents") == 2
    found, note = LearntFolder(tmp_path).of("a")
    assert (sorted(found.doc_ids), note) == ([f"a{d}" for d in range(6)], "")


def test_too_few_events_are_refused_in_a_sentence(learn, tmp_path):
    for events in ([], bought("a", 2)):
        result = learn(events)
        assert (result.exit_code, result.stdout) == (1, "")
        assert "bespeak events load" in result.stderr
    assert LearntFolder(tmp_path).of("a") == (None, "")


def test_a_tenant_with_too_few_events_holds_up_no_other(learn):
    result = learn([*bought("a", 20), *bought("b", 2)])
    assert (result.exit_code, result.stdout.count("Learnt")) == (0, 1)
