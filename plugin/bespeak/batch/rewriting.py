"""Rewrites many queries at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from bespeak.records import Profile, Rewrite, Statement, Turn, UserKey
from bespeak.rewriting.batched import in_turn
from bespeak.rewriting.rewriter import Rewriter, rewrite_query
from bespeak.session.gate import decline

Pair: TypeAlias = tuple[str, Profile]
Inputs: TypeAlias = tuple[str, UserKey | None, str, tuple[Statement, ...], tuple[Turn, ...], bool]
"""Everything besides the model that a rewrite depends on: what the rewriter and the gate read."""


def rewrite_all(queries: Sequence[Pair], rewriter: Rewriter, n_threads: int = 1) -> list[Rewrite]:
    """The rewrite of each query for its profile, in order. Like `rewrite_query`, it never raises.

    Equal pairs are rewritten once. `n_threads` queries are rewritten at the same time.
    """
    once = {_inputs(*pair): pair for pair in queries}
    found = {inputs: rewrite_query(*pair, rewriter) for inputs, pair in once.items() if decline(*pair)}
    found |= _rewrite_each({inputs: pair for inputs, pair in once.items() if inputs not in found}, rewriter, n_threads)
    return [found[_inputs(*pair)] for pair in queries]


def _rewrite_each(queries: Mapping[Inputs, Pair], rewriter: Rewriter, n_threads: int) -> dict[Inputs, Rewrite]:
    """Rewrites the queries of a conversation one after another, so that its history is read once."""
    conversations: dict[object, list[Inputs]] = {}
    for inputs, pair in queries.items():
        conversations.setdefault(_conversation(*pair), []).append(inputs)
    found: dict[Inputs, Rewrite] = {}

    def rewrite(inputs: Inputs) -> None:
        found[inputs] = rewrite_query(*queries[inputs], rewriter)

    in_turn(conversations.values(), rewrite, n_threads)
    return found


def _conversation(query: str, profile: Profile) -> object:
    """A key that is equal for queries whose prompts begin alike."""
    said = tuple(statement.text for statement in profile.statements[:1])
    return profile.user, profile.session_id, said, profile.turns[0].query if profile.turns else query


def _inputs(query: str, profile: Profile) -> Inputs:
    return query, profile.user, profile.session_id, profile.statements, profile.turns, profile.consent
