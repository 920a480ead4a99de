from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from bespeak.profiles.events import new_event
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.ranking.learning import LearntFolder
from bespeak.records import UserKey
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


def test_each_tenant_is_learnt_and_reported(learn, tmp_path):
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


def files(folder):
    return {path.name: path.read_bytes() for path in folder.glob("learnt-*")}


@pytest.mark.parametrize(("gone", "back"), [(["forget", "odd"], []), (["consent", "odd", "off"], ["on"])])
def test_a_user_who_leaves_is_removed_by_the_next_run_and_warned_of_it(learn, tmp_path, gone, back):
    def profile(*arguments):
        result = CliRunner().invoke(cli, ["--data-dir", str(tmp_path), "profile", *arguments, "--tenant", "a"])
        assert result.exit_code == 0, result.output
        return result.stderr

    assert learn(bought("a", 20)).exit_code == 0
    before = files(tmp_path)
    odd = [new_event(UserKey("a", "odd"), "purchase", START, doc_id=f"a{d}") for d in (0, 3)]
    assert learn(odd).exit_code == 0
    assert files(tmp_path) != before
    assert "until `bespeak learn` runs again" in profile(*gone)
    assert learn([]).exit_code == 0
    assert files(tmp_path) == before
    if back:
        assert "learn" not in profile("consent", "odd", "on")


def test_forget_mentions_learning_only_if_something_was_learnt(tmp_path):
    SqliteStore(tmp_path / "bespeak.db").add(bought("a", 1))
    result = CliRunner().invoke(cli, ["--data-dir", str(tmp_path), "profile", "forget", "u0", "--tenant", "a"])
    assert (result.exit_code, result.stderr) == (0, "")


def test_a_tenant_with_too_few_events_does_not_stop_the_others(learn):
    result = learn([*bought("a", 20), *bought("b", 2)])
    assert (result.exit_code, result.stdout.count("Learnt")) == (0, 1)


@pytest.mark.parametrize("command", [["learn"], ["tune", "--events"], ["rewrite", "in.jsonl", "--output", "-"]])
@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        (["--elasticsearch", "http://127.0.0.1:9"], "--elasticsearch is for profiles in the cluster: add --profiles"),
        (["--api-key", "hush"], "--api-key is for profiles in the cluster: add --profiles elasticsearch"),
        (["--profiles", "elasticsearch"], "--profiles elasticsearch needs the cluster's URL: add --elasticsearch URL"),
    ],
)
def test_a_cluster_without_its_profiles_and_profiles_without_their_cluster_are_wrong_usage(
    tmp_path, monkeypatch, command, options, sentence
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.jsonl").write_text('{"query": "silk"}\n')
    result = CliRunner().invoke(cli, ["--data-dir", str(tmp_path / "data"), *command, *options, *(
        ["--rewriter", "none"] if command[0] == "rewrite" else []
    )])  # fmt: skip
    assert result.exit_code == 2, result.output
    assert sentence in result.stderr
