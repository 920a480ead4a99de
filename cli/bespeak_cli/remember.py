"""`bespeak remember`: keep a statement of a user."""

from __future__ import annotations

import click

from bespeak_cli.identity import tenant_option


@click.command()
@click.argument("text")
@click.option("--user", required=True, help="User who says it.")
@tenant_option
@click.pass_context
def remember(ctx: click.Context, text: str, user: str, tenant: str) -> None:
    """Keep what a user says about themselves, such as "I am vegetarian"."""
    from bespeak_cli.parts import open_profiles

    open_profiles(ctx).remember(text, user, tenant=tenant)
    click.echo(f"Remembered; `bespeak profile show {user}` shows all that is known.", err=True)
