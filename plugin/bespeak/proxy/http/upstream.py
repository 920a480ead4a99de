"""The engine behind the proxy: its nodes, connections that are kept, and what to do when a node does not answer."""

from __future__ import annotations

import asyncio
import itertools
import logging
import ssl
import time
from collections import deque
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeAlias
from urllib.parse import urlsplit

from bespeak.errors import EngineError, EngineUnreachable, UsageError
from bespeak.proxy.http.connection import Broken, Connection, Late

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
"""Raw, in order, duplicates kept, names as received."""

CONNECT_S = 5.0
IDLE_S = 30.0
"""A connection that rested longer is not used again: balancers close theirs after a minute or so."""
REST_S, LONGEST_REST_S = 30.0, 480.0
"""How long a node that could not be reached is left alone at first, doubling up to the second."""

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding"
    b" upgrade".split()
)
"""Headers that speak of one connection only (RFC 9110 7.6.1); what Connection names besides goes with them."""
NAMES_NONE = frozenset((b"", b",keep-alive", b",close"))
OWN_PREFIX = b"x-bespeak-"

REPEATABLE = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))
READING = tuple(
    b"/" + name for name in b"_search _search/template _msearch _msearch/template _count _mget _field_caps".split()
)
"""POST to these only reads, so that it may be sent twice."""

logger = logging.getLogger("bespeak.proxy")


class UpstreamUnreachable(EngineUnreachable):
    """No node could be reached, or one broke off."""


class UpstreamTimeout(EngineUnreachable):
    """A node did not answer in time, or no connection became free in time."""


class TooLarge(EngineError):
    """An answer is longer than its reader can take."""


class Unsent(Exception):
    """A node got nothing of the request, or may get it again: another may be asked."""


@dataclass(slots=True, eq=False)
class Node:
    host: str
    port: int
    authority: bytes  # as in the URL, for the header Host
    prefix: bytes  # path before every target, without a slash at its end
    tls: bool
    idle: list[Connection] = field(default_factory=list)
    rests_until: float = 0.0
    rest_s: float = 0.0  # 0: it answered when last asked

    @classmethod
    def at(cls, url: str) -> Node:
        """Raises UsageError, which never repeats the URL: it may hold a password."""
        try:
            parts = urlsplit(url)
            host, port = parts.hostname, parts.port
        except ValueError as error:
            raise UsageError("an upstream's URL cannot be read: write http://HOST:PORT or https://HOST:PORT") from error
        if parts.scheme not in ("http", "https") or not host:
            raise UsageError("an upstream's URL must be http://HOST:PORT or https://HOST:PORT, with a path if need be")
        if "@" in parts.netloc:
            raise UsageError(
                f"the upstream's URL for {host} holds credentials: take them out, each client sends its own"
            )
        if parts.query or parts.fragment:
            raise UsageError(f"the upstream's URL for {host} has a query or fragment: take it out")
        tls = parts.scheme == "https"
        if not url.isascii():
            raise UsageError("an upstream's URL must be ASCII: write the host in Punycode, the path percent-encoded")
        prefix = parts.path.rstrip("/").encode()
        return cls(host, port or (443 if tls else 80), parts.netloc.encode(), prefix, tls)

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"


