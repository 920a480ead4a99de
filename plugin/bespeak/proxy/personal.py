"""The way of one personal search through the proxy: profile, gate, rewrite, the engine's answer, vectors, rank, page.

The call to the engine stands between `prepare` and `complete`, so that `_search` and `_msearch` share both.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from array import array
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, TypeVar

from bespeak.deadline import Deadline, Late
from bespeak.errors import EngineRefused
from bespeak.models.encoder import RememberingEncoder
from bespeak.parts import Parts, Profiles
from bespeak.pipeline import (
    EMBEDDED_CHARS,
    MAX_PREFERENCES,
    MAX_QUERY_CHARS,
    Context,
    added_clauses,
    context_texts,
    contextualise,
    explain,
    leave_alone,
    rank_window,
    steady,
    with_picked,
)
from bespeak.proxy.asking import Asker
from bespeak.proxy.body.query import Typed
from bespeak.proxy.body.reply import EngineHit as Found
from bespeak.proxy.body.reply import Reply, read_reply, write_page
from bespeak.proxy.body.search import Search, decline, typed_text
from bespeak.proxy.body.window import Widened as Asked
from bespeak.proxy.body.window import widen, words_body
from bespeak.proxy.bounds import Bounds, Breaker, Busy
from bespeak.proxy.chains import Chain, Chains
from bespeak.proxy.documents import Documents, Embedded, all_text
from bespeak.proxy.http.upstream import Headers, TooLarge, Upstream
from bespeak.proxy.metrics import Metrics
from bespeak.ranking.interleaving import Comparison, Side
from bespeak.ranking.rerank import Judge, holds_all
from bespeak.records import Clause, Hit, Profile, Ranked, RerankStatus, Rewrite, RewriteStatus, Term, UserKey
from bespeak.rewriting.rewriter import failed, rewrite_query
from bespeak.session import gate
from bespeak.settings import Settings

logger = logging.getLogger("bespeak.proxy")

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class Told:
    """What was done to a search, as the header `X-Bespeak` says it. No part of it holds a text of the user's."""

    rewrite: str = "off"
    rerank: str = "off"
    reason: str = ""
    query_id: str = ""

    @property
    def outcome(self) -> Literal["personalised", "declined", "failed"]:
        if self.rerank == "failed":
            return "failed"
        changed = self.rerank != "off" or self.rewrite in ("full", "cached")
        return "personalised" if changed or self.reason == "beyond_window" else "declined"

    def __str__(self) -> str:
        told = {"rewrite": self.rewrite, "rerank": self.rerank, "reason": self.reason, "query_id": self.query_id}
        return "; ".join(f"{name}={value}" for name, value in told.items() if value)


@dataclass(frozen=True, slots=True)
class Declined:
    """A search whose answer stays the engine's own. `query` is what was typed, where it is to be recorded."""

    told: Told
    query: str = ""


class Fault(Exception):
    """A stage failed; the client's own request has to be sent."""

    def __init__(self, stage: str) -> None:
        super().__init__(stage)
        self.stage = stage


@contextmanager
def stage(name: str) -> Iterator[None]:
    """Whatever goes wrong in it is a fault of this stage; the log names the kind of error and no content."""
    try:
        yield
    except Fault:
        raise
    except Exception as error:  # a fault of ours, of any kind, must not become the client's
        logger.warning("personalising failed at %s: %s", name, type(error).__name__)
        raise Fault(name) from error


@dataclass(frozen=True, slots=True)
class Personal:
    """A search that is personalised, with all that is known before the engine is asked."""

    search: Search
    user: UserKey
    profile: Profile
    typed: Typed
    chain: Chain
    asked: Asked
    session_id: str
    first: bool  # the chain begins here
    digest: bytes


