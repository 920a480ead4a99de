"""The engine behind the proxy: which node gets a request, and what happens if it does not answer."""

from __future__ import annotations

import asyncio
import itertools
import time
from collections.abc import AsyncIterator, Callable, Sequence
from pathlib import Path
from typing import NamedTuple, TypeAlias

from bespeak.errors import EngineError, EngineUnreachable, UsageError
from bespeak.proxy.http.connection import ConnectionBroken, ConnectionTimedOut, EngineConnection
from bespeak.proxy.http.node import Node, explain, tls_context
from bespeak.proxy.http.slots import Slots

Headers: TypeAlias = Sequence[tuple[bytes, bytes]]
"""Raw headers in the order received, duplicates and case of names kept."""

HOP_BY_HOP = frozenset(
    b"connection keep-alive proxy-connection proxy-authenticate proxy-authorization te trailer transfer-encoding"
    b" upgrade".split()
)
"""Headers that concern one connection only (RFC 9110 7.6.1). So do those that Connection names."""
CONNECTION_NAMES_NO_HEADER = frozenset((b"", b",keep-alive", b",close"))
OWN_PREFIX = b"x-bespeak-"

REPEATABLE_METHODS = frozenset(("GET", "HEAD", "OPTIONS", "PUT", "DELETE"))
READING_APIS = tuple(
    b"/" + name for name in b"_search _search/template _msearch _msearch/template _count _mget _field_caps".split()
)
"""A POST to one of these only reads, so it may be sent twice."""


class UpstreamUnreachable(EngineUnreachable):
    """No node could be reached, or one closed the connection."""


class UpstreamTimeout(EngineUnreachable):
    """A node did not answer in time, or no connection became free in time."""


class TooLarge(EngineError):
    """An answer is longer than its reader accepts."""


class NotProcessed(Exception):
    """A node did not get the request, or may get it twice: another node can be asked."""


class Outgoing(NamedTuple):
    """A request as the client sent it, whichever node gets it."""

    method: str
    target: bytes
    headers: Headers
    body: bytes | AsyncIterator[bytes] | None

    @property
    def streamed(self) -> bool:
        return self.body is not None and not isinstance(self.body, bytes)

    @property
    def repeatable(self) -> bool:
        """Whether sending it twice has the same effect as sending it once."""
        if self.streamed:
            return False
        return self.method in REPEATABLE_METHODS or self.target.partition(b"?")[0].endswith(READING_APIS)


