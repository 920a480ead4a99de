"""The rewrites of many queries at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from bespeak.reading import rewrite_query
from bespeak.records import Profile, Rewrite, Statement, Turn, UserKey
from bespeak.rewriting.batched import in_turn
from bespeak.rewriting.rewriter import Rewriter
from bespeak.session.gate import decline

Read: TypeAlias = tuple[str, UserKey | None, str, tuple[Statement, ...], tuple[Turn, ...], bool]
"""All that a rewrite depends on beside the model: what a rewriter and the gate read of a profile."""


def rewrite_all(asked: Sequence[tuple[str, Profile]], rewriter: Rewriter, n_threads: int = 1) -> list[Rewrite]:
    """The rewrite of each query for its profile, in the order asked; never raises, as `rewrite_query`.

    What is asked twice is rewritten once. `n_threads`: how many queries are rewritten at the same time.
    """
    once = {_read(query, profile): (query, profile) for query, profile in asked}
    found = {read: rewrite_query(*once[read], rewriter) for read in once if decline(*once[read])}
    found |= _rewrite_each({read: pair for read, pair in once.items() if read not in found}, rewriter, n_threads)
    return [found[_read(query, profile)] for query, profile in asked]


def _rewrite_each(asked: Mapping[Read, tuple[str, Profile]], rewriter: Rewriter, n_threads: int) -> dict[Read, Rewrite]:
    """A conversation's queries stand together."""
    conversations: dict[object, list[Read]] = {}
    for read in asked:
        conversations.setdefault(_conversation(*asked[read]), []).append(read)
    found: dict[Read, Rewrite] = {}

    def work(read: Read) -> None:
        found[read] = rewrite_query(*asked[read], rewriter)

    in_turn(conversations.values(), work, n_threads)
    return found


def _conversation(query: str, profile: Profile) -> object:
    """What tells the prompts that begin alike."""
    said = tuple(statement.text for statement in profile.statements[:1])
    return profile.user, profile.session_id, said, profile.turns[0].query if profile.turns else query


def _read(query: str, profile: Profile) -> Read:
    return query, profile.user, profile.session_id, profile.statements, profile.turns, profile.consent
