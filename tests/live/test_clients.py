"""The official clients and curl as people use them, through the proxy against a real node."""

from __future__ import annotations

import asyncio
import fcntl
import gzip
import hashlib
import json
import os
import shutil
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from elastic_transport import ConnectionTimeout
from elasticsearch.helpers import BulkIndexError, async_bulk, async_scan, bulk, parallel_bulk, scan, streaming_bulk

from bespeak.proxy import Proxy, Upstream
from elasticsearch import (
    ApiError,
    AsyncElasticsearch,
    BadRequestError,
    ConflictError,
    Elasticsearch,
    NotFoundError,
    UnsupportedProductError,
)
from elasticsearch_node import new_index_name
from personal_proxy import COLOURS, call, load_things, personal_proxy
from proxy_server import raw_engine, serving

pytestmark = pytest.mark.elasticsearch
ADA = {"X-Bespeak-User": "ada", "X-Bespeak-Session": "s"}
COAT = {"match": {"text": "coat"}}
N_DOCS = 1_200


@pytest.fixture(scope="module")
def index(elasticsearch_url):
    name = new_index_name()
    load_things(elasticsearch_url, name)
    return name


@pytest.fixture(scope="module")
def proxy(elasticsearch_url, tmp_path_factory):
    with personal_proxy(elasticsearch_url, tmp_path_factory.mktemp("proxy")) as (url, _):
        yield url


@pytest.fixture
def client(proxy):
    with Elasticsearch(proxy, http_compress=True) as client:
        yield client


def documents(index: str) -> Iterator[dict[str, Any]]:
    for n in range(N_DOCS):
        yield {"_index": index, "_id": f"d{n}/ü", "n": n, "text": f"ä € \u2028 {COLOURS[n % 4]}" * 5}


def ids(answer: Any) -> list[str]:
    return [hit["_id"] for hit in answer["hits"]["hits"]]


def told(answer: Any) -> str:
    return answer.meta.headers["x-bespeak"]


# elasticsearch-py.


def test_python_knows_the_product(client):
    assert client.ping()
    answer = client.options(opaque_id="mine").info()
    assert answer.meta.headers["x-elastic-product"] == "Elasticsearch"
    assert answer.meta.headers["x-opaque-id"] == "mine"


def test_the_engine_gets_pythons_own_headers():
    answer = (
        b"HTTP/1.1 200 OK\r\nX-Elastic-Product: %s\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}"
    )
    with raw_engine(answer % b"Elasticsearch") as engine, serving(Proxy(Upstream([engine.url]))) as url:
        with Elasticsearch(url, basic_auth=("me", "secret"), http_compress=True) as client:
            client.options(headers=ADA).count(index="a", query=COAT)
        got = dict(engine.requests[0].headers)
    assert got[b"user-agent"].startswith(b"elasticsearch-py/")
    assert got[b"x-elastic-client-meta"].startswith(b"es=")
    assert got[b"authorization"] == b"Basic bWU6c2VjcmV0"
    assert got[b"accept"].startswith(b"application/vnd.elasticsearch+json")
    assert got[b"accept-encoding"] == got[b"content-encoding"] == b"gzip"
    assert not any(name.startswith(b"x-bespeak") for name in got)
    with (
        raw_engine(answer % b"Other") as engine,
        serving(Proxy(Upstream([engine.url]))) as url,
        Elasticsearch(url) as client,
        pytest.raises(UnsupportedProductError),
    ):
        client.info()


def test_python_gets_personal_results_for_one_header_more(client, index):
    own = client.search(index=index, query=COAT, size=100)
    ours = client.options(headers=ADA).search(index=index, query=COAT, size=20)
    assert "rerank=full" in told(ours)
    assert ids(ours) != ids(own)[:20]
    assert set(ids(ours)) == set(ids(own)[:20])
    assert ours["hits"]["total"] == own["hits"]["total"]
    by_body = client.search(index=index, query=COAT, size=20, ext={"ubi": {"client_id": "ada", "user_query": "coat"}})
    assert "rerank=full" in told(by_body)
    lines = [{"index": index}, {"query": COAT, "size": 20}, {"index": index}, {"query": {"match_all": {}}}]
    several = client.options(headers=ADA).msearch(searches=lines)
    assert set(ids(several["responses"][0])) == set(ids(ours))  # in another order: she has asked since
    assert told(several).count("rerank=") == 2


