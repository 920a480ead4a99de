"""`bespeak index`: load documents into an index."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bespeak_cli.engine import engine_options

if TYPE_CHECKING:
    from bespeak.engines.loading import Loaded


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--to", required=True, metavar="NAME", help="The index; it is made where it is not there.")
@click.option("--fields", metavar="A,B", help="The fields to search; those that hold running text if not given.")
@click.option("--id-field", metavar="X", help="The field with a document's id; _id, id or doc_id if not given.")
@click.option("--encoder", help="A model's name or folder; the shipped one if not given.")
@click.option("--embeddings/--no-embeddings", default=True, show_default=True, help="Add a vector to each document.")
@engine_options
@click.pass_context
def index(ctx: click.Context, /, file: Path, **options: Any) -> None:
    """Load documents from JSON lines or CSV (a name ending in .csv or .tsv), plain or gzip; - is standard input.

    A document replaces the one of the same id. A load that was cut off goes on where it stood when the same command is
    given again; standard input is read anew.
    """
    from bespeak.errors import InputError
    from bespeak_cli.parts import open_library

    target: str = options["to"]
    library = open_library(ctx, options, encoder=options["encoder"] if options["embeddings"] else "none")
    source = sys.stdin.buffer if str(file) == "-" else file
    fields = tuple(filter(None, (name.strip() for name in (options["fields"] or "").split(","))))
    with progress(file) as show:
        done = library.index(source, to=target, fields=fields, id_field=options["id_field"], progress=show)
    tell(done, target)
    if not done.loaded:
        raise InputError(f"nothing of {file} could be loaded: is it JSON lines, or CSV with a header?")


@contextmanager
def progress(file: Path) -> Iterator[Callable[[Loaded], None] | None]:
    """A bar on standard error, moved by what it yields; nothing where the file's length is not known."""
    n_lines = count_lines(file)
    if not n_lines:
        yield None
        return
    bar: Any
    with click.progressbar(length=n_lines, label=file.name, file=sys.stderr) as bar:
        yield lambda done: bar.update(done.lines - bar.pos)


def count_lines(file: Path) -> int | None:
    """How many lines a plain file has; None where only reading it would tell."""
    if str(file) == "-" or file.name.endswith(".gz"):
        return None
    with file.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b"")) or None


def tell(done: Loaded, index: str) -> None:
    """The rejected lines to standard error, what was done to standard output."""
    for line_no, reason in done.rejections:
        click.echo(f"line {line_no}: {reason}", err=True)
    if done.rejected > len(done.rejections):
        click.echo(f"and {done.rejected - len(done.rejections)} more", err=True)
    resumed = f", after the first {done.resumed_at} lines of an earlier run" if done.resumed_at else ""
    searched = f", searchable by {', '.join(done.fields)}" if done.loaded else ""
    click.echo(f"{done.loaded} documents loaded into {index}{searched}{resumed}, {done.rejected} lines rejected")
