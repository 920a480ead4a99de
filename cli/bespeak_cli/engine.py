"""Which engine a command talks to: the embedded one, or Elasticsearch if its URL is given."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from bespeak.engines import Engine

Command = TypeVar("Command", bound=Callable[..., Any])

CREDENTIAL_OPTIONS = (
    click.option("--api-key", metavar="KEY", help="For Elasticsearch: an encoded API key."),
    click.option("--basic", metavar="USER:PASSWORD", help="For Elasticsearch: a user and a password."),
    click.option(
        "--ca-file",
        type=click.Path(exists=True, dir_okay=False, path_type=Path),
        help="For Elasticsearch: the certificate (PEM) of the authority that signed the server's.",
    ),
)
_OPTIONS = (
    click.option("--elasticsearch", metavar="URL", help="Use this Elasticsearch instead of the embedded engine."),
    *CREDENTIAL_OPTIONS,
)


def engine_options(command: Command) -> Command:
    """Adds the options that `address` reads; a variable keeps a secret out of the process list."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def open_engine(ctx: click.Context, options: Mapping[str, Any]) -> Engine:
    """The engine that the options name; it is closed when the command ends. It is not contacted yet."""
    engine = open_engine_of(ctx.obj.data, options)
    ctx.call_on_close(engine.close)
    return engine


def open_engine_of(data: Path, options: Mapping[str, Any]) -> Engine:
    """The same, for a data folder; the caller closes it."""
    from bespeak.library import Address
    from bespeak.library import open_engine as open_named

    named = address(options)
    return open_named(data, Address(named.pop("elasticsearch"), **named) if named else None)


def address(options: Mapping[str, Any]) -> dict[str, Any]:
    """The arguments of `bespeak.open` that name an Elasticsearch; none for the embedded engine. Raises UsageError."""
    from bespeak.errors import UsageError

    names = ("api_key", "basic", "ca_file")
    if options["elasticsearch"] is None:
        if given := [name for name in names if options[name]]:
            raise UsageError(f"--{given[0].replace('_', '-')} is for Elasticsearch: give its URL with --elasticsearch")
        return {}
    import logging

    logging.getLogger("elastic_transport").addHandler(logging.NullHandler())  # the error says what failed
    return {
        "elasticsearch": options["elasticsearch"],
        "api_key": options["api_key"],
        "basic": credentials(options["basic"]),
        "ca_file": options["ca_file"],
    }


def credentials(basic: str | None) -> tuple[str, str] | None:
    """User and password. Raises UsageError."""
    from bespeak.errors import UsageError

    if basic is None:
        return None
    user, colon, password = basic.partition(":")
    if not (user and colon):
        raise UsageError("--basic takes USER:PASSWORD, but the value has no user or no colon")
    return user, password
