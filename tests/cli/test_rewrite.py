"""`bespeak rewrite` on the command line, also killed at any moment."""

from __future__ import annotations

import gzip
import json
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import time
from datetime import UTC, datetime, timedelta

import pytest
from click.testing import CliRunner

from bespeak.batch.lines import Chunk, LinePosition
from bespeak.batch.work import rewrite_chunk
from bespeak.errors import StoreError
from bespeak.profiles.events import new_event
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.records import UserKey
from bespeak.rewriting.rewriter import CachedRewriter, LastTurn
from bespeak_cli import Folders, cli
from bespeak_cli.batch import make_tools

START = datetime(2025, 6, 1, tzinfo=UTC)
N_USERS = 4


def lines_of(n_lines):
    """Queries with their own history, of stored users and of nobody, and lines that are rejected."""
    for n in range(n_lines):
        match n % 10:
            case 0 | 1 | 2 | 3:
                yield json.dumps({"id": n, "query": f"what of it {n % 30}?", "user": f"u{n % N_USERS}", "session": "s"})
            case 4:
                yield json.dumps({"query": f"anything {n}"})
            case 5 if n % 50 == 5:
                yield '{"query": "broken'
            case _:
                turns = [{"query": f"red hats {n}", "response": "A Borsalino costs 300 euros"}]
                yield json.dumps({"id": f"q{n}", "query": f"how much is it {n}?", "history": turns})


def add_users(folder):
    store = SqliteStore(folder / "bespeak.db")
    for n in range(N_USERS):
        user, at = UserKey("", f"u{n}"), START + timedelta(minutes=n)
        store.add([new_event(user, "query", at, session_id="s", text=f"silk scarves from Ghent {n}")])
    store.close()


def run(folder, *arguments, **more):
    given = ["--data-dir", folder / "data", "rewrite", *arguments, "--rewriter", "last-turn"]
    return CliRunner().invoke(cli, list(map(str, given)), **more)


def command(folder, *arguments):
    """The command with small chunks, so that it can be killed at many moments."""
    program = "import bespeak.batch.lines as l, bespeak_cli as c; l.CHUNK_LINES = 20; c.cli()"
    given = ("--data-dir", folder / "data", "rewrite", *arguments, "--rewriter", "last-turn")
    return [sys.executable, "-c", program, *map(str, given)]


@pytest.fixture
def file(tmp_path):
    (tmp_path / "data").mkdir()
    add_users(tmp_path / "data")
    path = tmp_path / "in.jsonl"
    path.write_text("\n".join(lines_of(600)))
    return path


