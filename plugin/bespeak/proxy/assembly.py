"""Puts a proxy together of its parts, for `bespeak serve` and for who mounts it in an app of their own."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

from bespeak.errors import EngineError
from bespeak.models.encoder import RememberingEncoder
from bespeak.models.vectors import VectorCache
from bespeak.parts import Parts
from bespeak.profiles.events import EventStore
from bespeak.proxy.ahead import Ahead
from bespeak.proxy.app import Proxy
from bespeak.proxy.bounds import Bounds
from bespeak.proxy.chains import Chains
from bespeak.proxy.documents import Documents
from bespeak.proxy.http.upstream import Upstream
from bespeak.proxy.identity import Audience, Identify, JwtKey, Share
from bespeak.proxy.metrics import Metrics
from bespeak.proxy.personal import Personaliser
from bespeak.proxy.recording import Recorder
from bespeak.proxy.routes import READY_S, AskRewrite, Routes
from bespeak.proxy.searches import Searches
from bespeak.ranking.interleaving import Comparison
from bespeak.records import Rewrite, UserKey
from bespeak.rewriting.rewriter import rewrite_query

PROFILE_READS = 8
"""Profiles read at once; a store that hangs takes no more threads than this."""


def assemble(
    upstream: Upstream,
    store: EventStore,
    parts: Parts,
    vectors: Path,
    *,
    token: str | None = None,
    jwt_key: JwtKey | None = None,
    share: float = 1.0,
    model_runs: int | None = None,
    typed_path: str = "",
    comparison: Comparison | None = None,
) -> Proxy:
    """A proxy in front of `upstream` that personalises by `store` and `parts`, both of which it closes at its end.

    `vectors` is the file that vectors of documents are kept in. `token` is for Bespeak's own routes, `jwt_key` what
    users are signed with; `share` of the users are personalised. At most `model_runs` rewrites, and as many encodings,
    run at once; half of the cores if not given. `typed_path` says where the user's text stands in queries that hold
    more than one. `comparison` names two settings that pages are drafted from, or users are split between.
    """
    encoder = RememberingEncoder(parts.encoder) if parts.encoder else None
    cache = VectorCache(vectors)
    rewrites, encodings, reads = Bounds(model_runs), Bounds(model_runs), Bounds(PROFILE_READS)
    chains, metrics = Chains(), Metrics()
    documents = Documents(upstream, parts.encoder, cache, encodings) if parts.encoder else None
    context = parts.context and replace(parts.context, encoder=RememberingEncoder(parts.context.encoder))
    parts = replace(parts, encoder=encoder, context=context)
    personaliser = Personaliser(
        upstream, store, parts, documents, rewrites, encodings, reads, chains, metrics, typed_path, comparison
    )
    recorder, users = Recorder(store), Share(share)
    metrics.watch_recorder(lambda: recorder.counts)
    metrics.watch_share(lambda: users.value)
    ahead = Ahead(parts.rewriter, store, chains, (rewrites, encodings))
    searches = Searches(upstream, personaliser, Audience(Identify(jwt_key), users), recorder, metrics, ahead)
    # In this order: what is read ahead ends before the rewriter forgets.
    forgets: list[Callable[[UserKey], object]] = [chains.forget, ahead.forget, parts.rewriter.forget]
    forgets += [encoder.forget] if encoder else []
    forgets += [context.forget] if context else []
    forgets += [parts.terms.forget] if parts.terms else []
    own = Routes(
        store=store, recorder=recorder, metrics=metrics, share=users, rewrite=rewriting(store, parts, rewrites),
        ready=lambda: missing(upstream), token=token, forgets=forgets,
        learnt=lambda tenant: parts.learnt is not None and parts.learnt.holds(tenant),
        answered=lambda user, session_id: ahead.read_session(user, session_id) if users.includes(user) else None,
    )  # fmt: skip
    closing = [
        *([documents.close] if documents else []),
        recorder.close,
        own.close,
        ahead.close,
        rewrites.close,
        encodings.close,
        cache.close,
        reads.close,
        store.close,
    ]
    return Proxy(upstream, searches=searches, own=own, passed=metrics.passed, closing=closing)


def rewriting(store: EventStore, parts: Parts, models: Bounds) -> AskRewrite:
    """What the route `rewrite` asks. Raises Late, Busy and StoreError."""

    async def rewrite(query: str, user: UserKey | None, session_id: str) -> Rewrite:
        profile = await asyncio.to_thread(store.profile, user, session_id, datetime.now(UTC))
        return await models.run(
            lambda within: rewrite_query(query, profile, parts.rewriter, within.left_s * 1000),
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