class Personaliser:
    """Built once. Holds nothing of a request but the chains of pages."""

    def __init__(
        self,
        upstream: Upstream,
        profiles: Profiles,
        parts: Parts,
        documents: Documents | None,
        rewrites: Bounds,
        encodings: Bounds,
        reads: Bounds,
        chains: Chains,
        metrics: Metrics,
        typed_path: str = "",
        comparison: Comparison | None = None,
    ) -> None:
        """`documents` is None where there is no encoder: hits are then ordered by their words alone."""
        self._upstream, self._profiles, self._parts, self._documents = upstream, profiles, parts, documents
        self._rewrites, self._encodings, self._reads = rewrites, encodings, reads
        self._chains, self._typed_path, self._comparison = chains, typed_path, comparison
        self._metrics = metrics
        self._rewriting, self._reranking, self._profiling = Breaker(), Breaker(), Breaker()
        self._damage = ""
        for name, breaker in (("rewrite", self._rewriting), ("rerank", self._reranking), ("profile", self._profiling)):
            metrics.watch_breaker(name, partial(getattr, breaker, "open"))

    async def prepare(self, search: Search, user: UserKey, session_id: str, control: bool) -> Personal | Declined:
        """What to ask the engine for this person, or why nothing is changed. Raises Fault.

        `control`: the user belongs to the share that is recorded but not personalised.
        """
        if reason := decline(search):
            return Declined(Told(reason=reason))
        typed = typed_text(search, self._typed_path)
        if typed.reason:
            return Declined(Told(reason=typed.reason))
        if len(typed.text) > MAX_QUERY_CHARS:
            return Declined(Told(reason="too_long"))
        digest, begun = search.digest(user, session_id), self._chains.clock()
        chain = self._chains.get(user, digest) if search.offset else None
        if chain is not None:
            profile, first = Profile(user, session_id), False
        else:
            profile, first = await self._profile(user, session_id, typed.text), True
            begins = await self._begin(search, typed.text, profile, control)
            chain = replace(begins, begun=begun, consent=profile.consent)
        if chain.untouched:
            self._chains.put(user, digest, chain)
            told = Told(chain.rewrite.status, "off", chain.rewrite.reason, chain.query_id)
            return Declined(told, typed.text if chain.consent else "")
        with stage("plan"):
            asked = widen(search, self._parts.settings.window, typed, chain.clauses, f"bespeak-{digest.hex()[:16]}")
        return Personal(search, user, profile, typed, chain, asked, session_id, first, digest)

    async def _begin(self, search: Search, query: str, profile: Profile, control: bool) -> Chain:
        """What holds for this page and for those after it."""
        reason = "control" if control and profile.consent else leave_alone(query, profile)
        if reason:
            status: RewriteStatus = "off" if reason == "control" else "gated"
            return Chain(query_id(search), Rewrite(query, query, status=status, reason=reason), untouched=True)
        began = time.monotonic()
        rewrite = await self._rewrite(query, profile)
        asked = rewrite.status not in ("gated", "off")
        self._metrics.rewritten(rewrite.status, time.monotonic() - began if asked else None)
        with stage("plan"):
            picked, settings = self._parts.pick(query, profile), self._parts.settings
            # The last turn's words alone say too little to ask the engine once more.
            clauses = added_clauses(rewrite, profile, settings, picked) if rewrite.changed or picked else ()
        return Chain(query_id(search), rewrite, clauses, picked)

    def leave(self, search: Search, user: UserKey, session_id: str, told: Told) -> None:
        """The first page came as the engine's own: so will those after it, else a hit could come twice or never."""
        if not search.offset:
            rewrite = Rewrite("", "", status="off", reason=told.reason)
            chain = Chain(told.query_id, rewrite, untouched=True, begun=self._chains.clock())
            self._chains.put(user, search.digest(user, session_id), chain)

    async def contextualise(self, personal: Personal) -> Context:
        """The vectors of what is asked; needs no answer of the engine's. Raises Fault."""
        parts, settings = self._parts, self._parts.settings
        if parts.encoder is None or not personal.first or not personal.asked.window:
            return Context()
        rewrite, profile, picked = personal.chain.rewrite, personal.profile, personal.chain.picked
        with stage("encode"):
            if self._remembers(rewrite, profile, picked):
                return contextualise(rewrite, profile, parts, picked)
        return await self._guarded(
            "encode",
            self._reranking,
            lambda: self._encodings.run(
                in_time(
                    lambda _: contextualise(rewrite, profile, parts, picked),
                    settings.rerank_ms,
                ),
                settings.rerank_ms,
            ),
        )

    def _remembers(self, rewrite: Rewrite, profile: Profile, picked: Sequence[Term] | None) -> bool:
        """Whether all that is asked was encoded before, so that its vectors take no time."""
        parts, asked = self._parts, context_texts(rewrite, profile, self._parts, picked)
        known = isinstance(parts.encoder, RememberingEncoder) and parts.encoder.knows(asked, "query")
        reader = parts.reader(rewrite.query, profile)
        return known and (reader is None or reader.knows(rewrite.query, profile))

    async def complete(self, personal: Personal, context: Context, answer: str, asker: Headers) -> Completed:
        """The client's page of the engine's answer. Raises Fault."""
        with stage("engine_answer"):
            reply = read_reply(answer)
        search, chain, window = personal.search, personal.chain, personal.asked.window
        if not window:  # a page beyond it, in the engine's own order
            return Completed(answer, self._tell(chain, "off", "beyond_window"), reply.hits)
        if chain.order:
            order = in_chain(reply, window, chain)
            found = Order(order, "full", sides=sides_in_chain(reply, order, chain))
        else:
            began = time.monotonic()
            found = await self._rank(personal, context, reply, asker)
            self._metrics.reranked(found.status, time.monotonic() - began)
        order = found.order
        with stage("page"):
            told = self._tell(chain, found.status, also=found.reason)
            added = self._explained(personal, reply, order, found, told) if search.explained else {}
            text = write_page(reply, order, search, added)
        keys = array("q", (place_key(reply.hits[i]) for i in order[:window]))
        sides = bytes(found.sides.get(i, 0) for i in order[:window]) if found.sides else b""
        self._chains.put(personal.user, personal.digest, replace(chain, order=keys, sides=sides))
        page = order[search.offset : search.offset + search.size]
        shown = tuple(replace(reply.hits[i], noted=self._note(found, i)) for i in page)
        return Completed(text, told, shown)

    async def _rank(self, personal: Personal, context: Context, reply: Reply, asker: Headers) -> Order:
        """All hits of the answer: pinned ones, the window in this person's order, then the rest as it came."""
        profile = personal.profile
        inside = range(min(personal.asked.window, len(reply.hits)))
        pinned = [i for i in inside if reply.hits[i].pinned]
        window = [i for i in inside if not reply.hits[i].pinned]
        hits = [reply.hits[i] for i in window]
        compared = self._compared(personal)
        sides = compared.sides if compared else (Side("", self._parts.settings),)
        clauses = [self._clauses(personal, side) for side in sides]
        asked = list(dict.fromkeys(clauses))
        words, embedded = await self._guarded(
            "embed", self._reranking, lambda: self._ask_about(personal, asked, hits, asker)
        )
        with stage("rank"):
            rankings, ranked, placed, judge = [], {}, list[int](), None
            learnt, damage = self._parts.learnt_for(profile)
            said = with_picked(personal.chain.rewrite, personal.chain.picked or ())
            holds = holds_all(said.text, lambda hit: all_text(hit.source)[:EMBEDDED_CHARS]) if learnt else None
            for side, added in zip(sides, clauses, strict=True):
                read = [
                    Hit(hit.doc_id, hit.score + score, i, hit.source, vector)
                    for i, hit, score, vector in zip(
                        window, hits, words[asked.index(added)], embedded.hits, strict=True
                    )
                ]
                if side.settings is None:
                    rankings.append(list(window))
                    continue
                own = steady(read, self._context(personal, context, side.settings))
                ranking, user, taste = rank_window(read, profile, own, embedded.liked, side.settings, learnt, holds)
                rankings.append([one.hit.rank for one in ranking])
                ranked = {one.hit.rank: one for one in ranking}
                if personal.search.explained:
                    judge = Judge.over(read, side.settings.weights, own.query, user, said, taste)
            order = rankings[0]
            if compared:
                order, placed = compared.draft(rankings, personal.user, personal.digest.hex())
        whole = self._documents is None or all(vector is not None for vector in embedded.hits)
        return Order(
            [*pinned, *order, *range(len(inside), len(reply.hits))],
            "full" if whole else "partial",
            ranked,
            judge,
            {i: side + 1 for i, side in zip(order, placed, strict=False)},
            reason=self._warned(damage) and "learnt_unreadable",
        )

    def _warned(self, damage: str) -> str:
        """Once, not at every search."""
        if damage and damage != self._damage:
            logger.warning("%s", damage)
        self._damage = damage
        return damage

    def _compared(self, personal: Personal) -> Comparison | None:
        """What is compared here: nothing where words of ours found hits, or where somebody looks at scores."""
        search = personal.search
        return None if search.explained or search.mode == "recall" else self._comparison

    def _clauses(self, personal: Personal, side: Side) -> tuple[Clause, ...]:
        """What is added to the query's words for this side; the chain's own where nothing is compared."""
        chain = personal.chain
        if not side.name or not chain.clauses:
            return chain.clauses
        return added_clauses(chain.rewrite, personal.profile, side.settings, chain.picked) if side.settings else ()

    def _context(self, personal: Personal, context: Context, settings: Settings) -> Context:
        """The vectors of what is asked, mixed by these settings; all their texts are encoded already."""
        if settings == self._parts.settings or context.query is None:
            return context
        chain, parts = personal.chain, replace(self._parts, settings=settings)
        return contextualise(chain.rewrite, personal.profile, parts, chain.picked)

    def _note(self, found: Order, i: int) -> dict[str, Any]:
        """What the impression of a hit tells: its scores where all have them, and which side put it there."""
        noted: dict[str, Any] = {}
        if i in found.ranked and found.status == "full":
            noted["scores"] = [round(score, 4) for score in found.ranked[i].scores]
        if self._comparison and found.sides.get(i):
            noted |= {"compared": self._comparison.name, "side": self._comparison.sides[found.sides[i] - 1].name}
        return noted

    async def _ask_about(
        self, personal: Personal, clauses: Sequence[Sequence[Clause]], hits: Sequence[Found], asker: Headers
    ) -> tuple[list[list[float]], Embedded]:
        """What each of `clauses` scores in the hits, and the hits' vectors, at once and within the budget."""
        deadline, whose = Deadline.after_ms(self._parts.settings.rerank_ms), Asker.of(personal.search, asker)
        liked = [preference.doc_id for preference in personal.profile.preferences[:MAX_PREFERENCES]]
        bodies = [words_body(personal.search, personal.typed, some, hits) for some in clauses]
        words = asyncio.gather(*(score_words(self._upstream, body, hits, whose, deadline) for body in bodies))
        embedding = self._documents.embed(hits, liked, whose, deadline) if self._documents else no_vectors(hits)
        return await both(words, embedding)

    def _explained(
        self, personal: Personal, reply: Reply, order: Sequence[int], found: Order, told: Told
    ) -> dict[str, object]:
        """The answer's member `bespeak`: what was done to the search, and to each hit of the page."""
        search, rewrite = personal.search, personal.chain.rewrite
        page = list(order[search.offset : search.offset + search.size])
        ranked = {i: found.ranked[i] for i in page if i in found.ranked}
        if found.judge:
            judged = explain(list(ranked.values()), found.judge, found.judge.rewrite, lambda hit: all_text(hit.source))
            ranked = {r.hit.rank: r for r in judged}
        return {
            "bespeak": {
                "query": rewrite.query,
                "rewrite": {
                    "text": rewrite.text,
                    "status": rewrite.status,
                    "reason": rewrite.reason,
                    "terms": [term_told(term) for term in rewrite.terms],
                },
                "rerank": told.rerank,
                "reason": told.reason,
                "window": personal.asked.window,
                "query_id": told.query_id,
                "hits": [hit_told(reply, i, ranked.get(i)) for i in page],
            }
        }

    async def _profile(self, user: UserKey, session_id: str, query: str) -> Profile:
        profile = await self._guarded(
            "profile",
            self._profiling,
            lambda: self._reads.run(
                lambda _: self._profiles.profile(user, session_id, datetime.now(UTC)), self._parts.settings.profile_ms
            ),
        )
        return without_itself(profile, query)

    async def _rewrite(self, query: str, profile: Profile) -> Rewrite:
        """Never raises: without a rewrite the search goes on as typed."""
        rewriter, budget_ms = self._parts.rewriter, self._parts.settings.rewrite_ms
        if reason := gate.decline(query, profile):
            return Rewrite(query, query, status="gated", reason=reason)
        if not self._rewriting.admits():
            return Rewrite(query, query, status="off", reason="resting")
        try:
            made = await self._rewrites.run(
                in_time(lambda within: rewrite_query(query, profile, rewriter, within.left_s * 1000), budget_ms),
                budget_ms,
            )
        except Busy as error:
            return Rewrite(query, query, status="late", reason=str(error))
        except Late as error:
            made = Rewrite(query, query, status="late", reason=str(error))
        except Exception as error:  # a fault of ours, of any kind, must not become the client's
            logger.warning("rewriting failed: %s", type(error).__name__)
            made = failed(query, rewriter, type(error).__name__)
        if made.status in ("late", "failed"):
            self._rewriting.failed()
        else:
            self._rewriting.succeeded()
        return made

    async def _guarded(self, name: str, breaker: Breaker, work: Callable[[], Awaitable[T]]) -> T:
        """Raises Fault: the stage's name, with `_late`, `_busy` or `_resting` where it had no time or no chance."""
        if not breaker.admits():
            raise Fault(f"{name}_resting")
        try:
            done = await work()
        except Busy as error:
            raise Fault(f"{name}_busy") from error
        except (Late, TimeoutError) as error:
            breaker.failed()
            raise Fault(f"{name}_late") from error
        except (EngineRefused, TooLarge) as error:  # what this client may not ask says nothing of other clients
            raise Fault(f"{name}_refused") from error
        except Exception as error:  # a fault of ours, of any kind, must not become the client's
            breaker.failed()
            logger.warning("personalising failed at %s: %s", name, type(error).__name__)
            raise Fault(name) from error
        breaker.succeeded()
        return done

    def _tell(self, chain: Chain, rerank: RerankStatus, reason: str = "", also: str = "") -> Told:
        rewrite = chain.rewrite
        because = rewrite.reason if rewrite.status in ("gated", "off") else ""
        return Told(rewrite.status, rerank, ",".join(filter(None, (reason or because, also))), chain.query_id)


