"""What is opened once and used for every query: the models, what was learnt, and the settings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, TypeAlias, TypeVar, get_args

from bespeak.errors import ModelError, UsageError
from bespeak.records import Profile, UserKey
from bespeak.rewriting.opening import choose_rewriter
from bespeak.rewriting.rewriter import CachedRewriter, LastTurn, RewriteCache, Rewriter
from bespeak.settings import Settings

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder
    from bespeak.ranking.learning import Learnt
    from bespeak.session.reader import ContextReader


class LearntSource(Protocol):
    """What was learnt from users' behaviour, such as the folder that `bespeak learn` writes to."""

    def of(self, tenant: str) -> tuple[Learnt | None, str]:
        """What was learnt from a tenant's users, and why it cannot be used; None and "" if nothing was learnt."""
        ...

    def holds(self, tenant: str) -> bool: ...


@dataclass(frozen=True, slots=True)
class Parts:
    """What is built once and used for every query. Without an encoder, hits get no embedding and no user score."""

    settings: Settings
    rewriter: Rewriter
    encoder: Encoder | None
    learnt: LearntSource | None = None
    context: ContextReader | None = field(default=None, kw_only=True)

    def learnt_for(self, profile: Profile) -> tuple[Learnt | None, str]:
        """What was learnt from the users of the profile's tenant, and why it cannot be used."""
        if self.learnt is None or profile.user is None or not profile.preferences:
            return None, ""
        return self.learnt.of(profile.user.tenant)


class Profiles(Protocol):
    """A source of profiles, such as the event store."""

    def profile(self, user: UserKey | None, session_id: str, now: datetime) -> Profile: ...


RewriterName: TypeAlias = Literal["model", "last-turn", "none"]

Warn: TypeAlias = Callable[[str], object]
"""Takes one sentence for the person who runs the program."""

Model = TypeVar("Model")


@dataclass(frozen=True, slots=True)
class Models:
    """Which models to open."""

    # Folder of the models made on this machine.
    cache: Path
    # The language model, the words of the last turn, no rewriter, or one of your own.
    rewriter: RewriterName | Rewriter = "model"
    # A model's name or folder, or one of your own; None: the shipped one, "none": no embeddings.
    encoder: str | Encoder | None = None
    # Threads per run of an encoder; None: one per core, at most 4.
    encoder_threads: int | None = None

    def __post_init__(self) -> None:
        if isinstance(self.rewriter, str) and self.rewriter not in get_args(RewriterName):
            names = ", ".join(get_args(RewriterName))
            raise UsageError(f"there is no rewriter {self.rewriter!r}: choose one of {names}, or pass one of your own")
        for name, model, method in (("rewriter", self.rewriter, "rewrite"), ("encoder", self.encoder, "encode")):
            if not isinstance(model, str) and not hasattr(model, method) and (name, model) != ("encoder", None):
                raise UsageError(f"{name} must be a name or have the method {method}: {type(model).__name__} has not")


def open_parts(
    models: Models,
    settings: Settings,
    *,
    rewrites: RewriteCache | None = None,
    learnt: Path | None = None,
    warn: Warn | None = None,
) -> Parts:
    """Opens the models and what was learnt.

    `rewrites` caches rewrites; `learnt` is the folder that `bespeak learn` writes to. A model that
    cannot be opened is left out, and `warn` gets a sentence that says which one and what that costs. Without `warn`,
    raises ModelError.
    """
    from bespeak.ranking.learning import LearntFolder

    encoder = open_encoder(models, warn)
    context = open_context(models, warn)
    rewriter = open_rewriter(models, encoder, context, rewrites, warn)
    return Parts(settings, rewriter, encoder, LearntFolder(learnt) if learnt else None, context=context)


def open_context(models: Models, warn: Warn | None = None) -> ContextReader | None:
    """Opens the reader of sessions; None if it cannot be opened and `warn` is given. Otherwise raises ModelError."""
    from bespeak.session.reader import load_reader

    cost = "Without the context reader, which decides what a query depends on"
    return _open(partial(load_reader, models.cache, models.encoder_threads), cost, warn)


def open_encoder(models: Models, warn: Warn | None = None) -> Encoder | None:
    """Opens the encoder; None if it is "none", or cannot be opened and `warn` is given. Otherwise raises ModelError."""
    from bespeak.models.encoder import load_encoder

    named = models.encoder
    if named == "none":
        return None
    if named is None or isinstance(named, str):
        return _open(partial(load_encoder, named, models.cache, models.encoder_threads), "Without embeddings", warn)
    return named


def open_rewriter(
    models: Models,
    encoder: Encoder | None,
    context: ContextReader | None,
    rewrites: RewriteCache | None = None,
    warn: Warn | None = None,
) -> Rewriter:
    """Opens the rewriter. With `warn`, the words of the last turn replace a missing language model.

    `encoder` chooses the statements to read if the user made more than the model can read, and `context` the words of
    the session that a rewrite may use. Without `warn`, raises ModelError.
    """
    rewriter: Rewriter
    if isinstance(models.rewriter, str):
        load = partial(choose_rewriter, models.rewriter, models.cache, encoder=encoder, context=context)
        cost = "Without the language model, with the words of the last turn instead"
        rewriter = _open(load, cost, warn) or LastTurn()
    else:
        rewriter = models.rewriter
    return CachedRewriter(rewriter, rewrites) if rewrites is not None else rewriter


def _open(load: Callable[[], Model], cost: str, warn: Warn | None) -> Model | None:
    try:
        return load()
    except ModelError as error:
        if warn is None:
            raise
        warn(f"{cost}: {error}")
        return None


def remember_vectors(parts: Parts) -> Parts:
    """The same parts, keeping the latest vectors in memory, for a process that answers many queries."""
    from bespeak.models.encoder import RememberingEncoder

    encoder = RememberingEncoder(parts.encoder) if parts.encoder else None
    return replace(parts, encoder=encoder)


def forget_user(parts: Parts, user: UserKey) -> None:
    """Drops everything that the parts keep in memory about a user."""
    from bespeak.models.encoder import RememberingEncoder

    parts.rewriter.forget(user)
    if isinstance(parts.encoder, RememberingEncoder):
        parts.encoder.forget(user)
    if parts.context:
        parts.context.forget(user)
