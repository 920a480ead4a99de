"""An answer as bytes on a client's connection: its head, the framing of its body, and its end."""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Iterable, Sequence
from http import HTTPStatus

STATUS_LINES = {status.value: b"HTTP/1.1 %d %s" % (status, status.phrase.encode()) for status in HTTPStatus}
CHUNKED = (b"transfer-encoding: chunked",)


class AnswerWriter:
    """Writes one answer. Header names keep their case; only the headers that frame the body are ours."""

    __slots__ = ("_chunked", "_held_head", "_is_head", "_is_old_client", "_left", "_transport", "keep_alive")

    def __init__(self, transport: asyncio.Transport, method: str, http_version: str, keep_alive: bool) -> None:
        self.keep_alive = keep_alive
        self._transport = transport
        self._is_head = method == "HEAD"
        self._is_old_client = http_version == "1.0"
        self._held_head = b""
        self._chunked = False
        self._left: int | None = None  # bytes of the body still to be written; None if the length is unknown

    def start(self, status: int, headers: Iterable[tuple[bytes, bytes]], body_follows: bool) -> None:
        """Writes the head, or holds it back for the first write of the body if that follows at once.

        Raises RuntimeError for a header with a line break.
        """
        self._held_head = self._head(status, headers)
        if not body_follows:
            self._write(b"")

    def write_body(self, body: bytes, more: bool) -> None:
        """Raises RuntimeError if the body is not as long as its content-length."""
        if self._chunked:
            end = b"" if more else b"0\r\n\r\n"
            self._write(b"%x\r\n%b\r\n%b" % (len(body), body, end) if body else end)
        elif not self._is_head:
            if self._left is not None:
                self._left -= len(body)
                if self._left < 0 or (self._left and not more):
                    raise RuntimeError("the answer is not as long as its content-length")
            self._write(body)
        if not more:
            self._write(b"")

    def break_off(self) -> None:
        """Ends the connection in the middle of an answer, in a way that the client can tell from a complete answer."""
        if self._chunked or self._left is not None:
            self._write(b"")
            self._transport.close()
        else:  # the end of the connection is that of the answer: only a reset differs
            sock = self._transport.get_extra_info("socket")
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self._transport.abort()

    def _write(self, data: bytes) -> None:
        """Writes `data` together with a head that was held back: a write costs more than all else."""
        if self._held_head:
            head, self._held_head = self._held_head, b""
            self._transport.write(head + data)
        elif data:
            self._transport.write(data)

    def _head(self, status: int, headers: Iterable[tuple[bytes, bytes]]) -> bytes:
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
        """The header lines from which the client knows where the body ends (RFC 9112 6.3)."""
        if self._is_head or status in (204, 304):
            self._left = 0
        elif self._left is None and not self._is_old_client:
            self._chunked = True
        elif self._left is None:
            self.keep_alive = False
        framing = CHUNKED if self._chunked else ()
        if not self.keep_alive:
            return (*framing, b"connection: close")
        return (*framing, b"connection: keep-alive") if self._is_old_client else framing
