"""Of a long history the statements that matter now, so that ten thousand cost the rewriter no more than ten.

Two steps: words narrow all of them down to a bounded number, vectors order these. A word found in few statements says
more (Spärck Jones, 1972: log(N / n) for a word that n of N hold).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from bespeak.records import Profile, Statement
from bespeak.text import analysis
from bespeak.text.words import FUNCTION_WORDS

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder

CANDIDATES = 32
"""Statements that are compared as vectors."""
NEWEST = 8
"""So many of them at least are the newest, whatever their words."""
LAST_TURN_SHARE = 0.5
"""Of the last turn's vector beside the query's."""
SHORTEST_STEM = 3
TEXT_CHARS = 400


def choose_statements(
    query: str, profile: Profile, size: Callable[[str], int], limit: int, encoder: Encoder | None
) -> tuple[Statement, ...]:
    """The profile's statements, oldest first; where their sizes exceed `limit`, those nearest to query and last turn
    that fit. Without an encoder, those with the most words in common. Raises Late and ModelError.
    """
    if fit(profile.statements, size, limit):
        return profile.statements
    places = candidates(query, profile)
    statements = [profile.statements[place] for place in places]
    ranked = [places[i] for i in _by_vector(query, profile, statements, encoder)] if encoder else places
    taken, left = [], limit
    for place in ranked:
        n = size(profile.statements[place].text)
        if n <= left:
            taken.append(place)
            left -= n
    return tuple(profile.statements[place] for place in sorted(taken))


def fit(statements: Sequence[Statement], size: Callable[[str], int], limit: int) -> bool:
    """Whether all of them fit; only as many are measured as are needed to say so."""
    left = limit
    for statement in reversed(statements):
        left -= size(statement.text)
        if left < 0:
            return False
    return True


def candidates(query: str, profile: Profile) -> list[int]:
    """Places of at most `CANDIDATES` statements, those first that share the rarest words; of equal ones the newest."""
    stems = {stem for text in _asked(query, profile) for stem in analysis.terms(text)}
    texts = [statement.text.casefold() for statement in profile.statements]
    shared = [0.0] * len(texts)
    # A stem within a text, not among its stems: to stem ten thousand statements would take a second.
    for stem in sorted(stems):
        if len(stem) < SHORTEST_STEM or stem in FUNCTION_WORDS:
            continue
        found = [place for place, text in enumerate(texts) if stem in text]
        for place in found:
            shared[place] += math.log(len(texts) / len(found))
    newest_first = range(len(texts) - 1, -1, -1)
    ranked = sorted((place for place in newest_first if shared[place] > 0), key=lambda place: -shared[place])
    taken = dict.fromkeys(ranked[: CANDIDATES - NEWEST])
    for place in newest_first:
        if len(taken) >= CANDIDATES:
            break
        taken[place] = None
    return list(taken)


def _by_vector(query: str, profile: Profile, statements: Sequence[Statement], encoder: Encoder) -> list[int]:
    """Indices of the statements, nearest first; of equally near ones the first."""
    asked = encoder.encode(list(_asked(query, profile)), kind="query")  # (1 or 2, dim)
    wanted = asked[0] + LAST_TURN_SHARE * asked[1] if len(asked) > 1 else asked[0]
    near = encoder.encode([statement.text[:TEXT_CHARS] for statement in statements]) @ wanted  # (n_statements,)
    return sorted(range(len(statements)), key=lambda i: -float(near[i]))


def _asked(query: str, profile: Profile) -> list[str]:
    """The query, and the last turn where there is one."""
    if not profile.turns:
        return [query]
    turn = profile.turns[-1]
    return [query, f"{turn.query} {turn.response}"[:TEXT_CHARS]]
