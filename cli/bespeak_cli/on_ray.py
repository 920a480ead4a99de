"""`bespeak rewrite --on ray`: the same run on a cluster."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from bespeak_cli.batch import prepare, show_report, showing_progress


def rewrite_on_cluster(ctx: click.Context, options: dict[str, Any]) -> None:
    from bespeak.batch.on_ray import RayJob, rewrite_on_ray
    from bespeak.batch.storage import Storage, is_uri, shown

    check_usage(ctx, options)
    open_tools, begun_with = prepare(ctx, options)
    source, output = (
        name if is_uri(name) else str(Path(name).absolute())
        for name in (str(options["source"]), str(options["output"]))
    )
    job = RayJob(source, output, begun_with, options["format_"], options["strict"], options["ray_address"])
    with redirect_stdout(sys.stderr), showing_progress(Storage(source).size()) as report:  # Ray prints to stdout
        state = rewrite_on_ray(job, open_tools, report)
    show_report(state, options, {"input": shown(source), "output": shown(output), **begun_with, "on": "ray"})


def check_usage(ctx: click.Context, options: dict[str, Any]) -> None:
    """Refuses whatever exists only on this machine, since the other machines could not reach it."""
    from bespeak.errors import UsageError

    if "-" in (str(options["source"]), str(options["output"])):
        raise UsageError("--on ray reads and writes files: other machines cannot reach a stream")
    if ctx.get_parameter_source("workers") is not ParameterSource.DEFAULT:
        raise UsageError("--workers is for one machine: on Ray there is a worker for each free CPU of the cluster")
    if options["check"] and not options["elasticsearch"]:
        raise UsageError("--on ray --check needs --elasticsearch: other machines cannot reach the embedded index")
