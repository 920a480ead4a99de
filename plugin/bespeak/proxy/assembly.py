"""Assembles a proxy from its parts, for `bespeak serve` and for apps that mount it."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from bespeak.errors import EngineError
from bespeak.models.vectors import VectorCache
from bespeak.parts import Parts, forget_user, remember_vectors
from bespeak.profiles.stores import EventStore
from bespeak.proxy.ahead import ReadAhead
from bespeak.proxy.app import Proxy
from bespeak.proxy.bounds import Bounds, Runs
from bespeak.proxy.chains import Chains
from bespeak.proxy.documents import Documents
from bespeak.proxy.http.upstream import Upstream
from bespeak.proxy.identity import Audience, Identify, JwtKey, Share
from bespeak.proxy.metrics import Metrics
from bespeak.proxy.personal import Personaliser, Rules, Shared
from bespeak.proxy.recording import Recorder
from bespeak.proxy.routes import READY_S, AskRewrite, Hooks, Routes
from bespeak.proxy.searches import Searches
from bespeak.proxy.user_data import UserData
from bespeak.ranking.interleaving import Comparison
from bespeak.reading import rewrite_query
from bespeak.records import Rewrite, UserKey


@dataclass(frozen=True, slots=True)
class ProxyOptions:
    """The options of a proxy beyond its parts."""

    token: str | None = None  # for Bespeak's own routes; None: only this machine may use them
    jwt_key: JwtKey | None = None  # users are named in tokens signed with it; None: by plain headers
    share: float = 1.0  # of the users, whose searches are personalised
    model_runs: int | None = None  # rewrites at once, and encodings at once; None: half of the cores
    typed_path: str = ""  # path of the user's text in queries with several texts
    comparison: Comparison | None = None  # two settings that share pages, or users


def assemble(
    upstream: Upstream, store: EventStore, parts: Parts, vectors: Path, options: ProxyOptions | None = None
) -> Proxy:
    """A proxy in front of `upstream` that personalises with `store` and `parts`; it closes the store at its end.

    `vectors` is the file in which vectors of documents are kept.
    """
    options = options or ProxyOptions()
    cache, runs, chains, metrics = VectorCache(vectors), Runs.bounded(options.model_runs), Chains(), Metrics()
    documents = Documents(upstream, parts.encoder, cache, runs.encodings) if parts.encoder else None
    parts = remember_vectors(parts)
    shared, rules = Shared(runs, chains, metrics), Rules(options.typed_path, options.comparison)
    personaliser = Personaliser(upstream, store, parts, documents, shared, rules)
    recorder, share = Recorder(store), Share(options.share)
    metrics.watch_recorder(lambda: recorder.counts)
    metrics.watch_share(lambda: share.value)
    ahead = ReadAhead(parts.rewriter, store, chains, (runs.rewrites, runs.encodings))
    audience = Audience(Identify(options.jwt_key), share)
    # Reading ahead ends before the rewriter forgets.
    data = UserData(
        store, recorder, [chains.forget, ahead.forget, partial(forget_user, parts)], partial(is_learnt, parts)
    )
    hooks = Hooks(
        rewriting(store, parts, runs.rewrites),
        lambda: missing(upstream),
        lambda user, session_id: ahead.read_session(user, session_id) if share.includes(user) else None,
    )
    own = Routes(data, hooks, metrics, share, options.token)
    closing = [
        *([documents.close] if documents else []), recorder.close, own.close, ahead.close,
        runs.rewrites.close, runs.encodings.close, cache.close, runs.reads.close, store.close,
    ]  # fmt: skip
    searches = Searches(upstream, personaliser, audience, recorder, metrics, ahead)
    return Proxy(upstream, searches=searches, own=own, passed=metrics.passed, closing=closing)


def is_learnt(parts: Parts, tenant: str) -> bool:
    """Whether something was learnt from the tenant's users."""
    return parts.learnt is not None and parts.learnt.holds(tenant)


def rewriting(store: EventStore, parts: Parts, models: Bounds) -> AskRewrite:
    """The rewrite for the route `rewrite`. Raises Late, Busy, ModelError and StoreError."""

    async def rewrite(query: str, user: UserKey | None, session_id: str) -> Rewrite:
        profile = await asyncio.to_thread(store.profile, user, session_id, datetime.now(UTC))
        return await models.run(
            lambda within: rewrite_query(query, profile, parts.rewriter, parts.context, within.left_s * 1000),
            parts.settings.rewrite_ms,
        )

    return rewrite


async def missing(upstream: Upstream) -> Sequence[str]:
    """Why the proxy is not ready, a sentence each."""
    try:
        async with asyncio.timeout(READY_S):
            answer = await upstream.send("GET", b"/", [(b"accept", b"application/json")], None)
            await answer.close()
    except (EngineError, TimeoutError):
        return ["Elasticsearch does not answer"]
    return [] if answer.status < 500 else [f"Elasticsearch answers with status {answer.status}"]
