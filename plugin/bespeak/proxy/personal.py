"""The path of one personal search through the proxy: profile, read, the engine's answer, vectors, rank, page.

The request to the engine is sent between `prepare` and `complete`, so that `_search` and `_msearch` share both.
`reading.py` and `pipeline.py` decide what a query means and how hits are ranked; this file adds budgets, breakers and
pages.
"""

from __future__ import annotations

import asyncio
import logging
import re
import time
import uuid
from array import array
from collections.abc import Awaitable, Callable, Container, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from bespeak.deadline import Deadline, Late
from bespeak.document import hit_text
from bespeak.errors import EngineRefused
from bespeak.models.encoder import encode_until
from bespeak.parts import Parts, Profiles
from bespeak.pipeline import Ranking, liked_ids, liked_titles, rank
from bespeak.proxy.asking import Asker
from bespeak.proxy.body.explanation import explain_search
from bespeak.proxy.body.query import Typed
from bespeak.proxy.body.reply import EngineHit, Reply, read_reply, write_page
from bespeak.proxy.body.search import Search, decline_reordering, typed_text
from bespeak.proxy.body.window import WidenedSearch, widen, words_body
from bespeak.proxy.bounds import Breaker, Busy, Runs
from bespeak.proxy.chains import Chain, Chains
from bespeak.proxy.documents import Documents
from bespeak.proxy.http.upstream import Headers, TooLarge, Upstream
from bespeak.proxy.metrics import Metrics
from bespeak.proxy.outcome import Completed, Declined, Fault, Outcome, stage
from bespeak.ranking.interleaving import Comparison, Side
from bespeak.ranking.rerank import Window
from bespeak.ranking.tuned import EMBEDDED_CHARS
from bespeak.ranking.vectors import Embedded
from bespeak.reading import (
    MAX_QUERY_CHARS,
    Reading,
    clauses,
    encode_reading,
    is_remembered,
    open_reading,
    read_context,
    rewrite_reading,
)
from bespeak.records import Clause, Hit, Profile, Ranked, Rewrite, UserKey, Vector
from bespeak.rewriting.rewriter import failed
from bespeak.statuses import Ending, Reason, RerankStatus, RewriteStatus, Stage

logger = logging.getLogger("bespeak.proxy")

T = TypeVar("T")
U = TypeVar("U")


@dataclass(frozen=True, slots=True)
class PersonalSearch:
    """A search to personalise, with everything known before the engine answers."""

    search: Search
    user: UserKey
    typed: Typed
    chain: Chain
    widened: WidenedSearch
    session_id: str
    reading: Reading | None  # None for a later page, which follows the chain
    digest: bytes


@dataclass(frozen=True, slots=True)
class Shared:
    """What all requests share."""

    runs: Runs
    chains: Chains
    metrics: Metrics


@dataclass(frozen=True, slots=True)
class Rules:
    """What the operator decided for all searches."""

    typed_path: str = ""  # path of the user's text in queries that contain several texts
    comparison: Comparison | None = None


