"""Puts queries into sessions that they do not lean on. Every function is pure: the same `rng` gives the same result."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from bespeak.training.augment import crossed, stems
from bespeak.training.pairs import Conversation, Kind, PastTurn, Target

LONGEST_BEFORE = 4
"""Turns of another conversation that may come before this one."""


@dataclass(frozen=True, slots=True)
class Others:
    """What other people said and asked."""

    conversations: Sequence[Conversation]  # with at least one turn
    statements: Sequence[str]

    def turns(self, rng: random.Random, longest: int = LONGEST_BEFORE) -> tuple[PastTurn, ...]:
        """The first turns of a conversation, some without their answers."""
        found = rng.choice(self.conversations).turns
        n = rng.randint(1, min(longest, len(found)))
        return tuple(PastTurn(turn.query, turn.response if rng.random() < 0.75 else "") for turn in found[:n])

    def some_statements(self, rng: random.Random, query: str, most: int = 6) -> tuple[str, ...]:
        """Statements that share no word with the query."""
        said, n = stems(query), rng.randint(1, most)
        tried = rng.sample(self.statements, min(len(self.statements), 2 * n))
        return tuple(text for text in tried if stems(text).isdisjoint(said))[:n]


def after_others(conversation: Conversation, others: Others, rng: random.Random) -> Conversation:
    """The conversation, begun after somebody else's: what is asked leans on the later turns only."""
    before = others.turns(rng)
    targets = tuple(target._replace(n_before=target.n_before + len(before)) for target in conversation.targets)
    return conversation.changed("late", turns=(*before, *conversation.turns), targets=targets)


def among_others(conversation: Conversation, others: Others, rng: random.Random) -> Conversation:
    """A written conversation in one of many surroundings."""
    varied = conversation
    if varied.turns and rng.random() < 0.5:
        varied = after_others(varied, others, rng)
    if varied.turns and rng.random() < 0.2:
        *before, last = varied.turns
        # What was answered may be needed, so it goes only where the rewrite takes nothing from it.
        unneeded = [
            t for t in varied.targets if not stems(t.rewrite) & stems(last.response) - stems(t.query, last.query)
        ]
        varied = replace(varied, turns=(*before, PastTurn(last.query)), targets=tuple(unneeded))
    return crossed(varied, others.statements, rng) if rng.random() < 0.4 else varied


def stand_alone(query: str, others: Others, rng: random.Random, kind: Kind = "switch") -> Conversation:
    """The query in somebody else's session, or with somebody else's statements, where it must stay as it is."""
    place = rng.random()
    turns = others.turns(rng) if place < 0.8 else ()
    statements = others.some_statements(rng, query) if place > 0.5 and others.statements else ()
    said = stems(query)
    if not said.isdisjoint(stems(*(text for turn in turns for text in turn))):
        turns = ()
        statements = statements or others.some_statements(rng, query)
    return Conversation("written", turns, (Target(len(turns), query, query, kind),), statements)


def pointing_at_nothing(query: str, greeting: str, others: Others, rng: random.Random) -> Conversation:
    """A query that points at something, where nothing was named."""
    asked, _, answered = greeting.partition(" => ")
    turns = (PastTurn(asked, answered),) if rng.random() < 0.6 else ()
    statements = others.some_statements(rng, query) if not turns or rng.random() < 0.3 else ()
    return Conversation("written", turns, (Target(len(turns), query, query, "nothing"),), statements)


def negatives(
    queries: Mapping[str, Sequence[str]], others: Others, rng: random.Random, times: int
) -> Iterator[Conversation]:
    """Every written query, `times` times each, in a session that it does not lean on."""
    greetings = queries["greetings"]
    for heading, some in queries.items():
        for query in some:
            for _ in range(times):
                if heading == "nothing":
                    yield pointing_at_nothing(query, rng.choice(greetings), others, rng)
                elif heading != "greetings":
                    yield stand_alone(query, others, rng, "chat" if heading == "chat" else "switch")
