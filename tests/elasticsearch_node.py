"""A real Elasticsearch for the tests: the user's own cluster, or a node built from published jars.

The environment is read at import, because each test gets its own home folder.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import queue
import re
import shutil
import subprocess
import sys
import threading
import urllib.request
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from bespeak.engines.elastic import ElasticsearchEngine
from bespeak.errors import IndexMissing

RECIPE = Path(__file__).parent / "elasticsearch"
ENVIRONMENT = dict(os.environ)
CACHE = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bespeak-test-node"
PREFIX = f"bespeak-test-{uuid.uuid4().hex[:8]}-"
SKIPPED = (
    "needs a real Elasticsearch: install a JDK 21 or later and Maven, or set BESPEAK_TEST_ELASTICSEARCH to the URL of a"
    " cluster of yours"
)


@pytest.fixture(scope="session")
def elasticsearch_url() -> Iterator[str]:
    """The URL of a cluster. Everything that the tests made there under `PREFIX` is deleted at the end."""
    with contextlib.ExitStack() as ending:
        url = os.environ.get("BESPEAK_TEST_ELASTICSEARCH")
        if not url:
            jdk = find_jdk()
            if jdk is None or not shutil.which("mvn"):
                pytest.skip(SKIPPED)  # a laptop may lack both; `.ci/run` fails where this is skipped
            url = ending.enter_context(running_node(jdk, build_node(jdk)))
        ending.callback(clean, url)
        yield url


@pytest.fixture
def index_name() -> str:
    """A name that no other test uses, and that is cleaned up at the end."""
    return new_index_name()


def new_index_name() -> str:
    return PREFIX + uuid.uuid4().hex[:12]


def clean(url: str) -> None:
    engine = ElasticsearchEngine(url)
    for index in engine.indices():
        if index.startswith(PREFIX):
            with contextlib.suppress(IndexMissing):  # an alias goes with its index
                engine.drop(index)
    engine.close()


def find_jdk() -> Path | None:
    """The first JDK of version 21 or later."""
    javac = shutil.which("javac")
    homes = [os.environ.get("JAVA_HOME"), Path(javac).resolve().parent.parent if javac else None]
    for home in map(Path, filter(None, [*homes, *Path("/usr/lib/jvm").glob("*")])):
        with contextlib.suppress(OSError):
            version = re.search(r'^JAVA_VERSION="(\d+)', (home / "release").read_text(), re.MULTILINE)
            if version and int(version[1]) >= 21 and (home / "bin" / "javac").exists():
                return home
    return None


def build_node(jdk: Path) -> Path:
    """The folder of the node's jars: one per state of the recipe, in the cache, complete once it has its name."""
    sources = sorted(path for path in RECIPE.rglob("*") if path.suffix in (".xml", ".java", ".properties"))
    key = hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()[:16]
    built, making = CACHE / key, CACHE / f"{key}.part"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not built.is_dir():
            shutil.rmtree(making, ignore_errors=True)
            print("building the Elasticsearch node of the tests: about 90 MB are fetched", file=sys.stderr)
            maven = ["mvn", "-B", "-q", "-ntp", "-f", str(RECIPE / "pom.xml"), f"-Dbuild.dir={making}", "package"]
            done = subprocess.run(maven, env=ENVIRONMENT | {"JAVA_HOME": str(jdk)}, capture_output=True, text=True)
            if done.returncode:
                pytest.fail(f"Maven could not build the node: {done.stdout[-1500:]}", pytrace=False)
            making.rename(built)
    return built / "lib"


@contextlib.contextmanager
def running_node(jdk: Path, jars: Path, full_jit: bool = False) -> Iterator[str]:
    """The URL of a node that is up, with its own port and data; `full_jit` is for measurements."""
    jit = [] if full_jit else ["-XX:TieredStopAtLevel=1"]
    command = [
        jdk / "bin" / "java", "-Xms512m", "-Xmx512m", "-XX:+UseSerialGC", *jit,
        "--enable-native-access=ALL-UNNAMED", "-Dorg.elasticsearch.nativeaccess.enableVectorLibrary=false",
        "-Des.nativelibs.path=/nonexistent", "-Dio.netty.noUnsafe=true", "-Dlog4j.shutdownHookEnabled=false",
        "-Dlog4j2.disable.jmx=true", "-cp", f"{jars}/*", "org.elasticsearch.node.TestNode",
    ]  # fmt: skip
    process = subprocess.Popen(
        command, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, start_new_session=True
    )
    try:
        url = ready_url(process)
        with urllib.request.urlopen(f"{url}/_cluster/health?wait_for_status=yellow&timeout=60s", timeout=70) as answer:
            assert not json.load(answer)["timed_out"]
        yield url
    finally:
        process.terminate()
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        assert process.stdout is not None
        process.stdout.close()


def ready_url(process: subprocess.Popen[str]) -> str:
    lines: queue.Queue[str] = queue.Queue()
    assert process.stdout is not None
    threading.Thread(target=lambda: lines.put(process.stdout.readline()), daemon=True).start()
    line = lines.get(timeout=180)
    if not line.startswith("READY "):
        pytest.fail("the Elasticsearch node of the tests did not start", pytrace=False)
    return line.split()[1]
