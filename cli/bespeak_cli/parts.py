"""Builds, once per command, what a search needs; says on stderr what is missing and what that costs."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

import click

if TYPE_CHECKING:
    from pathlib import Path

    from bespeak.models.encoder import Encoder
    from bespeak.parts import Parts
    from bespeak.rewriting.rewriter import RewriteCache, Rewriter
    from bespeak.settings import Settings

RewriterName = Literal["model", "last-turn", "none"]


def open_encoder(name: str | None, cache_dir: Path, threads: int | None = None) -> Encoder | None:
    """One that cannot be loaded costs the embeddings, not the search."""
    from bespeak.errors import ModelError
    from bespeak.models.encoder import load_encoder

    try:
        return load_encoder(name, cache_dir, threads)
    except ModelError as error:
        click.echo(f"Without embeddings: {error}", err=True)
        return None


def build_parts(
    settings: Settings,
    rewriter: Rewriter,
    encoder: Encoder | None,
    cache_dir: Path,
    data_dir: Path | None = None,
    threads: int | None = None,
) -> Parts:
    """Where there is an encoder, the session is read and words are picked of it. What was learnt lies in `data_dir`."""
    from bespeak.errors import ModelError
    from bespeak.parts import Parts
    from bespeak.ranking.learning import LearntFolder
    from bespeak.session.context import load_context
    from bespeak.session.terms import load_terms

    learnt = LearntFolder(data_dir) if data_dir else None
    terms = context = None
    if encoder:
        try:
            terms = load_terms()
        except ModelError as error:
            click.echo(f"Without words picked of the session: {error}", err=True)
        try:
            context = load_context(encoder, cache_dir, threads)
        except ModelError as error:
            click.echo(f"Without the session in the query's vector: {error}", err=True)
    return Parts(settings, rewriter, encoder, learnt, terms=terms, context=context)


def open_rewriter(
    name: RewriterName, cache_dir: Path, cache: RewriteCache | None = None, encoder: Encoder | None = None
) -> Rewriter:
    """The named rewriter; one that is not built is built; where it cannot be, the search goes on without.

    `encoder` chooses among more statements than it can read.
    """
    from bespeak.errors import ModelError
    from bespeak.rewriting.opening import choose_rewriter
    from bespeak.rewriting.rewriter import CachedRewriter, LastTurn

    try:
        rewriter = choose_rewriter(name, cache_dir, encoder=encoder)
    except ModelError:
        try:
            build_with_progress(cache_dir)
            rewriter = choose_rewriter(name, cache_dir, encoder=encoder)
        except ModelError as error:
            click.echo(f"Without the language model, with the words of the last turn instead: {error}", err=True)
            return LastTurn()
    return CachedRewriter(rewriter, cache) if cache else rewriter


def build_with_progress(cache_dir: Path) -> Path:
    """Builds the rewriter's model with a bar on stderr."""
    from bespeak.rewriting.build import build_rewriter

    with click.progressbar(length=100, label="Building the rewriter, once", file=sys.stderr, show_eta=False) as bar:
        shown = 0

        def progress(_step: str, done: float) -> None:
            nonlocal shown
            bar.update(max(0, int(done * 100) - shown))
            shown = max(shown, int(done * 100))

        return build_rewriter(cache_dir, progress)
