"""`bespeak serve` as an operator starts and stops it, and what its guide promises."""

from __future__ import annotations

import contextlib
import datetime as dt
import ipaddress
import json
import re
import signal
import socket
import ssl
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import jwt
import pytest
from click.testing import CliRunner

from bespeak.engines.elastic import ElasticsearchEngine
from bespeak.errors import ModelError
from bespeak.parts import Parts
from bespeak.rewriting.rewriter import Unchanged
from bespeak.session.reader import MODEL
from bespeak.settings import Settings
from bespeak_cli import cli
from bespeak_cli.startup import describe_sessions
from elasticsearch_node import new_index_name
from fakes import ScriptedReader
from personal_proxy import call, load_things
from proxy_server import PATIENCE_S, raw_engine, serving

GUIDE = Path(__file__).parents[2] / "docs" / "proxy.md"
NOWHERE = "http://127.0.0.1:9"
BODY = b'{"cluster_name": "shop", "version": {"number": "9.1.0"}}'
ANSWER = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n%b" % (len(BODY), BODY)
UNHURRIED = ("--profile-ms", "30000", "--rewrite-ms", "30000", "--rerank-ms", "30000")  # a busy machine fails no test
ADA = {"X_Bespeak_User": "ada", "X_Bespeak_Session": "s"}
ASKED = [
    {"user_id": "ada", "session_id": "s", "query_id": "q1", "user_query": "silk scarf"},
    {"user_id": "ada", "session_id": "s", "query_id": "q1", "action_name": "answer", "message": "silk is light"},
]
LEANING = "what about a coat of it?"


@dataclass
class Served:
    process: subprocess.Popen[str]
    url: str
    said: str  # at the start

    def end(self, with_signal: int = signal.SIGTERM) -> str:
        """Ends the process; what it printed after the start."""
        self.process.send_signal(with_signal)
        return self.said_until_end()

    def said_until_end(self) -> str:
        _, later = self.process.communicate(timeout=PATIENCE_S)
        assert self.process.returncode == 0
        return later


@contextlib.contextmanager
def served(folder, *arguments):
    """The running command, after its report at the start."""
    command = [
        *(sys.executable, "-c", "from bespeak_cli import cli; cli()", "--data-dir", folder / "data", "--cache-dir"),
        *(folder / "cache", "serve", "--port", "0", "--rewriter", "last-turn", *UNHURRIED, *arguments),
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    said = ""
    try:
        for line in process.stderr:
            said += line
            if line.startswith("  /_bespeak"):
                break
        found = re.search(r"^Bespeak is at (\S+)$", said, re.MULTILINE)
        assert found, said
        yield Served(process, found[1], said)
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def run(tmp_path, *arguments):
    return CliRunner().invoke(cli, ["--data-dir", str(tmp_path / "data"), "serve", *map(str, arguments)])


def load_events(url, **headers):
    now = dt.datetime.now(dt.UTC).isoformat()
    taken = call(url, "/_bespeak/events", [{"timestamp": now, **event} for event in ASKED], **headers)
    assert taken.json == {"taken": 2, "rejected": []}


def ask(url, path, body, **headers):
    """A search, asked again where a busy machine had no time for it: budgets are not what is tested here."""
    for _ in range(20):
        answer = call(url, path, body, **headers)
        if not answer.outcome.get("reason", "").endswith(("_late", "_busy")):
            break
    return answer


@pytest.fixture
def index(elasticsearch_url):
    name = new_index_name()
    load_things(elasticsearch_url, name)
    return name


# Wrong usage.


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "Missing option '--upstream'"),
        (["--upstream", "localhost:9200"], "must be http://HOST:PORT or https://HOST:PORT"),
        (["--upstream", "http://me:secret@es:9200"], "the upstream's URL for es holds credentials: remove them"),
        (["--upstream", NOWHERE, "--host", "0.0.0.0"], "give a token, or bind to 127.0.0.1"),
        (["--upstream", NOWHERE, "--share", "ten"], "write a share as 10% or 0.1"),
        (["--upstream", NOWHERE, "--share", "150%"], "a share must be between 0% and 100%"),
        (["--upstream", NOWHERE, "--token-file", "nowhere"], "File 'nowhere' does not exist"),
        (["--upstream", NOWHERE, "--ca-file", "nowhere"], "File 'nowhere' does not exist"),
        (["--upstream", NOWHERE, "--port", "0", "--api-key", "hush"], "--api-key is for profiles in the cluster"),
        (["--upstream", NOWHERE, "--port", "0", "--weights", "1,2"], "--weights takes three numbers"),
    ],
)
def test_wrong_usage_is_refused_before_anything_listens(tmp_path, arguments, told):
    done = run(tmp_path, *arguments)
    assert done.exit_code == 2
    assert told in done.stderr
    assert "secret" not in done.stderr
    assert "hush" not in done.stderr


