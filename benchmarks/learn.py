"""Measures `bespeak learn` on a million events, and the cost of a personal ranking with many events and many users.

    python benchmarks/learn.py [--events 1000000] [--people 1000000] [--seed 1]

The events are random. The number of a user's events is log-normal (sigma 1). Seven of ten are on documents of the
user's own circle (one of 50), the others on any document; in both, documents follow Zipf's law (exponent 1). Of ten
events six are clicks, two views, one a purchase and one a rating. The command runs as a separate process on two cores;
its peak is the most memory that it held. `few` are a tenth of the events.

A query does what a search does for its user: it reads the profile and ranks 100 hits by what was learnt. Its cost is
CPU time, which other work on the machine hardly affects.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

import numpy as np

from bespeak.pipeline import rank
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.ranking.learning import LearntFolder
from bespeak.ranking.rerank import Window
from bespeak.reading import Reading
from bespeak.records import Event, Hit, Rewrite, UserKey
from bespeak.settings import Settings

START = datetime(2025, 1, 1, tzinfo=UTC)
YEAR_S = 365 * 86_400
CIRCLES, OWN, SIGMA = 50, 0.7, 1.0
ACTIONS = ("click",) * 6 + ("view",) * 2 + ("purchase", "rating")
N_HITS, N_DOCS, ROUNDS = 100, 2_000, 300
FEW_USERS = 1_000
HISTORIES = (10, 2_000, 10_000)
"""Numbers of events of the users whose queries are timed."""


class Shape(NamedTuple):
    n_users: int
    n_docs: int


SHAPES = {"many users": Shape(100_000, 20_000), "busy users": Shape(7_500, 9_000)}
"""For a million events. The second has fewer users than documents, so the other matrix is solved."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--events", type=int, default=1_000_000)
    parser.add_argument("--people", type=int, default=1_000_000, help="users of the larger store in the second part")
    parser.add_argument("--seed", type=int, default=1)
    asked = parser.parse_args()
    os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:2])
    with tempfile.TemporaryDirectory() as folder:
        for name, shape in SHAPES.items():
            compare_learning(name, shape, asked.events, asked.seed, Path(folder) / name)
        compare_queries(asked.people, asked.seed, Path(folder) / "queries")


