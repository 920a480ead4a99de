"""The HTTP/1.1 protocol with which uvicorn serves the proxy: it changes, adds and logs nothing.

uvicorn's own protocol writes header names in lower case, sends chunks to HTTP/1.0 clients, which cannot read them
(nginx uses HTTP/1.0 by default), and loses the body of a request that offers an upgrade to h2c (Java's client does).
uvicorn's Server is used as it is: sockets, signals, lifespan and graceful shutdown.
"""

from __future__ import annotations

import asyncio
import logging
import re
from collections import deque
from http import HTTPStatus
from typing import Any, cast
from urllib.parse import unquote_to_bytes

import uvicorn
from httptools import HttpParserError, HttpParserUpgrade, HttpRequestParser
from uvicorn.server import ServerState

from bespeak.errors import EngineUnreachable
from bespeak.proxy.http.passing import BODY_FOLLOWS, Message, Scope, answer_error, log_fault
from bespeak.proxy.http.writing import AnswerWriter

KEEP_ALIVE_S = 3600
"""Elasticsearch never closes an idle connection, and its clients rely on that."""
READ_AHEAD_BYTES = 64 * 1024
LONGEST_HEAD_BYTES = 256 * 1024

REFUSAL = b"HTTP/1.1 %d %s\r\nconnection: close\r\ncontent-length: 0\r\n\r\n"
CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
CONTROL = re.compile(rb"[\x00-\x20\x7f]")
ASGI_VERSIONS = {"version": "3.0", "spec_version": "2.3"}
UPGRADE_HEADERS = (b"connection", b"upgrade", b"http2-settings")

logger = logging.getLogger("bespeak.proxy")


def server_config(app: Any, host: str = "127.0.0.1", port: int = 0, **options: Any) -> uvicorn.Config:
    """The configuration for `uvicorn.Server`. `options` are uvicorn's own and override those set here."""
    defaults: dict[str, Any] = {
        "http": ClientConnection,
        "ws": "none",
        "proxy_headers": False,
        "access_log": False,
        "log_config": None,
        "timeout_keep_alive": KEEP_ALIVE_S,
    }
    return uvicorn.Config(app, host=host, port=port, **(defaults | options))


