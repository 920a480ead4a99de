import random

import pytest

from bespeak.training.augment import (
    concerns,
    crossed,
    dropped,
    shuffled,
    titled,
    unanswered,
    with_ellipsis,
    with_full_queries,
    with_switch,
)  # fmt: skip
from bespeak.training.pairs import Conversation, PastTurn, Target

OTHERS = ("I collect stamps.", "My bicycle is red.", "I never fly.", "I eat deserts.", "My aunt paints.")
ASKED = ("Who wrote Middlemarch?", "How do glaciers form?", "When did it end?")
DESERTS = Conversation(
    "cast2019",
    (
        PastTurn("What causes desertification?", "Overgrazing, mostly. And drought."),
        PastTurn("Can desertification be stopped?", "Planting trees helps."),
    ),
    (
        Target(1, "Can it be stopped?", "Can desertification be stopped?"),
        Target(2, "What are the costs?", "What are the costs of desertification?"),
    ),
    ("I own a farm.", "I dislike deserts.", "I sing.", "I like cats."),
    used=("I own a farm.",),
)
CHANGES = {
    "shuffled": shuffled,
    "dropped": dropped,
    "crossed": lambda c, rng: crossed(c, OTHERS, rng),
    "titled": titled,
    "whole": lambda c, rng: with_full_queries(c, rng, 0.5),
    "switch": lambda c, rng: with_switch(c, ASKED, rng),
    "ellipsis": lambda c, rng: with_ellipsis(c, rng, 0.5),
}
SEEDS = range(30)


@pytest.mark.parametrize("name", CHANGES)
def test_the_same_seed_gives_the_same_variants(name):
    made = [CHANGES[name](DESERTS, random.Random(seed)) for seed in SEEDS]
    assert made == [CHANGES[name](DESERTS, random.Random(seed)) for seed in SEEDS]
    assert len(set(made)) > 1


@pytest.mark.parametrize("name", CHANGES)
def test_peoples_rewrites_stay(name):
    for seed in SEEDS:
        made = CHANGES[name](DESERTS, random.Random(seed))
        assert tuple(target for target in made.targets if target.kind == "person") == DESERTS.targets
        assert tuple(turn.query for turn in made.turns) == tuple(turn.query for turn in DESERTS.turns)


def test_shuffling_keeps_every_statement():
    for seed in SEEDS:
        assert sorted(shuffled(DESERTS, random.Random(seed)).statements) == sorted(DESERTS.statements)


def test_relevant_statements_are_never_dropped():
    left = {text for seed in SEEDS for text in dropped(DESERTS, random.Random(seed), 1.0).statements}
    assert left == {"I own a farm."}  # used by whoever rewrote
    about = Conversation("s", (), (Target(0, "stop singing", "stop singing"),), ("I sing.", "I paint."))
    assert dropped(about, random.Random(0), 1.0).statements == ("I sing.",)  # shares a word
    assert concerns("I sing.", about)
    assert not concerns("I paint.", about)


def test_relevant_statements_of_others_are_not_mixed_in():
    added = {text for seed in SEEDS for text in crossed(DESERTS, OTHERS, random.Random(seed)).statements}
    assert added - set(DESERTS.statements) == set(OTHERS) - {"I eat deserts."}  # it has a statement about deserts


def test_mixing_in_keeps_the_order_of_own_statements():
    for seed in SEEDS:
        made = crossed(DESERTS, OTHERS, random.Random(seed))
        assert [text for text in made.statements if text in DESERTS.statements] == list(DESERTS.statements)


def test_answers_are_left_out():
    assert [turn.response for turn in unanswered(DESERTS).turns] == ["", ""]


def test_titles_replace_answers():
    seen = {turn.response for seed in SEEDS for turn in titled(DESERTS, random.Random(seed)).turns}
    assert {"", "Overgrazing, mostly", "Planting trees helps"} <= seen
    assert "Desertification Be Stopped" in seen  # of the question as a person rewrote it
    assert any("; " in text for text in seen)


def test_a_page_gives_its_title():
    page = Conversation("canard", (PastTurn("Who?", ""),), (Target(1, "When?", "When?"),), title="Zappa - Disbandment")
    seen = {turn.response for seed in SEEDS for turn in titled(page, random.Random(seed)).turns}
    assert {"Zappa", "Zappa - Disbandment"} <= seen


def test_a_full_query_needs_no_rewrite():
    made = with_full_queries(DESERTS, random.Random(0), 1.0)
    added = [target for target in made.targets if target.kind == "whole"]
    assert [(target.n_before, target.query) for target in added] == [(t.n_before, t.rewrite) for t in DESERTS.targets]
    assert all(target.query == target.rewrite for target in added)


def test_a_query_on_another_topic_stays_unchanged():
    made = [with_switch(DESERTS, ASKED, random.Random(seed)).targets for seed in SEEDS]
    added = {target for targets in made for target in targets if target.kind == "switch"}
    assert all(target.query == target.rewrite for target in added)
    # Not the one that refers to something, and never before the conversation has begun.
    assert {target.query for target in added} == {"Who wrote Middlemarch?", "How do glaciers form?"}
    assert {target.n_before for target in added} == {1, 2}


def test_a_topic_switch_never_stays_on_the_topic():
    assert with_switch(DESERTS, ["How much do deserts grow?"], random.Random(0)) == DESERTS


def test_a_phrase_that_the_turn_before_names_can_be_left_out():
    made = [with_ellipsis(DESERTS, random.Random(seed), 1.0).targets for seed in SEEDS]
    added = {target for targets in made for target in targets if target.kind == "ellipsis"}
    whole = "What are the costs of desertification?"
    assert added == {
        Target(2, "What are the costs?", whole, "ellipsis"),
        Target(2, "What are the costs of it?", whole, "ellipsis"),
    }


@pytest.mark.parametrize(
    ("before", "whole"),
    [
        ("Can droughts be stopped?", "What are the costs of desertification?"),  # not named
        ("Can desertification be stopped?", "What are its costs for desertification?"),  # refers already
        ("Can desertification be stopped?", "Costs of desertification?"),  # too little is left
        ("Can desertification be stopped?", "What would the costs be of desertification?"),  # no end
    ],
)
def test_otherwise_nothing_is_left_out(before, whole):
    asked = Conversation("s", (PastTurn(before),), (Target(1, "And the costs?", whole),))
    assert all(with_ellipsis(asked, random.Random(seed), 1.0) == asked for seed in SEEDS)


def test_a_name_gets_no_pronoun():
    turns = (PastTurn("Who was Ada Lovelace?"),)
    asked = Conversation("s", turns, (Target(1, "Her father?", "Who was the father of Ada Lovelace?"),))
    made = {t.query for seed in SEEDS for t in with_ellipsis(asked, random.Random(seed), 1.0).targets}
    assert made == {"Her father?", "Who was the father?"}
