"""The command line. Each command parses, calls the library and prints; heavy imports stay in its functions."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

COMMANDS = {  # each has a module and a function of its name
    "demo": "Watch three personalised searches over Python's own documentation.",
    "index": "Load documents from JSON lines or CSV into an index.",
    "search": "Search as a user, with the query rewritten and the hits reranked.",
    "remember": "Record what a user says about themselves.",
    "rewrite": "Rewrite the queries of a file.",
    "events": "Load recorded queries and events.",
    "profile": "Show, export, pause or delete what is known about a user.",
    "learn": "Learn which documents the same people like.",
    "evaluate": "Measure retrieval and personalisation on judged data.",
    "tune": "Choose the settings that fit your judgments or clicks best.",
    "serve": "Run the proxy in front of Elasticsearch.",
    "models": "List, verify, build, export and train models.",
}


class Commands(click.Group):
    """A group that imports a command when it is called, and shows every BespeakError as one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        command: click.Command = getattr(importlib.import_module(f"bespeak_cli.{cmd_name}"), cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        from bespeak.errors import BespeakError, UsageError

        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise click.UsageError(str(error), self._context_of_command(ctx)) from error
        except BespeakError as error:
            raise click.ClickException(str(error)) from error

    def _context_of_command(self, ctx: click.Context) -> click.Context:
        """That of the command that was called, so that the error points to its help."""
        command = self.get_command(ctx, ctx.invoked_subcommand or "")
        return click.Context(command, ctx, ctx.invoked_subcommand) if command else ctx


def read_config(ctx: click.Context, _param: click.Parameter, path: Path | None) -> Path | None:
    """Makes the file's tables the defaults of the commands; options and variables override them."""
    if path is not None:
        from bespeak_cli.configuration import read_defaults

        ctx.default_map = read_defaults(path, ctx)
    return path


@click.group(cls=Commands, context_settings={"auto_envvar_prefix": "BESPEAK", "help_option_names": ["-h", "--help"]})
@click.option(
    "--data-dir",
    type=click.Path(path_type=Path, file_okay=False),
    show_default="the user's data folder",
    help="Folder of events, profiles and embedded indices.",
)
@click.option(
    "--cache-dir",
    type=click.Path(path_type=Path, file_okay=False),
    show_default="the user's cache folder",
    help="Folder of models that were built on this machine.",
)
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=read_config,
    is_eager=True,
    help="TOML file of defaults, with a table for each command, such as [search] or [events.load].",
)
@click.version_option(package_name="bespeak")
@click.pass_context
def cli(ctx: click.Context, data_dir: Path | None, cache_dir: Path | None, config: Path | None) -> None:
    """Personalised search in front of Elasticsearch. See it work with `bespeak demo`.

    Each option can also be given as a variable (BESPEAK_SEARCH_WINDOW for `search --window`) or in --config.
    """
    ctx.obj = Folders(data_dir, cache_dir)


class Folders:
    """The folders of the user's data and of the built models, which are made when they are first needed."""

    def __init__(self, data_dir: Path | None, cache_dir: Path | None) -> None:
        self._data, self._cache = data_dir, cache_dir

    @property
    def data(self) -> Path:
        import platformdirs

        return self._made(self._data or platformdirs.user_data_path("bespeak"))

    @property
    def learnt(self) -> Path:
        """The data folder, which holds what `bespeak learn` wrote; it is not made to be read."""
        import platformdirs

        return self._data or platformdirs.user_data_path("bespeak")

    @property
    def cache(self) -> Path:
        import platformdirs

        return self._made(self._cache or platformdirs.user_cache_path("bespeak"))

    def absolute(self) -> Folders:
        """The same folders for another process. On another machine, the defaults are those of its own user."""
        return Folders(*(path and path.absolute() for path in (self._data, self._cache)))

    @staticmethod
    def _made(path: Path) -> Path:
        from bespeak.errors import StoreError
        from bespeak.files import make_private_folder

        try:
            make_private_folder(path)
        except OSError as error:
            raise StoreError(
                f"cannot make the folder {path} ({error.strerror}): give a writable one with --data-dir or --cache-dir"
            ) from error
        return path
