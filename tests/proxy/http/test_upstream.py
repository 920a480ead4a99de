"""The order of nodes, the reuse of connections, and what happens if a node does not answer."""

import asyncio
import contextlib
import datetime
import ipaddress
import logging
import socket
import ssl
import threading

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from bespeak.errors import UsageError
from bespeak.proxy.http.node import FIRST_REST_S
from bespeak.proxy.http.upstream import TooLarge, Upstream, UpstreamTimeout, UpstreamUnreachable
from proxy_server import OK, PATIENCE_S, raw_engine


def ask(upstream, *requests):
    """Status and body for each request (method, target, body), sent one after the other."""

    async def run():
        try:
            return [await ask_once(upstream, *request) for request in requests]
        finally:
            await upstream.close()

    return asyncio.run(run())


async def ask_once(upstream, method, target, body):
    answer = await upstream.send(method, target, [], body)
    try:
        return answer.status, await answer.read(1000)
    finally:
        await answer.close()


def free_url():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return f"http://127.0.0.1:{listener.getsockname()[1]}"


GET = ("GET", b"/", None)


@pytest.mark.parametrize(
    ("urls", "message"),
    [
        ([], "no upstream"),
        (["127.0.0.1:9200"], "must be http"),
        (["ftp://h:1"], "must be http"),
        (["http://"], "must be http"),
        (["http://h:port"], "cannot be read"),
        (["http://elastic:hunter2@h:9200"], "for h holds credentials"),
        (["https://elastic@h:9200"], "for h holds credentials"),
        (["http://h:9200/?x=1"], "query or fragment"),
        (["http://h:9200/ü"], "percent-encoded"),
        (["http://bücher:9200"], "Punycode"),
    ],
)
def test_invalid_url_is_refused_with_a_reason(urls, message):
    with pytest.raises(UsageError, match=message) as caught:
        Upstream(urls)
    assert "hunter2" not in str(caught.value)


def test_unreadable_ca_file_is_named(tmp_path):
    (tmp_path / "ca.pem").write_text("nothing")
    for name in ("ca.pem", "missing.pem"):
        with pytest.raises(UsageError, match=name):
            Upstream(["https://h"], ca_file=tmp_path / name)


def test_path_of_the_url_precedes_every_target():
    with raw_engine(OK) as engine:
        ask(Upstream([engine.url + "/es/"]), ("GET", b"/_search?q=1", None), ("GET", b"/", None))
    assert [received.line for received in engine.requests] == [b"GET /es/_search?q=1 HTTP/1.1", b"GET /es/ HTTP/1.1"]


def test_nodes_are_asked_in_turn():
    with raw_engine(OK) as one, raw_engine(OK) as two:
        ask(Upstream([one.url, two.url]), *[GET] * 6)
    assert (len(one.requests), len(two.requests)) == (3, 3)


def test_connections_are_reused():
    with raw_engine(OK) as engine:
        assert ask(Upstream([engine.url]), *[GET] * 5) == [(200, b"ok")] * 5
    assert engine.connections == 1


def test_ipv6_address():
    with pytest.raises(UpstreamUnreachable, match="could not be reached"):
        ask(Upstream(["http://[::1]:1"]), GET)


def test_surplus_connections_are_closed_after_a_while():
    async def run():
        upstream = Upstream([engine.url], clock=lambda: now[0])
        answers = [await upstream.send("GET", b"/", [], None) for _ in range(3)]
        for answer in answers:
            await answer.read(10)
            await answer.close()
        for second in range(10, 60, 10):
            now[0] = float(second)
            await ask_once(upstream, *GET)
        await asyncio.to_thread(closed.acquire, timeout=PATIENCE_S)
        await asyncio.to_thread(closed.acquire, timeout=PATIENCE_S)
        await ask_once(upstream, *GET)
        await upstream.close()

    def answer(side, received):
        side.sendall(OK)
        if side.recv(1, socket.MSG_PEEK) == b"":
            closed.release()

    now, closed = [0.0], threading.Semaphore(0)
    with raw_engine(answer) as engine:
        asyncio.run(run())
    assert engine.connections == 3