@dataclass(frozen=True, slots=True)
class Completed:
    """An answer for the client, what was done to it, and the hits that it shows, in their order."""

    text: str
    told: Told
    shown: tuple[Found, ...]


@dataclass(frozen=True, slots=True)
class Order:
    """Indices of an answer's hits in their new order, and for those of the window how they came there.

    `sides` says of what was compared which side put a hit there, from 1, `reason` what was left out.
    """

    order: list[int]
    status: RerankStatus
    ranked: Mapping[int, Ranked] = field(default_factory=dict)
    judge: Judge | None = None
    sides: Mapping[int, int] = field(default_factory=dict)
    reason: str = ""


async def score_words(
    upstream: Upstream, body: Mapping[str, object] | None, hits: Sequence[Found], asker: Asker, deadline: Deadline
) -> list[float]:
    """What `body` scores in each hit; 0 where it does not match. Raises EngineError and TimeoutError."""
    if body is None:
        return [0.0] * len(hits)
    found = {(hit["_index"], hit["_id"]): float(hit["_score"]) for hit in await asker.search(upstream, body, deadline)}
    return [found.get((hit.index, hit.doc_id), 0.0) for hit in hits]


def in_time(function: Callable[[Deadline], T], budget_ms: float) -> Callable[[Deadline], T]:
    """A run that waited so long for others that it would only be late is not begun, and is no fault of the stage."""

    def begin(within: Deadline) -> T:
        if within.left_s * 1000 < budget_ms / 4:
            raise Busy("no model run was free in time")
        return function(within)

    return begin


