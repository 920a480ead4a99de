"""Requests and answers that pass through the proxy unchanged, or end in a way that nobody takes for complete."""

import asyncio
import contextlib
import gzip
import hashlib
import json
import logging
import socket
import struct
import threading

import pytest

from bespeak.proxy import Proxy, Upstream
from bespeak.proxy.http.passing import ClientGone, answer_json, read_body, request_target
from proxy_server import (
    OK,
    PATIENCE_S,
    connected,
    exchange,
    proxied,
    raw_engine,
    read_all,
    read_request,
    request,
    serving,
    serving_until_stopped,
    split,
)

MEGABYTE = 1 << 20


# The request.


@pytest.mark.parametrize(
    "target",
    [
        b"/",
        b"/books/_search?q=a+b%20c&filter_path=hits.hits._id,-took",
        b"/books%2Cfilms/_doc/a%2Fb%20c",
        b"/%3Clogstash-%7Bnow%2Fd%7D%3E/_search",
        b"/a//b/./../c/_search?&&x&y=&z=%zz",
        b"/_search?q=%C3%A9t%c3%a9&q=second",
        b"/books/_doc/a;b:c@d!$'()*,=~",
        b'/books/_search?q={"a":[1|2^3]}<>`',
        "/bücher/_search?q=grüße".encode(),
    ],
)
def test_target_passes_byte_for_byte(target):
    with proxied(OK) as (engine, url):
        exchange(url, request(target))
    assert engine.requests[0].line == b"GET " + target + b" HTTP/1.1"


def test_non_ascii_targets_on_one_connection():
    with proxied(OK) as (engine, url), connected(url) as client:
        for target in ("/é", "/e", "/ö?ö"):
            client.sendall(f"GET {target} HTTP/1.1\r\nHost: p\r\nX: ü\r\n\r\n".encode())
            assert client.recv(1000).endswith(b"ok")
    assert [received.line.split()[1].decode() for received in engine.requests] == ["/é", "/e", "/ö?ö"]


