"""The configuration file: a TOML table of defaults for each command, checked before any command runs."""

from __future__ import annotations

import difflib
import tomllib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import click

NOT_CONFIGURED = {"config", "version", "help"}


def read_defaults(path: Path, ctx: click.Context) -> dict[str, Any]:
    """The file as click's `default_map`. Raises click.BadParameter, which names the file and the place in it."""
    try:
        tables = tomllib.loads(path.read_text("utf-8"))
    except OSError as error:
        raise click.BadParameter(f"cannot read {path} ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise click.BadParameter(f"{path} is not UTF-8: {error.reason} at byte {error.start}") from error
    except tomllib.TOMLDecodeError as error:
        raise click.BadParameter(f"{path} is not TOML: {error}") from error
    try:
        return _read_table(ctx.command, tables, "", ctx)
    except ValueError as error:
        raise click.BadParameter(f"{path}: {error}") from error


def _read_table(command: click.Command, table: Mapping[str, Any], name: str, ctx: click.Context) -> dict[str, Any]:
    """The defaults of a command and its subcommands, by parameter name. Raises ValueError for an unknown key."""
    options = configurable(command)
    commands = _subcommands(command, ctx)
    defaults: dict[str, Any] = {}
    for key, value in table.items():
        if key in commands:
            inner = _inside(name, key)
            if not isinstance(value, dict):
                raise ValueError(f"{inner} is a command: put its options into a table [{inner}]")
            defaults[key] = _read_table(commands[key](), value, inner, ctx)
        elif option := options.get(key.replace("-", "_")):
            place = f"[{name}] {key}" if name else key
            if option.name in defaults:
                raise ValueError(f"{place} is there twice, with - and with _: keep one of them")
            defaults[str(option.name)] = _read_value(option, value, place, ctx)
        else:
            known = {one: one for one in options} | {one: f"[{_inside(name, one)}]" for one in commands}
            raise ValueError(f"there is no {_kind(key, value, name)}: {_suggestion(key, known)}")
    return defaults


def _subcommands(command: click.Command, ctx: click.Context) -> dict[str, Callable[[], click.Command]]:
    """Functions that give each subcommand, which is imported only then."""
    if not isinstance(command, click.Group):
        return {}
    return {name: partial(_subcommand, command, name, ctx) for name in command.list_commands(ctx)}


def _subcommand(group: click.Group, name: str, ctx: click.Context) -> click.Command:
    command = group.get_command(ctx, name)
    assert command is not None
    return command


def _inside(table: str, key: str) -> str:
    return f"{table}.{key}" if table else key


def _kind(key: str, value: Any, table: str) -> str:
    if isinstance(value, dict):
        return f"table [{_inside(table, key)}]"
    return f"option {key}" + (f" in [{table}]" if table else "")


def configurable(command: click.Command) -> dict[str, click.Option]:
    """The command's options by the name that they have in the file: the long one, with `_` for `-`."""
    options = [param for param in command.params if isinstance(param, click.Option)]
    return {name: option for option in options if (name := _file_name(option)) not in NOT_CONFIGURED}


def _file_name(option: click.Option) -> str:
    return max(option.opts, key=len).lstrip("-").replace("-", "_")


def _suggestion(name: str, known: Mapping[str, str]) -> str:
    """The nearest of the known names as it is written in the file, or all of them."""
    near = difflib.get_close_matches(name.replace("-", "_"), known, n=1, cutoff=0.7)
    return f"did you mean {known[near[0]]}?" if near else f"choose from {', '.join(sorted(known.values()))}"


def _read_value(option: click.Option, value: Any, place: str, ctx: click.Context) -> Any:
    """The value as click takes a default: a list where the option may be repeated."""
    if not option.multiple:
        return _checked(option, value, place, ctx)
    values = value if isinstance(value, list) else [value]
    return [_checked(option, one, place, ctx) for one in values]


def _checked(option: click.Option, value: Any, place: str, ctx: click.Context) -> Any:
    """The value, of the right type and in the option's range. Files and folders are checked by the command."""
    wanted, types = _wanted(option)
    if not isinstance(value, types) or isinstance(value, bool) != (types is bool):
        raise ValueError(f"{place} must be {wanted}, but is {_shown(value)}")
    if not isinstance(option.type, click.Path):
        try:
            option.type.convert(value, option, ctx)
        except click.BadParameter as error:
            raise ValueError(f"{place}: {error.message}") from error
    return value


def _wanted(option: click.Option) -> tuple[str, Any]:
    """A description of the TOML type that an option takes, and the Python types that it is read as."""
    if option.is_flag:
        return "true or false", bool
    if isinstance(option.type, click.types.IntParamType):
        return "a whole number", int
    if isinstance(option.type, click.types.FloatParamType):
        return "a number", (int, float)
    if isinstance(option.type, click.types.StringParamType):  # a share may be "10%" or 0.1
        return "a string", (str, int, float)
    return "a string", str


def _shown(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, dict):
        return "a table"
    return repr(value)
