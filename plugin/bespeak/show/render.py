"""A result as text, Markdown, HTML or JSON."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from bespeak.engines import VECTOR_FIELD
from bespeak.records import Hit, Ranked, Result, Rewrite
from bespeak.show.reasons import describe_order, describe_rewrite, describe_term, in_words, move_of, why
from bespeak.show.summary import Summary, summarise_all, title_of
from bespeak.show.templating import dumps, fill, json_value

TEMPLATES = {
    "text": "hits.txt.j2",
    "md": "hits.md.j2",
    "html": "hits.html.j2",
    "fragment": "fragment.html.j2",
    "json": "hits.json.j2",
    "explain": "explain.txt.j2",
}
"""Format -> template. `fragment` is `html` without the page around it, as a notebook shows it. No JSON template is
shipped: unless the user has one, the structure itself is written."""

TITLE_CHARS = 200
"""Longer titles are cut."""


def render(result: Result, template: str, templates: Path | None = None, width: int = 80, colour: bool = False) -> str:
    """The result in one of the formats of `TEMPLATES`, or by the template with this file name.

    Templates in the folder `templates` take precedence over the shipped ones. `width` is in cells and matters for text
    alone. Raises UsageError for a template or folder that does not exist, and InputError, with file and line, for a
    template that cannot be read or run.
    """
    name = TEMPLATES.get(template, template)
    shown = as_dict(result)
    if template == "json" and not (templates and (templates / name).is_file()):
        return dumps(shown, indent=2)
    notes = {"rewrite_note": describe_rewrite(result.rewrite), "order_note": describe_order(result)}
    return fill(name, {**shown, **notes}, templates, width, colour)


def render_comparison(
    result: Result, n: int = 5, width: int = 80, colour: bool = False, templates: Path | None = None
) -> str:
    """The engine's own first `n` hits beside the first `n` of the page, with their moves; stacked if too narrow."""
    own = sorted(result.hits.hits, key=lambda hit: hit.rank)[:n]
    rows = {
        "engine": [{"rank": hit.rank, "title": title(hit), "doc_id": hit.doc_id} for hit in own],
        "personal": [
            {"rank": r.rank, "title": title(r.hit), "doc_id": r.hit.doc_id, "moved": move_of(r)}
            for r in result.page[:n]
        ],
    }
    return fill("comparison.txt.j2", rows, templates, width, colour)


def as_dict(result: Result) -> dict[str, Any]:
    """The result as lists, dicts, strings and finite numbers, for JSON and for templates, without the user."""
    summaries = summarise_all([r.hit for r in result.page], result.rewrite.text, result.hits.hits)
    return {
        "query": result.request.query,
        "index": result.request.index,
        "offset": result.request.offset,
        "size": result.request.size,
        "rewrite": rewrite_dict(result.rewrite),
        "rerank": result.rerank,
        "reason": result.reason,
        "weights": list(result.weights) if result.weights else None,
        "notes": [in_words(note) for note in result.notes],
        "total": result.hits.total,
        "took_ms": json_value(result.hits.took_ms),
        "query_id": result.query_id,
        "hits": [hit_dict(r, s, result) for r, s in zip(result.page, summaries, strict=True)],
    }


def rewrite_dict(rewrite: Rewrite) -> dict[str, Any]:
    """The rewrite for JSON and templates; `sources` groups its terms by origin."""
    sources: dict[str, list[str]] = {}
    for term in rewrite.terms:
        sources.setdefault(describe_term(term), []).append(term.text)
    return {
        "text": rewrite.text,
        "changed": rewrite.changed,
        "status": rewrite.status,
        "reason": rewrite.reason,
        "model": rewrite.model,
        "terms": [json_value(asdict(term)) for term in rewrite.terms],
        "sources": [{"terms": terms, "why": origin} for origin, terms in sources.items()],
    }


def hit_dict(ranked: Ranked, summary: Summary, result: Result) -> dict[str, Any]:
    """A hit for JSON and templates. `weighted` are the addends of its score; None without weights."""
    columns = ("lexical", "embedding", "user")
    weights = result.weights
    total = sum(weights) if weights else 0
    weighted = [w * s / total for w, s in zip(weights, ranked.scores, strict=True)] if weights and total else None
    return {
        "rank": ranked.rank,
        "doc_id": ranked.hit.doc_id,
        "title": title(ranked.hit),
        "summary": {"text": summary.text, "marks": [list(span) for span in summary.marks]},
        "why": why(ranked, len(result.hits.hits), result.rewrite.terms),
        "moved": move_of(ranked),
        "engine": {"rank": ranked.hit.rank or None, "score": json_value(ranked.hit.score)},
        "score": json_value(ranked.score),
        "scores": dict(zip(columns, json_value(ranked.scores), strict=True)),
        "weighted": dict(zip(columns, json_value(weighted), strict=True)) if weighted else None,
        "evidence": [json_value(asdict(evidence)) for evidence in ranked.evidence],
        "source": json_value({name: value for name, value in ranked.hit.source.items() if name != VECTOR_FIELD}),
    }


def title(hit: Hit) -> str:
    """The hit's title or else its doc_id, at most `TITLE_CHARS` long."""
    found = title_of(hit.source) or hit.doc_id
    return found if len(found) <= TITLE_CHARS else found[: TITLE_CHARS - 1] + "…"