def test_an_easily_guessed_token_is_refused(tmp_path):
    (tmp_path / "token").write_text("short\n")
    done = run(tmp_path, "--upstream", NOWHERE, "--host", "0.0.0.0", "--token-file", tmp_path / "token")
    assert done.exit_code == 2
    assert "openssl rand -hex 32" in done.stderr


def test_a_taken_port_is_refused(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = run(tmp_path, "--upstream", NOWHERE, "--port", port)
    assert done.exit_code == 2
    assert f"cannot listen on 127.0.0.1 port {port} (Address already in use)" in done.stderr


def test_a_proxy_in_front_of_itself_is_refused(tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    done = run(tmp_path, "--upstream", f"http://localhost:{port}", "--port", port)
    assert done.exit_code == 2
    assert f"--upstream names the proxy's own port {port}" in done.stderr


def test_a_missing_encoder_that_was_named_is_an_error(tmp_path):
    done = run(tmp_path, "--upstream", NOWHERE, "--port", 0, "--rewriter", "none", "--encoder", "mistyped")
    assert done.exit_code == 1
    assert "there is no model 'mistyped'" in done.stderr


# Starting.


def test_a_proxy_without_an_encoder(tmp_path):
    with raw_engine(ANSWER) as engine, served(tmp_path, "--upstream", engine.url, "--encoder", "none") as proxy:
        assert "encoder    none: hits are ordered by their words alone" in proxy.said
        assert call(proxy.url, "/_bespeak/share").json == {"share": 1.0}
        assert proxy.end() == ""


def test_it_reports_what_it_is_in_front_of(tmp_path):
    with raw_engine(ANSWER) as engine, served(tmp_path, "--upstream", engine.url, "--share", "10%") as proxy:
        assert f"{engine.url}: Elasticsearch 9.1.0, cluster shop" in proxy.said
        assert str(tmp_path / "data" / "bespeak.db") in proxy.said
        assert "10% of the users" in proxy.said
        assert f"sessions   read by {MODEL}@" in proxy.said
        assert call(proxy.url, "/_bespeak/share").json == {"share": 0.1}
        assert proxy.end() == ""


def test_it_starts_before_elasticsearch_does(tmp_path):
    """It says so, is not ready, and answers in Elasticsearch's shape; no line holds a user, a text or a credential."""
    with served(tmp_path, "--upstream", NOWHERE, "--upstream", "http://localhost:9") as proxy:
        assert proxy.said.count("does not answer yet (the engine could not be reached: connection refused)") == 2
        assert call(proxy.url, "/_bespeak/health/live").status == 200
        assert call(proxy.url, "/_bespeak/health/ready").status == 503
        load_events(proxy.url)
        asked = {"query": {"match": {"text": "whispered"}}}
        refused = call(proxy.url, "/things/_search", asked, Authorization="Basic aHVzaA==", **ADA)
        assert refused.status == 502
        assert refused.json["error"]["type"] == "upstream_unreachable_exception"
        later = proxy.end()
    assert "upstream 127.0.0.1:9 could not be reached: connection refused" in later
    assert all(re.match(r"\d{4}-\d\d-\d\d .* (WARNING|ERROR) bespeak\.proxy: ", line) for line in later.splitlines())
    assert not re.search("ada|whispered|aHVzaA|silk", later)


def test_a_damaged_store_and_a_missing_model_leave_the_engines_answers(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bespeak.db").write_text("no database " * 100)
    with raw_engine(ANSWER) as engine, served(tmp_path, "--upstream", engine.url, "--rewriter", "model") as proxy:
        assert "Without the language model, with the words of the last turn instead" in proxy.said
        assert "bespeak.db; nothing is personalised yet:" in proxy.said
        answer = ask(proxy.url, "/things/_search", {"query": {"match": {"text": "coat"}}}, **ADA)
        assert answer.body == BODY
        assert answer.headers["X-Bespeak"] == "rewrite=off; rerank=failed; reason=profile"
        assert "personalising failed at profile" in proxy.end()


def test_it_reports_an_upstream_that_does_not_look_like_elasticsearch(tmp_path):
    hello = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nhi"
    with raw_engine(hello) as other, served(tmp_path, "--upstream", other.url) as proxy:
        assert "does not look like Elasticsearch: check the URL" in proxy.said


def test_it_reports_profiles_that_cannot_be_read_without_the_password(tmp_path):
    profiles = ["--profiles", "elasticsearch", "--basic", "me:hush"]
    with served(tmp_path, "--upstream", NOWHERE, *profiles) as proxy:
        assert "nothing is personalised yet: no answer from Elasticsearch" in proxy.said
        call(proxy.url, "/things/_search", {"query": {"match": {"text": "coat"}}}, **ADA)
        said = proxy.said + proxy.end()
    assert "hush" not in said
    assert "Traceback" not in said


class FaultyReader(ScriptedReader):
    def read(self, query, profile):
        raise ModelError("its file is damaged")


@pytest.mark.parametrize(
    ("context", "said"),
    [
        (None, "by their last turn"),
        (ScriptedReader({}), "read by scripted reader"),
        (FaultyReader({}), "scripted reader, which fails: its file is damaged"),
    ],
)
def test_it_reports_how_sessions_are_read(context, said):
    assert describe_sessions(Parts(Settings(), Unchanged(), None, context=context)) == said


# Stopping.


@contextlib.contextmanager
def held_answer():
    """An engine that answers `/slow` once the second event is set, and sets the first when it is asked."""
    asked, let = threading.Event(), threading.Event()

    def answer(connection, request):
        if b" /slow " in request.line:
            asked.set()
            let.wait(PATIENCE_S)
        connection.sendall(ANSWER)

    with raw_engine(answer) as engine:
        try:
            yield engine.url, asked, let
        finally:
            let.set()


def wait_until_closed(url):
    address = url.removeprefix("http://").split(":")
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        try:
            socket.create_connection((address[0], int(address[1]))).close()
        except OSError:
            return
        time.sleep(0.02)
    pytest.fail("it still listens")


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_running_requests_are_finished(tmp_path, ending):
    with (
        held_answer() as (upstream, asked, let),
        served(tmp_path, "--upstream", upstream) as proxy,
        ThreadPoolExecutor(1) as client,
    ):
        answer = client.submit(call, proxy.url, "/slow")
        assert asked.wait(PATIENCE_S)
        proxy.process.send_signal(ending)
        wait_until_closed(proxy.url)
        let.set()
        assert answer.result().body == BODY
        assert proxy.said_until_end() == ""


def test_a_second_signal_aborts_running_requests(tmp_path):
    with (
        held_answer() as (upstream, asked, _),
        served(tmp_path, "--upstream", upstream) as proxy,
        ThreadPoolExecutor(1) as client,
    ):
        answer = client.submit(call, proxy.url, "/slow")
        assert asked.wait(PATIENCE_S)
        proxy.process.send_signal(signal.SIGTERM)
        wait_until_closed(proxy.url)
        proxy.end(signal.SIGTERM)
        assert isinstance(answer.exception(), OSError) or answer.result().status >= 500


# TLS.


def write_certificates(folder):
    """The PEM files of an authority, and of a certificate that it signed for 127.0.0.1, with its key."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    def sign(name, key, issuer, issuer_key, *extensions):
        now = dt.datetime.now(dt.UTC)
        made = (
            x509.CertificateBuilder().subject_name(named(name)).issuer_name(named(issuer)).public_key(key.public_key())
        )
        made = made.serial_number(x509.random_serial_number()).not_valid_before(now - dt.timedelta(days=1))
        made = made.not_valid_after(now + dt.timedelta(days=1))
        for extension in extensions:
            made = made.add_extension(extension, critical=isinstance(extension, x509.BasicConstraints))
        return made.sign(issuer_key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    def named(name):
        return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])

    authority, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    known = x509.SubjectKeyIdentifier.from_public_key(authority.public_key())
    use = x509.KeyUsage(True, False, False, False, False, True, True, False, False)
    (folder / "ca.pem").write_bytes(
        sign("ca", authority, "ca", authority, x509.BasicConstraints(ca=True, path_length=None), known, use)
    )
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    issued = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority.public_key())
    key = own.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    (folder / "node.pem").write_bytes(key + sign("node", own, "ca", authority, here, issued))
    return folder / "ca.pem", folder / "node.pem"


def test_a_node_with_tls_is_trusted_only_by_its_authority(tmp_path):
    authority, node = write_certificates(tmp_path)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(node)
    with raw_engine(ANSWER, tls) as engine:
        with served(tmp_path / "a", "--upstream", engine.url, "--ca-file", authority) as proxy:
            assert "Elasticsearch 9.1.0, cluster shop" in proxy.said
            assert call(proxy.url, "/").body == BODY
        with served(tmp_path / "b", "--upstream", engine.url) as proxy:
            assert "its certificate was refused" in proxy.said
            assert call(proxy.url, "/").status == 502


def rewrites_served(folder, upstream, user, *options):
    """The proxy's rewrite of a query that `bespeak rewrite` has rewritten before, and the line of that batch."""
    query, now = "and how much is it?", dt.datetime.now(dt.UTC).isoformat()
    asked = {"query": query, "user": user, "session": "s"}
    (folder / "in.jsonl").write_text(json.dumps(asked))
    batch = ["--data-dir", folder / "data", "rewrite", folder / "in.jsonl", "--output", folder / "out.jsonl"]
    batch += [*options, "--elasticsearch", upstream] if options else []
    with served(folder, "--upstream", upstream, *options) as proxy:
        events = [{**event, "user_id": user, "timestamp": now} for event in ASKED]
        assert call(proxy.url, "/_bespeak/events", events).json["taken"] == 2
        done = CliRunner().invoke(cli, [*map(str, batch), "--rewriter", "last-turn"])
        assert done.exit_code == 0, done.output
        answer = call(proxy.url, "/_bespeak/rewrite", asked).json
    return answer, json.loads((folder / "out.jsonl").read_text())


def test_rewrites_of_a_batch_are_served_from_the_cache(tmp_path):
    answer, row = rewrites_served(tmp_path, NOWHERE, "ada")
    assert (answer["status"], answer["text"], row["status"]) == ("cached", row["rewrite"], "full")
    assert row["rewrite"] == "and how much is it? silk scarf light"


# In front of a real Elasticsearch.


@pytest.mark.elasticsearch
def test_searches_are_personalised_and_profiles_outlive_the_process(tmp_path, elasticsearch_url, index):
    coat = {"query": {"match": {"text": LEANING}}, "size": 30}
    with served(tmp_path, "--upstream", elasticsearch_url) as proxy:
        first = ask(proxy.url, f"/{index}/_search", coat, **ADA)
        own = call(elasticsearch_url, f"/{index}/_search", coat)
        assert first.outcome["reason"] == "stranger"
        assert first.same() == own.same()
        load_events(proxy.url)
        second = ask(proxy.url, f"/{index}/_search", coat, **ADA)
        assert (second.outcome["rewrite"], second.outcome["rerank"]) == ("full", "full")
        assert sorted(second.ids) != second.ids != own.ids
        assert second.json["hits"]["total"] == own.json["hits"]["total"]
        proxy.end()
    with served(tmp_path, "--upstream", elasticsearch_url, "--share", "0%") as proxy:
        known = call(proxy.url, "/_bespeak/profile/ada").body.decode()
        assert all(reply.outcome["query_id"] in known for reply in (first, second))
        assert known.count('"impression"') == len(first.ids) + len(second.ids)
        assert ask(proxy.url, f"/{index}/_search", coat, **ADA).outcome["reason"] == "control"
        assert call(proxy.url, "/_bespeak/share", b"100%", "PUT").json == {"share": 1.0}
        assert "reason" not in ask(proxy.url, f"/{index}/_search", coat, **ADA).outcome


@pytest.mark.elasticsearch
def test_users_are_trusted_by_signature_and_routes_by_token(tmp_path, elasticsearch_url, index):
    (tmp_path / "key").write_text("k" * 40)
    (tmp_path / "token").write_text("t" * 40 + "\n")
    coat = {"query": {"match": {"text": LEANING}}}
    options = ["--user-key", tmp_path / "key", "--token-file", tmp_path / "token", "--host", "0.0.0.0"]
    with served(tmp_path, "--upstream", elasticsearch_url, *options) as proxy:
        url = proxy.url.replace("0.0.0.0", "127.0.0.1")
        assert "as signed (HS256)" in proxy.said
        assert call(url, "/_bespeak/share").status == 401
        load_events(url, Authorization=f"Bearer {'t' * 40}")
        assert ask(url, f"/{index}/_search", coat, **ADA).outcome["reason"] == "unsigned"
        end = int(time.time()) + 600
        signed = jwt.encode({"sub": "ada", "exp": end}, "k" * 40, "HS256")
        forged = jwt.encode({"sub": "ada", "exp": end}, "f" * 40, "HS256")
        assert ask(url, f"/{index}/_search", coat, X_Bespeak_User=forged).outcome["reason"] == "bad_token"
        answer = ask(url, f"/{index}/_search", coat, X_Bespeak_User=signed, X_Bespeak_Session="s")
        assert answer.outcome["rewrite"] == "full"


@pytest.mark.elasticsearch
def test_two_proxies_share_profiles_in_the_cluster(tmp_path, elasticsearch_url, index):
    coat = {"query": {"match": {"text": LEANING}}}
    user = new_index_name()  # nobody else's, whatever the cluster holds
    who = {"X_Bespeak_User": user, "X_Bespeak_Session": "s"}
    options = ["--upstream", elasticsearch_url, "--profiles", "elasticsearch"]
    engine = ElasticsearchEngine(elasticsearch_url)
    there = call(elasticsearch_url, "/bespeak-*/_alias?expand_wildcards=all").json
    try:
        with served(tmp_path / "a", *options) as one, served(tmp_path / "b", *options) as other:
            now = dt.datetime.now(dt.UTC).isoformat()
            events = [{**event, "user_id": user, "timestamp": now} for event in ASKED]
            assert call(one.url, "/_bespeak/events", events).json["taken"] == 2
            assert ask(other.url, f"/{index}/_search", coat, **who).outcome["rewrite"] == "full"
            assert call(other.url, f"/_bespeak/profile/{user}", method="DELETE").status == 200
            assert ask(one.url, f"/{index}/_search", coat, **who).outcome["reason"] == "stranger"
            assert not (tmp_path / "a" / "data").exists()
            one.end()
            other.end()
            assert call(elasticsearch_url, f"/{index}/_search", coat).status == 200
    finally:
        for name in set(call(elasticsearch_url, "/bespeak-*/_alias?expand_wildcards=all").json) - set(there):
            engine.drop(name)
        engine.close()


@pytest.mark.elasticsearch
def test_rewrites_of_a_batch_are_served_from_the_clusters_cache(tmp_path, elasticsearch_url):
    there = call(elasticsearch_url, "/bespeak-*/_alias?expand_wildcards=all").json
    engine = ElasticsearchEngine(elasticsearch_url)
    try:
        answer, row = rewrites_served(tmp_path, elasticsearch_url, new_index_name(), "--profiles", "elasticsearch")
        assert (answer["status"], answer["text"], row["status"]) == ("cached", row["rewrite"], "full")
    finally:
        for name in set(call(elasticsearch_url, "/bespeak-*/_alias?expand_wildcards=all").json) - set(there):
            engine.drop(name)
        engine.close()


def test_the_guides_app_can_be_mounted(tmp_path, monkeypatch):
    """The example of the guide, run as it stands but for the URL."""
    monkeypatch.chdir(tmp_path)
    (example,) = (
        code for code in re.findall(r"```python\n(.*?)```", GUIDE.read_text("utf-8"), re.DOTALL) if "assemble(" in code
    )
    with raw_engine(ANSWER) as engine:
        made: dict = {}
        exec(example.replace("http://127.0.0.1:9200", engine.url), made)

        async def mounted(scope, receive, send):
            root = {"root_path": "/shop"} if scope["type"] == "http" else {}
            await made["app"](scope | root, receive, send)

        with serving(mounted) as url:
            assert call(url, "/shop/_bespeak/health/live").json == {"live": True}
            assert call(url, "/shop/things/_search", {}).body == BODY
        assert [request.line for request in engine.requests] == [b"POST /things/_search HTTP/1.1"]
