"""Measures what the proxy costs: the engine asked directly, through nginx and through Bespeak, in one run.

    python benchmarks/proxy.py [--seconds 2] [--rounds 5] [--connections 1 8 64] [--upstream URL]
    python benchmarks/proxy.py --clients [--seconds 2] [--rounds 5] [--connections 1 16]

The first command prints two tables. In the first table the engine is an nginx that answers every request with the same
2 KB of JSON, so that the figures show the proxy and not the engine. In the second it is Elasticsearch (the tests' node
with its full JIT, or --upstream) with Python's documentation, asked for one page of ten. There Bespeak also
personalises, for a user with a session, a window of 100 and all vectors of hits in the cache: one query again and again
and, without a rewriter, a new query each time, which leans on the session or stands alone; then with a cached rewrite,
with a new rewrite for each query (which is mostly late at more than one connection, and then left out), and with a mix
in which three new queries of ten lean on the session.
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
import math
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
local count, users, texts, given = os.time() %% 100000 * 1000, %d, {%s}, {}
for name, value in pairs(wrk.headers) do given[name] = value end
request = function()
  count = count + 1
  for name, value in pairs(given) do wrk.headers[name] = string.format(value, count %% users) end
  return wrk.format(nil, nil, nil, string.format(texts[count %% #texts + 1], count))
end
"""


@dataclass(frozen=True)
class Server:
    url: str
    pids: tuple[int, ...] = ()  # the proxy's processes, none for the engine itself


@dataclass(frozen=True)
class Request:
    """`%d` means a new number each time in the body, and the number of a user in a header. The bodies take turns."""

    method: str
    path: str
    bodies: tuple[str, ...] = ()
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class Route:
    """A route to the engine, which exists while the block of `start` runs."""

    name: str
    start: Callable[[str], AbstractContextManager[Server]]
    request: Request


@dataclass(frozen=True)
class Figures:
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float  # per request
    rss_mb: float
    errors: float


QUERY = {"query": {"match": {"text": "read a file line by line"}}, "size": 10}
LEANING_QUERY = {"query": {"match": {"text": "and how do I read line %d of it"}}, "size": 10}
ALONE_QUERY = {"query": {"match": {"text": "mean of %d random numbers"}}, "size": 10}
"""A new query each time."""
USER_HEADERS = {"X-Bespeak-User": "u%d", "X-Bespeak-Session": "s"}
N_USERS = 40
"""Users who ask in turn, each in a session of their own."""
INDEX = "bespeak-benchmark"


def main() -> None:
    options = read_options()
    if options.clients:
        from proxy_clients import compare_clients

        with static_engine() as engine:
            compare_clients(engine.url, options)
        return
    with contextlib.ExitStack() as ending:
        engine = ending.enter_context(static_engine()).url
        compare_routes("an nginx that answers 2 KB", plain_routes(Request("GET", "/books/_search")), engine, options)
    with contextlib.ExitStack() as ending:
        engine = options.upstream or ending.enter_context(node())
        load_documentation(engine)
        ending.callback(ask, "DELETE", f"{engine}/{INDEX}")
        plain = Request("POST", f"/{INDEX}/_search", (json.dumps(QUERY),))
        compare_routes("Elasticsearch", [*plain_routes(plain), *personal_routes(plain)], engine, options)


def compare_routes(title: str, routes: Sequence[Route], engine: str, options: argparse.Namespace) -> None:
    with contextlib.ExitStack() as ending:
        servers = {route: ending.enter_context(route.start(engine)) for route in routes}
        figures = {count: measure(servers, count, options) for count in options.connections}
    print(f"\nEngine: {title}")
    print_table(figures)


def plain_routes(request: Request) -> list[Route]:
    starts = [("direct", direct), ("nginx", through_nginx), ("bespeak passing", through_bespeak)]
    return [Route(name, start, request) for name, start in starts]


