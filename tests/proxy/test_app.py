"""The proxy as an app: wrapped, mounted, with its own routes, and with faults in the routes and searches."""

import json

import pytest

from bespeak.proxy import Proxy, Upstream
from bespeak.proxy.http.passing import answer_json, pass_on, read_body
from proxy_server import OK, exchange, proxied, raw_engine, request, serving, split

MEGABYTE = 1 << 20


def test_app_can_be_wrapped():
    def wrapped(app):
        async def wrapper(scope, receive, send):
            await app(scope, receive, send)

        return wrapper

    with raw_engine(OK) as engine, serving(wrapped(Proxy(Upstream([engine.url])))) as url:
        assert exchange(url, request(b"/a%2Fb?q=%20")).endswith(b"ok")
    assert engine.requests[0].line == b"GET /a%2Fb?q=%20 HTTP/1.1"


def test_app_can_be_mounted_under_a_path():
    def mounted(app, root):
        async def host(scope, receive, send):
            below = scope if scope["type"] == "lifespan" else {**scope, "root_path": root}
            await app(below, receive, send)

        return host

    with raw_engine(OK) as engine:
        proxy = Proxy(Upstream([engine.url]), own=OwnRoutes())
        with serving(mounted(proxy, "/search engine")) as url:
            exchange(url, request(b"/search%20engine/a%2Fb?q=%20"))
            assert exchange(url, request(b"/search%20engine/_bespeak/health")).endswith(b'"/_bespeak/health"')
    assert [received.line for received in engine.requests] == [b"GET /a%2Fb?q=%20 HTTP/1.1"]


class OwnRoutes:
    """Answers with the path, or fails if the path holds `fail`."""

    async def __call__(self, scope, receive, send):
        path = scope["path"][scope["path"].index("/_bespeak") :]
        if "fail" in path:
            raise ValueError(f"secret of {path}")
        await answer_json(send, 200, path)


class FailingSearches:
    """Fails at the named stage of every search."""

    def __init__(self, stage):
        self.stage = stage

    def concerns(self, method, path, headers):
        if self.stage == "concerns":
            raise ValueError("secret")
        return path.endswith("/_search")

    async def __call__(self, scope, receive, send):
        if self.stage == "before":
            raise ValueError("secret")
        body, complete = await read_body(receive, 16)
        if self.stage == "after the answer began":
            await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"9")]})
        raise ValueError(f"secret {body!r} {complete}")


def test_own_routes_get_only_their_own_paths():
    with proxied(OK, own=OwnRoutes()) as (engine, url):
        for path in (b"/_bespeak", b"/_bespeak/x"):
            assert exchange(url, request(path)).endswith(b'"%s"' % path)
        assert exchange(url, request(b"/_bespeakeasy")).endswith(b"ok")
    assert len(engine.requests) == 1


def test_fault_in_own_routes_is_reported_without_its_message(caplog):
    with proxied(OK, own=OwnRoutes()) as (_, url):
        answer = exchange(url, request(b"/_bespeak/fail"))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert json.loads(split(answer)[2])["status"] == 500
    assert "secret" not in caplog.text + answer.decode()
    assert "ValueError" in caplog.text


@pytest.mark.parametrize("stage", ["concerns", "before", "after reading"])
@pytest.mark.parametrize("body", [b"{}", b"x" * 100_000])
def test_fault_in_a_search_passes_the_untouched_request(stage, body, caplog):
    with proxied(OK, searches=FailingSearches(stage)) as (engine, url):
        answer = exchange(url, request(b"/books/_search", b"POST", [], body))
    assert answer.endswith(b"ok")
    assert (b"X-Bespeak: rewrite=failed; rerank=failed" in answer) == (stage != "concerns")
    assert engine.requests[0].body == body
    assert "secret" not in caplog.text
    assert "ValueError" in caplog.text


def test_fault_during_the_answer_breaks_it_off(caplog):
    with proxied(OK, searches=FailingSearches("after the answer began")) as (engine, url):
        answer = exchange(url, request(b"/_search", b"POST", [], b"{}"))
    assert split(answer)[2] == b""
    assert b"content-length: 9" in answer
    assert engine.requests == []
    assert "secret" not in caplog.text


class LongSearches:
    """Passes every request on, including those longer than it reads."""

    def __init__(self, upstream):
        self.upstream = upstream
        self.complete = []

    def concerns(self, method, path, headers):
        return True

    async def __call__(self, scope, receive, send):
        body, complete = await read_body(receive, 1000)
        self.complete.append(complete)
        added = [(b"X-Bespeak", b"rewrite=off")]
        await pass_on(self.upstream, scope, receive, send, body=body, more=not complete, added=added)


@pytest.mark.parametrize("size", [2, 999, 1000, 1001, 5 * MEGABYTE])
def test_request_too_long_to_read_still_passes(size):
    with raw_engine(OK) as engine:
        upstream = Upstream([engine.url])
        searches = LongSearches(upstream)
        with serving(Proxy(upstream, searches=searches)) as url:
            answer = exchange(url, request(b"/_search", b"POST", [], b"x" * size))
    assert b"X-Bespeak: rewrite=off" in answer
    assert engine.requests[0].body == b"x" * size
    assert searches.complete == [True] if size <= 1000 else [True, False]


def test_shutdown_closes_what_was_opened(caplog):
    async def close_later():
        closed.append("later")

    def fail():
        raise OSError("secret")

    closed = []
    with proxied(OK, closing=[fail, lambda: closed.append("now"), close_later]) as (_, url):
        exchange(url, request())
        assert closed == []
    assert closed == ["now", "later"]
    assert "closing failed: OSError" in caplog.text
