"""Who is asking: the options that name a user, a session and a tenant, everywhere alike."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

user_option = click.option("--user", help="Whose profile counts; nobody's if not given.")
session_option = click.option("--session", default="", help="The run of turns that the query belongs to.")
tenant_option = click.option("--tenant", default="", help="Whose users these are; tenants never share data.")


def identity_options(command: Command) -> Command:
    """Adds --user (None if not given), --session and --tenant ("" if not given)."""
    return user_option(session_option(tenant_option(command)))
