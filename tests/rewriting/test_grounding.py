import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.records import Profile, Statement, Term, Turn
from bespeak.rewriting.grounding import Grounded, Lexicon, attribute
from bespeak.text.words import FUNCTION_WORDS, inner_words, words

BAND = Profile(
    statements=(Statement("I am vegetarian.", "s1"),),
    turns=(
        Turn("What group disbanded?", "Zappa and the Mothers of Invention", "t1"),
        Turn("When did they disband?", "In late 1969, Zappa broke up the band.", "t2"),
    ),
)


def accepts(text, query="", sources=()):
    after = Grounded(Lexicon(query, [query, *sources])).after(text.encode())
    return after is not None and after.may_end()


@pytest.mark.parametrize(
    "text",
    [
        " Zappa",
        " When did Zappa disband?",
        " disband, Zappa",
        " Zappa's 1,969.5",
        " Zappa’s",
        " break-up",
        " break up",
        " What did I disband",
        " Disband Zappa",  # the first word may get a capital
        " C++ tofu",
    ],
)
def test_words_of_the_sources_and_function_words_are_allowed(text):
    assert accepts(text, "disband", ["Zappa's break-up in 1,969.5 C++ tofu"])


@pytest.mark.parametrize(
    "text",
    [
        " zappa",  # a name comes out as it stands
        " Zapp",
        " 1969",
        " 969.5",
        " 1,969",
        " breakup",
        " break-in",
        " tofu-Zappa",
        " Zappa  disband",
        " not Zappa",  # a negation is no function word
        " two Zappa",
        " disband Disband",
        " \n",
        " ",
        "",
    ],
)
def test_nothing_else_is_allowed(text):
    assert not accepts(text, "disband", ["Zappa's break-up in 1,969.5 C++ tofu"])


def test_a_word_may_be_written_in_pieces():
    begun = Grounded(Lexicon("", ["Zappa disband"])).after(b" Za")
    assert begun is not None
    assert begun.after(b"x") is None
    assert not begun.may_end()
    whole = begun.after(b"ppa")
    assert whole is not None
    assert whole.may_end()


def test_a_character_may_be_written_in_bytes():
    follow = Grounded(Lexicon("", ["東京"]))
    for byte in "東京".encode():
        follow = follow.after(bytes([byte]))
    assert follow.may_end()


@given(st.lists(st.text(max_size=30), max_size=3), st.text(max_size=40))
def test_an_accepted_text_contains_no_other_word(sources, text):
    if accepts(text, "", sources):
        allowed = {word for source in sources for word in words(source)}
        allowed |= {inner for word in allowed for inner in inner_words(word)}
        for word in text.split(" "):
            bare = re.sub(r"(?:'s|’s|['’])?[,?.!:;]?$", "", word)
            assert {word, bare} & allowed or bare.casefold() in FUNCTION_WORDS or not word


@given(st.text(alphabet=st.characters(codec="utf-8", exclude_categories=["C", "Z"]), max_size=30))
def test_a_source_itself_is_accepted_word_by_word(source):
    assert all(accepts(f" {word}", "", [source]) for word in words(source))


def test_each_new_word_names_the_newest_turn_that_contains_it():
    text = "When did Zappa and the Mothers of Invention disband as a vegetarian group?"
    assert attribute(text, "When did they disband?", BAND) == (
        Term("Zappa", "turn", "t2", "In late 1969, Zappa broke up the band."),
        Term("and", "function"),
        Term("the", "function"),
        Term("Mothers", "turn", "t1", "Zappa and the Mothers of Invention"),
        Term("of", "function"),
        Term("Invention", "turn", "t1", "Zappa and the Mothers of Invention"),
        Term("as", "function"),
        Term("a", "function"),
        Term("vegetarian", "statement", "s1", "I am vegetarian."),
        Term("group", "turn", "t1", "What group disbanded?"),
    )


def test_another_form_of_a_word_is_the_same_word():
    assert attribute("bands", "why", BAND) == (Term("bands", "turn", "t2", "In late 1969, Zappa broke up the band."),)
    assert attribute("Disbanding!", "disband", BAND) == ()


def test_a_word_from_no_source_is_free():
    assert attribute("disband trombone", "disband", BAND) == (Term("trombone", "free"),)
