"""Writes docs/commands.md: the help of every command, as `--help` prints it in a terminal of 100 columns."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import click

PAGE = Path(__file__).parents[1] / "docs" / "commands.md"
WIDTH = 100

INTRODUCTION = """\
# Commands

This page is what `--help` prints. `python scripts/command_reference.py` writes it, and a test compares the two.

Every option also has an environment variable and a place in the configuration file:
[install.md](install.md#options-variables-and-the-configuration-file).
"""


def reference() -> str:
    """The whole page."""
    from bespeak_cli import cli

    return "\n".join([INTRODUCTION, *sections(cli, "bespeak", None)])


def sections(command: click.Command, name: str, parent: click.Context | None) -> Iterator[str]:
    """A section for the command, then one for each of its subcommands, in the order in which `--help` lists them."""
    context = click.Context(command, parent=parent, info_name=name, terminal_width=WIDTH, **command.context_settings)
    level = "###" if parent and parent.parent else "##"
    yield f"{level} {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for subname in command.list_commands(context):
            subcommand = command.get_command(context, subname)
            if subcommand and not subcommand.hidden:
                yield from sections(subcommand, subname, context)


if __name__ == "__main__":
    PAGE.write_text(reference(), "utf-8")
    print(f"wrote {PAGE}")