def test_target_with_scheme_and_host_reaches_no_other_host():
    with proxied(OK) as (engine, url):
        exchange(url, request(b"http://elsewhere:1/books?x=1"))
    assert engine.requests[0].line == b"GET /books?x=1 HTTP/1.1"


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"])
def test_every_method_passes(method):
    with proxied(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as (engine, url):
        assert exchange(url, request(b"/x", method)).startswith(b"HTTP/1.1 200 OK\r\n")
    assert engine.requests[0].line == method + b" /x HTTP/1.1"


def test_all_headers_pass_except_hop_by_hop_and_our_own():
    sent = [
        b"Authorization: Basic dTpw",
        b"Accept-Encoding: gzip, br",
        b"X-Opaque-Id: 1",
        b"X-Opaque-Id: 2",
        b"X-Empty:",
        b"X-Latin: \xe9",
        b"Keep-Alive: timeout=5",
        b"Connection: X-Secret",
        b"X-Secret: of this connection",
        b"Proxy-Authorization: Basic cHJveHk=",
        b"Proxy-Connection: keep-alive",
        b"TE: trailers",
        b"Trailer: X-Sum",
        b"X-Bespeak-User: ada",
        b"X-Bespeak-Session: s",
        b"User-Agent: test",
    ]
    with proxied(OK) as (engine, url):
        exchange(url, request(headers=sent))
        host = url.removeprefix("http://").encode()
        assert engine.requests[0].headers != []
        assert (b"host", engine.url.removeprefix("http://").encode()) in engine.requests[0].headers
        assert host not in engine.requests[0].head
    assert [item for item in engine.requests[0].headers if item[0] != b"host"] == [
        (b"authorization", b"Basic dTpw"),
        (b"accept-encoding", b"gzip, br"),
        (b"x-opaque-id", b"1"),
        (b"x-opaque-id", b"2"),
        (b"x-empty", b""),
        (b"x-latin", b"\xe9"),
        (b"user-agent", b"test"),
    ]


@pytest.mark.parametrize("body", [b"x", gzip.compress(b"{}" * 1000), bytes(range(256)) * 4096])
def test_body_passes_byte_for_byte(body):
    with proxied(OK) as (engine, url):
        exchange(url, request(b"/_bulk", b"POST", [b"Content-Encoding: gzip"], body))
    assert engine.requests[0].body == body
    assert (b"content-length", b"%d" % len(body)) in engine.requests[0].headers
    assert (b"content-encoding", b"gzip") in engine.requests[0].headers


def test_empty_body_keeps_its_length_and_no_body_has_none():
    with proxied(OK) as (engine, url):
        exchange(url, request(b"/a", b"POST", [b"Content-Length: 0"]))
        exchange(url, request(b"/b", b"POST"))
    assert (b"content-length", b"0") in engine.requests[0].headers
    assert not any(name == b"content-length" for name, _ in engine.requests[1].headers)


def test_chunked_body_passes_in_chunks():
    """The proxy may choose other chunks than the client (RFC 9112 7.1)."""
    head = b"POST /_bulk HTTP/1.1\r\nHost: p\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"5;name=value\r\nhello\r\n" * 50_000 + b"1\r\n!\r\n0\r\nX-Sum: 1\r\n\r\n"
    with proxied(OK) as (engine, url):
        assert exchange(url, head + chunks[:9], chunks[9:]).endswith(b"ok")
    assert undo_chunks(engine.requests[0].body) == b"hello" * 50_000 + b"!"
    assert not any(name in (b"content-length", b"x-sum") for name, _ in engine.requests[0].headers)


def test_chunked_body_that_has_fully_arrived_gets_a_length():
    head = b"POST /_search HTTP/1.1\r\nHost: p\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    with proxied(OK) as (engine, url):
        assert exchange(url, head + b"2\r\n{}\r\n0\r\n\r\n").endswith(b"ok")
    assert engine.requests[0].body == b"{}"


def undo_chunks(framed):
    body = b""
    while True:
        size, _, framed = framed.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return body
        body, framed = body + framed[:length], framed[length + 2 :]


def test_body_is_sent_only_after_100_continue():
    def answer(engine_side, received):
        engine_side.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
        told.append(engine_side.recv(5, socket.MSG_WAITALL))
        engine_side.sendall(OK)

    told = []
    with proxied(answer) as (engine, url), connected(url) as client:
        client.sendall(request(b"/_bulk", b"POST", [b"Expect: 100-continue", b"Content-Length: 5"]))
        assert client.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        client.sendall(b"hello")
        assert read_all(client).endswith(b"\r\n\r\nok")
    assert told == [b"hello"]
    assert (b"expect", b"100-continue") in engine.requests[0].headers


def test_body_that_the_engine_refuses_is_never_requested():
    refusal = b"HTTP/1.1 413 Request Entity Too Large\r\ncontent-length: 0\r\n\r\n"
    with proxied(refusal) as (_, url):
        answer = exchange(url, request(b"/_bulk", b"POST", [b"Expect: 100-continue", b"Content-Length: 5"]))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer


def test_upgrade_offer_does_not_lose_the_body():
    offer = [b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"]
    head = request(b"/_search", b"POST", [*offer, b"Content-Length: 2"])
    with proxied(OK) as (engine, url):
        assert exchange(url, head.replace(b"Connection: close", b"Connection: close, Upgrade") + b"{}").endswith(b"ok")
    assert engine.requests[0].body == b"{}"
    assert not any(name in (b"upgrade", b"http2-settings") for name, _ in engine.requests[0].headers)


def test_pipelined_requests_are_answered_in_order():
    def answer(engine_side, received):
        engine_side.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(received.line), received.line))

    ahead = b"".join(b"GET /%d HTTP/1.1\r\nHost: p\r\n\r\n" % n for n in range(3))
    with proxied(answer) as (_, url):
        answers = exchange(url, ahead + request(b"/3"))
    assert [line for line in answers.split() if line.startswith(b"/")] == [b"/0", b"/1", b"/2", b"/3"]


@pytest.mark.parametrize("after", [b"\r\n", b"GET /never HTTP/1.1\r\nHost: p\r\n\r\n"])
def test_bytes_after_the_last_request_are_ignored(after):
    with proxied(OK) as (engine, url):
        assert split(exchange(url, request(b"/", b"POST", [], b"{}") + after))[2] == b"ok"
    assert [received.line for received in engine.requests] == [b"POST / HTTP/1.1"]


def test_request_is_answered_despite_garbage_after_it():
    with proxied(OK) as (engine, url):
        answer = exchange(url, b"GET / HTTP/1.1\r\nHost: p\r\n\r\n" + b"nonsense\r\n\r\n")
    assert split(answer)[2] == b"ok"
    assert len(engine.requests) == 1