def test_dead_cluster_is_logged_once(caplog):
    upstream = Upstream([free_url()])
    for _ in range(3):
        with pytest.raises(UpstreamUnreachable):
            ask(upstream, GET)
    assert caplog.text.count("could not be reached") == 1


def test_slow_request_body_is_not_the_engines_timeout():
    async def body():
        for _ in range(3):
            await asyncio.sleep(0.15)
            yield b"x"

    with raw_engine(OK) as engine:
        assert ask(Upstream([engine.url], timeout_s=0.1), ("POST", b"/_bulk", body())) == [(200, b"ok")]
    assert engine.requests[0].body == b"1\r\nx\r\n" * 3 + b"0\r\n\r\n"


def test_connection_that_the_engine_will_close_is_not_reused():
    with raw_engine(OK.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")) as engine:
        ask(Upstream([engine.url]), *[GET] * 3)
    assert engine.connections == 3


def test_connection_is_not_reused_after_400():
    with raw_engine(OK.replace(b"200 OK", b"400 Bad Request")) as engine:
        assert ask(Upstream([engine.url]), *[GET] * 3) == [(400, b"ok")] * 3
    assert engine.connections == 3


def test_dead_node_loses_no_request():
    with raw_engine(OK) as engine:
        found = ask(Upstream([free_url(), engine.url, free_url()]), *[("POST", b"/_bulk", b"{}")] * 6)
    assert found == [(200, b"ok")] * 6


def test_dead_node_is_retried_after_longer_and_longer_rests():
    dead = free_url()
    now = [0.0]
    with raw_engine(OK) as engine:
        upstream = Upstream([dead, engine.url], clock=lambda: now[0])
        tried = upstream_tries(upstream)
        assert tried(2) == 1
        now[0] = FIRST_REST_S - 1
        assert tried(2) == 0
        now[0] = FIRST_REST_S + 1
        assert tried(2) == 1
        now[0] += FIRST_REST_S + 1
        assert tried(2) == 0
        now[0] += FIRST_REST_S
        assert tried(2) == 1


def upstream_tries(upstream):
    """A function that sends some requests and counts how often a node was found dead."""
    counted = []

    class Counting(logging.Handler):
        def emit(self, record):
            counted.append(record)

    def tries(requests):
        counted.clear()
        handler, log = Counting(), logging.getLogger("bespeak.proxy")
        log.addHandler(handler)
        try:
            ask(upstream, *[GET] * requests)
        finally:
            log.removeHandler(handler)
        return len(counted)

    return tries


def test_recovered_node_is_asked_as_before():
    now = [0.0]
    with socket.create_server(("127.0.0.1", 0)) as reserved:
        address = reserved.getsockname()
    with raw_engine(OK) as other:
        upstream = Upstream([f"http://127.0.0.1:{address[1]}", other.url], clock=lambda: now[0])
        ask(upstream, GET, GET)
        now[0] = FIRST_REST_S + 1
        recovered = RecoveredEngine(address)
        with recovered:
            ask(upstream, *[GET] * 4)
    assert recovered.n_requests == 2


class RecoveredEngine:
    """An engine at a given address."""

    def __init__(self, address):
        self.address, self.n_requests = address, 0

    def __enter__(self):
        self.listener = socket.create_server(self.address)
        self.thread = threading.Thread(target=self.serve)
        self.thread.start()

    def serve(self):
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self.listener.accept()
                with connection:
                    while connection.recv(1000):
                        self.n_requests += 1
                        connection.sendall(OK)

    def __exit__(self, *_):
        self.listener.shutdown(socket.SHUT_RDWR)
        self.thread.join()
        self.listener.close()


def test_all_nodes_dead():
    with pytest.raises(UpstreamUnreachable, match="could not be reached: connection refused"):
        ask(Upstream([free_url(), free_url()]), GET)


def test_unknown_host():
    with pytest.raises(UpstreamUnreachable, match="could not be reached"):
        ask(Upstream(["http://host.invalid"]), GET)


def closes_on_second(side, received):
    """Answers the first request of a connection, and closes it at the second without a byte."""
    if received.line in seen_on(side):
        return False
    seen_on(side).add(received.line)
    side.sendall(OK)
    return None


SEEN: dict[int, set[bytes]] = {}


def seen_on(side):
    return SEEN.setdefault(id(side), set())


@pytest.mark.parametrize(
    "again",
    [
        GET,
        ("PUT", b"/books/_doc/1", b"{}"),
        ("POST", b"/books/_search?x=1", b"{}"),
        ("POST", b"/_msearch", b"{}\n{}\n"),
    ],
)
def test_request_survives_an_idle_connection_that_was_closed(again):
    SEEN.clear()
    with raw_engine(closes_on_second) as engine:
        assert ask(Upstream([engine.url]), again, again) == [(200, b"ok")] * 2
    assert engine.connections == 2


def test_write_is_not_sent_twice():
    SEEN.clear()
    bulk = ("POST", b"/_bulk", b"{}")
    with raw_engine(closes_on_second) as engine:
        upstream = Upstream([engine.url])
        with pytest.raises(UpstreamUnreachable, match="closed the connection before it answered"):
            ask(upstream, bulk, bulk)
    assert engine.connections == 1


def test_connection_closed_while_idle_is_not_used():
    closed = threading.Event()

    def answer(side, received):
        side.sendall(OK)
        side.shutdown(socket.SHUT_RDWR)
        closed.set()
        return False

    async def run():
        upstream = Upstream([engine.url])
        for _ in range(3):
            first = await upstream.send("POST", b"/_bulk", [], b"{}")
            assert await first.read(10) == b"ok"
            await first.close()
            while not closed.is_set():
                await asyncio.sleep(0.001)
            await asyncio.sleep(0.02)
            closed.clear()
        await upstream.close()

    with raw_engine(answer) as engine:
        asyncio.run(run())
    assert engine.connections == 3


def test_another_node_is_asked_if_one_closes_before_its_answer():
    with raw_engine(lambda side, received: False) as broken, raw_engine(OK) as engine:
        assert ask(Upstream([broken.url, engine.url]), GET) == [(200, b"ok")]
        with pytest.raises(UpstreamUnreachable):
            ask(Upstream([broken.url, engine.url]), ("POST", b"/_bulk", b"{}"))
    assert len(broken.requests) == 2


def test_streamed_body_goes_to_the_next_node_if_none_of_it_was_sent():
    async def body():
        yield b"hello"

    with raw_engine(OK) as engine:
        assert ask(Upstream([free_url(), engine.url]), ("POST", b"/_bulk", body())) == [(200, b"ok")]
    assert engine.requests[0].body == b"5\r\nhello\r\n0\r\n\r\n"


def test_fault_of_a_streamed_body_is_raised_and_ends_the_request():
    async def body():
        yield b"hello"
        raise ValueError("the client is gone")

    with raw_engine(OK) as engine, pytest.raises(ValueError, match="gone"):
        ask(Upstream([engine.url]), ("POST", b"/_bulk", body()))
    assert engine.requests == []


def test_silent_engine():
    with raw_engine(lambda side, received: None) as engine, pytest.raises(UpstreamTimeout, match=r"within 0\.1 s"):
        ask(Upstream([engine.url], timeout_s=0.1), GET)


def test_engine_that_falls_silent_during_its_answer():
    begun = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab"
    with raw_engine(begun) as engine, pytest.raises(UpstreamTimeout, match="in the middle"):
        ask(Upstream([engine.url], timeout_s=0.1), GET)


def test_answer_longer_than_the_limit():
    async def run():
        upstream = Upstream([engine.url])
        answer = await upstream.send("GET", b"/", [], None)
        with pytest.raises(TooLarge):
            await answer.read(1)
        await answer.close()
        again = await upstream.send("GET", b"/", [], None)
        assert await again.read(2) == b"ok"
        assert await again.next_chunk() == b""
        await again.close()
        await upstream.close()

    with raw_engine(OK) as engine:
        asyncio.run(run())


def test_unread_answer_frees_its_slot_but_not_its_connection():
    async def run():
        upstream = Upstream([engine.url], connections=1, timeout_s=PATIENCE_S)
        for _ in range(3):
            answer = await upstream.send("GET", b"/", [], None)
            await answer.close()
            await answer.close()
        await upstream.close()

    with raw_engine(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab") as engine:
        asyncio.run(run())
    assert engine.connections == 3


def test_number_of_requests_under_way_is_bounded():
    async def run():
        upstream = Upstream([engine.url], connections=2)
        under_way = [await upstream.send("GET", b"/", [], None) for _ in range(2)]
        third = asyncio.create_task(upstream.send("GET", b"/", [], None))
        gone = asyncio.create_task(upstream.send("GET", b"/", [], None))
        await asyncio.sleep(0.05)
        assert len(engine.requests) == 2
        gone.cancel()
        for answer in under_way:
            await answer.read(10)
            await answer.close()
        answer = await third
        await answer.close()
        assert gone.cancelled() or await asyncio.wait([gone])
        answers = [await upstream.send("GET", b"/", [], None) for _ in range(2)]
        for answer in answers:
            await answer.close()
        await upstream.close()

    with raw_engine(OK) as engine:
        asyncio.run(run())
    assert len(engine.requests) == 5


def test_wait_for_a_slot_is_bounded():
    async def run():
        upstream = Upstream([engine.url], connections=1, timeout_s=0.1)
        answer = await upstream.send("GET", b"/", [], None)
        with pytest.raises(UpstreamTimeout, match="became free"):
            await upstream.send("GET", b"/", [], None)
        await answer.close()
        await (await upstream.send("GET", b"/", [], None)).close()
        await upstream.close()

    with raw_engine(OK) as engine:
        asyncio.run(run())


def test_cancelled_request_frees_its_slot():
    async def run():
        upstream = Upstream([engine.url], connections=1)
        for _ in range(3):
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await upstream.send("GET", b"/", [], None)
        await upstream.close()

    with raw_engine(lambda side, received: None) as engine:
        asyncio.run(run())
    assert engine.connections == 3


# TLS.


@pytest.fixture(scope="module")
def authority(tmp_path_factory):
    """A folder with a CA file, and a certificate for 127.0.0.1 that the CA signed."""
    folder = tmp_path_factory.mktemp("tls")
    ca_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    ca_name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "test CA")])
    ca = certificate(ca_name, ca_name, ca_key.public_key(), ca_key, x509.BasicConstraints(True, None))
    names = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    own = certificate(x509.Name([]), ca_name, key.public_key(), ca_key, names)
    (folder / "ca.pem").write_bytes(ca.public_bytes(serialization.Encoding.PEM))
    (folder / "own.pem").write_bytes(
        own.public_bytes(serialization.Encoding.PEM)
        + key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    )
    return folder