class Personaliser:
    """Personalises searches within their budgets. Keeps nothing of a request except the chains of pages."""

    def __init__(
        self,
        upstream: Upstream,
        profiles: Profiles,
        parts: Parts,
        documents: Documents | None,
        shared: Shared,
        rules: Rules,
    ) -> None:
        """`documents` is None without an encoder: hits are then ordered by their words alone."""
        self._upstream, self._profiles, self._parts, self._documents = upstream, profiles, parts, documents
        self._shared, self._rules, self._chains = shared, rules, shared.chains
        self._rewriting, self._reranking, self._profiling, self._reading = (Breaker() for _ in range(4))
        self._damage = ""
        for name, breaker in (
            ("profile", self._profiling),
            ("session", self._reading),
            ("rewrite", self._rewriting),
            ("rerank", self._reranking),
        ):
            shared.metrics.watch_breaker(name, partial(getattr, breaker, "open"))

    async def prepare(self, search: Search, user: UserKey, session_id: str, control: bool) -> PersonalSearch | Declined:
        """What to ask the engine for this user, or why the search stays untouched. Raises Fault.

        `control` means that the user is recorded but not personalised.
        """
        typed = typed_text(search, self._rules.typed_path)
        if reason := decline_reordering(search) or typed.reason or too_long(typed):
            return Declined(Outcome(reason=reason))
        digest, begun = search.digest(user, session_id), self._chains.clock()
        chain = self._chains.get(user, digest) if search.offset else None
        reading = None
        if chain is None:
            reading = open_reading(typed.text, await self._profile(user, session_id))
            reading, begins = await self._begin(search, reading, control)
            chain = replace(begins, begun=begun, consent=reading.profile.consent)
        if chain.untouched:
            self._chains.put(user, digest, chain)
            outcome = Outcome(chain.rewrite.status, RerankStatus.OFF, chain.rewrite.reason, chain.query_id)
            return Declined(outcome, typed.text if chain.consent else "")
        with stage(Stage.PLAN):
            window, preference = self._parts.settings.window, f"bespeak-{digest.hex()[:16]}"
            widened = widen(search, window, typed, chain.clauses, preference)
        return PersonalSearch(search, user, typed, chain, widened, session_id, reading, digest)

    async def _begin(self, search: Search, reading: Reading, control: bool) -> tuple[Reading, Chain]:
        """Reads the query of a first page, and begins the chain that later pages follow."""
        is_control = control and reading.profile.consent
        if reason := Reason.CONTROL if is_control else reading.declined:
            status = RewriteStatus.OFF if is_control else RewriteStatus.GATED
            rewrite = Rewrite(reading.query, reading.query, status=status, reason=reason)
            return reading, Chain(query_id(search), rewrite, untouched=True)
        reading = await self._read_context(reading)
        if reading.declined:
            self._shared.metrics.rewritten(reading.rewrite.status, reading.rewrite.reason)
            return reading, Chain(query_id(search), reading.rewrite, untouched=True)
        began = time.monotonic()
        rewrite = await self._rewrite(reading)
        ran = rewrite.status not in (RewriteStatus.GATED, RewriteStatus.OFF)
        self._shared.metrics.rewritten(rewrite.status, rewrite.reason, time.monotonic() - began if ran else None)
        with stage(Stage.PLAN):
            reading = replace(reading, rewrite=rewrite)
            return reading, Chain(query_id(search), rewrite, clauses(reading, self._parts.settings))

    async def _read_context(self, reading: Reading) -> Reading:
        """The reading with what the query leans on. Raises Fault."""
        reader, budget_ms = self._parts.context, self._parts.settings.rerank_ms
        if reading.gate or reader is None:
            return reading
        with stage(Stage.ENCODE):
            if reader.knows(reading.query, reading.profile):
                return read_context(reading, reader)
        run = in_time(lambda _: read_context(reading, reader), budget_ms)
        encodings = self._shared.runs.encodings
        return await self._guarded(Stage.ENCODE, self._reading, lambda: encodings.run(run, budget_ms))

    def leave(self, search: Search, user: UserKey, session_id: str, outcome: Outcome) -> None:
        """Keeps later pages in the engine's order too, so that no hit appears twice or never."""
        if not search.offset:
            rewrite = Rewrite("", "", status=RewriteStatus.OFF, reason=outcome.reason)
            chain = Chain(outcome.query_id, rewrite, untouched=True, begun=self._chains.clock())
            self._chains.put(user, search.digest(user, session_id), chain)

    async def encode(self, personal: PersonalSearch) -> Reading | None:
        """The reading with its vectors. Does not need the engine's answer. Raises Fault."""
        reading, parts, budget_ms = personal.reading, self._parts, self._parts.settings.rerank_ms
        if reading is None or parts.encoder is None or not personal.widened.window:
            return reading
        with stage(Stage.ENCODE):
            if is_remembered(reading, parts):
                return encode_reading(reading, parts)
        run = in_time(lambda _: encode_reading(reading, parts), budget_ms)
        encodings = self._shared.runs.encodings
        return await self._guarded(Stage.ENCODE, self._reranking, lambda: encodings.run(run, budget_ms))

    async def complete(
        self, personal: PersonalSearch, reading: Reading | None, answer: str, asker: Headers
    ) -> Completed:
        """The client's page, made from the engine's answer. Raises Fault."""
        with stage(Stage.ENGINE_ANSWER):
            reply = read_reply(answer)
        search, chain, window = personal.search, personal.chain, personal.widened.window
        if not window:  # a page beyond it, in the engine's own order
            return Completed(answer, self._tell(chain, RerankStatus.OFF, Reason.BEYOND_WINDOW), reply.hits)
        if reading is None or chain.order:
            order = in_chain(reply, window, chain)
            found = Order(order, chain.rerank, sides=sides_in_chain(reply, order, chain), reason=chain.reason)
        else:
            began = time.monotonic()
            found = await self._rank(personal, reading, reply, asker)
            self._shared.metrics.reranked(found.status, time.monotonic() - began)
        with stage(Stage.PAGE):
            outcome = self._tell(chain, found.status, also=found.reason)
            added = self._explain(personal, reply, found, outcome) if search.explained else {}
            text = write_page(reply, found.order, search, added)
        keys = array("q", (place_key(reply.hits[i]) for i in found.order[:window]))
        sides = bytes(found.sides.get(i, 0) for i in found.order[:window]) if found.sides else b""
        chain = replace(chain, order=keys, sides=sides, rerank=found.status, reason=found.reason)
        self._chains.put(personal.user, personal.digest, chain)
        page = found.order[search.offset : search.offset + search.size]
        shown = tuple(replace(reply.hits[i], noted=self._note(found, i)) for i in page)
        return Completed(text, outcome, shown)

    async def _rank(self, personal: PersonalSearch, reading: Reading, reply: Reply, asker: Headers) -> Order:
        """Orders all hits of the answer: the window for this user, then the rest as it came. Raises Fault."""
        inside = range(min(personal.widened.window, len(reply.hits)))
        free = [i for i in inside if not reply.hits[i].pinned]
        compared = self._compared(personal)
        sides = compared.sides if compared else (Side("", self._parts.settings),)
        added = [self._clauses(personal, reading, side) for side in sides]
        distinct = list(dict.fromkeys(added))
        words, embedded = await self._guarded(
            Stage.EMBED,
            self._reranking,
            lambda: self._ask_about(personal, reading, distinct, [reply.hits[i] for i in free], asker),
        )
        with stage(Stage.RANK):
            vectors = dict(zip(free, embedded.hits, strict=True))
            orders, ranking = [], None
            for side, clauses_of_side in zip(sides, added, strict=True):
                if side.settings is None:
                    orders.append(list(inside))
                    continue
                scores = dict(zip(free, words[distinct.index(clauses_of_side)], strict=True))
                window = window_of_reply(reply, inside, scores, vectors, embedded)
                ranking = rank(reading, window, side.settings, *self._learnt_for(reading.profile))
                orders.append(indices_of(ranking))
            order, placed = orders[0], dict[int, int]()
            if compared:
                order, placed = draft_order(compared, orders, vectors, personal)
        return Order(
            [*order, *range(len(inside), len(reply.hits))],
            ranking.status if ranking else RerankStatus.OFF,
            ranking,
            {index_of(ranked): ranked for ranked in ranking.hits} if ranking else {},
            placed,
            ranking.reason if ranking else "",
        )

    def _learnt_for(self, profile: Profile) -> tuple[Any, str]:
        """What was learnt from other users, and why it is missing. Damage is logged once, not for every search."""
        learnt, damage = self._parts.learnt_for(profile)
        if damage and damage != self._damage:
            logger.warning("%s", damage)
        self._damage = damage
        return learnt, Reason.LEARNT_UNREADABLE if damage else ""

    def _compared(self, personal: PersonalSearch) -> Comparison | None:
        """The comparison that this search takes part in; none in recall mode, or if the search asks why."""
        search = personal.search
        return None if search.explained or search.mode == "recall" else self._rules.comparison

    def _clauses(self, personal: PersonalSearch, reading: Reading, side: Side) -> tuple[Clause, ...]:
        """What is added to the query's words for this side; the chain's own where nothing is compared."""
        if not side.name:
            return personal.chain.clauses
        return clauses(reading, side.settings) if side.settings else ()

    def _note(self, found: Order, i: int) -> dict[str, Any]:
        """Details for the impression of a hit: its scores if all hits have them, and the side that picked it."""
        noted: dict[str, Any] = {}
        if i in found.ranked and found.status == RerankStatus.FULL:
            noted["scores"] = [round(score, 4) for score in found.ranked[i].scores]
        if (comparison := self._rules.comparison) and found.sides.get(i):
            noted |= {"compared": comparison.name, "side": comparison.sides[found.sides[i] - 1].name}
        return noted

    async def _ask_about(
        self,
        personal: PersonalSearch,
        reading: Reading,
        added: Sequence[Sequence[Clause]],
        hits: Sequence[EngineHit],
        asker: Headers,
    ) -> tuple[list[list[float]], Embedded]:
        """What each of `added` scores in the hits, and the hits' vectors, both at once and within the budget."""
        deadline, whose = Deadline.after_ms(self._parts.settings.rerank_ms), Asker.of(personal.search, asker)
        bodies = [words_body(personal.search, personal.typed, some, hits) for some in added]
        words = asyncio.gather(*(score_words(self._upstream, body, hits, whose, deadline) for body in bodies))
        return await both(words, self._embed(reading.profile, hits, whose, deadline))

    async def _embed(self, profile: Profile, hits: Sequence[EngineHit], asker: Asker, deadline: Deadline) -> Embedded:
        """Vectors of the hits and of what the user liked, as far as there is time. Raises EngineError, TimeoutError."""
        encoder = self._parts.encoder
        if self._documents is None or encoder is None:
            return Embedded((None,) * len(hits))
        found = await self._documents.embed(hits, liked_ids(profile), asker, deadline)
        titles = liked_titles(profile)
        missing = [doc_id for doc_id in titles if doc_id not in found.liked]
        if not missing or deadline.over:
            return found
        texts = [titles[doc_id][:EMBEDDED_CHARS] for doc_id in missing]
        with suppress(Busy, Late):  # without its title a document that is elsewhere says nothing
            rows = await self._shared.runs.encodings.run(
                lambda within: encode_until(encoder, texts, "document", within), deadline.left_s * 1000
            )
            found = replace(found, liked={**found.liked, **dict(zip(missing, rows, strict=False))})
        return found

    def _explain(self, personal: PersonalSearch, reply: Reply, found: Order, outcome: Outcome) -> dict[str, object]:
        search = personal.search
        page = found.order[search.offset : search.offset + search.size]
        ranked = [found.ranked[i] for i in page if i in found.ranked]
        if found.ranking:
            ranked = list(found.ranking.explain(ranked))
        by_place = {index_of(one): one for one in ranked}
        window, rewrite = personal.widened.window, personal.chain.rewrite
        return {
            "bespeak": explain_search(rewrite, outcome, window, [(i, reply.hits[i], by_place.get(i)) for i in page])
        }

    async def _profile(self, user: UserKey, session_id: str) -> Profile:
        return await self._guarded(
            Stage.PROFILE,
            self._profiling,
            lambda: self._shared.runs.reads.run(
                lambda _: self._profiles.profile(user, session_id, datetime.now(UTC)), self._parts.settings.profile_ms
            ),
        )

    async def _rewrite(self, reading: Reading) -> Rewrite:
        """The rewrite, or the query as typed if there is none in time. Never raises."""
        query, rewriter, budget_ms = reading.query, self._parts.rewriter, self._parts.settings.rewrite_ms
        if reading.gate:
            return reading.rewrite
        if not self._rewriting.admits():
            return Rewrite(query, query, status=RewriteStatus.OFF, reason=Reason.RESTING)
        try:
            made = await self._shared.runs.rewrites.run(
                in_time(lambda within: rewrite_reading(reading, rewriter, within.left_s * 1000), budget_ms), budget_ms
            )
        except Busy as error:
            return Rewrite(query, query, status=RewriteStatus.LATE, reason=str(error))
        except Late as error:
            made = Rewrite(query, query, status=RewriteStatus.LATE, reason=str(error))
        except Exception as error:  # a fault of ours, of any kind, must not become the client's
            logger.warning("rewriting failed: %s", type(error).__name__)
            made = failed(query, rewriter, type(error).__name__)
        if made.status in (RewriteStatus.LATE, RewriteStatus.FAILED):
            self._rewriting.failed()
        else:
            self._rewriting.succeeded()
        return made

    async def _guarded(self, name: Stage, breaker: Breaker, work: Callable[[], Awaitable[T]]) -> T:
        """Runs the work of a stage behind its breaker. Raises Fault with the stage and how it ended."""
        if not breaker.admits():
            raise Fault(name, Ending.RESTING)
        try:
            done = await work()
        except Busy as error:
            raise Fault(name, Ending.BUSY) from error
        except (Late, TimeoutError) as error:
            breaker.failed()
            raise Fault(name, Ending.LATE) from error
        except (EngineRefused, TooLarge) as error:  # may concern this client alone: not counted
            raise Fault(name, Ending.REFUSED) from error
        except Exception as error:  # a fault of ours, of any kind, must not become the client's
            breaker.failed()
            logger.warning("personalising failed at %s: %s", name, type(error).__name__)
            raise Fault(name) from error
        breaker.succeeded()
        return done

    def _tell(self, chain: Chain, rerank: RerankStatus, reason: str = "", also: str = "") -> Outcome:
        rewrite = chain.rewrite
        because = rewrite.reason if rewrite.status in (RewriteStatus.GATED, RewriteStatus.OFF) else ""
        reasons = ",".join(filter(None, (reason or because, also)))
        return Outcome(rewrite.status, rerank, reasons, chain.query_id)