async def no_vectors(hits: Sequence[Found]) -> Embedded:
    return Embedded((None,) * len(hits), {})


async def both(first: Awaitable[T], second: Awaitable[U]) -> tuple[T, U]:
    """Both at once; where the first fails the second is ended."""
    other = asyncio.ensure_future(second)
    try:
        return await first, await other
    finally:
        if not other.done():
            other.cancel()
        await asyncio.wait([other])
        if not other.cancelled():
            other.exception()


def in_chain(reply: Reply, window: int, chain: Chain) -> list[int]:
    """As the first page ranked them; hits that came in since follow, then what is beyond the window."""
    places = {key: place for place, key in enumerate(chain.order)}
    inside = range(min(window, len(reply.hits)))
    keys = [place_key(reply.hits[i]) for i in inside]
    return [*sorted(inside, key=lambda i: (places.get(keys[i], len(places)), i)), *range(window, len(reply.hits))]


def sides_in_chain(reply: Reply, order: Sequence[int], chain: Chain) -> dict[int, int]:
    """As on the first page, for the hits that it had."""
    sides = dict(zip(chain.order, chain.sides, strict=False))
    return {i: sides.get(place_key(reply.hits[i]), 0) for i in order} if sides else {}


def place_key(hit: Found) -> int:
    """Of one process alone: a chain of thousands of hits is small by it."""
    return hash((hit.index, hit.doc_id))


