"""What the proxy costs: the engine asked directly, through nginx, and through Bespeak, by the same load in one run.

    python benchmarks/proxy.py [--seconds 2] [--rounds 5] [--connections 1 8 64] [--upstream URL]
    python benchmarks/proxy.py --clients [--seconds 2] [--rounds 5] [--connections 1 16]

The first command prints two tables. In the first table the engine is an nginx that answers every request with the same
2 KB of JSON, so that the figures show the proxy and not the engine. In the second it is Elasticsearch (the tests' node
with its full JIT, or --upstream) with Python's documentation, asked for one page of ten. There Bespeak also
personalises, for a user with a session, a window of 100 and all vectors in the cache: without a rewrite, with a cached
rewrite, and with a new rewrite for each query (which is mostly late at more than one connection, and then left out).
CPU is that of the proxy's processes alone, from /proc. Ratios are to nginx, added times to the direct way, each at the
same number of connections.

The second command compares the proxy's own client of Elasticsearch with httpcore's connection pool, in one process and
on the loop that `bespeak serve` uses, against the nginx of the first table.

Needs `nginx` and `wrk` (both are Debian packages), a JDK and Maven for the node, and the rewriter's model, built.
`--clients` needs only nginx and the Python packages httpcore, anyio and sniffio (without sniffio, httpcore spends most
of its time on failing imports).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, field, replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

WARM_S = 1

NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log stderr error;
events {{ worker_connections 1024; }}
http {{
  access_log off; client_max_body_size 0; keepalive_requests 1000000000; keepalive_timeout 3600;
  client_body_temp_path {folder}/body; proxy_temp_path {folder}/proxy; fastcgi_temp_path {folder}/fastcgi;
  uwsgi_temp_path {folder}/uwsgi; scgi_temp_path {folder}/scgi;
  {content}
}}
"""
STATIC = "server { listen 127.0.0.1:{port}; location / { default_type application/json; return 200 '{json}'; } }"
PASSING = """
  upstream engine { server {engine}; keepalive 64; keepalive_requests 1000000000; }
  server { listen 127.0.0.1:{port}; location / {
    proxy_pass http://engine; proxy_http_version 1.1; proxy_set_header Connection ""; } }
"""
BESPEAK = """
import sys, uvicorn
from bespeak.proxy import Proxy, Upstream
from bespeak.proxy.http.serving import server_config
uvicorn.Server(server_config(Proxy(Upstream([sys.argv[1]])), port=int(sys.argv[2]))).run()
"""
LOAD = """
wrk.method = "%s"
wrk.body = %s
%s
done = function(summary, latency)
  local errors = summary.errors
  io.write(string.format('{"requests": %%d, "seconds": %%f, "p50_ms": %%f, "p99_ms": %%f, "errors": %%d}\\n',
    summary.requests, summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3,
    errors.connect + errors.read + errors.write + errors.status + errors.timeout))
end
"""

CHANGING = """
local count, users, given, text = os.time() %% 100000 * 1000, %d, {}, wrk.body
for name, value in pairs(wrk.headers) do given[name] = value end
request = function()
  count = count + 1
  for name, value in pairs(given) do wrk.headers[name] = string.format(value, count %% users) end
  return wrk.format(nil, nil, nil, string.format(text, count))
end
"""


@dataclass(frozen=True)
class Served:
    url: str
    pids: tuple[int, ...] = ()  # of the proxy; none where the engine is asked directly


@dataclass(frozen=True)
class Asked:
    """One request; `%d` in the body is another number each time, in a header the number of a user."""

    method: str
    path: str
    body: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Way:
    """A way to the engine: `start` gives it for as long as its block runs."""

    name: str
    start: Callable[[str], AbstractContextManager[Served]]
    asked: Asked


@dataclass(frozen=True)
class Figures:
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float  # per request
    rss_mb: float
    errors: float


PAGES = {"query": {"match": {"text": "read a file line by line"}}, "size": 10}
"""What is asked of Elasticsearch."""
NEW = {"query": {"match": {"text": "and how do I read line %d of it"}}, "size": 10}
"""What is asked where each query is new."""
USER = {"X-Bespeak-User": "u%d", "X-Bespeak-Session": "s"}
N_USERS = 40
"""Who ask in turn, each in a session of their own."""
INDEX = "bespeak-benchmark"


def main() -> None:
    options = read_options()
    if options.clients:
        from proxy_clients import compare_clients

        with static_engine() as served:
            compare_clients(served.url, options)
        return
    with contextlib.ExitStack() as ending:
        engine = ending.enter_context(static_engine()).url
        show("an nginx that answers 2 KB", ways(Asked("GET", "/books/_search")), engine, options)
    with contextlib.ExitStack() as ending:
        engine = options.upstream or ending.enter_context(node())
        load_documentation(engine)
        ending.callback(ask, "DELETE", f"{engine}/{INDEX}")
        plain = Asked("POST", f"/{INDEX}/_search", json.dumps(PAGES))
        show("Elasticsearch", [*ways(plain), *personal_ways(plain)], engine, options)


