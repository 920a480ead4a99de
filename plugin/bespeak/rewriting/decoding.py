"""The language-model rewriter: its prompt, greedy decoding with a key-value cache, and the texts that it refuses."""

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
from bespeak.rewriting.grounding import attribute, sources
from bespeak.rewriting.model import MODEL
from bespeak.rewriting.rewriter import model_of
from bespeak.rewriting.scorer import Floats, SessionKey, n_common
from bespeak.rewriting.skeleton import POINTING, Draft, Skeleton, replaceable
from bespeak.session.gate import is_other_script
from bespeak.session.reader import IS_ADDED
from bespeak.session.statements import all_fit, choose_statements
from bespeak.statuses import Reason, RewriteStatus
from bespeak.text import analysis
from bespeak.text.words import FUNCTION_WORDS, fold, words

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bespeak.models.encoder import Encoder
    from bespeak.session.reader import Context, ContextReader

END, START = 1, 2  # ids of control tokens
N_CONTROL = 4  # control tokens have the lowest ids, and are never written
DECODING = 6
"""Raise this when the same model decodes differently, so that cached rewrites are made again."""

# Lengths in tokens, as in the adapter's training.
STATEMENT_TOKENS, HISTORY_TOKENS, QUERY_TOKENS, ANSWER_TOKENS = 220, 220, 80, 40
LAST_ANSWER_TOKENS = 120
"""Tokens of the last turn's answer: "the third one" and "the other two" often refer to its end. They do not count as
history, so the earlier turns that are read do not depend on them."""
ANSWER_CHARS = 1_000
MAX_NEW_TOKENS = 64
STATEMENTS_REMEMBERED = 2_000
"""Vectors of statements that are kept in memory, 1.5 KB each."""
DERAILED = 8.0
"""A word is taken back if a token inside it is e^8 times less likely than another: the model meant a different word."""
MOST_STRAIN = 40.0
"""How much less likely, in nats, the tokens may be together than those that the model wanted in their places."""


class Feed(Protocol):
    """Continues one text from any place in it."""

    def __call__(self, token_ids: Sequence[int], past: Any) -> tuple[Floats, Any]:
        """Reads these tokens after `past` (None: at the start).

        Returns `(n_vocabulary,)` scores of the next token, and the new past. Raises Late.
        """
        ...


class Scorer(Protocol):
    """A language model with its tokenizer."""

    @property
    def tokenizer(self) -> Tokenizer: ...

    def begin(self, budget_ms: float | None, session_key: SessionKey | None = None) -> AbstractContextManager[Feed]:
        """Begins a new text, which ends `budget_ms` from now or at the current deadline, even in the middle of a run.

        What earlier texts of the same session (`session_key`) have in common with it need not be read again.
        """
        ...

    def forget(self, user: UserKey) -> None:
        """Drops everything kept from the user's texts."""
        ...


