"""`bespeak rewrite`: many queries from a file into a file, for training sets, for the proxy's cache."""

from __future__ import annotations

import os
import signal
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bespeak_cli.engine import engine_options, open_engine_of
from bespeak_cli.learn import open_store, profiles_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bespeak.batch.journal import Standing
    from bespeak.batch.output import Packing
    from bespeak.batch.queries import Form
    from bespeak.batch.run import Job
    from bespeak.batch.work import OpenTools, Tools

STOPPED = 128 + signal.SIGTERM
MOST_WORKERS = 8
"""Unless more are asked for: each holds the model, 0.8 GB."""
CLUSTER_CALLS = 8
"""Calls at once to a store in Elasticsearch, for each worker."""


class PathOrUri(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if "://" in str(value) else super().convert(value, param, ctx)


@click.command()
@click.argument("source", metavar="IN", type=PathOrUri(exists=True, dir_okay=False, path_type=Path, allow_dash=True))
@click.option("--output", required=True, metavar="OUT",
              type=PathOrUri(dir_okay=False, path_type=Path, allow_dash=True),
              help="The file to write; .gz and .zst are packed; - for stdout.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(["jsonl", "parquet"]), default="jsonl", show_default=True)
@click.option("--rewriter", type=click.Choice(["model", "last-turn", "none"]), default="model", show_default=True)
@click.option("--encoder", help="A model's name or folder; the shipped one if not given.")
@profiles_option
@click.option("--check", metavar="INDEX", help="Drop rewrites that find nothing of use in this index.")
@click.option("--mode", type=click.Choice(["boost", "recall"]), default="recall", show_default=True,
              help="With --check: whether rewrites are used to order hits, or to find them.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Stop at the first line that is rejected.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the report as HTML here.")
@click.option("--workers", type=click.IntRange(1, 256),
              help="Processes that rewrite; for the model one a core if not given, at most 8, else 1.")  # fmt: skip
@click.option("--on", type=click.Choice(["ray"]), help="Rewrite on a Ray cluster; IN and OUT may be URIs (s3://…).")
@click.option(
    "--ray-address", metavar="ADDRESS", help="With --on ray: the cluster; the one that Ray finds if not given."
)
@engine_options
@click.pass_context
def rewrite(ctx: click.Context, /, **options: Any) -> None:
    """Rewrite the queries of a file: JSON lines, or TSV of id and query; plain, gzip or Zstandard; - for stdin.

    A run that was cut off, however hard, goes on when the same command is given again. Lines that cannot be read go to
    OUT.rejected. The report is told on stderr.
    """
    options["workers"] = options["workers"] or default_workers(options["rewriter"])
    before = signal.signal(signal.SIGTERM, stop)
    ctx.call_on_close(lambda: signal.signal(signal.SIGTERM, before))
    if options["on"] == "ray":
        from bespeak_cli.on_ray import rewrite_there

        rewrite_there(ctx, options)
    else:
        rewrite_here(ctx, options)


def rewrite_here(ctx: click.Context, options: dict[str, Any]) -> None:
    from bespeak.batch.run import rewrite_file
    from bespeak_cli.progress import Progress

    job, open_tools = read_job(ctx, options)
    size = options["source"].stat().st_size if job.resumable else None
    if not job.resumable:
        click.echo("A stream cannot be gone on with: cut off, this run starts anew", err=True)
    with Progress(sys.stderr, size) as progress:
        standing = rewrite_file(job, open_tools, progress.tell)
    report(standing, options, job.begun_with)


def stop(_signal: int, _frame: Any) -> None:
    """As the default action does, but with workers ended first."""
    click.echo("\nStopped: between two files the same command goes on", err=True)
    sys.exit(STOPPED)


def read_job(ctx: click.Context, options: dict[str, Any]) -> tuple[Job, Any]:
    from bespeak.batch.output import StreamOutput
    from bespeak.batch.run import Job
    from bespeak.errors import UsageError

    source, output = str(options["source"]), str(options["output"])
    if options["ray_address"]:
        raise UsageError("--ray-address is for --on ray")
    for name in (source, output):
        if "://" in name:
            raise UsageError(f"{name}: object storage is for --on ray")
    form, packing = forms(options)
    build_missing(ctx, options)
    # Folders of their own, for another process has no context to ask.
    open_tools = partial(make_tools, ctx.obj.data, ctx.obj.cache, options, form, packing)
    begun_with = describe(ctx, open_tools, form, options)
    job = Job(
        sys.stdin.buffer if source == "-" else options["source"],
        StreamOutput(sys.stdout.buffer, tell_rejected) if output == "-" else options["output"],
        begun_with, options["format_"], options["strict"], options["workers"],
    )  # fmt: skip
    return job, open_tools


def forms(options: dict[str, Any]) -> tuple[Form, Packing]:
    """How the lines are written, in and out."""
    from bespeak.batch.output import packing_of
    from bespeak.batch.storage import shown

    source, output = (shown(str(options[name])) for name in ("source", "output"))
    is_tsv = source.removesuffix(".gz").removesuffix(".zst").endswith(".tsv")
    return "tsv" if is_tsv else "jsonl", packing_of(output) if options["format_"] == "jsonl" else ""


def describe(ctx: click.Context, open_tools: OpenTools, form: Form, options: dict[str, Any]) -> dict[str, str]:
    """All that the output depends on beside the input. Opens the tools once, so that what is missing is told first."""
    from bespeak.rewriting.rewriter import model_of

    tools = open_tools()
    try:
        return {
            "model": model_of(tools.rewriter),
            "profiles": describe_profiles(ctx, options),
            "form": form,
            **(
                {"check": f"{options['check']} ({options['mode']}), {tools.duds.engine.location}"} if tools.duds else {}
            ),
        }
    finally:
        tools.close()


def build_missing(ctx: click.Context, options: dict[str, Any]) -> None:
    """A file is never rewritten with less than was asked for: what cannot be built is an error here."""
    from bespeak.errors import ModelError
    from bespeak.rewriting.model import find_model
    from bespeak_cli.parts import build_with_progress

    if options["rewriter"] == "model":
        try:
            find_model(ctx.obj.cache)
        except ModelError:
            build_with_progress(ctx.obj.cache)


def make_tools(data: Path, cache: Path, options: dict[str, Any], form: Any, packing: Any) -> Tools:
    from bespeak.batch.duds import Duds
    from bespeak.batch.work import Tools
    from bespeak.models.encoder import load_encoder
    from bespeak.rewriting.model import ROWS
    from bespeak.rewriting.opening import choose_rewriter

    model = options["rewriter"] == "model"
    encoder = load_encoder(options["encoder"], cache) if model else None
    duds = Duds(open_engine_of(data, options), options["check"], options["mode"]) if options["check"] else None
    if duds:
        duds.engine.describe(duds.index)
    return Tools(
        choose_rewriter(options["rewriter"], cache, threads=threads_each(options), encoder=encoder, joint=True),
        open_store(data, options), duds, form, packing, options["strict"],
        at_once=CLUSTER_CALLS if options["profiles"] == "elasticsearch" else 1, n_threads=ROWS if model else 1,
    )  # fmt: skip


def default_workers(rewriter: str) -> int:
    return min(os.cpu_count() or 1, MOST_WORKERS) if rewriter == "model" else 1


def threads_each(options: dict[str, Any]) -> int:
    """Of a worker: on Ray it has one CPU, here all have the same part of them."""
    return 1 if options["on"] == "ray" else max(1, (os.cpu_count() or 1) // options["workers"])


def describe_profiles(ctx: click.Context, options: dict[str, Any]) -> str:
    from bespeak.engines.cluster import read_url

    if options["profiles"] == "elasticsearch":
        return read_url(options["elasticsearch"])[0]
    if options["on"] == "ray":
        return "of the lines alone"
    return str((ctx.obj.data / "bespeak.db").resolve())


def report(standing: Standing, options: dict[str, Any], begun_with: Mapping[str, str]) -> None:
    from bespeak.batch.report import render_report

    facts = {"input": str(options["source"]), "output": str(options["output"]), **begun_with}
    click.echo(render_report(standing, facts, "txt"), err=True)
    if options["report"]:
        write_report(options["report"], render_report(standing, facts, "html"))


def tell_rejected(lines: bytes) -> None:
    click.echo(lines.decode("utf-8"), err=True, nl=False)


def write_report(path: Path, page: str) -> None:
    from bespeak.errors import InputError

    try:
        path.write_text(page + "\n", "utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): give another file with --report") from error