def test_garbage_in_a_body_aborts_the_request():
    head = b"POST /_bulk HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    with proxied(OK) as (engine, url), connected(url) as client:
        client.sendall(head + b"nonsense\r\n")
        assert b"200" not in read_all(client)
    assert engine.requests == []


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"nonsense\r\n\r\n", b"400"),
        (b"GET /\xe9\rX-Forged:1 HTTP/1.1\r\nHost: p\r\n\r\n", b"400"),
        (b"POST / HTTP/1.1\r\nContent-Length: 1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", b"400"),
        (b"CONNECT elsewhere:1 HTTP/1.1\r\nHost: elsewhere:1\r\n\r\n", b"501"),
        (b"GET / HTTP/1.1\r\n" + b"X-Long: %s\r\n" % (b"x" * 1000) * 400, b"431"),
    ],
)
def test_malformed_request_is_refused(sent, status):
    with proxied(OK) as (engine, url), connected(url) as client:
        with contextlib.suppress(OSError):
            client.sendall(sent)
        assert client.recv(100).split()[1] == status
    assert engine.requests == []


# The answer.


def test_answer_headers_keep_case_order_and_duplicates():
    own = [b"X-elastic-product: Elasticsearch", b'Warning: 299 ES "a"', b'warning: 299 ES "b"', b"Set-Cookie: a=1",
           b"ETag: x", b"Content-TYPE: application/json", b"Content-Length: 2"]  # fmt: skip
    hop = [b"Connection: Keep-Alive, X-Hop", b"Keep-Alive: timeout=4", b"X-Hop: 1", b"Proxy-Authenticate: Basic"]
    with proxied(b"\r\n".join([b"HTTP/1.1 200 OK", *own, *hop, b"", b"{}"])) as (_, url):
        status, headers, body = split(exchange(url, request()))
    assert (status, headers, body) == (b"HTTP/1.1 200 OK", [*own, b"connection: close"], b"{}")


@pytest.mark.parametrize("status", [200, 201, 206, 299, 301, 400, 404, 405, 409, 418, 429, 500, 503, 599])
def test_every_status_passes_with_its_body(status):
    with proxied(b"HTTP/1.1 %d Odd reason\r\ncontent-length: 2\r\n\r\n{}" % status) as (_, url):
        line, _, body = split(exchange(url, request()))
    assert (int(line.split()[1]), body) == (status, b"{}")


@pytest.mark.parametrize("status", [b"204 No Content", b"304 Not Modified"])
def test_answers_without_a_body(status):
    """The second request shows that the engine's connection is still in step."""
    with proxied(b"HTTP/1.1 %s\r\nETag: x\r\n\r\n" % status) as (engine, url):
        for _ in range(2):
            assert split(exchange(url, request())) == (b"HTTP/1.1 " + status, [b"ETag: x", b"connection: close"], b"")
    assert engine.connections == 1


