"""The options that `bespeak tune` chooses: how scores are mixed. One list for all commands that search."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import click

Command = TypeVar("Command", bound=Callable[..., Any])

MIXED = ("rewrite_weight", "last_turn_weight", "last_turn_share")

_NOT_NEGATIVE = click.FloatRange(min=0)
_OPTIONS = (
    click.option("--weights", metavar="L,E,U", help="How lexical, embedding and user scores count."),
    click.option("--rewrite-weight", type=_NOT_NEGATIVE, help="How the rewrite's words count beside the query's."),
    click.option("--last-turn-weight", type=_NOT_NEGATIVE, help="How the last turn's words count."),
    click.option("--last-turn-share", type=_NOT_NEGATIVE, help="The last turn's share in the query's vector."),
)


def mixing_options(command: Command) -> Command:
    """Adds the options; each is None where it is not given."""
    for option in reversed(_OPTIONS):
        command = option(command)
    return command
