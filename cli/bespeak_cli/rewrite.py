"""`bespeak rewrite`: rewrites the queries of a file, for training sets or to fill the proxy's cache."""

from __future__ import annotations

import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bespeak_cli.batch import prepare, show_report, showing_progress
from bespeak_cli.engine import engine_options
from bespeak_cli.store import check_store_options, profiles_option

if TYPE_CHECKING:
    from collections.abc import Mapping

    from bespeak.batch.run import Job

TERMINATED = 128 + signal.SIGTERM
"""Exit code after SIGTERM."""


class PathOrUri(click.Path):
    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if "://" in str(value) else super().convert(value, param, ctx)


@click.command()
@click.argument("source", metavar="IN", type=PathOrUri(exists=True, dir_okay=False, path_type=Path, allow_dash=True))
@click.option("--output", required=True, metavar="OUT",
              type=PathOrUri(dir_okay=False, path_type=Path, allow_dash=True),
              help="File to write, compressed if it ends in .gz or .zst; - for stdout.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(["jsonl", "parquet"]), default="jsonl", show_default=True)
@click.option("--rewriter", type=click.Choice(["model", "last-turn", "none"]), default="model", show_default=True,
              help="Rewrite with the language model, with words of the last turn, or not at all.")  # fmt: skip
@click.option("--encoder", help="Name or folder of an encoder, by default the shipped one; none for no embeddings.")
@profiles_option
@click.option("--check", metavar="INDEX", help="Drop rewrites that find nothing useful in this index.")
@click.option("--mode", type=click.Choice(["boost", "recall"]), default="recall", show_default=True,
              help="With --check: whether rewrites only reorder hits, or also find more.")  # fmt: skip
@click.option("--strict", is_flag=True, help="Stop at the first line that is rejected.")
@click.option("--report", type=click.Path(dir_okay=False, path_type=Path), help="Write the report here, as HTML.")
@click.option("--workers", type=click.IntRange(1, 256),
              help="Number of processes; by default one per core, at most 8, for the model, otherwise 1.")  # fmt: skip
@click.option("--on", type=click.Choice(["ray"]), help="Run on a Ray cluster; IN and OUT may be URIs (s3://…).")
@click.option("--ray-address", metavar="ADDRESS",
              help="With --on ray: the cluster's address; found by Ray if not given.")  # fmt: skip
@engine_options
@click.pass_context
def rewrite(ctx: click.Context, /, **options: Any) -> None:
    """Rewrite the queries in a file.

    IN holds JSON lines, or TSV with an id and a query per line; plain, gzip or Zstandard; - for stdin.

    An interrupted run resumes when you repeat the command. Lines that cannot be read go to OUT.rejected. A report is
    printed to stderr.
    """
    from bespeak.batch.workers import default_workers

    if not options["check"]:
        check_store_options(options)
    options["workers"] = options["workers"] or default_workers(options["rewriter"])
    before = signal.signal(signal.SIGTERM, stop)
    ctx.call_on_close(lambda: signal.signal(signal.SIGTERM, before))
    if options["on"] == "ray":
        from bespeak_cli.on_ray import rewrite_on_cluster

        rewrite_on_cluster(ctx, options)
    else:
        rewrite_here(ctx, options)


def stop(_signal: int, _frame: Any) -> None:
    """Ends the process as the default action does, but ends the workers first."""
    click.echo("\nStopped. If IN and OUT are files, repeat the command to resume", err=True)
    sys.exit(TERMINATED)


def rewrite_here(ctx: click.Context, options: dict[str, Any]) -> None:
    from bespeak.batch.run import rewrite_file

    check_usage(options)
    open_tools, begun_with = prepare(ctx, options)
    job = make_job(options, begun_with)
    if not job.resumable:
        click.echo("Streams cannot be resumed: if this run is interrupted, it starts over", err=True)
    with showing_progress(options["source"].stat().st_size if job.resumable else None) as report:
        state = rewrite_file(job, open_tools, report)
    show_report(state, options, {"input": str(options["source"]), "output": str(options["output"]), **begun_with})


def check_usage(options: dict[str, Any]) -> None:
    from bespeak.errors import UsageError

    if options["ray_address"]:
        raise UsageError("--ray-address needs --on ray")
    for name in map(str, (options["source"], options["output"])):
        if "://" in name:
            raise UsageError(f"{name}: object storage needs --on ray")


def make_job(options: dict[str, Any], begun_with: Mapping[str, str]) -> Job:
    from bespeak.batch.output import StreamOutput
    from bespeak.batch.run import Job

    source, output = options["source"], options["output"]
    return Job(
        sys.stdin.buffer if str(source) == "-" else source,
        StreamOutput(sys.stdout.buffer, show_rejected) if str(output) == "-" else output,
        begun_with, options["format_"], options["strict"], options["workers"],
    )  # fmt: skip


def show_rejected(lines: bytes) -> None:
    click.echo(lines.decode("utf-8"), err=True, nl=False)
