"""What `bespeak rewrite` needs on one machine and on a cluster alike: its tools, its progress and its report."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from bespeak_cli.engine import open_engine_of
from bespeak_cli.progress import Progress
from bespeak_cli.store import open_store

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bespeak.batch.check import RewriteCheck
    from bespeak.batch.journal import RunState
    from bespeak.batch.work import OpenTools, Tools
    from bespeak_cli import Folders

CLUSTER_CALLS = 8
"""Concurrent calls of each worker to a store in Elasticsearch."""


def prepare(ctx: click.Context, options: dict[str, Any]) -> tuple[OpenTools, dict[str, str]]:
    """How a worker opens its tools, and everything besides the input that the output depends on.

    Opens the tools once, so that whatever is missing is reported before anything is written.
    """
    build_missing(ctx, options)
    open_tools = partial(make_tools, ctx.obj.absolute(), options)
    tools = open_tools()
    try:
        return open_tools, tools.describe(describe_profiles(ctx, options))
    finally:
        tools.close()


def build_missing(ctx: click.Context, options: dict[str, Any]) -> None:
    """Builds the model if needed. If that fails, the run fails: no weaker rewriter takes its place."""
    from bespeak.errors import ModelError
    from bespeak.rewriting.model import find_model
    from bespeak_cli.parts import build_with_progress

    if options["rewriter"] == "model":
        try:
            find_model(ctx.obj.cache)
        except ModelError:
            build_with_progress(ctx.obj.cache)


def make_tools(folders: Folders, options: dict[str, Any]) -> Tools:
    """Also runs in a worker process, which has no click context; on another machine the folders are its own."""
    from bespeak.batch.output import packing_of
    from bespeak.batch.queries import form_of
    from bespeak.batch.storage import shown
    from bespeak.batch.work import Tools
    from bespeak.models.encoder import load_encoder
    from bespeak.rewriting.model import ROWS
    from bespeak.rewriting.opening import choose_rewriter
    from bespeak.session.reader import load_reader

    cache, model = folders.cache, options["rewriter"] == "model"
    encoder = load_encoder(options["encoder"], cache) if model else None
    threads, check = threads_each(options), open_check(folders, options)
    context = load_reader(cache, threads)
    return Tools(
        choose_rewriter(options["rewriter"], cache, threads=threads, encoder=encoder, context=context, joint=True),
        context,
        open_store(folders.data, options) if has_profiles(options) else None,
        check,
        form_of(shown(str(options["source"]))),
        packing_of(shown(str(options["output"]))) if options["format_"] == "jsonl" else "",
        options["strict"],
        concurrency=CLUSTER_CALLS if options["profiles"] == "elasticsearch" else 1,
        n_threads=ROWS if model else 1,
    )


def open_check(folders: Folders, options: dict[str, Any]) -> RewriteCheck | None:
    """Raises IndexMissing if the index does not exist."""
    from bespeak.batch.check import RewriteCheck

    if not options["check"]:
        return None
    check = RewriteCheck(open_engine_of(folders.data, options), options["check"], options["mode"])
    check.engine.describe(check.index)
    return check


def has_profiles(options: dict[str, Any]) -> bool:
    """Whether every worker can read the profiles: a file on this machine is not on the others."""
    return bool(options["on"] != "ray" or options["profiles"] == "elasticsearch")


def threads_each(options: dict[str, Any]) -> int:
    """Threads of a worker: Ray gives it one CPU; on one machine the workers share the cores."""
    return 1 if options["on"] == "ray" else max(1, (os.cpu_count() or 1) // options["workers"])


def describe_profiles(ctx: click.Context, options: dict[str, Any]) -> str:
    from bespeak.engines.cluster import read_url

    if options["profiles"] == "elasticsearch":
        return read_url(options["elasticsearch"])[0]
    return str((ctx.obj.data / "bespeak.db").resolve()) if has_profiles(options) else "in the lines alone"


@contextmanager
def showing_progress(n_bytes: int | None) -> Iterator[Callable[[RunState, int], None]]:
    """Shows how far a run over a file of this size is, each time the yielded function is called."""
    from bespeak.batch.report import brief

    first: RunState | None = None

    def report(state: RunState, read_bytes: int) -> None:
        nonlocal first
        first = first or state
        progress.update(read_bytes, n_bytes, brief(state, first))

    with Progress("rewriting", sys.stderr) as progress:
        yield report


def show_report(state: RunState, options: dict[str, Any], facts: Mapping[str, str]) -> None:
    from bespeak.batch.report import render_report, write_report

    click.echo(render_report(state, facts, "txt"), err=True)
    if options["report"]:
        write_report(options["report"], state, facts)
