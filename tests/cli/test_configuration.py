"""The configuration file: what it may hold, and that everything else is refused in a sentence."""

import click
import pytest
from click.testing import CliRunner

from bespeak_cli import COMMANDS, cli
from bespeak_cli.configuration import configurable


@pytest.fixture
def run(tmp_path):
    def invoke(content, *arguments):
        (tmp_path / "bespeak.toml").write_bytes(content if isinstance(content, bytes) else content.encode())
        folders = ["--config", tmp_path / "bespeak.toml", "--data-dir", tmp_path / "data"]
        return CliRunner().invoke(cli, [*map(str, [*folders, *arguments])])

    return invoke


def defaults_of(tmp_path, content, *names):
    """The options that the file gives the named (sub)command."""
    (tmp_path / "bespeak.toml").write_text(content)
    ctx = cli.make_context("bespeak", ["--config", str(tmp_path / "bespeak.toml"), names[0]])
    command = cli
    for name in names:
        command = command.get_command(ctx, name)
        ctx = click.Context(command, parent=ctx, info_name=name)
    return {param.name: param.process_value(ctx, param.consume_value(ctx, {})[0]) for param in command.params
            if isinstance(param, click.Option) and param.name in ctx.default_map}  # fmt: skip


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[serch]\nwindow = 5", "there is no table [serch]: did you mean [search]?"),
        ("[search]\nwieghts = '1,0,0'", "there is no option wieghts in [search]: did you mean weights?"),
        ("[serve]\nsharre = '10%'", "there is no option sharre in [serve]: did you mean share?"),
        ("[events.laod]\ntenant = 'a'", "there is no table [events.laod]: did you mean [events.load]?"),
        ("[events.load]\ntenannt = 'a'", "there is no option tenannt in [events.load]: did you mean tenant?"),
        ("[events]\ntenant = 'a'", "there is no option tenant in [events]: choose from [events.load]"),
        ("[search]\nquery = 'x'", "there is no option query in [search]: choose from api_key, basic, "),
        ("data-dri = 'x'", "there is no option data-dri: did you mean data_dir?"),
        ("config = 'x'", "there is no option config: choose from [demo], [evaluate], "),
        ("serve = 'x'", "serve is a command: put its options into a table [serve]"),
        ("[serve.upstream]\na = 1", "[serve] upstream must be a string, but is a table"),
        ("[search]\nwindow = 'many'", "[search] window must be a whole number, but is 'many'"),
        ("[search]\nwindow = 3.7", "[search] window must be a whole number, but is 3.7"),
        ("[search]\nwindow = true", "[search] window must be a whole number, but is true"),
        ("[search]\nwindow = [5]", "[search] window must be a whole number, but is [5]"),
        ("[search]\nwindow = 0", "[search] window: 0 is not in the range"),
        ("[search]\nrewrite-weight = 'x'", "[search] rewrite-weight must be a number, but is 'x'"),
        ("[search]\nrewrite-weight = 1\nrewrite_weight = 2", "[search] rewrite_weight is there twice"),
        ("[search]\nmode = 'both'", "[search] mode: 'both' is not one of 'recall', 'boost'"),
        ("[search]\nexplain = 'yes'", "[search] explain must be true or false, but is 'yes'"),
        ("[search]\nindex = false", "[search] index must be a string, but is false"),
        ("[search]\ntemplates = 1", "[search] templates must be a string, but is 1"),
        ("[serve]\nupstream = [1, {}]", "[serve] upstream must be a string, but is a table"),
        ("[search\n", "is not TOML: Expected ']' at the end of a table declaration (at line 1, column 8)"),
        (b"[search]\nindex = '\xff'", "is not UTF-8: invalid start byte at byte 18"),
    ],
)
def test_unknown_keys_are_refused_with_their_place(run, tmp_path, content, sentence):
    result = run(content, "profile", "show", "ada")
    assert result.exit_code == 2
    assert f"Invalid value for '--config': {tmp_path / 'bespeak.toml'}" in result.stderr
    assert sentence in result.stderr
    assert "Traceback" not in result.output


@pytest.mark.parametrize("name", ["missing.toml", "."])
def test_a_file_that_cannot_be_read_is_named(tmp_path, name):
    result = CliRunner().invoke(cli, ["--config", str(tmp_path / name), "profile", "show", "ada"])
    assert result.exit_code == 2
    assert str(tmp_path) in result.stderr


@pytest.mark.parametrize("value", ['"http://127.0.0.1:9200"', '["http://127.0.0.1:9200"]'])
def test_an_option_that_may_be_repeated_takes_a_string_or_a_list(tmp_path, value):
    found = defaults_of(tmp_path, f"[serve]\nupstream = {value}", "serve")
    assert found == {"upstream": ("http://127.0.0.1:9200",)}


def test_values_of_the_file_are_the_commands_defaults(run, tmp_path):
    content = "[search]\nwindow = 50\nrewrite-ms = 20\nformat = 'json'\nrecord = false\ntemplates = '/nowhere'"
    run(content, "profile", "show", "ada")  # a folder that is not here concerns `search` alone
    (tmp_path / "bespeak.toml").write_text(content.replace("\ntemplates = '/nowhere'", ""))
    ctx = cli.make_context("bespeak", ["--config", str(tmp_path / "bespeak.toml"), "search"])
    params = cli.get_command(ctx, "search").make_context("search", ["silk", "--index", "x"], ctx).params
    assert (params["window"], params["rewrite_ms"], params["format_"], params["record"]) == (50, 20.0, "json", False)


def test_subcommands_have_tables_within_the_table_of_their_group(run):
    result = run("[profile.show]\nformat = 'json'", "profile", "show", "ada")
    assert (result.exit_code, result.stdout[0]) == (0, "{")


def test_an_option_overrides_the_file_and_the_file_may_hold_the_folders(tmp_path):
    (tmp_path / "bespeak.toml").write_text(f"data_dir = '{tmp_path / 'own'}'\n[profile.show]\nformat = 'json'")
    config = ["--config", str(tmp_path / "bespeak.toml")]
    result = CliRunner().invoke(cli, [*config, "profile", "show", "ada", "--format", "text"])
    assert result.stdout == "Nothing is known.\n"
    assert CliRunner().invoke(cli, [*config, "remember", "I like silk.", "--user", "ada"]).exit_code == 0
    assert (tmp_path / "own" / "bespeak.db").is_file()


def all_commands(group, ctx):
    for name in group.list_commands(ctx):
        command = group.get_command(ctx, name)
        yield command
        if isinstance(command, click.Group):
            yield from all_commands(command, ctx)


def test_every_option_of_every_command_has_a_name_of_its_own_in_the_file():
    ctx = click.Context(cli)
    commands = list(all_commands(cli, ctx))
    assert len(commands) > len(COMMANDS)
    for command in commands:
        assert len(configurable(command)) == sum(isinstance(param, click.Option) for param in command.params)