def compare_learning(name: str, shape: Shape, n_events: int, seed: int, folder: Path) -> None:
    each = []
    for n in (n_events // 10, n_events):
        users = max(1, shape.n_users * n // n_events)
        place = folder / str(n)
        fill(place, drawn(n, Shape(users, shape.n_docs), seed))
        seconds, peak = learn(place)
        each.append(seconds / n)
        print(
            f"{name}: {n} events, {users} users, {shape.n_docs} documents: {seconds:.1f} s, peak {peak:.0f} MB",
            flush=True,
        )
    print(f"{name}: an event costs {each[1] / each[0]:.2f} times what it costs among a tenth of the events")


def learn(folder: Path) -> tuple[float, float]:
    """Seconds and peak megabytes of `bespeak learn`."""
    command = [sys.executable, "-m", "bespeak_cli", "--data-dir", str(folder), "learn"]
    began = time.monotonic()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        _, status, used = os.wait4(running.pid, 0)
        running.returncode = os.waitstatus_to_exitcode(status)
    if running.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {running.returncode}")
    return time.monotonic() - began, used.ru_maxrss / 1024


def compare_queries(n_people: int, seed: int, folder: Path) -> None:
    """Compares users with few and many events, among a thousand users and among a million."""
    fill(folder, drawn(20_000, Shape(FEW_USERS, N_DOCS), seed))
    for n_events in HISTORIES:
        fill(folder, of_one(f"one of {n_events}", n_events, seed))
    learn(folder)
    store = SqliteStore(folder / "bespeak.db")
    few = queries(store, folder, FEW_USERS)
    store.add(event(n, f"one more {n}", n % N_DOCS, "click", n % YEAR_S) for n in range(n_people - FEW_USERS))
    many = queries(store, folder, n_people)
    store.close()
    for fewer, more in itertools.pairwise(HISTORIES):
        print(
            f"a user of {more} events to one of {fewer}: {few[more] / few[fewer]:.2f}, {many[more] / many[fewer]:.2f}"
        )
    for n_events in HISTORIES:
        print(f"{n_people} users to {FEW_USERS}, a user of {n_events} events: {many[n_events] / few[n_events]:.2f}")


def queries(store: SqliteStore, folder: Path, n_people: int) -> dict[int, float]:
    """Median milliseconds by number of events."""
    found = {}
    for n_events in HISTORIES:
        p50, p95 = timed(query(store, LearntFolder(folder), UserKey("", f"one of {n_events}")))
        print(f"query of a user of {n_events} events, {n_people} users: p50 {p50:.2f} ms, p95 {p95:.2f} ms", flush=True)
        found[n_events] = p50
    return found


def query(store: SqliteStore, folder: LearntFolder, user: UserKey) -> Callable[[], object]:
    hits = [Hit(str(n), float(N_HITS - n), n + 1, {}) for n in range(N_HITS)]

    def ask() -> object:
        profile = store.profile(user, "", START + timedelta(days=366))
        learnt, _ = folder.of(user.tenant)
        reading = Reading("query", profile, None, None, Rewrite("query", "query"))
        return rank(reading, Window(hits), Settings(), learnt)

    return ask


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Median and 95th percentile of this thread's CPU milliseconds, after one run that is not counted."""
    took = []
    for _ in range(ROUNDS + 1):
        began = time.thread_time()
        work()
        took.append((time.thread_time() - began) * 1000)
    p50, p95 = np.percentile(took[1:], [50, 95])
    return float(p50), float(p95)


def fill(folder: Path, events: Iterable[Event]) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    store = SqliteStore(folder / "bespeak.db")
    store.add(events)
    store.close()


def drawn(n_events: int, shape: Shape, seed: int) -> Iterator[Event]:
    draw = np.random.default_rng(seed)
    often = draw.lognormal(sigma=SIGMA, size=shape.n_users)
    users = draw.choice(shape.n_users, size=n_events, p=often / often.sum())
    own = zipf(draw, shape.n_docs // CIRCLES, n_events) * CIRCLES + users % CIRCLES
    places = np.where(draw.random(n_events) < OWN, own, zipf(draw, shape.n_docs, n_events))
    actions, times = draw.integers(len(ACTIONS), size=n_events), draw.integers(YEAR_S, size=n_events)
    rows = zip(users.tolist(), places.tolist(), actions.tolist(), times.tolist(), strict=True)
    for n, (user, place, action, at) in enumerate(rows):
        yield event(n, f"user {user}", place, ACTIONS[action], at)


def of_one(user: str, n_events: int, seed: int) -> Iterator[Event]:
    draw = np.random.default_rng(seed)
    places, times = draw.integers(N_DOCS, size=n_events), draw.integers(YEAR_S, size=n_events)
    for n, (place, at) in enumerate(zip(places.tolist(), times.tolist(), strict=True)):
        yield event(n, user, place, ACTIONS[n % len(ACTIONS)], at)


def zipf(draw: np.random.Generator, n: int, size: int) -> np.ndarray:
    """`(size,)` random places below `n`; the first is drawn twice as often as the second."""
    share = 1 / np.arange(1, n + 1)
    return draw.choice(n, size=size, p=share / share.sum())


def event(n: int, user: str, place: int, action: str, at: int) -> Event:
    when, value = START + timedelta(seconds=at), 1.0 + n % 9 / 2 if action == "rating" else None
    title = f"Document {place}"
    return Event(f"{n:032x}", UserKey("", user), action, when, doc_id=str(place), title=title, value=value)


if __name__ == "__main__":
    main()
