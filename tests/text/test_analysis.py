"""Terms as Elasticsearch's `english` analyzer makes them; expected values were read from a real node."""

import doctest
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.text import analysis
from bespeak.text.analysis import stem, terms, tokens


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The quick foxes", ["quick", "fox"]),
        ("", []),
        ("to be or not to be", []),
        ("O'Neil's dog's", ["o'neil", "dog"]),
        ("the dog\u2019s and the cat\uff07S", ["dog", "cat"]),
        ("e.g. 3.14 1,000 a.b 10:30", ["e.g", "3.14", "1,000", "a.b", "10", "30"]),
        ("snake_case __init__ x-ray", ["snake_cas", "__init__", "x", "rai"]),
        ("Trekking specced archaeology possibly", ["trek", "spec", "archaeolog", "possibl"]),
        ("İstanbul ΟΔΟΣ", ["istanbul", "οδοσ"]),
        ("東京 ひら カタカナ", ["東", "京", "ひ", "ら", "カタカナ"]),
        ("ภาษาไทย", ["ภาษาไทย"]),
        ("👍🏽 1️⃣ 🇩🇪 ★", ["👍🏽", "1️⃣", "🇩🇪", "★"]),
        ("— … ·", []),
    ],
)
def test_terms(text, expected):
    assert terms(text) == expected


def test_tokens_have_their_position():
    text = "“Dogs” the café’s"
    assert [(token.term, text[token.start : token.end]) for token in tokens(text)] == [
        ("dog", "Dogs"),
        ("café", "café’s"),
    ]


@pytest.mark.parametrize("letter", ["b", "é"])
def test_long_words_are_cut(letter):
    assert [len(term) for term in terms(letter * 600)] == [255, 255, 90]


def test_characters_beyond_the_first_plane_count_twice():
    assert [len(term) for term in terms("\U0001d400" * 200)] == [127, 73]


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("caresses", "caress"),
        ("ponies", "poni"),
        ("feed", "feed"),
        ("agreed", "agre"),
        ("conflated", "conflat"),
        ("hopping", "hop"),
        ("falling", "fall"),
        ("filing", "file"),
        ("happy", "happi"),
        ("sky", "sky"),
        ("relational", "relat"),
        ("vietnamization", "vietnam"),
        ("triplicate", "triplic"),
        ("adoption", "adopt"),
        ("cease", "ceas"),
        ("controll", "control"),
        ("as", "as"),
        ("", ""),
    ],
)
def test_stem(word, expected):
    assert stem(word) == expected


@given(st.text(max_size=400))
def test_tokens_and_terms_agree_on_any_text(text):
    found = tokens(text)
    assert [token.term for token in found] == terms(text)
    assert all(before.end <= after.start for before, after in itertools.pairwise(found))
    assert all(token.term and not token.term.isspace() for token in found)


def test_examples_in_the_documentation_of_the_module():
    assert doctest.testmod(analysis).failed == 0