@pytest.mark.parametrize("compress", [True, False])
def test_python_loads_and_reads_back(proxy, elasticsearch_url, compress):
    name = new_index_name()
    with Elasticsearch(proxy, http_compress=compress) as client:
        assert bulk(client, documents(name), refresh=True) == (N_DOCS, [])
        read = {hit["_id"]: hit["_source"]["n"] for hit in scan(client, index=name, size=170, preserve_order=True)}
        assert read == {f"d{n}/ü": n for n in range(N_DOCS)}
        personal = scan(client.options(headers=ADA), index=name, query={"query": {"match": {"text": "blue"}}}, size=99)
        assert len({hit["_id"] for hit in personal}) == N_DOCS / len(COLOURS)
        again = ({"_op_type": "create"} | document for document in documents(name))
        done = list(streaming_bulk(client, again, chunk_size=500, raise_on_error=False))
        assert [(ok, item["create"]["status"]) for ok, item in done] == [(False, 409)] * N_DOCS
        gone = ({"_op_type": "delete", "_index": name, "_id": f"d{n}/ü"} for n in range(100))
        assert all(ok for ok, _ in parallel_bulk(client, gone, thread_count=4, chunk_size=9))
        with pytest.raises(BulkIndexError):
            bulk(client, [{"_index": name, "_id": "x", "n": "no number"}])
    assert call(elasticsearch_url, f"/{name}/_refresh", method="POST").status == 200
    assert call(elasticsearch_url, f"/{name}/_count").json["count"] == N_DOCS - 100


def test_python_sees_the_engines_own_errors(client, index):
    with pytest.raises(NotFoundError, match="index_not_found_exception"):
        client.search(index=f"{index}-none")
    with pytest.raises(BadRequestError, match="unknown query"):
        client.options(headers=ADA).search(index=index, query={"nonsense": {}})
    with pytest.raises(ConflictError):
        client.create(index=index, id="d1", document={})
    assert client.exists(index=index, id="d1")
    assert not client.exists(index=index, id="none")
    assert client.options(ignore_status=404).get(index=index, id="none")["found"] is False


def test_python_asks_asynchronously_too(proxy, index):
    name = new_index_name()

    async def work() -> None:
        async with AsyncElasticsearch(proxy, http_compress=True) as client:
            assert await async_bulk(client, documents(name), refresh=True) == (N_DOCS, [])
            read = [hit["_source"]["n"] async for hit in async_scan(client, index=name, size=170)]
            assert sorted(read) == list(range(N_DOCS))
            own = await client.search(index=index, query=COAT, size=100)
            personal = client.options(headers=ADA)
            answers = await asyncio.gather(
                *(personal.search(index=index, query=COAT, size=20) for _ in range(16)),
                *(client.count(index=index, query=COAT) for _ in range(16)),
            )
            assert all("rerank=full" in told(answer) for answer in answers[:16])
            assert {frozenset(ids(answer)) for answer in answers[:16]} == {frozenset(ids(own)[:20])}
            assert {answer["count"] for answer in answers[16:]} == {own["hits"]["total"]["value"]}

    asyncio.run(work())


# How clients handle an engine that is away.


class Turns:
    """Apps that answer a request each, in turn, the last one all that come after; counts them."""

    def __init__(self, *apps: Proxy) -> None:
        self.apps = apps
        self.asked = 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            await receive()
            await send({"type": "lifespan.startup.complete"})
            await receive()
            for app in self.apps:
                await app.close()
            await send({"type": "lifespan.shutdown.complete"})
        else:
            self.asked += 1
            await self.apps[min(self.asked, len(self.apps)) - 1](scope, receive, send)


@pytest.fixture
def nobody_there():
    """A URL that refuses connections for as long as the test lasts."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}"


@pytest.fixture
def silence():
    """A URL that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"


