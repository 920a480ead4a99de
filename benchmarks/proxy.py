"""What the proxy costs: the engine asked directly, through nginx, and through Bespeak, by the same load in one run.

    python benchmarks/proxy.py [--upstream URL] [--path PATH] [--body FILE] [--seconds 2] [--rounds 5]
                               [--connections 1 8 64]

Needs `nginx` and `wrk` (both are Debian packages). Without --upstream the engine is an nginx that answers every request
with the same 2 KB of JSON, so that what is seen is the way and not the engine. CPU is that of the proxy's processes
alone, from /proc. Ratios are to nginx, added times to the direct way, each at the same number of connections.
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
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import astuple, dataclass, field
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

WARM_S = 1

NGINX = """
daemon off; worker_processes 1; pid {folder}/pid; error_log stderr error;
events {{ worker_connections 1024; }}
http {{
  access_log off; keepalive_requests 1000000000; keepalive_timeout 3600;
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
from bespeak.proxy.serving import server_config
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


@dataclass(frozen=True)
class Served:
    url: str
    pids: tuple[int, ...] = ()  # of the proxy; none where the engine is asked directly


@dataclass(frozen=True, eq=False)
class Way:
    """A way to the engine: `start` gives it for as long as its block runs."""

    name: str
    start: Callable[[str], AbstractContextManager[Served]]
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Figures:
    requests_per_s: float
    p50_ms: float
    p99_ms: float
    cpu_us: float  # per request
    rss_mb: float
    errors: float


def main() -> None:
    options = read_options()
    with contextlib.ExitStack() as ending:
        engine = options.upstream or ending.enter_context(static_engine()).url
        served = {way: ending.enter_context(way.start(engine)) for way in ways()}
        found = {count: measure(served, count, options) for count in options.connections}
    print_table(found)


def ways() -> list[Way]:
    return [Way("direct", direct), Way("nginx", through_nginx), Way("bespeak passing", through_bespeak)]


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
    url = served.url + options.path
    load(url, way.headers, connections, WARM_S, options)
    before_s = sum(map(cpu_s, served.pids))
    told = load(url, way.headers, connections, options.seconds, options)
    spent_s = sum(map(cpu_s, served.pids)) - before_s
    return Figures(
        told["requests"] / told["seconds"],
        told["p50_ms"],
        told["p99_ms"],
        spent_s / told["requests"] * 1e6,
        sum(map(rss_mb, served.pids)),
        told["errors"],
    )


def load(
    url: str, headers: Mapping[str, str], connections: int, seconds: int, options: argparse.Namespace
) -> dict[str, float]:
    """What wrk tells of so many connections that ask again as soon as they are answered."""
    body = options.body.read_text() if options.body else None
    lines = [f"wrk.headers[{json.dumps(name)}] = {json.dumps(value)}" for name, value in headers.items()]
    if body is not None:
        lines.append('wrk.headers["Content-Type"] = "application/json"')
    with tempfile.NamedTemporaryFile("w", suffix=".lua") as script:
        script.write(LOAD % ("GET" if body is None else "POST", json.dumps(body) if body else "nil", "\n".join(lines)))
        script.flush()
        command = ["wrk", "-t1", f"-c{connections}", f"-d{seconds}s", "--latency", "-s", script.name, url]
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
            urlopen(url).close()
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
    """Time that the threads of a process have run so far, to the nanosecond."""
    threads = Path(f"/proc/{pid}/task").iterdir()
    return sum(int((thread / "schedstat").read_text().split()[0]) for thread in threads) / 1e9


def rss_mb(pid: int) -> float:
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def read_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upstream", help="URL of a real engine; without it, an nginx that answers 2 KB of JSON")
    parser.add_argument("--path", default="/books/_search", help="what is asked")
    parser.add_argument("--body", type=Path, help="a file whose text is sent by POST; without it, GET without a body")
    parser.add_argument("--seconds", type=int, default=2, help="how long each load lasts")
    parser.add_argument("--rounds", type=int, default=5, help="how often each way has its turn; the medians are shown")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 64])
    if not shutil.which("wrk"):
        parser.error("wrk is not installed: it is the package `wrk` of Debian")
    return parser.parse_args()


if __name__ == "__main__":
    main()
