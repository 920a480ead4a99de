"""A copy of an answer that passes to the client untouched."""

from __future__ import annotations

from bespeak.errors import InputError
from bespeak.proxy.http.gzip import unpack
from bespeak.proxy.http.passing import Message, Send


class CopyingSend:
    """Passes an answer on and keeps a copy of it, up to `limit` bytes."""

    def __init__(self, send: Send, limit: int) -> None:
        self._send, self._limit = send, limit
        self._chunks, self._length = list[bytes](), 0
        self._is_zipped = self._keeps = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = message["headers"]
            self._is_zipped = any(name.lower() == b"content-encoding" and value == b"gzip" for name, value in headers)
            self._keeps = message["status"] == 200
        elif self._keeps:
            self._length += len(message.get("body", b""))
            self._keeps = self._length <= self._limit
            self._chunks = [*self._chunks, message.get("body", b"")] if self._keeps else []
        await self._send(message)

    def text(self) -> str:
        """The answer; "" if its status was not 200, or it was too long or not text."""
        data = b"".join(self._chunks) if self._keeps else b""
        try:
            return (unpack(data, self._limit) if self._is_zipped else data).decode("utf-8")
        except (InputError, UnicodeDecodeError):
            return ""
