"""Conversations as token sequences, in exactly the format that the rewriter reads.

A sequence holds the statements and turns of a conversation once. Each target is a branch, which sees what comes before
it and itself, but no other branch. The rewriter reads more of the last turn's answer than of others; this extra part
stands at the start of the branch.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from bespeak.records import Profile, Statement, Turn
from bespeak.rewriting.decoding import ANSWER_TOKENS, END, HISTORY_TOKENS, MAX_NEW_TOKENS, prompt
from bespeak.rewriting.skeleton import ENDINGS, Draft, Skeleton, replaceable
from bespeak.text.words import FUNCTION_WORDS, fold, inner_words, words
from bespeak.training.pairs import Conversation, PastTurn, Target

if TYPE_CHECKING:
    from tokenizers import Tokenizer

UNLABELLED = -100
SHORT_CUTS = (0, 40, 90, 140)
"""Tokens of history that a group may start with, instead of all that the rewriter would read."""
MAX_UNSAID = 0.34
"""A target is left out if more of its added words occur nowhere before; below that, only those words are not learnt."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Packed:
    """One sequence; all arrays are `(n_tokens,)`."""

    token_ids: Ints
    positions: Ints
    branches: Ints  # 0: seen by all later tokens
    labels: Ints  # the next token, or UNLABELLED
    targets: tuple[Target, ...]
    source: str
    changes: tuple[str, ...]

    def mask(self) -> npt.NDArray[np.bool_]:
        """`(n_tokens, n_tokens)`: whether the row's token sees the column's."""
        seen = (self.branches[None] == 0) | (self.branches[None] == self.branches[:, None])
        return np.tril(seen)


class Layout:
    """The parts of a prompt as token ids, cut from the rewriter's own prompts."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.rewrite_mark = self._encode("R:")
        self.line_end = self._encode("\n")
        self._n_short = len(self._encode("A: ")) + ANSWER_TOKENS
        self.question = lru_cache(100_000)(self._question)

    def _encode(self, text: str) -> tuple[int, ...]:
        return tuple(self.tokenizer.encode(text, add_special_tokens=False).ids)

    def _question(self, query: str) -> tuple[int, ...]:
        return tuple(prompt(query, Profile(), self.tokenizer)[1 : -len(self.rewrite_mark)])

    def answer(self, turn: PastTurn) -> tuple[tuple[int, ...], tuple[int, ...]]:
        """The part of an answer that is always read, and the part read only of the last turn; without the line end."""
        asked = self.question(turn.query)
        whole = prompt("", Profile(turns=(Turn(turn.query, turn.response, ""),)), self.tokenizer)
        read = tuple(whole[1 + len(asked) : -len(self.question("")) - len(self.rewrite_mark)])[:-1]
        return read[: self._n_short], read[self._n_short :]

    def line(self, turn: PastTurn, last: bool = False) -> tuple[int, ...]:
        """The answer with its line end; empty if there is no answer."""
        short, rest = self.answer(turn)
        return (*short, *(rest if last else ()), *self.line_end) if short else ()

    def statements(self, texts: Sequence[str]) -> tuple[int, ...]:
        """The start token and the latest statements that fit."""
        whole = prompt("", Profile(statements=tuple(Statement(text, "") for text in texts)), self.tokenizer)
        return tuple(whole[: -len(self.question("")) - len(self.rewrite_mark)])

    def target(self, rewrite: str, lexicon: Lexicon) -> tuple[list[int], list[int]]:
        """Token ids with the end token, and their labels; words that the rewriter could not write are not labelled."""
        text = " " + " ".join(rewrite.split())
        encoded = self.tokenizer.encode(text, add_special_tokens=False)
        unsaid = [span for span, stands in standing(text, lexicon) if not stands]
        ids = [*encoded.ids, END]
        labels = [
            UNLABELLED if any(start < to and end > at for at, to in unsaid) else token_id
            for token_id, (start, end) in zip(encoded.ids, encoded.offsets, strict=True)
        ]
        return ids, [*labels, END]


class Lexicon:
    """The words that a rewrite may use, as they were said; the first word may also get a capital."""

    def __init__(self, query: str, texts: Iterable[str]) -> None:
        said = {word for text in texts for word in words(text)}
        said |= {inner for word in said for inner in inner_words(word)}
        said |= FUNCTION_WORDS | {word.capitalize() for word in FUNCTION_WORDS}
        self._words = (said | {re.sub("^i(?=$|')", "I", word) for word in FUNCTION_WORDS}) - {"i"}
        self._first = {word.capitalize() for word in words(query) if word.islower()}

    def holds(self, text: str, first: bool = False) -> bool:
        """Whether the text is such a word, with or without an ending."""
        bare = [text[: len(text) - len(ending)] for ending in ENDINGS if text.endswith(ending)]
        return any(word in self._words or (first and word in self._first) for word in bare)


def standing(text: str, lexicon: Lexicon) -> Iterator[tuple[tuple[int, int], bool]]:
    """Each word's place in the text, and whether a grounded rewrite may contain it."""
    for number, found in enumerate(re.finditer(r"\S+", text)):
        yield found.span(), lexicon.holds(found[0], number == 0)


