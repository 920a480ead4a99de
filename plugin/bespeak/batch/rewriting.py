"""The rewrites of many queries at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from bespeak.gate import decline
from bespeak.records import Profile, Rewrite, Statement, Turn, UserKey
from bespeak.rewrite import Rewriter, rewrite_query

Read: TypeAlias = tuple[str, UserKey | None, str, tuple[Statement, ...], tuple[Turn, ...], bool]
"""All that a rewrite depends on beside the model: what a rewriter and the gate read of a profile."""


def rewrite_all(asked: Sequence[tuple[str, Profile]], rewriter: Rewriter) -> list[Rewrite]:
    """The rewrite of each query for its profile, in the order asked; never raises, as `rewrite_query`.

    What is asked twice is rewritten once.
    """
    once = {_read(query, profile): (query, profile) for query, profile in asked}
    found = {read: rewrite_query(*once[read], rewriter) for read in once if decline(*once[read])}
    found |= _rewrite_each({read: pair for read, pair in once.items() if read not in found}, rewriter)
    return [found[_read(query, profile)] for query, profile in asked]


def _rewrite_each(asked: Mapping[Read, tuple[str, Profile]], rewriter: Rewriter) -> dict[Read, Rewrite]:
    """A session's queries stand together: what the model has read of its history is then read once."""
    order = sorted(asked, key=lambda read: (read[1] or UserKey("", ""), read[2]))
    return {read: rewrite_query(*asked[read], rewriter) for read in order}


def _read(query: str, profile: Profile) -> Read:
    return query, profile.user, profile.session_id, profile.statements, profile.turns, profile.consent