def test_clients_do_not_notice_a_node_that_is_down(nobody_there, elasticsearch_url, index):
    turns = Turns(Proxy(Upstream([nobody_there, elasticsearch_url, nobody_there])))
    with serving(turns) as url, Elasticsearch(url, max_retries=0) as client:
        assert {client.count(index=index)["count"] for _ in range(6)} == {240}
        assert bulk(client, [{"_index": new_index_name(), "n": 1}]) == (1, [])
    assert turns.asked == 7


def test_an_engine_that_is_down_is_a_502_that_is_tried_again(nobody_there, elasticsearch_url, index):
    turns = Turns(Proxy(Upstream([nobody_there])))
    with serving(turns) as url, Elasticsearch(url, max_retries=2) as client:
        with pytest.raises(ApiError) as failure:
            client.search(index=index)
        assert failure.value.meta.status == 502
        assert failure.value.error == "upstream_unreachable_exception"
        assert turns.asked == 3
        with pytest.raises(ApiError, match="502"):
            client.options(retry_on_status=()).search(index=index)
        assert turns.asked == 4
        assert client.ping() is False
    turns = Turns(Proxy(Upstream([nobody_there])), Proxy(Upstream([elasticsearch_url])))
    with serving(turns) as url, Elasticsearch(url) as client:
        assert client.count(index=index)["count"] == 240
    assert turns.asked == 2


def test_an_engine_that_is_silent_is_a_504_or_the_clients_own_timeout(silence, elasticsearch_url, index):
    turns = Turns(Proxy(Upstream([silence], timeout_s=0.2)))
    with serving(turns) as url, Elasticsearch(url, max_retries=1) as client:
        with pytest.raises(ApiError) as failure:
            client.search(index=index)
        assert failure.value.meta.status == 504
        assert failure.value.error == "upstream_timeout_exception"
    assert turns.asked == 2
    turns = Turns(Proxy(Upstream([silence])))
    with serving(turns) as url, Elasticsearch(url, request_timeout=0.2, max_retries=2) as client:
        with pytest.raises(ConnectionTimeout):
            client.search(index=index)
        assert turns.asked == 1
        with pytest.raises(ConnectionTimeout):
            client.options(retry_on_timeout=True).search(index=index)
        assert turns.asked == 4
    turns = Turns(Proxy(Upstream([silence])), Proxy(Upstream([elasticsearch_url])))
    with serving(turns) as url, Elasticsearch(url, request_timeout=2, retry_on_timeout=True) as client:
        assert client.count(index=index)["count"] == 240
    assert turns.asked == 2


def test_bulk_waits_and_continues_when_the_engine_is_away_for_a_moment(nobody_there, elasticsearch_url):
    name = new_index_name()
    turns = Turns(Proxy(Upstream([nobody_there])), Proxy(Upstream([elasticsearch_url])))
    with serving(turns) as url, Elasticsearch(url) as client:
        assert bulk(client, documents(name), chunk_size=400, refresh=True) == (N_DOCS, [])
        assert client.count(index=name)["count"] == N_DOCS
    assert turns.asked == 5


# elasticsearch-js.

CLIENTS = Path(__file__).parent / "clients"
ENVIRONMENT = dict(os.environ)  # read at import: each test gets a home of its own
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bespeak-test-clients"


def node_version() -> int:
    """Node's major version, 0 if it is not installed."""
    if not shutil.which("node"):
        return 0
    told = subprocess.run(["node", "--version"], capture_output=True, text=True).stdout
    return int(told.removeprefix("v").split(".")[0])


@pytest.fixture(scope="session")
def javascript() -> Path:
    """The folder where the official JavaScript client is installed: one per state of the lock file, in the cache."""
    # A Python developer may have no Node.js; `.ci/run` installs it, and fails where this is skipped.
    if not shutil.which("npm") or node_version() < 20:
        pytest.skip("the official JavaScript client needs Node.js 20 or later with npm: install both to run this")
    files = [CLIENTS / "package.json", CLIENTS / "package-lock.json"]
    key = hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()[:16]
    installed, making = CACHE / key, CACHE / f"{key}.part"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not installed.is_dir():
            shutil.rmtree(making, ignore_errors=True)
            making.mkdir()
            for file in files:
                shutil.copy(file, making)
            command = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts"]
            done = subprocess.run(command, cwd=making, env=ENVIRONMENT, capture_output=True, text=True)
            if done.returncode:
                pytest.fail(f"npm could not install the client: {done.stderr[-1500:]}", pytrace=False)
            making.rename(installed)
    return installed


