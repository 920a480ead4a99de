"""Bodies packed by gzip, read within a limit."""

from __future__ import annotations

import zlib

from bespeak.errors import InputError
from bespeak.proxy.http.upstream import Headers


def unpack(data: bytes, limit: int) -> bytes:
    """The content of one gzip member, at most `limit` bytes.

    Raises InputError if it is not gzip, is cut short, is longer, or has anything after it.
    """
    unpacker = zlib.decompressobj(wbits=31)
    try:
        content = unpacker.decompress(data, limit)
    except zlib.error as error:
        raise InputError("the body is not gzip") from error
    if not unpacker.eof or unpacker.unused_data:
        raise InputError("the body is cut short or too long, or more follows it")
    return content


def accepts_gzip(headers: Headers) -> bool:
    """Whether the client may be answered in gzip."""
    return any(name.lower() == b"accept-encoding" and b"gzip" in value.lower() for name, value in headers)