def whole(tmp_path, file, out):
    """The output of an uninterrupted run with its own cache."""
    folder = tmp_path / "whole"
    shutil.copytree(tmp_path / "data", folder / "data")
    done = subprocess.run(command(folder, file, "--output", folder / out), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return [read(folder / out), read(folder / f"{out}.rejected"), counts(done.stderr)]


def read(path):
    return path.read_bytes() if path.exists() else None


def counts(stderr):
    """The parts of a report that do not depend on time or on the cache."""
    blocks = stderr.strip().split("\n\n")
    return [block for block in blocks if block.startswith(("Statuses", "Gated", "Terms")) or "lines rejected" in block]


def counts_of(stderr):
    return [line for block in counts(stderr) for line in block.splitlines() if "from the cache" not in line]


def killed_until_done(tmp_path, arguments, by, n_kills):
    """Kills the command at random moments until it gets through; gives its last stderr."""
    progress = tmp_path / f"{arguments[2].name}.progress"
    moments = random.Random(f"{arguments}")
    for attempt in range(n_kills + 1):
        before = progress.stat().st_mtime_ns if progress.exists() else 0
        process = subprocess.Popen(
            command(tmp_path, *arguments), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        while attempt < n_kills and process.poll() is None:
            if progress.exists() and progress.stat().st_mtime_ns != before:  # this run is at work
                time.sleep(moments.uniform(0, 0.04))
                process.send_signal(by)
                break
            time.sleep(0.001)
        _, stderr = process.communicate(timeout=60)
        if process.returncode == 0:
            assert attempt >= 5
            return stderr
        assert process.returncode in (-signal.SIGKILL, 128 + signal.SIGTERM), stderr
    raise AssertionError("no run got through")


@pytest.mark.parametrize(
    ("out", "by", "more", "n_kills"),
    [
        ("out.jsonl", signal.SIGKILL, (), 20),
        ("out.jsonl.gz", signal.SIGKILL, (), 8),
        ("out.jsonl.zst", signal.SIGTERM, (), 8),
        ("out.jsonl", signal.SIGKILL, ("--workers", 2), 6),
        ("out.jsonl", signal.SIGTERM, ("--workers", 2), 6),
    ],
)
def test_a_run_killed_at_any_moment_resumes(tmp_path, file, out, by, more, n_kills):
    """Bytes and counts are those of an uninterrupted run; only the cache may differ."""
    expected = whole(tmp_path, file, out)
    stderr = killed_until_done(tmp_path, (file, "--output", tmp_path / out, *more), by, n_kills)
    assert [read(tmp_path / out), read(tmp_path / f"{out}.rejected")] == expected[:2]
    assert counts_of(stderr) == [line for block in expected[2] for line in block.splitlines() if "cache" not in line]


def test_a_run_resumes_after_a_full_disk(tmp_path, file):
    """At growing sizes, so that each file is once the one that cannot grow."""
    expected = whole(tmp_path, file, "out.jsonl")
    out = tmp_path / "out.jsonl"
    n_bytes, n_full = 3_000, 0
    while n_bytes < 4_000_000:
        done = subprocess.run(
            command(tmp_path, file, "--output", out), capture_output=True, text=True, check=False,
            preexec_fn=lambda size=n_bytes: resource.setrlimit(resource.RLIMIT_FSIZE, (size, size)),
        )  # fmt: skip
        if done.returncode == 0:
            break
        assert done.returncode == 1
        assert "File too large" in done.stderr or "disk" in done.stderr, done.stderr
        assert "run the same command again" in done.stderr or "try again" in done.stderr
        n_bytes, n_full = int(n_bytes * 1.7), n_full + 1
    assert n_full >= 5
    assert [read(out), read(tmp_path / "out.jsonl.rejected")] == expected[:2]


def test_the_report_is_printed_and_written(tmp_path, file):
    done = run(tmp_path, file, "--output", tmp_path / "out.jsonl", "--report", tmp_path / "report.html")
    assert done.exit_code == 0, done.output
    assert done.stdout == ""
    assert "588 queries in " in done.stderr
    assert re.search(r"^  gated +60 ", done.stderr, re.MULTILINE)
    assert "12 lines rejected\n  12          100.0%      broken JSON" in done.stderr
    page = (tmp_path / "report.html").read_text("utf-8")
    assert "<h1>588 queries in " in page
    assert "last-turn 1" in page
    again = run(tmp_path, file, "--output", tmp_path / "out.jsonl")  # nothing to do, and stderr again
    assert counts(again.stderr) == counts(done.stderr)


def test_it_fills_the_cache_that_the_proxy_reads(tmp_path, file):
    file.write_text('{"query": "and how much is it?", "user": "u1", "session": "s"}\n')
    assert run(tmp_path, file, "--output", tmp_path / "out.jsonl").exit_code == 0
    store = SqliteStore(tmp_path / "data" / "bespeak.db")
    profile = store.profile(UserKey("", "u1"), "s", datetime.now(UTC))
    served = CachedRewriter(LastTurn(), store).rewrite("and how much is it?", profile)
    store.close()
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert (served.status, served.text) == ("cached", row["rewrite"])
    assert row["rewrite"] == "and how much is it? silk scarves Ghent 1"


def test_cached_rewrites_are_counted_and_written_as_new_ones(tmp_path, file):
    run(tmp_path, file, "--output", tmp_path / "one.jsonl")
    second = run(tmp_path, file, "--output", tmp_path / "two.jsonl")
    assert "240 of the full rewrites came from the cache" in second.stderr
    assert read(tmp_path / "two.jsonl") == read(tmp_path / "one.jsonl")


@pytest.mark.parametrize("packed", ["", ".gz"])
def test_tsv_is_read(tmp_path, file, packed):
    content = b"id\tquery\n7\tred hats\nx\ty\tz\n8\t\n"
    path = tmp_path / f"queries.tsv{packed}"
    path.write_bytes(gzip.compress(content) if packed else content)
    assert run(tmp_path, path, "--output", tmp_path / "out.jsonl").exit_code == 0
    row = json.loads((tmp_path / "out.jsonl").read_text())
    assert (row["id"], row["query"], row["status"], row["reason"]) == ("7", "red hats", "gated", "no_history")
    rejected = [json.loads(line) for line in (tmp_path / "out.jsonl.rejected").read_text().splitlines()]
    assert [(line["line"], line["reason"]) for line in rejected] == [
        (3, "not two columns, id and query"),
        (4, "the query is empty"),
    ]


def test_stdin_and_stdout(tmp_path, file):
    done = run(tmp_path, "-", "--output", "-", input='{"query": "hats"}\n{\n')
    assert done.exit_code == 0
    assert json.loads(done.stdout)["id"] == 1
    assert "Streams cannot be resumed" in done.stderr
    assert '{"line":2,"reason":"broken JSON' in done.stderr


def test_strict_stops_at_the_first_bad_line(tmp_path, file):
    done = run(tmp_path, file, "--output", tmp_path / "out.jsonl", "--strict")
    assert done.exit_code == 1
    assert "Error: line 6: broken JSON" in done.stderr
    assert read(tmp_path / "out.jsonl") is None


def test_a_changed_model_is_refused(tmp_path, file):
    run(tmp_path, file, "--output", tmp_path / "out.jsonl")
    other = ("--data-dir", tmp_path / "data", "rewrite", file, "--output", tmp_path / "out.jsonl", "--rewriter", "none")
    done = CliRunner().invoke(cli, list(map(str, other)))
    assert done.exit_code == 1
    assert "begun with another model (last-turn 1 then, none 1 now)" in done.stderr


def test_a_dead_worker_ends_the_run_which_can_be_resumed(tmp_path, file):
    expected = whole(tmp_path, file, "out.jsonl")
    out = tmp_path / "out.jsonl"
    program = (
        "import os, bespeak.batch.lines as l, bespeak.batch.workers as w, bespeak_cli as c\n"
        "class Killing(w._Worker):\n"
        "    n = 0\n"
        "    def give(self, chunk):\n"
        "        super().give(chunk)\n"
        "        Killing.n += 1\n"
        "        if Killing.n == 30: os.kill(self._process.pid, 9)\n"
        "w._Worker = Killing\n"
        "l.CHUNK_LINES = 20\n"
        "c.cli()\n"
    )
    given = command(tmp_path, file, "--output", out, "--workers", 2)
    done = subprocess.run([given[0], "-c", program, *given[3:]], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "a worker process died (exit code -9)" in done.stderr
    assert subprocess.run(given, capture_output=True, check=False).returncode == 0
    assert [read(out), read(tmp_path / "out.jsonl.rejected")] == expected[:2]


@pytest.mark.parametrize(
    ("arguments", "stderr"),
    [
        (["no-such-file", "--output", "x"], "does not exist"),
        ([__file__], "Missing option '--output'"),
        (
            [__file__, "--output", "x", "--profiles", "elasticsearch"],
            "needs the cluster's URL",
        ),
        ([__file__, "--output", "x", "--ray-address", "127.0.0.1:6379"], "--ray-address needs --on ray"),
        ([__file__, "--output", "s3://bucket/x"], "s3://bucket/x: object storage needs --on ray"),
        ([__file__, "--output", "-", "--on", "ray"], "other machines cannot reach a stream"),
        ([__file__, "--output", "x", "--on", "ray", "--workers", "1"], "--workers is for one machine"),
        ([__file__, "--output", "x", "--on", "ray", "--check", "hats"], "--check needs --elasticsearch"),
    ],
)
def test_wrong_usage(tmp_path, arguments, stderr):
    done = run(tmp_path, *arguments)
    assert done.exit_code == 2
    assert stderr in done.stderr


def test_a_cluster_does_not_read_this_machines_profiles(tmp_path):
    options = {"source": "in.jsonl", "output": "out.jsonl", "format_": "jsonl", "rewriter": "last-turn"}
    options |= {"profiles": "sqlite", "check": None, "strict": False, "on": "ray"}
    tools = make_tools(Folders(tmp_path, tmp_path).absolute(), options)
    assert rewrite_chunk(Chunk(1, (b'{"query": "hats"}',), LinePosition(1, 17), 17), tools).tally.queries == 1
    with pytest.raises(StoreError, match="line 1 names a user, but this machine's profiles cannot be read"):
        rewrite_chunk(Chunk(1, (b'{"query": "hats", "user": "ada"}',), LinePosition(1, 32), 32), tools)
    tools.close()


@pytest.mark.parametrize("place", ["embedded", pytest.param("elastic", marks=pytest.mark.elasticsearch)])
def test_rewrites_that_find_nothing_are_dropped(tmp_path, file, place, request):
    """All of them, since the index holds only a word of the queries as typed."""
    documents = tmp_path / "documents.jsonl"
    documents.write_text('{"_id": "d1", "text": "much"}\n')
    index, there = "things", ()
    if place == "elastic":
        index = request.getfixturevalue("index_name")
        there = ("--elasticsearch", request.getfixturevalue("elasticsearch_url"))
    load = ("index", documents, "--to", index, "--no-embeddings", *there)
    assert CliRunner().invoke(cli, list(map(str, ("--data-dir", tmp_path / "data", *load)))).exit_code == 0
    done = run(tmp_path, file, "--output", tmp_path / "out.jsonl", "--check", index, *there)
    assert done.exit_code == 0, done.output
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    dropped = [row for row in rows if row["status"] == "dropped"]
    assert len(dropped) == 240  # those that the store's history gives no such word
    assert all(row["rewrite"] == row["query"] and not row["terms"] for row in dropped)
    assert {row["reason"] for row in dropped} == {"finds nothing"}
    assert "  dropped     240 " in done.stderr


def test_a_missing_index_for_the_check_is_reported_before_anything_is_written(tmp_path, file):
    done = run(tmp_path, file, "--output", tmp_path / "out.jsonl", "--check", "hats")
    assert done.exit_code == 1
    assert "no index 'hats'" in done.stderr
    assert not list(tmp_path.glob("out.jsonl*"))
