"""What is not personalised: a request streamed to the engine and its answer streamed back, byte for byte."""

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
"""What is over sooner is not watched for a client that goes away: most is, and watching costs a task."""

BODY_FOLLOWS = "bespeak.body_follows"
"""In the start of an answer: all of its body is sent next, so that a server that knows this may write both at once."""
FRAMING = frozenset((b"content-length", b"transfer-encoding"))
PRODUCT = (b"X-Elastic-Product", b"Elasticsearch")
"""On errors of ours too: official clients of some versions look for it before they look at the status, and would
report a foreign product where the engine is down."""

logger = logging.getLogger("bespeak.proxy")


class ClientGone(Exception):
    """Nobody waits for the answer any more."""


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
    """Asks the engine what the client asked, and answers what it answered with the headers `added`.

    `body` is what was already read of the request, all of it unless `more`; None: nothing was. A fault of the engine's
    before its answer is answered in its own shape; one in the middle of it is raised, so that the server breaks the
    client's connection off too: a cut body never looks whole.
    """
    try:
        if body is None and has_body(scope["headers"]):
            body, more = (b"", True) if expects(scope["headers"]) else await next_part(receive)
        with WhileThere(receive) as there:
            content = RequestBody(receive, body or b"", there.listen) if more else body
            if not more:
                there.listen_later()
            try:
                answer = await upstream.send(scope["method"], target(scope), scope["headers"], content)
            except EngineUnreachable as error:
                await answer_fault(send, error, added)
                return
            try:
                await give(answer, send, added)
            finally:
                answer.release()
    except ClientGone:
        return


async def give(answer: Answer, send: Send, added: Headers = ()) -> None:
    """An answer to the client as it comes. Raises EngineUnreachable where it is cut."""
    body = answer.take_whole()
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
    """A whole small answer of our own."""
    body = json.dumps(content, ensure_ascii=False).encode()
    own = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body)), *headers]
    await send({"type": "http.response.start", "status": status, "headers": own})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def answer_error(send: Send, status: int, kind: str, reason: str, headers: Headers = ()) -> None:
    """An error in the shape of Elasticsearch's, so that its clients raise what they raise for it."""
    error = {"type": kind, "reason": reason}
    content = {"error": {"root_cause": [error], **error}, "status": status}
    await answer_json(send, status, content, (PRODUCT, *headers))


async def answer_fault(send: Send, error: EngineUnreachable, headers: Headers = ()) -> None:
    """502 for an engine that cannot be reached, 504 for one that is late."""
    late = isinstance(error, UpstreamTimeout)
    kind = "upstream_timeout_exception" if late else "upstream_unreachable_exception"
    await answer_error(send, 504 if late else 502, kind, str(error), headers)


async def read_body(receive: Receive, limit: int) -> tuple[bytes, bool]:
    """The request's body, and whether that is all: reading stops once it is longer than `limit` bytes.

    What was read of a longer one goes on by `pass_on(..., body=..., more=True)`. Raises ClientGone.
    """
    found, more = await next_part(receive)
    if not more:
        return found, True
    parts, size = [found], len(found)
    while more and size <= limit:
        part, more = await next_part(receive)
        parts.append(part)
        size += len(part)
    return b"".join(parts), not more


async def next_part(receive: Receive) -> tuple[bytes, bool]:
    """The next of a request's body, and whether more comes. Raises ClientGone."""
    message = await receive()
    if message["type"] != "http.request":
        raise ClientGone
    return message.get("body", b""), message.get("more_body", False)


class RequestBody:
    """A request's body as it comes: what was read already, then the rest; `at_end` is called once there is no more."""

    def __init__(self, receive: Receive, read: bytes, at_end: Callable[[], None]) -> None:
        self._receive, self._read, self._at_end = receive, read, at_end
        self._more = True

    def __aiter__(self) -> RequestBody:
        return self

    async def __anext__(self) -> bytes:
        if self._read:
            read, self._read = self._read, b""
            return read
        if not self._more:
            raise StopAsyncIteration
        part, self._more = await next_part(self._receive)
        if not self._more:
            self._at_end()
        return part


class WhileThere:
    """Ends what is under way in its block once the client is gone: by a cancellation, as `asyncio.timeout` does.

    Listening may start only when the request's body is read, since the client's going is told in its place. Raises
    ClientGone out of the block.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._timer: asyncio.TimerHandle | None = None
        self._listener: asyncio.Task[None] | None = None
        self._gone = False

    def __enter__(self) -> WhileThere:
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


def target(scope: Scope) -> bytes:
    """Path and query as the client wrote them, without the path that the app is mounted under."""
    path: bytes = scope.get("raw_path") or quote(scope["path"]).encode()
    root = quote(scope.get("root_path", "")).encode()
    if root and path.startswith(root):
        path = path[len(root) :] or b"/"
    query: bytes = scope.get("query_string", b"")
    return b"%s?%s" % (path, query) if query else path


def has_body(headers: Headers) -> bool:
    for name, _ in headers:  # noqa: SIM110 - asked of every request, and `any` takes twice as long
        if name.lower() in FRAMING:
            return True
    return False


def expects(headers: Headers) -> bool:
    """Whether the client waits for the engine's word before it sends the body."""
    return any(name.lower() == b"expect" for name, _ in headers)


def report(stage: str, error: Exception) -> None:
    """Where it failed and with what kind of error. Its message may hold what the client sent, so it is not logged."""
    place = traceback.extract_tb(error.__traceback__)[-1]
    logger.error("%s failed: %s at %s:%s", stage, type(error).__name__, Path(place.filename).name, place.lineno)
