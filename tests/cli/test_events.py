import gzip
import json
import random
import signal
import sqlite3
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from bespeak_cli import cli

AT = "2025-05-31T10:00:00Z"


def run(folder, *arguments):
    return CliRunner().invoke(cli, ["--data-dir", str(folder), *map(str, arguments)])


def line(n=0, **given):
    shown = {"object_id": f"d{n}"}
    return json.dumps(
        {"action_name": "click", "user_id": "u", "timestamp": AT, "event_attributes": {"object": shown}} | given
    )


def kept(folder):
    """All rows, but for their order in the file."""
    with sqlite3.connect(folder / "bespeak.db") as connection:
        rows = {
            table: sorted(connection.execute(f"SELECT * FROM {table}"))
            for table in ("events", "query_sessions", "loads", "rejections")
        }
    connection.close()
    return rows


def lines_loaded(folder):
    """The progress of the running load, seen from another process."""
    if not (folder / "bespeak.db").exists():
        return 0
    connection = sqlite3.connect(folder / "bespeak.db", timeout=30)
    try:
        return connection.execute("SELECT max(line_no) FROM loads").fetchone()[0] or 0
    except sqlite3.OperationalError:  # not made yet
        return 0
    finally:
        connection.close()


def test_loading_a_file_twice_adds_nothing(tmp_path):
    file = tmp_path / "events.ndjson"
    file.write_text("\n".join([line(1), line(2), line(2)]))
    result = run(tmp_path / "data", "events", "load", file)
    assert (result.exit_code, result.stdout) == (0, "2 events added, 1 already there, 0 lines rejected\n")
    result = run(tmp_path / "data", "events", "load", file)
    assert (result.exit_code, result.stdout) == (0, "0 events added, 3 already there, 0 lines rejected\n")
    result = run(tmp_path / "data", "events", "load", file, "--tenant", "shop")
    assert result.stdout == "2 events added, 1 already there, 0 lines rejected\n"


def test_gzip_is_read_and_a_truncated_file_is_named(tmp_path):
    whole = gzip.compress("\n".join(line(n) for n in range(5000)).encode())
    (tmp_path / "whole.gz").write_bytes(whole)
    (tmp_path / "cut.gz").write_bytes(whole[:-2000])
    result = run(tmp_path / "data", "events", "load", tmp_path / "whole.gz")
    assert result.stdout == "5000 events added, 0 already there, 0 lines rejected\n"
    result = run(tmp_path / "data", "events", "load", tmp_path / "cut.gz")
    assert result.exit_code == 1
    assert "cut short or damaged" in result.stderr


def test_rejected_lines_are_reported_by_number_and_reason(tmp_path):
    file, out = tmp_path / "events.ndjson", tmp_path / "rejected.tsv"
    file.write_bytes(b"\n".join([line(1).encode(), b"{", b"\xff", *[b"[]"] * 30, line(2).encode()]))
    result = run(tmp_path / "data", "events", "load", file, "--rejected", out)
    assert (result.exit_code, result.stdout) == (0, "2 events added, 0 already there, 32 lines rejected\n")
    assert "line 2: broken JSON at character " in result.stderr
    assert "line 3: not UTF-8 at byte 1\n" in result.stderr
    assert "line 21: not a JSON object\n… and 12 more; --rejected FILE writes all of them" in result.stderr
    rejected = out.read_text("utf-8").splitlines()
    assert [row.split("\t")[0] for row in rejected] == [str(n) for n in range(2, 34)]


def test_a_file_of_another_kind_is_an_error(tmp_path):
    file = tmp_path / "notes.txt"
    file.write_text("hello\n")
    result = run(tmp_path / "data", "events", "load", file)
    assert result.exit_code == 1
    assert "no line of" in result.stderr


@pytest.mark.parametrize(
    "arguments", [["load"], ["load", "no-such-file"], ["load", "."], ["load", __file__, "--tenant", "x" * 257]]
)
def test_wrong_usage(tmp_path, arguments):
    assert run(tmp_path / "data", "events", *arguments).exit_code == 2


def test_errors_of_the_store_are_sentences(tmp_path):
    file = tmp_path / "events.ndjson"
    file.write_text(line())
    (tmp_path / "file").write_text("")
    result = run(tmp_path / "file" / "data", "events", "load", file)
    assert result.exit_code == 1
    assert "--data-dir" in result.stderr
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "bespeak.db").write_text("not a database" * 99)
    result = run(tmp_path / "data", "events", "load", file)
    assert (result.exit_code, "damaged" in result.stderr) == (1, True)


def test_a_load_killed_at_any_moment_resumes(tmp_path):
    """Until one run gets through: the same rows, counts and report as of a run that nobody cut off."""
    rows = [line(n, query_id=f"q{n // 9}", **({"session_id": f"s{n // 90}"} if n % 9 else {})) for n in range(12_000)]
    rows[500] = rows[9_500] = "{"
    file = tmp_path / "events.ndjson.gz"
    file.write_bytes(gzip.compress("\n".join(rows).encode(), 1))
    unbroken = run(tmp_path / "unbroken", "events", "load", file)
    assert unbroken.exit_code == 0
    # A pause at each batch leaves the killer time; it changes nothing of what is written.
    program = (
        "import sys, time, bespeak.profiles.stores.sqlite as s\n"
        "class Slow(s.SqliteStore):\n"
        "    def record(self, *given):\n"
        "        time.sleep(0.02)\n"
        "        return super().record(*given)\n"
        "s.SqliteStore = Slow\n"
        "from bespeak_cli import cli\n"
        "cli()\n"
    )
    command = [sys.executable, "-c", program, "--data-dir", str(tmp_path / "broken"), "events", "load", str(file)]
    moments, n_killed = random.Random(7), 0
    for attempt in range(6):
        before = lines_loaded(tmp_path / "broken")
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        while attempt < 5 and process.poll() is None and lines_loaded(tmp_path / "broken") <= before:
            time.sleep(0.002)
        if attempt < 5:
            time.sleep(moments.uniform(0, 0.06))
            process.send_signal(signal.SIGKILL)
        out, err = process.communicate(timeout=60)
        if process.returncode == 0:
            break
        assert process.returncode == -signal.SIGKILL, err
        n_killed += 1
    assert n_killed >= 1
    assert out == unbroken.stdout
    assert err.splitlines()[-2:] == unbroken.stderr.splitlines()[-2:]
    assert kept(tmp_path / "broken") == kept(tmp_path / "unbroken")


@pytest.mark.data
def test_the_real_file(tmp_path, shared_data):
    file = shared_data / "ubi" / "ubi_queries_events.ndjson"
    texts = {text for text in file.read_text("utf-8").splitlines() if not text.startswith('{"index":')}
    distinct = {json.dumps(json.loads(text), sort_keys=True) for text in texts}
    result = run(tmp_path, "events", "load", file)
    assert result.stdout == f"{len(distinct)} events added, {3921 - len(distinct)} already there, 0 lines rejected\n"
    assert run(tmp_path, "events", "load", file).stdout == "0 events added, 3921 already there, 0 lines rejected\n"
