"""How uvicorn serves the proxy: HTTP/1.1 in which nothing is changed, added or logged.

uvicorn's own protocol writes header names in lower case, sends HTTP/1.0 clients chunks that they cannot read (nginx
asks so by default), and loses the body of a request that offers an upgrade to h2c (Java's client does). Its Server is
used as it is: sockets, signals, lifespan, and the end that waits for what is in flight.
"""

from __future__ import annotations

import asyncio
import logging
import re
import socket
import struct
from collections import deque
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import uvicorn
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.server import ServerState

from bespeak.errors import EngineUnreachable
from bespeak.proxy.http.passing import BODY_FOLLOWS, Message, Scope, answer_error, report

KEEP_ALIVE_S = 3600
"""Elasticsearch closes no connection that rests, and its clients count on that."""
READ_AHEAD_BYTES = 64 * 1024
LONGEST_HEAD_BYTES = 256 * 1024

STATUS_LINES = {status.value: b"HTTP/1.1 %d %s" % (status, status.phrase.encode()) for status in HTTPStatus}
UNREADABLE = b"HTTP/1.1 %d %s\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"

CONTROL = re.compile(rb"[\x00-\x20\x7f]")
CHUNKED = (b"transfer-encoding: chunked",)
SPOKEN = {"version": "3.0", "spec_version": "2.3"}

logger = logging.getLogger("bespeak.proxy")


def server_config(app: Any, host: str = "127.0.0.1", port: int = 0, **options: Any) -> uvicorn.Config:
    """For `uvicorn.Server`. `options` are uvicorn's own and go before those set here."""
    settled: dict[str, Any] = {
        "http": PlainProtocol,
        "ws": "none",
        "proxy_headers": False,
        "access_log": False,
        "log_config": None,
        "timeout_keep_alive": KEEP_ALIVE_S,
    }
    return uvicorn.Config(app, host=host, port=port, **(settled | options))


