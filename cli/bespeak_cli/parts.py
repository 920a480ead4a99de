"""Builds, once per command, what a search needs; says on stderr what is missing and what that costs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from pathlib import Path

    from bespeak.pipeline import Parts
    from bespeak.rewrite import RewriteCache, Rewriter
    from bespeak.settings import Settings

RewriterName = Literal["model", "last-turn", "none"]


def build_parts(
    settings: Settings,
    rewriter: Rewriter,
    encoder_name: str | None,
    cache_dir: Path,
    threads: int | None = None,
    data_dir: Path | None = None,
) -> Parts:
    """An encoder that cannot be loaded costs the embeddings, not the search. What was learnt lies in `data_dir`."""
    from bespeak.encode import load_encoder
    from bespeak.errors import ModelError
    from bespeak.learning import LearntFolder
    from bespeak.pipeline import Parts
    from bespeak.terms import load_terms

    learnt = LearntFolder(data_dir) if data_dir else None
    try:
        return Parts(settings, rewriter, load_encoder(encoder_name, cache_dir, threads), learnt, terms=load_terms())
    except ModelError as error:
        click.echo(f"Without embeddings: {error}", err=True)
        return Parts(settings, rewriter, None, learnt)


def open_rewriter(name: RewriterName, cache_dir: Path, cache: RewriteCache | None = None) -> Rewriter:
    """The named rewriter; one that is not built is built; where it cannot be, the search goes on without."""
    from bespeak.errors import ModelError
    from bespeak.rewrite import CachedRewriter, LastTurn, choose_rewriter

    try:
        rewriter = choose_rewriter(name, cache_dir)
    except ModelError:
        try:
            build_with_progress(cache_dir)
            rewriter = choose_rewriter(name, cache_dir)
        except ModelError as error:
            click.echo(f"Without the language model, with the words of the last turn instead: {error}", err=True)
            return LastTurn()
    return CachedRewriter(rewriter, cache) if cache else rewriter


def build_with_progress(cache_dir: Path) -> Path:
    """Builds the rewriter's model with a bar on stderr."""
    from bespeak.build import build_rewriter

    with click.progressbar(length=100, label="Building the rewriter, once", file=sys.stderr, show_eta=False) as bar:
        shown = 0

        def progress(_step: str, done: float) -> None:
            nonlocal shown
            bar.update(max(0, int(done * 100) - shown))
            shown = max(shown, int(done * 100))

        return build_rewriter(cache_dir, progress)
