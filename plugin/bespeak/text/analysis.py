"""Text to terms, as Elasticsearch's `english` analyzer makes them.

The steps are Lucene's: word breaks by Unicode Standard Annex #29 (StandardTokenizer, tokens of at most 255 UTF-16
units), removal of possessive 's, lower case, removal of 33 stop words, and Porter's stemmer of 1980. A text thus has
the same terms in both engines, and the words that an engine matched can be marked.
"""

from __future__ import annotations

import re
from bisect import bisect_right
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import NamedTuple

STOP_WORDS = frozenset(
    re.findall(
        r"\w+",
        "a an and are as at be but by for if in into is it no not of on or such that the their then there these they"
        " this to was will with",
    )
)

MAX_TOKEN_UNITS = 255
"""Longer tokens are split, as by Lucene's tokenizer; in UTF-16 units."""


class Token(NamedTuple):
    """A term and the word of the text it came from: `text[start:end]`."""

    term: str
    start: int
    end: int


def tokens(text: str) -> list[Token]:
    """The terms of a text, each with its position; stop words are left out.

    >>> tokens("The Dogs' owner")
    [Token(term='dog', start=4, end=8), Token(term='owner', start=10, end=15)]
    """
    found = ((_TERMS[text[start:end]], start, end) for start, end in _word_spans(text))
    return [Token(*token) for token in found if token[0]]


def terms(text: str) -> list[str]:
    """The terms of a text in order, repeats included.

    >>> terms("Running the children's races")
    ['run', 'children', 'race']
    """
    if text.isascii():
        words = _ASCII_WORD.findall(text)
        if len(max(words, key=len, default="")) <= MAX_TOKEN_UNITS:
            return list(filter(None, map(_TERMS.__getitem__, words)))
    return [term for term in (_TERMS[text[start:end]] for start, end in _word_spans(text)) if term]


class _Terms(dict[str, str]):
    """Word -> term, "" for a stop word; each is computed once, and all are dropped when there are too many."""

    LIMIT = 200_000

    def __missing__(self, word: str) -> str:
        if len(self) >= self.LIMIT:
            self.clear()
        self[word] = term = _term(word)
        return term


_TERMS = _Terms()


def _term(word: str) -> str:
    if len(word) >= 2 and word[-1] in "sS" and word[-2] in "'\u2019\uff07":
        word = word[:-2]
    word = word.lower() if word.isascii() else "".join(map(_lower, word))
    return "" if word in STOP_WORDS else stem(word)


@lru_cache(maxsize=4096)
def _lower(character: str) -> str:
    """The lower case of a character as one character, whatever its context (Java's `Character.toLowerCase`)."""
    return character.lower()[0]


def stem(word: str) -> str:
    """Porter's stemmer (An algorithm for suffix stripping, 1980) of a lower-case word, as in Lucene.

    Lucene uses the author's own program, which differs from the paper: words of one or two letters are kept, and step
    2 has bli -> ble (instead of abli -> able) and logi -> log. Snowball's `porter` follows the paper, and also
    undoubles fewer consonants ("trekking"), so it cannot be used here.

    >>> stem("relational"), stem("possibly"), stem("archaeology"), stem("trekking"), stem("us")
    ('relat', 'possibl', 'archaeolog', 'trek', 'us')
    """
    if len(word) <= 2 and max(word, default="") <= "\uffff":
        return word
    word = _without_plural(word)
    word = _without_past(word)
    if word.endswith("y") and "v" in _shape(word[:-1]):
        word = word[:-1] + "i"
    word = _replaced(word, _STEP_2)
    word = _replaced(word, _STEP_3)
    return _without_e(_without_suffix(word))


_STEP_2 = {
    "ational": "ate", "tional": "tion", "enci": "ence", "anci": "ance", "izer": "ize", "bli": "ble", "alli": "al",
    "entli": "ent", "eli": "e", "ousli": "ous", "ization": "ize", "ation": "ate", "ator": "ate", "alism": "al",
    "iveness": "ive", "fulness": "ful", "ousness": "ous", "aliti": "al", "iviti": "ive", "biliti": "ble", "logi": "log",
}  # fmt: skip
_STEP_3 = {"icate": "ic", "ative": "", "alize": "al", "iciti": "ic", "ical": "ic", "ful": "", "ness": ""}
_STEP_4 = re.compile("(?:al|ance|ence|er|ic|able|ible|ant|ement|ment|ent|(?<=[st])ion|ou|ism|ate|iti|ous|ive|ize)$")


def _shape(word: str) -> str:
    """One letter for each character: v for a vowel, c for a consonant; y is a vowel after a consonant."""
    shape, last = [], "v"
    for character in word:
        last = "v" if character in "aeiou" or (character == "y" and last == "c") else "c"
        shape.append(last)
    return "".join(shape)


def _measure(word: str) -> int:
    """Porter's m: how often a vowel is followed by a consonant."""
    return _shape(word).count("vc")


def _ends_short(word: str) -> bool:
    """Porter's *o: the word ends in consonant, vowel, consonant, and the last is not w, x or y."""
    return _shape(word).endswith("cvc") and word[-1] not in "wxy"


def _ends_double(word: str) -> bool:
    return len(word) > 1 and word[-1] == word[-2] and _shape(word)[-1] == "c"


def _without_plural(word: str) -> str:
    if word.endswith(("sses", "ies")):
        return word[:-2]
    return word[:-1] if word.endswith("s") and not word.endswith("ss") else word


