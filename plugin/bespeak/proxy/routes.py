"""Bespeak's own routes under `/_bespeak`: events, profiles, rewrites, health, metrics, and the share of users.

Nothing here goes to the engine, and nothing that a client sends chooses a file, an upstream, a template or a model.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from http import HTTPStatus
from typing import TypeAlias, TypeVar
from urllib.parse import unquote_to_bytes

from bespeak.errors import BespeakError, InputError, StoreError, UsageError
from bespeak.profiles.events import user_key
from bespeak.profiles.ubi import ubi_line
from bespeak.proxy.access import check_access
from bespeak.proxy.http.passing import Message, Receive, Scope, Send, WhileClientWaits, answer_json, request_target
from bespeak.proxy.http.refusal import Refusal
from bespeak.proxy.identity import Share, tenant_of
from bespeak.proxy.metrics import CONTENT_TYPE, Metrics
from bespeak.proxy.posted import MAX_EVENTS_BYTES, as_line, as_lines, is_zipped, read_question, unzip, whole_body
from bespeak.proxy.user_data import EVENTS_BATCH, AddedEvents, UserData
from bespeak.records import Event, Rewrite, UserKey

T = TypeVar("T")

READY_S = 5.0
STORE_THREADS = 4
"""Threads of their own: a store that hangs does not block the event loop's threads, which look up hosts."""

Respond: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
AskRewrite: TypeAlias = Callable[[str, UserKey | None, str], Awaitable[Rewrite]]
AskReady: TypeAlias = Callable[[], Awaitable[Sequence[str]]]


@dataclass(frozen=True, slots=True)
class Hooks:
    """The functions of the rest of the proxy that the routes call."""

    rewrite: AskRewrite  # of a query, for a user and a session
    ready: AskReady  # why the proxy is not ready, a sentence each
    answered: Callable[[UserKey, str], object] = lambda _user, _session_id: None  # after events that answer a query
    ready_s: float = READY_S  # how long `ready` may take


