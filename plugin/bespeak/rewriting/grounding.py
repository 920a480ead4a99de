"""Decides which words a rewrite may use, and finds where each of its words comes from."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from bespeak.records import Profile, Source, Term
from bespeak.text import analysis
from bespeak.text.words import FUNCTION_WORDS, fold, inner_words, words

ENDINGS = tuple(
    possessive + mark for possessive in ("", "'s", "’s", "'", "’") for mark in ("", ",", "?", ".", "!", ":", ";")
)
"""Characters that may follow a word without being part of it."""


def sources(query: str, profile: Profile) -> Iterable[str]:
    """Every text that a grounded rewrite may take words from."""
    yield query
    for turn in profile.turns:
        yield turn.query
        yield turn.response
    for statement in profile.statements:
        yield statement.text


class Lexicon:
    """The words that a rewrite may use, as UTF-8, since a model may write parts of a character.

    Words of the sources must be written as they are there. Function words may also be capitalised, and so may the first
    word of the rewrite if the query has it in lower case.
    """

    def __init__(self, query: str, texts: Iterable[str]) -> None:
        found = {word for text in texts for word in words(text)}
        found |= {inner for word in found for inner in inner_words(word)}
        found |= FUNCTION_WORDS | {word.capitalize() for word in FUNCTION_WORDS}
        found |= {re.sub("^i(?=$|')", "I", word) for word in FUNCTION_WORDS} - {"i"}
        self._words = {word.encode("utf-8", "replace") for word in found}
        self._sorted = sorted(self._words)
        self._first = {word.capitalize().encode("utf-8", "replace") for word in words(query) if word.islower()}
        self._endings = [ending.encode() for ending in ENDINGS]

    def holds(self, token: bytes, first: bool = False) -> bool:
        """Whether the token is a complete word, with or without an ending."""
        return any(
            token.endswith(ending) and self._is_word(token[: len(token) - len(ending)], first)
            for ending in self._endings
        )

    def begins(self, token: bytes, first: bool = False) -> bool:
        """Whether the token can become a complete word."""
        place = bisect_left(self._sorted, token)
        if place < len(self._sorted) and self._sorted[place].startswith(token):
            return True
        if first and any(word.startswith(token) for word in self._first):
            return True
        return any(
            self._is_word(token[:cut], first) and any(ending.startswith(token[cut:]) for ending in self._endings)
            for cut in range(max(1, len(token) - 4), len(token))
        )

    def _is_word(self, word: bytes, first: bool) -> bool:
        return word in self._words or (first and word in self._first)


@dataclass(frozen=True, slots=True)
class Grounded:
    """A rewrite in progress, which decides what pieces of text may come next."""

    lexicon: Lexicon
    n_words: int = 0  # complete ones
    open_word: bytes = b""  # the one in progress

    def after(self, piece: bytes) -> Grounded | None:
        """The rewrite followed by this piece; None if the piece must not come next."""
        n_words, word = self.n_words, self.open_word
        *complete, rest = piece.split(b" ")
        for i, part in enumerate(complete):
            word += part
            if word:
                if not self.lexicon.holds(word, n_words == 0):
                    return None
                n_words, word = n_words + 1, b""
            elif n_words or i:  # two spaces in a row; one may come before the first word
                return None
        word += rest
        if rest and not self.lexicon.begins(word, n_words == 0):
            return None
        return Grounded(self.lexicon, n_words, word)

    def may_end(self) -> bool:
        if not self.open_word:
            return self.n_words > 0
        return self.lexicon.holds(self.open_word, self.n_words == 0)


def attribute(text: str, query: str, profile: Profile) -> tuple[Term, ...]:
    """Each word of a rewrite that the query lacks, once, with the newest turn or else statement that contains it."""
    known, given = {fold(word) for word in words(query)}, set(analysis.terms(query))
    origins = list(_origins(profile))
    found: dict[str, Term] = {}
    for word in words(text):
        folded = fold(word)
        stems = analysis.terms(word)
        if folded in known or folded in found or (stems and given.issuperset(stems)):
            continue
        found[folded] = _term(word, stems, origins)
    return tuple(found.values())


class _Origin(NamedTuple):
    """A text that words may come from."""

    source: Source
    event_id: str
    text: str
    folded: set[str]  # its words
    stems: set[str]


def _origins(profile: Profile) -> Iterator[_Origin]:
    """The turns newest first, then the statements newest first."""
    rows: list[tuple[Source, str, str]] = []
    for turn in reversed(profile.turns):
        rows += [("turn", turn.event_id, turn.query), ("turn", turn.event_id, turn.response)]
    rows += [("statement", statement.event_id, statement.text) for statement in reversed(profile.statements)]
    for source, event_id, text in rows:
        yield _Origin(source, event_id, text, {fold(word) for word in words(text)}, set(analysis.terms(text)))


def _term(word: str, stems: list[str], origins: Sequence[_Origin]) -> Term:
    folded = fold(word)
    if folded in FUNCTION_WORDS:
        return Term(word, "function")
    for origin in origins:
        if folded in origin.folded or (stems and origin.stems.issuperset(stems)):
            return Term(word, origin.source, origin.event_id, origin.text)
    return Term(word, "free")
