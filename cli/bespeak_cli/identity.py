"""The options that name a user, a session and a tenant, the same in every command."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

user_option = click.option("--user", help="User whose profile is used. Without it, nothing is personalised.")
session_option = click.option(
    "--session", default="", help="Name of the session; its earlier queries explain the next one."
)
tenant_option = click.option("--tenant", default="", help="Tenant of the user. Tenants never share data.")


def identity_options(command: Command) -> Command:
    """Adds --user (default None), --session and --tenant (default "")."""
    return user_option(session_option(tenant_option(command)))
