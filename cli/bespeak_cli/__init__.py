"""The command line: each command parses, calls the library, prints. Heavy imports stay inside the commands."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import click

COMMANDS = {  # name -> module; the function in it has the command's name, "-" as "_"
    "demo": "demo",
    "index": "index",
    "search": "search",
    "remember": "remember",
    "rewrite": "rewrite",
    "events": "events",
    "profile": "profile",
    "learn": "learn",
    "evaluate": "evaluate",
    "tune": "tune",
    "serve": "serve",
    "models": "models",
}


class Commands(click.Group):
    """Imports a command only when it is called, and turns every BespeakError into one sentence."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in COMMANDS:
            return None
        module = importlib.import_module(f"bespeak_cli.{COMMANDS[cmd_name]}")
        command: click.Command = getattr(module, cmd_name)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(SUMMARIES.items()))

    def invoke(self, ctx: click.Context) -> Any:
        from bespeak.errors import BespeakError, UsageError

        try:
            return super().invoke(ctx)
        except UsageError as error:
            raise click.UsageError(str(error), ctx) from error
        except BespeakError as error:
            raise click.ClickException(str(error)) from error


SUMMARIES = {
    "demo": "Three turns of one user over Python's own documentation.",
    "index": "Load a JSON lines or CSV file into an index, with embeddings.",
    "search": "Search as somebody: rewritten, reranked, explained.",
    "remember": "Keep a statement of a user.",
    "rewrite": "Rewrite the queries of a file.",
    "events": "Load what users did.",
    "profile": "See, take along, pause or delete what is known of a user.",
    "learn": "Learn from what people did together.",
    "evaluate": "Measure retrieval and personal gain on judged data.",
    "tune": "Choose the weights that your judgments or clicks speak for.",
    "serve": "Personalise an Elasticsearch that you have, as a proxy.",
    "models": "List, verify, build and export models.",
}


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
    help="Events, profiles and embedded indices.",
)
@click.option("--cache-dir", type=click.Path(path_type=Path, file_okay=False), help="Models that were built here.")
@click.option(
    "--config",
    type=click.Path(path_type=Path, dir_okay=False),
    callback=read_config,
    is_eager=True,
    help="A TOML file with a table of defaults per command.",
)
@click.version_option(package_name="bespeak")
@click.pass_context
def cli(ctx: click.Context, data_dir: Path | None, cache_dir: Path | None, config: Path | None) -> None:
    """Personalised search in front of Elasticsearch."""
    ctx.obj = Folders(data_dir, cache_dir)


class Folders:
    """Where the user's data and the built models lie; made when first asked for."""

    def __init__(self, data_dir: Path | None, cache_dir: Path | None) -> None:
        self._data, self._cache = data_dir, cache_dir

    @property
    def data(self) -> Path:
        import platformdirs

        return self._made(self._data or platformdirs.user_data_path("bespeak"))

    @property
    def learnt(self) -> Path:
        """Where `bespeak learn` writes; not made by who only reads."""
        import platformdirs

        return self._data or platformdirs.user_data_path("bespeak")

    @property
    def cache(self) -> Path:
        import platformdirs

        return self._made(self._cache or platformdirs.user_cache_path("bespeak"))

    def absolute(self) -> Folders:
        """The same for another process; on another machine, folders that are not named are those of its own user."""
        return Folders(*(path and path.absolute() for path in (self._data, self._cache)))

    @staticmethod
    def _made(path: Path) -> Path:
        from bespeak.errors import StoreError

        try:
            path.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StoreError(
                f"cannot make the folder {path} ({error.strerror}): give a writable one with --data-dir or --cache-dir"
            ) from error
        return path
