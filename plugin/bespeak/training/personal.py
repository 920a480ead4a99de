"""Makes queries that a user's statement concerns from lists, since pairs written by people contain few.

The relevant word of the statement goes before the thing searched for ("vegetarian recipes") or after it ("museums in
Ghent"). Every third query is from another field, and must stay as it is.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from bespeak.training.augment import crossed
from bespeak.training.pairs import Conversation, Target


class Field(NamedTuple):
    """Statements and queries of one field of life.

    `{}` in a statement is the place of a value; `{}` in a query is the place of the phrase in the rewrite.
    """

    values: tuple[str, ...]
    statements: tuple[str, ...]
    queries: tuple[str, ...]
    phrase: str = "{} "  # as it goes into the rewrite


DIETS = Field(
    ("vegetarian", "vegan", "gluten-free", "halal", "kosher", "dairy-free", "low-carb", "nut-free", "low-sodium"),
    ("I am on a {} diet.", "I only eat {} food.", "My meals have to be {}.", "I keep to {} cooking."),
    (
        "{}recipes for the weekend", "Which {}restaurants are open late?", "quick {}dinner ideas",
        "What {}dishes can I cook in half an hour?", "Give me a {}meal plan for this week", "{}snacks for a party",
        "Where can I order {}food tonight?", "good {}cookbooks", "{}lunch for the office", "cheap {}breakfast",
    ),
)  # fmt: skip
PLACES = Field(
    ("Ghent", "Lisbon", "Toronto", "Osaka", "Nairobi", "Leeds", "Austin", "Porto", "Denver", "Oslo", "Lima", "Perth"),
    ("I live in {}.", "My flat is in {}.", "I moved to {} last year.", "I work and live in {}.", "{} is my home."),
    (
        "museums open on Sunday{}", "Where can I find a good dentist{}?", "What is the weather tomorrow{}?",
        "cheap gyms{}", "Which schools are the best{}?", "farmers markets{}", "things to do this weekend{}",
        "How do I get a parking permit{}?", "flats to rent{}", "second-hand bicycles for sale{}",
    ),
    " in {}",
)  # fmt: skip
CHARGES = Field(
    ("toddler", "newborn", "teenager", "ten-year-old", "puppy", "kitten", "parrot", "hamster"),
    ("I have a {}.", "We have a {} at home.", "I look after my {} all day.", "My {} is never bored."),
    (
        "presents{}", "What toys are safe{}?", "healthy food{}", "How many hours of sleep are normal{}?",
        "indoor games{}", "doctors with short waiting times{}", "books about care{}",
    ),
    " for a {}",
)  # fmt: skip
LEVELS = Field(
    ("beginner", "advanced", "intermediate"),
    ("I run at {} level.", "My swimming is at {} level.", "I play the piano at {} level.", "My Spanish is {}."),
    ("{}training plan", "{}lessons near me", "Which {}courses are free?", "{}exercises for every day"),
)  # fmt: skip
CARS = Field(
    ("electric", "diesel", "hybrid", "petrol"),
    ("I drive {} cars only.", "My car is {}.", "Our van is {}."),
    (
        "How long does a {}car battery last?", "{}car insurance", "What does a {}car service cost?",
        "{}car rental for a week", "winter tyres for {}cars",
    ),
)  # fmt: skip
AILMENTS = Field(
    ("asthma", "diabetes", "arthritis", "migraine", "eczema", "insomnia", "hay fever", "back pain"),
    ("I have {}.", "I have had {} since childhood.", "My doctor treats my {}.", "I suffer from {}."),
    (
        "Which sports are good{}?", "What should I avoid{}?", "holiday places{}", "Is coffee harmful{}?",
        "Which exercises help{}?", "What do doctors recommend{}?",
    ),
    " with {}",
)  # fmt: skip
DEVICES = Field(
    ("Android", "iPhone", "Linux", "Windows", "Mac", "Chromebook"),
    ("I use {}.", "I only have {} devices.", "At work I use {}.", "All my devices run {}."),
    (
        "note taking apps{}", "How do I take a screenshot{}?", "What is the best photo editor{}?",
        "free antivirus{}", "games without advertisements{}", "How can I block calls{}?",
    ),
    " for {}",
)  # fmt: skip
FIELDS = (DIETS, PLACES, CHARGES, LEVELS, CARS, AILMENTS, DEVICES)


def personal_conversations(n: int, others: Sequence[str], rng: random.Random) -> Iterator[Conversation]:
    """`n` conversations of one query each, with unrelated statements of others among their own."""
    for number in range(n):
        field = rng.choice(FIELDS)
        value = rng.choice(field.values)
        statement = rng.choice(field.statements).format(value)
        if number % 3:
            query = rng.choice(field.queries)
            target = Target(0, query.format(""), query.format(field.phrase.format(value)), "personal")
        else:
            query = rng.choice(_unrelated(field, rng).queries).format("")
            target = Target(0, query, query, "personal")
        made = Conversation("made", (), (target,), (statement,), (statement,) if number % 3 else ())
        yield crossed(made, others, rng) if others else made


def _unrelated(field: Field, rng: random.Random) -> Field:
    """A field that the statement does not concern; a home town may concern much, but not a telephone."""
    return DEVICES if field is PLACES else rng.choice([other for other in FIELDS if other is not field])