def test_head_keeps_the_content_length():
    with proxied(b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n") as (engine, url):
        for _ in range(2):
            answer = split(exchange(url, request(b"/books", b"HEAD")))
            assert answer == (b"HTTP/1.1 200 OK", [b"content-length: 1234", b"connection: close"], b"")
    assert engine.connections == 1


def test_chunked_answer_passes_in_chunks():
    chunks = b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n"
    with proxied(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks) as (engine, url):
        for _ in range(2):
            _, headers, body = split(exchange(url, request()))
            assert undo_chunks(body) == b"abcde"
            assert b"transfer-encoding: chunked" in headers
    assert engine.connections == 1


def test_http_1_0_client_gets_no_chunks():
    with proxied(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") as (_, url):
        _, headers, body = split(exchange(url, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"))
    assert (headers, body) == ([b"connection: close"], b"abcde")


def test_http_1_0_client_can_keep_its_connection():
    with proxied(OK) as (_, url):
        answers = exchange(url, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2 + b"GET / HTTP/1.0\r\n\r\n")
    assert answers.count(b"\r\n\r\nok") == 3


def test_answer_delimited_by_the_end_of_the_connection():
    def answer(engine_side, received):
        engine_side.sendall(b"HTTP/1.1 200 OK\r\nX: 1\r\n\r\nabc")
        return False

    with proxied(answer) as (_, url):
        _, headers, body = split(exchange(url, request()))
    assert undo_chunks(body) == b"abc"
    assert headers[0] == b"X: 1"


def test_interim_answers_are_skipped():
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    with proxied(early + OK) as (_, url):
        assert exchange(url, request()) == OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")


def test_answer_streams():
    def answer(engine_side, received):
        engine_side.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab")
        assert seen.wait(PATIENCE_S)
        engine_side.sendall(b"cd")

    seen = threading.Event()
    with proxied(answer) as (_, url), connected(url) as client:
        client.sendall(request())
        received = b""
        while not received.endswith(b"ab"):
            received += client.recv(100)
        seen.set()
        assert read_all(client) == b"cd"


def test_answer_before_the_request_is_complete():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        upstream = f"http://127.0.0.1:{listener.getsockname()[1]}"
        with serving(Proxy(Upstream([upstream]))) as url, connected(url) as client:
            client.sendall(b"POST /_bulk HTTP/1.1\r\nHost: p\r\nContent-Length: 100\r\n\r\nabc")
            engine_side, _ = listener.accept()
            with engine_side:
                engine_side.recv(1000)
                engine_side.sendall(b"HTTP/1.1 413 Too Large\r\ncontent-length: 0\r\n\r\n")
                assert client.recv(100).startswith(b"HTTP/1.1 413 ")


# Bounds.


def test_upload_is_no_faster_than_the_engine_reads():
    size = 64 * MEGABYTE
    read, digest = threading.Event(), hashlib.sha256()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def engine():
            side, _ = listener.accept()
            with side:
                side.settimeout(PATIENCE_S)
                received = b""
                while b"\r\n\r\n" not in received:
                    received += side.recv(1000)
                assert read.wait(PATIENCE_S)
                body = received.partition(b"\r\n\r\n")[2]
                left = size - len(body)
                digest.update(body)
                while left:
                    data = side.recv(MEGABYTE)
                    left -= len(data)
                    digest.update(data)
                side.sendall(OK)

        thread = threading.Thread(target=engine)
        thread.start()
        with (
            serving(Proxy(Upstream([f"http://127.0.0.1:{listener.getsockname()[1]}"]))) as url,
            connected(url) as client,
        ):
            body = bytes(range(256)) * (size // 256)
            client.sendall(request(b"/_bulk", b"POST", [b"Content-Length: %d" % size]))
            taken = send_until_stuck(client, body)
            assert taken < size // 2
            read.set()
            client.settimeout(PATIENCE_S)
            client.sendall(memoryview(body)[taken:])
            assert read_all(client).endswith(b"ok")
        thread.join()
    assert digest.digest() == hashlib.sha256(body).digest()


def send_until_stuck(client, body):
    """The number of bytes that the other side accepts before it accepts none for a while."""
    client.settimeout(0.5)
    taken = 0
    with contextlib.suppress(TimeoutError):
        while taken < len(body):
            taken += client.send(memoryview(body)[taken : taken + MEGABYTE])
    return taken


def test_answer_is_no_faster_than_the_client_reads():
    size = 64 * MEGABYTE

    def answer(engine_side, received):
        engine_side.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n" % size)
        taken.append(send_until_stuck(engine_side, body))
        stuck.set()
        engine_side.settimeout(PATIENCE_S)
        engine_side.sendall(memoryview(body)[taken[0] :])

    body, taken, stuck = bytes(range(256)) * (size // 256), [], threading.Event()
    with proxied(answer) as (_, url), connected(url) as client:
        client.sendall(request())
        assert stuck.wait(PATIENCE_S)
        assert taken[0] < size // 2
        assert split(read_all(client))[2] == body


# Ends that are not those of an answer.


@pytest.mark.parametrize("framing", [b"content-length: 99", b"transfer-encoding: chunked"])
@pytest.mark.parametrize("how", ["closed", "reset"])
def test_cut_answer_never_looks_complete(framing, how):
    def answer(engine_side, received):
        engine_side.sendall(b"HTTP/1.1 200 OK\r\n%s\r\n\r\n5\r\nhello\r\n" % framing)
        assert seen.wait(PATIENCE_S)
        if how == "reset":
            engine_side.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        return False

    seen = threading.Event()
    with proxied(answer) as (_, url), connected(url) as client:
        client.sendall(b"GET / HTTP/1.1\r\nHost: p\r\n\r\n")
        received = b""
        while b"hello" not in received:
            received += client.recv(1000)
        seen.set()
        received += read_all(client)
    assert b"0\r\n\r\n" not in received
    assert framing in received


def test_cut_answer_to_an_http_1_0_client_is_reset():
    def answer(engine_side, received):
        engine_side.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        assert seen.wait(PATIENCE_S)
        return False

    seen = threading.Event()
    with proxied(answer) as (_, url), connected(url) as client:
        client.sendall(b"GET / HTTP/1.0\r\n\r\n")
        while b"hello" not in client.recv(1000):
            pass
        seen.set()
        with pytest.raises(ConnectionResetError):
            read_all(client)


def test_client_that_disconnects_while_waiting_ends_the_request():
    def answer(engine_side, received):
        arrived.set()
        ended.append(engine_side.recv(1))

    arrived, ended = threading.Event(), []
    with proxied(answer) as (engine, url):
        with connected(url) as client:
            client.sendall(request())
            assert arrived.wait(PATIENCE_S)
        wait_for(lambda: ended)
    assert ended == [b""]
    assert len(engine.requests) == 1


def test_client_that_disconnects_during_the_answer_ends_it():
    def answer(engine_side, received):
        engine_side.sendall(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n")
        with contextlib.suppress(ConnectionError):
            ended.append(engine_side.recv(1))
        ended.append(b"")

    ended = []
    with proxied(answer) as (_, url):
        with connected(url) as client:
            client.sendall(request())
            while b"hello" not in client.recv(1000):
                pass
        wait_for(lambda: ended)
    assert ended[0] == b""


def test_client_that_disconnects_during_its_request_ends_it():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(PATIENCE_S)
        with serving(Proxy(Upstream([f"http://127.0.0.1:{listener.getsockname()[1]}"]))) as url:
            with connected(url) as client:
                client.sendall(request(b"/_bulk", b"POST", [b"Content-Length: 100"]) + b"hello")
                side, _ = listener.accept()
                side.settimeout(PATIENCE_S)
                received = b""
                while not received.endswith(b"hello"):
                    received += side.recv(1000)
            with side, contextlib.suppress(ConnectionError):
                assert side.recv(1) == b""


def wait_for(condition):
    for _ in range(PATIENCE_S * 100):
        if condition():
            return
        threading.Event().wait(0.01)
    pytest.fail("the condition was not met in time")


def free_url():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_unreachable_engine_is_an_error_in_elasticsearchs_shape():
    with serving(Proxy(Upstream([free_url()]))) as url:
        status, headers, body = split(exchange(url, request(b"/_search", b"POST", [], b"{}")))
    cause = {"type": "upstream_unreachable_exception", "reason": "the engine could not be reached: connection refused"}
    assert status == b"HTTP/1.1 502 Bad Gateway"
    assert b"X-Elastic-Product: Elasticsearch" in headers
    assert json.loads(body) == {"error": {"root_cause": [cause], **cause}, "status": 502}


def test_silent_engine_is_a_gateway_timeout():
    with (
        raw_engine(lambda side, received: None) as engine,
        serving(Proxy(Upstream([engine.url], timeout_s=0.2))) as url,
    ):
        answer = exchange(url, request())
    assert answer.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
    assert json.loads(split(answer)[2])["error"]["type"] == "upstream_timeout_exception"


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", b""])
def test_answer_that_is_not_http_is_a_bad_gateway(answer):
    def say(engine_side, received):
        engine_side.sendall(answer)
        return False

    with proxied(say) as (_, url):
        assert exchange(url, request(b"/", b"POST")).startswith(b"HTTP/1.1 502 ")


def test_shutdown_finishes_requests_in_flight():
    def answer(engine_side, received):
        engine_side.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab")
        arrived.set()
        assert released.wait(PATIENCE_S)
        engine_side.sendall(b"cd")

    arrived, released = threading.Event(), threading.Event()
    with (
        raw_engine(answer) as engine,
        serving_until_stopped(Proxy(Upstream([engine.url]))) as (url, server),
        connected(url) as client,
        connected(url) as idle,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: p\r\n\r\n")
        assert arrived.wait(PATIENCE_S)
        server.should_exit = True
        assert idle.recv(1) == b""
        released.set()
        assert read_all(client).endswith(b"abcd")


# Parts by themselves.


def test_target_from_a_server_without_raw_path():
    assert request_target({"path": "/a b/ü", "query_string": b"x=%20"}) == b"/a%20b/%C3%BC?x=%20"


def test_client_that_disconnects_while_its_body_is_read():
    async def receive():
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        asyncio.run(read_body(receive, 10))


def test_reading_stops_beyond_the_limit():
    async def receive():
        return {"type": "http.request", "body": b"abc", "more_body": True}

    assert asyncio.run(read_body(receive, 5)) == (b"abcabc", False)


def test_read_request_of_the_raw_engine():
    left, right = socket.socketpair()
    with left, right:
        left.sendall(request(b"/", b"POST", [], b"abc"))
        assert read_request(right).body == b"abc"


def test_line_break_in_our_own_header_is_never_sent(caplog):
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await answer_json(send, 200, {}, [(b"X-Bespeak", b"a\r\nX-Forged: 1")])

    caplog.set_level(logging.ERROR)
    with serving(app, lifespan="off") as url:
        answer = exchange(url, request())
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"Forged" not in answer
