"""`bespeak learn`: what people did together, from the events that are kept."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from bespeak_cli.engine import engine_options

if TYPE_CHECKING:
    from pathlib import Path

    from bespeak.profiles.stores import EventStore


profiles_option = click.option(
    "--profiles", type=click.Choice(["sqlite", "elasticsearch"]), default="sqlite", show_default=True,
    help="Where events are kept: on this machine, or in the cluster that --elasticsearch names.",
)  # fmt: skip


@click.command()
@profiles_option
@engine_options
@click.pass_context
def learn(ctx: click.Context, /, **options: Any) -> None:
    """Learn from what people did together; searches use it from then on, each tenant its own.

    Run it again, say each night: a user's new events count at once, but only a new run learns from them for others.
    """
    from contextlib import closing

    from bespeak.errors import InputError
    from bespeak.profiles.deriving import PREFERRING
    from bespeak.ranking.behaviour import gather
    from bespeak.ranking.learning import learn as solve
    from bespeak.ranking.learning import learnt_path, write_learnt

    def progress(step: str) -> None:
        click.echo(step, err=True)

    with closing(open_store(ctx.obj.data, options)) as store:
        tenants = gather(store.of_everyone(PREFERRING))
    if not tenants:
        raise InputError("there are no events of documents to learn from: load some with `bespeak events load`")
    refused: list[InputError] = []
    for tenant, behaviour in sorted(tenants.items()):
        path = learnt_path(ctx.obj.data, tenant)
        try:
            learnt = solve(behaviour, progress)
        except InputError as error:  # of this tenant alone
            path.unlink(missing_ok=True)  # what was learnt of more events than there are now
            refused.append(error)
            progress(f"tenant {tenant or '(none)'}: {error}")
            continue
        digest = write_learnt(path, learnt)
        click.echo(
            f"Learnt from {behaviour.n_events} events of {behaviour.n_users} users on "
            f"{len(learnt.doc_ids)} documents, version {digest[:12]}"
        )
    if len(refused) == len(tenants):
        raise refused[0]


def open_store(data: Path, options: dict[str, Any]) -> EventStore:
    from bespeak.errors import UsageError

    if options["profiles"] == "sqlite":
        from bespeak.profiles.stores.sqlite import SqliteStore

        return SqliteStore(data / "bespeak.db")
    if not options.get("elasticsearch"):
        raise UsageError("--profiles elasticsearch needs --elasticsearch URL")
    from bespeak.profiles.stores.elastic import ElasticsearchStore
    from bespeak_cli.engine import credentials

    return ElasticsearchStore(
        options["elasticsearch"],
        api_key=options["api_key"],
        basic=credentials(options["basic"]),
        ca_file=options["ca_file"],
    )
