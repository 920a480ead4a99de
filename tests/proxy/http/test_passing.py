"""What passes through the proxy comes out as it went in, both ways, or ends in a way that nobody takes for whole."""

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
from bespeak.proxy.http.passing import ClientGone, answer_json, pass_on, read_body, request_target
from proxy_server import (
    PATIENCE_S,
    connected,
    exchange,
    raw_engine,
    read_all,
    read_request,
    request,
    serving,
    serving_until_told,
    split,
)

OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"
MEGABYTE = 1 << 20


@contextlib.contextmanager
def proxied(answer, **parts):
    """A raw engine and the URL of a proxy in front of it."""
    with raw_engine(answer) as engine, serving(Proxy(Upstream([engine.url]), **parts)) as url:
        yield engine, url


def error_of(answer):
    return json.loads(split(answer)[2])


# The request.


@pytest.mark.parametrize(
    "asked",
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
def test_target_goes_byte_for_byte(asked):
    with proxied(OK) as (engine, url):
        exchange(url, request(asked))
    assert engine.asked[0].line == b"GET " + asked + b" HTTP/1.1"


def test_targets_beyond_ascii_on_one_connection():
    with proxied(OK) as (engine, url), connected(url) as client:
        for target_ in ("/é", "/e", "/ö?ö"):
            client.sendall(f"GET {target_} HTTP/1.1\r\nHost: p\r\nX: ü\r\n\r\n".encode())
            assert client.recv(1000).endswith(b"ok")
    assert [asked.line.split()[1].decode() for asked in engine.asked] == ["/é", "/e", "/ö?ö"]


def test_target_with_scheme_and_host_reaches_no_other_host():
    with proxied(OK) as (engine, url):
        exchange(url, request(b"http://elsewhere:1/books?x=1"))
    assert engine.asked[0].line == b"GET /books?x=1 HTTP/1.1"


@pytest.mark.parametrize("method", [b"GET", b"HEAD", b"POST", b"PUT", b"DELETE", b"OPTIONS", b"PATCH"])
def test_every_method_goes(method):
    with proxied(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n") as (engine, url):
        assert exchange(url, request(b"/x", method)).startswith(b"HTTP/1.1 200 OK\r\n")
    assert engine.asked[0].line == method + b" /x HTTP/1.1"


def test_headers_go_but_for_those_of_the_connection_and_our_own():
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
        assert engine.asked[0].headers != []
        assert (b"host", engine.url.removeprefix("http://").encode()) in engine.asked[0].headers
        assert host not in engine.asked[0].head
    assert [item for item in engine.asked[0].headers if item[0] != b"host"] == [
        (b"authorization", b"Basic dTpw"),
        (b"accept-encoding", b"gzip, br"),
        (b"x-opaque-id", b"1"),
        (b"x-opaque-id", b"2"),
        (b"x-empty", b""),
        (b"x-latin", b"\xe9"),
        (b"user-agent", b"test"),
    ]


@pytest.mark.parametrize("body", [b"x", gzip.compress(b"{}" * 1000), bytes(range(256)) * 4096])
def test_body_goes_byte_for_byte(body):
    with proxied(OK) as (engine, url):
        exchange(url, request(b"/_bulk", b"POST", [b"Content-Encoding: gzip"], body))
    assert engine.asked[0].body == body
    assert (b"content-length", b"%d" % len(body)) in engine.asked[0].headers
    assert (b"content-encoding", b"gzip") in engine.asked[0].headers


def test_empty_body_keeps_its_length_and_none_gets_none():
    with proxied(OK) as (engine, url):
        exchange(url, request(b"/a", b"POST", [b"Content-Length: 0"]))
        exchange(url, request(b"/b", b"POST"))
    assert (b"content-length", b"0") in engine.asked[0].headers
    assert not any(name == b"content-length" for name, _ in engine.asked[1].headers)


def test_chunked_body_goes_chunked():
    """In which pieces is the proxy's to choose (RFC 9112 7.1)."""
    head = b"POST /_bulk HTTP/1.1\r\nHost: p\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    chunks = b"5;name=value\r\nhello\r\n" * 50_000 + b"1\r\n!\r\n0\r\nX-Sum: 1\r\n\r\n"
    with proxied(OK) as (engine, url):
        assert exchange(url, head + chunks[:9], chunks[9:]).endswith(b"ok")
    assert undo_chunks(engine.asked[0].body) == b"hello" * 50_000 + b"!"
    assert not any(name in (b"content-length", b"x-sum") for name, _ in engine.asked[0].headers)


def test_chunked_body_that_is_all_there_gets_its_length():
    head = b"POST /_search HTTP/1.1\r\nHost: p\r\nConnection: close\r\nTransfer-Encoding: chunked\r\n\r\n"
    with proxied(OK) as (engine, url):
        assert exchange(url, head + b"2\r\n{}\r\n0\r\n\r\n").endswith(b"ok")
    assert engine.asked[0].body == b"{}"


def undo_chunks(framed):
    body = b""
    while True:
        size, _, framed = framed.partition(b"\r\n")
        length = int(size, 16)
        if not length:
            return body
        body, framed = body + framed[:length], framed[length + 2 :]


def test_body_is_sent_only_after_the_word_to_go_on():
    def answer(engine_side, asked):
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
    assert (b"expect", b"100-continue") in engine.asked[0].headers


def test_body_that_the_engine_refuses_beforehand_is_never_asked_for():
    refusal = b"HTTP/1.1 413 Request Entity Too Large\r\ncontent-length: 0\r\n\r\n"
    with proxied(refusal) as (_, url):
        answer = exchange(url, request(b"/_bulk", b"POST", [b"Expect: 100-continue", b"Content-Length: 5"]))
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"100 Continue" not in answer


def test_offer_of_another_protocol_costs_no_body():
    offer = [b"Upgrade: h2c", b"HTTP2-Settings: AAMAAABkAAQAAP__"]
    head = request(b"/_search", b"POST", [*offer, b"Content-Length: 2"])
    with proxied(OK) as (engine, url):
        assert exchange(url, head.replace(b"Connection: close", b"Connection: close, Upgrade") + b"{}").endswith(b"ok")
    assert engine.asked[0].body == b"{}"
    assert not any(name in (b"upgrade", b"http2-settings") for name, _ in engine.asked[0].headers)


def test_requests_sent_ahead_are_answered_in_turn():
    def answer(engine_side, asked):
        engine_side.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%s" % (len(asked.line), asked.line))

    ahead = b"".join(b"GET /%d HTTP/1.1\r\nHost: p\r\n\r\n" % n for n in range(3))
    with proxied(answer) as (_, url):
        answers = exchange(url, ahead + request(b"/3"))
    assert [line for line in answers.split() if line.startswith(b"/")] == [b"/0", b"/1", b"/2", b"/3"]


@pytest.mark.parametrize("after", [b"\r\n", b"GET /never HTTP/1.1\r\nHost: p\r\n\r\n"])
def test_what_follows_the_last_request_changes_nothing(after):
    with proxied(OK) as (engine, url):
        assert split(exchange(url, request(b"/", b"POST", [], b"{}") + after))[2] == b"ok"
    assert [asked.line for asked in engine.asked] == [b"POST / HTTP/1.1"]


def test_nonsense_after_a_request_costs_it_no_answer():
    with proxied(OK) as (engine, url):
        answer = exchange(url, b"GET / HTTP/1.1\r\nHost: p\r\n\r\n" + b"nonsense\r\n\r\n")
    assert split(answer)[2] == b"ok"
    assert len(engine.asked) == 1


def test_nonsense_in_a_body_breaks_the_request_off():
    head = b"POST /_bulk HTTP/1.1\r\nHost: p\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n"
    with proxied(OK) as (engine, url), connected(url) as client:
        client.sendall(head + b"nonsense\r\n")
        assert b"200" not in read_all(client)
    assert engine.asked == []


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
def test_what_no_engine_should_see_is_refused(sent, status):
    with proxied(OK) as (engine, url), connected(url) as client:
        with contextlib.suppress(OSError):
            client.sendall(sent)
        assert client.recv(100).split()[1] == status
    assert engine.asked == []


# The answer.


def test_headers_of_the_answer_keep_name_case_order_and_number():
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
def test_answers_that_have_no_body(status):
    """The second request shows that the engine's connection was not confused."""
    with proxied(b"HTTP/1.1 %s\r\nETag: x\r\n\r\n" % status) as (engine, url):
        for _ in range(2):
            assert split(exchange(url, request())) == (b"HTTP/1.1 " + status, [b"ETag: x", b"connection: close"], b"")
    assert engine.connections == 1


def test_head_keeps_the_length_of_what_is_not_sent():
    with proxied(b"HTTP/1.1 200 OK\r\ncontent-length: 1234\r\n\r\n") as (engine, url):
        for _ in range(2):
            answer = split(exchange(url, request(b"/books", b"HEAD")))
            assert answer == (b"HTTP/1.1 200 OK", [b"content-length: 1234", b"connection: close"], b"")
    assert engine.connections == 1


def test_chunked_answer_is_passed_as_chunks():
    chunks = b"3;x=y\r\nabc\r\n2\r\nde\r\n0\r\nX-T: 1\r\n\r\n"
    with proxied(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks) as (engine, url):
        for _ in range(2):
            _, headers, body = split(exchange(url, request()))
            assert undo_chunks(body) == b"abcde"
            assert b"transfer-encoding: chunked" in headers
    assert engine.connections == 1


def test_old_client_gets_no_chunks():
    with proxied(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n") as (_, url):
        _, headers, body = split(exchange(url, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"))
    assert (headers, body) == ([b"connection: close"], b"abcde")


def test_old_client_may_keep_its_connection():
    with proxied(OK) as (_, url):
        answers = exchange(url, b"GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n" * 2 + b"GET / HTTP/1.0\r\n\r\n")
    assert answers.count(b"\r\n\r\nok") == 3


def test_answer_that_ends_with_the_connection():
    def answer(engine_side, asked):
        engine_side.sendall(b"HTTP/1.1 200 OK\r\nX: 1\r\n\r\nabc")
        return False

    with proxied(answer) as (_, url):
        _, headers, body = split(exchange(url, request()))
    assert undo_chunks(body) == b"abc"
    assert headers[0] == b"X: 1"


def test_words_before_the_answer_are_skipped():
    early = b"HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\nHTTP/1.1 102 Processing\r\n\r\n"
    with proxied(early + OK) as (_, url):
        assert exchange(url, request()) == OK.replace(b"\r\n\r\n", b"\r\nconnection: close\r\n\r\n")


def test_answer_comes_as_it_is_made():
    def answer(engine_side, asked):
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


def test_answer_before_the_request_is_whole():
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


def test_upload_goes_no_faster_than_the_engine_reads():
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
    """How many bytes the other side takes before it takes none for a while."""
    client.settimeout(0.5)
    taken = 0
    with contextlib.suppress(TimeoutError):
        while taken < len(body):
            taken += client.send(memoryview(body)[taken : taken + MEGABYTE])
    return taken


def test_answer_goes_no_faster_than_the_client_reads():
    size = 64 * MEGABYTE

    def answer(engine_side, asked):
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
def test_cut_answer_never_looks_whole(framing, how):
    def answer(engine_side, asked):
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


def test_cut_answer_to_an_old_client_is_reset():
    def answer(engine_side, asked):
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


def test_client_that_goes_while_it_waits_ends_the_request():
    def answer(engine_side, asked):
        asked_for.set()
        ended.append(engine_side.recv(1))

    asked_for, ended = threading.Event(), []
    with proxied(answer) as (engine, url):
        with connected(url) as client:
            client.sendall(request())
            assert asked_for.wait(PATIENCE_S)
        wait_for(lambda: ended)
    assert ended == [b""]
    assert len(engine.asked) == 1


def test_client_that_goes_in_the_middle_of_the_answer_ends_it():
    def answer(engine_side, asked):
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


def test_client_that_goes_in_the_middle_of_its_request_ends_it():
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
    pytest.fail("it did not come to pass")


def free_url():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_unreachable_engine_is_an_error_in_its_own_shape():
    with serving(Proxy(Upstream([free_url()]))) as url:
        status, headers, body = split(exchange(url, request(b"/_search", b"POST", [], b"{}")))
    cause = {"type": "upstream_unreachable_exception", "reason": "the engine could not be reached: connection refused"}
    assert status == b"HTTP/1.1 502 Bad Gateway"
    assert b"X-Elastic-Product: Elasticsearch" in headers
    assert json.loads(body) == {"error": {"root_cause": [cause], **cause}, "status": 502}


def test_late_engine_is_a_timeout():
    with raw_engine(lambda side, asked: None) as engine, serving(Proxy(Upstream([engine.url], timeout_s=0.2))) as url:
        answer = exchange(url, request())
    assert answer.startswith(b"HTTP/1.1 504 Gateway Timeout\r\n")
    assert error_of(answer)["error"]["type"] == "upstream_timeout_exception"


@pytest.mark.parametrize("answer", [b"SSH-2.0-OpenSSH\r\n\r\n", b"HTTP/1.1 200 OK\r\nbad header\r\n\r\n", b""])
def test_answer_that_is_not_http_is_a_bad_gateway(answer):
    def say(engine_side, asked):
        engine_side.sendall(answer)
        return False

    with proxied(say) as (_, url):
        assert exchange(url, request(b"/", b"POST")).startswith(b"HTTP/1.1 502 ")


def test_what_is_in_flight_is_finished():
    def answer(engine_side, asked):
        engine_side.sendall(b"HTTP/1.1 200 OK\r\ncontent-length: 4\r\n\r\nab")
        asked_for.set()
        assert released.wait(PATIENCE_S)
        engine_side.sendall(b"cd")

    asked_for, released = threading.Event(), threading.Event()
    with (
        raw_engine(answer) as engine,
        serving_until_told(Proxy(Upstream([engine.url]))) as (url, server),
        connected(url) as client,
        connected(url) as idle,
    ):
        client.sendall(b"GET / HTTP/1.1\r\nHost: p\r\n\r\n")
        assert asked_for.wait(PATIENCE_S)
        server.should_exit = True
        assert idle.recv(1) == b""
        released.set()
        assert read_all(client).endswith(b"abcd")


# As an app.


def test_app_may_be_wrapped():
    def wrapped(app):
        async def wrapper(scope, receive, send):
            await app(scope, receive, send)

        return wrapper

    with raw_engine(OK) as engine, serving(wrapped(Proxy(Upstream([engine.url])))) as url:
        assert exchange(url, request(b"/a%2Fb?q=%20")).endswith(b"ok")
    assert engine.asked[0].line == b"GET /a%2Fb?q=%20 HTTP/1.1"


def test_app_may_be_mounted_under_a_path():
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
    assert [asked.line for asked in engine.asked] == [b"GET /a%2Fb?q=%20 HTTP/1.1"]


def test_target_of_a_host_that_keeps_no_raw_path():
    assert request_target({"path": "/a b/ü", "query_string": b"x=%20"}) == b"/a%20b/%C3%BC?x=%20"


class OwnRoutes:
    """Answers with the path, or fails where it holds `fail`."""

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


def test_own_routes_take_nothing_else():
    with proxied(OK, own=OwnRoutes()) as (engine, url):
        for path in (b"/_bespeak", b"/_bespeak/x"):
            assert exchange(url, request(path)).endswith(b'"%s"' % path)
        assert exchange(url, request(b"/_bespeakeasy")).endswith(b"ok")
    assert len(engine.asked) == 1


def test_fault_in_own_routes_is_said_without_its_content(caplog):
    with proxied(OK, own=OwnRoutes()) as (_, url):
        answer = exchange(url, request(b"/_bespeak/fail"))
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert error_of(answer)["status"] == 500
    assert "secret" not in caplog.text + answer.decode()
    assert "ValueError" in caplog.text


@pytest.mark.parametrize("stage", ["concerns", "before", "after reading"])
@pytest.mark.parametrize("body", [b"{}", b"x" * 100_000])
def test_fault_in_a_search_leaves_the_request_as_it_was(stage, body, caplog):
    with proxied(OK, searches=FailingSearches(stage)) as (engine, url):
        answer = exchange(url, request(b"/books/_search", b"POST", [], body))
    assert answer.endswith(b"ok")
    assert (b"X-Bespeak: rewrite=failed; rerank=failed" in answer) == (stage != "concerns")
    assert engine.asked[0].body == body
    assert "secret" not in caplog.text
    assert "ValueError" in caplog.text


def test_fault_after_the_answer_began_breaks_it_off(caplog):
    with proxied(OK, searches=FailingSearches("after the answer began")) as (engine, url):
        answer = exchange(url, request(b"/_search", b"POST", [], b"{}"))
    assert split(answer)[2] == b""
    assert b"content-length: 9" in answer
    assert engine.asked == []
    assert "secret" not in caplog.text


class LongSearches:
    """Passes what is longer than it reads."""

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
def test_what_is_too_long_to_read_is_still_passed(size):
    with raw_engine(OK) as engine:
        upstream = Upstream([engine.url])
        searches = LongSearches(upstream)
        with serving(Proxy(upstream, searches=searches)) as url:
            answer = exchange(url, request(b"/_search", b"POST", [], b"x" * size))
    assert b"X-Bespeak: rewrite=off" in answer
    assert engine.asked[0].body == b"x" * size
    assert searches.complete == [True] if size <= 1000 else [True, False]


def test_a_client_that_goes_while_its_body_is_read():
    async def receive():
        return {"type": "http.disconnect"}

    with pytest.raises(ClientGone):
        asyncio.run(read_body(receive, 10))


def test_a_body_over_the_limit_is_read_no_further():
    async def receive():
        return {"type": "http.request", "body": b"abc", "more_body": True}

    assert asyncio.run(read_body(receive, 5)) == (b"abcabc", False)


def test_end_closes_what_was_opened(caplog):
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


def test_a_line_break_in_a_header_of_ours_is_never_sent(caplog):
    async def app(scope, receive, send):
        if scope["type"] == "http":
            await answer_json(send, 200, {}, [(b"X-Bespeak", b"a\r\nX-Forged: 1")])

    caplog.set_level(logging.ERROR)
    with serving(app, lifespan="off") as url:
        answer = exchange(url, request())
    assert answer.startswith(b"HTTP/1.1 500 ")
    assert b"Forged" not in answer


def test_read_request_of_the_engine_in_these_tests():
    left, right = socket.socketpair()
    with left, right:
        left.sendall(request(b"/", b"POST", [], b"abc"))
        assert read_request(right).body == b"abc"
