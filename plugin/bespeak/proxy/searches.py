"""The searches among a proxy's requests: who asks, what is done to each, and the answer with its header.

A search that names nobody passes byte for byte. Whatever fails, the client's own request goes to the engine untouched.
"""

from __future__ import annotations

import asyncio
import gzip
import json
import re
import time
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from typing import Any
from urllib.parse import parse_qsl, quote, urlencode

from bespeak.errors import BespeakError, InputError
from bespeak.models.encoder import well_formed
from bespeak.proxy.ahead import Ahead, followed
from bespeak.proxy.app import path_of
from bespeak.proxy.body import splice
from bespeak.proxy.body.filter_path import apply
from bespeak.proxy.body.search import Found, Params, Search, read_reply, read_search
from bespeak.proxy.http.passing import (
    Message,
    Receive,
    Scope,
    Send,
    WhileClientWaits,
    pass_on,
    read_body,
    request_target,
)
from bespeak.proxy.http.upstream import Headers, Upstream, end_to_end
from bespeak.proxy.identity import Identify, Identity, Share
from bespeak.proxy.metrics import Metrics
from bespeak.proxy.outcome import Completed, Declined, Fault, Outcome, stage
from bespeak.proxy.personal import Personal, Personaliser, both
from bespeak.proxy.recording import Recorder, Shown, impressions, query_recorded
from bespeak.reading import Reading
from bespeak.statuses import Reason, RewriteStatus, Stage

MAX_BODY_BYTES = 16_000_000
MAX_ANSWER_BYTES = 64_000_000
MAX_OBSERVED_BYTES = 4_000_000
"""Of an answer that passes untouched, what is read to record the hits that were shown."""
MAX_PERSONAL_PARTS = 20
"""Of the searches of one `_msearch`, what is personalised. It also bounds the header, of which clients and balancers
take some thousand bytes."""
MIN_ZIPPED_BYTES = 1_400
MAX_TITLE_CHARS = 300

# A name between < and > is reckoned from a date, and may hold a slash.
SEARCHES = re.compile(
    r"(?:/(?P<index>(?:<[^>]*>|[^/<])+))?/(?P<api>_search|_msearch|_async_search)(?P<template>/template)?/?"
)
OTHER_FORMS = (b"yaml", b"cbor", b"smile", b"form-urlencoded")
NOT_SENT = {b"host", b"content-length", b"content-encoding", b"accept-encoding", b"expect"}
NOT_RETURNED = {b"content-length", b"content-encoding"}


@dataclass(frozen=True, slots=True)
class Called:
    """One request for searches, as it came."""

    scope: Scope
    headers: Headers
    api: str  # _search, _msearch, _async_search, _search_template, _msearch_template
    index: str
    params: Params
    body: bytes
    text: str  # the body, unpacked
    at: datetime  # when it was asked
    rendered: bool = False  # `text` is what the engine made of a template

    @property
    def path(self) -> bytes:
        """Of the search that is asked, without the path that the proxy is mounted under, or anything of the query."""
        path = request_target(self.scope).partition(b"?")[0].rstrip(b"/")
        return path.removesuffix(b"/template") if self.rendered else path


