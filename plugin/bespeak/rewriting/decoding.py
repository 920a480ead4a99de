"""The language model behind the rewriter: prompt, greedy decoding with a key-value cache, and what is refused."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np

from bespeak.deadline import Deadline, Late
from bespeak.errors import ModelError
from bespeak.models.encoder import RememberingEncoder
from bespeak.records import Profile, Rewrite, Turn, UserKey
from bespeak.rewriting.grounding import Grounded, Lexicon, attribute, sources
from bespeak.rewriting.model import MODEL
from bespeak.rewriting.rewriter import failed, model_of
from bespeak.rewriting.scorer import Floats, Whose, common
from bespeak.session.gate import is_other_script
from bespeak.session.statements import choose_statements, fit
from bespeak.text import analysis
from bespeak.text.words import FUNCTION_WORDS, fold, words

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bespeak.models.encoder import Encoder

END, START = 1, 2  # ids of the control tokens; 0 to 3 never come out
DECODING = 5
"""Raised when the same model decodes otherwise, so that rewrites kept from before are not served."""

N_CONTROL = 4
# The lengths that the adapter was trained with, in tokens.
STATEMENT_TOKENS, HISTORY_TOKENS, QUERY_TOKENS, ANSWER_TOKENS = 220, 220, 80, 40
LAST_ANSWER_TOKENS = 120
"""Of the last turn's answer: "the third one" and "the other two" stand at its end. Not counted as history, so that
what is read of earlier turns does not depend on it."""
ANSWER_CHARS = 1_000
MAX_NEW_TOKENS = 64
STATEMENTS_REMEMBERED = 2_000
"""Vectors of statements kept in memory, 1.5 KB each."""
POINTING = {
    *("one", "ones", "two", "three", "both", "first", "second", "third", "last", "next"),
    *("former", "latter", "other", "others", "previous", "mentioned"),
}
"""Words of a query that may well be gone in its rewrite: names stand in their place."""
DERAILED = 8.0
"""A token inside a word is e^8 times less likely than another: the word was begun for the sake of that other one."""


class Feed(Protocol):
    """Reads on from any place of one text."""

    def __call__(self, token_ids: Sequence[int], past: Any) -> tuple[Floats, Any]:
        """Reads these tokens after `past` (None: from the start).

        Gives `(n_tokens,)` scores of the token after them, and what is now past. Raises Late.
        """
        ...


class Scorer(Protocol):
    """A language model with its tokenizer."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def begin(self, budget_ms: float | None, whose: Whose | None = None) -> AbstractContextManager[Feed]:
        """A new text. It is ended `budget_ms` from now, or at the current deadline, also in the middle of a run.

        What was read before of texts of the same user and session (`whose`) need not be read again.
        """
        ...

    def forget(self, user: UserKey) -> None:
        """Drops what is kept of the user's texts."""
        ...


