"""The texts that a rewrite may take words from, and where each of its words comes from."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bespeak.records import Profile, Source, Term
from bespeak.text import analysis
from bespeak.text.words import FUNCTION_WORDS, fold, words


def sources(profile: Profile) -> Iterator[str]:
    """Every text of the session that a rewrite may take words from."""
    for turn in profile.turns:
        yield turn.query
        yield turn.response
    for statement in profile.statements:
        yield statement.text


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
