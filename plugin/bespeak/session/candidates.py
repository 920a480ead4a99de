"""The words of a session that may be picked for a query, with their features."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, NamedTuple, TypeAlias

from bespeak.records import Profile, Turn
from bespeak.session.features import (
    N_FEATURES,
    N_WORD_FEATURES,
    Occurrences,
    query_features,
    statement_word_features,
    turn_word_features,
)
from bespeak.text import analysis
from bespeak.text.words import FUNCTION_WORDS, fold, words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Floats: TypeAlias = npt.NDArray[np.float32]

TURNS = 5
"""Latest turns whose words are candidates."""
KNOWN_TURNS = 8
"""Latest turns that the query's features count."""
RESPONSE_CHARS = 1_000
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n")


class Candidate(NamedTuple):
    """A word that may be picked; `place` is the index of its turn or statement in the profile."""

    stem: str
    word: str
    source: Literal["turn", "statement"]
    place: int


@dataclass(frozen=True, slots=True)
class Rarity:
    """How rare each stem is, in about [-1, 1.2]."""

    by_stem: Mapping[str, float]
    unseen: float  # of every other stem

    def of(self, stem: str) -> float:
        return self.by_stem.get(stem, self.unseen)


class QueryWords(NamedTuple):
    """The stems of a query: all of them, and those of its content words."""

    stems: frozenset[str]
    content: frozenset[str]

    @classmethod
    def of(cls, query: str) -> QueryWords:
        content = (word for word in words(query) if fold(word) not in FUNCTION_WORDS)
        return cls(frozenset(analysis.terms(query)), frozenset(s for word in content for s in analysis.terms(word)))


@dataclass(frozen=True, slots=True)
class StatementWords:
    """The words of a user's statements, with features as if no statement shared a word with the query."""

    row: Mapping[str, int]  # stem -> its index in what follows
    candidates: Sequence[Candidate]
    counts: Sequence[int]
    features: Floats  # (n_stems, N_WORD_FEATURES)
    terms: Sequence[frozenset[str]]  # of each statement
    words: Sequence[Mapping[str, str]]  # of each statement: stem -> the last word with this stem

    def shared_with(self, query: QueryWords) -> dict[str, tuple[int, str, int]]:
        """For each stem of a statement that shares words with the query: how many, its word, and the statement.

        If there are several, the statement that shares most counts, then the last one.
        """
        found: dict[str, tuple[int, str, int]] = {}
        for place, terms in enumerate(self.terms):
            if n_shared := len(terms & query.content):
                found |= {
                    stem: (n_shared, word, place)
                    for stem, word in self.words[place].items()
                    if n_shared >= found.get(stem, (0,))[0]
                }
        return found


def read_statements(texts: Sequence[str], rarity: Rarity) -> StatementWords:
    """The words of these statements."""
    import numpy as np

    counts: dict[str, int] = {}
    last: dict[str, tuple[str, int]] = {}
    by_text = []
    for place, text in enumerate(texts):
        words_of: dict[str, str] = {}
        for word in words(text):
            stem = _first_stem(word)
            if _is_usable(word, stem):
                counts[stem] = counts.get(stem, 0) + 1
                words_of[stem] = word
        last |= {stem: (word, place) for stem, word in words_of.items()}
        by_text.append(words_of)
    features = [statement_word_features(last[stem][0], n, 0, rarity.of(stem)) for stem, n in counts.items()]
    return StatementWords(
        {stem: row for row, stem in enumerate(counts)},
        [Candidate(stem, last[stem][0], "statement", last[stem][1]) for stem in counts],
        list(counts.values()),
        np.array(features, np.float32).reshape(len(counts), N_WORD_FEATURES),
        [frozenset(analysis.terms(text)) for text in texts],
        by_text,
    )


