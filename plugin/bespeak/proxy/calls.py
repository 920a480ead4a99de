"""One request for searches as it came: its API, index, parameters and body."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from urllib.parse import parse_qsl

from bespeak.errors import InputError
from bespeak.proxy.app import path_of
from bespeak.proxy.body.filter_path import apply
from bespeak.proxy.body.search import Params
from bespeak.proxy.http.gzip import unpack
from bespeak.proxy.http.passing import Scope, request_target
from bespeak.proxy.http.upstream import Headers
from bespeak.proxy.identity import names_user

MAX_BODY_BYTES = 16_000_000

# A name between < and > contains date math, and may contain a slash.
SEARCH_PATH = re.compile(
    r"(?:/(?P<index>(?:<[^>]*>|[^/<])+))?/(?P<api>_search|_msearch|_async_search)(?P<template>/template)?/?"
)
OTHER_FORMATS = (b"yaml", b"cbor", b"smile", b"form-urlencoded")


@dataclass(frozen=True, slots=True)
class Call:
    """One request for searches, as it came."""

    scope: Scope
    headers: Headers
    api: str  # _search, _msearch, _async_search, _search_template, _msearch_template
    index: str
    params: Params
    body: bytes
    text: str  # the body, unpacked
    at: datetime  # when it was asked
    rendered: bool = False  # `text` is what the engine made of a template

    @property
    def path(self) -> bytes:
        """The path of the search, without its query string and without the path that the proxy is mounted under."""
        path = request_target(self.scope).partition(b"?")[0].rstrip(b"/")
        return path.removesuffix(b"/template") if self.rendered else path

    @property
    def names_user(self) -> bool:
        """Whether its headers name a user."""
        return names_user(self.headers)

    @property
    def may_concern_us(self) -> bool:
        """Whether it may name a user, or hold anything else for Bespeak."""
        return self.names_user or '"ext"' in self.text or any(name == "source" for name, _ in self.params)

    @property
    def unfiltered_params(self) -> Params:
        """The parameters without `filter_path`, which is applied to the answer after reordering."""
        return tuple(pair for pair in self.params if pair[0] != "filter_path")

    def filtered(self, answer: str) -> str:
        """The answer as the client's `filter_path` cuts it."""
        patterns = dict(self.params).get("filter_path")  # the last one counts, as in Elasticsearch
        if patterns is None:
            return answer
        # An infinite number cannot be written as JSON, so it raises ValueError.
        return json.dumps(apply(json.loads(answer), patterns), separators=(",", ":"), allow_nan=False)


def read_call(scope: Scope, body: bytes) -> Call:
    """Raises InputError for a body that is not JSON text, and UnicodeDecodeError for one that is not UTF-8."""
    found = SEARCH_PATH.fullmatch(path_of(scope))
    assert found is not None
    headers: Headers = scope["headers"]
    text = _body_text({name.lower(): value for name, value in headers}, body)
    query = scope.get("query_string", b"").decode("ascii", "replace").replace(";", "&")  # Elasticsearch takes either
    params = tuple(parse_qsl(query, keep_blank_values=True))
    api = found["api"] + (found["template"] or "").replace("/", "_")
    return Call(scope, headers, api, found["index"] or "", params, body, text, datetime.now(UTC))


def _body_text(headers: dict[bytes, bytes], body: bytes) -> str:
    coding = headers.get(b"content-encoding", b"identity").strip().lower()
    if coding not in (b"identity", b"gzip"):
        raise InputError("the body is compressed by something other than gzip")
    formats = [headers.get(name, b"").lower() for name in (b"content-type", b"accept")]
    if any(other in given for given in formats for other in OTHER_FORMATS):
        raise InputError("the request is not in JSON")
    return (unpack(body, MAX_BODY_BYTES) if coding == b"gzip" else body).decode("utf-8")


def query_without_source(query: bytes) -> bytes:
    """The query string of a URL without the body that it may hold: Elasticsearch refuses two bodies."""
    if b"source" not in query:
        return query
    pairs = query.replace(b";", b"&").split(b"&")
    return b"&".join(pair for pair in pairs if pair.split(b"=")[0] not in (b"source", b"source_content_type"))
