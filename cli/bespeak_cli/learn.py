"""`bespeak learn`: learn from all users' events which documents go together."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bespeak_cli.store import check_store_options, open_store, store_options

if TYPE_CHECKING:
    from bespeak.errors import InputError
    from bespeak.ranking.behaviour import Behaviour


@click.command()
@store_options
@click.pass_context
def learn(ctx: click.Context, /, **options: Any) -> None:
    """Learn from the recorded events which documents the same people like.

    The result goes to --data-dir, one file for each tenant, and every search there uses it from then on. Run the
    command regularly, for example each night: new events count for their own user at once, but for other users only
    after the next run.
    """
    from contextlib import closing

    from bespeak.errors import InputError
    from bespeak.profiles.deriving import PREFERRING
    from bespeak.ranking.behaviour import gather

    check_store_options(options)
    with closing(open_store(ctx.obj.data, options)) as store:
        tenants = gather(store.of_everyone(PREFERRING))
    if not tenants:
        raise InputError("there are no events of documents to learn from: load some with `bespeak events load`")
    refused = [error for item in sorted(tenants.items()) if (error := learn_tenant(ctx.obj.data, *item))]
    if len(refused) == len(tenants):
        raise refused[0]


def learn_tenant(data: Path, tenant: str, behaviour: Behaviour) -> InputError | None:
    """Writes the tenant's file, or returns why there are too few events for one; then an old file is deleted."""
    from bespeak.errors import InputError
    from bespeak.ranking.learning import learn as solve
    from bespeak.ranking.learning import learnt_path, write_learnt

    def report(step: str) -> None:
        click.echo(step, err=True)

    path = learnt_path(data, tenant)
    try:
        learnt = solve(behaviour, report)
    except InputError as error:
        path.unlink(missing_ok=True)  # it was learnt from events that have been deleted since
        report(f"tenant {tenant or '(none)'}: {error}")
        return error
    digest = write_learnt(path, learnt)
    click.echo(
        f"Learnt from {behaviour.n_events} events of {behaviour.n_users} users on "
        f"{len(learnt.doc_ids)} documents, version {digest[:12]}"
    )
    return None