class ClientConnection(asyncio.Protocol):
    """One connection of a client: reads requests, and answers them in turn."""

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
        self._arriving: HttpExchange | None = None  # its request is being read
        self._current: HttpExchange | None = None  # its answer is being written
        self._pipelined: deque[HttpExchange] = deque()  # they wait for their turn to be answered
        self.writable: asyncio.Future[None] | None = None
        self._reading_paused = False
        self._idle_since = self.loop.time()
        self._head_bytes = 0
        self._in_head = True
        self._masked_url = b""
        self._refused = False

    def _new_parser(self) -> HttpRequestParser:
        """A parser that tolerates a line break after a body, which some clients send before they close."""
        parser = HttpRequestParser(self)
        parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    # Called by the transport and by uvicorn.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self._server.connections.add(self)  # type: ignore[arg-type]
        local, peer = transport.get_extra_info("sockname"), transport.get_extra_info("peername")
        self._endpoints = {
            "server": tuple(local[:2]) if isinstance(local, tuple) else None,
            "client": tuple(peer[:2]) if isinstance(peer, tuple) else None,
            "scheme": "https" if transport.get_extra_info("sslcontext") else "http",
        }
        self._idle_timer = self.loop.call_later(self._keep_alive_s, self._check_idle)

    def connection_lost(self, error: Exception | None) -> None:  # noqa: ARG002
        self._server.connections.discard(self)
        self._idle_timer.cancel()
        self.resume_writing()
        for exchange in (self._current, *self._pipelined):
            if exchange is not None:
                exchange.disconnect()
        self._pipelined.clear()

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
                log_fault("reading a request", error.__context__)
            self._refuse(HTTPStatus.BAD_REQUEST)
        if self._in_head and self._head_bytes > LONGEST_HEAD_BYTES:
            self._refuse(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE)

    def _mask(self, data: bytes) -> bytes:
        """Hides a target with bytes beyond ASCII, as shells and curl send it: the parser would refuse it."""
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
        """Closes the connection, after the answer under way if there is one."""
        if self._current is None:
            self.transport.close()
        else:
            self._current.writer.keep_alive = False

    def _check_idle(self) -> None:
        left_s = self._idle_since + self._keep_alive_s - self.loop.time()
        if self._current is not None:
            left_s = self._keep_alive_s
        if left_s > 0:
            self._idle_timer = self.loop.call_later(left_s, self._check_idle)
        else:
            self.transport.close()

    def _refuse(self, status: HTTPStatus) -> None:
        """Ends the connection for input that is not HTTP, but lets the answer to an earlier request finish."""
        self._refused = True
        self._pipelined.clear()
        if self._current is not None and self._current is not self._arriving:
            self._current.writer.keep_alive = False
            return
        if self._current is None and not self.transport.is_closing():
            self.transport.write(REFUSAL % (status, status.phrase.encode()))
        self.transport.close()

    def _decline_upgrade(self, rest: bytes) -> None:
        """Reads the request again without its offer: the parser takes what follows for another protocol."""
        if self._method == b"CONNECT":
            self._refuse(HTTPStatus.NOT_IMPLEMENTED)
            return
        self._parser = self._new_parser()
        kept = [item for item in self._headers if item[0] not in UPGRADE_HEADERS]
        if not self._keep_alive:
            kept.append((b"connection", b"close"))
        lines = [b"%s %s HTTP/1.1" % (self._method, self._url), *(b"%s: %s" % item for item in kept), b"\r\n"]
        self.data_received(b"\r\n".join(lines) + rest)

    # Called by the parser.

    def on_message_begin(self) -> None:
        self._url = b""
        self._headers: list[tuple[bytes, bytes]] = []
        self._in_head, self._expects_continue = True, False

    def on_url(self, url: bytes) -> None:
        self._url += url

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._in_head:  # otherwise it is a trailer, which may be discarded (RFC 9110 6.5.1)
            lower = name.lower()
            self._headers.append((lower, value))
            if lower == b"expect":
                self._expects_continue = value.lower() == b"100-continue"

    def on_headers_complete(self) -> None:
        self._in_head, self._head_bytes = False, 0
        self._method = self._parser.get_method()
        self._keep_alive = self._parser.should_keep_alive()
        if self._parser.should_upgrade():
            return
        exchange = self._arriving = HttpExchange(self, self._scope(), self._keep_alive, self._expects_continue)
        if self._current is None:
            self._start(exchange)
        else:
            self._pipelined.append(exchange)
            self.pause_reading()

    def _scope(self) -> Scope:
        url, self._masked_url = self._masked_url or self._url, b""
        if not url.startswith(b"/"):
            url = origin_form(url)
        raw_path, _, query = url.partition(b"?")
        return {
            "type": "http",
            "asgi": ASGI_VERSIONS,
            "http_version": self._parser.get_http_version(),
            "method": self._method.decode(),
            "path": (unquote_to_bytes(raw_path) if b"%" in raw_path else raw_path).decode("utf-8", "replace"),
            "raw_path": raw_path,
            "query_string": query,
            "root_path": "",
            "headers": self._headers,
            "state": self._state.copy(),
            **self._endpoints,
        }

    def on_body(self, data: bytes) -> None:
        if self._arriving is not None:
            self._arriving.add_body(data)

    def on_message_complete(self) -> None:
        self._in_head = True
        if self._arriving is not None:
            self._arriving.end_body()
            self._arriving = None

    # Called by exchanges.

    def _start(self, exchange: HttpExchange) -> None:
        self._current = exchange
        exchange.task = self.loop.create_task(exchange.run())
        self._server.tasks.add(exchange.task)

    def forget(self, exchange: HttpExchange) -> None:
        """Called by the task itself: a callback at its end would cost another turn of the loop."""
        self._server.tasks.discard(exchange.task)

    def start_next(self) -> None:
        """Goes on to the next request, once an answer is complete."""
        self._server.total_requests += 1
        self._current = None
        self._idle_since = self.loop.time()
        if self.transport.is_closing():
            self._pipelined.clear()
        self.resume_reading()
        if self._pipelined:
            self._start(self._pipelined.popleft())

    def pause_reading(self) -> None:
        if not self._reading_paused:
            self._reading_paused = True
            self.transport.pause_reading()

    def resume_reading(self) -> None:
        if self._reading_paused and not self.transport.is_closing():
            self._reading_paused = False
            self.transport.resume_reading()


