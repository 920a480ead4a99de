"""One connection to a node of the engine: it sends a request as bytes and hands out the answer as it arrives.

httpcore keeps raw targets and the case, order and duplicates of headers too, but three things that the proxy needs are
missing (1.0.9, run against tests/proxy/http): it reads nothing until the request's body is sent, so an early answer or
a refusal after `Expect: 100-continue` hangs; it refuses targets beyond ASCII; and it cannot tell whether any byte of an
answer came, which decides whether a request may be sent again. It also takes 4 times (4 MB bulk) to 10 times (small
GET) the CPU on one connection, and up to 40 times on 16 (`python benchmarks/proxy.py --clients`).

Both directions are bounded: the socket is not read while the caller lags behind, and the caller waits while the socket
cannot be written.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

READ_AHEAD_BYTES = 256 * 1024
"""Bytes of an answer that are buffered for a caller that lags behind."""
CONTINUE_S = 1.0
"""How long to wait for an engine's `100 Continue` before sending the body anyway (RFC 9110 10.1.1)."""

NOT_REUSABLE = HTTPStatus.BAD_REQUEST
"""After a request that it could not parse, Elasticsearch keeps the connection open but reads nothing more from it: the
next request would wait in vain. Not every 400 means this, but only a new connection is safe."""


class ConnectionBroken(Exception):
    """The connection ended, or stopped speaking HTTP, before the answer was complete."""


class ConnectionTimedOut(Exception):
    """Nothing moved in either direction for the time allowed."""


class EngineConnection(asyncio.Protocol):
    """Carries one request at a time: call `ask`, then `next_chunk` until it gives b"", then `finish` or `abort`."""

    transport: asyncio.Transport

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.used = False  # it has carried a complete request before
        self.idle_since = 0.0  # set by the pool that keeps it
        self._loop = asyncio.get_running_loop()
        self._parser = HttpResponseParser(self)
        self._busy = False
        self._lost = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None
        self._last_progress = 0.0
        self._begin(head_only=False)

    def _begin(self, head_only: bool) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.answer_began = False  # any byte of an answer came
        self.head_complete = False  # the head of the final answer came
        self.complete = False  # the body came as well
        self._head_only = head_only
        self._keep_alive = False
        self._may_send: asyncio.Event | None = None
        self._awaits_caller = False  # the next piece of the body is the caller's to give: the engine is not late
        self._sender: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._chunks: list[bytes] = []
        self._buffered_bytes = 0
        self._reading_paused = False

    @property
    def open(self) -> bool:
        return not self._lost and not self.transport.is_closing()

    async def ask(self, method: str, head: bytes, body: bytes | AsyncIterator[bytes] | None, expect: bool) -> None:
        """Sends a request, its `body` already framed, and waits for the head of the answer.

        With `expect`, a streamed body waits for the engine's `100 Continue`, and is not sent if the engine answers
        instead. Raises ConnectionBroken, ConnectionTimedOut, and whatever a streamed body raises.
        """
        self._begin(method == "HEAD")
        self._busy = True
        if body is None or isinstance(body, bytes):
            self.transport.write(head + body if body else head)
        else:
            self._may_send = asyncio.Event() if expect else None
            self.transport.write(head)
            self._sender = self._loop.create_task(self._send(body))
        while not self.head_complete:
            await self._wait_for_change()

    async def next_chunk(self) -> bytes:
        """The bytes of the body that arrived since the last call, at least one; b"" at the end of the body.

        Raises ConnectionBroken and ConnectionTimedOut.
        """
        while not self._chunks:
            if self.complete:
                return b""
            await self._wait_for_change()
        return self.take_buffered()

    def take_buffered(self) -> bytes:
        """The bytes of the body that have arrived, without waiting."""
        taken = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks, self._buffered_bytes = [], 0
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()
        return taken

    def finish(self) -> bool:
        """Whether the connection can carry another request. It is aborted if not."""
        sound = self.complete and self._sender is None and self._error is None and self.open
        if not (sound and self._keep_alive and self.status != NOT_REUSABLE):
            self.abort()
            return False
        if self._head_only:  # the parser still waits for a body, which an answer to HEAD never has
            self._parser = HttpResponseParser(self)
        self._busy = False
        self.used = True
        return True

    def abort(self) -> None:
        if self._sender is not None:
            self._sender.cancel()
        self.transport.abort()

    async def _wait_for_change(self) -> None:
        """Returns when anything has changed. Raises the error that ended the connection."""
        if self._error is not None:
            raise self._error
        self._last_progress = self._loop.time()
        self._waiter = self._loop.create_future()
        if self._timer is None:
            self._timer = self._loop.call_later(self.timeout_s, self._check_time)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _check_time(self) -> None:
        """Ends the wait if nothing has moved for too long.

        One timer serves many waits, since setting one for each costs more than looking now and then. The time counts
        from the last progress in either direction: a long upload is not late, and neither is an engine that waits for
        the client's next piece.
        """
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        quiet_since = self._loop.time() if self._awaits_caller else self._last_progress
        left_s = quiet_since + self.timeout_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._check_time)
        else:
            self._waiter.set_exception(ConnectionTimedOut())

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._may_send is not None and (self.head_complete or self._error is not None):
            self._may_send.set()

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._wake()

    async def _send(self, body: AsyncIterator[bytes]) -> None:
        """Writes the body as fast as the engine reads it. `_sender` stays set if the body was not sent to its end."""
        try:
            if self._may_send is not None:
                await self._wait_for_continue(self._may_send)
                if self.head_complete:
                    return
            self._awaits_caller = True
            async for chunk in body:
                self._awaits_caller = False
                if self.complete or not self.open:
                    return
                await self._write(chunk)
                self._awaits_caller = True
            self._sender, self._awaits_caller, self._last_progress = None, False, self._loop.time()
        except Exception as error:
            self._fail(error)

    async def _wait_for_continue(self, may_send: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(CONTINUE_S):
                await may_send.wait()
        except TimeoutError:
            pass

    async def _write(self, chunk: bytes) -> None:
        self._last_progress = self._loop.time()
        self.transport.write(chunk)
        if self._writable is not None:
            await self._writable
            self._last_progress = self._loop.time()

    # Called by the transport.

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self._busy or self.complete:  # nothing was asked
            self._keep_alive = False
            self.transport.abort()
            return
        self.answer_began = True
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self._keep_alive = False
            if not self.complete:
                self._fail(ConnectionBroken("the engine's answer is not HTTP"))
                self.transport.abort()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        closed_cleanly = error is None and self._error is None
        if closed_cleanly and self.head_complete and not self.complete and self._ends_with_connection():
            self.complete = True
        if not self.complete:
            self._fail(ConnectionBroken("the engine closed the connection"))
        self._wake()

    def _ends_with_connection(self) -> bool:
        return not any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self.headers)

    # Called by the parser.

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.head_complete:  # otherwise it is a trailer, which may be discarded (RFC 9110 6.5.1)
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self.headers = []
            if self.status == 100 and self._may_send is not None:
                self._may_send.set()
            return
        self.head_complete = True
        self._keep_alive = self._parser.should_keep_alive()
        self.complete = self._head_only

    def on_body(self, data: bytes) -> None:
        if self._head_only:
            self._keep_alive = False
            return
        self._chunks.append(data)
        self._buffered_bytes += len(data)
        if self._buffered_bytes > READ_AHEAD_BYTES and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.head_complete:
            self.complete = True