@pytest.fixture
def script(javascript):
    def run(deed: str, url: str, index: str = "") -> Any:
        command = ["node", "--input-type=module", "-", deed, url, index]
        source = (CLIENTS / "run.mjs").read_text()
        done = subprocess.run(command, input=source, cwd=javascript, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    return run


def test_javascript_knows_the_product(script, proxy):
    assert script("info", proxy) == {"tagline": "You Know, for Search", "product": "Elasticsearch", "alive": True}


def test_javascript_gets_personal_results_for_one_header_more(script, proxy, index):
    found = script("search", proxy, index)
    assert "rerank=full" in found["told"]
    assert found["ours"] != found["own"][:20]
    assert set(found["ours"]) == set(found["child"]) == set(found["own"][:20])
    assert found["total"]["value"] == len(found["own"])


def test_javascript_asks_several_at_once(script, proxy, index, client):
    found = script("msearch", proxy, index)
    assert found["statuses"] == [200, 200, 400]
    assert found["told"].count("rerank=") == 3
    own = {
        text: ids(client.search(index=index, query={"match": {"text": text}}, size=20))
        for text in ("coat", "shoe", "hat")
    }
    texts = ("coat", "shoe", "coat", "shoe", "hat", "coat")
    for page, text in zip(found["found"] + found["helped"], texts, strict=True):
        assert page != own[text]
        assert set(page) == set(own[text])


def test_javascript_loads_and_reads_back(script, proxy, elasticsearch_url):
    name = new_index_name()
    kept = [n for n in range(2500) if n % 7]
    dropped = 2500 - len(kept)
    assert script("bulk", proxy, name) == {
        "total": 2500, "failed": dropped, "successful": len(kept), "dropped": dropped,
        "count": len(kept), "scrolled": len(kept), "sum": sum(kept),
    }  # fmt: skip
    assert call(elasticsearch_url, f"/{name}/_count").json["count"] == len(kept)


def test_javascript_keeps_single_documents(script, proxy):
    found = script("documents", proxy, new_index_name())
    assert found["there"] == [True, False]
    assert found["source"] == {"n": 1}
    assert found["streamed"] == 1
    assert found["updated"] == "updated"
    assert found["missing"] == ["ResponseError", 404, False]
    assert found["wrong"][0] == "ResponseError"
    assert "unknown query [nonsense]" in found["wrong"][1]
    assert found["created"] == 409


def test_javascript_sees_a_502_if_the_engine_is_down(script, nobody_there, index):
    turns = Turns(Proxy(Upstream([nobody_there])))
    with serving(turns) as url:
        found = script("down", url, index)
    assert found["name"] == "ResponseError"
    assert found["status"] == 502
    assert found["type"] == "upstream_unreachable_exception"
    assert turns.asked == found["attempts"] + 1 == 3


# curl.


@pytest.fixture
def curl(tmp_path):
    if not shutil.which("curl"):  # not everywhere; `.ci/run` installs it
        pytest.skip("curl is not installed")

    def run(*options: str, text: bytes = b"") -> subprocess.CompletedProcess[bytes]:
        command = ["curl", "-q", "-sS", "--noproxy", "*", "--max-time", "60", *options]
        done = subprocess.run(command, input=text, capture_output=True)
        assert done.returncode == 0, done.stderr
        return done

    return run


NDJSON = ("-H", "Content-Type: application/x-ndjson")
JSON = ("-H", "Content-Type: application/json")


def test_curl_loads_a_file(curl, proxy, tmp_path):
    name = new_index_name()
    lines = [line for n in range(500) for line in ({"index": {"_id": n}}, {"n": n, "text": "ä €"})]
    file = tmp_path / "lines.ndjson"
    file.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    done = curl(*NDJSON, "--data-binary", f"@{file}", f"{proxy}/{name}/_bulk?refresh=true")
    assert json.loads(done.stdout)["errors"] is False
    packed = tmp_path / "lines.gz"
    packed.write_bytes(gzip.compress(file.read_bytes()))
    header = ("-H", "Content-Encoding: gzip")
    done = curl(*NDJSON, *header, "--data-binary", f"@{packed}", f"{proxy}/{name}/_bulk?refresh=true")
    assert json.loads(done.stdout)["errors"] is False
    done = curl(
        *NDJSON, "-X", "POST", "-T", "-", f"{proxy}/{name}/_bulk?refresh=true", text=file.read_bytes()
    )  # chunked
    assert json.loads(done.stdout)["errors"] is False
    assert json.loads(curl(f"{proxy}/{name}/_doc/7").stdout)["_version"] == 3


def test_curl_waits_for_the_word_to_send_a_big_body(curl, proxy, tmp_path):
    name = new_index_name()
    file = tmp_path / "big.ndjson"
    line = json.dumps({"text": "x" * 10_000})
    file.write_text("".join(f'{{"index":{{"_id":{n}}}}}\n{line}\n' for n in range(800)))
    sent = ("-H", "Expect: 100-continue", "--expect100-timeout", "30", "--data-binary", f"@{file}")
    done = curl("-v", *NDJSON, *sent, f"{proxy}/{name}/_bulk?filter_path=errors&refresh=true")
    assert b"HTTP/1.1 100 Continue" in done.stderr
    assert json.loads(done.stdout) == {"errors": False}
    assert json.loads(curl(f"{proxy}/{name}/_count?filter_path=count").stdout) == {"count": 800}


@pytest.mark.parametrize(
    "options", [(), ("--compressed",), ("-0",), ("--http2",), ("-0", "--compressed"), ("-H", "Connection: close")]
)
def test_curl_gets_the_engines_own_answers(curl, proxy, elasticsearch_url, index, options):
    query = json.dumps({"query": COAT, "size": 100, "sort": ["price"]})
    asked = [
        (f"/{index}/_search?filter_path=hits", *JSON, "-d", query),
        (f"/{index}/_doc/d1",),
        (f"/{index}?pretty",),
        (f"/{index}/_search?filter_path=hits", "-G", "--data-urlencode", "q=text:(silk AND coat)"),
        (f"/{index}/_nothing", "-X", "DELETE"),
    ]
    for path, *more in asked:
        got = [curl(*options, *more, url + path, "-w", "%{http_code}").stdout for url in (proxy, elasticsearch_url)]
        assert got[0] == got[1]
        assert len(got[0]) > 50
    ours = curl(*options, *JSON, "-H", "X-Bespeak-User: ada", "-H", "X-Bespeak-Session: s",
                "-d", json.dumps({"query": COAT}), "-D", "-", "-o", "-", f"{proxy}/{index}/_search")  # fmt: skip
    assert b"X-Bespeak: rewrite=full; rerank=full" in ours.stdout
    assert ours.stdout.rstrip().endswith(b"}")


def test_curl_sends_head_requests(curl, proxy, elasticsearch_url, index):
    for path in ("/", f"/{index}/_doc/d1", f"/{index}/_doc/none", f"/{index}/_source/d1"):
        got = [curl("-I", url + path).stdout for url in (proxy, elasticsearch_url)]
        assert got[0] == got[1]
        assert b"content-length" in got[0]


def test_curl_sends_a_path_as_it_is(curl, proxy, elasticsearch_url, index):
    for path in (f"/{index}/../{index}/_count", f"/{index}/./_count", f"/{index}/_doc/a%2Fb", f"//{index}/_count"):
        got = [curl("--path-as-is", url + path).stdout for url in (proxy, elasticsearch_url)]
        assert got[0] == got[1]
        assert got[0]


def test_curl_keeps_its_connection(curl, proxy, index):
    paths = [f"{proxy}/{index}/_count", f"{proxy}/{index}/_doc/d1", f"{proxy}/nothing/_doc/1", f"{proxy}/"]
    done = curl(*paths, "-o", "/dev/null", "-o", "/dev/null", "-o", "/dev/null", "-o", "/dev/null",
                "-w", "%{num_connects} %{http_code}\n")  # fmt: skip
    assert done.stdout.decode().split("\n")[:4] == ["1 200", "0 200", "0 404", "0 200"]
