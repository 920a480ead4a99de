"""Which engine a command talks to: the embedded one, or Elasticsearch where its URL is given."""

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
        help="For Elasticsearch: the certificate (PEM) of the authority that signed its own.",
    ),
)
_OPTIONS = (
    click.option("--elasticsearch", metavar="URL", help="Use this Elasticsearch instead of the embedded engine."),
    *CREDENTIAL_OPTIONS,
)


def engine_options(command: Command) -> Command:
    """Adds the options that `open_engine` reads; a variable keeps a secret out of the process list."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def open_engine(ctx: click.Context, options: Mapping[str, Any]) -> Engine:
    """The engine that the options name; it is closed when the command ends. Nothing is asked of it yet."""
    engine = open_engine_of(ctx.obj.data, options)
    ctx.call_on_close(engine.close)
    return engine


def open_engine_of(data: Path, options: Mapping[str, Any]) -> Engine:
    """The same, of this data folder; the caller closes it."""
    from bespeak.errors import UsageError

    url = options["elasticsearch"]
    if url is None:
        given = [name for name in ("api_key", "basic", "ca_file") if options[name]]
        if given:
            raise UsageError(f"--{given[0].replace('_', '-')} is for Elasticsearch: give its URL with --elasticsearch")
        from bespeak.engines.embedded import EmbeddedEngine

        return EmbeddedEngine(data / "indices")
    import logging

    from bespeak.engines.elastic import ElasticsearchEngine

    logging.getLogger("elastic_transport").addHandler(logging.NullHandler())  # what fails is told by the error
    return ElasticsearchEngine(url, options["api_key"], credentials(options["basic"]), options["ca_file"])


def credentials(basic: str | None) -> tuple[str, str] | None:
    from bespeak.errors import UsageError

    if basic is None:
        return None
    user, colon, password = basic.partition(":")
    if not (user and colon):
        raise UsageError("--basic takes USER:PASSWORD, and there is no user or no colon in what was given")
    return user, password