def personal_routes(request: Request) -> list[Route]:
    personal = replace(request, headers=USER_HEADERS)
    leaning, alone = (json.dumps(query) for query in (LEANING_QUERY, ALONE_QUERY))
    new, standing = replace(personal, bodies=(leaning,)), replace(personal, bodies=(alone,))
    mixed = replace(personal, bodies=(alone, alone, leaning, alone, alone, leaning, alone, alone, leaning, alone))
    return [
        Route("same query, no rewriter", personalised("none"), personal),
        Route("new query, no rewriter", personalised("none"), new),
        Route("new query that stands alone", personalised("none"), standing),
        Route("cached rewrite", personalised("model"), personal),
        Route("new rewrite", personalised("model"), new),
        Route("mix of new queries", personalised("model"), mixed),
    ]


def measure(servers: Mapping[Route, Server], connections: int, options: argparse.Namespace) -> dict[str, Figures]:
    """The median of each figure over all rounds. The routes take turns, so that they share the state of the machine."""
    rounds: dict[str, list[Figures]] = {route.name: [] for route in servers}
    for _ in range(options.rounds):
        for route, server in servers.items():
            rounds[route.name].append(measure_once(server, route.request, connections, options))
    return {name: median(figures) for name, figures in rounds.items()}


def median(figures: Sequence[Figures]) -> Figures:
    return Figures(*(statistics.median(column) for column in zip(*map(astuple, figures), strict=True)))


def measure_once(server: Server, request: Request, connections: int, options: argparse.Namespace) -> Figures:
    load(server.url, request, connections, WARM_S)
    cpu_before_s = sum(map(cpu_s, server.pids))
    report = load(server.url, request, connections, options.seconds)
    spent_s = sum(map(cpu_s, server.pids)) - cpu_before_s
    return Figures(
        report["requests"] / report["seconds"],
        report["p50_ms"],
        report["p99_ms"],
        spent_s / (report["requests"] or math.nan) * 1e6,
        sum(map(rss_mb, server.pids)),
        report["errors"],
    )


def load(url: str, request: Request, connections: int, seconds: int) -> dict[str, float]:
    """The report of wrk, which asks again on each connection as soon as it is answered."""
    given = dict(request.headers) | ({"Content-Type": "application/json"} if request.bodies else {})
    headers = "\n".join(f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in given.items())
    body = json.dumps(request.bodies[0]) if request.bodies else "nil"
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        changing = CHANGING % (N_USERS, ", ".join(map(json.dumps, request.bodies))) if request.headers else ""
        script.write(LOAD % (request.method, body, headers) + changing)
        script.flush()
        wrk = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", script.name, url + request.path]
        printed = subprocess.run(wrk, check=True, capture_output=True, text=True).stdout
    report: dict[str, float] = json.loads(printed.splitlines()[-1])
    return report


def print_table(figures: Mapping[int, Mapping[str, Figures]]) -> None:
    print(
        f"{'route':<30}{'conn':>5}{'req/s':>9}{'p50 ms':>9}{'p99 ms':>9}{'+p50':>8}{'+p99':>8}"
        f"{'CPU us':>9}{'x nginx':>9}{'RSS MB':>8}{'errors':>8}"
    )
    for count, by_name in figures.items():
        plain, nginx = by_name["direct"], by_name["nginx"]
        for name, row in by_name.items():
            ratio = f"{row.cpu_us / nginx.cpu_us:.1f}" if row.cpu_us and nginx.cpu_us else "-"
            print(
                f"{name:<30}{count:>5}{row.requests_per_s:>9.0f}{row.p50_ms:>9.2f}{row.p99_ms:>9.2f}"
                f"{row.p50_ms - plain.p50_ms:>8.2f}{row.p99_ms - plain.p99_ms:>8.2f}"
                f"{row.cpu_us:>9.0f}{ratio:>9}{row.rss_mb:>8.0f}{row.errors:>8.0f}"
            )


@contextlib.contextmanager
def direct(engine: str) -> Iterator[Server]:
    yield Server(engine)


@contextlib.contextmanager
def through_nginx(engine: str) -> Iterator[Server]:
    with nginx(PASSING.replace("{engine}", urlsplit(engine).netloc)) as server:
        yield server