class PlainProtocol(asyncio.Protocol):
    """One connection of a client's."""

    transport: asyncio.Transport

    def __init__(
        self,
        config: uvicorn.Config,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        if not config.loaded:
            config.load()
        self.app = config.loaded_app
        self.loop = _loop or asyncio.get_running_loop()
        self._server, self._state = server_state, app_state
        self._keep_alive_s = config.timeout_keep_alive
        self._parser = self._new_parser()
        self._exchange: Exchange | None = None  # the one being read
        self._waiting: deque[Exchange] = deque()  # pipelined: answered in turn
        self._current: Exchange | None = None  # the one being answered
        self.writable: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._idle_since = self.loop.time()
        self._head_bytes = 0
        self._in_head = True
        self._masked_url = b""
        self._refused = False

    def _new_parser(self) -> HttpRequestParser:
        """Some clients end a body with a line break that is not of it, even where they close the connection."""
        parser = HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    # What the transport tells.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)  # type: ignore[arg-type]
        local, peer = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        self._ends = {
            "server": tuple(local[:2]) if isinstance(local, tuple) else None,
            "client": tuple(peer[:2]) if isinstance(peer, tuple) else None,
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
        }
        self._idle_timer = self.loop.call_later(self._keep_alive_s, self._check_idle)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self._server.connections.discard(self)
        self._idle_timer.cancel()
        self.resume_writing()
        for exchange in (self._current, *self._waiting):
            if exchange is not None:
                exchange.lose()
        self._waiting.clear()

    def data_received(self, data: bytes) -> None:
        if self._refused:
            return
        if self._in_head:
            self._head_bytes += len(data)
            if not data.isascii():
                data = self._mask(data)
        try:
            self._parser.feed_data(data)
        except HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except HttpParserError as error:
            if isinstance(error.__context__, Exception):
                report("reading a request", error.__context__)
            self._refuse(HTTPStatus.BAD_REQUEST)
        if self._in_head and self._head_bytes > LONGEST_HEAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _mask(self, data: bytes) -> bytes:
        """A target with bytes beyond ASCII, as shells and curl send it, is hidden from the parser, that refuses it."""
        line, newline, rest = data.partition(b"\n")
        words = line.split(b" ")
        if line.isascii() or len(words) != 3 or CONTROL.search(words[1]):
            return data
        self._masked_url = words[1]
        return b" ".join((words[0], b"/", words[2])) + newline + rest

    def pause_writing(self) -> None:
        self.writable = self.loop.create_future()

    def resume_writing(self) -> None:
        if self.writable is not None and not self.writable.done():
            self.writable.set_result(None)
        self.writable = None

    def shutdown(self) -> None:
        """What is in flight is finished, and the connection then closed."""
        if self._current is None:
            self.transport.close()
        else:
            self._current.keep_alive = False

    def _check_idle(self) -> None:
        left_s = self._idle_since + self._keep_alive_s - self.loop.time()
        if self._current is not None:
            left_s = self._keep_alive_s
        if left_s > 0:
            self._idle_timer = self.loop.call_later(left_s, self._check_idle)
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus) -> None:
        """What cannot be read as HTTP ends the connection, after the answer under way if that is to another request."""
        self._refused = True
        self._waiting.clear()
        if self._current is not None and self._current is not self._exchange:
            self._current.keep_alive = False
            return
        if self._current is None and not self.transport.is_closing():
            self.transport.write(UNREADABLE % (status, status.phrase.encode()))
        self.transport.close()

    def _decline_upgrade(self, rest: bytes) -> None:
        """Reads the request again without its offer: the parser would take what follows for another protocol."""
        if self._method == b"CONNECT":
            self._refuse(HTTPStatus.NOT_IMPLEMENTED)
            return
        self._parser = self._new_parser()
        kept = [item for item in self._headers if item[0] not in (b"connection", b"upgrade", b"http2-settings")]
        if not self._keep_alive:
            kept.append((b"connection", b"close"))
        lines = [b"%s %s HTTP/1.1" % (self._method, self._url), *(b"%s: %s" % item for item in kept), b"\r\n"]
        self.data_received(b"\r\n".join(lines) + rest)

    # What the parser tells.

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._in_head, self._expects = True, False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # else a trailer, which may be discarded (RFC 9110 6.5.1)
            lower = name.lower()
            self._headers.append((lower, value))
            if lower == b"expect":
                self._expects = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._method = self._parser.get_method()
        self._keep_alive = self._parser.should_keep_alive()
        if self._parser.should_upgrade():
            return
        url, self._masked_url = self._masked_url or self._url, b""
        if not url.startswith(b"/"):
            url = origin_form(url)
        raw_path, _, query = url.partition(b"?")
        scope = {
            "type": "http",
            "asgi": SPOKEN,
            "http_version": self._parser.get_http_version(),
            "method": self._method.decode(),
            "path": (unquote_to_bytes(raw_path) if b"%" in raw_path else raw_path).decode("utf-8", "replace"),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self._headers,
            "state": self._state.copy(),
            **self._ends,
        }
        exchange = self._exchange = Exchange(self, scope, self._keep_alive, self._expects)
        if self._current is None:
            self._start(exchange)
        else:
            self._waiting.append(exchange)
            self.pause_reading()

    def on_body(self, data: bytes) -> None:
        if self._exchange is not None:
            self._exchange.take(data)

    def on_message_complete(self) -> None:
        self._in_head = True
        if self._exchange is not None:
            self._exchange.take_end()
            self._exchange = None

    # What an exchange asks.

    def _start(self, exchange: Exchange) -> None:
        self._current = exchange
        exchange.task = self.loop.create_task(exchange.run())
        self._server.tasks.add(exchange.task)

    def forget(self, exchange: Exchange) -> None:
        """Told by the task itself: a callback at its end would cost the loop another turn."""
        self._server.tasks.discard(exchange.task)

    def next(self) -> None:
        """An answer is complete."""
        self._server.total_requests += 1
        self._current = None
        self._idle_since = self.loop.time()
        if self.transport.is_closing():
            self._waiting.clear()
        self.resume_reading()
        if self._waiting:
            self._start(self._waiting.popleft())

    def pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()