def show(title: str, asked: Sequence[Way], engine: str, options: argparse.Namespace) -> None:
    with contextlib.ExitStack() as ending:
        served = {way: ending.enter_context(way.start(engine)) for way in asked}
        found = {count: measure(served, count, options) for count in options.connections}
    print(f"\nEngine: {title}")
    print_table(found)


def ways(asked: Asked) -> list[Way]:
    found = [("direct", direct), ("nginx", through_nginx), ("bespeak passing", through_bespeak)]
    return [Way(name, start, asked) for name, start in found]


def personal_ways(asked: Asked) -> list[Way]:
    personal = replace(asked, headers=USER)
    new = replace(personal, body=json.dumps(NEW))
    return [
        Way("personal, no rewrite", personalised("none"), personal),
        Way("personal, cached rewrite", personalised("model"), personal),
        Way("personal, new rewrite", personalised("model"), new),
    ]


def measure(served: Mapping[Way, Served], connections: int, options: argparse.Namespace) -> dict[str, Figures]:
    """The median of each figure over rounds in which each way has its turn, so that all share the machine's moods."""
    rounds: dict[str, list[Figures]] = {way.name: [] for way in served}
    for _ in range(options.rounds):
        for way, at in served.items():
            rounds[way.name].append(measure_once(at, way, connections, options))
    return {name: median(figures) for name, figures in rounds.items()}


def median(figures: Sequence[Figures]) -> Figures:
    return Figures(*(statistics.median(column) for column in zip(*map(astuple, figures), strict=True)))


def measure_once(served: Served, way: Way, connections: int, options: argparse.Namespace) -> Figures:
    load(served.url, way.asked, connections, WARM_S)
    before_s = sum(map(cpu_s, served.pids))
    told = load(served.url, way.asked, connections, options.seconds)
    spent_s = sum(map(cpu_s, served.pids)) - before_s
    return Figures(
        told["requests"] / told["seconds"],
        told["p50_ms"],
        told["p99_ms"],
        spent_s / told["requests"] * 1e6,
        sum(map(rss_mb, served.pids)),
        told["errors"],
    )


def load(url: str, asked: Asked, connections: int, seconds: int) -> dict[str, float]:
    """What wrk tells of so many connections that ask again as soon as they are answered."""
    given = dict(asked.headers) | ({"Content-Type": "application/json"} if asked.body else {})
    headers = "\n".join(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in given.items())
    body = json.dumps(asked.body) if asked.body else "nil"
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        changing = CHANGING % N_USERS if asked.headers else ""
        script.write(LOAD % (asked.method, body, headers) + changing)
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", script.name, url + asked.path]
        printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    told: dict[str, float] = json.loads(printed.splitlines()[-1])
    return told


def print_table(found: Mapping[int, Mapping[str, Figures]]) -> None:
    print(
        f"{'way':<24}{'conn':>5}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'+p50':>8}{'+p99':>8}"
        f"{'CPU us':>9}{'x nginx':>9}{'RSS MB':>8}{'errors':>8}"
    )
    for count, by_name in found.items():
        plain, nginx = by_name["direct"], by_name["nginx"]
        for name, row in by_name.items():
            ratio = f"{row.cpu_us / nginx.cpu_us:.1f}" if row.cpu_us and nginx.cpu_us else "-"
            print(
                f"{name:<24}{count:>5}{row.requests_per_s:>9.0f}{row.p50_ms:>9.2f}{row.p99_ms:>9.2f}"
                f"{row.p50_ms - plain.p50_ms:>8.2f}{row.p99_ms - plain.p99_ms:>8.2f}"
                f"{row.cpu_us:>9.0f}{ratio:>9}{row.rss_mb:>8.0f}{row.errors:>8.0f}"
            )


# The ways.


@contextlib.contextmanager
def direct(engine: str) -> Iterator[Served]:
    yield Served(engine)


@contextlib.contextmanager
def through_nginx(engine: str) -> Iterator[Served]:
    with nginx(PASSING.replace("{engine}", urlsplit(engine).netloc)) as served:
        yield served


@contextlib.contextmanager
def through_bespeak(engine: str) -> Iterator[Served]:
    port = free_port()
    with running([sys.executable, "-c", BESPEAK, engine, str(port)], port) as served:
        yield served


def personalised(rewriter: str) -> Callable[[str], AbstractContextManager[Served]]:
    """Bespeak with a user who has a session, and with the vectors of what is asked at hand."""

    @contextlib.contextmanager
    def start(engine: str) -> Iterator[Served]:
        port = free_port()
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "bespeak_cli", "--data-dir", folder, "serve", "--upstream", engine]
            with running([*command, "--port", str(port), "--rewriter", rewriter], port) as served:
                tell_sessions(served.url)
                wait_for_vectors(served.url)
                yield served

    return start


