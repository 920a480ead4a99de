"""Queries put into sessions that they do not lean on."""

import random
from collections import Counter

import pytest

from bespeak.training.augment import stems
from bespeak.training.pairs import Conversation, PastTurn, Target
from bespeak.training.placing import (
    LONGEST_BEFORE,
    Others,
    after_others,
    among_others,
    negatives,
    pointing_at_nothing,
    stand_alone,
)
from bespeak.training.scenarios import written_conversations

HATS = Conversation(
    "own",
    (PastTurn("red hats", "A Borsalino costs 300 euros."), PastTurn("blue hats", "There are none.")),
    (Target(1, "in blue", "hats in blue"),),
)
TEA = Conversation(
    "own", tuple(PastTurn(f"tea of kind {n}", "It is green.") for n in range(9)), (Target(1, "and hot?", "hot tea"),)
)
OTHERS = Others((HATS, TEA), ("I collect hats.", "My aunt paints.", "I never fly.", "I drink tea."))
BANSHEE = Conversation(
    "written",
    (PastTurn("two person tent", "The Vango Banshee is light."), PastTurn("tent pegs", "Titanium pegs are light.")),
    (
        Target(1, "is it waterproof", "is the Vango Banshee waterproof", "written"),
        Target(2, "of steel", "steel tent pegs", "written"),
        Target(2, "do they rust", "do titanium pegs rust", "written"),
    ),
    ("I live in Ghent.",),
)
SEEDS = range(60)
MAKERS = {
    "after": lambda rng: after_others(BANSHEE, OTHERS, rng),
    "among": lambda rng: among_others(BANSHEE, OTHERS, rng),
    "alone": lambda rng: stand_alone("red hats", OTHERS, rng),
    "nothing": lambda rng: pointing_at_nothing("how much is it", "hello => Hi!", OTHERS, rng),
}


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_the_same_seed_gives_the_same_surroundings(make):
    made = [make(random.Random(seed)) for seed in SEEDS]
    assert made == [make(random.Random(seed)) for seed in SEEDS]
    assert len(set(made)) > 1


def said(conversation):
    return stems(*conversation.statements, *(text for turn in conversation.turns for text in turn))


@pytest.mark.parametrize("query", ["red hats", "green tea", "who wrote Middlemarch", "hats for tea", "aunt that flies"])
def test_a_query_that_stands_alone_shares_no_word_with_its_surroundings(query):
    made = [stand_alone(query, OTHERS, random.Random(seed)) for seed in SEEDS]
    for one in made:
        assert one.targets == (Target(len(one.turns), query, query, "switch"),)
        assert said(one).isdisjoint(stems(query))
        assert set(one.statements) <= set(OTHERS.statements)
        assert [turn.query for turn in one.turns] in [
            [turn.query for turn in other.turns[: len(one.turns)]] for other in OTHERS.conversations
        ]
    assert any(one.statements for one in made)
    assert any(one.turns for one in made) == (query != "hats for tea")  # which are all that others asked for


def test_some_turns_of_others_have_lost_their_answers():
    made = [stand_alone("who wrote Middlemarch", OTHERS, random.Random(seed)) for seed in SEEDS]
    assert {turn.response for one in made for turn in one.turns} > {"", "It is green."}
    assert max(len(one.turns) for one in made) == LONGEST_BEFORE


def test_where_others_said_nothing_about_themselves_there_are_only_turns():
    silent = Others((TEA,), ())
    made = [stand_alone("red hats", silent, random.Random(seed)) for seed in SEEDS]
    assert {one.statements for one in made} == {()}


def test_a_query_may_point_at_nothing_after_a_greeting_or_beside_statements():
    made = [pointing_at_nothing("how much is it", "hello => Hi!", OTHERS, random.Random(seed)) for seed in SEEDS]
    assert {one.turns for one in made} == {(), (PastTurn("hello", "Hi!"),)}
    assert all(one.turns or one.statements for one in made)
    for one in made:
        assert one.targets == (Target(len(one.turns), "how much is it", "how much is it", "nothing"),)
    silent = [pointing_at_nothing("is it", "testing 1 2", OTHERS, random.Random(seed)).turns for seed in SEEDS]
    assert set(silent) == {(), (PastTurn("testing 1 2", ""),)}


def test_a_conversation_after_anothers_turns_leans_on_its_own():
    for seed in SEEDS:
        made = after_others(BANSHEE, OTHERS, random.Random(seed))
        n_before = len(made.turns) - len(BANSHEE.turns)
        assert 1 <= n_before <= LONGEST_BEFORE
        assert made.turns[n_before:] == BANSHEE.turns
        assert [t._replace(n_before=t.n_before - n_before) for t in made.targets] == list(BANSHEE.targets)
        assert (made.statements, made.changes) == (BANSHEE.statements, ("late",))


def test_a_written_conversation_is_found_in_many_surroundings():
    made = [among_others(BANSHEE, OTHERS, random.Random(seed)) for seed in SEEDS]
    assert {"late", "crossed"} == {change for one in made for change in one.changes}
    assert {len(one.turns) > 2 for one in made} == {False, True}
    assert {one.turns[-1].response for one in made} == {"", "Titanium pegs are light."}
    without_answer = [one for one in made if not one.turns[-1].response]
    # What needs the answer is not asked without it.
    assert {tuple(t.query for t in one.targets) for one in without_answer} == {("is it waterproof", "of steel")}


def test_what_a_shipped_rewrite_takes_from_the_session_is_still_said():
    rng = random.Random(0)
    for original in written_conversations()[::5]:
        made = among_others(original, OTHERS, rng)
        shift = sum(change == "late" for change in made.changes) and len(made.turns) - len(original.turns)
        for target in made.targets:
            before = Conversation("", original.turns[: target.n_before - shift], (), original.statements)
            now = Conversation("", made.turns[: target.n_before], (), made.statements)
            added = stems(target.rewrite) - stems(target.query)
            assert added & said(before) <= said(now), target


def test_every_written_query_is_placed_as_often_as_asked():
    queries = {
        "keywords": ["garden gnome", "oak table"],
        "chat": ["how are you"],
        "nothing": ["how much are they"],
        "greetings": ["hello => Hi!", "good morning"],
    }
    made = list(negatives(queries, OTHERS, random.Random(0), 20))
    assert Counter((one.targets[0].query, one.targets[0].kind) for one in made) == {
        ("garden gnome", "switch"): 20, ("oak table", "switch"): 20, ("how are you", "chat"): 20,
        ("how much are they", "nothing"): 20,
    }  # fmt: skip
    greeted = {turn for one in made if one.targets[0].kind == "nothing" for turn in one.turns}
    assert greeted == {PastTurn("hello", "Hi!"), PastTurn("good morning", "")}
    assert all(target.query == target.rewrite for one in made for target in one.targets)