def without_itself(profile: Profile, query: str) -> Profile:
    """Asked again, or for a later page, a query is not its own earlier turn."""
    turns = profile.turns
    if turns and not turns[-1].response and turns[-1].query.split() == query.split():
        return replace(profile, turns=turns[:-1])
    return profile


def query_id(search: Search) -> str:
    """The client's own where it is one, else a new one."""
    given = search.ubi.get("query_id")
    fit = isinstance(given, str) and re.fullmatch(r"[\w.:-]{1,100}", given, re.ASCII)
    return given if fit and isinstance(given, str) else uuid.uuid4().hex


def term_told(term: Term) -> dict[str, str]:
    return {"text": term.text, "source": term.source, "event_id": term.event_id, "evidence": term.evidence}


def hit_told(reply: Reply, i: int, ranked: Ranked | None) -> dict[str, object]:
    """How one hit came to its place; `engine` is its place and score in the engine's own answer."""
    hit = reply.hits[i]
    told: dict[str, object] = {"_index": hit.index, "_id": hit.doc_id, "engine": {"rank": i + 1, "score": hit.score}}
    if ranked is None:
        return told
    names = ("lexical", "embedding", "user")
    because = [
        {"text": e.text, "column": e.column, "share": round(e.share, 4), "action": e.action, "event_id": e.event_id}
        for e in ranked.evidence
    ]
    return told | {
        "score": round(ranked.score, 6),
        "scores": dict(zip(names, (round(value, 6) for value in ranked.scores), strict=True)),
        "because": because,
    }
