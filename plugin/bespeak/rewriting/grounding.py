"""Which words a rewrite may use, and where each of its words came from."""

from __future__ import annotations

import re
from bisect import bisect_left
from collections.abc import Iterable
from dataclasses import dataclass

from bespeak.records import Profile, Source, Term
from bespeak.text import analysis
from bespeak.text.words import FUNCTION_WORDS, fold, inner_words, words

ENDINGS = tuple(
    possessive + mark for possessive in ("", "'s", "’s", "'", "’") for mark in ("", ",", "?", ".", "!", ":", ";")
)
"""What may follow a word without being one."""


def sources(query: str, profile: Profile) -> Iterable[str]:
    """Every text that a grounded rewrite may take words from."""
    yield query
    for turn in profile.turns:
        yield turn.query
        yield turn.response
    for statement in profile.statements:
        yield statement.text


class Lexicon:
    """The words that may come out, as UTF-8, so that a model's pieces of characters can be followed too.

    A word of the sources comes out as it stands there. A function word may also have a capital, and so may the
    rewrite's first word where the query has it in small letters.
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
        """Is it a whole word, with or without an ending?"""
        return any(
            token.endswith(ending) and self._is_word(token[: len(token) - len(ending)], first)
            for ending in self._endings
        )

    def begins(self, token: bytes, first: bool = False) -> bool:
        """Can it become a whole word by what follows?"""
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
    """A rewrite as far as it has come, and which pieces of text may come next."""

    lexicon: Lexicon
    n_words: int = 0  # whole ones
    open_word: bytes = b""  # the one that is being written

    def after(self, piece: bytes) -> Grounded | None:
        """The rewrite with this piece; None where it must not come next."""
        n_words, word = self.n_words, self.open_word
        *whole, rest = piece.split(b" ")
        for i, part in enumerate(whole):
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
    """Each word of a rewrite that the query lacks, once, with the newest turn or else statement that gave it."""
    known, given = {fold(word) for word in words(query)}, set(analysis.terms(query))
    places = list(_places(profile))
    found: dict[str, Term] = {}
    for word in words(text):
        folded = fold(word)
        stems = analysis.terms(word)
        if folded in known or folded in found or (stems and given.issuperset(stems)):
            continue
        found[folded] = _term(word, stems, places)
    return tuple(found.values())


def _places(profile: Profile) -> Iterable[tuple[Source, str, str, set[str], set[str]]]:
    """Source, event, text, its folded words and its stems: turns newest first, then statements newest first."""
    rows: list[tuple[Source, str, str]] = []
    for turn in reversed(profile.turns):
        rows += [("turn", turn.event_id, turn.query), ("turn", turn.event_id, turn.response)]
    rows += [("statement", statement.event_id, statement.text) for statement in reversed(profile.statements)]
    for source, event_id, text in rows:
        yield source, event_id, text, {fold(word) for word in words(text)}, set(analysis.terms(text))


def _term(word: str, stems: list[str], places: list[tuple[Source, str, str, set[str], set[str]]]) -> Term:
    folded = fold(word)
    if folded in FUNCTION_WORDS:
        return Term(word, "function")
    for source, event_id, text, standing, stemmed in places:
        if folded in standing or (stems and stemmed.issuperset(stems)):
            return Term(word, source, event_id, text)
    return Term(word, "free")
