from bespeak.records import Profile, Statement, Term, Turn
from bespeak.rewriting.grounding import attribute, sources

BAND = Profile(
    statements=(Statement("I am vegetarian.", "s1"),),
    turns=(
        Turn("What group disbanded?", "Zappa and the Mothers of Invention", "t1"),
        Turn("When did they disband?", "In late 1969, Zappa broke up the band.", "t2"),
    ),
)


def test_words_come_from_every_query_answer_and_statement():
    assert list(sources(BAND)) == [
        "What group disbanded?",
        "Zappa and the Mothers of Invention",
        "When did they disband?",
        "In late 1969, Zappa broke up the band.",
        "I am vegetarian.",
    ]


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
