"""The proxy as an ASGI app: it serves its own routes, personalises searches, and passes the rest to the engine."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Protocol

from bespeak.errors import EngineUnreachable
from bespeak.proxy.http.passing import (
    ClientGone,
    Message,
    Receive,
    Scope,
    Send,
    answer_error,
    answer_fault,
    log_fault,
    pass_on,
)
from bespeak.proxy.http.upstream import Headers, Upstream

OWN_PATH = "/_bespeak"
REPLAY_BYTES = 16 * 1024 * 1024
"""The longest body that can be sent again after a fault of ours."""
FAILED = ((b"X-Bespeak", b"rewrite=failed; rerank=failed"),)


class SearchRoute(Protocol):
    """Decides which requests are searches, and answers them."""

    def concerns(self, method: str, path: str, headers: Headers) -> bool: ...
    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class OwnRoutes(Protocol):
    """Bespeak's own routes."""

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None: ...


class Proxy:
    """Holds nothing about a request. `passed` is called for each request that is neither a search nor for our own
    routes, `closing` at the end, after the upstream's connections are closed.
    """

    def __init__(
        self,
        upstream: Upstream,
        *,
        searches: SearchRoute | None = None,
        own: OwnRoutes | None = None,
        passed: Callable[[], object] | None = None,
        closing: Sequence[Callable[[], object]] = (),
    ) -> None:
        self._upstream, self._searches, self._own = upstream, searches, own
        self._passed, self._closing = passed, tuple(closing)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind = scope["type"]
        if kind == "lifespan":
            await self._live(receive, send)
        elif kind == "websocket":
            await receive()
            await send({"type": "websocket.close"})
        elif self._own is not None and is_own(path_of(scope)):
            await self._answer_own(self._own, scope, receive, send)
        elif self._searches is not None and self._concerns(self._searches, scope):
            await self._search(self._searches, scope, receive, send)
        else:
            if self._passed is not None:
                self._passed()
            await pass_on(self._upstream, scope, receive, send)

    def _concerns(self, searches: SearchRoute, scope: Scope) -> bool:
        try:
            return searches.concerns(scope["method"], path_of(scope), scope["headers"])
        except Exception as error:
            log_fault("which requests are searches", error)
            return False

    async def _answer_own(self, own: OwnRoutes, scope: Scope, receive: Receive, send: Send) -> None:
        sent = StartedSend(send)
        try:
            await own(scope, receive, sent)
        except ClientGone:
            return
        except Exception as error:
            log_fault("own routes", error)
            if sent.started:
                raise
            await answer_error(send, 500, "bespeak_exception", "Bespeak failed; its log says where")

    async def _search(self, searches: SearchRoute, scope: Scope, receive: Receive, send: Send) -> None:
        """After a fault of ours the request goes on unchanged: the client loses only the personal order."""
        sent, read = StartedSend(send), Replay(receive)
        try:
            await searches(scope, read, sent)
        except ClientGone:
            return
        except EngineUnreachable as error:
            if sent.started:
                raise
            await answer_fault(send, error)
        except Exception as error:
            log_fault("searches", error)
            if sent.started:
                raise
            if not read.is_complete:
                await answer_error(send, 500, "bespeak_exception", "Bespeak failed; its log says where", FAILED)
                return
            await pass_on(self._upstream, scope, read.again(), send, added=FAILED)

    async def _live(self, receive: Receive, send: Send) -> None:
        while True:
            message = await receive()
            if message["type"] == "lifespan.startup":
                await send({"type": "lifespan.startup.complete"})
            elif message["type"] == "lifespan.shutdown":
                await self.close()
                await send({"type": "lifespan.shutdown.complete"})
                return

    async def close(self) -> None:
        """For servers that send no lifespan events. A part that fails to close is logged, and the others are closed."""
        await self._upstream.close()
        for close in self._closing:
            try:
                closing = close()
                if inspect.isawaitable(closing):
                    await closing
            except Exception as error:
                log_fault("closing", error)


class StartedSend:
    """A `send` that knows whether an answer has started."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.started = False

    async def __call__(self, message: Message) -> None:
        self.started = True
        await self._send(message)


class Replay:
    """Keeps the part of a request that was read, up to `REPLAY_BYTES`."""

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._kept: list[Message] = []
        self._bytes = 0

    @property
    def is_complete(self) -> bool:
        return self._bytes <= REPLAY_BYTES

    async def __call__(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.request":
            self._bytes += len(message.get("body", b""))
            self._kept = [*self._kept, message] if self.is_complete else []
        return message

    def again(self) -> Receive:
        """A `receive` that gives the part already read, then the rest."""
        kept = iter(self._kept)

        async def receive() -> Message:
            return next(kept, None) or await self._receive()

        return receive


def path_of(scope: Scope) -> str:
    """The path without the one that the app is mounted under."""
    path: str = scope["path"]
    root: str = scope.get("root_path", "")
    return path[len(root) :] or "/" if root and path.startswith(root) else path


def is_own(path: str) -> bool:
    return path == OWN_PATH or path.startswith(OWN_PATH + "/")