class Routes:
    """The ASGI app for paths under `/_bespeak`.

    Without a token it serves only this machine, and no page of another site in a browser on it.
    """

    def __init__(self, data: UserData, hooks: Hooks, metrics: Metrics, share: Share, token: str | None = None) -> None:
        self._data, self._hooks, self._metrics, self._share, self._token = data, hooks, metrics, share, token
        self._threads = ThreadPoolExecutor(STORE_THREADS, "bespeak-routes")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            parts = segments(scope)
            if parts[:1] != ["health"]:
                check_access(scope, self._token)
            respond = responder(self._routes(parts), scope["method"])
            await respond(scope, receive, send)
        except Refusal as refusal:
            await refusal.answer(send)
        except (InputError, UsageError) as error:
            await Refusal(HTTPStatus.BAD_REQUEST, str(error)).answer(send)

    def close(self) -> None:
        """Waits for what the store is doing."""
        self._threads.shutdown()

    def _routes(self, parts: Sequence[str]) -> Mapping[str, Respond]:
        """The functions that answer at a path, by method."""
        match parts:
            case ["events"]:
                return {"POST": self._take_events}
            case ["profile", user_id]:
                return {"GET": partial(self._export, user_id), "DELETE": partial(self._forget, user_id)}
            case ["profile", user_id, "consent"]:
                return {"PUT": partial(self._set_consent, user_id)}
            case ["rewrite"]:
                return {"POST": self._answer_rewrite}
            case ["health"] | ["health", "live" | "ready"]:
                respond = partial(self._answer_health, parts[-1])
                return {"GET": respond, "HEAD": respond}
            case ["metrics"]:
                return {"GET": self._answer_metrics}
            case ["share"]:
                return {"GET": self._answer_share, "PUT": self._set_share}
        return {}

    async def _take_events(self, scope: Scope, receive: Receive, send: Send) -> None:
        tenant, zipped = tenant_of(scope["headers"]), is_zipped(scope["headers"])
        body = await whole_body(receive, MAX_EVENTS_BYTES)

        def add() -> AddedEvents:
            return self._data.add(as_lines(unzip(body) if zipped else body), tenant)

        added = await self._stored(add, " Some events may have been taken; sending all again doubles none.")
        content: dict[str, object] = {
            "taken": added.taken,
            "rejected": [{"line": line_no, "reason": reason} for line_no, reason in added.rejected],
        }
        if more := added.n_rejected - len(added.rejected):
            content["rejected_unlisted"] = more
        await answer_json(send, 400 if added.n_rejected and not added.taken else 200, content)
        if added.answered:
            self._hooks.answered(*added.answered)

    async def _export(self, user_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        """UBI lines as they are read; a fault in the middle breaks the answer off, so it does not look complete."""
        user = user_key(tenant_of(scope["headers"]), user_id)
        events = await self._stored(partial(self._data.export, user))
        lines = await self._stored(partial(next_lines, events))
        headers = [(b"content-type", b"application/x-ndjson")]
        with WhileClientWaits(receive) as there:
            there.listen()
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while lines:
                await send({"type": "http.response.body", "body": lines, "more_body": True})
                lines = await self._in_thread(partial(next_lines, events))
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _forget(self, user_id: str, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        user = user_key(tenant_of(scope["headers"]), user_id)
        gone = await self._stored(partial(self._data.forget, user))
        await answer_json(send, 200, gone._asdict() | self._relearning(gone.events > 0, user))

    async def _set_consent(self, user_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        user = user_key(tenant_of(scope["headers"]), user_id)
        given = {b"true": True, b"false": False}.get((await whole_body(receive)).strip())
        if given is None:
            raise Refusal(HTTPStatus.BAD_REQUEST, "the body must be true or false")
        await self._stored(partial(self._data.set_consent, user, given))
        await answer_json(send, 200, {"consent": given} | self._relearning(not given, user))

    def _relearning(self, lost: bool, user: UserKey) -> dict[str, bool]:
        """Says whether to learn again: a single user cannot be removed from what was learnt."""
        return {"learn_again": True} if lost and self._data.is_learnt_from(user) else {}

    async def _answer_rewrite(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = read_question(await whole_body(receive))
        user = user_key(asked["tenant"] or tenant_of(scope["headers"]), asked["user"]) if asked["user"] else None
        try:
            rewrite = await self._hooks.rewrite(asked["query"], user, asked["session"])
        except BespeakError as error:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from error
        await answer_json(send, 200, asdict(rewrite))

    async def _answer_health(self, what: str, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        content: dict[str, object] = {} if what == "ready" else {"live": True}
        missing: Sequence[str] = ()
        if what != "live":
            missing = await self._missing()
            content |= {"ready": not missing, "missing": list(missing)}
        bodiless = without_body(send) if scope["method"] == "HEAD" else send
        await answer_json(bodiless, 503 if missing else 200, content)

    async def _missing(self) -> Sequence[str]:
        try:
            async with asyncio.timeout(self._hooks.ready_s):
                return await self._hooks.ready()
        except TimeoutError:
            return [f"no answer within {self._hooks.ready_s:g} s"]
        except BespeakError as error:
            return [str(error)]

    async def _answer_metrics(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        body = self._metrics.text()
        headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _answer_share(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await answer_json(send, 200, {"share": self._share.value})

    async def _set_share(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = (await whole_body(receive)).decode("utf-8", "replace")
        self._share.set(Share.parse(text.strip().strip('"')))
        await self._answer_share(scope, receive, send)

    async def _in_thread(self, act: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, act)

    async def _stored(self, act: Callable[[], T], hint: str = "") -> T:
        """Raises Refusal if the store fails."""
        try:
            return await self._in_thread(act)
        except StoreError as error:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}.{hint}" if hint else str(error)) from error


def segments(scope: Scope) -> list[str]:
    """The parts of the path below `/_bespeak`, each percent-decoded by itself. Raises Refusal."""
    try:
        path = request_target(scope).partition(b"?")[0]
        parts = [unquote_to_bytes(part).decode("utf-8") for part in path.split(b"/")]
    except UnicodeDecodeError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, "the path is not UTF-8") from error
    return parts[2:] if parts[:2] == ["", "_bespeak"] else []


def responder(by_method: Mapping[str, Respond], method: str) -> Respond:
    """Raises Refusal."""
    if not by_method:
        raise Refusal(HTTPStatus.NOT_FOUND, "no such path under /_bespeak")
    if method not in by_method:
        allowed = ", ".join(by_method)
        raise Refusal(HTTPStatus.METHOD_NOT_ALLOWED, f"this path takes {allowed}", [(b"allow", allowed.encode())])
    return by_method[method]


def next_lines(events: Iterator[Event]) -> bytes:
    """The next events as UBI lines, empty at the end. Raises StoreError."""
    return b"".join(as_line(ubi_line(event)) + b"\n" for event in itertools.islice(events, EVENTS_BATCH))


def without_body(send: Send) -> Send:
    async def sent(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return sent
