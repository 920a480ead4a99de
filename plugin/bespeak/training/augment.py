"""Variants of conversations. Every function is pure: the same state of `rng` gives the same result."""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Sequence
from typing import TypeAlias

from bespeak.text import analysis
from bespeak.text.words import FUNCTION_WORDS, fold, words
from bespeak.training.pairs import Conversation, PastTurn, Target

Stems: TypeAlias = frozenset[str]

MOST_STATEMENTS = 8
TITLE_WORDS = 8
ASKING = FUNCTION_WORDS | frozenset(
    """tell show give find know want like need please let's okay ok yes no not thanks thank hi hello great
    looking""".split()  # noqa: SIM905
)
"""Words at the start of a question that a title of its answer lacks."""
SMALL = frozenset("a an the of in on at by for with from to and or as".split())  # noqa: SIM905
_ENDING_PHRASE = re.compile(
    r"^(?P<head>.+?) (?P<preposition>of|in|for|about|on|with|from|at) (?P<what>[^,;:()?.!]+)[?.!]*$"
)
_UNRESOLVED = frozenset(
    "it its he him his she her hers they them their theirs this that these those there one ones other others".split()  # noqa: SIM905
)


def stems(*texts: str) -> Stems:
    """The stems of the content words."""
    return frozenset(
        stem for text in texts for word in words(text) if fold(word) not in ASKING for stem in analysis.terms(word)
    )


def _topic_stems(conversation: Conversation) -> Stems:
    """The stems of the queries and rewrites."""
    queries = [turn.query for turn in conversation.turns]
    return stems(*queries, *(text for target in conversation.targets for text in (target.query, target.rewrite)))


def concerns(statement: str, conversation: Conversation) -> bool:
    """Whether the person who rewrote used the statement, or it shares a word with the queries."""
    return statement in conversation.used or not stems(statement).isdisjoint(_topic_stems(conversation))


def shuffled(conversation: Conversation, rng: random.Random) -> Conversation:
    """The conversation with its statements in another order."""
    order = rng.sample(conversation.statements, len(conversation.statements))
    return conversation.changed("shuffled", statements=tuple(order))


def dropped(conversation: Conversation, rng: random.Random, share: float = 0.5) -> Conversation:
    """The conversation without about this share of the statements that do not concern its queries."""
    said = _topic_stems(conversation)
    kept = [
        text
        for text in conversation.statements
        if rng.random() >= share or text in conversation.used or not stems(text).isdisjoint(said)
    ]
    return conversation.changed("dropped", statements=tuple(kept))


def crossed(conversation: Conversation, others: Sequence[str], rng: random.Random) -> Conversation:
    """The conversation with other users' statements mixed in that do not concern it: its rewrites stay the same."""
    said = _topic_stems(conversation) | stems(*conversation.statements)
    wanted = rng.randint(1, MOST_STATEMENTS)
    foreign = [text for text in rng.sample(others, min(len(others), 2 * wanted)) if stems(text).isdisjoint(said)]
    mixed = list(conversation.statements)
    for text in foreign[:wanted]:
        mixed.insert(rng.randint(0, len(mixed)), text)
    return conversation.changed("crossed", statements=tuple(mixed))


def unanswered(conversation: Conversation) -> Conversation:
    """The conversation without answers, as in most search sessions."""
    return conversation.changed("unanswered", turns=tuple(PastTurn(turn.query) for turn in conversation.turns))


def titled(conversation: Conversation, rng: random.Random) -> Conversation:
    """The conversation with titles instead of answers, as if hits were clicked; some turns get no click."""
    rewrites = {target.n_before: target.rewrite for target in conversation.targets if target.kind == "person"}
    turns = []
    for place, turn in enumerate(conversation.turns):
        found = _titles(rewrites.get(place, ""), turn.response, conversation.title)
        chosen = rng.sample(found, rng.randint(1, min(3, len(found)))) if found and rng.random() < 0.8 else []
        turns.append(PastTurn(turn.query, "; ".join(chosen)))
    return conversation.changed("titled", turns=tuple(turns))


def _titles(rewrite: str, response: str, page: str) -> list[str]:
    """Possible titles: of the page, of the question, and the first words of the answer."""
    first = re.split(r"(?<=[.!?;:]) |\n", response, maxsplit=1)[0]
    page_title = page.split(" - ")[0]
    made = (page, page_title, _headline(rewrite), " ".join(first.split()[:TITLE_WORDS]).rstrip(".,;:"))
    return list(dict.fromkeys(text for text in made if text))


def _headline(rewrite: str) -> str:
    """The question as a headline, without the words that ask.

    >>> _headline("What are some of the possible causes of the Bronze Age collapse?")
    'Possible Causes of the Bronze Age Collapse'
    """
    kept = [word.rstrip("?.!,;:") for word in rewrite.split()]
    while kept and fold(kept[0]) in ASKING:
        kept = kept[1:]
    headline = [word if fold(word) in SMALL and i else word[:1].upper() + word[1:] for i, word in enumerate(kept)]
    return " ".join(headline[: 2 * TITLE_WORDS])


def with_full_queries(conversation: Conversation, rng: random.Random, share: float) -> Conversation:
    """The conversation with some queries asked in rewritten form, at the same place; these need no rewrite."""
    made = [
        Target(target.n_before, target.rewrite, target.rewrite, "whole")
        for target in conversation.targets
        if target.kind == "person" and target.rewrite != target.query and rng.random() < share
    ]
    return _with_targets(conversation, made)


def with_switch(conversation: Conversation, others: Sequence[str], rng: random.Random) -> Conversation:
    """The conversation with an unrelated query that stands alone, and so must not be rewritten."""
    said = _topic_stems(conversation) | stems(*conversation.statements)
    tried = rng.sample(others, min(len(others), 8))
    found = [text for text in tried if stems(text).isdisjoint(said) and not refers(text)][:1]
    place = rng.randint(min(1, len(conversation.turns)), len(conversation.turns))
    return _with_targets(conversation, [Target(place, text, text, "switch") for text in found])


def refers(text: str) -> bool:
    """Whether a pronoun of the text may point outside of it."""
    return not _UNRESOLVED.isdisjoint(fold(word) for word in words(text))


def with_ellipsis(conversation: Conversation, rng: random.Random, share: float) -> Conversation:
    """The conversation with some full queries shortened: without their last phrase, or with a pronoun for it.

    The turn before must name what the phrase is about; the target is the full query.
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
    """The query without its last phrase; "" if the turn before does not name it, or too little would be left.

    >>> _elided("What are the causes of desertification?", "Can desertification be stopped?", random.Random(0))
    'What are the causes?'
    """
    found = _ENDING_PHRASE.match(query)
    if not found or refers(query):
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
    # Names get no pronoun: they may be a person's, and it is not known whether he or she fits.
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
