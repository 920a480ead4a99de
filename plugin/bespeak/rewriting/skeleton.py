"""Holds a rewrite to its query: what was typed comes out whole and in order, and only words that were said are added.

The words of the query that carry meaning must all be written, as typed. Between them the rewrite may add function
words, and words of the session that the query does not have, each once. A negation stays with the word that it negates,
a number with what it counts, and the words of a name together.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import NamedTuple

from bespeak.text.words import FUNCTION_WORDS, fold, inner_words, is_negation, words

SENTENCE_MARKS = ".,;:!?…"
ENDINGS = tuple(
    possessive + mark for possessive in ("", "'s", "’s", "'", "’") for mark in ("", ",", "?", ".", "!", ":", ";")
)
"""Characters that may follow a word without being part of it."""
LONGEST_ENDING = max(len(ending.encode()) for ending in ENDINGS)
OPENING_QUOTES, CLOSING_QUOTES = ('"', "“", "„", "«"), ('"', "”", "“", "»")
ARTICLES = frozenset({"a", "an", "the", "any"})
DANGLING = ARTICLES | frozenset(
    """of in on at by for with from to into onto about as than between among during through under against near within
    across along toward towards since until upon via and or but if so because while though although whether my your
    his her its our their whose which""".split()  # noqa: SIM905
)
"""Words that a rewrite does not end with, unless the query does."""
POINTING = frozenset(
    """one ones two three both first second third last next former latter other others previous mentioned another same
    similar else more such""".split()  # noqa: SIM905
)
"""Words that may point at something, and then be replaced by its name."""
DEFINITE = frozenset("the this that these those such same my our his her its their".split())  # noqa: SIM905
LEADING = frozenset(
    """sorry meant mean please thanks thank actually rather instead ok okay yes well wait oops tell show give find want
    need""".split()  # noqa: SIM905
)
"""Words that lead in, and say nothing about what is wanted."""
MOST_ADDED = 16
"""Content words that a rewrite may add."""
MOST_FREE = 5
"""Function words that may follow one another, unless more do in the query."""


FREE = {
    word.encode(): fold(word)
    for word in (FUNCTION_WORDS | {word.capitalize() for word in FUNCTION_WORDS} | {"I"}) - {"i"}
}
"""Function words as they may be written, and folded."""


class TypedWord(NamedTuple):
    """A word of the query that must be written."""

    text: str
    may_go: bool  # it may be replaced
    is_negation: bool
    joins: bool  # nothing may come between the one before and this one
    between: frozenset[str]  # folded function words that the query has between the one before and this one


def typed_words(query: str, may_go: Collection[int] = ()) -> list[TypedWord]:
    """The words of the query that must be written; `may_go` are places, among all words, of those that may be replaced.

    >>> [word.text for word in typed_words("is it < 3 kg, in C#?")]
    ['<', '3', 'kg', 'C#']
    """
    found: list[TypedWord] = []
    between: set[str] = set()
    in_quotes = False
    for place, typed in enumerate(query.split()):
        text = typed.lstrip("¿¡").rstrip(SENTENCE_MARKS)
        if not text:
            continue
        was_in_quotes, is_quoted = in_quotes, in_quotes or text.startswith(OPENING_QUOTES)
        in_quotes = is_quoted and not text[1:].endswith(CLOSING_QUOTES)
        folded = fold(next(iter(words(text)), text))
        if folded in FUNCTION_WORDS and not is_quoted:
            between.add(folded)
            continue
        before = found[-1] if found else None
        joins = before is not None and not between and (was_in_quotes or _belong_together(before.text, text))
        found.append(TypedWord(text, place in may_go, is_negation(text), joins, frozenset(between)))
        between = set()
    return found


def _belong_together(one: str, other: str) -> bool:
    """Whether two adjacent words are a number and what it counts, a name, or joined by a sign."""
    if any(c.isdigit() for c in one + other) or not (one[-1].isalnum() and other[0].isalnum()):
        return True
    return one[0].isupper() and other[0].isupper()


def replaceable(query: str, gone: Mapping[int, float]) -> set[int]:
    """The places of words that may be replaced: those that point, and those that a person would leave out.

    `gone` are the probabilities of the latter, by their place among the words. A person leaves out what a definite
    phrase names ("the museum"), and what only leads in ("no, I meant"). Numbers and negations always stay.
    """
    found: set[int] = set()
    split = query.split()
    folded = [fold(next(iter(words(one)), "")) for one in split]
    n_words = 0
    for place, word in enumerate(folded):
        probability = gone.get(n_words, 0.0) if word else 0.0
        n_words += bool(word)
        if word in POINTING:
            found.add(place)
        elif probability < 0.5 or any(c.isdigit() for c in word):
            continue
        elif word == "no":
            if place == 0 and len(folded) > 1 and split[0].endswith(","):
                found.add(place)
        elif word in LEADING or (place and not is_negation(word) and folded[place - 1] in DEFINITE):
            found.add(place)
    return found


def closes_sentence(token: bytes, bare: bytes) -> bool:
    """Whether the word `bare` ends a sentence with what follows it in `token`; "M." and "U.S." do not."""
    return token.endswith((b"?", b"!")) or (token.endswith(b".") and len(bare) > 2 and b"." not in bare)


def ends_sentence(typed: str) -> bool:
    return closes_sentence(typed.encode("utf-8", "replace"), typed.rstrip(SENTENCE_MARKS).encode("utf-8", "replace"))


class Added(NamedTuple):
    """A word that may be added, as it was said."""

    text: bytes
    folded: str
    negations: frozenset[str]  # those that it follows where it was said; it must follow one of them
    is_negation: bool


class Skeleton:
    """What must be written, and what may be added. Words are UTF-8, since a model may write parts of a character."""

    def __init__(
        self,
        query: str,
        sources: Iterable[str],
        may_add: Collection[str] | None = None,
        may_go: Collection[int] = (),
        must_add: Collection[str] = (),
    ) -> None:
        """`may_add` and `must_add` are folded words of the sources (None: all of them may be added).

        `may_go` are places of words of the query.
        """
        texts = [query, *sources]
        self.kept = kept = typed_words(query, may_go)
        typed = {fold(word) for one in kept for word in (one.text, *words(one.text))}
        added = list(_added(texts, typed, may_add))
        needed = {negation for one in added for negation in one.negations}
        # A negation may be added only together with what it negates.
        self._added = {one.text: one for one in added if not one.is_negation or one.folded in needed}
        self._sorted = sorted({*self._added, *FREE})
        self.needed = frozenset(one.folded for one in added if one.folded in must_add and not one.negations)
        self.endings = {fold(word) for word in words(query)[-1:]}
        self.n_sentences = 1 + sum(map(ends_sentence, query.split()[:-1]))
        runs = groupby(words(query), key=lambda word: fold(word) in FUNCTION_WORDS)
        self.most_free = max([MOST_FREE, *(len(list(run)) for is_free, run in runs if is_free)])
        said = {fold(one.text): {one.text} for one in kept}  # how each may be written
        for word in (word for text in texts for word in words(text)):
            if fold(word) in said:
                said[fold(word)].add(word)
        self._forms = {one.text: as_bytes(said[fold(one.text)]) for one in kept}
        self._first_forms = {
            one.text: self._forms[one.text] | as_bytes({one.text.capitalize()} if one.text.islower() else ())
            for one in kept
        }
        self._endings = [ending.encode() for ending in ENDINGS]

    def forms(self, typed: TypedWord, first: bool) -> frozenset[bytes]:
        """How the word may be written: as typed, as it was said, and with a capital at the start."""
        return (self._first_forms if first else self._forms)[typed.text]

    def bare(self, token: bytes) -> list[bytes]:
        """The token, and what it is without an ending."""
        return [token[: len(token) - len(end)] for end in self._endings if token.endswith(end) and token != end]

    def starting(self, token: bytes) -> Iterator[bytes]:
        """The function words and added words that begin with the token."""
        for place in range(bisect_left(self._sorted, token), len(self._sorted)):
            if not self._sorted[place].startswith(token):
                return
            yield self._sorted[place]

    def added_word(self, word: bytes) -> Added | None:
        return self._added.get(word)

    def is_word(self, word: bytes) -> bool:
        return word in self._added or word in FREE

    def is_begun(self, word: bytes, token: bytes) -> bool:
        """Whether the token is the start of the word, or the word with the start of an ending."""
        if word.startswith(token):
            return True
        return token.startswith(word) and any(end.startswith(token[len(word) :]) for end in self._endings)


def as_bytes(texts: Iterable[str]) -> frozenset[bytes]:
    return frozenset(text.encode("utf-8", "replace") for text in texts)


def _added(texts: Iterable[str], typed: Collection[str], may_add: Collection[str] | None) -> Iterable[Added]:
    """The content words of the sources that the query lacks."""
    follows: dict[str, set[str]] = {}  # word as said -> the negations it follows, "" for none
    for text in texts:
        negation = ""
        for word in words(text):
            folded = fold(word)
            if is_negation(word):
                negation = folded
                follows.setdefault(word, set()).add("")
            elif folded not in FUNCTION_WORDS:
                for form in (word, *inner_words(word)):
                    follows.setdefault(form, set()).add(negation)
                negation = ""
    for word, negations in follows.items():
        folded = fold(word)
        if folded not in typed and (may_add is None or folded in may_add or is_negation(word)):
            needed = frozenset() if "" in negations else frozenset(negations)
            yield Added(word.encode("utf-8", "replace"), folded, needed, is_negation(word))


@dataclass(frozen=True, slots=True)
class Draft:
    """A rewrite in progress, which decides what pieces of text may come next."""

    skeleton: Skeleton
    place: int = 0  # of the next typed word
    n_words: int = 0  # complete ones
    open_word: bytes = b""  # the one in progress
    used: frozenset[str] = frozenset()  # folded words that were added
    latest: str = ""  # the last complete word, folded
    n_closed: int = 0  # sentences that ended
    n_free: int = 0  # function words in a row
    negation: str = ""  # a negation of the session that the next content word must follow

    @property
    def is_closed(self) -> bool:
        """Whether the last sentence ended: there are no more than in the query."""
        return self.n_closed >= self.skeleton.n_sentences

    def after(self, piece: bytes) -> Draft | None:
        """The rewrite followed by this piece; None if the piece must not come next."""
        draft, word = self, self.open_word
        *complete, rest = piece.split(b" ")
        for part in complete:
            word += part
            if word:
                if draft.is_closed or (ended := draft._with(word)) is None or ended._is_cut_short():
                    return None
                draft, word = ended, b""
            elif draft.n_words:  # two spaces in a row; before the first word they do no harm
                return None
        word += rest
        if rest and (draft.is_closed or not draft._may_begin(word)):
            return None
        return replace(draft, open_word=word)

    def may_end(self) -> bool:
        draft = self._with(self.open_word) if self.open_word else self
        return draft is not None and draft._is_whole()

    def _is_cut_short(self) -> bool:
        """Whether the last sentence ended before everything was written."""
        return self.is_closed and not self._is_whole()

    def _is_whole(self) -> bool:
        """Whether everything that must be written is, and nothing dangles."""
        if not self.n_words or self.negation or any(not typed.may_go for typed in self._left()):
            return False
        if not self.used >= self.skeleton.needed:
            return False
        return self.latest not in DANGLING or self.latest in self.skeleton.endings

    def _left(self) -> Sequence[TypedWord]:
        return self.skeleton.kept[self.place :]

    def _next_words(self) -> Iterable[tuple[int, TypedWord]]:
        """The typed words that may come next: the first one, and those after some that may go."""
        for place in range(self.place, len(self.skeleton.kept)):
            typed = self.skeleton.kept[place]
            yield place, typed
            if not typed.may_go:
                return

    def _is_bound(self) -> bool:
        """Whether the next typed word must follow before anything is added."""
        if not 0 < self.place < len(self.skeleton.kept):
            return False
        before, after = self.skeleton.kept[self.place - 1], self.skeleton.kept[self.place]
        return (before.is_negation or after.joins) and not after.may_go

    def _may_begin(self, token: bytes) -> bool:
        """Whether the token can become a word that may come next."""
        skeleton = self.skeleton
        if token.endswith((b".", b"?", b"!")) and (ended := self._with(token)) and ended.is_closed:
            return ended._is_whole()
        if not self.negation and any(
            skeleton.is_begun(form, token)
            for _, typed in self._next_words()
            for form in skeleton.forms(typed, not self.n_words)
        ):
            return True
        return any(self._with(word) is not None for word in self._completions(token))

    def _completions(self, token: bytes) -> Iterable[bytes]:
        """The function words and added words that the token is the start of, or that it ends with an ending."""
        skeleton = self.skeleton
        yield from skeleton.starting(token)
        for bare in {token[:cut] for cut in range(max(1, len(token) - LONGEST_ENDING), len(token))}:
            if skeleton.is_word(bare) and skeleton.is_begun(bare, token):
                yield bare

    def _with(self, token: bytes) -> Draft | None:
        """The rewrite with this complete word; None if it must not come next."""
        skeleton = self.skeleton
        for bare in skeleton.bare(token):
            n_closed = self.n_closed + (token != bare and closes_sentence(token, bare))
            if not self.negation:
                for place, typed in self._next_words():
                    if bare in skeleton.forms(typed, not self.n_words):
                        return self._ended(fold(typed.text), place=place + 1, n_closed=n_closed)
            if (added := skeleton.added_word(bare)) and not self._is_bound() and self._may_add(added):
                used, negation = self.used | {added.folded}, added.folded if added.is_negation else ""
                return self._ended(added.folded, used=used, negation=negation, n_closed=n_closed)
            if (folded := FREE.get(bare)) and self._may_use(folded):
                return self._ended(folded, negation=self.negation, n_free=self.n_free + 1, n_closed=n_closed)
        return None

    def _ended(self, folded: str, **changes: object) -> Draft:
        fields = {"negation": "", "n_free": 0, **changes}
        return replace(self, n_words=self.n_words + 1, open_word=b"", latest=folded, **fields)  # type: ignore[arg-type]

    def _may_add(self, added: Added) -> bool:
        if added.folded in self.used or len(self.used) >= MOST_ADDED:
            return False
        return not (self.negation or added.negations) or self.negation in added.negations

    def _may_use(self, folded: str) -> bool:
        """Whether a function word may come next."""
        if folded == self.latest or self.n_free >= self.skeleton.most_free:
            return False
        if self.negation:
            return folded in ARTICLES
        if not self._is_bound():
            return True
        after = self.skeleton.kept[self.place]
        return not after.joins and (folded in after.between or folded in ARTICLES)
