"""The report of a run, as text or as an HTML page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from bespeak.batch.journal import RunState
from bespeak.errors import InputError
from bespeak.show.reasons import in_words
from bespeak.show.templating import fill

STATUSES = {
    "full": "rewritten, or found to need nothing",
    "gated": "left as typed by the gate",
    "dropped": "as typed: the rewrite finds nothing useful",
    "unusable": "as typed: the rewriter wrote no usable rewrite",
    "failed": "as typed: the rewriter failed",
    "late": "as typed: the rewriter took too long",
    "off": "as typed: no rewriter",
}
SOURCES = {
    "turn": "earlier in the session",
    "statement": "what the user said about themselves",
    "query": "the query",
    "function": "joining words",
    "free": "the model's own",
}


def render_report(state: RunState, facts: Mapping[str, str], kind: Literal["txt", "html"], width: int = 80) -> str:
    """The report. `facts` are what the run was given, such as input, output and model, by name."""
    return fill(f"batch.{kind}.j2", report_dict(state, facts), None, width, False)


def write_report(path: Path, state: RunState, facts: Mapping[str, str]) -> None:
    """Writes the report as an HTML page. Raises InputError if the file cannot be written."""
    try:
        path.write_text(render_report(state, facts, "html") + "\n", "utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): give another file with --report") from error


def report_dict(state: RunState, facts: Mapping[str, str]) -> dict[str, Any]:
    done = state.tally
    n_queries = max(done.queries, 1)
    return {
        "facts": [{"name": name, "value": value} for name, value in facts.items()],
        "lines": f"{state.place.line_no:,}",
        "queries": f"{done.queries:,}",
        "changed": f"{done.changed:,}",
        "from_cache": f"{done.from_cache:,}",
        "statuses": _rows(done.statuses, STATUSES, done.queries),
        "gates": _rows(done.gates, {gate: in_words(gate) for gate in done.gates}, done.queries),
        "sources": _rows(done.sources, SOURCES, done.terms),
        "terms_a_query": f"{done.terms / n_queries:.2f}",
        "time": clock(state.seconds),
        "queries_a_second": f"{done.queries / state.seconds:,.1f}" if state.seconds else "0.0",
        "ms_a_query": f"{done.work_s * 1000 / n_queries:,.1f}",
        "slowest": [
            {"lines": f"{slow.first_no:,} to {slow.last_no:,}", "ms": f"{slow.ms_a_query:,.1f}"}
            for slow in done.slowest
        ],
        "n_rejected": f"{done.lines_rejected:,}",
        "rejected": _rows(done.rejected, {}, done.lines_rejected),
    }


def brief(state: RunState, first: RunState) -> str:
    """Counts and rate in one line. `first` is the state after the first chunk of this run."""
    done, queries = state.tally, max(state.tally.queries, 1)
    parts = [f"{done.queries:,} queries"]
    if state.seconds > first.seconds:
        parts.append(f"{(done.queries - first.tally.queries) / (state.seconds - first.seconds):,.1f}/s")
    parts += [f"{done.from_cache / queries:.0%} cached", f"{done.statuses.get('gated', 0) / queries:.0%} gated"]
    if done.lines_rejected:
        parts.append(f"{done.lines_rejected:,} rejected")
    return ", ".join(parts)


def _rows(counts: Mapping[str, int], words: Mapping[str, str], total: int) -> list[dict[str, str]]:
    """The most frequent first."""
    return [
        {"name": name, "count": f"{count:,}", "share": f"{count / total:.1%}", "words": words.get(name, "")}
        for name, count in sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    ]


def clock(seconds: float) -> str:
    """Minutes and seconds, with hours if there are any.

    >>> clock(59.96), clock(3725)
    ('1:00', '1:02:05')
    """
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{left:02}" if hours else f"{minutes}:{left:02}"