class Searches:
    """What `Proxy` hands its searches to."""

    def __init__(
        self,
        upstream: Upstream,
        personaliser: Personaliser,
        identify: Identify,
        share: Share,
        recorder: Recorder,
        metrics: Metrics,
        ahead: Ahead,
    ) -> None:
        self._upstream, self._personaliser, self._ahead = upstream, personaliser, ahead
        self._identify, self._share, self._recorder, self._metrics = identify, share, recorder, metrics

    def concerns(self, method: str, path: str, headers: Headers) -> bool:  # noqa: ARG002
        return method in ("GET", "POST") and SEARCHES.fullmatch(path) is not None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        body, whole = await read_body(receive, MAX_BODY_BYTES)
        named = names_user(scope["headers"])
        reason = "" if whole else "too_large"
        try:
            called = read_call(scope, body if whole else b"")
        except (InputError, UnicodeDecodeError):
            reason = reason or "unreadable"
        if reason:
            told = [header(Outcome(reason=reason))] if named else []
            await pass_on(self._upstream, scope, receive, send, body=body, more=not whole, added=told)
            return
        if not (named or '"ext"' in called.text or any(name == "source" for name, _ in called.params)):
            self._metrics.passed()
            await pass_on(self._upstream, scope, receive, send, body=body)
        elif called.api == "_search":
            await self._search(called, receive, send)
        elif called.api == "_msearch":
            await self._msearch(called, receive, send)
        elif called.api == "_search_template":
            await self._template(called, receive, send)
        else:
            text = edited_body(called) if called.api == "_async_search" else None
            reasons = [Outcome(reason=called.api.strip("_"))] if named or text is not None else []
            await self._pass(called, receive, send, *reasons, text=text)

    async def _template(self, called: Called, receive: Receive, send: Send) -> None:
        """The search that the engine makes of a template; the client's own request stays one by template."""
        try:
            status, _, answer = await self._ask(called, b"/_render/template", (), called.text)
            check_status(status)
            with stage(Stage.TEMPLATE):
                span = dict(splice.read_object(answer)[0])["template_output"]
                explained = any(json.loads(called.text).get(name) is True for name in ("explain", "profile"))
        except Fault as fault:
            await self._pass(called, receive, send, *told_if_named(called, fault.outcome))
            return
        if explained:
            await self._pass(called, receive, send, Outcome(reason="explain"))
            return
        await self._search(replace(called, text=answer[span.start : span.end], rendered=True), receive, send)

    async def _search(self, called: Called, receive: Receive, send: Send) -> None:
        try:
            search = read_search(called.index, called.params, called.text)
            identity = self._identify(called.headers, search.ubi)
        except InputError:
            await self._pass(called, receive, send, *told_if_named(called, Outcome(reason="unreadable")))
            return
        outcome: Answered | Declined
        try:
            with WhileClientWaits(receive) as there, stage(Stage.PERSONALISE):
                there.listen_later()
                prepared = await self._prepare(search, identity)
                outcome = await self._personalise(called, prepared) if isinstance(prepared, Personal) else prepared
        except Fault as fault:
            outcome = self._left(search, identity, fault)
        if isinstance(outcome, Answered):
            done = outcome.done
            await self._answer(called, send, outcome.headers, done.text, [done.outcome])
            self._record(called.at, search, identity, outcome.query, done.outcome, done.shown)
            self._read_ahead([prepared])
        elif identity.user is None and not identity.reason and not search.edited:
            await self._pass(called, receive, send)  # an `ext` of somebody else's
        else:
            await self._pass_declined(called, receive, send, search, identity, outcome)

    async def _pass_declined(
        self, called: Called, receive: Receive, send: Send, search: Search, identity: Identity, declined: Declined
    ) -> None:
        """The engine's own answer; the query and what was shown are recorded where `declined` says so."""

        def observe(answer: str) -> None:
            self._record(called.at, search, identity, declined.query, declined.outcome, shown_hits(answer))

        text = search.text if search.edited and not called.rendered else None
        await self._pass(
            called, receive, send, declined.outcome, text=text, observe=observe if declined.query else None
        )

    def _left(self, search: Search, who: Identity, fault: Fault) -> Declined:
        told = fault.outcome
        if who.user is not None:
            self._personaliser.leave(search, who.user, who.session_id, told)
        return Declined(told)

    async def _prepare(self, search: Search, identity: Identity) -> Personal | Declined:
        """Raises Fault."""
        if identity.user is None:
            return Declined(Outcome(reason=identity.reason or "anonymous"))
        with stage(Stage.PREPARE):
            control = not self._share.includes(identity.user)
            return await self._personaliser.prepare(search, identity.user, identity.session_id, control)

    async def _personalise(self, called: Called, personal: Personal) -> Answered:
        """Raises Fault, also where the engine refuses: its refusal of the client's own request is what counts."""
        (status, headers, text), context = await both(
            self._ask(called, called.path, personal.asked.params, personal.asked.text),
            self._personaliser.encode(personal),
        )
        check_status(status)
        done = await self._personaliser.complete(personal, context, text, called.headers)
        with stage(Stage.PAGE):
            done = replace(done, text=filtered(called, done.text))
        return Answered(done, headers, personal.typed.text)

    async def _msearch(self, called: Called, receive: Receive, send: Send) -> None:
        """Each search by itself; those that are not personalised, or fail, are in the same request as they came."""
        try:
            parts = read_msearch(called)
        except InputError:
            await self._pass(called, receive, send, *told_if_named(called, Outcome(reason="unreadable")))
            return
        identities = [self._identify(called.headers, part.search.ubi) for part in parts]
        if all(who.user is None and not who.reason for who in identities) and not edited(parts):
            await self._pass(called, receive, send)
            return
        with WhileClientWaits(receive) as there:
            there.listen_later()
            prepared = await self._prepare_parts(parts, identities)
            found = None
            try:
                with stage(Stage.PERSONALISE):
                    if any_personal(prepared):
                        found = await self._complete_parts(called, parts, identities, prepared)
            except Fault as fault:
                prepared = [
                    one if isinstance(one, Declined) else self._left(one.search, who, fault)
                    for one, who in zip(prepared, identities, strict=True)
                ]
        if found is None:
            told = [one.outcome for one in prepared if isinstance(one, Declined)]
            await self._pass(called, receive, send, *told, text=edited(parts))
            return
        done, headers = found
        await self._answer(called, send, headers, done.text, [told_one for _, told_one, _ in done.parts])
        for part, who, one, (_, told_one, hits) in zip(parts, identities, prepared, done.parts, strict=True):
            query = one.typed.text if isinstance(one, Personal) else one.query
            self._record(called.at, part.search, who, query, told_one, hits)
        self._read_ahead(prepared)

    async def _prepare_parts(self, parts: Sequence[Part], identities: Sequence[Identity]) -> list[Personal | Declined]:
        """All at once, so that together they take no longer than one may: what no model run was free for is late.

        Of more searches than anybody looks at, the first are personalised.
        """
        some = zip(parts[:MAX_PERSONAL_PARTS], identities[:MAX_PERSONAL_PARTS], strict=True)
        prepared = await asyncio.gather(*(self._prepare_part(part, who) for part, who in some))
        return [*prepared, *(Declined(Outcome(reason="too_many_searches")) for _ in parts[MAX_PERSONAL_PARTS:])]

    async def _prepare_part(self, part: Part, identity: Identity) -> Personal | Declined:
        try:
            return await self._prepare(part.search, identity)
        except Fault as fault:
            return self._left(part.search, identity, fault)

    async def _complete_parts(
        self,
        called: Called,
        parts: Sequence[Part],
        identities: Sequence[Identity],
        prepared: Sequence[Personal | Declined],
    ) -> tuple[CompletedParts, Headers]:
        """Raises Fault."""
        text = "".join(
            part.asked_lines(one) if isinstance(one, Personal) else part.lines
            for part, one in zip(parts, prepared, strict=True)
        )
        contexts = asyncio.gather(*(self._encode_part(found) for found in prepared), return_exceptions=True)
        (status, headers, answer), made = await both(self._ask(called, called.path, unfiltered(called), text), contexts)
        check_status(status)
        with stage(Stage.ENGINE_ANSWER):
            spans = dict(splice.read_object(answer, 0, {"responses": splice.elements})[0])["responses"].value
            if len(spans) != len(parts):
                raise InputError("another number of answers than of searches")
        done = await asyncio.gather(
            *(
                self._complete_part(called, found, who, answer[span.start : span.end], span.value, context)
                for found, who, span, context in zip(prepared, identities, spans, made, strict=True)
            )
        )
        failed = [i for i, (own, _, _) in enumerate(done) if own is None]
        again = await self._ask_again(called, [parts[i] for i in failed]) if failed else []
        texts = dict(zip(failed, again, strict=True))
        whole = [(texts.get(i, own or ""), told, hits) for i, (own, told, hits) in enumerate(done)]
        edits = [(span.start, span.end, text) for span, (text, _, _) in zip(spans, whole, strict=True)]
        with stage(Stage.PAGE):
            return CompletedParts(filtered(called, splice.replace(answer, edits)), whole), headers

    async def _encode_part(self, found: Personal | Declined) -> Reading | None:
        return await self._personaliser.encode(found) if isinstance(found, Personal) else None

    async def _complete_part(
        self,
        called: Called,
        found: Personal | Declined,
        who: Identity,
        own: str,
        value: Any,
        context: Reading | BaseException | None,
    ) -> tuple[str | None, Outcome, tuple[Found, ...]]:
        """The answer to one search, None where it has to be asked again as it came."""
        if isinstance(found, Declined):
            return own, found.outcome, shown_hits(own) if found.query else ()
        try:
            if isinstance(context, BaseException):
                raise context
            check_status(value.get("status", 200) if isinstance(value, dict) else 500)
            done = await self._personaliser.complete(found, context, own, called.headers)
            return done.text, done.outcome, done.shown
        except Fault as fault:
            return None, self._left(found.search, who, fault).outcome, ()

    async def _ask_again(self, called: Called, parts: Sequence[Part]) -> list[str]:
        """The answers to searches as they came. Raises Fault."""
        status, _, answer = await self._ask(
            called, called.path, unfiltered(called), "".join(part.lines for part in parts)
        )
        check_status(status)
        with stage(Stage.ENGINE_ANSWER):
            spans, _ = splice.read_array(answer, dict(splice.read_object(answer)[0])["responses"].start)
            return [answer[span.start : span.end] for span in spans]

    async def _ask(self, called: Called, path: bytes, params: Params, text: str) -> tuple[int, Headers, str]:
        """What the engine answers to a body and parameters in place of the client's. Raises Fault."""
        query = urlencode(params, quote_via=quote)
        place = path + (b"?" + query.encode() if query else b"")
        body = text.encode("utf-8", "surrogatepass")
        headers = [pair for pair in end_to_end(called.headers) if sent(pair[0].lower())]
        if not called.body and not any(name.lower() == b"content-type" for name, _ in headers):
            headers.append((b"content-type", b"application/json"))
        headers.append((b"content-length", str(len(body)).encode()))
        with stage(Stage.ENGINE):
            began = time.monotonic()
            found = await self._upstream.send("POST", place, headers, body)
            try:
                data = await found.read(MAX_ANSWER_BYTES)
            finally:
                await found.close()
            self._metrics.engine_answered(time.monotonic() - began)
            return found.status, found.headers, data.decode("utf-8")

    async def _answer(self, called: Called, send: Send, headers: Headers, text: str, told: Sequence[Outcome]) -> None:
        body = text.encode("utf-8", "surrogatepass")
        kept = [pair for pair in end_to_end(headers) if pair[0].lower() not in NOT_RETURNED]
        if len(body) >= MIN_ZIPPED_BYTES and takes_gzip(called.headers):
            body = await asyncio.to_thread(gzip.compress, body, 3)
            kept.append((b"content-encoding", b"gzip"))
        kept += [(b"content-length", str(len(body)).encode()), header(*told)]
        self._count(told)
        await send({"type": "http.response.start", "status": 200, "headers": kept})
        await send({"type": "http.response.body", "body": body})

    async def _pass(
        self,
        called: Called,
        receive: Receive,
        send: Send,
        *told: Outcome,
        text: str | None = None,
        observe: Callable[[str], None] | None = None,
    ) -> None:
        """The client's own request and its answer as it is; `text` is the body where it had something for Bespeak."""
        scope, body = called.scope, called.body
        if text is not None:
            body = text.encode("utf-8", "surrogatepass")
            length = (b"content-length", str(len(body)).encode())
            left = [p for p in called.headers if p[0].lower() not in (b"content-length", b"content-encoding")]
            scope = {**scope, "headers": [*left, length], "query_string": without_source(scope)}
        self._count(told)
        seen = Seen(send) if observe else None
        added = [header(*told)] if told else []
        await pass_on(self._upstream, scope, receive, seen or send, body=body, added=added)
        if seen and observe and (answer := seen.text()):
            observe(answer)

    def _count(self, told: Sequence[Outcome]) -> None:
        for one in told:
            match one.kind:
                case "personalised":
                    self._metrics.personalised()
                case "declined":
                    self._metrics.declined(one.reason)
                case "failed":
                    self._metrics.failed(one.reason)

    def _read_ahead(self, prepared: Sequence[Personal | Declined]) -> None:
        """For the last of these searches that was rewritten: it is its session's latest turn."""
        for one in reversed(prepared):
            if not isinstance(one, Personal) or one.reading is None:
                continue
            if one.chain.rewrite.status in (RewriteStatus.FULL, RewriteStatus.CACHED):
                self._ahead.read(followed(one.reading.profile, one.typed.text), one.chain.begun)
                return

    def _record(
        self, at: datetime, search: Search, identity: Identity, query: str, told: Outcome, hits: Sequence[Found]
    ) -> None:
        """A query once, on its first page, and the hits of every page; never raises."""
        if not query or identity.user is None or not told.query_id:
            return
        shown = [Shown(hit.doc_id, title_of(hit.source), hit.noted) for hit in hits]
        whose = (identity.user, identity.session_id, told.query_id)
        try:
            events = impressions(*whose, shown, search.offset + 1, at)
            if search.offset == 0:
                events = [query_recorded(*whose, query, search.index, at), *events]
        except BespeakError:  # an id or a text that no event can hold
            return
        self._recorder.record(events)


