"""The proxy's own client of Elasticsearch beside httpcore's connection pool: `python benchmarks/proxy.py --clients`.

Both clients ask the same engine from one process, on the event loop that `bespeak serve` uses. They take turns, so that
they share the state of the machine. CPU is that of the process, per request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import NamedTuple, TypeAlias
from urllib.parse import urlsplit

import httpcore
import uvloop

from bespeak.proxy import Upstream

WARM_S = 0.25
CHUNK_BYTES = 64 * 1024
"""Longer bodies are sent in chunks of this size, as they arrive from a client of the proxy."""
LONGEST_ANSWER_BYTES = 1 << 20
COMMON_HEADERS = [(b"user-agent", b"benchmark"), (b"accept", b"application/json"), (b"authorization", b"Basic dTpw")]


class Request(NamedTuple):
    name: str
    method: str
    target: str
    body: bytes = b""

    @property
    def headers(self) -> list[tuple[bytes, bytes]]:
        if not self.body:
            return COMMON_HEADERS
        length = b"%d" % len(self.body)
        return [*COMMON_HEADERS, (b"content-type", b"application/json"), (b"content-length", length)]

    def content(self) -> bytes | AsyncIterator[bytes] | None:
        return in_chunks(self.body) if len(self.body) > CHUNK_BYTES else self.body or None


class Cost(NamedTuple):
    cpu_us: float
    p50_ms: float


Client: TypeAlias = Callable[[Request], Awaitable[bytes]]

QUERY = {"query": {"match": {"text": "word " * 600}}}
REQUESTS = [
    Request("small GET", "GET", "/books/_doc/1"),
    Request("search, 3 KB", "POST", "/books/_search", json.dumps(QUERY).encode()),
    Request("bulk, 4 MB", "POST", "/_bulk", b'{"index": {}}\n{"text": "a line of a book"}\n' * 95_000),
]


def compare_clients(engine: str, options: argparse.Namespace) -> None:
    print(f"{'request':<14}{'conn':>5}{'client':>10}{'CPU us':>9}{'p50 ms':>9}{'x CPU':>8}{'x p50':>8}")
    for request in REQUESTS:
        for connections in options.connections:
            costs = uvloop.run(measure_clients(engine, request, connections, options))
            ours = costs["ours"]
            for name, cost in costs.items():
                print(
                    f"{request.name:<14}{connections:>5}{name:>10}{cost.cpu_us:>9.0f}{cost.p50_ms:>9.2f}"
                    f"{cost.cpu_us / ours.cpu_us:>8.1f}{cost.p50_ms / ours.p50_ms:>8.1f}"
                )


async def measure_clients(
    engine: str, request: Request, connections: int, options: argparse.Namespace
) -> dict[str, Cost]:
    """The median costs of each client over all rounds."""
    upstream = Upstream([engine], connections=connections)
    async with httpcore.AsyncConnectionPool(max_connections=connections) as pool:
        clients = {"ours": our_client(upstream), "httpcore": httpcore_client(pool, engine)}
        rounds: dict[str, list[Cost]] = {name: [] for name in clients}
        for _ in range(options.rounds):
            for name, client in clients.items():
                await measure(client, request, connections, WARM_S)
                rounds[name].append(await measure(client, request, connections, options.seconds))
    await upstream.close()
    return {name: Cost(*map(statistics.median, zip(*costs, strict=True))) for name, costs in rounds.items()}


async def measure(client: Client, request: Request, connections: int, seconds: float) -> Cost:
    latencies_s: list[float] = []
    end = time.perf_counter() + seconds

    async def keep_asking() -> None:
        while (start := time.perf_counter()) < end:
            await client(request)
            latencies_s.append(time.perf_counter() - start)

    cpu_before_s = time.process_time()
    await asyncio.gather(*(keep_asking() for _ in range(connections)))
    cpu_s = time.process_time() - cpu_before_s
    return Cost(cpu_s / len(latencies_s) * 1e6, statistics.median(latencies_s) * 1e3)


def our_client(upstream: Upstream) -> Client:
    async def ask(request: Request) -> bytes:
        answer = await upstream.send(request.method, request.target.encode(), request.headers, request.content())
        try:
            assert answer.status == 200
            return await answer.read(LONGEST_ANSWER_BYTES)
        finally:
            await answer.close()

    return ask


def httpcore_client(pool: httpcore.AsyncConnectionPool, engine: str) -> Client:
    parts = urlsplit(engine)
    host = parts.hostname or ""

    async def ask(request: Request) -> bytes:
        url = httpcore.URL(scheme="http", host=host, port=parts.port, target=request.target)
        headers = [(b"host", parts.netloc.encode()), *request.headers]
        async with pool.stream(request.method, url, headers=headers, content=request.content()) as answer:
            assert answer.status == 200
            return b"".join([chunk async for chunk in answer.aiter_stream()])

    return ask


async def in_chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), CHUNK_BYTES):
        yield body[start : start + CHUNK_BYTES]