@dataclass(frozen=True, slots=True)
class Order:
    """The new order of an answer's hits, as indices, and how it came about."""

    order: list[int]
    status: RerankStatus
    ranking: Ranking | None = None
    ranked: Mapping[int, Ranked] = field(default_factory=dict)  # the ranking's hits, by their index in the answer
    sides: Mapping[int, int] = field(default_factory=dict)  # in a comparison: the side that picked a hit, from 1
    reason: str = ""  # why something was left out


def too_long(typed: Typed) -> str:
    return Reason.TOO_LONG if len(typed.text) > MAX_QUERY_CHARS else ""


def window_of_reply(
    reply: Reply,
    inside: Sequence[int],
    scores: Mapping[int, float],
    vectors: Mapping[int, Vector | None],
    embedded: Embedded,
) -> Window:
    """A window of the answer's first hits, each with the added words' score. `rank` is its place in the answer."""

    def text(hit: Hit) -> str:
        return hit_text(hit.source, embedded.fields.get(reply.hits[hit.rank - 1].index, ()))

    hits = [
        Hit(found.doc_id, found.score + scores.get(i, 0.0), i + 1, found.source, vectors.get(i), found.pinned)
        for i, found in ((i, reply.hits[i]) for i in inside)
    ]
    return Window(hits, embedded.liked, text)