@dataclass(frozen=True, slots=True)
class Answered:
    """A personalised answer, the engine's headers to it, and what was typed."""

    done: Completed
    headers: Headers
    query: str


class Seen:
    """Passes an answer on and keeps what it was, where it is not too long."""

    def __init__(self, send: Send) -> None:
        self._send, self._chunks, self._length = send, list[bytes](), 0
        self._zipped = self._whole = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._zipped = any(n.lower() == b"content-encoding" and v == b"gzip" for n, v in message["headers"])
            self._whole = message["status"] == 200
        elif self._whole:
            self._length += len(message.get("body", b""))
            self._whole = self._length <= MAX_OBSERVED_BYTES
            self._chunks = [*self._chunks, message.get("body", b"")] if self._whole else []
        await self._send(message)

    def text(self) -> str:
        """The answer; "" where it was no success, too long, or in another form than JSON text."""
        data = b"".join(self._chunks) if self._whole else b""
        try:
            return (gunzip(data, MAX_OBSERVED_BYTES) if self._zipped else data).decode("utf-8")
        except (InputError, UnicodeDecodeError):
            return ""


@dataclass(frozen=True, slots=True)
class Part:
    """One search of an `_msearch`, with its two lines as they go to the engine."""

    head: str
    search: Search

    @property
    def lines(self) -> str:
        return f"{self.head}\n{self.search.text}\n"

    def asked_lines(self, personal: Personal) -> str:
        changes = {name: json.dumps(value) for name, value in personal.asked.params if name == "preference"}
        return f"{splice.edit_object(self.head, 0, changes)}\n{personal.asked.text}\n"


