"""The proxy as a process: its socket, its log, and how it ends."""

from __future__ import annotations

import logging
import os
import socket
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import uvicorn

from bespeak.errors import UsageError
from bespeak.proxy.access import is_loopback
from bespeak.proxy.http.serving import server_config

if TYPE_CHECKING:
    from bespeak.proxy.app import Proxy

GRACE_S = 25
"""Seconds that running requests may take after the first signal: Kubernetes kills after 30."""
EVERY_ADDRESS = ("", "0.0.0.0", "::")
QUIET = ("elastic_transport", "elasticsearch", "urllib3")
"""Loggers whose warnings the errors of the profile store repeat."""


def bind(host: str, port: int) -> socket.socket:
    """A listening socket. Raises UsageError if the port is taken or the address belongs to another machine."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        return socket.create_server((host, port), family=family, backlog=2048)
    except OSError as error:
        reason = error.strerror if isinstance(error, socket.gaierror) else os.strerror(error.errno or 0)
        raise UsageError(
            f"cannot listen on {host} port {port} ({reason}): choose others with --host and --port"
        ) from error


def refuse_itself(urls: Sequence[str], host: str, port: int) -> None:
    """Raises UsageError if a URL names the proxy's own address: each request would be passed on without end."""
    for url in map(urlsplit, urls):
        name = url.hostname or ""
        is_here = name == host or (is_loopback(name) and (is_loopback(host) or host in EVERY_ADDRESS))
        if is_here and url.port == port:
            raise UsageError(f"--upstream names the proxy's own port {port}: give the URL of Elasticsearch")


class OneLineFormatter(logging.Formatter):
    """A line for each record, with the class of an exception but not its message, which may hold what a client sent."""

    def format(self, record: logging.LogRecord) -> str:
        message = (record.getMessage().splitlines() or [""])[0]
        if record.exc_info and record.exc_info[0]:
            message = f"{message} ({record.exc_info[0].__name__})"
        return f"{self.formatTime(record)} {record.levelname} {record.name}: {message}"


def log_warnings() -> None:
    """Writes warnings to stderr, a line each."""
    handler = logging.StreamHandler()
    handler.setFormatter(OneLineFormatter())
    logging.basicConfig(handlers=[handler], level=logging.WARNING)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.CRITICAL)


class Server(uvicorn.Server):
    """Finishes running requests after the first signal and aborts them at the second; either way events are written."""

    def handle_exit(self, sig: int, frame: Any) -> None:  # noqa: ARG002
        if not self.should_exit:
            self.should_exit = True
            return
        for task in tuple(self.server_state.tasks):
            task.get_loop().call_soon_threadsafe(task.cancel)
        for connection in tuple(self.server_state.connections):
            connection.loop.call_soon_threadsafe(connection.transport.abort)


def listen(proxy: Proxy, listener: socket.socket) -> None:
    """Serves until a signal ends it."""
    Server(server_config(proxy, timeout_graceful_shutdown=GRACE_S)).run([listener])
