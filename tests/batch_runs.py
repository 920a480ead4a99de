"""A small input, and runs of it in this process."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from bespeak.batch.output import packing_of
from bespeak.batch.run import Job, report_nothing, rewrite_file
from bespeak.batch.work import Tools
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.rewriting.rewriter import LastTurn


def asking(n, **more):
    """A line whose rewrite takes words of its own history."""
    history = [{"query": f"red hats of kind {n % 7}", "response": "A Borsalino costs 300 euros."}]
    return json.dumps({"id": f"q{n}", "query": f"how much is it {n}?", "history": history} | more)


INPUT = [*(asking(n) for n in range(12)), "{", "", asking(12), '{"query": "alone"}', asking(13), "[]", asking(14)]
"""16 queries, two lines that are rejected and an empty one."""


def make_tools(data: Path, rewriter: Any = LastTurn, context: Any = None, **more: Any) -> Tools:
    return Tools(rewriter(), context, SqliteStore(data / "bespeak.db"), **more)


@dataclass
class Runs:
    """Runs of `bespeak.batch` in one folder."""

    folder: Path

    def job(self, source="in.jsonl", output="out.jsonl", **more):
        given = {name: more.pop(name) for name in ("format", "strict", "n_workers", "begun_with") if name in more}
        job = Job(self.folder / source, self.folder / output, {"model": "last-turn 1"})
        self.folder.joinpath("data").mkdir(exist_ok=True)
        packing = packing_of(output)
        strict = given.get("strict", False)
        return replace(job, **given), partial(make_tools, self.folder / "data", packing=packing, strict=strict, **more)

    def run(self, *names, report=report_nothing, **more):
        job, open_tools = self.job(*names, **more)
        return rewrite_file(job, open_tools, report)

    def begin(self, n_steps, *names, **more):
        """Interrupts a run after `n_steps` chunks."""
        left = iter(range(n_steps - 1))

        def report(_state, _read_bytes):
            if next(left, None) is None:
                raise Cut

        with pytest.raises(Cut):
            self.run(*names, report=report, **more)

    def read(self, name="out.jsonl"):
        path = self.folder / name
        return path.read_bytes() if path.exists() else None

    def write(self, content, name="in.jsonl"):
        (self.folder / name).write_bytes("\n".join(content).encode() if isinstance(content, list) else content)

    def names(self):
        return sorted(path.name for path in self.folder.iterdir() if path.is_file())


class Cut(Exception):
    pass