def unsaid_share(target: Target, lexicon: Lexicon) -> float:
    """The share of the rewrite's added words that occur nowhere before; in [0, 1]."""
    known = {fold(word) for word in words(target.query)}
    added = [word for word in words(target.rewrite) if fold(word) not in known]
    return sum(not lexicon.holds(word) for word in added) / len(added) if added else 0.0


def is_reachable(target: Target, conversation: Conversation) -> bool:
    """Whether a rewriter that is held to the query could write the target, apart from words that nobody said."""
    kept = {fold(word) for word in words(target.rewrite)}
    gone = {place: float(fold(word) not in kept) for place, word in enumerate(words(target.query))}
    said = [text for turn in conversation.turns[: target.n_before] for text in turn]
    skeleton = Skeleton(
        target.query, [*said, *conversation.statements, target.rewrite], may_go=replaceable(target.query, gone)
    )
    draft = Draft(skeleton).after(f" {target.rewrite}".encode("utf-8", "replace"))
    return draft is not None and draft.may_end()


class TargetGroup(NamedTuple):
    """Targets of a conversation that read the history from the same turn on."""

    first_turn: int
    targets: tuple[Target, ...]


def pack(conversation: Conversation, layout: Layout, rng: random.Random | None) -> list[Packed]:
    """The sequences of a conversation. With `rng`, histories are cut where the target's words still occur after it."""
    sizes = [len(layout.question(turn.query)) + len(layout.line(turn)) for turn in conversation.turns]
    packed = [_sequence(conversation, layout, group) for group in _groups(conversation, layout, sizes, rng)]
    return [sequence for sequence in packed if sequence.targets]


def _groups(
    conversation: Conversation, layout: Layout, sizes: Sequence[int], rng: random.Random | None
) -> Iterator[TargetGroup]:
    left = [target for target in conversation.targets if not rng or is_reachable(target, conversation)]
    while left:
        n_before = left[0].n_before
        cap = rng.choice((*SHORT_CUTS, HISTORY_TOKENS)) if rng else 90 if len(left) > 1 else HISTORY_TOKENS
        first = _first_turn(sizes, n_before, cap)
        reached = [target for target in left if sum(sizes[first : target.n_before]) <= HISTORY_TOKENS]
        taken = [target for target in reached if _keeps(conversation, layout, sizes, first, target)]
        if left[0] not in taken:  # the first target needs all of its history
            first = _first_turn(sizes, n_before, HISTORY_TOKENS)
            taken = [target for target in left if target.n_before == n_before]
        yield TargetGroup(first, tuple(taken))
        left = [target for target in left if target not in taken]


def _first_turn(sizes: Sequence[int], n_before: int, cap: int) -> int:
    first = n_before
    while first and sum(sizes[first - 1 : n_before]) <= cap:
        first -= 1
    return first


def _keeps(conversation: Conversation, layout: Layout, sizes: Sequence[int], first: int, target: Target) -> bool:
    """Whether a history from `first` on has as many of the target's words as the longest that is read."""
    longest = _first_turn(sizes, target.n_before, HISTORY_TOKENS)
    if first <= longest:
        return True
    shares = [unsaid_share(target, _lexicon(conversation, layout, start, target)) for start in (first, longest)]
    return shares[0] <= shares[1]


