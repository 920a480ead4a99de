"""Refusals of requests to Bespeak's own routes, in the form of Elasticsearch's errors."""

from __future__ import annotations

from http import HTTPStatus

from bespeak.proxy.http.passing import Send, answer_error
from bespeak.proxy.http.upstream import Headers

KINDS = {
    HTTPStatus.BAD_REQUEST: "illegal_argument_exception",
    HTTPStatus.UNAUTHORIZED: "security_exception",
    HTTPStatus.FORBIDDEN: "security_exception",
    HTTPStatus.NOT_FOUND: "resource_not_found_exception",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed_exception",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "content_too_long_exception",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "media_type_header_exception",
    HTTPStatus.SERVICE_UNAVAILABLE: "bespeak_exception",
}
"""Types of errors, named as Elasticsearch names them."""


class Refusal(Exception):
    """An answer that says why a request is not served."""

    def __init__(self, status: HTTPStatus, reason: str, headers: Headers = ()) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers

    async def answer(self, send: Send) -> None:
        await answer_error(send, self.status, KINDS[self.status], self.reason, self.headers)
