"""Measures the CPU seconds of `bespeak --help` and of a `bespeak search`, compared with a Python that does nothing.

    python benchmarks/startup.py [RUNS]

Each command runs in its own process; the figure is the median of its user and system time. The search is personal: it
loads the encoder and the rewriter, rewrites an elliptic query from the turn before, retrieves, reranks and renders. No
rewrite comes from the cache, since each run has its own session.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

BESPEAK = Path(sysconfig.get_path("scripts")) / "bespeak"
TOPICS = ("gather tasks", "cancel a task", "read a file", "parse JSON", "wait for a timeout", "sort a list")


def cpu_seconds(command: list[str]) -> float:
    """User and system time of one run of the command and its children."""
    before = os.times()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    after = os.times()
    return after.children_user - before.children_user + after.children_system - before.children_system


def main(runs: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        corpus = Path(folder) / "corpus.jsonl"
        rows = ({"_id": f"d{i}", "title": f"{topic} {i}", "text": f"How to {topic} in Python, way {i}."}
                for i in range(50) for topic in TOPICS)  # fmt: skip
        corpus.write_text("".join(json.dumps(dict(row, _id=f"{row['_id']}-{n}")) + "\n" for n, row in enumerate(rows)))
        bespeak = [str(BESPEAK), "--data-dir", f"{folder}/data"]
        subprocess.run([*bespeak, "index", str(corpus), "--to", "howto"], check=True, capture_output=True)
        commands = {
            "python -c pass": lambda _: [sys.executable, "-c", "pass"],
            "bespeak --help": lambda _: [str(BESPEAK), "--help"],
            "bespeak search": lambda run: [*bespeak, "search", "and how do I cancel it?", "--index", "howto",
                                           "--user", "u", "--session", f"s{run}"],
        }  # fmt: skip
        for run in range(runs + 1):
            first = ["search", "how do I gather tasks", "--index", "howto", "--user", "u", "--session", f"s{run}"]
            subprocess.run([*bespeak, *first], check=True, capture_output=True)
        floor = None
        print(f"{'command':<18}{'CPU s':>8}{'x python':>10}")
        for name, command in commands.items():
            spent = [cpu_seconds(command(run)) for run in range(runs + 1)][1:]
            median = statistics.median(spent)
            floor = floor or median
            print(f"{name:<18}{median:>8.2f}{median / floor:>10.0f}")


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 5)