def _without_past(word: str) -> str:
    if word.endswith("eed"):
        return word[:-1] if _measure(word[:-3]) else word
    stem = word[:-2] if word.endswith("ed") else word[:-3] if word.endswith("ing") else ""
    if "v" not in _shape(stem):
        return word
    if stem.endswith(("at", "bl", "iz")):
        return stem + "e"
    if _ends_double(stem):
        return stem if stem[-1] in "lsz" else stem[:-1]
    return stem + "e" if _measure(stem) == 1 and _ends_short(stem) else stem


def _replaced(word: str, suffixes: dict[str, str]) -> str:
    """The word with the longest matching suffix replaced, if the part before it has a measure above 0."""
    for length in range(min(7, len(word)), 2, -1):
        replacement = suffixes.get(word[-length:])
        if replacement is not None:
            return word[:-length] + replacement if _measure(word[:-length]) else word
    return word


def _without_suffix(word: str) -> str:
    match = _STEP_4.search(word)
    return word[: match.start()] if match and _measure(word[: match.start()]) > 1 else word


def _without_e(word: str) -> str:
    measure = _measure(word)
    if word.endswith("e") and (measure > 1 or (measure == 1 and not _ends_short(word[:-1]))):
        word = word[:-1]
    return word[:-1] if word.endswith("ll") and measure > 1 else word


# Word breaks. Each character is mapped to a letter that stands for its class, and one pattern over these letters finds
# the words. The classes are those of UAX #29 and Lucene's own (Han and Hiragana one by one, South East Asian runs as
# one word, emoji sequences as words).
#
#   a letter    h Hebrew letter   L letter that is also an emoji   0 digit   k Katakana   _ ExtendNumLet
#   : MidLetter   . MidNumLet   ' Single_Quote   " Double_Quote   , MidNum   # the other bases of a keycap
#   x Extend and Format   z ZWJ   v, V presentation selectors (emoji, text)   K keycap
#   E emoji   M emoji modifier   R regional indicator   H Han   i Hiragana   s South East Asian   S mark of these
#   space: everything else
_X = r"[xzvVKSM]*+"
_NUMBER = rf"0{_X}(?:[,.']{_X}(?=0))?"
_LETTERS = rf"h{_X}(?:'{_X}|\"{_X}(?=h))|[ahL]{_X}(?:[:.']{_X}[ahL]{_X})*+"
_RUN = rf"(?:{_NUMBER}|{_LETTERS})++"
_KATAKANA = rf"k{_X}(?:(?:_{_X})*k{_X})*+"
_CORE = rf"(?:{_RUN}|{_KATAKANA})"
_EMOJI_X = r"(?:[xKSM]|z(?!z*[EL]))*+"
_EMOJI = rf"(?:z*[EL]{_EMOJI_X}v?|M{_EMOJI_X})"
_WORD = re.compile(
    rf"L{_EMOJI_X}v?(?:z{_EMOJI})++"
    rf"|(?:_{_X})*+{_CORE}(?:(?:_{_X})++{_CORE})*(?:_{_X})*+"
    rf"|{_EMOJI}(?:z{_EMOJI})*|[#0][xzKSM]*?v?K[xzKSM]*+|R{_X}R{_X}"
    rf"|[sS][sxzvVKSM]*+|[Hi]{_X}"
)
_ASCII_WORD = re.compile(
    r"_*[A-Za-z0-9]++(?:(?:_+|(?<=[A-Za-z])[:.'](?=[A-Za-z])|(?<=[0-9])[,;.'](?=[0-9]))[A-Za-z0-9]++)*_*+"
)


def _word_spans(text: str) -> Iterator[tuple[int, int]]:
    """The start and end of each word of a text, in order."""
    pattern, classes = (_ASCII_WORD, text) if text.isascii() else (_WORD, text.translate(_CLASSES))
    for match in pattern.finditer(classes):
        start, end = match.span()
        if end - start <= MAX_TOKEN_UNITS // 2:
            yield start, end
        else:
            yield from _cut(pattern, text, classes, start, end)


def _cut(pattern: re.Pattern[str], text: str, classes: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    """The pieces of a long token: the word within 255 UTF-16 units of its start, then the next word from there."""
    while (found := pattern.search(classes, start, end)) is not None:
        stop, units = found.start(), 0
        while stop < end and (units := units + 1 + (text[stop] > "\uffff")) <= MAX_TOKEN_UNITS:
            stop += 1
        match = pattern.match(classes, found.start(), stop)
        if match is None:
            start = found.start() + 1
        else:
            yield match.span()
            start = match.end()


class _Classes(dict[int, str]):
    """Code point -> the letter of its class; each is computed once."""

    def __missing__(self, code: int) -> str:
        self[code] = letter = _class_of(chr(code))
        return letter


_CLASSES = _Classes()


def _class_of(character: str) -> str:
    """The letter of a character's class; " " for a character that breaks words."""
    starts, ranges = _ranges()
    at = bisect_right(starts, ord(character)) - 1
    return ranges[at][1] if at >= 0 and ord(character) <= ranges[at][0] else " "


@cache
def _ranges() -> tuple[list[int], list[tuple[int, str]]]:
    """The starts of all ranges, ascending; and for each its end and the letter of its class."""
    from bespeak.text.word_classes import CLASSES

    found = sorted(
        (int(first, 16), int(last or first, 16), letter)
        for letter, members in CLASSES.items()
        for first, _, last in (item.partition("-") for item in members.split())
    )
    return [first for first, _, _ in found], [(last, letter) for _, last, letter in found]
