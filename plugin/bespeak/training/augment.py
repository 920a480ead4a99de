"""What can be made of conversations without people. Every function is pure: the same `rng` state, the same result."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from bespeak.text import analysis
from bespeak.text.words import FUNCTION_WORDS, fold, words
from bespeak.training.pairs import Conversation, Exchange, Target

Stems: TypeAlias = frozenset[str]

MOST_STATEMENTS = 8
TITLE_WORDS = 8
ASKING = FUNCTION_WORDS | frozenset(
    """tell show give find know want like need please let's okay ok yes no not thanks thank hi hello great
    looking""".split()  # noqa: SIM905
)
"""Words of a question that its answer's title lacks at the beginning."""
SMALL = frozenset("a an the of in on at by for with from to and or as".split())  # noqa: SIM905
_ENDING_PHRASE = re.compile(
    r"^(?P<head>.+?) (?P<preposition>of|in|for|about|on|with|from|at) (?P<what>[^,;:()?.!]+)[?.!]*$"
)
_UNRESOLVED = frozenset(
    "it its he him his she her hers they them their theirs this that these those there one ones other others".split()  # noqa: SIM905
)


def stems(*texts: str) -> Stems:
    """Of the words that carry sense."""
    return frozenset(
        stem for text in texts for word in words(text) if fold(word) not in ASKING for stem in analysis.terms(word)
    )


def _said(conversation: Conversation) -> Stems:
    """What queries and rewrites are about."""
    asked = [turn.query for turn in conversation.turns]
    return stems(*asked, *(text for target in conversation.targets for text in (target.query, target.rewrite)))


def concerns(statement: str, conversation: Conversation) -> bool:
    """Was it used by whoever rewrote, or does it share a word with what is asked?"""
    return statement in conversation.used or not stems(statement).isdisjoint(_said(conversation))


def shuffled(conversation: Conversation, rng: random.Random) -> Conversation:
    """Statements in another order."""
    order = rng.sample(conversation.statements, len(conversation.statements))
    return conversation.changed("shuffled", statements=tuple(order))


def dropped(conversation: Conversation, rng: random.Random, share: float = 0.5) -> Conversation:
    """Without about that share of the statements that do not concern its queries."""
    said = _said(conversation)
    kept = [
        text
        for text in conversation.statements
        if rng.random() >= share or text in conversation.used or not stems(text).isdisjoint(said)
    ]
    return conversation.changed("dropped", statements=tuple(kept))


def crossed(conversation: Conversation, others: Sequence[str], rng: random.Random) -> Conversation:
    """With statements of other users among its own, none of which concerns it: the rewrites stay as they are."""
    said = _said(conversation) | stems(*conversation.statements)
    wanted = rng.randint(1, MOST_STATEMENTS)
    foreign = [text for text in rng.sample(others, min(len(others), 2 * wanted)) if stems(text).isdisjoint(said)]
    mixed = list(conversation.statements)
    for text in foreign[:wanted]:
        mixed.insert(rng.randint(0, len(mixed)), text)
    return conversation.changed("crossed", statements=tuple(mixed))


def unanswered(conversation: Conversation) -> Conversation:
    """Without what was answered, as most sessions of a search engine are."""
    return conversation.changed("unanswered", turns=tuple(Exchange(turn.query) for turn in conversation.turns))


def titled(conversation: Conversation, rng: random.Random) -> Conversation:
    """With titles in place of answers, as of hits that were clicked; some turns had no click."""
    whole = {target.n_before: target.rewrite for target in conversation.targets if target.kind == "person"}
    turns = []
    for place, turn in enumerate(conversation.turns):
        found = _titles(whole.get(place, ""), turn.response, conversation.title)
        chosen = rng.sample(found, rng.randint(1, min(3, len(found)))) if found and rng.random() < 0.8 else []
        turns.append(Exchange(turn.query, "; ".join(chosen)))
    return conversation.changed("titled", turns=tuple(turns))