class Outgoing(NamedTuple):
    """A request as the client sent it, apart from the node that gets it."""

    method: str
    target: bytes
    headers: Headers
    body: bytes | AsyncIterator[bytes] | None

    @property
    def streamed(self) -> bool:
        return self.body is not None and not isinstance(self.body, bytes)

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice does no more than sending it once."""
        if self.streamed:
            return False
        return self.method in REPEATABLE or self.target.partition(b"?")[0].endswith(READING)


class Upstream:
    """Nodes of one cluster, asked in turn. `connections` bounds the requests under way, the others wait for a place."""

    def __init__(
        self,
        urls: Sequence[str],
        *,
        ca_file: Path | None = None,
        timeout_s: float = 60.0,
        connections: int = 100,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`timeout_s`: for a place, and between two signs of life of the engine. Raises UsageError."""
        if not urls:
            raise UsageError("no upstream is named: give at least one URL")
        if timeout_s <= 0 or connections < 1:
            raise UsageError(f"timeout_s and connections must be above 0, but are {timeout_s} and {connections}")
        self._nodes = [Node.at(url) for url in urls]
        self._tls = read_authority(ca_file) if ca_file or any(node.tls for node in self._nodes) else None
        self._timeout_s, self._clock = timeout_s, clock
        self._turn = itertools.count()
        self._free = connections
        self._waiting: deque[asyncio.Future[None]] = deque()

    async def send(
        self, method: str, target: bytes, headers: Headers, body: bytes | AsyncIterator[bytes] | None
    ) -> Answer:
        """The answer, its head read. `target` is path and query as the client wrote them.

        Of `headers` all go on but what concerns one connection, the host and Bespeak's own; the length of a body given
        as bytes is set anew. Raises UpstreamUnreachable, UpstreamTimeout, and what a streamed body raises.
        """
        if self._free > 0:
            self._free -= 1
        else:
            await self._wait_for_place()
        try:
            node, connection = await self._ask_any(Outgoing(method, target, headers, body))
        except BaseException:
            self._give_place()
            raise
        return Answer(self, node, connection)

    async def close(self) -> None:
        for node in self._nodes:
            while node.idle:
                node.idle.pop().drop()
        await asyncio.sleep(0)  # lets the transports close

    # Which node.

    async def _ask_any(self, request: Outgoing) -> tuple[Node, Connection]:
        reason = ""
        for node in self._order():
            try:
                connection = await self._ask(node, request)
            except Unsent as error:
                reason = str(error)
                continue
            except Late as error:
                raise UpstreamTimeout(f"the engine did not answer within {self._timeout_s:g} s") from error
            except Broken as error:
                raise UpstreamUnreachable(f"{error} before it answered") from error
            if node.rest_s:
                node.rest_s = node.rests_until = 0.0
                logger.info("upstream %s answers again", node.name)
            return node, connection
        raise UpstreamUnreachable(f"the engine could not be reached: {reason}")

    def _order(self) -> list[Node]:
        """Those that answered when last asked, in turn; then those at rest, the soonest due first."""
        if len(self._nodes) == 1:
            return self._nodes
        first, now = next(self._turn) % len(self._nodes), self._clock()
        turned = self._nodes[first:] + self._nodes[:first]
        return sorted(turned, key=lambda node: max(node.rests_until - now, 0.0))

    async def _ask(self, node: Node, request: Outgoing) -> Connection:
        """A connection kept by the node's side may have been closed there meanwhile: then once more on a new one."""
        head, body = frame(node, request)
        expect = request.streamed and any(name.lower() == b"expect" for name, _ in request.headers)
        for connection in (self._kept(node), None):
            if connection is None:
                connection = await self._connect(node)
            try:
                await connection.ask(request.method, head, body, expect)
                return connection
            except Broken as error:
                connection.drop()
                if connection.touched or not request.repeatable:
                    raise
                if not connection.used:
                    raise Unsent(str(error)) from error
            except BaseException:
                connection.drop()
                raise
        raise AssertionError("a new connection was used before")

    def _kept(self, node: Node) -> Connection | None:
        """The one used last: what is too many grows old, and is dropped."""
        now = self._clock()
        while node.idle:
            connection = node.idle.pop()
            if connection.open and now - connection.idle_since < IDLE_S:
                return connection
            connection.drop()
        return None

    async def _connect(self, node: Node) -> Connection:
        """Raises Unsent; the node then rests. One whose rest is over is tried by one request, not by all that wait."""
        trying = node.rest_s > 0 and self._clock() >= node.rests_until
        if trying:
            node.rests_until = self._clock() + node.rest_s
        loop, tls = asyncio.get_running_loop(), self._tls if node.tls else None
        try:
            async with asyncio.timeout(min(CONNECT_S, self._timeout_s)):
                _, connection = await loop.create_connection(
                    lambda: Connection(self._timeout_s), node.host, node.port, ssl=tls
                )
            return connection
        except OSError as error:
            reason = explain(error)
            if trying or not node.rest_s:
                node.rest_s = min(node.rest_s * 2, LONGEST_REST_S) or REST_S
                node.rests_until = self._clock() + node.rest_s
                logger.warning("upstream %s could not be reached: %s", node.name, reason)
            raise Unsent(reason) from error

    # Places.

    async def _wait_for_place(self) -> None:
        given = asyncio.get_running_loop().create_future()
        self._waiting.append(given)
        try:
            async with asyncio.timeout(self._timeout_s):
                await given
        except TimeoutError as error:
            self._leave_queue(given)
            raise UpstreamTimeout(f"no connection to the engine became free within {self._timeout_s:g} s") from error
        except BaseException:
            self._leave_queue(given)
            raise

    def _leave_queue(self, given: asyncio.Future[None]) -> None:
        """A place given at the last moment goes to the next."""
        with suppress(ValueError):
            self._waiting.remove(given)
        if given.done() and not given.cancelled():
            self._give_place()

    def _give_place(self) -> None:
        while self._waiting:
            given = self._waiting.popleft()
            if not given.done():
                given.set_result(None)
                return
        self._free += 1

    def take_back(self, node: Node, connection: Connection) -> None:
        if connection.finish():
            now = connection.idle_since = self._clock()
            while node.idle and now - node.idle[0].idle_since > IDLE_S:
                node.idle.pop(0).drop()
            node.idle.append(connection)
        self._give_place()


