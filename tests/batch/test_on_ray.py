"""A run on a Ray cluster of two nodes writes what a run on one machine writes, whatever is lost."""

from __future__ import annotations

import importlib.util
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import contextmanager
from pathlib import Path

import pytest
import zstandard

from batch_runs import Runs, asking
from bespeak.batch.output import compress

# Ray has no wheel for every Python and platform that the rest runs on; `.ci/run` fails where this is skipped.
if importlib.util.find_spec("ray") is None:
    pytest.skip("Ray is not installed (extra `ray`)", allow_module_level=True)

from bespeak.batch.storage import Storage
from ray_cluster import ENV, Cluster

pytestmark = pytest.mark.ray
S3 = os.environ.get("BESPEAK_TEST_S3", "")
N_BLOCKS = 12
LINES = [asking(n) if n % 100 else "{" for n in range(256 * N_BLOCKS - 7)]
OUTPUTS = ("out.jsonl", "out.jsonl.rejected")


@pytest.fixture(autouse=True)
def small_chunks():
    """Overrides the fixture: the workers of a cluster do not see it."""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    made = Cluster(tmp_path_factory.mktemp("ray"))
    yield made
    made.close()


@pytest.fixture(scope="module")
def expected(tmp_path_factory):
    """The output of a run on one machine."""
    runs = Runs(tmp_path_factory.mktemp("here"))
    runs.write(LINES)
    state = runs.run()
    return [runs.read(name) for name in OUTPUTS], state


@pytest.fixture
def runs(tmp_path):
    made = Runs(tmp_path)
    made.write(LINES)
    tmp_path.joinpath("data").mkdir()
    return made


@contextmanager
def driven(cluster, folder, kind="noting"):
    """Runs a driver, which does not outlive its test."""
    command = [sys.executable, Path(__file__).parents[1] / "ray_cluster.py", cluster.address, folder, kind]
    with subprocess.Popen(command, env=ENV, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for_parts(process, folder, n_parts):
    """Waits until this many blocks are done."""
    while len(parts(folder)) < n_parts:
        assert process.poll() is None, process.communicate()
        time.sleep(0.02)


def end(process):
    out, stderr = process.communicate(timeout=100)
    assert process.returncode == 0, stderr
    return [line for line in out.splitlines() if line.startswith("done ")]


def parts(folder):
    return list(folder.glob("out.jsonl.parts/????????-????????????????"))


def on(cluster):
    return "--on", "ray", "--ray-address", cluster.address


def command(folder, *arguments):
    given = [
        sys.executable,
        "-m",
        "bespeak_cli",
        "--data-dir",
        "data",
        "rewrite",
        *arguments,
        "--rewriter",
        "last-turn",
    ]
    return subprocess.run(given, cwd=folder, env=ENV, capture_output=True, text=True, check=False, timeout=100)


def rewritten(folder):
    """How often each query was rewritten."""
    return Counter(line.partition(" ")[2] for line in (folder / "log").read_text().splitlines())


def check(runs, expected):
    assert [runs.read(name) for name in OUTPUTS] == expected[0]
    assert runs.names() == ["in.jsonl", "log", "out.jsonl", "out.jsonl.progress", "out.jsonl.rejected"]
    assert not (runs.folder / "out.jsonl.parts").exists()
    lost = set(LINES) - {"{"}
    assert len(rewritten(runs.folder)) == len(lost)


def test_workers_and_the_driver_are_killed_and_nothing_is_lost(cluster, runs, expected):
    """The second run rewrites only the blocks that the first has left."""
    with driven(cluster, runs.folder) as process:
        wait_for_parts(process, runs.folder, 2)
        before = cluster.wait_for_workers(2)
        os.kill(before[0], signal.SIGKILL)
        wait_for_parts(process, runs.folder, 5)
    cluster.wait_for_workers(0)
    there = len(parts(runs.folder))
    assert 5 <= there < N_BLOCKS
    with driven(cluster, runs.folder) as process:
        reports = end(process)
    assert len(reports) == N_BLOCKS - there
    assert int(reports[-1].removeprefix("done ")) == (runs.folder / "in.jsonl").stat().st_size
    check(runs, expected)


def test_the_command_writes_the_same_here_and_there(cluster, runs):
    """Input and output are compressed, and Ray prints nothing to stdout."""
    (runs.folder / "in.jsonl.zst").write_bytes(compress("\n".join(LINES).encode(), "zst"))
    here = command(runs.folder, "in.jsonl.zst", "--output", "here.jsonl.gz")
    there = [command(runs.folder, "in.jsonl.zst", "--output", "there.jsonl.gz", *on(cluster)) for _ in range(2)]
    assert runs.read("there.jsonl.gz") == runs.read("here.jsonl.gz")
    assert runs.read("there.jsonl.gz.rejected") == runs.read("here.jsonl.gz.rejected")
    for done in (here, *there):
        assert (done.returncode, done.stdout) == (0, ""), done.stderr
        assert "3,034 queries in " in done.stderr
        assert "31 lines rejected" in done.stderr


# Object storage needs a server and credentials, which a checkout cannot provide: name yours to run this.
@pytest.mark.skipif(not S3, reason="no object storage (BESPEAK_TEST_S3 holds no URI)")
def test_an_object_storage_is_read_and_written(cluster, runs, expected):
    uri, _, query = S3.partition("?")
    source, out = (f"{uri}{runs.folder}/{name}?{query}" for name in ("in.jsonl", "out.jsonl.zst"))
    Storage(source).write(Storage(source).name, runs.read("in.jsonl"), "")
    done = command(runs.folder, source, "--output", out, *on(cluster))
    assert done.returncode == 0, done.stderr
    storage = Storage(out)
    output = zstandard.ZstdDecompressor().stream_reader(storage.read(storage.name), read_across_frames=True).read()
    assert [output, storage.read(storage.name + ".rejected")] == expected[0]
    assert storage.names(storage.name + ".parts") == set()


def test_a_block_that_kills_every_worker_ends_the_run(cluster, runs):
    with driven(cluster, runs.folder, "deadly") as process:
        _, stderr = process.communicate(timeout=100)
    assert process.returncode == 1
    assert "the cluster could not rewrite all blocks" in stderr


def test_a_lost_node_loses_nothing(cluster, runs, expected):
    with driven(cluster, runs.folder) as process:
        wait_for_parts(process, runs.folder, 2)
        cluster.wait_for_workers(2)
        cluster.lose_node()
        cluster.wait_for_workers(1)
        end(process)
    check(runs, expected)
