"""`bespeak profile`: show, export, pause or delete what is known about a user."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from bespeak_cli.identity import session_option, tenant_option

if TYPE_CHECKING:
    from bespeak.profiles.stores.sqlite import SqliteStore
    from bespeak.records import Profile

PREFERENCES_SHOWN = 20


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
    from datetime import UTC, datetime

    from bespeak.profiles.events import user_key

    with opened_store(ctx) as store:
        known = store.profile(user_key(tenant, user), session, datetime.now(UTC))
    click.echo(as_json(known) if format == "json" else as_text(known))


@profile.command()
@click.argument("user")
@tenant_option
@click.pass_context
def export(ctx: click.Context, user: str, tenant: str) -> None:
    """Write all events of USER as UBI lines, which `bespeak events load` can read again."""
    from bespeak.profiles.events import user_key
    from bespeak.profiles.ubi import ubi_line

    with opened_store(ctx) as store:
        for event in store.export(user_key(tenant, user)):
            sys.stdout.buffer.write(json.dumps(ubi_line(event), ensure_ascii=False).encode("utf-8") + b"\n")
    sys.stdout.buffer.flush()


@profile.command()
@click.argument("user")
@tenant_option
@click.pass_context
def forget(ctx: click.Context, user: str, tenant: str) -> None:
    """Delete everything that is known about USER, and overwrite it in the file."""
    from bespeak.profiles.events import user_key

    with opened_store(ctx) as store:
        gone = store.forget(user_key(tenant, user))
    pause = "a pause" if gone.consent else "no pause"
    click.echo(f"Deleted: {gone.events} events, {gone.rewrites} cached rewrites, {pause}")
    if gone.events:
        warn_of_learnt(ctx, tenant)


@profile.command()
@click.argument("user")
@click.argument("state", type=click.Choice(["on", "off"]))
@tenant_option
@click.pass_context
def consent(ctx: click.Context, user: str, state: str, tenant: str) -> None:
    """Pause personalisation for USER (off) or resume it (on). Nothing is deleted."""
    from bespeak.profiles.events import user_key

    with opened_store(ctx) as store:
        store.set_consent(user_key(tenant, user), state == "on")
    click.echo("Personalisation is " + ("on." if state == "on" else "paused. Nothing was deleted."), err=True)
    if state == "off":
        warn_of_learnt(ctx, tenant)


def warn_of_learnt(ctx: click.Context, tenant: str) -> None:
    """Says that what `bespeak learn` wrote still counts the user: sums over all users can only be made again."""
    from bespeak.ranking.learning import LearntFolder

    if LearntFolder(ctx.obj.data).holds(tenant):
        click.echo("What was learnt from all users may include this one until `bespeak learn` runs again.", err=True)


@contextmanager
def opened_store(ctx: click.Context) -> Iterator[SqliteStore]:
    from bespeak.profiles.stores.sqlite import SqliteStore

    with closing(SqliteStore(ctx.obj.data / "bespeak.db")) as store:
        yield store


def as_json(known: Profile) -> str:
    return json.dumps(asdict(known), ensure_ascii=False, indent=2, default=lambda moment: moment.isoformat())


def as_text(known: Profile) -> str:
    """The profile as lines of text, without control characters, which could drive the terminal."""
    lines = [] if known.consent else ["Personalisation is paused."]
    if known.is_empty:
        return "\n".join([*lines, "Nothing is known."])
    if known.statements:
        lines += ["Statements", *(f"  {printable(statement.text)}" for statement in known.statements)]
    if known.turns:
        lines += ["Turns of this session"]
        lines += [
            f"  {printable(turn.query)}" + (f" → {printable(turn.response)}" if turn.response else "")
            for turn in known.turns
        ]
    if known.preferences:
        lines += ["Likes (+) and dislikes (-)"]
        for liked in known.preferences[:PREFERENCES_SHOWN]:
            name = printable(liked.title or liked.doc_id)
            lines.append(f"  {liked.weight:+.3f}  {name}  ({printable(liked.action)}, {liked.timestamp:%Y-%m-%d})")
        if (more := len(known.preferences) - PREFERENCES_SHOWN) > 0:
            lines.append(f"  … and {more} more; --format json shows all")
    return "\n".join(lines)


def printable(text: str) -> str:
    return "".join(char if char.isprintable() else " " for char in text)
