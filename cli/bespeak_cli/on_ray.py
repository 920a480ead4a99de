"""`bespeak rewrite --on ray`: the same run on a cluster."""

from __future__ import annotations

import sys
from contextlib import redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak_cli.rewrite import build_missing, describe, forms, make_tools, report

if TYPE_CHECKING:
    from datetime import datetime

    from bespeak.batch.work import Tools
    from bespeak.records import Profile, UserKey
    from bespeak_cli import Folders


def rewrite_there(ctx: click.Context, options: dict[str, Any]) -> None:
    from bespeak.batch.on_ray import RayJob, rewrite_on_ray
    from bespeak.batch.storage import Storage, is_uri, shown
    from bespeak_cli.progress import Progress

    check_usage(ctx, options)
    form, packing = forms(options)
    build_missing(ctx, options)
    open_tools = partial(make_tools_there, ctx.obj.absolute(), options, form, packing)
    begun_with = describe(ctx, open_tools, form, options)
    source, output = (
        name if is_uri(name) else str(Path(name).absolute())
        for name in (str(options["source"]), str(options["output"]))
    )
    job = RayJob(source, output, begun_with, options["format_"], options["strict"], options["ray_address"])
    with redirect_stdout(sys.stderr), Progress(sys.stderr, Storage(source).size()) as progress:  # Ray talks on stdout
        standing = rewrite_on_ray(job, open_tools, progress.tell)
    told = {**options, "source": shown(source), "output": shown(output)}
    report(standing, told, {**begun_with, "on": "ray"})


def check_usage(ctx: click.Context, options: dict[str, Any]) -> None:
    """What lies on this machine alone would be missed on all others."""
    from bespeak.errors import UsageError

    if "-" in (str(options["source"]), str(options["output"])):
        raise UsageError("--on ray reads and writes files: a stream is of one machine")
    if ctx.get_parameter_source("workers") is not ParameterSource.DEFAULT:
        raise UsageError("--workers is for one machine: on Ray there are as many as the cluster has CPUs free")
    if options["check"] and not options["elasticsearch"]:
        raise UsageError("--on ray --check needs --elasticsearch: the embedded index is of one machine")


def make_tools_there(folders: Folders, options: dict[str, Any], form: Any, packing: Any) -> Tools:
    """As on one machine, but that nobody is in its own store."""
    from dataclasses import replace

    tools = make_tools(folders.data, folders.cache, options, form, packing)
    if options["profiles"] == "elasticsearch":
        return tools
    tools.store.close()
    return replace(tools, store=Nobodys(folders.data / "bespeak.db"))


class Nobodys(SqliteStore):
    """The store of a machine among many: a user's history is not in it, so nobody's is looked for."""

    def profile(self, user: UserKey | None, session_id: str, now: datetime, query_id: str = "") -> Profile:
        from bespeak.errors import StoreError

        raise StoreError(
            "a line names a user, and --profiles sqlite is of one machine: give --profiles elasticsearch, or lines "
            "with their own history and no user"
        )
