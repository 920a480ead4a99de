"""The options that become `Settings`, the same in every command that searches, with the defaults of `Settings`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import click

from bespeak.settings import MAX_WINDOW, Settings, Weights

Command = TypeVar("Command", bound=Callable[..., Any])

MIXED = ("rewrite_weight", "last_turn_weight", "last_turn_share")
"""Settings that `bespeak tune` chooses, beside the weights."""
OPTIONAL = ("mode", "window", "rewrite_ms", "rerank_ms", "profile_ms", *MIXED)
"""Settings that a command may have an option for, beside the weights."""

_DEFAULTS = Settings()
_NOT_NEGATIVE = click.FloatRange(min=0)
_BUDGET = click.FloatRange(min=1)


def _setting(name: str, type_: click.ParamType[Any], help_: str) -> Callable[[Command], Command]:
    """The option of one setting, with its default."""
    flag = "--" + name.replace("_", "-")
    return click.option(flag, type=type_, default=getattr(_DEFAULTS, name), show_default=True, help=help_)


_MIXING = (
    click.option(
        "--weights",
        metavar="L,E,U",
        default=",".join(f"{weight:g}" for weight in _DEFAULTS.weights.as_tuple()),
        show_default=True,
        help="Weights of the lexical, the embedding and the user score of a hit.",
    ),
    _setting("rewrite_weight", _NOT_NEGATIVE, "BM25 weight of the rewritten query; the typed query has 1."),
    _setting("last_turn_weight", _NOT_NEGATIVE, "BM25 weight of the words of the session's last turn."),
    _setting("last_turn_share", _NOT_NEGATIVE, "Share of the session's last turn in the query's vector."),
)
_SEARCHING = (
    *_MIXING,
    _setting(
        "window",
        click.IntRange(1, MAX_WINDOW),
        f"Rerank this many hits. {MAX_WINDOW:,} is the most that Elasticsearch returns (index.max_result_window).",
    ),
    _setting("rewrite_ms", _BUDGET, "Milliseconds for a rewrite; after that, the query goes out as typed."),
)
_SERVING = (
    *_SEARCHING,
    _setting("profile_ms", _BUDGET, "Milliseconds for reading a profile; after that, the search is not personalised."),
    _setting("rerank_ms", _BUDGET, "Milliseconds for reranking; after that, hits keep Elasticsearch's order."),
)


def mixing_options(command: Command) -> Command:
    """Adds the options that `bespeak tune` chooses: how scores are mixed."""
    return _added(_MIXING, command)


def search_options(command: Command) -> Command:
    """Adds the options of a single search: how scores are mixed, the window, the time for a rewrite."""
    return _added(_SEARCHING, command)


def serving_options(command: Command) -> Command:
    """Adds the options of `search_options`, and the time limits that only the proxy keeps."""
    return _added(_SERVING, command)


def _added(options: tuple[Callable[[Any], Any], ...], command: Command) -> Command:
    for option in reversed(options):
        command = option(command)
    return command


def read_settings(options: Mapping[str, Any]) -> Settings:
    """The settings that a command's options give; the default for each that is absent or None. Raises UsageError."""
    given = {name: options[name] for name in OPTIONAL if options.get(name) is not None}
    if options.get("weights"):
        given["weights"] = read_weights(options["weights"])
    return Settings(**given)


def read_weights(text: str) -> Weights:
    """
    >>> read_weights("0.5,0.5,0.2")
    Weights(lexical=0.5, embedding=0.5, user=0.2)
    """
    from bespeak.errors import UsageError

    try:
        lexical, embedding, user = (float(value) for value in text.split(","))
    except ValueError as error:
        raise UsageError(f"--weights takes three numbers such as 0.5,0.5,0.2, not {text!r}") from error
    return Weights(lexical, embedding, user)