@dataclass(frozen=True, slots=True)
class CompletedParts:
    """The whole answer, and of each search its own, what was done to it and the hits it shows."""

    text: str
    parts: Sequence[tuple[str, Outcome, Sequence[Found]]]


def read_call(scope: Scope, body: bytes) -> Called:
    """Raises InputError for a body in another form than JSON text."""
    found = SEARCHES.fullmatch(path_of(scope))
    assert found is not None
    headers: Headers = scope["headers"]
    given = {name.lower(): value for name, value in headers}
    coding = given.get(b"content-encoding", b"identity").strip().lower()
    if coding not in (b"identity", b"gzip"):
        raise InputError("the body is compressed otherwise than by gzip")
    if any(kind in given.get(name, b"").lower() for name in (b"content-type", b"accept") for kind in OTHER_FORMS):
        raise InputError("the request is not in JSON")
    text = (gunzip(body, MAX_BODY_BYTES) if coding == b"gzip" else body).decode("utf-8")
    query = scope.get("query_string", b"").decode("ascii", "replace").replace(";", "&")  # Elasticsearch takes either
    params = tuple(parse_qsl(query, keep_blank_values=True))
    api = found["api"] + (found["template"] or "").replace("/", "_")
    return Called(scope, headers, api, found["index"] or "", params, body, text, datetime.now(UTC))


