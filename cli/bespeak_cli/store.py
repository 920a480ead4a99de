"""Where a command reads events and profiles: a file on this machine, or the cluster that several proxies share."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bespeak_cli.engine import CREDENTIAL_OPTIONS, credentials

if TYPE_CHECKING:
    from bespeak.profiles.stores import EventStore

Command = TypeVar("Command", bound=Callable[..., Any])

CLUSTER_OPTIONS = ("elasticsearch", "api_key", "basic", "ca_file")

profiles_option = click.option(
    "--profiles",
    type=click.Choice(["sqlite", "elasticsearch"]),
    default="sqlite",
    show_default=True,
    help="Read events and profiles from the SQLite file in --data-dir, or from the cluster that --elasticsearch names.",
)
_OPTIONS = (
    profiles_option,
    click.option("--elasticsearch", metavar="URL", help="The cluster to read from with --profiles elasticsearch."),
    *CREDENTIAL_OPTIONS,
)


def store_options(command: Command) -> Command:
    """Adds the options that `open_store` reads, for a command that uses Elasticsearch for nothing else."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command


def check_store_options(options: Mapping[str, Any], cluster_options: Sequence[str] = CLUSTER_OPTIONS) -> None:
    """Raises UsageError for options that concern the cluster if profiles are read from SQLite."""
    from bespeak.errors import UsageError

    given = [name for name in cluster_options if options[name]]
    if options["profiles"] == "sqlite" and given:
        raise UsageError(f"--{given[0].replace('_', '-')} is for profiles in the cluster: add --profiles elasticsearch")


def open_store(data: Path, options: Mapping[str, Any], timeout_s: float = 5.0) -> EventStore:
    """The store that `--profiles` names; the caller closes it. `data` is the data folder."""
    from bespeak.errors import UsageError
    from bespeak.library import Address
    from bespeak.library import open_store as open_named

    address = None
    if options["profiles"] == "elasticsearch":
        if not options["elasticsearch"]:
            raise UsageError("--profiles elasticsearch needs the cluster's URL: add --elasticsearch URL")
        basic = credentials(options["basic"])
        address = Address(options["elasticsearch"], options["api_key"], basic, options["ca_file"])
    return open_named(data, options["profiles"], address, timeout_s)
