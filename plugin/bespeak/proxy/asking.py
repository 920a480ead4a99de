"""Requests to the engine in a client's name: its search with other words, and our own requests with its rights."""

from __future__ import annotations

import asyncio
import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple
from urllib.parse import quote, urlencode

from bespeak.deadline import Deadline
from bespeak.errors import EngineError, EngineRefused
from bespeak.proxy.body.search import Params, Search
from bespeak.proxy.calls import Call
from bespeak.proxy.http.upstream import Headers, Upstream, end_to_end

MAX_ANSWER_BYTES = 64_000_000

NOT_SENT = {b"host", b"content-length", b"content-encoding", b"accept-encoding", b"expect"}
CREDENTIALS = (
    b"authorization", b"cookie", b"es-client-authentication", b"es-secondary-authorization", b"es-security-runas-user",
)  # fmt: skip
INDEX_OPTIONS = ("ignore_unavailable", "allow_no_indices", "expand_wildcards", "ignore_throttled")


class EngineAnswer(NamedTuple):
    """An answer of the engine's, read to its end."""

    status: int
    headers: Headers
    text: str


class Question(NamedTuple):
    """The request that is sent instead of a client's."""

    path: bytes
    params: Params
    text: str


async def ask_instead(upstream: Upstream, call: Call, question: Question) -> EngineAnswer:
    """The engine's answer to `question`, asked with the client's headers.

    Raises EngineError, and UnicodeDecodeError for an answer that is not text.
    """
    query = urlencode(question.params, quote_via=quote)
    place = question.path + (b"?" + query.encode() if query else b"")
    body = question.text.encode("utf-8", "surrogatepass")
    answer = await upstream.send("POST", place, _headers_for(call, body), body)
    try:
        data = await answer.read(MAX_ANSWER_BYTES)
    finally:
        await answer.close()
    return EngineAnswer(answer.status, answer.headers, data.decode("utf-8"))


def _headers_for(call: Call, body: bytes) -> list[tuple[bytes, bytes]]:
    """The client's headers that fit another body."""
    headers = [pair for pair in end_to_end(call.headers) if _is_sent(pair[0].lower())]
    if not call.body and not any(name.lower() == b"content-type" for name, _ in headers):
        headers.append((b"content-type", b"application/json"))
    return [*headers, (b"content-length", str(len(body)).encode())]


def _is_sent(name: bytes) -> bool:
    return name not in NOT_SENT and not name.startswith((b"x-bespeak", b"proxy-"))


@dataclass(frozen=True, slots=True)
class Asker:
    """A client and where it searches. Our own questions go to the same names with the same rights, so that the filter
    of an alias, or a right on an alias alone, hides from us what it hides from the client.
    """

    headers: Headers
    index: str = ""  # as in the client's path; "" for all
    params: Params = ()
    pit: object = None

    @classmethod
    def of(cls, search: Search, headers: Headers) -> Asker:
        options = tuple(pair for pair in search.params if pair[0] in INDEX_OPTIONS)
        return cls(headers, search.index, options, search.body.get("pit"))

    async def search(self, upstream: Upstream, body: Mapping[str, object], deadline: Deadline) -> list[dict[str, Any]]:
        """The hits. Raises EngineError, and TimeoutError at the deadline."""
        if self.pit is not None:
            target, body = "/_search", {**body, "pit": self.pit}
        else:
            index = f"/{quote(self.index, safe=',')}" if self.index else ""
            target = f"{index}/_search" + (f"?{urlencode(self.params)}" if self.params else "")
        answer = await self.ask(upstream, target, deadline, body)
        hits: list[dict[str, Any]] = answer["hits"]["hits"]
        return hits

    async def ask(
        self, upstream: Upstream, target: str, deadline: Deadline, content: object | None = None
    ) -> dict[str, Any]:
        """The engine's JSON answer to a POST of `content`, or to a GET without any.

        Raises EngineRefused if the client may not ask this, another EngineError if there is no answer, and
        TimeoutError at the deadline.
        """
        headers = [*self.credentials, (b"accept", b"application/json")]
        body = None if content is None else json.dumps(content).encode()
        if body is not None:
            headers += [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
        async with asyncio.timeout(None if deadline.at == math.inf else deadline.left_s):
            answer = await upstream.send("GET" if body is None else "POST", target.encode(), headers, body)
            try:
                text = await answer.read(MAX_ANSWER_BYTES)
            finally:
                await answer.close()
        return _read_answer(answer.status, text)

    @property
    def credentials(self) -> list[tuple[bytes, bytes]]:
        """The headers that tell Elasticsearch who the client is."""
        return [(name, value) for name, value in self.headers if name.lower() in CREDENTIALS]

    def digest(self) -> bytes:
        """A key that is equal for clients that see the same, so that knowledge about one holds for the other."""
        content = repr((self.credentials, self.index, self.params))
        return hashlib.blake2b(content.encode(), digest_size=16).digest()


def _read_answer(status: int, text: bytes) -> dict[str, Any]:
    if status == 429 or status >= 500:
        raise EngineError(f"the engine could not answer a question about an index (status {status})")
    if status != 200:
        raise EngineRefused(f"the engine refused a question about an index (status {status})")
    try:
        content = json.loads(text)
    except ValueError as error:
        raise EngineRefused("the engine's answer is not JSON") from error
    if not isinstance(content, dict):
        raise EngineRefused("the engine's answer is not a JSON object")
    return content
