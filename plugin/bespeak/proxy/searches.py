"""The searches among a proxy's requests: each is read, personalised if it can be, and answered with `X-Bespeak`.

A search that names nobody passes byte for byte. Whatever fails, the client's own request goes to the engine untouched.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import replace

from bespeak.errors import InputError
from bespeak.proxy.ahead import ReadAhead, with_turn
from bespeak.proxy.asking import EngineAnswer, Question, ask_instead
from bespeak.proxy.body import splice
from bespeak.proxy.body.msearch import HeadedSearch, read_msearch, read_responses
from bespeak.proxy.body.search import read_search
from bespeak.proxy.calls import MAX_BODY_BYTES, SEARCH_PATH, Call, query_without_source, read_call
from bespeak.proxy.exchanges import (
    MAX_PERSONAL_SEARCHES,
    Exchange,
    check_status,
    edited_lines,
    events_of,
    header,
    last_rewritten,
    shown_hits,
)
from bespeak.proxy.http.copying import CopyingSend
from bespeak.proxy.http.gzip import accepts_gzip
from bespeak.proxy.http.passing import Receive, Scope, Send, WhileClientWaits, pass_on, read_body
from bespeak.proxy.http.upstream import Headers, Upstream, end_to_end
from bespeak.proxy.identity import Audience, names_user
from bespeak.proxy.metrics import Metrics
from bespeak.proxy.outcome import Declined, Fault, Outcome, stage
from bespeak.proxy.personal import Personaliser, both
from bespeak.proxy.recording import Recorder
from bespeak.reading import Reading
from bespeak.statuses import Reason, Stage

MAX_OBSERVED_BYTES = 4_000_000
"""An answer that passes untouched is copied up to this length, to record the hits that it showed."""
MIN_ZIPPED_BYTES = 1_400
NOT_RETURNED = {b"content-length", b"content-encoding"}


class Searches:
    """Answers the searches that `Proxy` finds among its requests. Built once; holds nothing about a request."""

    def __init__(
        self,
        upstream: Upstream,
        personaliser: Personaliser,
        audience: Audience,
        recorder: Recorder,
        metrics: Metrics,
        ahead: ReadAhead,
    ) -> None:
        self._upstream, self._personaliser, self._audience = upstream, personaliser, audience
        self._recorder, self._metrics, self._ahead = recorder, metrics, ahead

    def concerns(self, method: str, path: str, headers: Headers) -> bool:  # noqa: ARG002
        return method in ("GET", "POST") and SEARCH_PATH.fullmatch(path) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, is_complete = await read_body(receive, MAX_BODY_BYTES)
        reason = "" if is_complete else Reason.TOO_LARGE
        try:
            call = read_call(scope, body if is_complete else b"")
        except (InputError, UnicodeDecodeError):
            reason = reason or Reason.UNREADABLE
        if reason:
            added = [header(Outcome(reason=reason))] if names_user(scope["headers"]) else []
            await pass_on(self._upstream, scope, receive, send, body=body, more=not is_complete, added=added)
        elif call.may_concern_us:
            await self._answer_call(call, receive, send)
        else:
            self._metrics.passed()
            await pass_on(self._upstream, scope, receive, send, body=body)

    async def _answer_call(self, call: Call, receive: Receive, send: Send) -> None:
        match call.api:
            case "_search" | "_msearch":
                await self._answer_searches(call, receive, send)
            case "_search_template":
                await self._answer_template(call, receive, send)
            case _:
                text = edited_body(call) if call.api == "_async_search" else None
                outcomes = [Outcome(reason=call.api.strip("_"))] if call.names_user or text is not None else []
                await self._pass(call, receive, send, outcomes, text)

    async def _answer_template(self, call: Call, receive: Receive, send: Send) -> None:
        """Personalises the search that the engine makes of a template; if that fails, the template passes as it is."""
        try:
            answer = await self._ask(call, Question(b"/_render/template", (), call.text))
            check_status(answer.status)
            with stage(Stage.TEMPLATE):
                span = dict(splice.read_members(answer.text)[0])["template_output"]
                is_explained = any(json.loads(call.text).get(name) is True for name in ("explain", "profile"))
        except Fault as fault:
            await self._pass(call, receive, send, if_named(call, fault.outcome))
            return
        if is_explained:
            await self._pass(call, receive, send, [Outcome(reason=Reason.EXPLAIN)])
            return
        rendered = replace(call, text=answer.text[span.start : span.end], rendered=True)
        await self._answer_searches(rendered, receive, send)

    async def _answer_searches(self, call: Call, receive: Receive, send: Send) -> None:
        try:
            exchanges = self._read(call)
        except InputError:
            await self._pass(call, receive, send, if_named(call, Outcome(reason=Reason.UNREADABLE)))
            return
        if not any(exchange.concerns_us for exchange in exchanges):
            await self._pass(call, receive, send)  # its `ext` is for another plugin
            return
        exchanges, answer = await self._personalise(call, receive, exchanges)
        if answer is not None:
            await self._answer(call, send, answer, exchanges)
            self._follow_up(call, exchanges)
        elif call.api == "_msearch":
            outcomes = [exchange.outcome for exchange in exchanges]
            await self._pass(call, receive, send, outcomes, edited_lines(exchanges))
        else:
            await self._pass_declined(call, receive, send, exchanges[0])

    def _read(self, call: Call) -> list[Exchange]:
        """Raises InputError."""
        if call.api == "_msearch":
            found = read_msearch(call.text, call.index)
        else:
            found = [HeadedSearch("", read_search(call.index, call.params, call.text))]
        return [Exchange(search, self._audience.identify(call.headers, search.ubi), head) for head, search in found]

    async def _personalise(
        self, call: Call, receive: Receive, exchanges: list[Exchange]
    ) -> tuple[list[Exchange], EngineAnswer | None]:
        """The searches with their outcomes, and the answer for the client; None if the client's own request must go
        to the engine. Raises ClientGone.
        """
        complete = self._complete_all if call.api == "_msearch" else self._complete_one
        with WhileClientWaits(receive) as there:
            there.listen_later()
            exchanges = await self._prepare(exchanges)
            try:
                with stage(Stage.PERSONALISE):
                    if any(exchange.personal for exchange in exchanges):
                        return await complete(call, exchanges)
            except Fault as fault:
                exchanges = [self._failed(exchange, fault) if exchange.personal else exchange for exchange in exchanges]
        return exchanges, None

    async def _prepare(self, exchanges: Sequence[Exchange]) -> list[Exchange]:
        """All at once, within the time that one may take: a search that finds no free model run in time is late.

        The first of very many searches are personalised; nobody looks at the others.
        """
        some = [self._prepare_one(exchange) for exchange in exchanges[:MAX_PERSONAL_SEARCHES]]
        prepared = await asyncio.gather(*some)
        too_many = Declined(Outcome(reason=Reason.TOO_MANY_SEARCHES))
        return [*prepared, *(exchange.prepared(too_many) for exchange in exchanges[MAX_PERSONAL_SEARCHES:])]

    async def _prepare_one(self, exchange: Exchange) -> Exchange:
        search, identity = exchange.search, exchange.identity
        if identity.user is None:
            return exchange.prepared(Declined(Outcome(reason=identity.reason or Reason.ANONYMOUS)))
        try:
            with stage(Stage.PREPARE):
                control = not self._audience.share.includes(identity.user)
                found = await self._personaliser.prepare(search, identity.user, identity.session_id, control)
                return exchange.prepared(found)
        except Fault as fault:
            return self._failed(exchange, fault)

    async def _complete_one(self, call: Call, exchanges: Sequence[Exchange]) -> tuple[list[Exchange], EngineAnswer]:
        """Raises Fault, also if the engine refuses: what it says to the client's own request is what counts."""
        (exchange,) = exchanges
        assert exchange.personal is not None
        widened = exchange.personal.widened
        answer, reading = await both(
            self._ask(call, Question(call.path, widened.params, widened.text)),
            self._personaliser.encode(exchange.personal),
        )
        check_status(answer.status)
        done = await self._personaliser.complete(exchange.personal, reading, answer.text, call.headers)
        with stage(Stage.PAGE):
            return [exchange.completed(done)], answer._replace(text=call.filtered(done.text))

    async def _complete_all(self, call: Call, exchanges: Sequence[Exchange]) -> tuple[list[Exchange], EngineAnswer]:
        """Completes each search by itself. Those that are not personalised, or that fail, are asked as they came.

        Raises Fault.
        """
        text = "".join(exchange.engine_lines for exchange in exchanges)
        answer, encoded = await both(
            self._ask(call, Question(call.path, call.unfiltered_params, text)),
            asyncio.gather(*(self._encode(exchange) for exchange in exchanges)),
        )
        check_status(answer.status)
        with stage(Stage.ENGINE_ANSWER):
            responses = read_responses(answer.text, len(exchanges))
        completed = await asyncio.gather(
            *(
                self._complete(call, exchange, response, answer.text)
                for exchange, response in zip(encoded, responses, strict=True)
            )
        )
        done = await self._ask_again(call, completed)
        edits = [
            (response.start, response.end, exchange.text or "")
            for response, exchange in zip(responses, done, strict=True)
        ]
        with stage(Stage.PAGE):
            return done, answer._replace(text=call.filtered(splice.replace(answer.text, edits)))

    async def _encode(self, exchange: Exchange) -> Exchange:
        """The exchange with its vectors, or with the fault that prevented them."""
        if exchange.personal is None:
            return exchange
        reading: Reading | Fault | None
        try:
            reading = await self._personaliser.encode(exchange.personal)
        except Fault as fault:
            reading = fault
        return replace(exchange, reading=reading)

    async def _complete(self, call: Call, exchange: Exchange, response: splice.Span, answer: str) -> Exchange:
        """The exchange with its answer, or without one if it must be asked again as it came."""
        own = answer[response.start : response.end]
        if exchange.personal is None:
            return exchange.answered_by_engine(own)
        try:
            if isinstance(exchange.reading, Fault):
                raise exchange.reading
            check_status(response.value.get("status", 200) if isinstance(response.value, dict) else 500)
            return exchange.completed(
                await self._personaliser.complete(exchange.personal, exchange.reading, own, call.headers)
            )
        except Fault as fault:
            return self._failed(exchange, fault)

    async def _ask_again(self, call: Call, exchanges: Sequence[Exchange]) -> list[Exchange]:
        """The exchanges, with the engine's answers to those that have none yet, asked as they came. Raises Fault."""
        unanswered = [exchange for exchange in exchanges if exchange.text is None]
        if not unanswered:
            return list(exchanges)
        text = "".join(exchange.lines for exchange in unanswered)
        answer = await self._ask(call, Question(call.path, call.unfiltered_params, text))
        check_status(answer.status)
        with stage(Stage.ENGINE_ANSWER):
            spans = iter(read_responses(answer.text, len(unanswered)))
        return [
            exchange.answered_by_engine(answer.text[(span := next(spans)).start : span.end])
            if exchange.text is None
            else exchange
            for exchange in exchanges
        ]

    def _failed(self, exchange: Exchange, fault: Fault) -> Exchange:
        """The exchange with the engine's own answer, which later pages will have too."""
        failed, identity = exchange.failed(fault), exchange.identity
        if identity.user is not None:
            self._personaliser.leave(exchange.search, identity.user, identity.session_id, failed.outcome)
        return failed

    async def _ask(self, call: Call, question: Question) -> EngineAnswer:
        """Raises Fault."""
        with stage(Stage.ENGINE):
            began = time.monotonic()
            answer = await ask_instead(self._upstream, call, question)
            self._metrics.engine_answered(time.monotonic() - began)
            return answer

    async def _answer(self, call: Call, send: Send, answer: EngineAnswer, exchanges: Sequence[Exchange]) -> None:
        body = answer.text.encode("utf-8", "surrogatepass")
        headers = [pair for pair in end_to_end(answer.headers) if pair[0].lower() not in NOT_RETURNED]
        if len(body) >= MIN_ZIPPED_BYTES and accepts_gzip(call.headers):
            body = await asyncio.to_thread(gzip.compress, body, 3)
            headers.append((b"content-encoding", b"gzip"))
        outcomes = [exchange.outcome for exchange in exchanges]
        headers += [(b"content-length", str(len(body)).encode()), header(*outcomes)]
        self._count(outcomes)
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    def _follow_up(self, call: Call, exchanges: Sequence[Exchange]) -> None:
        """After an answer, records what was shown, and reads the session's next prompt ahead."""
        for exchange in exchanges:
            self._record(call, exchange)
        if (personal := last_rewritten(exchanges)) and personal.reading:
            self._ahead.read(with_turn(personal.reading.profile, personal.typed.text), personal.chain.begun)

    def _record(self, call: Call, exchange: Exchange) -> None:
        if events := events_of(exchange, call.at):
            self._recorder.record(events)

    async def _pass_declined(self, call: Call, receive: Receive, send: Send, exchange: Exchange) -> None:
        """The engine's own answer; the query and the hits that it showed are recorded if the user agreed to that."""

        def record(answer: str) -> None:
            self._record(call, replace(exchange, shown=shown_hits(answer)))

        text = exchange.search.text if exchange.search.edited and not call.rendered else None
        await self._pass(call, receive, send, [exchange.outcome], text, record if exchange.query else None)

    async def _pass(
        self,
        call: Call,
        receive: Receive,
        send: Send,
        outcomes: Sequence[Outcome] = (),
        text: str | None = None,
        observe: Callable[[str], None] | None = None,
    ) -> None:
        """The engine's own answer to the client's own request; `text` is its body if it had something for Bespeak."""
        self._count(outcomes)
        scope, body = (call.scope, call.body) if text is None else with_body(call, text)
        copying = CopyingSend(send, MAX_OBSERVED_BYTES) if observe else None
        added = [header(*outcomes)] if outcomes else []
        await pass_on(self._upstream, scope, receive, copying or send, body=body, added=added)
        if copying and observe and (answer := copying.text()):
            observe(answer)

    def _count(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            match outcome.kind:
                case "personalised":
                    self._metrics.personalised()
                case "declined":
                    self._metrics.declined(outcome.reason)
                case "failed":
                    self._metrics.failed(outcome.reason)


def if_named(call: Call, outcome: Outcome) -> list[Outcome]:
    """The header to add; none for a request that cannot be read and whose headers name nobody."""
    return [outcome] if call.names_user else []


def with_body(call: Call, text: str) -> tuple[Scope, bytes]:
    """The client's request with another body."""
    body = text.encode("utf-8", "surrogatepass")
    headers = [pair for pair in call.headers if pair[0].lower() not in (b"content-length", b"content-encoding")]
    headers.append((b"content-length", str(len(body)).encode()))
    query = query_without_source(call.scope.get("query_string", b""))
    return {**call.scope, "headers": headers, "query_string": query}, body


def edited_body(call: Call) -> str | None:
    """The body of one search without anything for Bespeak; None if there was nothing, or it cannot be read."""
    try:
        search = read_search(call.index, call.params, call.text)
    except InputError:
        return None
    return search.text if search.edited else None