def read_msearch(called: Called) -> list[Part]:
    """Raises InputError for what is no sequence of pairs of lines."""
    *lines, end = called.text.split("\n")
    if end:
        raise InputError("the last line has no end")
    if len(lines) % 2 and not lines[-1].strip():
        lines.pop()  # an empty line at the end is none to Elasticsearch
    if len(lines) % 2 or not lines:
        raise InputError("a line is missing")
    parts = []
    for head, body in zip(lines[::2], lines[1::2], strict=True):
        if not body.strip():
            raise InputError("a search is missing")
        head = head.strip() or "{}"
        members = {name: span.value for name, span in splice.read_object(head)[0]}
        params = tuple((name, listed(value)) for name, value in members.items())
        names = {name: value for name, value in params if name in ("index", "indices")}
        parts.append(Part(head, read_search(next(iter(names.values()), called.index), params, body)))
    return parts


def listed(value: Any) -> str:
    """A member of a header line as a parameter of a URL has it."""
    if isinstance(value, list):
        return ",".join(map(listed, value))
    return value if isinstance(value, str) else json.dumps(value)


def any_personal(prepared: Sequence[Personal | Declined]) -> bool:
    return any(isinstance(one, Personal) for one in prepared)


def check_status(status: int) -> None:
    """Raises Fault. A refusal is mostly the client's own to see, and no fault of anybody's but the client's."""
    if status != 200:
        raise Fault(Stage.ENGINE_STATUS if status >= 500 or status == 429 else Reason.ENGINE_REFUSED)


