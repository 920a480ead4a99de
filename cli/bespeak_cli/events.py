"""`bespeak events`: load recorded queries and events."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from bespeak_cli.identity import tenant_option
from bespeak_cli.progress import Progress

REJECTIONS_SHOWN = 20


@click.group()
def events() -> None:
    """Load recorded queries and events."""


@events.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@tenant_option
@click.option(
    "--rejected",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the number of each rejected line and the reason to this file.",
)
@click.pass_context
def load(ctx: click.Context, file: Path, tenant: str, rejected: Path | None) -> None:
    """Load queries and events in the format of User Behavior Insights (UBI).

    FILE holds JSON lines or a body for Elasticsearch's _bulk API, plain or gzip. An interrupted load resumes when you
    repeat the command; loading a file twice adds nothing.
    """
    from bespeak.errors import InputError
    from bespeak.profiles.events import user_key
    from bespeak.profiles.loading import load as load_events
    from bespeak.profiles.stores.sqlite import SqliteStore

    user_key(tenant, "anyone")  # an invalid tenant is wrong usage once, not thousands of rejected lines
    with closing(SqliteStore(ctx.obj.data / "bespeak.db")) as store:
        n_bytes = file.stat().st_size
        with Progress(file.name) as bar:
            done = load_events(file, tenant, store, lambda n_read: bar.advance(n_read, n_bytes))
        report_rejections(store.rejections(done), done.rejected)
        if rejected:
            write_rejections(rejected, store.rejections(done))
        store.finish(done)
    n_known = done.events - done.added
    click.echo(f"{done.added} events added, {n_known} already there, {done.rejected} lines rejected")
    if done.rejected and not done.events:
        raise InputError(f"no line of {file} could be read: is it a file of UBI queries or events?")


def report_rejections(rejections: Iterable[tuple[int, str]], n_rejected: int) -> None:
    """Prints the first rejected lines to stderr."""
    for line_no, reason in itertools.islice(rejections, REJECTIONS_SHOWN):
        click.echo(f"line {line_no}: {reason}", err=True)
    if n_rejected > REJECTIONS_SHOWN:
        click.echo(f"… and {n_rejected - REJECTIONS_SHOWN} more; --rejected FILE writes all of them", err=True)


def write_rejections(path: Path, rejections: Iterable[tuple[int, Any]]) -> None:
    from bespeak.errors import InputError

    try:
        with path.open("w", encoding="utf-8") as out:
            out.writelines(f"{line_no}\t{reason}\n" for line_no, reason in rejections)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): give another file with --rejected") from error
