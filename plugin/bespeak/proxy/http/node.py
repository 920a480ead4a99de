"""One node of the engine: its address, the idle connections to it, and its rest after it could not be reached."""

from __future__ import annotations

import asyncio
import logging
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import SplitResult, urlsplit

from bespeak.errors import UsageError
from bespeak.proxy.http.connection import EngineConnection

CONNECT_S = 5.0
IDLE_S = 30.0
"""A connection that was idle for longer is not used again: load balancers close theirs after a minute or so."""
FIRST_REST_S, LONGEST_REST_S = 30.0, 480.0
"""How long an unreachable node is left alone: the time doubles with each failure, up to the second value."""

logger = logging.getLogger("bespeak.proxy")


@dataclass(slots=True, eq=False)
class Node:
    host: str
    port: int
    authority: bytes  # as in the URL, for the header Host
    prefix: bytes  # path before every target, without a slash at its end
    tls: bool
    idle: list[EngineConnection] = field(default_factory=list)
    rests_until: float = 0.0
    rest_s: float = 0.0  # 0 if it could be reached when last asked

    @classmethod
    def at(cls, url: str) -> Node:
        """Raises UsageError, whose message never repeats the URL: it may hold a password."""
        parts, port = split_url(url)
        host = parts.hostname
        if parts.scheme not in ("http", "https") or not host:
            raise UsageError("an upstream's URL must be http://HOST:PORT or https://HOST:PORT, with a path if need be")
        if "@" in parts.netloc:
            raise UsageError(f"the upstream's URL for {host} holds credentials: remove them, each client sends its own")
        if parts.query or parts.fragment:
            raise UsageError(f"the upstream's URL for {host} has a query or fragment: remove it")
        if not url.isascii():
            raise UsageError("an upstream's URL must be ASCII: write the host in Punycode, the path percent-encoded")
        tls = parts.scheme == "https"
        return cls(host, port or (443 if tls else 80), parts.netloc.encode(), parts.path.rstrip("/").encode(), tls)

    @property
    def name(self) -> str:
        return f"{self.host}:{self.port}"

    def take_idle(self, now: float) -> EngineConnection | None:
        """The connection used last, so that surplus ones grow old and are closed."""
        while self.idle:
            connection = self.idle.pop()
            if connection.open and now - connection.idle_since < IDLE_S:
                return connection
            connection.abort()
        return None

    def keep(self, connection: EngineConnection, now: float) -> None:
        connection.idle_since = now
        while self.idle and now - self.idle[0].idle_since > IDLE_S:
            self.idle.pop(0).abort()
        self.idle.append(connection)

    def close_idle(self) -> None:
        while self.idle:
            self.idle.pop().abort()

    async def connect(
        self, timeout_s: float, tls: ssl.SSLContext | None, clock: Callable[[], float]
    ) -> EngineConnection:
        """A new connection. Raises OSError, after which the node rests.

        Once the rest is over, only one request tries the node again, not all that come at that moment.
        """
        retrying = self.rest_s > 0 and clock() >= self.rests_until
        if retrying:
            self.rests_until = clock() + self.rest_s
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(min(CONNECT_S, timeout_s)):
                _, connection = await loop.create_connection(
                    lambda: EngineConnection(timeout_s), self.host, self.port, ssl=tls if self.tls else None
                )
            return connection
        except OSError as error:
            if retrying or not self.rest_s:
                self.rest_s = min(self.rest_s * 2, LONGEST_REST_S) or FIRST_REST_S
                self.rests_until = clock() + self.rest_s
                logger.warning("upstream %s could not be reached: %s", self.name, explain(error))
            raise

    def end_rest(self) -> None:
        """Notes that the node answered."""
        if self.rest_s:
            self.rest_s = self.rests_until = 0.0
            logger.info("upstream %s answers again", self.name)


def split_url(url: str) -> tuple[SplitResult, int | None]:
    """The parts of a URL and its port. Raises UsageError."""
    try:
        parts = urlsplit(url)
        return parts, parts.port
    except ValueError as error:
        raise UsageError("an upstream's URL cannot be read: write http://HOST:PORT or https://HOST:PORT") from error


def tls_context(ca_file: Path | None) -> ssl.SSLContext:
    """Checks certificates and host names, always. Raises UsageError for a file that is not PEM."""
    try:
        return ssl.create_default_context(cafile=str(ca_file) if ca_file else None)
    except (OSError, ssl.SSLError) as error:
        raise UsageError(f"the CA file {ca_file} cannot be read as PEM: {explain(error)}") from error


def explain(error: OSError) -> str:
    """Why a connection failed, in a few words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"its certificate was refused ({error.verify_message})"
    if isinstance(error, ssl.SSLError):
        return "no TLS connection could be agreed"
    if isinstance(error, TimeoutError):
        return "it did not accept a connection in time"
    if isinstance(error, ConnectionRefusedError):
        return "connection refused"
    return error.strerror or type(error).__name__
