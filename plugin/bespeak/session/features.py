"""The features that the term picker sees: a named table, shared with its trainer.

A row describes a candidate word (`WordFeatures`) and the query (`QueryFeatures`). The fields are the columns, in their
order, and a trained network depends on that order.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from bespeak.records import Turn
from bespeak.text.words import fold, words

_WORD_GROUPS = {
    "has_it": {"it", "its", "it's"},
    "has_they": {"they", "them", "their", "theirs"},
    "has_he_or_she": {"he", "him", "his", "she", "her", "hers"},
    "has_this": {"this", "that", "these", "those"},
    "has_there": {"there", "here"},
    "has_one": {"one", "ones"},
    "has_other": {"other", "others", "else", "more", "another", "also", "too", "same"},
    "has_ordinal": {"first", "second", "third", "last", "former", "latter", "previous", "above", "next"},
    "has_yes_or_no": {"yes", "no", "ok", "okay", "yeah", "sure", "thanks", "thank"},
    "has_first_person": {"i", "my", "me", "we", "our"},
}
"""The `QueryFeatures` that say whether the query contains one of these words."""
_ASKING = {"what", "who", "when", "where", "why", "how", "which", "whose"}
_GOING_ON = ("what about", "how about", "and ", "or ", "but ", "tell me more", "what else")


class WordFeatures(NamedTuple):
    """What is known about a candidate word; the defaults are those of a word that no turn contains."""

    in_last_query: float = 0.0
    in_last_response: float = 0.0
    in_second_last_query: float = 0.0
    in_second_last_response: float = 0.0
    in_third_last_query: float = 0.0
    in_third_last_response: float = 0.0
    in_earlier_query: float = 0.0
    in_earlier_response: float = 0.0
    in_first_query: float = 0.0
    log_count: float = 0.0
    turns_with_it: float = 0.0  # a third of the number
    queries_with_it: float = 0.0  # half of the number
    capital_inside: float = 0.0  # capitalised at least once inside a sentence
    share_capital_inside: float = 0.0
    always_capital: float = 0.0
    is_acronym: float = 0.0
    has_digit: float = 0.0
    length: float = 0.0
    rarity: float = 0.0
    query_position: float = 1.0  # relative position in the last turn's query
    response_position: float = 3.0  # position in the last turn's response, in units of 30 words
    beside_query_word: float = 0.0  # shares a sentence with a word of the query
    nearness: float = 0.0  # 1 / (1 + distance in words to the nearest word of the query)
    after_name: float = 0.0
    before_name: float = 0.0
    in_first_sentence: float = 0.0  # of the last turn's response
    in_last_sentence: float = 0.0
    turns_back: float = 0.0  # a third of the number
    in_statement: float = 0.0
    shared_with_query: float = 0.0  # half of the words that the statement shares with the query, at most 3


class QueryFeatures(NamedTuple):
    """What is known of the query; the same for all candidates."""

    has_it: float
    has_they: float
    has_he_or_she: float
    has_this: float
    has_there: float
    has_one: float
    has_other: float
    has_ordinal: float
    has_yes_or_no: float
    has_first_person: float
    begins_with_question_word: float
    goes_on: float
    n_content_words: float
    n_words: float
    ends_with_question_mark: float
    has_name: float
    n_turns: float
    response_length: float
    response_asks: float
    no_response: float
    share_in_last_turn: float  # share of the query's words that one text of the last turn contains


FEATURES = (*WordFeatures._fields, *QueryFeatures._fields)
"""The columns, in order."""
N_WORD_FEATURES, N_FEATURES = len(WordFeatures._fields), len(FEATURES)


@dataclass(slots=True)
class Occurrences:
    """Where a stem occurs in the turns; `back` counts turns from the last one, which is 0."""

    surfaces: dict[str, float] = field(default_factory=dict)  # word as written -> weight
    places: set[tuple[int, str]] = field(default_factory=set)  # (back, "query" or "response")
    n: int = 0
    n_inside: int = 0  # not first in a sentence
    n_capital: int = 0
    n_capital_inside: int = 0
    query_position: float = 1.0
    response_position: float = 3.0
    in_first_sentence: float = 0.0
    in_last_sentence: float = 0.0
    beside_query_word: float = 0.0
    distance: int = 99
    after_name: float = 0.0
    before_name: float = 0.0

    @property
    def word(self) -> str:
        """The most frequent form, those of the last turn counting more."""
        return max(self.surfaces, key=self.surfaces.__getitem__)

    @property
    def back(self) -> int:
        """The latest turn that it occurs in."""
        return min(back for back, _ in self.places)


def turn_word_features(found: Occurrences, in_first_query: bool, rarity: float, in_statement: bool) -> WordFeatures:
    """The features of a word that occurs in the turns."""
    word = found.word
    return WordFeatures(
        in_last_query=(0, "query") in found.places,
        in_last_response=(0, "response") in found.places,
        in_second_last_query=(1, "query") in found.places,
        in_second_last_response=(1, "response") in found.places,
        in_third_last_query=(2, "query") in found.places,
        in_third_last_response=(2, "response") in found.places,
        in_earlier_query=any(back > 2 and kind == "query" for back, kind in found.places),
        in_earlier_response=any(back > 2 and kind == "response" for back, kind in found.places),
        in_first_query=in_first_query,
        log_count=math.log1p(found.n),
        turns_with_it=len({back for back, _ in found.places}) / 3,
        queries_with_it=sum(kind == "query" for _, kind in found.places) / 2,
        capital_inside=found.n_capital_inside > 0,
        share_capital_inside=found.n_capital_inside / max(found.n_inside, 1),
        always_capital=found.n_capital == found.n,
        is_acronym=_is_acronym(word),
        has_digit=_has_digit(word),
        length=_length(word),
        rarity=rarity,
        query_position=found.query_position,
        response_position=min(found.response_position, 3),
        beside_query_word=found.beside_query_word,
        nearness=1 / (1 + found.distance),
        after_name=found.after_name,
        before_name=found.before_name,
        in_first_sentence=found.in_first_sentence,
        in_last_sentence=found.in_last_sentence,
        turns_back=found.back / 3,
        in_statement=in_statement,
    )


def statement_word_features(word: str, n: int, n_shared: int, rarity: float) -> WordFeatures:
    """The features of a word that occurs only in statements, `n` times.

    `n_shared` counts the words that its statement shares with the query.
    """
    return WordFeatures(
        log_count=math.log1p(n),
        capital_inside=word[:1].isupper(),
        is_acronym=_is_acronym(word),
        has_digit=_has_digit(word),
        length=_length(word),
        rarity=rarity,
        beside_query_word=n_shared > 0,
        in_statement=1.0,
        shared_with_query=min(n_shared, 3) / 2,
    )


def query_features(query: str, turns: Sequence[Turn], n_content: int, shared: float) -> QueryFeatures:
    """The features of a query with `n_content` stems of content words; the last turn contains the share `shared`."""
    typed, folded = words(query), {fold(word) for word in words(query)}
    response = turns[-1].response if turns else ""
    return QueryFeatures(
        **{name: not folded.isdisjoint(group) for name, group in _WORD_GROUPS.items()},
        begins_with_question_word=bool(typed) and fold(typed[0]) in _ASKING,
        goes_on=query.lower().startswith(_GOING_ON),
        n_content_words=min(n_content, 12) / 6,
        n_words=min(len(typed), 20) / 10,
        ends_with_question_mark=query.strip().endswith("?"),
        has_name=any(word[:1].isupper() for word in typed[1:] if word != "I"),
        n_turns=min(len(turns), 8) / 4,
        response_length=min(len(response), 600) / 300,
        response_asks=response.strip().endswith("?"),
        no_response=bool(turns) and not response,
        share_in_last_turn=shared,
    )


def _is_acronym(word: str) -> bool:
    return word.isupper() and len(word) > 1


def _has_digit(word: str) -> bool:
    return any(character.isdigit() for character in word)


def _length(word: str) -> float:
    return min(len(word), 14) / 10