def tell_sessions(url: str) -> None:
    """What each user asked and said before."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    for n in range(N_USERS):
        who = {"user_id": f"u{n}", "session_id": "s", "timestamp": now}
        asked = {**who, "query_id": f"q{n}"}
        answer = {"action_name": "answer", "message": "The function open returns a file object."}
        said = {"action_name": "statement", "message": "I write for Windows."}
        ask("POST", f"{url}/_bespeak/events", [
            {**asked, "user_query": "how do I open a text file"}, {**asked, **answer}, {**who, **said},
        ])  # fmt: skip


def wait_for_vectors(url: str) -> None:
    """Until a search has its window's vectors, which are made after the answers, and each user has asked once."""
    for n in range(N_USERS):
        ask(
            "POST", f"{url}/{INDEX}/_search", PAGES, {name: value.replace("%d", str(n)) for name, value in USER.items()}
        )
    headers = {name: value.replace("%d", "0") for name, value in USER.items()}
    for body in (PAGES, NEW):
        for _ in range(100):
            with ask("POST", f"{url}/{INDEX}/_search", body, headers) as answer:
                if "rerank=full" in answer.headers["X-Bespeak"]:
                    break
            time.sleep(0.5)
        else:
            raise SystemExit("the vectors of the window were not made in time")


@contextlib.contextmanager
def node() -> Iterator[str]:
    """The tests' Elasticsearch."""
    sys.path.insert(0, str(Path(__file__).parent.parent / "tests"))
    from elasticsearch_node import build_node, find_jdk, running_node

    jdk = find_jdk()
    if jdk is None:
        raise SystemExit("a JDK 21 or later is needed, or --upstream")
    with running_node(jdk, build_node(jdk), full_jit=True) as url:
        yield url


def load_documentation(engine: str) -> None:
    from bespeak_cli.corpus import read_python_documentation

    settings = {"number_of_shards": 1, "number_of_replicas": 0}
    mappings = {"properties": {"title": {"type": "text"}, "text": {"type": "text", "analyzer": "english"}}}
    ask("PUT", f"{engine}/{INDEX}", {"settings": settings, "mappings": mappings})
    lines = [json.dumps(part) for document in read_python_documentation()
             for part in ({"index": {"_id": document.pop("_id")}}, document)]  # fmt: skip
    ask("POST", f"{engine}/{INDEX}/_bulk?refresh=true", "\n".join([*lines, ""]))


def ask(method: str, url: str, content: object = None, headers: Mapping[str, str] = {}) -> Any:
    data = content if isinstance(content, str) else json.dumps(content) if content is not None else ""
    kind = "application/x-ndjson" if isinstance(content, str) else "application/json"
    request = urllib.request.Request(url, data.encode() or None, {"Content-Type": kind, **headers}, method=method)
    return urllib.request.urlopen(request, timeout=60)


@contextlib.contextmanager
def static_engine() -> Iterator[Served]:
    hits = [
        {"_index": "books", "_id": f"d{i}", "_score": 12.5 - i, "_source": {"text": "word " * 33}} for i in range(9)
    ]
    answer = json.dumps({"took": 1, "timed_out": False, "hits": {"max_score": 12.5, "hits": hits}})
    with nginx(STATIC.replace("{json}", answer)) as served:
        yield served


@contextlib.contextmanager
def nginx(content: str) -> Iterator[Served]:
    port = free_port()
    binary = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if binary is None:
        raise SystemExit("nginx is not installed: it is the package `nginx` of Debian")
    with tempfile.TemporaryDirectory() as folder:
        text = content.replace("{port}", str(port))
        config = Path(folder) / "nginx.conf"
        config.write_text(NGINX.format(folder=folder, content=text))
        with running([binary, "-e", "stderr", "-p", folder, "-c", str(config)], port) as served:
            yield served


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[Served]:
    """Ended by the process it was started with."""
    process = subprocess.Popen(command)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, process)
        yield Served(url, (process.pid, *children(process.pid)))
    finally:
        process.terminate()
        process.wait()


def wait_for(url: str, process: subprocess.Popen[bytes]) -> None:
    for _ in range(200):
        with contextlib.suppress(OSError):
            urllib.request.urlopen(url).close()
            return
        if process.poll() is not None:
            break
        time.sleep(0.05)
    raise SystemExit(f"{process.args!r} did not start")


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def cpu_s(pid: int) -> float:
    """Time that a process has run so far, all its threads, those that ended too; to a hundredth of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", help="URL of an Elasticsearch in place of the tests' node")
    parser.add_argument("--seconds", type=int, default=2, help="how long each load lasts")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way has its turn; the medians are shown")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--clients", action="store_true", help="compare the proxy's own client with httpcore")
    if not (shutil.which("wrk") or parser.parse_args().clients):
        parser.error("wrk is not installed: it is the package `wrk` of Debian")
    return parser.parse_args()


if __name__ == "__main__":
    main()
