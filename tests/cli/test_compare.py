import json

import pytest
from click.testing import CliRunner
from test_interleaving import BAD, GOOD, searches

from bespeak.errors import InputError, UsageError
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.settings import Settings, Weights
from bespeak_cli import cli
from bespeak_cli.compare import read_comparison


def test_a_side_is_the_engine_the_current_settings_or_a_file(tmp_path):
    path = tmp_path / "tuned.toml"
    path.write_text('[serve]\nweights = "0.5,0.5,0"\nlast_turn_share = 0.25\n')
    now = Settings(window=20)
    found = read_comparison(f"engine|{path}", now)
    assert found.name == "engine|tuned"
    assert found.split
    assert found.sides[0].settings is None
    assert found.sides[1].settings == Settings(Weights(0.5, 0.5, 0), window=20, last_turn_share=0.25)
    assert read_comparison("engine:current", now).sides[1].settings == now


@pytest.mark.parametrize("text", ["engine", "engine:engine", "a:b:c"])
def test_a_comparison_needs_two_different_sides(text):
    with pytest.raises(UsageError):
        read_comparison(text, Settings())


def test_a_side_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(InputError, match=r"missing\.toml"):
        read_comparison(f"engine:{tmp_path / 'missing.toml'}", Settings())


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (("--elasticsearch", "http://127.0.0.1:1"), 2, "add --profiles elasticsearch"),
        (("--profiles", "elasticsearch"), 2, "--profiles elasticsearch needs"),
        (("--profiles", "elasticsearch", "--elasticsearch", "http://127.0.0.1:1"), 1, "127.0.0.1:1"),
    ],
)
def test_the_report_never_reads_this_machine_instead_of_a_cluster(tmp_path, options, code, said):
    found = CliRunner().invoke(cli, ["--data-dir", str(tmp_path), "evaluate", "--interleaving", *options])
    assert (found.exit_code, said in found.stderr) == (code, True), found.output


def test_the_report_reads_the_store_without_forgotten_users(tmp_path):
    def run(*arguments):
        found = CliRunner().invoke(cli, ["--data-dir", str(tmp_path), "evaluate", "--interleaving", *arguments])
        assert found.exit_code == 0, found.output
        return found.stdout

    assert "Nothing was compared" in run()
    store = SqliteStore(tmp_path / "bespeak.db")
    events = list(searches("engine:tuned", (BAD, GOOD)))
    store.add(events)
    assert "better: tuned" in run()
    (found,) = json.loads(run("--format", "json"))
    assert found["searches"] == 240
    store.forget(events[0].user)
    assert json.loads(run("--format", "json"))[0]["searches"] == 236
    store.close()
