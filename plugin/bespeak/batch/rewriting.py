"""Rewrites many queries at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from bespeak.reading import Reading, rewrite_reading
from bespeak.records import Rewrite, Statement, Turn, UserKey
from bespeak.rewriting.batched import in_turn
from bespeak.rewriting.rewriter import Rewriter

Inputs: TypeAlias = tuple[str, UserKey | None, str, tuple[Statement, ...], tuple[Turn, ...], bool]
"""Everything besides the model that a rewrite depends on: what the rewriter and the gate read."""


def rewrite_all(readings: Sequence[Reading], rewriter: Rewriter, n_threads: int = 1) -> list[Rewrite]:
    """The rewrite of each reading, in order. Like `rewrite_reading`, it never raises.

    Equal readings are rewritten once. `n_threads` of them are rewritten at the same time.
    """
    once = {_inputs(reading): reading for reading in readings}
    found = {inputs: rewrite_reading(one, rewriter) for inputs, one in once.items() if one.gate}
    found |= _rewrite_each({inputs: one for inputs, one in once.items() if not one.gate}, rewriter, n_threads)
    return [found[_inputs(reading)] for reading in readings]


def _rewrite_each(readings: Mapping[Inputs, Reading], rewriter: Rewriter, n_threads: int) -> dict[Inputs, Rewrite]:
    """Rewrites the queries of a conversation one after another, so that its history is read once."""
    conversations: dict[object, list[Inputs]] = {}
    for inputs, reading in readings.items():
        conversations.setdefault(_conversation(reading), []).append(inputs)
    found: dict[Inputs, Rewrite] = {}

    def rewrite(inputs: Inputs) -> None:
        found[inputs] = rewrite_reading(readings[inputs], rewriter)

    in_turn(conversations.values(), rewrite, n_threads)
    return found


def _conversation(reading: Reading) -> object:
    """Equal for queries whose prompts begin alike."""
    profile = reading.profile
    said = tuple(statement.text for statement in profile.statements[:1])
    return profile.user, profile.session_id, said, profile.turns[0].query if profile.turns else reading.query


def _inputs(reading: Reading) -> Inputs:
    profile = reading.profile
    return reading.query, profile.user, profile.session_id, profile.statements, profile.turns, profile.consent
