"""A Ray cluster of two nodes with one CPU each, on loopback addresses, and a driver that tests watch and interrupt."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

from batch_runs import make_tools
from bespeak.rewriting.rewriter import LastTurn

QUICK = {"RAY_health_check_initial_delay_ms": "500", "RAY_health_check_period_ms": "500",
         "RAY_health_check_failure_threshold": "4"}  # fmt: skip
ENV = {**os.environ, **QUICK, "RAY_USAGE_STATS_ENABLED": "0", "RAY_DATA_DISABLE_PROGRESS_BARS": "1",
       "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}  # fmt: skip


class Cluster:
    def __init__(self, folder: Path) -> None:
        self._folder = folder
        with socket.socket() as free:
            free.bind(("127.0.0.2", 0))
            self.address = f"127.0.0.2:{free.getsockname()[1]}"
        self._log = (folder / "log").open("wb")
        self._nodes: list[subprocess.Popen[bytes]] = []
        try:
            port = self.address.partition(":")[2]
            self._start("--head", f"--port={port}", "--node-ip-address=127.0.0.2", "--include-dashboard=false")
            self._wait_for(1)
            self._start(f"--address={self.address}", "--node-ip-address=127.0.0.3")
            self._wait_for(2)
        except BaseException:
            self.close()
            raise

    def workers(self) -> list[int]:
        """Process ids of the actors that rewrite."""
        found = []
        for entry in Path("/proc").iterdir():
            with suppress(OSError, ValueError):
                pid = int(entry.name)
                if (entry / "cmdline").read_bytes().startswith(b"ray::MapWorker"):
                    found += [pid] * (os.getsid(pid) in [node.pid for node in self._nodes])
        return sorted(found)

    def wait_for_workers(self, n_workers: int) -> list[int]:
        """Waits, because Ray takes its time to start workers, and to end those of a driver that is gone."""
        for _ in range(600):
            if len(found := self.workers()) == n_workers:
                return found
            time.sleep(0.1)
        raise AssertionError(f"{self.workers()}, not {n_workers} of them")

    def lose_node(self) -> None:
        """Kills the second node."""
        _end(self._nodes[1])

    def close(self) -> None:
        for node in self._nodes:
            _end(node)
        self._log.close()

    def _start(self, *options: str) -> None:
        given = ("--block", "--num-cpus=1", "--object-store-memory=100000000", f"--temp-dir={self._folder}")
        command = [sys.executable, "-m", "ray.scripts.scripts", "start", *given, *options]
        self._nodes.append(
            subprocess.Popen(command, env=ENV, start_new_session=True, stdout=self._log, stderr=subprocess.STDOUT)
        )

    def _wait_for(self, n_nodes: int) -> None:
        """Waits until a driver sees this many nodes."""
        code = f"import ray; ray.init('{self.address}', log_to_driver=False); print(len(ray.nodes()))"
        for _ in range(30):
            done = subprocess.run([sys.executable, "-c", code], env=ENV, capture_output=True, text=True, check=False)
            if done.stdout.strip() == str(n_nodes):
                return
            assert all(node.poll() is None for node in self._nodes), (self._folder / "log").read_text()
            time.sleep(0.2)
        raise AssertionError(done.stderr)


def _end(node: subprocess.Popen[bytes]) -> None:
    """Kills all processes of the node's session, as if the machine were gone."""
    for entry in Path("/proc").iterdir():
        with suppress(OSError, ValueError):
            if os.getsid(int(entry.name)) == node.pid:
                os.kill(int(entry.name), signal.SIGKILL)
    node.wait()


class Noting(LastTurn):
    """A slow rewriter that records each query and process in a file."""

    def __init__(self, log: Path, wait_s: float) -> None:
        super().__init__()
        self._log, self._wait_s = log, wait_s

    def rewrite(self, query, profile, budget_ms=None):
        time.sleep(self._wait_s)
        with self._log.open("a") as log:
            log.write(f"{os.getpid()} {query}\n")
        return super().rewrite(query, profile, budget_ms)


class Deadly(LastTurn):
    """A rewriter that kills its process."""

    def rewrite(self, query, profile, budget_ms=None):
        os._exit(1)


def noting_tools(folder: Path, wait_s: float):
    return partial(make_tools, folder / "data", rewriter=partial(Noting, folder / "log", wait_s))


def main(address: str, folder: Path, kind: str) -> None:
    """Runs with blocks of one chunk each, so that there are many blocks."""
    from bespeak.batch import blocks, on_ray

    blocks.BLOCK_CHUNKS = 1
    job = on_ray.RayJob(str(folder / "in.jsonl"), str(folder / "out.jsonl"), {"model": "last-turn 1"}, address=address)
    open_tools = noting_tools(folder, 0.003)
    if kind == "deadly":
        on_ray.RETRIES = 2
        open_tools = partial(make_tools, folder / "data", rewriter=Deadly)
    on_ray.rewrite_on_ray(job, open_tools, lambda _, read_bytes: print("done", read_bytes, flush=True))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]), sys.argv[3])
