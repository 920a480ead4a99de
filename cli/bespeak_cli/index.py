"""`bespeak index`: load documents into an index."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bespeak_cli.engine import engine_options
from bespeak_cli.progress import Progress

if TYPE_CHECKING:
    from bespeak.engines.loading import IndexLoad


@click.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True, path_type=Path))
@click.option("--to", required=True, metavar="NAME", help="Index to load into; it is created if it does not exist.")
@click.option("--fields", metavar="A,B", show_default="those with running text", help="Fields to search.")
@click.option("--id-field", metavar="X", show_default="_id, id or doc_id", help="Field with the document's id.")
@click.option("--encoder", metavar="MODEL", show_default="the shipped one", help="Name or folder of an encoder.")
@click.option(
    "--embeddings/--no-embeddings", default=True, show_default=True, help="Compute a vector for each document."
)
@engine_options
@click.pass_context
def index(ctx: click.Context, /, file: Path, **options: Any) -> None:
    """Load documents from JSON lines or CSV into an index.

    FILE holds JSON lines, or CSV if its name ends in .csv or .tsv, plain or gzip; - is stdin. A document replaces an
    earlier one with the same id. An interrupted load of a file resumes when you repeat the command.
    """
    from bespeak.errors import InputError
    from bespeak_cli.parts import open_library

    target: str = options["to"]
    library = open_library(ctx, options, encoder=options["encoder"] if options["embeddings"] else "none")
    source = sys.stdin.buffer if str(file) == "-" else file
    fields = tuple(filter(None, (name.strip() for name in (options["fields"] or "").split(","))))
    with progress(file) as show:
        done = library.index(source, to=target, fields=fields, id_field=options["id_field"], progress=show)
    report(done, target)
    if not done.loaded:
        raise InputError(f"nothing of {file} could be loaded: is it JSON lines, or CSV with a header?")


@contextmanager
def progress(file: Path) -> Iterator[Callable[[IndexLoad], None] | None]:
    """Shows a bar on stderr and yields what moves it; yields None if the file's length is not known."""
    n_lines = count_lines(file)
    if not n_lines:
        yield None
        return
    with Progress(file.name) as bar:
        yield lambda done: bar.update(done.lines, n_lines)


def count_lines(file: Path) -> int | None:
    """The number of lines of a plain file; None for standard input and compressed files."""
    if str(file) == "-" or file.name.endswith(".gz"):
        return None
    with file.open("rb") as stream:
        return sum(block.count(b"\n") for block in iter(lambda: stream.read(1 << 20), b"")) or None


def report(done: IndexLoad, index: str) -> None:
    """Prints rejected lines to stderr, and a summary to stdout."""
    for line_no, reason in done.rejections:
        click.echo(f"line {line_no}: {reason}", err=True)
    if done.rejected > len(done.rejections):
        click.echo(f"and {done.rejected - len(done.rejections)} more", err=True)
    resumed = f", after the first {done.resumed_at} lines of an earlier run" if done.resumed_at else ""
    searched = f", searchable by {', '.join(done.fields)}" if done.loaded else ""
    click.echo(f"{done.loaded} documents loaded into {index}{searched}{resumed}, {done.rejected} lines rejected")