class LanguageModel:
    """Rewrites with a language model; if grounded, only with words of the query, the history and the statements.

    The model is loaded at the first rewrite, outside its budget.
    """

    name = MODEL

    def __init__(
        self,
        scorer: Scorer,
        version: str,
        grounded: bool = True,
        encoder: Encoder | None = None,
        context: ContextReader | None = None,
    ) -> None:
        """`encoder` selects the statements to read when not all of them fit, `context` the words that may be added."""
        self._scorer, self._grounded, self._context = scorer, grounded, context
        self._encoder = RememberingEncoder(encoder, STATEMENTS_REMEMBERED) if encoder else None
        names = (version, "" if grounded else "free", encoder.name if encoder else "", context.name if context else "")
        self.version = " ".join(name for name in names if name)

    def rewrite(self, query: str, profile: Profile, budget_ms: float | None = None) -> Rewrite:
        tokenizer, deadline = self._scorer.tokenizer, Deadline.after_ms(budget_ms)
        try:
            with deadline.held():
                context = self._context.read(query, profile) if self._context else None
                read = self._with_fitting_statements(query, profile)
            skeleton = make_skeleton(query, profile, context)
            follow = Draft(skeleton) if self._grounded else None
            session_key = (profile.user, profile.session_id) if profile.user else None
            with self._scorer.begin(budget_ms, session_key) as feed:
                text = decode(feed, prompt(query, read, tokenizer), Pieces(tokenizer), follow)
        except Late as late:
            reason = str(late) if budget_ms is None else f"not done in {budget_ms:.0f} ms"
            return Rewrite(query, query, status=RewriteStatus.LATE, reason=reason, model=model_of(self))
        except Strained:
            return self._in_words(query, profile, context, skeleton, Reason.STRAINED)
        if flaw := refuse_text(text, query, profile):
            return self._in_words(query, profile, context, skeleton, flaw)
        if [fold(word) for word in words(text)] == [fold(word) for word in words(query)]:
            text = query
        return Rewrite(query, text, attribute(text, query, profile), RewriteStatus.FULL, model=model_of(self))

    def _in_words(
        self, query: str, profile: Profile, context: Context | None, skeleton: Skeleton, flaw: Reason
    ) -> Rewrite:
        """The query followed by the words that it surely leans on; as typed if there are none."""
        likely = context.likely(IS_ADDED) if context else []
        said = [word.text for word in likely if fold(word.text) in skeleton.needed]  # not one that was negated
        if not said:
            return Rewrite(query, query, status=RewriteStatus.UNUSABLE, reason=flaw, model=model_of(self))
        text = " ".join([query.rstrip(" .?!"), *said])
        return Rewrite(query, text, attribute(text, query, profile), RewriteStatus.FULL, flaw, model_of(self))

    def warm(self, profile: Profile) -> None:
        if profile.user is None:
            return
        tokenizer = self._scorer.tokenizer
        with suppress(Late):
            if not all_fit(profile.statements, _statement_size(tokenizer), STATEMENT_TOKENS - 1):
                self._with_fitting_statements("", profile)  # the selection depends on the query; the vectors do not
                return
            ahead = prompt("", profile, tokenizer)
            n_sure = n_common(ahead, prompt("?", profile, tokenizer))
            with self._scorer.begin(None, (profile.user, profile.session_id)) as feed:
                feed(ahead[:n_sure], None)

    def forget(self, user: UserKey) -> None:
        self._scorer.forget(user)
        if self._encoder:
            self._encoder.forget(user)

    def _with_fitting_statements(self, query: str, profile: Profile) -> Profile:
        """The profile with only those statements that the prompt has room for."""
        size = _statement_size(self._scorer.tokenizer)
        chosen = choose_statements(query, profile, size, STATEMENT_TOKENS - 1, self._encoder)
        return profile if len(chosen) == len(profile.statements) else replace(profile, statements=chosen)


def make_skeleton(query: str, profile: Profile, context: Context | None) -> Skeleton:
    """What a rewrite must have, and what it may, according to what the query leans on."""
    if context is None:
        return Skeleton(query, sources(profile), may_go=replaceable(query, {}))
    gone = {word.place: word.probability for word in context.dropped}
    must_add = [fold(word.text) for word in context.likely(IS_ADDED)]
    return Skeleton(query, sources(profile), context.may_add(), replaceable(query, gone), must_add)


def _statement_size(tokenizer: Tokenizer) -> Callable[[str], int]:
    """A function that counts the tokens a statement takes in the prompt."""
    around = sum(len(tokenizer.encode(text, add_special_tokens=False).ids) for text in ("- ", "\n"))

    def size(text: str) -> int:
        # Encoded together with its dash a statement may be a token shorter, so this count is never too small.
        return around + len(tokenizer.encode(_one_line(text), add_special_tokens=False).ids)

    return size


def prompt(query: str, profile: Profile, tokenizer: Tokenizer) -> list[int]:
    """Token ids of the statements, the latest turns and the query, in the format of the adapter's training.

    The newest statements and turns that fit are taken, and come oldest first.
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
    """The first parts that fit together, in reverse order."""
    taken: list[int] = []
    for part in parts:
        if len(taken) + len(part) > limit:
            break
        taken = part + taken
    return taken


class Pieces:
    """Maps each token id to the bytes that it stands for."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._known: dict[int, bytes] = {}

    def __getitem__(self, token_id: int) -> bytes:
        if token_id not in self._known:
            token: str = self._tokenizer.id_to_token(token_id) or ""
            byte = re.fullmatch("<0x([0-9A-F]{2})>", token)
            self._known[token_id] = bytes.fromhex(byte[1]) if byte else token.replace("▁", " ").encode()
        return self._known[token_id]


class Strained(Exception):
    """The model wants to write something else than it may."""


class Written(NamedTuple):
    """A text in progress: what was written, what may follow, the model's scores of the next token, and the strain."""

    text: bytes
    follow: Draft | None
    scores: Floats
    past: Any
    strain: float = 0.0


