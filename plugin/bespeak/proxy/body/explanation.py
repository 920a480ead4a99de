"""Builds the member `bespeak` of an answer, for a search that asks for an explanation."""

from __future__ import annotations

from collections.abc import Iterable

from bespeak.proxy.body.reply import EngineHit
from bespeak.proxy.outcome import Outcome
from bespeak.ranking.rerank import COLUMNS
from bespeak.records import Ranked, Rewrite, Term


def explain_search(
    rewrite: Rewrite, outcome: Outcome, window: int, page: Iterable[tuple[int, EngineHit, Ranked | None]]
) -> dict[str, object]:
    """What was done to a search and to each hit of its page.

    `page` gives each hit's index in the engine's answer, the hit, and the ranked hit if it was ranked.
    """
    return {
        "query": rewrite.query,
        "rewrite": {
            "text": rewrite.text,
            "status": rewrite.status,
            "reason": rewrite.reason,
            "terms": [explain_term(term) for term in rewrite.terms],
        },
        "rerank": outcome.rerank,
        "reason": outcome.reason,
        "window": window,
        "query_id": outcome.query_id,
        "hits": [explain_hit(i, hit, ranked) for i, hit, ranked in page],
    }


def explain_term(term: Term) -> dict[str, str]:
    return {"text": term.text, "source": term.source, "event_id": term.event_id, "evidence": term.evidence}


def explain_hit(i: int, hit: EngineHit, ranked: Ranked | None) -> dict[str, object]:
    """How one hit came to its place; `engine` holds its place and score in the engine's own answer."""
    engine = {"rank": i + 1, "score": hit.score}
    found: dict[str, object] = {"_index": hit.index, "_id": hit.doc_id, "engine": engine}
    if ranked is None:
        return found
    because = [
        {"text": e.text, "column": e.column, "share": round(e.share, 4), "action": e.action, "event_id": e.event_id}
        for e in ranked.evidence
    ]
    scores = {name: round(value, 6) for name, value in zip(COLUMNS, ranked.scores, strict=True)}
    return found | {"score": round(ranked.score, 6), "scores": scores, "because": because}