class Upstream:
    """The nodes of one cluster, asked in turn.

    At most `connections` requests are under way at once. Further ones wait.
    """

    def __init__(
        self,
        urls: Sequence[str],
        *,
        ca_file: Path | None = None,
        timeout_s: float = 60.0,
        connections: int = 100,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`timeout_s` bounds the wait for a free connection and any silence of the engine. Raises UsageError."""
        if not urls:
            raise UsageError("no upstream is named: give at least one URL")
        if timeout_s <= 0 or connections < 1:
            raise UsageError(f"timeout_s and connections must be above 0, but are {timeout_s} and {connections}")
        self._nodes = [Node.at(url) for url in urls]
        self._tls = tls_context(ca_file) if ca_file or any(node.tls for node in self._nodes) else None
        self._timeout_s, self._clock = timeout_s, clock
        self._turn = itertools.count()
        self._slots = Slots(connections)

    async def send(
        self, method: str, target: bytes, headers: Headers, body: bytes | AsyncIterator[bytes] | None
    ) -> Answer:
        """The engine's answer, once its head has arrived. `target` is path and query as the client wrote them.

        All `headers` are sent except Host, those that concern one connection and Bespeak's own. A body given as bytes
        gets a new content-length. Raises UpstreamUnreachable, UpstreamTimeout, and whatever a streamed body raises.
        """
        if not self._slots.take_free():
            await self._wait_for_slot()
        try:
            node, connection = await self._ask_any(Outgoing(method, target, headers, body))
        except BaseException:
            self._slots.release()
            raise
        return Answer(self, node, connection)

    async def _wait_for_slot(self) -> None:
        try:
            await self._slots.wait(self._timeout_s)
        except TimeoutError as error:
            raise UpstreamTimeout(f"no connection to the engine became free within {self._timeout_s:g} s") from error

    async def close(self) -> None:
        for node in self._nodes:
            node.close_idle()
        await asyncio.sleep(0)  # lets the transports close

    async def _ask_any(self, request: Outgoing) -> tuple[Node, EngineConnection]:
        reason = ""
        for node in self._in_order():
            try:
                connection = await self._ask(node, request)
            except NotProcessed as error:
                reason = str(error)
                continue
            except ConnectionTimedOut as error:
                raise UpstreamTimeout(f"the engine did not answer within {self._timeout_s:g} s") from error
            except ConnectionBroken as error:
                raise UpstreamUnreachable(f"{error} before it answered") from error
            node.end_rest()
            return node, connection
        raise UpstreamUnreachable(f"the engine could not be reached: {reason}")

    def _in_order(self) -> list[Node]:
        """First the nodes that could be reached when last asked, in turn; then those at rest, the soonest due first."""
        if len(self._nodes) == 1:
            return self._nodes
        first, now = next(self._turn) % len(self._nodes), self._clock()
        rotated = self._nodes[first:] + self._nodes[:first]
        return sorted(rotated, key=lambda node: max(node.rests_until - now, 0.0))

    async def _ask(self, node: Node, request: Outgoing) -> EngineConnection:
        """Asks on an idle connection, and once more on a new one if the node had closed that meanwhile."""
        head, body = frame(node, request)
        expect = request.streamed and any(name.lower() == b"expect" for name, _ in request.headers)
        for connection in (node.take_idle(self._clock()), None):
            if connection is None:
                connection = await self._connect(node)
            try:
                await connection.ask(request.method, head, body, expect)
                return connection
            except ConnectionBroken as error:
                connection.abort()
                if connection.answer_began or not request.repeatable:
                    raise
                if not connection.used:
                    raise NotProcessed(str(error)) from error
            except BaseException:
                connection.abort()
                raise
        raise AssertionError("a new connection was used before")

    async def _connect(self, node: Node) -> EngineConnection:
        try:
            return await node.connect(self._timeout_s, self._tls, self._clock)
        except OSError as error:
            raise NotProcessed(explain(error)) from error

    def take_back(self, node: Node, connection: EngineConnection) -> None:
        if connection.finish():
            node.keep(connection, self._clock())
        self._slots.release()


class Answer:
    """An answer whose head has arrived. Its receiver has to close it."""

    def __init__(self, upstream: Upstream, node: Node, connection: EngineConnection) -> None:
        self._upstream, self._node = upstream, node
        self._connection: EngineConnection | None = connection
        self.status: int = connection.status
        self.headers: Headers = connection.headers
        """As received, including those that concern the connection."""

    def take_rest(self) -> bytes | None:
        """The rest of the body if all of it has arrived, otherwise None."""
        connection = self._connection
        return connection.take_buffered() if connection is not None and connection.complete else None

    async def next_chunk(self) -> bytes:
        """The next bytes of the body, b"" at its end. Chunked framing is removed, any content encoding is kept.

        Raises UpstreamUnreachable if the engine closes the connection, and UpstreamTimeout.
        """
        if self._connection is None:
            return b""
        try:
            return await self._connection.next_chunk()
        except ConnectionBroken as error:
            raise UpstreamUnreachable(f"{error} in the middle of its answer") from error
        except ConnectionTimedOut as error:
            raise UpstreamTimeout("the engine stopped in the middle of its answer") from error

    async def read(self, limit: int) -> bytes:
        """The whole body. Raises TooLarge beyond `limit` bytes, and what `next_chunk` raises."""
        chunks: list[bytes] = []
        size = 0
        while chunk := await self.next_chunk():
            chunks.append(chunk)
            size += len(chunk)
            if size > limit:
                raise TooLarge(f"the engine's answer is longer than {limit} bytes")
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    async def close(self) -> None:
        self.release()

    def release(self) -> None:
        """Returns the connection to its node, or closes it if the body was not read to its end."""
        if self._connection is not None:
            connection, self._connection = self._connection, None
            self._upstream.take_back(self._node, connection)


def frame(node: Node, request: Outgoing) -> tuple[bytes, bytes | AsyncIterator[bytes] | None]:
    """The head of a request for this node, and its body as it goes on the wire."""
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
    """The headers without those that concern one connection only."""
    kept, connection_options = [], b""
    for item in headers:
        name = item[0].lower()
        if name not in HOP_BY_HOP:
            kept.append(item)
        elif name == b"connection":
            connection_options += b"," + item[1].lower()
    if connection_options in CONNECTION_NAMES_NO_HEADER:
        return kept
    dropped = {option.strip() for option in connection_options.split(b",")}
    return [item for item in kept if item[0].lower() not in dropped]


async def chunked(body: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """A body of unknown length with HTTP/1.1's chunked framing (RFC 9112 7.1)."""
    async for data in body:
        if data:
            yield b"%x\r\n%s\r\n" % (len(data), data)
    yield b"0\r\n\r\n"
