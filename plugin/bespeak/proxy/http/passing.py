"""Requests that are not personalised: each streams to the engine, and its answer streams back, byte for byte."""

from __future__ import annotations

import asyncio
import json
import logging
import traceback
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias
from urllib.parse import quote

from bespeak.errors import EngineUnreachable
from bespeak.proxy.http.upstream import Answer, Headers, Upstream, UpstreamTimeout, end_to_end

Scope: TypeAlias = MutableMapping[str, Any]
Message: TypeAlias = MutableMapping[str, Any]
Receive: TypeAlias = Callable[[], Awaitable[Message]]
Send: TypeAlias = Callable[[Message], Awaitable[None]]

LISTEN_AFTER_S = 0.05
"""Requests that end sooner are not watched for a client that disconnects: most do, and watching costs a task."""

BODY_FOLLOWS = "bespeak.body_follows"
"""Key in the start of an answer: the next message holds all of its body, so a server may write both at once."""
FRAMING = frozenset((b"content-length", b"transfer-encoding"))
PRODUCT = (b"X-Elastic-Product", b"Elasticsearch")
"""Sent with our own errors too: official clients of some versions check it before the status, and would report a
foreign product while the engine is down."""

logger = logging.getLogger("bespeak.proxy")


class ClientGone(Exception):
    """The client disconnected, so nobody waits for the answer."""


async def pass_on(
    upstream: Upstream,
    scope: Scope,
    receive: Receive,
    send: Send,
    *,
    body: bytes | None = None,
    more: bool = False,
    added: Headers = (),
) -> None:
    """Sends the client's request to the engine, and the engine's answer to the client with the headers `added`.

    `body` is the part of the request's body that was already read, None if nothing was; `more` says that the rest is
    still to be read. If the engine fails before it answers, the client gets an error in Elasticsearch's shape. If it
    fails during the answer, the error is raised, so that the server breaks off the client's connection: a cut body must
    never look complete.
    """
    try:
        if body is None and has_body(scope["headers"]):
            body, more = (b"", True) if expects_continue(scope["headers"]) else await next_part(receive)
        with WhileClientWaits(receive) as waiting:
            content = RequestBody(receive, body or b"", waiting.listen) if more else body
            if not more:
                waiting.listen_later()
            try:
                answer = await upstream.send(scope["method"], request_target(scope), scope["headers"], content)
            except EngineUnreachable as error:
                await answer_fault(send, error, added)
                return
            try:
                await relay(answer, send, added)
            finally:
                answer.release()
    except ClientGone:
        return


async def relay(answer: Answer, send: Send, added: Headers = ()) -> None:
    """Sends an answer to the client as it arrives. Raises EngineUnreachable if it is cut."""
    body = answer.take_rest()
    start: Message = {"type": "http.response.start", "status": answer.status}
    start["headers"] = [*end_to_end(answer.headers), *added]
    if body is not None:
        start[BODY_FOLLOWS] = True
    await send(start)
    while body is None:
        if chunk := await answer.next_chunk():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        else:
            body = b""
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def answer_json(send: Send, status: int, content: object, headers: Headers = ()) -> None:
    """Sends a small answer of our own."""
    body = json.dumps(content, ensure_ascii=False).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def answer_error(send: Send, status: int, kind: str, reason: str, headers: Headers = ()) -> None:
    """Sends an error in Elasticsearch's shape, so that its clients raise the matching exception."""
    error = {"type": kind, "reason": reason}
    content = {"error": {"root_cause": [error], **error}, "status": status}
    await answer_json(send, status, content, (PRODUCT, *headers))


async def answer_fault(send: Send, error: EngineUnreachable, headers: Headers = ()) -> None:
    """Sends 504 for an engine that did not answer in time, 502 for any other failure to reach it."""
    timed_out = isinstance(error, UpstreamTimeout)
    kind = "upstream_timeout_exception" if timed_out else "upstream_unreachable_exception"
    await answer_error(send, 504 if timed_out else 502, kind, str(error), headers)


async def read_body(receive: Receive, limit: int) -> tuple[bytes, bool]:
    """The request's body, and whether it is complete: reading stops once it is longer than `limit` bytes.

    A longer request can go on by `pass_on(..., body=..., more=True)`. Raises ClientGone.
    """
    part, more = await next_part(receive)
    if not more:
        return part, True
    parts, size = [part], len(part)
    while more and size <= limit:
        part, more = await next_part(receive)
        parts.append(part)
        size += len(part)
    return b"".join(parts), not more


async def next_part(receive: Receive) -> tuple[bytes, bool]:
    """The next part of a request's body, and whether more follows. Raises ClientGone."""
    message = await receive()
    if message["type"] != "http.request":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)


class RequestBody:
    """A request's body as it arrives: the part already read, then the rest. Calls `at_end` after the last part."""

    def __init__(self, receive: Receive, already_read: bytes, at_end: Callable[[], None]) -> None:
        self._receive, self._already_read, self._at_end = receive, already_read, at_end
        self._more = True

    def __aiter__(self) -> RequestBody:
        return self

    async def __anext__(self) -> bytes:
        if self._already_read:
            part, self._already_read = self._already_read, b""
            return part
        if not self._more:
            raise StopAsyncIteration
        part, self._more = await next_part(self._receive)
        if not self._more:
            self._at_end()
        return part


class WhileClientWaits:
    """Cancels its block once the client disconnects, as `asyncio.timeout` does. The block then raises ClientGone.

    Listen only after the request's body has been read: ASGI reports a disconnect in place of the next part.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._timer: asyncio.TimerHandle | None = None
        self._listener: asyncio.Task[None] | None = None
        self._gone = False

    def __enter__(self) -> WhileClientWaits:
        task = asyncio.current_task()
        assert task is not None
        self._task, self._cancelling = task, task.cancelling()
        return self

    def listen_later(self) -> None:
        self._timer = asyncio.get_running_loop().call_later(LISTEN_AFTER_S, self.listen)

    def listen(self) -> None:
        self._listener = asyncio.get_running_loop().create_task(self._listen())

    async def _listen(self) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self._gone = True
        self._task.cancel()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._timer is not None:
            self._timer.cancel()
        if self._listener is not None:
            self._listener.cancel()
        if self._gone and kind is asyncio.CancelledError and self._task.uncancel() <= self._cancelling:
            raise ClientGone from error


def request_target(scope: Scope) -> bytes:
    """Path and query as the client wrote them, without the path that the app is mounted under."""
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    root = quote(scope.get("root_path", "")).encode()
    if root and path.startswith(root):
        path = path[len(root) :] or b"/"
    query: bytes = scope.get("query_string", b"")
    return b"%s?%s" % (path, query) if query else path


def has_body(headers: Headers) -> bool:
    for name, _ in headers:  # noqa: SIM110 - runs for every request, and `any` takes twice as long
        if name.lower() in FRAMING:
            return True
    return False


def expects_continue(headers: Headers) -> bool:
    """Whether the client waits for `100 Continue` before it sends the body."""
    return any(name.lower() == b"expect" for name, _ in headers)


def log_fault(stage: str, error: Exception) -> None:
    """Logs where a stage failed and the kind of error, but not its message, which may hold what the client sent."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    logger.error("%s failed: %s at %s:%s", stage, type(error).__name__, Path(place.filename).name, place.lineno)
