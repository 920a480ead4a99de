"""`bespeak search`: one personalised search, shown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from bespeak_cli.engine import engine_options, open_engine
from bespeak_cli.identity import identity_options
from bespeak_cli.mixing import read_settings, search_options


@click.command()
@click.argument("query")
@click.option("--index", required=True, help="The index to search.")
@identity_options
@click.option("--size", default=10, show_default=True, type=click.IntRange(1, 10_000), help="Hits on the page.")
@click.option("--offset", default=0, show_default=True, type=click.IntRange(0, 10_000), help="Hits before the page.")
@click.option("--rewriter", type=click.Choice(["model", "last-turn", "none"]), default="model", show_default=True)
@click.option("--encoder", help="A model's name or folder; the shipped one if not given.")
@click.option(
    "--mode",
    type=click.Choice(["recall", "boost"]),
    default="recall",
    show_default=True,
    help="May the rewrite find more, or only change the order?",
)
@search_options
@click.option(
    "--format", "format_", type=click.Choice(["text", "md", "html", "json"]), default="text", show_default=True
)
@click.option("--templates", type=click.Path(exists=True, file_okay=False, path_type=Path), help="Your own templates.")
@click.option("--explain", is_flag=True, help="Show the score matrix and the evidence.")
@click.option("--record/--no-record", default=True, show_default=True, help="Keep the query in the user's session.")
@engine_options
@click.pass_context
def search(ctx: click.Context, /, query: str, **options: Any) -> None:
    """Search as somebody: rewritten from what is known of them, reranked, explained.

    Queries of one --session are the turns that the next one is rewritten from.
    """
    from bespeak.pipeline import search as run
    from bespeak.profiles.events import user_key
    from bespeak.profiles.stores.sqlite import SqliteStore
    from bespeak.records import Request
    from bespeak_cli.parts import build_parts, open_encoder, open_rewriter

    user = user_key(options["tenant"], options["user"]) if options["user"] else None
    request = Request(query, options["index"], user, options["session"], options["offset"], options["size"])
    store = SqliteStore(ctx.obj.data / "bespeak.db")
    engine = open_engine(ctx, options)
    encoder = open_encoder(options["encoder"], ctx.obj.cache)
    rewriter = open_rewriter(options["rewriter"] if user else "none", ctx.obj.cache, store, encoder)
    parts = build_parts(read_settings(options), rewriter, encoder, ctx.obj.cache, ctx.obj.learnt)
    result = run(engine, store, request, parts)
    click.echo(show(result, options))
    if user and options["record"]:
        record(store, request)
    store.close()


def show(result: Any, options: dict[str, Any]) -> str:
    """The result in the asked form, as wide and as colourful as the terminal."""
    import shutil
    import sys

    from bespeak.show.render import render

    name = "explain" if options["explain"] and options["format_"] == "text" else options["format_"]
    width = shutil.get_terminal_size((100, 24)).columns
    return render(result, name, options["templates"], width=width, colour=sys.stdout.isatty())


def record(store: Any, request: Any) -> None:
    """Keeps the query as a turn of the session; a store that cannot take it costs a sentence, not the answer."""
    from bespeak.errors import BespeakError
    from bespeak.profiles.events import query_event

    try:
        store.add([query_event(request)])
    except BespeakError as error:
        click.echo(f"The query was not kept: {error}", err=True)
