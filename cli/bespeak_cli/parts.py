"""Opens the library for a command, and prints to stderr what is missing and what that costs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bespeak import Bespeak, Settings
    from bespeak.parts import RewriterName


def open_profiles(ctx: click.Context) -> Bespeak:
    """The library for a command that needs no model; it is closed when the command ends."""
    import bespeak

    library = bespeak.open(ctx.obj.data, warn=say)
    ctx.call_on_close(library.close)
    return library


def open_library(
    ctx: click.Context,
    options: Mapping[str, Any],
    *,
    rewriter: RewriterName = "none",
    encoder: str | None = None,
    settings: Settings | None = None,
) -> Bespeak:
    """The library as the options of `engine_options` name it; it is closed when the command ends.

    The language model is built first if it is missing.
    """
    import bespeak
    from bespeak_cli.engine import address

    cluster = address(options)
    library = bespeak.open(
        ctx.obj.data,
        cache=ctx.obj.cache,
        **cluster,
        rewriter=build_if_missing(rewriter, ctx.obj.cache),
        encoder=encoder,
        settings=settings,
        warn=say,
    )
    ctx.call_on_close(library.close)
    return library


def say(sentence: str) -> None:
    click.echo(sentence, err=True)


def build_if_missing(name: RewriterName, cache: Path) -> RewriterName:
    """The rewriter to open: "last-turn" instead of a language model that can be neither found nor built."""
    from bespeak.errors import ModelError
    from bespeak.rewriting.model import find_model

    if name != "model":
        return name
    try:
        find_model(cache)
    except ModelError:
        try:
            build_with_progress(cache)
        except ModelError as error:
            say(f"Without the language model, with the words of the last turn instead: {error}")
            return "last-turn"
    return name


def build_with_progress(cache_dir: Path) -> Path:
    """Builds the rewriter's model with a bar on stderr."""
    from bespeak.rewriting.build import build_rewriter
    from bespeak_cli.progress import Progress

    with Progress("Building the rewriter, once") as progress:
        return build_rewriter(cache_dir, lambda step, done: progress.update(done, 1, step))
