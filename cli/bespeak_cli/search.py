"""`bespeak search`: one personalised search, shown."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bespeak_cli.engine import engine_options
from bespeak_cli.identity import identity_options
from bespeak_cli.mixing import read_settings, search_options

if TYPE_CHECKING:
    from bespeak import Result
    from bespeak.parts import RewriterName


@click.command()
@click.argument("query")
@click.option("--index", required=True, help="The index to search.")
@identity_options
@click.option("--size", default=10, show_default=True, type=click.IntRange(1, 10_000), help="Hits on the page.")
@click.option(
    "--offset", default=0, show_default=True, type=click.IntRange(0, 10_000), help="Hits to skip before the page."
)
@click.option(
    "--rewriter",
    type=click.Choice(["model", "last-turn", "none"]),
    default="model",
    show_default=True,
    help="Rewrite with the language model, with words of the last turn, or not at all.",
)
@click.option("--encoder", help="Name or folder of an encoder, by default the shipped one; none for no embeddings.")
@click.option(
    "--mode",
    type=click.Choice(["recall", "boost"]),
    default="recall",
    show_default=True,
    help="recall: the rewrite may also find more hits; boost: it only reorders them.",
)
@search_options
@click.option(
    "--format", "format_", type=click.Choice(["text", "md", "html", "json"]), default="text", show_default=True
)
@click.option(
    "--templates", type=click.Path(exists=True, file_okay=False, path_type=Path), help="A folder of your own templates."
)
@click.option("--explain", is_flag=True, help="Show the scores of each hit and what raised it.")
@click.option("--record/--no-record", default=True, show_default=True, help="Keep the query as a turn of the session.")
@engine_options
@click.pass_context
def search(ctx: click.Context, /, query: str, **options: Any) -> None:
    """Search as a user: the query is rewritten, and the hits are reranked and explained.

    The queries of one --session are the turns that the next query is rewritten from.
    """
    from bespeak_cli.parts import open_library

    user = options["user"]
    rewriter: RewriterName = options["rewriter"] if user else "none"
    library = open_library(ctx, options, rewriter=rewriter, encoder=options["encoder"], settings=read_settings(options))
    names = ("index", "session", "tenant", "size", "offset", "record")
    result = library.search(query, user=user, **{name: options[name] for name in names})
    click.echo(show(result, options))


def show(result: Result, options: dict[str, Any]) -> str:
    """The result in the format that the options name, as wide and as colourful as the terminal."""
    import shutil
    import sys

    from bespeak.show.render import render

    name = "explain" if options["explain"] and options["format_"] == "text" else options["format_"]
    width = shutil.get_terminal_size((100, 24)).columns
    return render(result, name, options["templates"], width=width, colour=sys.stdout.isatty())