class LanguageModel:
    """Rewrites by a language model; grounded: with words of the query, the history and the statements alone.

    The model is loaded at the first rewrite, outside of its budget.
    """

    name = MODEL

    def __init__(self, scorer: Scorer, version: str, grounded: bool = True, encoder: Encoder | None = None) -> None:
        """Of more statements than fit, `encoder` tells which are read."""
        self._scorer, self._grounded = scorer, grounded
        self._encoder = RememberingEncoder(encoder, STATEMENTS_REMEMBERED) if encoder else None
        names = (version, "" if grounded else "free", encoder.name if encoder else "")
        self.version = " ".join(name for name in names if name)

    def rewrite(self, query: str, profile: Profile, budget_ms: float | None = None) -> Rewrite:
        tokenizer, deadline = self._scorer.tokenizer, Deadline.after_ms(budget_ms)
        try:
            with deadline.held():
                profile = self._digest(query, profile)
            follow = Grounded(Lexicon(query, sources(query, profile))) if self._grounded else None
            whose = (profile.user, profile.session_id) if profile.user else None
            with self._scorer.begin(budget_ms, whose) as feed:
                text = decode(feed, prompt(query, profile, tokenizer), Pieces(tokenizer), follow)
        except Late as late:
            reason = str(late) if budget_ms is None else f"not done in {budget_ms:.0f} ms"
            return Rewrite(query, query, status="late", reason=reason, model=model_of(self))
        if reason := refuse(text, query, profile):
            return failed(query, self, reason)
        if [fold(word) for word in words(text)] == [fold(word) for word in words(query)]:
            text = query
        return Rewrite(query, text, attribute(text, query, profile), "full", model=model_of(self))

    def warm(self, profile: Profile) -> None:
        if profile.user is None:
            return
        tokenizer = self._scorer.tokenizer
        with suppress(Late):
            if not fit(profile.statements, _stated_size(tokenizer), STATEMENT_TOKENS - 1):
                self._digest("", profile)  # what is read depends on the query, but the vectors do not
                return
            ahead = prompt("", profile, tokenizer)
            n_sure = common(ahead, prompt("?", profile, tokenizer))
            with self._scorer.begin(None, (profile.user, profile.session_id)) as feed:
                feed(ahead[:n_sure], None)

    def forget(self, user: UserKey) -> None:
        self._scorer.forget(user)
        if self._encoder:
            self._encoder.forget(user)

    def _digest(self, query: str, profile: Profile) -> Profile:
        """The profile with those of its statements that are read."""
        size = _stated_size(self._scorer.tokenizer)
        chosen = choose_statements(query, profile, size, STATEMENT_TOKENS - 1, self._encoder)
        return profile if len(chosen) == len(profile.statements) else replace(profile, statements=chosen)


def _stated_size(tokenizer: Tokenizer) -> Callable[[str], int]:
    """How many tokens a statement takes in the prompt."""
    around = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in ("- ", "\n"))

    def size(text: str) -> int:
        # As one text with its mark it may be shorter by a token: what fits by this fits in the prompt.
        return around + len(tokenizer.encode(_one_line(text), add_special_tokens=False).ids)

    return size


