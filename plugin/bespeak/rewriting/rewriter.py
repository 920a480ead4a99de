"""The seam to the rewriter: from a query and what is known of the user to a query that stands alone."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple, Protocol, assert_never

from bespeak.errors import BespeakError, ModelError, StoreError
from bespeak.models.catalogue import Digests, asset_folder, verify
from bespeak.records import Profile, Rewrite, Turn, UserKey
from bespeak.rewriting.grounding import attribute
from bespeak.statuses import RewriteStatus
from bespeak.text.words import FUNCTION_WORDS, fold, words

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder

MODEL = "gemma3-270m-rewriter"
"""Name of the language model: its shipped parts in `onnx_models/`, and what is built of them in the cache."""

RECIPE = 6
"""Raised when the same parts are built into another file."""

COMPUTED_PARTS = ("adapter.npz", "vocabulary.npz", "tokenizer.json")
PARTS = (*COMPUTED_PARTS, "CARD.md", "GEMMA_TERMS.md", "NOTICE")
"""Files that the language model is built of beside the base's weights, and those that travel with them."""
OWN_ADAPTER = "adapter"
"""Folder in the cache that holds the parts of an operator's own adapter, where one is in use."""


class Rewriter(Protocol):
    """Two rewriters with equal name and version rewrite alike. `rewrite` reports its faults as a status."""

    name: str
    version: str

    def rewrite(self, query: str, profile: Profile, budget_ms: float | None = None) -> Rewrite:
        """What is not done within `budget_ms` comes back as the query itself, with the status `late`."""
        ...

    def warm(self, profile: Profile) -> None:
        """Reads ahead what the next rewrite of this session will read, so that it is sooner done. May be ended by the
        current deadline; changes no rewrite.
        """
        ...

    def forget(self, user: UserKey) -> None:
        """Drops what is kept in memory of the user's texts."""
        ...


class RewriteKey(NamedTuple):
    """All that a rewrite depends on, and whose it is."""

    user: UserKey
    profile_version: str
    model_version: str
    query: str


class RewriteCache(Protocol):
    """Rewrites that were made before. Raises StoreError where it cannot be read or written."""

    def get_rewrite(self, key: RewriteKey) -> Rewrite | None: ...

    def put_rewrite(self, key: RewriteKey, rewrite: Rewrite) -> None: ...


def run_rewriter(query: str, profile: Profile, rewriter: Rewriter, budget_ms: float | None = None) -> Rewrite:
    """The rewriter's answer. Never raises: a fault leaves the query as typed, with the status `failed`."""
    try:
        return rewriter.rewrite(query, profile, budget_ms)
    except BespeakError as error:
        return failed(query, rewriter, str(error))
    except Exception as error:  # whatever a rewriter does, the query goes on as typed; the reason is reported
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
    """Adds the words of the last turn that say most: the baseline that a language model has to beat."""

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
    """The words of a turn that the query lacks, in their order: names, words of its query and repeated ones first."""
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


class CachedRewriter:
    """Asks the cache first, and keeps what another rewriter makes; only whole rewrites of known users are kept."""

    def __init__(self, rewriter: Rewriter, cache: RewriteCache) -> None:
        self._rewriter, self._cache = rewriter, cache
        self.name, self.version = rewriter.name, rewriter.version

    def rewrite(self, query: str, profile: Profile, budget_ms: float | None = None) -> Rewrite:
        if profile.user is None:
            return self._rewriter.rewrite(query, profile, budget_ms)
        key = RewriteKey(profile.user, version_read(profile), model_of(self), query)
        try:
            if found := self._cache.get_rewrite(key):
                return replace(found, status=RewriteStatus.CACHED)
        except StoreError as error:
            return _with_note(self._rewriter.rewrite(query, profile, budget_ms), error)
        made = self._rewriter.rewrite(query, profile, budget_ms)
        if made.status != "full":
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
    """Of what a rewriter reads of a profile: a click on something else makes no rewrite stale."""
    read = [s.event_id for s in profile.statements], [(t.event_id, t.response) for t in profile.turns]
    return hashlib.blake2b(json.dumps(read).encode("ascii"), digest_size=16).hexdigest()


def _with_note(rewrite: Rewrite, error: StoreError) -> Rewrite:
    """The rewrite as it is; that it was not kept is said where it has no other reason to give."""
    return replace(rewrite, reason=rewrite.reason or f"not kept: {error}")


def choose_rewriter(
    name: Literal["model", "last-turn", "none"],
    cache_dir: Path,
    grounded: bool = True,
    threads: int = 2,
    encoder: Encoder | None = None,
    joint: bool = False,
) -> Rewriter:
    """The named rewriter; `encoder` chooses among more statements than it can read. `joint`: for several threads of one
    job, whose queries are read together; the rewrites are the same.

    Raises ModelError where the language model is not built, damaged, or built of old parts.
    """
    match name:
        case "none":
            return Unchanged()
        case "last-turn":
            return LastTurn()
        case "model":
            from bespeak.rewriting.batched import JointScorer
            from bespeak.rewriting.decoding import DECODING, LanguageModel
            from bespeak.rewriting.scorer import OnnxScorer

            folder, version = find_model(cache_dir)
            scorer = JointScorer(folder, threads) if joint else OnnxScorer(folder, threads)
            return LanguageModel(scorer, f"{version}.{DECODING}", grounded, encoder)
    assert_never(name)


def find_model(cache_dir: Path) -> tuple[Path, str]:
    """Folder and version of the built language model. Raises ModelError."""
    folder = cache_dir / "models" / MODEL
    if not folder.is_dir():
        raise ModelError(f"the language model is not built in {folder}: run {build_command(cache_dir)}")
    record = verify(folder, cache_dir)
    if record.made != made_from(cache_dir):
        raise ModelError(f"the language model in {folder} was built of older parts: run {build_command(cache_dir)}")
    return folder, record.version


def made_from(cache_dir: Path | None) -> str:
    """How the language model is built now: the digests of the parts in use, in a sentence."""
    folder, digests = parts_folder(cache_dir), Digests(cache_dir)
    parts = ", ".join(f"{name} {digests.sha256(folder / name)[:8]}" for name in COMPUTED_PARTS)
    digests.save()
    return f"bespeak models build, recipe {RECIPE}, of {parts}"


def build_command(cache_dir: Path) -> str:
    own = cache_dir / OWN_ADAPTER
    return f"'bespeak models build --adapter {own}'" if own.is_dir() else "'bespeak models build'"


def parts_folder(cache_dir: Path | None) -> Path:
    """The parts in use: those of an own adapter where the cache folder holds them, else the shipped ones."""
    own = cache_dir / OWN_ADAPTER if cache_dir else None
    return own if own and own.is_dir() else asset_folder("onnx_models") / MODEL
