"""`bespeak profile`: show, export, pause or delete what is known about a user."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from bespeak_cli.identity import session_option, tenant_option

if TYPE_CHECKING:
    from bespeak.records import Profile

PREFERENCES_SHOWN = 20
LEARN_AGAIN = "What was learnt from all users may include this one until `bespeak learn` runs again."
"""A sum over all users can only be made again."""


@click.group()
def profile() -> None:
    """Show, export, pause or delete what is known about a user."""


@profile.command()
@click.argument("user")
@session_option
@tenant_option
@click.option("--format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_context
def show(ctx: click.Context, user: str, session: str, tenant: str, format: str) -> None:
    """Show what is known about USER; with --session, also the turns of that session."""
    from bespeak_cli.parts import open_profiles

    known = open_profiles(ctx).profile(user, session=session, tenant=tenant)
    click.echo(as_json(known) if format == "json" else as_text(known))


@profile.command()
@click.argument("user")
@tenant_option
@click.pass_context
def export(ctx: click.Context, user: str, tenant: str) -> None:
    """Write all events of USER as UBI lines, which `bespeak events load` can read again."""
    from bespeak_cli.parts import open_profiles

    for line in open_profiles(ctx).export(user, tenant=tenant):
        sys.stdout.buffer.write(json.dumps(line, ensure_ascii=False).encode("utf-8") + b"\n")
    sys.stdout.buffer.flush()


@profile.command()
@click.argument("user")
@tenant_option
@click.pass_context
def forget(ctx: click.Context, user: str, tenant: str) -> None:
    """Delete everything that is known about USER, so that no trace stays in the file."""
    from bespeak_cli.parts import open_profiles

    gone = open_profiles(ctx).forget(user, tenant=tenant)
    pause = "a pause" if gone.paused else "no pause"
    click.echo(f"Deleted: {gone.events} events, {gone.rewrites} cached rewrites, {pause}")
    if gone.learn_again:
        click.echo(LEARN_AGAIN, err=True)


@profile.command()
@click.argument("user")
@click.argument("state", type=click.Choice(["on", "off"]))
@tenant_option
@click.pass_context
def consent(ctx: click.Context, user: str, state: str, tenant: str) -> None:
    """Pause personalisation for USER (off) or resume it (on). Nothing is deleted."""
    from bespeak_cli.parts import open_profiles

    library = open_profiles(ctx)
    library.set_consent(user, state == "on", tenant=tenant)
    click.echo("Personalisation is " + ("on." if state == "on" else "paused. Nothing was deleted."), err=True)
    if state == "off" and library.learnt_from(tenant):
        click.echo(LEARN_AGAIN, err=True)


def as_json(profile: Profile) -> str:
    return json.dumps(asdict(profile), ensure_ascii=False, indent=2, default=lambda moment: moment.isoformat())


def as_text(profile: Profile) -> str:
    """The profile as lines of text, without control characters, which could drive the terminal."""
    lines = [] if profile.consent else ["Personalisation is paused."]
    if profile.is_empty:
        return "\n".join([*lines, "Nothing is known."])
    if profile.statements:
        lines += ["Statements", *(f"  {printable(statement.text)}" for statement in profile.statements)]
    if profile.turns:
        lines += ["Turns of this session"]
        lines += [
            f"  {printable(turn.query)}" + (f" → {printable(turn.response)}" if turn.response else "")
            for turn in profile.turns
        ]
    if profile.preferences:
        lines += ["Likes (+) and dislikes (-)"]
        for liked in profile.preferences[:PREFERENCES_SHOWN]:
            name = printable(liked.title or liked.doc_id)
            lines.append(f"  {liked.weight:+.3f}  {name}  ({printable(liked.action)}, {liked.timestamp:%Y-%m-%d})")
        if (more := len(profile.preferences) - PREFERENCES_SHOWN) > 0:
            lines.append(f"  … and {more} more; --format json shows all")
    return "\n".join(lines)


def printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