def _lexicon(conversation: Conversation, layout: Layout, first: int, target: Target) -> Lexicon:
    ids = [*layout.statements(conversation.statements)[1:]]
    for place, turn in enumerate(conversation.turns[first : target.n_before], first + 1):
        ids += [*layout.question(turn.query), *layout.line(turn, last=place == target.n_before)]
    return Lexicon(target.query, [target.query, _shown(ids, layout)])


def _shown(ids: Sequence[int], layout: Layout) -> str:
    text: str = layout.tokenizer.decode(list(ids), skip_special_tokens=True)
    return re.sub(r"(?m)^(?:[QA]:|-) ", "", text)


class _Writer:
    """A growing sequence."""

    def __init__(self, trunk: Sequence[int]) -> None:
        self.ids, self.labels = list(trunk), [UNLABELLED] * len(trunk)
        self.positions, self.branches = list(range(len(trunk))), [0] * len(trunk)
        self.n_trunk, self.n_branches = len(trunk), 0

    def extend(self, ids: Sequence[int]) -> None:
        self.ids += ids
        self.labels += [UNLABELLED] * len(ids)
        self.positions += range(self.n_trunk, self.n_trunk + len(ids))
        self.branches += [0] * len(ids)
        self.n_trunk += len(ids)

    def branch(self, before: Sequence[int], ids: Sequence[int], labels: Sequence[int]) -> None:
        """Adds a branch; the last token of `before` is the first whose next token is labelled."""
        self.n_branches += 1
        added = [*before, *ids[:-1]]
        self.ids += added
        self.labels += [UNLABELLED] * (len(before) - 1) + list(labels)
        self.positions += range(self.n_trunk, self.n_trunk + len(added))
        self.branches += [self.n_branches] * len(added)

    def packed(self, targets: tuple[Target, ...], source: str, changes: tuple[str, ...]) -> Packed:
        """The sequence, without tokens after the last branch, which nothing would see."""
        end = max((i for i, branch in enumerate(self.branches) if branch), default=-1) + 1
        ids, positions, branches, labels = (
            np.array(part[:end], np.int64) for part in (self.ids, self.positions, self.branches, self.labels)
        )
        return Packed(ids, positions, branches, labels, targets, source, changes)


def _sequence(conversation: Conversation, layout: Layout, group: TargetGroup) -> Packed:
    trunk = _Writer(layout.statements(conversation.statements))
    kept: list[Target] = []

    def branch(target: Target, before: Sequence[int]) -> None:
        lexicon = _lexicon(conversation, layout, group.first_turn, target)
        ids, labels = layout.target(target.rewrite, lexicon)
        if len(ids) <= MAX_NEW_TOKENS and unsaid_share(target, lexicon) <= MAX_UNSAID:
            trunk.branch(before, ids, labels)
            kept.append(target)

    short: tuple[int, ...] = ()
    rest: tuple[int, ...] = ()
    for place in range(group.first_turn, max(target.n_before for target in group.targets) + 1):
        turn = conversation.turns[place] if place < len(conversation.turns) else None
        here = [target for target in group.targets if target.n_before == place]
        line_end = layout.line_end if short else ()
        for target in here:
            if turn is None or rest or target.query != turn.query:
                branch(target, (*rest, *line_end, *layout.question(target.query), *layout.rewrite_mark))
        if turn is None:
            break
        trunk.extend((*line_end, *layout.question(turn.query)))
        for target in here:
            if not rest and target.query == turn.query:
                branch(target, layout.rewrite_mark)
        short, rest = layout.answer(turn)
        trunk.extend(short)
    changes = (*conversation.changes, *(("cut",) if group.first_turn else ()))
    return trunk.packed(tuple(kept), conversation.source, changes)


def alternatives(read: Sequence[int], texts: Sequence[str], tokenizer: Tokenizer) -> Packed:
    """Several rewrites of one query, one branch each, with every token labelled; `read` is the prompt."""
    trunk = _Writer(read[:-1])
    for text in texts:
        ids = [*tokenizer.encode(" " + text, add_special_tokens=False).ids, END]
        trunk.branch(read[-1:], ids, ids)
    return trunk.packed((), "", ())
