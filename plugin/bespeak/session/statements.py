"""Selects the statements that matter for a query, so that ten thousand cost the rewriter no more than ten.

Shared words narrow them down to a bounded number, and vectors rank those. A word of n among N statements counts
log(N / n), so that rare words count most (Spärck Jones, 1972).
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
"""How many statements are compared as vectors."""
NEWEST = 8
"""How many candidates at least are the newest statements, whatever their words."""
LAST_TURN_SHARE = 0.5
"""Weight of the last turn's vector, beside 1 for the query's."""
SHORTEST_STEM = 3
TEXT_CHARS = 400


def choose_statements(
    query: str, profile: Profile, size: Callable[[str], int], limit: int, encoder: Encoder | None
) -> tuple[Statement, ...]:
    """The profile's statements, oldest first; if their sizes exceed `limit`, only the nearest ones that fit.

    Nearest are those most similar to the query and the last turn; without an encoder, those that share the most words
    with them. Raises Late and ModelError.
    """
    if all_fit(profile.statements, size, limit):
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


def all_fit(statements: Sequence[Statement], size: Callable[[str], int], limit: int) -> bool:
    """Whether all statements fit; stops measuring when they do not."""
    left = limit
    for statement in reversed(statements):
        left -= size(statement.text)
        if left < 0:
            return False
    return True


def candidates(query: str, profile: Profile) -> list[int]:
    """Indices of at most `CANDIDATES` statements: those that share the rarest words first, newest among equals."""
    stems = {stem for text in _query_texts(query, profile) for stem in analysis.terms(text)}
    texts = [statement.text.casefold() for statement in profile.statements]
    shared = [0.0] * len(texts)
    # Stems are searched for inside the texts, since stemming ten thousand statements would take a second.
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
    """Indices of the statements, nearest first, and in order among equals."""
    queries = encoder.encode(list(_query_texts(query, profile)), kind="query")  # (1 or 2, dim)
    wanted = queries[0] + LAST_TURN_SHARE * queries[1] if len(queries) > 1 else queries[0]
    near = encoder.encode([statement.text[:TEXT_CHARS] for statement in statements]) @ wanted  # (n_statements,)
    return sorted(range(len(statements)), key=lambda i: -float(near[i]))


def _query_texts(query: str, profile: Profile) -> list[str]:
    """The query, and the last turn if there is one."""
    if not profile.turns:
        return [query]
    turn = profile.turns[-1]
    return [query, f"{turn.query} {turn.response}"[:TEXT_CHARS]]
