import json
from datetime import UTC, datetime

import pytest
from click.testing import CliRunner

from bespeak.profiles.events import new_event
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.records import UserKey
from bespeak_cli import cli


@pytest.fixture
def run(tmp_path):
    def invoke(*arguments):
        return CliRunner().invoke(cli, ["--data-dir", str(tmp_path / "data"), *map(str, arguments)])

    return invoke


def shown(run, *arguments):
    result = run("profile", "show", *arguments, "--format", "json")
    assert result.exit_code == 0
    return json.loads(result.stdout)


def fill(tmp_path, *events):
    (tmp_path / "data").mkdir(exist_ok=True)
    store = SqliteStore(tmp_path / "data" / "bespeak.db")
    store.add(events)
    store.close()


def event(action, user="u", tenant="", **given):
    return new_event(UserKey(tenant, user), action, datetime(2025, 5, 1, tzinfo=UTC), **given)


def test_what_is_remembered_is_shown(run):
    result = run("remember", "--user", "u", "I am vegetarian")
    assert (result.exit_code, result.stdout) == (0, "")
    assert run("profile", "show", "u").stdout == "Statements\n  I am vegetarian\n"
    assert run("profile", "show", "u", "--tenant", "shop").stdout == "Nothing is known.\n"
    assert [s["text"] for s in shown(run, "u")["statements"]] == ["I am vegetarian"]


@pytest.mark.parametrize(
    "arguments",
    [
        ["remember", "text"],
        ["remember", "--user", "u"],
        ["remember", "--user", "u", " "],
        ["remember", "--user", "", "x"],
        ["profile", "show"],
        ["profile", "show", ""],
        ["profile", "forget", "x" * 300],
        ["profile", "consent", "u", "maybe"],
    ],
)
def test_wrong_usage(run, arguments):
    assert run(*arguments).exit_code == 2


def test_a_statement_that_is_too_long_is_an_error(run):
    result = run("remember", "--user", "u", "x" * 100_000)
    assert (result.exit_code, "at most 32768" in result.stderr) == (1, True)


def test_showing_an_unknown_user_is_no_error_and_makes_no_file(run, tmp_path):
    assert run("profile", "show", "nobody").stdout == "Nothing is known.\n"
    assert run("profile", "export", "nobody").stdout == ""
    assert run("profile", "forget", "nobody").stdout == "Deleted: 0 events, 0 cached rewrites, no pause\n"
    assert not (tmp_path / "data" / "bespeak.db").exists()


def test_turns_and_preferences_are_shown(run, tmp_path):
    fill(
        tmp_path,
        event("query", session_id="s", query_id="q", text="gold"),
        event("click", session_id="s", query_id="q", doc_id="d", title="Ring"),
        event("rating", doc_id="e", value=1, title="evil \x1b[31mred\n"),
    )
    result = run("profile", "show", "u", "--session", "s")
    assert result.exit_code == 0
    assert "Turns of this session\n  gold → Ring\n" in result.stdout
    assert "  Ring  (click, 2025-05-01)\n" in result.stdout
    assert "\x1b" not in result.stdout
    assert [p["doc_id"] for p in shown(run, "u")["preferences"]] == ["e", "d"]
    assert shown(run, "u")["turns"] == []


def test_an_export_loads_back_equal(run, tmp_path):
    said = "I ❤ tea\u2028and\n" + "cake " * 400
    fill(
        tmp_path,
        event("statement", text=said.strip()),
        event("query", session_id="s", query_id="q", text="gold", attributes={"query_attributes": {"page": 2}}),
        event("answer", query_id="q", text="It is yellow"),
        event(
            "rating", doc_id="e", value=1.5, title="T", attributes={"event_attributes": {"position": {"ordinal": 3}}}
        ),
    )
    first = run("profile", "export", "u").stdout_bytes
    assert first.count(b"\n") == 4
    (tmp_path / "u.ndjson").write_bytes(first)
    before = shown(run, "u", "--session", "s")
    assert run("profile", "forget", "u").exit_code == 0
    assert run("events", "load", tmp_path / "u.ndjson").stdout.startswith("4 events added")
    assert run("profile", "export", "u").stdout_bytes == first
    assert shown(run, "u", "--session", "s") == before


def test_forget_reports_what_it_deleted_and_nothing_is_known_afterwards(run, tmp_path):
    fill(tmp_path, event("click", doc_id="d"), event("statement", text="zebra"), event("click", user="v", doc_id="d"))
    run("profile", "consent", "u", "off")
    assert run("profile", "forget", "u").stdout == "Deleted: 2 events, 0 cached rewrites, a pause\n"
    assert shown(run, "u") == shown(run, "nobody") | {"user": ["", "u"]}
    assert shown(run, "v")["preferences"]
    assert not any(b"zebra" in path.read_bytes() for path in (tmp_path / "data").iterdir())


def test_consent_is_paused_and_resumed(run):
    run("remember", "--user", "u", "I am vegetarian")
    assert run("profile", "consent", "u", "off").exit_code == 0
    assert run("profile", "show", "u").stdout.startswith("Personalisation is paused.\n")
    assert shown(run, "u")["consent"] is False
    assert run("profile", "consent", "u", "on").exit_code == 0
    assert shown(run, "u")["consent"] is True
