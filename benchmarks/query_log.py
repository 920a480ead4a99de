"""Makes a query log to rewrite: lines for `bespeak rewrite`, and the events of its users' histories.

    python benchmarks/query_log.py PAIRS... --out FOLDER [--lines N] [--asked N] [--seed N]

PAIRS are files of conversations (JSON lines of `query`, `history` and `statements`). `--asked` of their queries are
drawn. Each belongs to one user, whose session holds the earlier turns and answers, and who made the statements. The log
contains each query once, and then repeats the r-th query of a random order in proportion to 1/r (Zipf). FOLDER gets:

- `events.ndjson`, for `bespeak events load`
- `queries.jsonl`: `id`, `query`, `user`, `session`

    bespeak --data-dir FOLDER/data events load FOLDER/events.ndjson
    bespeak --data-dir FOLDER/data rewrite FOLDER/queries.jsonl --output FOLDER/rewritten.jsonl --report FOLDER/out.html
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

BEGIN = datetime(2025, 6, 1, tzinfo=UTC)


def read_rows(paths: list[Path]) -> list[dict[str, Any]]:
    return [json.loads(line) for path in paths for line in path.read_text("utf-8").splitlines() if line.strip()]


def events(user: str, row: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    at = BEGIN
    for text in row.get("statements") or ():
        yield {"action_name": "statement", "user_id": user, "timestamp": at.isoformat(), "message": text}
        at += timedelta(seconds=1)
    for n, turn in enumerate(row.get("history") or ()):
        at += timedelta(minutes=1)
        own = {"user_id": user, "session_id": "s", "query_id": f"{user} {n}", "timestamp": at.isoformat()}
        yield own | {"user_query": turn["query"]}
        if turn.get("response"):
            yield own | {"action_name": "answer", "message": turn["response"]}


def draw(n_asked: int, n_lines: int, rng: random.Random) -> list[int]:
    """Indices of the drawn queries, in the order of the log."""
    weights = [1 / rank for rank in range(1, n_asked + 1)]
    drawn = [*range(n_asked)][:n_lines] + rng.choices(range(n_asked), weights, k=max(0, n_lines - n_asked))
    rng.shuffle(drawn)
    return drawn


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("pairs", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--lines", type=int, default=100_000)
    parser.add_argument("--asked", type=int, default=6_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng = random.Random(options.seed)
    rows = read_rows(options.pairs)
    asked = rng.sample(rows, min(options.asked, len(rows)))
    options.out.mkdir(parents=True, exist_ok=True)
    with (options.out / "events.ndjson").open("w", encoding="utf-8") as file:
        file.writelines(json.dumps(event) + "\n" for n, row in enumerate(asked) for event in events(f"u{n}", row))
    with (options.out / "queries.jsonl").open("w", encoding="utf-8") as file:
        for line_no, n in enumerate(draw(len(asked), options.lines, rng), 1):
            line = {"id": f"q{line_no}", "query": asked[n]["query"], "user": f"u{n}", "session": "s"}
            file.write(json.dumps(line) + "\n")
    n_known = sum(bool(row.get("history") or row.get("statements")) for row in asked)
    print(f"{options.lines} lines of {len(asked)} queries and users, {n_known} with a history")


if __name__ == "__main__":
    main()
