"""`bespeak remember`: keep a statement of a user."""

from __future__ import annotations

from contextlib import closing

import click

from bespeak_cli.identity import tenant_option


@click.command()
@click.argument("text")
@click.option("--user", required=True, help="Who says it.")
@tenant_option
@click.pass_context
def remember(ctx: click.Context, text: str, user: str, tenant: str) -> None:
    """Keep what a user says about themselves, such as "I am vegetarian"."""
    from datetime import UTC, datetime

    from bespeak.errors import UsageError
    from bespeak.profiles.events import new_event, user_key
    from bespeak.profiles.stores.sqlite import SqliteStore

    if not text.strip():
        raise UsageError("nothing to remember: the statement is empty")
    event = new_event(user_key(tenant, user), "statement", datetime.now(UTC), text=text.strip())
    with closing(SqliteStore(ctx.obj.data / "bespeak.db")) as store:
        store.add([event])
    click.echo(f"Remembered; `bespeak profile show {user}` shows all that is known.", err=True)
