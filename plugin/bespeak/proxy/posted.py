"""Bodies that are posted to Bespeak's own routes: events in several forms, and questions for a rewrite."""

from __future__ import annotations

import gzip
import io
import json
import zlib
from http import HTTPStatus
from typing import Any

from bespeak.errors import InputError
from bespeak.profiles.events import MAX_ID_CHARS
from bespeak.profiles.ubi import MAX_LINE_BYTES, STRICT
from bespeak.proxy.http.passing import Receive, read_body
from bespeak.proxy.http.refusal import Refusal
from bespeak.proxy.http.upstream import Headers
from bespeak.reading import MAX_QUERY_CHARS

MAX_EVENTS_BYTES = 8 << 20
"""The most that the events of one request may have, also after decompression."""

MAX_BODY_BYTES = 1 << 16
"""The most that any other body may have."""


async def whole_body(receive: Receive, limit: int = MAX_BODY_BYTES) -> bytes:
    """The request's body. Raises Refusal if it is longer than `limit` bytes."""
    body, is_complete = await read_body(receive, limit)
    if not is_complete or len(body) > limit:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is longer than {limit} bytes: send it in parts")
    return body


def is_zipped(headers: Headers) -> bool:
    """Whether the body is packed by gzip. Raises Refusal for any other encoding."""
    names = [value.strip().lower() for name, value in headers if name.lower() == b"content-encoding"]
    names = [name for name in names if name not in (b"", b"identity")]
    if names not in ([], [b"gzip"], [b"x-gzip"]):
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the only Content-Encoding taken is gzip")
    return bool(names)


def unzip(body: bytes) -> bytes:
    """The content of all members. Raises Refusal if they are damaged, or too long once unzipped."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
            content = file.read(MAX_EVENTS_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, "the body is cut short or damaged as gzip") from error
    if len(content) > MAX_EVENTS_BYTES:
        raise Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body is longer than {MAX_EVENTS_BYTES} bytes once unzipped: send it in parts",
        )
    return content


def as_lines(body: bytes) -> bytes:
    """One line for each event: NDJSON as it is, the elements of an array, or one object over several lines.

    Raises InputError for a broken array.
    """
    start = body.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"[":
        return b"\n".join(map(as_line, parse(body)))
    if start == b"{" and len(body) <= MAX_LINE_BYTES:
        try:
            return as_line(parse(body))
        except InputError:  # several objects, a line each
            return body
    return body


def as_line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def parse(body: bytes) -> Any:
    """The JSON value of a whole body. Raises InputError."""
    try:
        return STRICT.decode(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"the body is not UTF-8 at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"the body is broken JSON at character {error.pos + 1}: {error.msg}") from error
    except RecursionError as error:
        raise InputError("the body is nested too deep") from error
    except ValueError as error:  # an integer of thousands of digits
        raise InputError("the body is broken JSON: a number is too long") from error


def read_question(body: bytes) -> dict[str, str]:
    """`query`, `user`, `session` and `tenant`, "" if not given. Raises InputError."""
    given = parse(body)
    names = ("query", "user", "session", "tenant")
    if not isinstance(given, dict) or not given.keys() <= set(names):
        raise InputError(f"the body must be an object with {', '.join(names)}, of which only query is required")
    for name, value in given.items():
        if not isinstance(value, str):
            raise InputError(f"{name} is not text")
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise InputError(f"{name} holds half of a surrogate pair, which is not a character")
    asked = {name: given.get(name, "") for name in names}
    if not asked["query"].strip() or len(asked["query"]) > MAX_QUERY_CHARS:
        raise InputError(f"query must have 1 to {MAX_QUERY_CHARS} characters, but has {len(asked['query'])}")
    if len(asked["session"]) > MAX_ID_CHARS:
        raise InputError(f"session has {len(asked['session'])} characters, but at most {MAX_ID_CHARS} are allowed")
    return asked