def told_if_named(called: Called, told: Outcome) -> list[Outcome]:
    """Nothing is told of a request that could not be read, and whose headers name nobody."""
    return [told] if names_user(called.headers) else []


def edited(parts: Sequence[Part]) -> str | None:
    """The body of an `_msearch` less what was for Bespeak; None where nothing was."""
    return "".join(part.lines for part in parts) if any(part.search.edited for part in parts) else None


def edited_body(called: Called) -> str | None:
    """The body of one search less what was for Bespeak; None where nothing was, or it cannot be read."""
    try:
        search = read_search(called.index, called.params, called.text)
    except InputError:
        return None
    return search.text if search.edited else None


def gunzip(data: bytes, limit: int) -> bytes:
    """Raises InputError where it is no gzip, cut short, or longer than `limit` once unpacked."""
    unpacker = zlib.decompressobj(wbits=31)
    try:
        made = unpacker.decompress(data, limit)
    except zlib.error as error:
        raise InputError("the body is no gzip") from error
    if not unpacker.eof or unpacker.unused_data:
        raise InputError("the body is cut short or too long, or more follows it")
    return made


def without_source(scope: Scope) -> bytes:
    """The query of a URL without the body that it may hold: Elasticsearch refuses it beside another."""
    given: bytes = scope.get("query_string", b"")
    if b"source" not in given:
        return given
    kept = [
        pair
        for pair in given.replace(b";", b"&").split(b"&")
        if pair.split(b"=")[0] not in (b"source", b"source_content_type")
    ]
    return b"&".join(kept)


def names_user(headers: Headers) -> bool:
    return any(name.lower() == b"x-bespeak-user" for name, _ in headers)


def sent(name: bytes) -> bool:
    """Whether a client's header goes on with a body that is not the client's."""
    return name not in NOT_SENT and not name.startswith((b"x-bespeak", b"proxy-"))


def takes_gzip(headers: Headers) -> bool:
    return any(name.lower() == b"accept-encoding" and b"gzip" in value.lower() for name, value in headers)


def header(*told: Outcome) -> tuple[bytes, bytes]:
    """One member for each search of the request, in order; one for all that are too many."""
    return b"X-Bespeak", ", ".join(map(str, told[: MAX_PERSONAL_PARTS + 1])).encode("ascii", "replace")


def unfiltered(called: Called) -> Params:
    """The parameters without `filter_path`, which is applied to the answer once it is reordered."""
    return tuple(pair for pair in called.params if pair[0] != "filter_path")


def filtered(called: Called, text: str) -> str:
    """The answer as the client's `filter_path` cuts it."""
    wanted = dict(called.params).get("filter_path")  # of several the last counts, as in Elasticsearch
    if wanted is None:
        return text
    # A number beyond all bounds would come out as no JSON: that raises.
    return json.dumps(apply(json.loads(text), wanted), separators=(",", ":"), allow_nan=False)


def shown_hits(answer: str) -> tuple[Found, ...]:
    """The hits of an answer that was not reordered, none where they have no ids."""
    try:
        return read_reply(answer).hits
    except InputError:
        return ()


def title_of(source: Mapping[str, Any]) -> str:
    """What a person would call a hit: its title or name."""
    found = next((source[name] for name in ("title", "name") if isinstance(source.get(name), str)), "")
    return well_formed(str(found)[:MAX_TITLE_CHARS])
