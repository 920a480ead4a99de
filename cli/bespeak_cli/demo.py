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
from typing import TYPE_CHECKING

import click

from bespeak_cli.progress import Progress

if TYPE_CHECKING:
    from bespeak.engines.embedded import EmbeddedEngine
    from bespeak.models.encoder import Encoder
    from bespeak.parts import Parts
    from bespeak.profiles.stores.sqlite import SqliteStore
    from bespeak.records import Result, UserKey
    from bespeak_cli.parts import RewriterName

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
    """What Ada types, and which document she opens then."""

    query: str
    opens: str


SESSION = (
    Step("How do I run a subprocess?", "subprocess.run"),
    Step("How do I read its output?", "subprocess.Popen.communicate"),
    Step("How do I kill it if it takes too long?", "subprocess.TimeoutExpired"),
)


@click.command()
@click.option("--width", type=click.IntRange(40), help="Columns; the terminal's if not given.")
@click.option("--rewriter", type=click.Choice(["model", "last-turn", "none"]), default="model", show_default=True)
@click.pass_context
def demo(ctx: click.Context, width: int | None, rewriter: RewriterName) -> None:
    """Three turns of one user over Python's own documentation.

    The first run builds the language model, and an index of the standard library's docstrings, in the cache folder.
    """
    from bespeak.engines.embedded import EmbeddedEngine
    from bespeak.profiles.stores.sqlite import SqliteStore
    from bespeak.settings import Settings
    from bespeak_cli.parts import build_parts, open_encoder, open_rewriter

    encoder = open_encoder(None, ctx.obj.cache)
    assert encoder is not None
    parts = build_parts(Settings(), open_rewriter(rewriter, ctx.obj.cache, encoder=encoder), encoder, ctx.obj.cache)
    engine = EmbeddedEngine(ctx.obj.cache / "demo")
    n_docs = index_documentation(engine, encoder)
    with tempfile.TemporaryDirectory(prefix="bespeak-demo-") as folder:
        columns = width or shutil.get_terminal_size((100, 24)).columns
        store = SqliteStore(Path(folder) / "bespeak.db")
        Story(engine, store, parts, min(columns, 120), sys.stdout.isatty()).tell(n_docs)
        store.close()


def index_documentation(engine: EmbeddedEngine, encoder: Encoder) -> int:
    """Makes the index unless it is there whole; how many documents it holds."""
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


@dataclass(frozen=True)
class Story:
    """Tells the session as it happens; every line of it comes from a real search."""

    engine: EmbeddedEngine
    store: SqliteStore
    parts: Parts
    width: int
    colour: bool

    def tell(self, n_docs: int) -> None:
        from bespeak.profiles.events import new_event
        from bespeak.records import UserKey

        user, now = UserKey("demo", "ada"), datetime.now(UTC)
        self.say(f"{n_docs:,} pages of Python's own documentation, and one reader, Ada. She once said:", bold=True)
        for minute, said in enumerate(STATEMENTS):  # one after another: events of one moment have no order
            moment = now - timedelta(days=30) + timedelta(minutes=minute)
            self.store.add([new_event(user, "statement", moment, text=said)])
            self.say(f"“{said}”", indent="  ")
        self.say(f"Last week she opened {' and '.join(OPENED)}.")
        for minute, doc_id in enumerate(OPENED):
            opened = now - timedelta(days=7) + timedelta(minutes=minute)
            self.store.add([new_event(user, "click", opened, session_id="past", doc_id=doc_id, title=doc_id)])
        for number, step in enumerate(SESSION, start=1):
            self.turn(number, step, user, now + timedelta(minutes=number))

    def turn(self, number: int, step: Step, user: UserKey, now: datetime) -> None:
        from bespeak.pipeline import search
        from bespeak.profiles.events import new_event
        from bespeak.records import Request

        self.heading(f"Turn {number} of {len(SESSION)}")
        result = search(self.engine, self.store, Request(step.query, INDEX, user, "demo", size=10), self.parts, now)
        self.show(result)
        query_id = f"turn-{number}"
        events = [new_event(user, "query", now, session_id="demo", query_id=query_id, text=step.query)]
        opened = now + timedelta(seconds=20)
        events.append(
            new_event(user, "click", opened, session_id="demo", query_id=query_id, doc_id=step.opens, title=step.opens)
        )
        self.store.add(events)
        self.say(f"Ada opens {step.opens}.")

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