class HttpExchange:
    """One request and its answer, as an ASGI app sees them."""

    task: asyncio.Task[None]

    def __init__(self, connection: ClientConnection, scope: Scope, keep_alive: bool, expects_continue: bool) -> None:
        self.writer = AnswerWriter(connection.transport, scope["method"], scope["http_version"], keep_alive)
        self._connection, self._scope = connection, scope
        self._transport = connection.transport
        self._waiter: asyncio.Future[None] | None = None
        self._parts: list[bytes] = []
        self._buffered_bytes = 0
        self._body_complete = False
        self._end_delivered = False  # the app knows that the body is complete
        self._expects_continue = expects_continue
        self._disconnected = False
        self._started = False
        self._ended = False

    def add_body(self, data: bytes) -> None:
        if self._ended:
            return
        self._parts.append(data)
        self._buffered_bytes += len(data)
        if self._buffered_bytes > READ_AHEAD_BYTES:
            self._connection.pause_reading()
        self._wake()

    def end_body(self) -> None:
        self._body_complete = True
        self._wake()

    def disconnect(self) -> None:
        self._disconnected = True
        self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def run(self) -> None:
        try:
            await self._answer()
        finally:
            self._connection.forget(self)

    async def _answer(self) -> None:
        try:
            await self._connection.app(self._scope, self.receive, self.send)
        except EngineUnreachable as error:
            logger.warning("an answer was cut: %s", error)
        except Exception as error:
            log_fault("answering", error)
        finally:
            if not self._ended and not self._disconnected:
                await self._fail()

    async def _fail(self) -> None:
        """Answers 500 if nothing was sent yet; otherwise breaks off, so that the answer does not look complete."""
        if self._started:
            self.writer.break_off()
        else:
            self.writer.keep_alive = False
            await answer_error(self.send, 500, "bespeak_exception", "Bespeak failed at this; its log says where")

    async def receive(self) -> Message:
        if self._expects_continue and not self._transport.is_closing():
            self._expects_continue = False
            self._transport.write(CONTINUE)
        while not (self._disconnected or self._ended):
            if self._parts or (self._body_complete and not self._end_delivered):
                return self._next_message()
            self._connection.resume_reading()
            self._waiter = self._connection.loop.create_future()
            await self._waiter
        return {"type": "http.disconnect"}

    def _next_message(self) -> Message:
        body = self._parts[0] if len(self._parts) == 1 else b"".join(self._parts)
        self._parts, self._buffered_bytes, self._end_delivered = [], 0, self._body_complete
        return {"type": "http.request", "body": body, "more_body": not self._body_complete}

    async def send(self, message: Message) -> None:
        if self._connection.writable is not None:
            await self._connection.writable
        if self._disconnected:
            return
        if not self._started:
            if self._expects_continue and not self._body_complete:  # the client may still send the body, or may not
                self.writer.keep_alive = False
            self.writer.start(message["status"], message.get("headers", ()), BODY_FOLLOWS in message)
            self._started = True
        elif message["type"] == "http.response.body" and not self._ended:
            more = message.get("more_body", False)
            self.writer.write_body(message.get("body", b""), more)
            if not more:
                self._end()
        else:
            raise RuntimeError(f"{message['type']} is out of turn")

    def _end(self) -> None:
        self._ended = True
        self._wake()
        if not self.writer.keep_alive:
            self._transport.close()
        self._connection.start_next()


def origin_form(url: bytes) -> bytes:
    """Path and query of a request's target, which may be written with scheme and host (RFC 9112 3.2)."""
    if url.startswith((b"http://", b"https://")):
        _, slash, rest = url.partition(b"//")[2].partition(b"/")
        return slash + rest or b"/"
    return url
