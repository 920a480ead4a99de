"""The conversations and queries written for training: their format, and what the shipped ones hold to."""

import pytest

from bespeak.errors import InputError
from bespeak.text.words import FUNCTION_WORDS, fold, inner_words, words
from bespeak.training.pairs import Conversation, PastTurn, Target
from bespeak.training.scenarios import both_sides, read_conversations, written_conversations, written_queries

TENTS = """\
# Tents.
S I live in Ghent.
Q two person tent
A The Vango Banshee is a two person tent.
> is {it=the Vango Banshee} waterproof
= garden gnome
Q tent pegs
> {=tent pegs }made of titanium
> shops {near me=in Ghent}

> {=vegan }chili
S I am vegan.
"""
SAYS_WHAT_IS_NOT_EATEN = "without"
"""The one word that rewrites add although nobody said it: "I can't eat nuts" means recipes without nuts."""


def test_a_block_is_a_conversation():
    tents, chili = read_conversations(TENTS, "tents.txt")
    assert tents == Conversation(
        "written",
        (PastTurn("two person tent", "The Vango Banshee is a two person tent."), PastTurn("tent pegs")),
        (
            Target(1, "is it waterproof", "is the Vango Banshee waterproof", "written"),
            Target(1, "garden gnome", "garden gnome", "whole"),
            Target(2, "made of titanium", "tent pegs made of titanium", "written"),
            Target(2, "shops near me", "shops in Ghent", "written"),
        ),
        ("I live in Ghent.",),
        ("I live in Ghent.",),
    )
    assert chili.targets == (Target(0, "chili", "vegan chili", "written"),)
    assert chili.statements == ("I am vegan.",)


@pytest.mark.parametrize(
    ("line", "typed", "rewritten"),
    [
        ("tent", "tent", "tent"),
        ("{=tent }pegs", "pegs", "tent pegs"),
        ("{no, I meant =}pegs", "no, I meant pegs", "pegs"),
        ("does {it=the Banshee} {=tent }leak{= in rain}?", "does it leak?", "does the Banshee tent leak in rain?"),
        ("a = b", "a = b", "a = b"),
    ],
)  # fmt: skip
def test_both_sides_of_a_line_differ_only_where_it_is_marked(line, typed, rewritten):
    assert both_sides(line) == (typed, rewritten)


@pytest.mark.parametrize(
    ("text", "number"),
    [
        ("tent pegs", 1),
        ("Q tent\n> pegs\nR pegs", 3),
        ("A The answer to nothing.", 1),
        ("S I live in Ghent.\n\n\n  \nQ tent\nq pegs", 6),
        ("Q tent\n\n# Nothing.\n\nA An answer without its query.", 5),
    ],
)
def test_a_line_of_no_kind_is_named(text, number):
    with pytest.raises(InputError, match=f"^line {number} of tents.txt begins with none of S, Q, A, > and =$"):
        list(read_conversations(text, "tents.txt"))


def said_before(conversation, target):
    """The folded words of the statements and of the turns before a query."""
    turns = [text for turn in conversation.turns[: target.n_before] for text in turn]
    found = [word for text in (*conversation.statements, *turns) for word in words(text)]
    return {fold(word) for whole in found for word in (whole, *inner_words(whole))}


def content(text):
    """The folded words that are no function words, each once."""
    return list(dict.fromkeys(word for word in map(fold, words(text)) if word not in FUNCTION_WORDS))


SHIPPED = [(conversation, target) for conversation in written_conversations() for target in conversation.targets]


def test_the_shipped_conversations_are_many_and_each_asks_something():
    found = written_conversations()
    assert all(one.targets and (one.turns or one.statements) for one in found)
    assert {target.kind for _, target in SHIPPED} == {"written", "whole"}
    assert min(sum(target.kind == kind for _, target in SHIPPED) for kind in ("written", "whole")) > 100


def test_the_shipped_rewrites_add_only_what_was_said():
    allowed = FUNCTION_WORDS | {SAYS_WHAT_IS_NOT_EATEN}
    unsaid = [
        (target.rewrite, word)
        for conversation, target in SHIPPED
        for word in map(fold, words(target.rewrite))
        if word not in allowed | said_before(conversation, target) | set(map(fold, words(target.query)))
    ]
    assert unsaid == []


def test_the_shipped_rewrites_keep_the_other_words_of_the_query_in_order():
    for _, target in SHIPPED:
        rewritten = list(map(fold, words(target.rewrite)))
        kept, left = [word for word in content(target.query) if word in rewritten], iter(rewritten)
        assert all(word in left for word in kept), target  # as a subsequence


def test_shipped_queries_that_stand_alone_stay_as_they_are_and_others_do_not():
    assert all((target.query == target.rewrite) == (target.kind == "whole") for _, target in SHIPPED)


def test_the_shipped_queries_have_their_kinds_and_are_listed_once():
    found = written_queries()
    assert set(found) >= {"chat", "greetings", "nothing", "keywords", "questions"}
    for heading, queries in found.items():
        assert len(queries) > 20, heading
        assert len(set(queries)) == len(queries), heading
        assert all(query == " ".join(query.split()) for query in queries)
