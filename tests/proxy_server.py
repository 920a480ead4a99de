"""A test bed for the proxy: an app on a real port, and an engine and a client that speak raw bytes."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from bespeak.proxy import Proxy, Upstream
from bespeak.proxy.http.serving import server_config

PATIENCE_S = 20
"""A test that takes longer hangs. None waits this long when all is well."""

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
"""A small answer of an engine."""


@contextlib.contextmanager
def serving(app: Any, **options: Any) -> Iterator[str]:
    """The URL of `app` while the block runs. Requests in flight at its end are finished."""
    with serving_until_stopped(app, **options) as (url, _):
        yield url


@contextlib.contextmanager
def serving_until_stopped(app: Any, **options: Any) -> Iterator[tuple[str, uvicorn.Server]]:
    """As `serving`, but also gives the server, which `should_exit = True` ends early."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        server = uvicorn.Server(server_config(app, **options))
        thread = threading.Thread(target=server.run, args=([listener],))
        thread.start()
        try:
            while not server.started:
                if not thread.is_alive():
                    raise RuntimeError("the app did not start")
                thread.join(0.01)
            yield f"http://127.0.0.1:{listener.getsockname()[1]}", server
        finally:
            server.should_exit = True
            thread.join()


@dataclass
class ReceivedRequest:
    """A request as an engine received it, byte for byte, with the framing of its body."""

    head: bytes
    body: bytes

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n")[0]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [tuple(line.split(b": ", 1)) for line in self.head.split(b"\r\n")[1:] if line]  # type: ignore[misc]


Answering = Callable[[socket.socket, ReceivedRequest], object]


class RawEngine:
    """An engine that reads requests and answers each with `answer`; see `raw_engine`."""

    def __init__(self, listener: socket.socket, answer: Answering | bytes, tls: ssl.SSLContext | None) -> None:
        self.url = f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}"
        self.requests: list[ReceivedRequest] = []
        self.connections = 0
        self._listener, self._answer, self._tls = listener, answer, tls
        self._opened: list[socket.socket] = []
        self._threads: list[threading.Thread] = []
        self._accepting = threading.Thread(target=self._accept)
        self._accepting.start()

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            self.connections += 1
            connection.settimeout(PATIENCE_S)
            self._opened.append(connection)
            self._threads.append(threading.Thread(target=self._talk, args=(connection,)))
            self._threads[-1].start()

    def _talk(self, plain: socket.socket) -> None:
        with contextlib.suppress(OSError), plain, self._secured(plain) as connection:
            while request := read_request(connection):
                self.requests.append(request)
                if callable(self._answer):
                    if self._answer(connection, request) is False:
                        return
                else:
                    connection.sendall(self._answer)

    def _secured(self, plain: socket.socket) -> socket.socket:
        if self._tls is None:
            return plain
        self._opened.append(self._tls.wrap_socket(plain, server_side=True))
        return self._opened[-1]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._accepting.join()
        for connection in self._opened:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join()


@contextlib.contextmanager
def raw_engine(answer: Answering | bytes, tls: ssl.SSLContext | None = None) -> Iterator[RawEngine]:
    """An engine that answers each request with these bytes, or leaves the answer to a function that gets the socket.

    The function ends the connection if it closes the socket or returns False.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        engine = RawEngine(listener, answer, tls)
        try:
            yield engine
        finally:
            engine.close()


@contextlib.contextmanager
def proxied(answer: Answering | bytes, **parts: Any) -> Iterator[tuple[RawEngine, str]]:
    """A raw engine and the URL of a proxy in front of it."""
    with raw_engine(answer) as engine, serving(Proxy(Upstream([engine.url]), **parts)) as url:
        yield engine, url


def read_request(connection: socket.socket) -> ReceivedRequest | None:
    """The next request with its body, None at the end of the connection."""
    read = b""
    while b"\r\n\r\n" not in read:
        data = connection.recv(65536)
        if not data:
            return None
        read += data
    head, _, body = read.partition(b"\r\n\r\n")
    length = re.search(rb"(?i)\r\ncontent-length: *(\d+)", head)
    chunked = re.search(rb"(?i)\r\ntransfer-encoding: *chunked", head)
    if b"100-continue" not in head:
        while (length and len(body) < int(length[1])) or (chunked and not body.endswith(b"0\r\n\r\n")):
            data = connection.recv(1 << 20)
            if not data:
                return None
            body += data
    return ReceivedRequest(head, body)


@contextlib.contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S) as client:
        yield client


def exchange(url: str, *sent: bytes) -> bytes:
    """Everything that comes back on one connection. The last request must ask to close the connection."""
    with connected(url) as client:
        for data in sent:
            client.sendall(data)
        return read_all(client)


def read_all(client: socket.socket) -> bytes:
    received = []
    while data := client.recv(1 << 20):
        received.append(data)
    return b"".join(received)


def request(target: bytes = b"/", method: bytes = b"GET", headers: Sequence[bytes] = (), body: bytes = b"") -> bytes:
    """A request after which the connection is closed."""
    lines = [b"%s %s HTTP/1.1" % (method, target), b"Host: proxy", b"Connection: close", *headers]
    if body:
        lines.append(b"Content-Length: %d" % len(body))
    return b"\r\n".join([*lines, b"", body])


def split(answer: bytes) -> tuple[bytes, list[bytes], bytes]:
    """Status line, header lines and body of one answer."""
    head, _, body = answer.partition(b"\r\n\r\n")
    status, *headers = head.split(b"\r\n")
    return status, headers, body