def index_of(ranked: Ranked) -> int:
    """The hit's index in the answer."""
    return ranked.hit.rank - 1


def draft_order(
    compared: Comparison, orders: Sequence[Sequence[int]], free: Container[int], personal: PersonalSearch
) -> tuple[list[int], dict[int, int]]:
    """One order of what the sides rank, behind the pinned hits, and which side put each hit there, from 1."""
    drafted, sides = compared.draft(
        [[i for i in order if i in free] for order in orders], personal.user, personal.digest.hex()
    )
    pinned = [i for i in orders[0] if i not in free]
    return [*pinned, *drafted], {i: side + 1 for i, side in zip(drafted, sides, strict=True)}


def indices_of(ranking: Ranking) -> list[int]:
    return [index_of(ranked) for ranked in ranking.hits]


async def score_words(
    upstream: Upstream, body: Mapping[str, object] | None, hits: Sequence[EngineHit], asker: Asker, deadline: Deadline
) -> list[float]:
    """The score of `body` in each hit; 0 if it does not match. Raises EngineError and TimeoutError."""
    if body is None:
        return [0.0] * len(hits)
    found = {(hit["_index"], hit["_id"]): float(hit["_score"]) for hit in await asker.search(upstream, body, deadline)}
    return [found.get((hit.index, hit.doc_id), 0.0) for hit in hits]