class Exchange:
    """One request and its answer."""

    task: asyncio.Task[None]

    def __init__(self, protocol: PlainProtocol, scope: Scope, keep_alive: bool, expects: bool) -> None:
        self.keep_alive = keep_alive
        self._protocol, self._scope = protocol, scope
        self._transport = protocol.transport
        self._waiter: asyncio.Future[None] | None = None
        # of the request
        self._parts: list[bytes] = []
        self._held_bytes = 0
        self._complete = False
        self._told = False  # that the body is complete
        self._expects = expects
        self._gone = False
        # of the answer
        self._started = False
        self._ended = False
        self._chunked = False
        self._held_head = b""
        self._left: int | None = None  # bytes to come; None: as many as come

    # What the protocol tells.

    def take(self, data: bytes) -> None:
        if self._ended:
            return
        self._parts.append(data)
        self._held_bytes += len(data)
        if self._held_bytes > READ_AHEAD_BYTES:
            self._protocol.pause_reading()
        self._wake()

    def take_end(self) -> None:
        self._complete = True
        self._wake()

    def lose(self) -> None:
        self._gone = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # What the app does.

    async def run(self) -> None:
        try:
            await self._answer()
        finally:
            self._protocol.forget(self)

    async def _answer(self) -> None:
        try:
            await self._protocol.app(self._scope, self.receive, self.send)
        except EngineUnreachable as error:
            logger.warning("an answer was cut: %s", error)
        except Exception as error:
            report("answering", error)
        finally:
            if not self._ended and not self._gone:
                await self._end_badly()

    async def _end_badly(self) -> None:
        """500 where nothing was sent; else the connection is broken off, so that what was sent does not look whole."""
        if not self._started:
            self.keep_alive = False
            await answer_error(self.send, 500, "bespeak_exception", "Bespeak failed at this; its log says where")
        elif self._chunked or self._left is not None:
            self._write(b"")
            self._transport.close()
        else:  # its end is that of the connection: only a reset says that it is not the answer's
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    async def receive(self) -> Message:
        if self._expects and not self._transport.is_closing():
            self._expects = False
            self._transport.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        while not (self._gone or self._ended):
            if self._parts or (self._complete and not self._told):
                return self._part()
            self._protocol.resume_reading()
            self._waiter = self._protocol.loop.create_future()
            await self._waiter
        return {"type": "http.disconnect"}

    def _part(self) -> Message:
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._held_bytes, self._told = [], 0, self._complete
        return {"type": "http.request", "body": body, "more_body": not self._complete}

    async def send(self, message: Message) -> None:
        if self._protocol.writable is not None:
            await self._protocol.writable
        if self._gone:
            return
        if not self._started:
            self._held_head = self._head(message["status"], message.get("headers", ()))
            self._started = True
            if BODY_FOLLOWS not in message:
                self._write(b"")
        elif message["type"] == "http.response.body" and not self._ended:
            self._send_body(message.get("body", b""), message.get("more_body", False))
        else:
            raise RuntimeError(f"{message['type']} is out of turn")

    def _write(self, data: bytes) -> None:
        """The head goes with the body where that is there at once: a write costs more than all else."""
        if self._held_head:
            head, self._held_head = self._held_head, b""
            self._transport.write(head + data)
        elif data:
            self._transport.write(data)

    def _head(self, status: int, headers: list[tuple[bytes, bytes]]) -> bytes:
        if self._expects and not self._complete:  # who was not told to go on may send no body, or may
            self.keep_alive = False
        lines = [STATUS_LINES.get(status) or b"HTTP/1.1 %d " % status]
        for name, value in headers:
            lower = name.lower()
            if lower == b"content-length":
                self._left = int(value)
            elif lower == b"connection":
                self.keep_alive = self.keep_alive and value.lower() != b"close"
                continue
            elif lower == b"transfer-encoding":
                continue
            lines.append(name + b": " + value)
        lines += self._framing(status)
        lines.append(b"\r\n")
        head = b"\r\n".join(lines)
        if head.count(b"\n") != len(lines) or head.count(b"\r") != len(lines):
            raise RuntimeError("a header of the answer holds a line break")
        return head

    def _framing(self, status: int) -> Sequence[bytes]:
        """How the end of the body is told (RFC 9112 6.3)."""
        old = self._scope["http_version"] == "1.0"
        if self._scope["method"] == "HEAD" or status in (204, 304):
            self._left = 0
        elif self._left is None and not old:
            self._chunked = True
        elif self._left is None:
            self.keep_alive = False
        framing = CHUNKED if self._chunked else ()
        if not self.keep_alive:
            return (*framing, b"connection: close")
        return (*framing, b"connection: keep-alive") if old else framing

    def _send_body(self, body: bytes, more: bool) -> None:
        if self._chunked:
            end = b"" if more else b"0\r\n\r\n"
            self._write(b"%x\r\n%b\r\n%b" % (len(body), body, end) if body else end)
        elif self._scope["method"] != "HEAD":
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0 or (self._left and not more):
                    raise RuntimeError("the answer is not as long as its content-length")
            self._write(body)
        if not more:
            self._end()

    def _end(self) -> None:
        self._ended = True
        self._wake()
        self._write(b"")
        if not self.keep_alive:
            self._transport.close()
        self._protocol.next()


def origin_form(url: bytes) -> bytes:
    """Path and query of a request's target, which may be written with scheme and host (RFC 9112 3.2)."""
    if url.startswith((b"http://", b"https://")):
        _, slash, rest = url.partition(b"//")[2].partition(b"/")
        return slash + rest or b"/"
    return url