def decode(feed: Feed, token_ids: Sequence[int], pieces: Pieces, follow: Draft | None) -> str:
    """The model's continuation: always the best token, among those that `follow` allows if it is given.

    If `follow` forces a word to end very differently from what the model wants, the word is taken back and begun with
    another token. A text without an end within 64 tokens gets a line end, which no rewrite has. Raises Late, and
    Strained.
    """
    written = word = Written(b"", follow, *feed(token_ids, None))  # `word`: where the current word begins
    refused: set[int] = set()  # tokens that the word must not begin with
    first = -1  # the token that it begins with
    for _ in range(MAX_NEW_TOKENS):
        token_id, after = next_token(written.scores, pieces, written.follow, refused if written is word else set())
        if written is not word and _derailed(written, token_id, pieces):
            refused.add(first)
            written = word
            continue
        if token_id == END:
            return written.text.decode("utf-8", "replace").strip()
        if written is word or pieces[token_id].startswith(b" "):
            if written is not word:
                word, refused = written, set()
            first = token_id
        strain = written.strain + float(written.scores.max() - written.scores[token_id])
        if strain > MOST_STRAIN:
            raise Strained
        written = Written(written.text + pieces[token_id], after, *feed([token_id], written.past), strain)
    return written.text.decode("utf-8", "replace").strip() + "\n"


def _derailed(written: Written, token_id: int, pieces: Pieces) -> bool:
    """Whether the token continues a word although another token is far likelier."""
    inside = token_id != END and not pieces[token_id].startswith(b" ")
    return inside and bool(written.scores.max() - written.scores[token_id] > DERAILED)


def next_token(scores: Floats, pieces: Pieces, follow: Draft | None, refused: set[int]) -> tuple[int, Draft | None]:
    """The best token that may come next, and what may follow it. Raises Strained and ModelError if no token may."""
    for token_id in _best_first(scores):
        if token_id == END and (follow is None or follow.may_end()):
            return token_id, follow
        if token_id < N_CONTROL or token_id in refused:
            continue
        if follow is None:
            return token_id, None
        if after := follow.after(pieces[token_id]):
            return token_id, after
    if follow and (follow.n_words or refused):
        raise Strained
    raise ModelError("no token may come next: the tokenizer lacks single bytes, so run 'bespeak models build'")


def _best_first(scores: Floats) -> Iterator[int]:
    """All ids, best score first. Usually the first few suffice, so the rest is not sorted before it is needed."""
    n_first = min(64, len(scores) - 1)
    first = np.argpartition(scores, -n_first)[-n_first:]
    first = first[np.lexsort((first, -scores[first]))]
    yield from first.tolist()
    seen = set(first.tolist())
    yield from (i for i in np.argsort(-scores, kind="stable").tolist() if i not in seen)


def refuse_text(text: str, query: str, profile: Profile) -> Reason | None:
    """Why a model's text cannot be a rewrite; None if it can."""
    folded = [fold(word) for word in words(text)]
    earlier = [[fold(word) for word in words(turn.query)] for turn in profile.turns]
    subject_words = subjects(query)
    if text.endswith("\n"):
        return Reason.NO_END
    if not folded or (subject_words and not subject_words & subjects(text)):
        return Reason.SAYS_NOTHING
    if re.search(r"(?:^|\s)[QAR]:(?:\s|$)|\n", text):
        return Reason.REPEATS_PROMPT
    if _loops(folded):
        return Reason.REPEATS_ITSELF
    if any(_contains(folded, [fold(w) for w in words(turn.response)]) for turn in profile.turns):
        return Reason.REPEATS_ANSWER
    if is_other_script(text) != is_other_script(query):
        return Reason.OTHER_SCRIPT
    if folded in earlier and folded != [fold(word) for word in words(query)]:
        return Reason.REPEATS_QUERY
    return None


def subjects(text: str) -> set[str]:
    """The stems of the words that carry a text's meaning."""
    about = (word for word in words(text) if fold(word) not in FUNCTION_WORDS | POINTING)
    return {stem for word in about for stem in analysis.terms(word)}


def _loops(folded: list[str]) -> bool:
    """Whether a word occurs three times in a row, three words occur three times, or five words twice."""
    if any(a == b == c for a, b, c in zip(folded, folded[1:], folded[2:], strict=False)):
        return True
    return any(
        max(Counter(zip(*(folded[i:] for i in range(size)), strict=False)).values(), default=0) >= times
        for size, times in ((3, 3), (5, 2))
    )


def _contains(folded: list[str], answer: list[str], at_least: int = 10) -> bool:
    """Whether the text contains a whole long answer."""
    size = len(answer)
    return size >= at_least and any(folded[i : i + size] == answer for i in range(len(folded) - size + 1))
