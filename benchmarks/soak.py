"""Shows whether the proxy's memory stays flat over an hour's requests: 100 a second pass, 10 a second are personalised.

    python benchmarks/soak.py [--passing 360000] [--personal 36000]

Sends the requests over 8 connections, as fast as they are answered, to the tests' Elasticsearch with Python's
documentation. The personal ones come from 40 users, each with a new query, without a rewriter. Prints the proxy's
resident memory after each tenth. Needs what `benchmarks/proxy.py` needs.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
import proxy

CONNECTIONS = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--passing", type=int, default=360_000, help="number of requests that pass")
    parser.add_argument("--personal", type=int, default=36_000, help="number of requests that are personalised")
    options = parser.parse_args()
    path = f"/{proxy.INDEX}/_search"
    with proxy.node() as engine:
        proxy.load_documentation(engine)
        with proxy.personalised("none")(engine) as served:
            soak("passing", served, proxy.Asked("POST", path, json.dumps(proxy.PAGES)), options.passing)
            soak("personal", served, proxy.Asked("POST", path, json.dumps(proxy.NEW), proxy.USER), options.personal)


def soak(name: str, served: proxy.Served, asked: proxy.Asked, n_requests: int) -> None:
    print(f"{name}: MB resident after so many requests")
    done, tenth, began = 0.0, 1, time.monotonic()
    while done < n_requests:
        done += proxy.load(served.url, asked, CONNECTIONS, 2)["requests"]
        while tenth <= 10 and done >= n_requests * tenth / 10:
            memory = sum(map(proxy.rss_mb, served.pids))
            print(f"{done:>10.0f} {memory:>8.1f}   {time.monotonic() - began:.0f} s", flush=True)
            tenth += 1


if __name__ == "__main__":
    main()
