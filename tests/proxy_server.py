"""What tests of the proxy need of the world: an app on a real port, an engine and a client that speak raw bytes."""

from __future__ import annotations

import contextlib
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

import uvicorn

from bespeak.proxy.http.serving import server_config

PATIENCE_S = 20
"""Beyond this a test hangs; none waits for it when all is well."""


@contextlib.contextmanager
def serving(app: Any, **options: Any) -> Iterator[str]:
    """The URL under which `app` answers until the block is left; what is in flight then is finished."""
    with serving_until_told(app, **options) as (url, _):
        yield url


@contextlib.contextmanager
def serving_until_told(app: Any, **options: Any) -> Iterator[tuple[str, uvicorn.Server]]:
    """As `serving`, with the server: `should_exit = True` ends it early."""
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
class Asked:
    """A request as an engine got it, byte for byte; `body` as it was framed."""

    head: bytes
    body: bytes

    @property
    def line(self) -> bytes:
        return self.head.split(b"\r\n")[0]

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        return [tuple(line.split(b": ", 1)) for line in self.head.split(b"\r\n")[1:] if line]  # type: ignore[misc]


Answering = Callable[[socket.socket, Asked], object]


@dataclass
class RawEngine:
    url: str
    asked: list[Asked] = field(default_factory=list)
    connections: int = 0


@contextlib.contextmanager
def raw_engine(answer: Answering | bytes, tls: ssl.SSLContext | None = None) -> Iterator[RawEngine]:
    """An engine that reads requests and answers each with these bytes, or as the function does with the socket.

    The function ends the connection by closing the socket or by returning False.
    """
    with socket.create_server(("127.0.0.1", 0)) as listener:
        engine = RawEngine(f"{'https' if tls else 'http'}://127.0.0.1:{listener.getsockname()[1]}")
        opened: list[socket.socket] = []
        threads: list[threading.Thread] = []

        def accept() -> None:
            while True:
                try:
                    connection, _ = listener.accept()
                except OSError:
                    return
                engine.connections += 1
                connection.settimeout(PATIENCE_S)
                opened.append(connection)
                threads.append(threading.Thread(target=talk, args=(connection,)))
                threads[-1].start()

        def talk(plain: socket.socket) -> None:
            with contextlib.suppress(OSError), plain, secured(plain) as connection:
                while asked := read_request(connection):
                    engine.asked.append(asked)
                    if callable(answer) and answer(connection, asked) is False:
                        return
                    if not callable(answer):
                        connection.sendall(answer)

        def secured(plain: socket.socket) -> socket.socket:
            if tls is None:
                return plain
            opened.append(tls.wrap_socket(plain, server_side=True))
            return opened[-1]

        accepting = threading.Thread(target=accept)
        accepting.start()
        try:
            yield engine
        finally:
            with contextlib.suppress(OSError):
                listener.shutdown(socket.SHUT_RDWR)
            accepting.join()
            for connection in opened:
                with contextlib.suppress(OSError):
                    connection.shutdown(socket.SHUT_RDWR)
            for thread in threads:
                thread.join()


def read_request(connection: socket.socket) -> Asked | None:
    """The next request, its body by content-length or to the last chunk; None at the end of the connection."""
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
    return Asked(head, body)


@contextlib.contextmanager
def connected(url: str) -> Iterator[socket.socket]:
    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port), timeout=PATIENCE_S) as client:
        yield client


def exchange(url: str, *sent: bytes) -> bytes:
    """All that comes back on one connection until it is closed: the last request should ask for that."""
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