def in_time(function: Callable[[Deadline], T], budget_ms: float) -> Callable[[Deadline], T]:
    """Wraps a run so that it raises Busy, no fault of the stage, if it waited too long to finish in time."""

    def begin(within: Deadline) -> T:
        if within.left_s * 1000 < budget_ms / 4:
            raise Busy("no model run was free in time")
        return function(within)

    return begin


async def both(first: Awaitable[T], second: Awaitable[U]) -> tuple[T, U]:
    """Awaits both at once; if the first fails, the second is cancelled."""
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
    """The hits as the first page ranked them, then hits that are new since then, then those beyond the window."""
    places = {key: place for place, key in enumerate(chain.order)}
    inside = range(min(window, len(reply.hits)))
    keys = [place_key(reply.hits[i]) for i in inside]
    return [*sorted(inside, key=lambda i: (places.get(keys[i], len(places)), i)), *range(window, len(reply.hits))]


def sides_in_chain(reply: Reply, order: Sequence[int], chain: Chain) -> dict[int, int]:
    """The sides as on the first page; 0 for hits that are new since then."""
    sides = dict(zip(chain.order, chain.sides, strict=False))
    return {i: sides.get(place_key(reply.hits[i]), 0) for i in order} if sides else {}


def place_key(hit: EngineHit) -> int:
    """A small key of a hit, valid in this process alone; it keeps chains of thousands of hits small."""
    return hash((hit.index, hit.doc_id))


def query_id(search: Search) -> str:
    """The client's own query id if it is valid, otherwise a new one."""
    given = search.ubi.get("query_id")
    fit = isinstance(given, str) and re.fullmatch(r"[\w.:-]{1,100}", given, re.ASCII)
    return given if fit and isinstance(given, str) else uuid.uuid4().hex