def certificate(subject, issuer, public_key, signing_key, extension):
    now = datetime.datetime.now(datetime.UTC)
    builder = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(extension, critical=True)
    )
    return builder.sign(signing_key, hashes.SHA256())


@pytest.fixture
def tls_engine(authority):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "own.pem")
    with raw_engine(OK, tls=context) as engine:
        yield engine


def test_tls_with_a_private_authority(tls_engine, authority):
    assert ask(Upstream([tls_engine.url], ca_file=authority / "ca.pem"), GET, GET) == [(200, b"ok")] * 2


def test_certificate_is_always_checked(tls_engine, authority):
    with pytest.raises(UpstreamUnreachable, match="its certificate was refused"):
        ask(Upstream([tls_engine.url]), GET)
    elsewhere = tls_engine.url.replace("127.0.0.1", "localhost")
    with pytest.raises(UpstreamUnreachable, match="its certificate was refused"):
        ask(Upstream([elsewhere], ca_file=authority / "ca.pem"), GET)


def test_engine_without_tls(authority):
    with raw_engine(b"HTTP/1.1 400 Bad Request\r\n\r\n") as engine, pytest.raises(UpstreamUnreachable):
        ask(Upstream([engine.url.replace("http:", "https:")], ca_file=authority / "ca.pem", timeout_s=1), GET)