def prompt(query: str, profile: Profile, tokenizer: Tokenizer) -> list[int]:
    """Token ids of the statements, the latest turns and the query, as the adapter was trained to read them.

    Of statements and turns the newest that fit are taken, and stand oldest first.
    """

    def encode(text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids

    line_end = encode("\n")

    def question(text: str) -> list[int]:
        return encode("Q: ") + encode(_one_line(text))[-QUERY_TOKENS:] + line_end

    def answer(of: Turn, limit: int) -> list[int]:
        text = _one_line(of.response)[:ANSWER_CHARS]
        return encode("A: ") + encode(text)[:limit] + line_end if text else []

    def turn(of: Turn) -> list[int]:
        return question(of.query) + answer(of, ANSWER_TOKENS)

    stated = (encode("- " + _one_line(statement.text)) + line_end for statement in reversed(profile.statements))
    turns = (turn(of) for of in reversed(profile.turns))
    statements, history = _newest(stated, STATEMENT_TOKENS - 1), _newest(turns, HISTORY_TOKENS)
    if history:
        last = profile.turns[-1]
        history[len(history) - len(answer(last, ANSWER_TOKENS)) :] = answer(last, LAST_ANSWER_TOKENS)
    return [START, *statements, *history, *question(query), *encode("R:")]


def _one_line(text: str) -> str:
    return " ".join(text.encode("utf-8", "replace").decode("utf-8").split())


def _newest(parts: Iterator[list[int]], limit: int) -> list[int]:
    """The first parts that together fit, the last one first."""
    taken: list[int] = []
    for part in parts:
        if len(taken) + len(part) > limit:
            break
        taken = part + taken
    return taken


class Pieces:
    """The bytes that each token stands for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token_id: int) -> bytes:
        if token_id not in self._known:
            token: str = self._tokenizer.id_to_token(token_id) or ""
            byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
            self._known[token_id] = bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
        return self._known[token_id]


class Step(NamedTuple):
    """A place in the text: what was written, what may follow, and how the model scores the next token."""

    made: bytes
    follow: Grounded | None
    scores: Floats
    past: Any


def decode(feed: Feed, token_ids: Sequence[int], pieces: Pieces, follow: Grounded | None) -> str:
    """The text that the model goes on with: always the best token, of those that may come where `follow` is given.

    A word that the model would have ended far otherwise than `follow` lets it is taken back, and begun differently.
    A text that has no end within 64 tokens comes back with a line end, which no rewrite has. Raises Late.
    """
    step = word = Step(b"", follow, *feed(token_ids, None))
    refused: set[int] = set()  # what the word must not begin with
    first = -1  # what it begins with
    for _ in range(MAX_NEW_TOKENS):
        token_id, after = choose(step.scores, pieces, step.follow, refused if step is word else set())
        if step is not word and _derailed(step, token_id, pieces):
            refused.add(first)
            step = word
            continue
        if token_id == END:
            return step.made.decode("utf-8", "replace").strip()
        if step is word or pieces[token_id].startswith(b" "):
            if step is not word:
                word, refused = step, set()
            first = token_id
        step = Step(step.made + pieces[token_id], after, *feed([token_id], step.past))
    return step.made.decode("utf-8", "replace").strip() + "\n"


def _derailed(step: Step, token_id: int, pieces: Pieces) -> bool:
    """Inside a word, was something else far likelier?"""
    inside = token_id != END and not pieces[token_id].startswith(b" ")
    return inside and bool(step.scores.max() - step.scores[token_id] > DERAILED)


def choose(scores: Floats, pieces: Pieces, follow: Grounded | None, refused: set[int]) -> tuple[int, Grounded | None]:
    """The best token that may come next, and what may follow it."""
    for token_id in _best_first(scores):
        if token_id == END and (follow is None or follow.may_end()):
            return token_id, follow
        if token_id < N_CONTROL or token_id in refused:
            continue
        if follow is None:
            return token_id, None
        if after := follow.after(pieces[token_id]):
            return token_id, after
    raise ModelError("no token may come next: the tokenizer lacks single bytes, so run 'bespeak models build'")


def _best_first(scores: Floats) -> Iterator[int]:
    """All ids by falling score. The first few are found without sorting the rest, and mostly suffice."""
    n_first = min(64, len(scores) - 1)
    first = np.argpartition(scores, -n_first)[-n_first:]
    first = first[np.lexsort((first, -scores[first]))]
    yield from first.tolist()
    seen = set(first.tolist())
    yield from (i for i in np.argsort(-scores, kind="stable").tolist() if i not in seen)


def refuse(text: str, query: str, profile: Profile) -> str:
    """Why a model's text is no rewrite; "" where it may be one."""
    if text.endswith("\n"):
        return "the model found no end"
    if not words(text):
        return "the model said nothing"
    if re.search(r"(?:^|\s)[QAR]:(?:\s|$)|\n", text):
        return "the model repeated its prompt"
    folded = [fold(word) for word in words(text)]
    if _loops(folded):
        return "the model repeated itself"
    if any(_contains(folded, [fold(w) for w in words(turn.response)]) for turn in profile.turns):
        return "the model repeated an answer"
    if is_other_script(text) != is_other_script(query):
        return "the model wrote in another script"
    said = [[fold(word) for word in words(turn.query)] for turn in profile.turns]
    if folded in said and folded != [fold(word) for word in words(query)]:
        return "the model repeated an earlier query"
    asked = subjects(query)
    if asked and not asked & subjects(text):
        return "the model dropped what was asked"
    return ""


def subjects(text: str) -> set[str]:
    """The stems of the words that say what a text is about."""
    about = (word for word in words(text) if fold(word) not in FUNCTION_WORDS | POINTING)
    return {stem for word in about for stem in analysis.terms(word)}


def _loops(folded: list[str]) -> bool:
    """A word three times in a row, three words three times, or five words twice."""
    if any(a == b == c for a, b, c in zip(folded, folded[1:], folded[2:], strict=False)):
        return True
    return any(
        max(Counter(zip(*(folded[i:] for i in range(size)), strict=False)).values(), default=0) >= times
        for size, times in ((3, 3), (5, 2))
    )


def _contains(folded: list[str], answer: list[str], at_least: int = 10) -> bool:
    """Does the whole of a long answer stand in the text?"""
    size = len(answer)
    return size >= at_least and any(folded[i : i + size] == answer for i in range(len(folded) - size + 1))