@contextlib.contextmanager
def through_bespeak(engine: str) -> Iterator[Server]:
    port = free_port()
    with running([sys.executable, "-c", BESPEAK, engine, str(port)], port) as server:
        yield server


def personalised(rewriter: str) -> Callable[[str], AbstractContextManager[Server]]:
    """Bespeak for users who have a session, with all vectors of the window in the cache."""

    @contextlib.contextmanager
    def start(engine: str) -> Iterator[Server]:
        port = free_port()
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, "-m", "bespeak_cli", "--data-dir", folder, "serve", "--upstream", engine]
            with running([*command, "--port", str(port), "--rewriter", rewriter], port) as server:
                record_sessions(server.url)
                wait_for_vectors(server.url)
                yield server

    return start


def record_sessions(url: str) -> None:
    """Records an earlier query, its answer and a statement for each user."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    answer = {"action_name": "answer", "message": "The function open returns a file object."}
    statement = {"action_name": "statement", "message": "I write for Windows."}
    for n in range(N_USERS):
        session = {"user_id": f"u{n}", "session_id": "s", "timestamp": now}
        query = {**session, "query_id": f"q{n}"}
        ask("POST", f"{url}/_bespeak/events", [
            {**query, "user_query": "how do I open a text file"}, {**query, **answer}, {**session, **statement},
        ])  # fmt: skip


def wait_for_vectors(url: str) -> None:
    """Waits until each user has asked once and the vectors of the window, made after the answers, are there."""
    search = f"{url}/{INDEX}/_search"
    for n in range(N_USERS):
        ask("POST", search, QUERY, user_headers(n))
    for body in (QUERY, LEANING_QUERY):
        for _ in range(600):
            with ask("POST", search, body, user_headers(0)) as answer:
                if "rerank=full" in answer.headers["X-Bespeak"]:
                    break
            time.sleep(0.5)
        else:
            raise SystemExit("the vectors of the window were not made in time")


def user_headers(n: int) -> dict[str, str]:
    return {name: value.replace("%d", str(n)) for name, value in USER_HEADERS.items()}


@contextlib.contextmanager
def node() -> Iterator[str]:
    """A node as the tests use it."""
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
def static_engine() -> Iterator[Server]:
    hits = [
        {"_index": "books", "_id": f"d{i}", "_score": 12.5 - i, "_source": {"text": "word " * 33}} for i in range(9)
    ]
    answer = json.dumps({"took": 1, "timed_out": False, "hits": {"max_score": 12.5, "hits": hits}})
    with nginx(STATIC.replace("{json}", answer)) as server:
        yield server


@contextlib.contextmanager
def nginx(content: str) -> Iterator[Server]:
    port = free_port()
    binary = shutil.which("nginx", path=os.environ["PATH"] + ":/usr/sbin")
    if binary is None:
        raise SystemExit("nginx is not installed: it is the package `nginx` of Debian")
    with tempfile.TemporaryDirectory() as folder:
        text = content.replace("{port}", str(port))
        config = Path(folder) / "nginx.conf"
        config.write_text(NGINX.format(folder=folder, content=text))
        with running([binary, "-e", "stderr", "-p", folder, "-c", str(config)], port) as server:
            yield server


@contextlib.contextmanager
def running(command: list[str], port: int) -> Iterator[Server]:
    """A server that ends with its block."""
    process = subprocess.Popen(command)
    try:
        url = f"http://127.0.0.1:{port}"
        wait_for(url, process)
        yield Server(url, (process.pid, *children(process.pid)))
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
    """CPU time of a process so far, including threads that have ended; to a hundredth of a second."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", help="URL of an Elasticsearch instead of the tests' node")
    parser.add_argument("--seconds", type=int, default=2, help="length of each measurement")
    parser.add_argument("--rounds", type=int, default=5, help="rounds, whose medians are shown")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--clients", action="store_true", help="compare the proxy's own client with httpcore")
    if not (shutil.which("wrk") or parser.parse_args().clients):
        parser.error("wrk is not installed: it is the package `wrk` of Debian")
    return parser.parse_args()


if __name__ == "__main__":
    main()
