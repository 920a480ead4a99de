"""Decides how often each source is used and how its conversations are varied. Equal seeds give equal results."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from bespeak.training import augment
from bespeak.training.packing import Layout, Packed, pack
from bespeak.training.pairs import Conversation
from bespeak.training.personal import personal_conversations
from bespeak.training.placing import Others, among_others, negatives
from bespeak.training.scenarios import written_conversations, written_queries

if TYPE_CHECKING:
    from tokenizers import Tokenizer

SOURCE_WEIGHTS = {
    # Search users, and pairs with statements, count most.
    "ikat2024": 4.0, "ikat2025": 4.0, "cast2019": 2.0, "cast2020": 2.0, "cast2021": 2.0, "cast2022": 2.0,
    "mtrag": 1.5, "qulac": 0.3, "qrecc": 0.4, "canard": 0.5, "canard-train": 0.12, "followup": 0.3, "cqr": 0.25,
    "camrest": 0.1, "pacific": 0.1,
}  # fmt: skip
"""How often a conversation of each source is used in one pass; those of other sources are used once."""

WRITTEN_TIMES, ALONE_SHARE = 2, 0.25
"""How often the adapter reads a written conversation, and how many of the written queries that stand alone."""
PERSONAL_SHARE = 0.06
"""The share of all targets that `personal` makes."""


def sequences(found: Sequence[Conversation], tokenizer: Tokenizer, seed: int, passes: float = 1.0) -> list[Packed]:
    """All training sequences, in the order of training."""
    rng, layout = random.Random(seed), Layout(tokenizer)
    packed = []
    for _, varied in variants(found, rng, passes):
        packed += pack(varied, layout, rng)
    n_personal = round(PERSONAL_SHARE * sum(len(sequence.targets) for sequence in packed))
    for conversation in made_conversations(found, n_personal, rng):
        packed += pack(conversation, layout, rng)
    rng.shuffle(packed)
    return packed


def made_conversations(found: Sequence[Conversation], n_personal: int, rng: random.Random) -> Iterator[Conversation]:
    """Conversations from lists, and the written ones and what stands alone among others."""
    written = written_conversations()
    statements = all_statements([*found, *written])
    others = Others([c for c in (*found, *written) if c.turns], statements)
    yield from personal_conversations(n_personal, statements, rng)
    for conversation in written:
        for _ in range(WRITTEN_TIMES):
            yield among_others(conversation, others, rng)
    for conversation in negatives(written_queries(), others, rng, 1):
        if rng.random() < ALONE_SHARE:
            yield conversation


def variants(
    found: Sequence[Conversation], rng: random.Random, passes: float = 1.0
) -> Iterator[tuple[Conversation, Conversation]]:
    """Each conversation, as often as its source is used, with one of its variants."""
    statements = all_statements(found)
    rewrites = sorted({target.rewrite for conversation in found for target in conversation.targets})
    for conversation in found:
        times = passes * SOURCE_WEIGHTS.get(conversation.source, 1.0)
        for _ in range(int(times) + (rng.random() < times % 1)):
            yield conversation, vary(conversation, statements, rewrites, rng)


def all_statements(found: Iterable[Conversation]) -> list[str]:
    """All distinct statements."""
    return sorted({text for conversation in found for text in conversation.statements})


def vary(
    conversation: Conversation, statements: Sequence[str], rewrites: Sequence[str], rng: random.Random
) -> Conversation:
    """One of many forms that a conversation could have had.

    `statements` and `rewrites` are the statements and rewritten queries of all conversations.
    """
    varied = conversation
    if varied.statements:
        varied = augment.shuffled(varied, rng)
        if rng.random() < 0.5:
            varied = augment.dropped(varied, rng, rng.choice((0.3, 0.6, 0.9)))
    if statements and rng.random() < (0.3 if varied.statements else 0.25):
        varied = augment.crossed(varied, statements, rng)
    form = rng.random()
    if any(turn.response for turn in varied.turns) and form < 0.2:
        varied = augment.unanswered(varied)
    elif varied.turns and form > 0.7:
        varied = augment.titled(varied, rng)
    varied = augment.with_full_queries(varied, rng, 0.04)
    varied = augment.with_ellipsis(varied, rng, 0.3)
    return augment.with_switch(varied, rewrites, rng) if rng.random() < 0.15 else varied


def unvaried(found: Iterable[Conversation], tokenizer: Tokenizer) -> list[Packed]:
    """The sequences of conversations as they are, to score on."""
    layout = Layout(tokenizer)
    return [sequence for conversation in found for sequence in pack(replace(conversation), layout, None)]


def counts(packed: Iterable[Packed]) -> dict[str, dict[str, int]]:
    """The number of targets by source, by kind, and by what was changed in their conversation."""
    by: dict[str, Counter[str]] = {"source": Counter(), "kind": Counter(), "change": Counter()}
    for sequence in packed:
        by["source"][sequence.source] += len(sequence.targets)
        for target in sequence.targets:
            by["kind"]["unchanged" if target.kind == "person" and target.query == target.rewrite else target.kind] += 1
        for change in set(sequence.changes):
            by["change"][change] += len(sequence.targets)
    return {name: dict(counter.most_common()) for name, counter in by.items()}
