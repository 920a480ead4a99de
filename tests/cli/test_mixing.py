"""The options that become settings: their defaults and bounds come from `Settings`, in every command alike."""

import pytest
from click.testing import CliRunner

from bespeak.settings import MAX_WINDOW, Settings
from bespeak_cli import cli
from bespeak_cli.mixing import OPTIONAL, read_settings
from bespeak_cli.search import search
from bespeak_cli.serve import serve

SEARCH = ["silk", "--index", "things"]
SERVE = ["--upstream", "http://127.0.0.1:9"]


@pytest.mark.parametrize(("command", "given"), [(search, SEARCH), (serve, SERVE)])
def test_without_options_the_settings_are_the_defaults(command, given):
    assert read_settings(command.make_context(command.name, list(given)).params) == Settings()


@pytest.mark.parametrize("command", ["search", "serve", "evaluate"])
def test_help_shows_the_defaults(command):
    text = " ".join(CliRunner().invoke(cli, [command, "--help"]).stdout.split())
    names = {"search": ("window", "rewrite_ms"), "serve": ("window", "rewrite_ms", "rerank_ms", "profile_ms")}
    for name in ("rewrite_weight", "last_turn_weight", "last_turn_share", *names.get(command, ())):
        shown = text.partition(f"--{name.replace('_', '-')} ")[2]
        assert f"[default: {getattr(Settings(), name)};" in shown.partition(" --")[0]
    assert "[default: 0.2,0.8,0.15]" in text


@pytest.mark.parametrize(("command", "given"), [(search, SEARCH), (serve, SERVE)])
def test_the_window_has_one_bound(command, given):
    def window(hits):
        return CliRunner().invoke(cli, [command.name, *given, "--window", str(hits)])

    params = command.make_context(command.name, [*given, "--window", str(MAX_WINDOW)]).params
    assert read_settings(params).window == MAX_WINDOW
    assert f"{MAX_WINDOW + 1} is not in the range 1<=x<={MAX_WINDOW}" in window(MAX_WINDOW + 1).stderr


def test_every_setting_but_the_mode_is_an_option_of_serve():
    assert set(OPTIONAL) - {"mode"} <= {param.name for param in serve.params}
    assert set(OPTIONAL) | {"weights"} == set(Settings.__dataclass_fields__)
