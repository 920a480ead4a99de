"""The rewriter seam: turns a query, with what is known about the user, into a query that stands alone."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from typing import NamedTuple, Protocol

from bespeak.errors import BespeakError, StoreError
from bespeak.records import Profile, Rewrite, Turn, UserKey
from bespeak.rewriting.grounding import attribute
from bespeak.statuses import RewriteStatus
from bespeak.text.words import FUNCTION_WORDS, fold, words


class Rewriter(Protocol):
    """Two rewriters with equal name and version give the same rewrites."""

    name: str
    version: str

    def rewrite(self, query: str, profile: Profile, budget_ms: float | None = None) -> Rewrite:
        """The rewrite; if it is not done within `budget_ms`, the query itself with the status `late`."""
        ...

    def warm(self, profile: Profile) -> None:
        """Reads ahead what this session's next rewrite needs, so that it takes less time; changes no rewrite.

        May stop early at the current deadline.
        """
        ...

    def forget(self, user: UserKey) -> None:
        """Drops everything kept in memory from the user's texts."""
        ...


class RewriteKey(NamedTuple):
    """Everything that a rewrite depends on, and the user it is for."""

    user: UserKey
    profile_version: str
    model_version: str
    query: str


class RewriteCache(Protocol):
    """Stores rewrites. Its methods raise StoreError if it cannot be read or written."""

    def get_rewrite(self, key: RewriteKey) -> Rewrite | None: ...

    def put_rewrite(self, key: RewriteKey, rewrite: Rewrite) -> None: ...


def run_rewriter(query: str, profile: Profile, rewriter: Rewriter, budget_ms: float | None = None) -> Rewrite:
    """The rewriter's answer. Never raises: a fault leaves the query as typed, with the status `failed`."""
    try:
        return rewriter.rewrite(query, profile, budget_ms)
    except BespeakError as error:
        return failed(query, rewriter, str(error))
    except Exception as error:  # whatever a rewriter raises, the query goes out as typed, and the reason is reported
        return failed(query, rewriter, f"{type(error).__name__}: {error}")


def model_of(rewriter: Rewriter) -> str:
    return f"{rewriter.name} {rewriter.version}".strip()


def failed(query: str, rewriter: Rewriter, reason: str) -> Rewrite:
    return Rewrite(query, query, status=RewriteStatus.FAILED, reason=reason, model=model_of(rewriter))


class Unchanged:
    """Leaves every query as it is."""

    name = "none"
    version = "1"

    def rewrite(self, query: str, profile: Profile, budget_ms: float | None = None) -> Rewrite:  # noqa: ARG002
        return Rewrite(query, query, status=RewriteStatus.OFF, model=model_of(self))

    def warm(self, profile: Profile) -> None:
        pass

    def forget(self, user: UserKey) -> None:
        pass


class LastTurn:
    """Adds the most important words of the last turn: the baseline that a language model must beat."""

    name = "last-turn"
    version = "1"

    def __init__(self, n_words: int = 8) -> None:
        self._n_words = n_words

    def rewrite(self, query: str, profile: Profile, budget_ms: float | None = None) -> Rewrite:  # noqa: ARG002
        added = salient(profile.turns[-1], query, self._n_words) if profile.turns else []
        text = " ".join([query, *added])
        return Rewrite(query, text, attribute(text, query, profile), RewriteStatus.FULL, model=model_of(self))

    def warm(self, profile: Profile) -> None:
        pass

    def forget(self, user: UserKey) -> None:
        pass


def salient(turn: Turn, query: str, n_words: int) -> list[str]:
    """The `n_words` best words of a turn that the query lacks, in order.

    Names, words of the turn's query and repeated words are preferred.
    """
    asked, answered = words(turn.query), words(turn.response)
    known = FUNCTION_WORDS | {fold(word) for word in words(query)}
    counts = Counter(map(fold, asked + answered))
    scores: dict[str, float] = {}
    for i, word in enumerate(asked + answered):
        folded = fold(word)
        if folded in known or not any(c.isalnum() for c in word):
            continue
        named = word[0].isupper() and i not in (0, len(asked))
        known = known | {folded}
        scores[word] = counts[folded] + 2 * (i < len(asked)) + named - i / 1000
    best = set(sorted(scores, key=lambda word: -scores[word])[:n_words])
    return [word for word in scores if word in best]


LASTING = (RewriteStatus.FULL, RewriteStatus.UNUSABLE)
"""Statuses of rewrites that would come out the same again, and so are worth keeping."""


class CachedRewriter:
    """Asks the cache first, and stores what another rewriter makes, if it lasts and is for a known user."""

    def __init__(self, rewriter: Rewriter, cache: RewriteCache) -> None:
        self._rewriter, self._cache = rewriter, cache
        self.name, self.version = rewriter.name, rewriter.version

    def rewrite(self, query: str, profile: Profile, budget_ms: float | None = None) -> Rewrite:
        if profile.user is None:
            return self._rewriter.rewrite(query, profile, budget_ms)
        key = RewriteKey(profile.user, version_read(profile), model_of(self), query)
        try:
            if found := self._cache.get_rewrite(key):
                return replace(found, status=RewriteStatus.CACHED) if found.status == RewriteStatus.FULL else found
        except StoreError as error:
            return _with_note(self._rewriter.rewrite(query, profile, budget_ms), error)
        made = self._rewriter.rewrite(query, profile, budget_ms)
        if made.status not in LASTING:
            return made
        try:
            self._cache.put_rewrite(key, made)
        except StoreError as error:
            return _with_note(made, error)
        return made

    def warm(self, profile: Profile) -> None:
        self._rewriter.warm(profile)

    def forget(self, user: UserKey) -> None:
        self._rewriter.forget(user)


def version_read(profile: Profile) -> str:
    """A digest of the parts of a profile that a rewriter reads, so that an unrelated click makes no rewrite stale."""
    read = [s.event_id for s in profile.statements], [(t.event_id, t.response) for t in profile.turns]
    return hashlib.blake2b(json.dumps(read).encode("ascii"), digest_size=16).hexdigest()


def _with_note(rewrite: Rewrite, error: StoreError) -> Rewrite:
    """The rewrite; if it has no reason yet, the reason says that it was not kept."""
    return replace(rewrite, reason=rewrite.reason or f"not kept: {error}")
