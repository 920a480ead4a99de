"""The parts of a session that are read together with a query, cut to the length that a model can read."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from typing import TYPE_CHECKING, Literal, NamedTuple

from bespeak.models.encoder import well_formed
from bespeak.records import Profile
from bespeak.session.statements import choose_statements

if TYPE_CHECKING:
    from tokenizers import Tokenizer

MAX_TOKENS = 176
QUERY_TOKENS = 56
LAST_QUERY_TOKENS, LAST_RESPONSE_TOKENS = 40, 60
EARLIER_TURNS, EARLIER_QUERY_TOKENS = 4, 24
STATEMENT_TOKENS = 20
BEFORE_TOKENS = 9
"""Tokens before the query: the start token, and the prefix that the model's authors put before queries."""
MAX_CHARS = 2_000
"""Each text is cut to this length before it is tokenised."""


class Section(NamedTuple):
    """A part of what the model reads."""

    source: Literal["query", "turn", "statement"]
    place: int  # of the turn or statement in the profile
    text: str


def sections(query: str, profile: Profile, tokenizer: Tokenizer) -> list[Section]:
    """The query, the last turn, earlier queries and statements; a part that does not fit is left out."""

    @lru_cache
    def start_of(text: str, limit: int) -> tuple[str, int]:
        """The first words of a text, at most `limit` tokens, and how many they are; if one word has more, its start."""
        text = " ".join(well_formed(text[:MAX_CHARS]).split())
        ends = [end for _, end in tokenizer.encode(text, add_special_tokens=False).offsets]
        if len(ends) <= limit:
            return (text, len(ends)) if ends else ("", 0)
        characters = [n for n in range(1, limit + 1) if ends[n - 1] < ends[n]]  # one may be several tokens
        n = max([n for n in characters if text[ends[n - 1]] == " "] or characters, default=0)
        return (text[: ends[n - 1]], n) if n else ("", 0)

    typed, n = start_of(query, QUERY_TOKENS)
    found, room = [Section("query", 0, typed)], MAX_TOKENS - BEFORE_TOKENS - n - 1
    for place, text, limit in _turn_texts(profile):
        start, n = start_of(text, limit)
        if start and n < room:
            found.append(Section("turn", place, start))
            room -= n + 1
    chosen = choose_statements(query, profile, lambda text: start_of(text, STATEMENT_TOKENS)[1] + 1, room, encoder=None)
    places = {id(statement): place for place, statement in enumerate(profile.statements)}
    stated = ((places[id(one)], start_of(one.text, STATEMENT_TOKENS)[0]) for one in chosen)
    return found + [Section("statement", place, text) for place, text in stated if text]


def _turn_texts(profile: Profile) -> Iterator[tuple[int, str, int]]:
    """The last turn's query and answer, then earlier queries, newest first, each with the most tokens it may take."""
    last = len(profile.turns) - 1
    if last < 0:
        return
    yield last, profile.turns[last].query, LAST_QUERY_TOKENS
    yield last, profile.turns[last].response, LAST_RESPONSE_TOKENS
    for place in range(last - 1, max(-1, last - 1 - EARLIER_TURNS), -1):
        yield place, profile.turns[place].query, EARLIER_QUERY_TOKENS