class Answer:
    """An answer whose head is there. Whoever has it closes it."""

    def __init__(self, upstream: Upstream, node: Node, connection: Connection) -> None:
        self._upstream, self._node = upstream, node
        self._connection: Connection | None = connection
        self.status: int = connection.status
        self.headers: Headers = connection.headers
        """As received, those of the connection included."""

    def take_whole(self) -> bytes | None:
        """The body where all of it that was not yet taken is here, else None."""
        connection = self._connection
        return connection.take() if connection is not None and connection.ended else None

    async def next_chunk(self) -> bytes:
        """The next of the body, its chunked coding undone and its content coding kept; b"" at its end.

        Raises UpstreamUnreachable where the engine breaks off, UpstreamTimeout.
        """
        if self._connection is None:
            return b""
        try:
            return await self._connection.next_chunk()
        except Broken as error:
            raise UpstreamUnreachable(f"{error} in the middle of its answer") from error
        except Late as error:
            raise UpstreamTimeout("the engine stopped in the middle of its answer") from error

    async def chunks(self) -> AsyncIterator[bytes]:
        while chunk := await self.next_chunk():
            yield chunk

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises TooLarge beyond `limit` bytes, and as `next_chunk`."""
        found: list[bytes] = []
        size = 0
        while chunk := await self.next_chunk():
            found.append(chunk)
            size += len(chunk)
            if size > limit:
                raise TooLarge(f"the engine's answer is longer than {limit} bytes")
        return found[0] if len(found) == 1 else b"".join(found)

    async def close(self) -> None:
        self.release()

    def release(self) -> None:
        """Gives the connection back, or drops it where the body was not read to its end."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._upstream.take_back(self._node, connection)


def read_authority(ca_file: Path | None) -> ssl.SSLContext:
    """Certificates and host names are always checked. Raises UsageError."""
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"the CA file {ca_file} cannot be read as PEM: {explain(error)}") from error


def explain(error: OSError) -> str:
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate was refused ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return "no TLS connection could be agreed"
    if isinstance(error, TimeoutError):
        return "it did not accept a connection in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return error.strerror or type(error).__name__


def frame(node: Node, request: Outgoing) -> tuple[bytes, bytes | AsyncIterator[bytes] | None]:
    """The head as this node gets it, and the body as it goes on the wire."""
    lines = [b"%s %s%s HTTP/1.1\r\nhost: %s" % (request.method.encode(), node.prefix, request.target, node.authority)]
    body, length = request.body, None
    for name, value in end_to_end(request.headers):
        lower = name.lower()
        if lower == b"content-length":
            length = value
        elif lower != b"host" and not lower.startswith(OWN_PREFIX):
            lines.append(name + b": " + value)
    if isinstance(body, bytes):
        lines.append(b"content-length: %d" % len(body))
    elif body is not None and length is None:
        lines.append(b"transfer-encoding: chunked")
        body = chunked(body)
    elif length is not None:
        lines.append(b"content-length: " + (length if body is not None else b"0"))
    lines.append(b"\r\n")
    return b"\r\n".join(lines), body


def end_to_end(headers: Headers) -> Headers:
    """Headers without those that speak of one connection only."""
    kept, named = [], b""
    for item in headers:
        name = item[0].lower()
        if name not in HOP_BY_HOP:
            kept.append(item)
        elif name == b"connection":
            named += b"," + item[1].lower()
    if named in NAMES_NONE:
        return kept
    dropped = {token.strip() for token in named.split(b",")}
    return [item for item in kept if item[0].lower() not in dropped]


async def chunked(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A body of unknown length as HTTP/1.1 frames it (RFC 9112 7.1)."""
    async for data in body:
        if data:
            yield b"%x\r\n%s\r\n" % (len(data), data)
    yield b"0\r\n\r\n"
