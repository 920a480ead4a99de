"""`bespeak demo`: one session of one user, three turns, over Python's own documentation."""

from __future__ import annotations

import platform
import shutil
import sys
import tempfile
import textwrap
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bespeak_cli.progress import Progress

if TYPE_CHECKING:
    from bespeak import Bespeak, Result
    from bespeak.engines.embedded import EmbeddedEngine
    from bespeak.models.encoder import Encoder
    from bespeak.parts import RewriterName

INDEX = f"python-{platform.python_version()}"
STATEMENTS = ("I work with asyncio.", "I am allergic to peanuts.")
OPENED = ("asyncio.taskgroups.TaskGroup", "asyncio.streams.open_connection")
SHOWN = 5
"""Rows of the comparison."""
OPENING = 120
"""Characters of a document that are embedded: docstrings begin with what they are about."""
READ = 3
"""Personalised results shown in full."""


@dataclass(frozen=True)
class Step:
    """What Ada types, and the document that she opens then."""

    query: str
    opens: str


SESSION = (
    Step("How do I run a subprocess?", "subprocess.run"),
    Step("How do I read its output?", "subprocess.Popen.communicate"),
    Step("How do I kill it if it takes too long?", "subprocess.TimeoutExpired"),
)


@click.command()
@click.option("--width", type=click.IntRange(40), help="Width in columns; by default that of the terminal.")
@click.option("--rewriter", type=click.Choice(["model", "last-turn", "none"]), default="model", show_default=True,
              help="Rewrite with the language model, with words of the last turn, or not at all.")  # fmt: skip
@click.pass_context
def demo(ctx: click.Context, width: int | None, rewriter: RewriterName) -> None:
    """Watch three personalised searches over Python's own documentation.

    They are one session of one user. The first run builds the language model, and an index of the standard library's
    docstrings, in the cache folder.
    """
    from bespeak import Bespeak
    from bespeak.engines.embedded import EmbeddedEngine
    from bespeak.models.encoder import load_encoder
    from bespeak.parts import Models
    from bespeak.profiles.stores.sqlite import SqliteStore
    from bespeak_cli.parts import build_if_missing, say

    cache: Path = ctx.obj.cache
    encoder, engine = load_encoder(None, cache), EmbeddedEngine(cache / "demo")
    models = Models(cache, build_if_missing(rewriter, cache), encoder)
    n_docs = index_documentation(engine, encoder)
    columns = width or shutil.get_terminal_size((100, 24)).columns
    with tempfile.TemporaryDirectory(prefix="bespeak-demo-") as folder:
        store = SqliteStore(Path(folder) / "bespeak.db")
        with Bespeak(engine, store, models, warn=say) as library:
            Story(library, min(columns, 120), sys.stdout.isatty()).tell(n_docs)


def index_documentation(engine: EmbeddedEngine, encoder: Encoder) -> int:
    """Makes the index unless it is there already; returns how many documents it holds."""
    from bespeak.errors import IndexMissing
    from bespeak.records import Document
    from bespeak_cli.corpus import read_python_documentation

    rows = list(read_python_documentation())
    try:
        info = engine.describe(INDEX)
        if info.n_docs == len(rows) and info.encoder == encoder.name:
            return info.n_docs
        engine.drop(INDEX)
    except IndexMissing:
        pass
    engine.create(INDEX, ("title", "text"), encoder.dim, encoder.name)
    with Progress("Reading Python's documentation, once") as bar:
        documents = []
        for start in range(0, len(rows), 128):
            some = rows[start : start + 128]
            vectors = encoder.encode([f"{row['title']} {row['text'][:OPENING]}" for row in some])
            documents += [Document(row["_id"], row, vector) for row, vector in zip(some, vectors, strict=True)]
            bar.update(len(documents), len(rows))
    engine.load(INDEX, documents)
    engine.refresh(INDEX)
    return len(documents)


def opening(doc_id: str) -> dict[str, Any]:
    """The event of a document that was opened."""
    return {"action_name": "click", "event_attributes": {"object": {"object_id": doc_id, "description": doc_id}}}


@dataclass(frozen=True)
class Story:
    """Prints the session as it happens; every line comes from a real search."""

    library: Bespeak
    width: int
    colour: bool

    def tell(self, n_docs: int) -> None:
        now = datetime.now(UTC)
        self.say(f"{n_docs:,} pages of Python's own documentation, and one reader, Ada. She once said:", bold=True)
        for minute, said in enumerate(STATEMENTS):  # one after another: events at the same moment have no order
            moment = now - timedelta(days=30) + timedelta(minutes=minute)
            self.record({"action_name": "statement", "message": said}, moment)
            self.say(f"“{said}”", indent="  ")
        self.say(f"Last week she opened {' and '.join(OPENED)}.")
        for minute, doc_id in enumerate(OPENED):
            moment = now - timedelta(days=7) + timedelta(minutes=minute)
            self.record(opening(doc_id) | {"session_id": "past"}, moment)
        for number, step in enumerate(SESSION, start=1):
            self.turn(number, step)

    def turn(self, number: int, step: Step) -> None:
        self.heading(f"Turn {number} of {len(SESSION)}")
        result = self.library.search(step.query, index=INDEX, user="ada", session="demo", tenant="demo")
        self.show(result)
        self.record(opening(step.opens) | {"session_id": "demo", "query_id": result.query_id}, datetime.now(UTC))
        self.say(f"Ada opens {step.opens}.")

    def record(self, event: dict[str, Any], moment: datetime) -> None:
        self.library.record(event | {"user_id": "ada", "timestamp": moment.isoformat()}, tenant="demo")

    def show(self, result: Result) -> None:
        from bespeak.show.render import render, render_comparison

        click.echo(render(replace(result, page=()), "_head.txt.j2", width=self.width, colour=self.colour))
        click.echo("\n" + render_comparison(result, SHOWN, width=self.width, colour=self.colour) + "\n")
        click.echo(
            render(replace(result, page=result.page[:READ]), "demo.txt.j2", width=self.width, colour=self.colour)
        )

    def heading(self, text: str) -> None:
        line = f"── {text} " + "─" * max(0, self.width - len(text) - 4)
        click.echo("\n" + (click.style(line, fg="cyan", bold=True) if self.colour else line))

    def say(self, text: str, indent: str = "", bold: bool = False) -> None:
        filled = textwrap.fill(text, self.width, initial_indent=indent, subsequent_indent=indent)
        click.echo(click.style(filled, bold=True) if bold and self.colour else filled)