def find_candidates(
    query: str, profile: Profile, rarity: Rarity, statements: StatementWords | None = None
) -> tuple[list[Candidate], Floats]:
    """The words that may be picked, and their features `(n, N_FEATURES)`.

    `statements` are the words of the profile's statements, if they have been read before.
    """
    import numpy as np

    typed = QueryWords.of(query)
    turns = profile.turns[-KNOWN_TURNS:]
    found, shared = _read_turns(turns[-TURNS:], typed)
    statements = statements or read_statements([s.text for s in profile.statements], rarity)
    first_query = set(analysis.terms(turns[0].query)) if turns else set()
    candidates, rows = [], []
    for stem, one in found.items():
        candidates.append(Candidate(stem, one.word, "turn", len(profile.turns) - 1 - one.back))
        rows.append(turn_word_features(one, stem in first_query, rarity.of(stem), stem in statements.row))
    stated, stated_rows = _statement_candidates(statements, typed, typed.stems.union(found), rarity)
    features = np.empty((len(rows) + len(stated), N_FEATURES), np.float32)
    features[: len(rows), :N_WORD_FEATURES] = np.array(rows, np.float32).reshape(len(rows), N_WORD_FEATURES)
    features[len(rows) :, :N_WORD_FEATURES] = stated_rows
    features[:, N_WORD_FEATURES:] = query_features(query, turns, len(typed.content), shared)
    return candidates + stated, features


def _statement_candidates(
    statements: StatementWords, query: QueryWords, excluded: frozenset[str], rarity: Rarity
) -> tuple[list[Candidate], Floats]:
    """The words of statements whose stem is not excluded, and their word features."""
    import numpy as np

    found, features = list(statements.candidates), statements.features.copy()
    for stem, (n_shared, word, place) in statements.shared_with(query).items():
        row = statements.row[stem]
        found[row] = Candidate(stem, word, "statement", place)
        features[row] = statement_word_features(word, statements.counts[row], n_shared, rarity.of(stem))
    left_out = {statements.row[stem] for stem in excluded if stem in statements.row}
    kept = [one for row, one in enumerate(found) if row not in left_out]
    return kept, np.delete(features, list(left_out), axis=0) if left_out else features


def _first_stem(word: str) -> str:
    return next(iter(analysis.terms(word)), "")


def _is_usable(word: str, stem: str) -> bool:
    return len(stem) > 1 and fold(word) not in FUNCTION_WORDS


class _Token(NamedTuple):
    word: str
    stem: str
    begins_sentence: bool
    sentence: int


def _tokens(text: str) -> list[_Token]:
    return [
        _Token(word, _first_stem(word), i == 0, n)
        for n, sentence in enumerate(_SENTENCE.split(text))
        for i, word in enumerate(words(sentence))
    ]


def _read_turns(turns: Sequence[Turn], query: QueryWords) -> tuple[dict[str, Occurrences], float]:
    """Every stem of the turns, and the share of the query's content words that a text of the last turn contains."""
    found: dict[str, Occurrences] = {}
    shared = 0.0
    for back, turn in enumerate(reversed(turns)):
        for kind, text in (("query", turn.query), ("response", turn.response[:RESPONSE_CHARS])):
            tokens = _tokens(text)
            if back == 0:
                shared = max(shared, len({t.stem for t in tokens} & query.content) / max(len(query.content), 1))
            _read_text(tokens, (back, kind), query, found)
    return found, shared


def _read_text(
    tokens: Sequence[_Token], place: tuple[int, str], query: QueryWords, found: dict[str, Occurrences]
) -> None:
    """Adds the usable words of a text to `found`."""
    hits = [i for i, token in enumerate(tokens) if token.stem in query.content]
    near = {tokens[i].sentence for i in hits}
    is_name = [token.word[:1].isupper() and not token.begins_sentence for token in tokens]
    for i, token in enumerate(tokens):
        if token.stem in query.stems or not _is_usable(token.word, token.stem):
            continue
        one = found.setdefault(token.stem, Occurrences())
        _count(one, token, place, is_name[i])
        if place == (0, "query"):
            one.query_position = min(one.query_position, i / len(tokens))
        if place == (0, "response"):
            one.response_position = min(one.response_position, i / 30)
            one.in_first_sentence = max(one.in_first_sentence, token.sentence == 0)
            one.in_last_sentence = max(one.in_last_sentence, token.sentence == tokens[-1].sentence)
        one.beside_query_word = max(one.beside_query_word, token.sentence in near)
        one.distance = min([one.distance, *(abs(i - hit) for hit in hits)])
        one.after_name = max(one.after_name, i > 0 and is_name[i - 1])
        one.before_name = max(one.before_name, i + 1 < len(is_name) and is_name[i + 1])


def _count(one: Occurrences, token: _Token, place: tuple[int, str], is_name: bool) -> None:
    one.surfaces[token.word] = one.surfaces.get(token.word, 0.0) + (1.5 if place[0] == 0 else 1.0)
    one.places.add(place)
    one.n += 1
    one.n_inside += not token.begins_sentence
    one.n_capital += token.word[:1].isupper()
    one.n_capital_inside += is_name