def _titles(rewrite: str, response: str, page: str) -> list[str]:
    """Of the page, of the question, and of the answer's first words; at most one of each."""
    first = re.split(r"(?<=[.!?;:]) |\n", response, maxsplit=1)[0]
    page_title = page.split(" - ")[0]
    made = (page, page_title, _headline(rewrite), " ".join(first.split()[:TITLE_WORDS]).rstrip(".,;:"))
    return list(dict.fromkeys(text for text in made if text))


def _headline(rewrite: str) -> str:
    """What is asked, without the asking.

    >>> _headline("What are some of the possible causes of the Bronze Age collapse?")
    'Possible Causes of the Bronze Age Collapse'
    """
    asked = [word.rstrip("?.!,;:") for word in rewrite.split()]
    while asked and fold(asked[0]) in ASKING:
        asked = asked[1:]
    headline = [word if fold(word) in SMALL and i else word[:1].upper() + word[1:] for i, word in enumerate(asked)]
    return " ".join(headline[: 2 * TITLE_WORDS])


def with_whole(conversation: Conversation, rng: random.Random, share: float) -> Conversation:
    """Asks some queries as they were rewritten, which need nothing: at the same place, and they stay as they are."""
    made = [
        Target(target.n_before, target.rewrite, target.rewrite, "whole")
        for target in conversation.targets
        if target.kind == "person" and target.rewrite != target.query and rng.random() < share
    ]
    return _with_targets(conversation, made)


def with_switch(conversation: Conversation, others: Sequence[str], rng: random.Random) -> Conversation:
    """Asks something else at the end, in words that stand alone: it stays as it is, whatever was said before."""
    said = _said(conversation) | stems(*conversation.statements)
    tried = rng.sample(others, min(len(others), 8))
    found = [text for text in tried if stems(text).isdisjoint(said) and not _refers(text)][:1]
    place = rng.randint(min(1, len(conversation.turns)), len(conversation.turns))
    return _with_targets(conversation, [Target(place, text, text, "switch") for text in found])


def _refers(text: str) -> bool:
    return not _UNRESOLVED.isdisjoint(fold(word) for word in words(text))


def with_ellipsis(conversation: Conversation, rng: random.Random, share: float) -> Conversation:
    """Asks some whole queries without the phrase that ends them, or with a pronoun for it, where the turn before
    names what the phrase is about: they become whole again.
    """
    made = []
    for target in conversation.targets:
        before = conversation.turns[: target.n_before]
        if target.kind != "person" or not before or rng.random() >= share:
            continue
        if shorter := _elided(target.rewrite, before[-1].query, rng):
            made.append(Target(target.n_before, shorter, target.rewrite, "ellipsis"))
    return _with_targets(conversation, made)


def _elided(query: str, before: str, rng: random.Random) -> str:
    """The query without its last phrase; "" where the turn before does not name it, or too little would be left.

    >>> _elided("What are the causes of desertification?", "Can desertification be stopped?", random.Random(0))
    'What are the causes?'
    """
    found = _ENDING_PHRASE.match(query)
    if not found or _refers(query):
        return ""
    what, left = words(found["what"]), stems(found["head"])
    named = [fold(word) for word in words(before)]
    meant = [word for word in what if fold(word) not in SMALL]
    head = found["head"].split()
    if not meant or not left or not all(fold(word) in named for word in meant):
        return ""
    if len(head) < 3 or fold(head[-1]) in FUNCTION_WORDS:  # "Which river is", "the college that he went"
        return ""
    ending = "?" if query.endswith("?") else "."
    # A pronoun only for what is no name: it might be a person, and nobody says of which kind.
    if rng.random() < 0.5 and all(word.islower() for word in what) and found["preposition"] in ("of", "about", "with"):
        return f"{found['head']} {found['preposition']} {'them' if what[-1].endswith('s') else 'it'}{ending}"
    return f"{found['head']}{ending}"


def _with_targets(conversation: Conversation, made: Iterable[Target]) -> Conversation:
    targets = sorted((*conversation.targets, *made), key=lambda target: target.n_before)
    return Conversation(
        conversation.source,
        conversation.turns,
        tuple(targets),
        conversation.statements,
        conversation.used,
        conversation.title,
        conversation.changes,
    )
