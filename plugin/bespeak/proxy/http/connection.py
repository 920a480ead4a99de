"""One connection to a node of the engine: a request out as bytes, its answer in as it comes.

httpcore keeps raw targets and the case, order and duplicates of headers too, but three things that the proxy needs are
missing (1.0.9, run against tests/proxy/http): it reads nothing until the request's body is sent, so an early answer or
a refusal after `Expect: 100-continue` hangs; it refuses targets beyond ASCII; and it cannot tell whether any byte of an
answer came, which decides about sending a request again. It also takes 4 times (4 MB bulk) to 10 times (small GET) the
CPU on one connection and up to 40 times on 16 (`python benchmarks/proxy.py --clients`).

Both directions are bounded: the socket is not read while the caller lags behind, and the caller waits while the socket
does.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from typing import cast

from httptools import HttpParserError, HttpParserUpgrade, HttpResponseParser

READ_AHEAD_BYTES = 256 * 1024
"""How much of an answer is kept for a caller that lags behind."""
CONTINUE_S = 1.0
"""How long an engine may think over `Expect: 100-continue` before the body goes out all the same (RFC 9110 10.1.1)."""

UNREAD = 400
"""The status of a request that could not be read. Elasticsearch keeps such a connection open and reads nothing more of
it: the next request on it would wait in vain. Not every 400 is one, but only a new connection is sure."""


class Broken(Exception):
    """The connection ended, or no longer spoke HTTP, before the answer was whole."""


class Late(Exception):
    """Nothing moved in either direction for the time allowed."""


class Connection(asyncio.Protocol):
    """Carries one request at a time: `ask`, then `next_chunk` until b"", then `finish` or `drop`."""

    transport: asyncio.Transport

    def __init__(self, timeout_s: float) -> None:
        self.timeout_s = timeout_s
        self.used = False  # it carried a whole request before this one
        self.idle_since = 0.0  # kept by whoever keeps it
        self._loop = asyncio.get_running_loop()
        self._parser = HttpResponseParser(self)
        self._busy = False
        self._lost = False
        self._waiter: asyncio.Future[None] | None = None
        self._timer: asyncio.TimerHandle | None = None
        self._writable: asyncio.Future[None] | None = None
        self._progress = 0.0
        self._begin(head_only=False)

    def _begin(self, head_only: bool) -> None:
        self.status = 0
        self.headers: list[tuple[bytes, bytes]] = []
        self.answered = False  # the head of the final answer is there
        self.ended = False  # so is its body
        self.touched = False  # any byte of an answer came
        self._head_only = head_only
        self._keep_alive = False
        self._may_send: asyncio.Event | None = None
        self._starved = False  # the caller has to give more of the body: the engine is not to blame
        self._sender: asyncio.Task[None] | None = None
        self._error: Exception | None = None
        self._chunks: list[bytes] = []
        self._held_bytes = 0
        self._reading_paused = False

    # What the caller does.

    @property
    def open(self) -> bool:
        return not self._lost and not self.transport.is_closing()

    async def ask(self, method: str, head: bytes, body: bytes | AsyncIterator[bytes] | None, expect: bool) -> None:
        """Sends a request, `body` already framed, and waits for the head of its answer.

        Raises Broken, Late, and whatever a streamed body raises. With `expect` a streamed body waits for the engine's
        word, and is not sent at all where the engine answers at once.
        """
        self._begin(method == "HEAD")
        self._busy = True
        if body is None or isinstance(body, bytes):
            self.transport.write(head + body if body else head)
        else:
            self._may_send = asyncio.Event() if expect else None
            self.transport.write(head)
            self._sender = self._loop.create_task(self._send(body))
        while not self.answered:
            await self._change()

    async def next_chunk(self) -> bytes:
        """What came of the body since the last call, waiting for some; b"" at its end. Raises Broken, Late."""
        while not self._chunks:
            if self.ended:
                return b""
            await self._change()
        return self.take()

    def take(self) -> bytes:
        """What is there of the body, without waiting."""
        taken = self._chunks[0] if len(self._chunks) == 1 else b"".join(self._chunks)
        self._chunks, self._held_bytes = [], 0
        if self._reading_paused:
            self._reading_paused = False
            self.transport.resume_reading()
        return taken

    def finish(self) -> bool:
        """Whether it can carry another request; where it cannot, it is dropped."""
        sound = self.ended and self._sender is None and self._error is None and self.open
        if not (sound and self._keep_alive and self.status != UNREAD):
            self.drop()
            return False
        if self._head_only:  # the parser still waits for the body that an answer to HEAD has not
            self._parser = HttpResponseParser(self)
        self._busy = False
        self.used = True
        return True

    def drop(self) -> None:
        if self._sender is not None:
            self._sender.cancel()
        self.transport.abort()

    # Waiting.

    async def _change(self) -> None:
        """Until anything changed. Raises what ended the connection."""
        if self._error is not None:
            raise self._error
        self._progress = self._loop.time()
        self._waiter = self._loop.create_future()
        if self._timer is None:
            self._timer = self._loop.call_later(self.timeout_s, self._check_time)
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _check_time(self) -> None:
        """One timer serves wait after wait, since setting one for each costs more than looking now and then.

        The time counts from the last sign of life in either direction: a long upload is not late,
        and what waits for the client waits as long as it takes.
        """
        self._timer = None
        if self._waiter is None or self._waiter.done():
            return
        left_s = self.timeout_s if self._starved else self._progress + self.timeout_s - self._loop.time()
        if left_s > 0:
            self._timer = self._loop.call_later(left_s, self._check_time)
        else:
            self._waiter.set_exception(Late())

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)
        if self._may_send is not None and (self.answered or self._error is not None):
            self._may_send.set()

    def _fail(self, error: Exception) -> None:
        self._error = self._error or error
        self._wake()

    # The request's body.

    async def _send(self, body: AsyncIterator[bytes]) -> None:
        """Writes as fast as the engine reads. `_sender` stays set where the body was not sent whole."""
        try:
            if self._may_send is not None:
                await self._permission(self._may_send)
                if self.answered:
                    return
            self._starved = True
            async for chunk in body:
                self._starved = False
                if self.ended or not self.open:
                    return
                await self._write(chunk)
                self._starved = True
            self._sender, self._starved, self._progress = None, False, self._loop.time()
        except Exception as error:
            self._fail(error)

    async def _permission(self, given: asyncio.Event) -> None:
        try:
            async with asyncio.timeout(CONTINUE_S):
                await given.wait()
        except TimeoutError:
            pass

    async def _write(self, chunk: bytes) -> None:
        self._progress = self._loop.time()
        self.transport.write(chunk)
        if self._writable is not None:
            await self._writable
            self._progress = self._loop.time()

    def pause_writing(self) -> None:
        self._writable = self._loop.create_future()

    def resume_writing(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)
        self._writable = None

    # What the transport tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)

    def data_received(self, data: bytes) -> None:
        if not self._busy or self.ended:  # nobody asked
            self._keep_alive = False
            self.transport.abort()
            return
        self.touched = True
        try:
            self._parser.feed_data(data)
        except (HttpParserError, HttpParserUpgrade):
            self._keep_alive = False
            if not self.ended:
                self._fail(Broken("the engine's answer is not HTTP"))
                self.transport.abort()
        self._wake()

    def connection_lost(self, error: Exception | None) -> None:
        self._lost = True
        if self._timer is not None:
            self._timer.cancel()
        self.resume_writing()
        if error is None and self._error is None and self.answered and not self.ended and self._ends_with_connection():
            self.ended = True
        if not self.ended:
            self._fail(Broken("the engine closed the connection"))
        self._wake()

    def _ends_with_connection(self) -> bool:
        return not any(name.lower() in (b"content-length", b"transfer-encoding") for name, _ in self.headers)

    # What the parser tells.

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self.answered:  # else a trailer, which may be discarded (RFC 9110 6.5.1)
            self.headers.append((name, value))

    def on_headers_complete(self) -> None:
        self.status = self._parser.get_status_code()
        if self.status < 200:
            self.headers = []
            if self.status == 100 and self._may_send is not None:
                self._may_send.set()
            return
        self.answered = True
        self._keep_alive = self._parser.should_keep_alive()
        self.ended = self._head_only

    def on_body(self, data: bytes) -> None:
        if self._head_only:
            self._keep_alive = False
            return
        self._chunks.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > READ_AHEAD_BYTES and not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def on_message_complete(self) -> None:
        if self.answered:
            self.ended = True
