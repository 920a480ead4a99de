"""`bespeak events`: load what users did."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Iterable
from contextlib import closing
from pathlib import Path
from typing import Any

import click

from bespeak_cli.identity import tenant_option

REJECTIONS_SHOWN = 20


@click.group()
def events() -> None:
    """Load what users did."""


@events.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@tenant_option
@click.option(
    "--rejected",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write every rejected line's number and reason here.",
)
@click.pass_context
def load(ctx: click.Context, file: Path, tenant: str, rejected: Path | None) -> None:
    """Load a file of UBI queries and events: JSON lines or a bulk file, plain or gzip.

    A load that was cut off goes on where it stood; a file loaded twice adds nothing.
    """
    from bespeak.errors import InputError
    from bespeak.profiles.events import user_key
    from bespeak.profiles.loading import load as load_events
    from bespeak.profiles.stores.sqlite import SqliteStore

    user_key(tenant, "anyone")  # a tenant that no event can have is wrong usage, not thousands of rejected lines
    with closing(SqliteStore(ctx.obj.data / "bespeak.db")) as store:
        with click.progressbar(length=file.stat().st_size, label=file.name, file=sys.stderr) as bar:
            done = load_events(file, tenant, store, bar.update)
        tell_rejections(store.rejections(done), done.rejected)
        if rejected:
            write_rejections(rejected, store.rejections(done))
        store.finish(done)
    known = done.events - done.added
    click.echo(f"{done.added} events added, {known} already there, {done.rejected} lines rejected")
    if done.rejected and not done.events:
        raise InputError(f"no line of {file} could be read: is it a file of UBI queries or events?")


def tell_rejections(rejections: Iterable[tuple[int, str]], n_rejected: int) -> None:
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
