"""Widens a search: the engine is asked for the whole window instead of one page, and for the words of a rewrite."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from bespeak.proxy.body import splice
from bespeak.proxy.body.query import Typed, with_alternatives, words_query
from bespeak.proxy.body.reply import EngineHit
from bespeak.proxy.body.search import Params, Search, queried
from bespeak.records import Clause
from bespeak.settings import MAX_WINDOW

RANK_WINDOW = 10
"""The default `rank_window_size` of a retriever, and `window_size` of a rescorer."""


class WidenedSearch(NamedTuple):
    """The request that replaces a search, and how many of its hits to rerank."""

    params: Params
    text: str
    window: int  # how many first hits to rerank; 0 if the answer is the page itself


def widen(search: Search, window: int, typed: Typed, clauses: Sequence[Clause], preference: str) -> WidenedSearch:
    """The search for its whole window instead of one page.

    In `boost` mode the client's query stays as it is, so the matching set and all that depends on it is the client's.
    In `recall` mode `clauses`, the words of the rewrite, are alternatives to each text that the user typed.
    """
    offset, size = search.offset, search.size
    window = min(window, most_hits(search))
    inside = offset < window
    if grows_with_size(search):
        window, inside = min(window, size), not offset
    changes = {"from": str(0 if inside else offset), "size": str(max(window, offset + size) if inside else size)}
    if inside and not holds_inner_hits(search.body):
        changes["seq_no_primary_term"] = "true"
    if clauses and search.mode == "recall":
        body = with_alternatives(queried(search), typed, clauses)
        changes |= {name: json.dumps(value) for name, value in body.items() if value != search.body.get(name)}
    params = _params_beside(search, replaces_query="query" in changes, preference=preference)
    return WidenedSearch(params, splice.edit_object(search.text, 0, changes), window if inside else 0)


def _params_beside(search: Search, replaces_query: bool, preference: str) -> Params:
    """The client's parameters that do not contradict the widened body."""
    dropped = ["from", "size", "filter_path", "seq_no_primary_term"]
    if replaces_query:
        dropped += ["q", "df", "default_operator", "analyzer", "lenient"]
    params = tuple(pair for pair in search.params if pair[0] not in dropped)
    if "pit" in search.body or "preference" in dict(params):
        return params
    return (*params, ("preference", preference))  # all pages come from the same copies of the shards


def words_body(
    search: Search, typed: Typed, clauses: Sequence[Clause], hits: Sequence[EngineHit]
) -> dict[str, Any] | None:
    """A search that only scores `clauses` in the hits, on the fields that the client's query searches.

    None if there is nothing to ask. In `recall` mode the hits' own scores include it already.
    """
    words = words_query(typed, clauses) if clauses and search.mode == "boost" else None
    if words is None or not hits:
        return None
    kept = {name: search.body[name] for name in ("pit", "runtime_mappings") if name in search.body}
    return {
        "query": {"bool": {"must": [words], "filter": [hits_query(hits)]}},
        "size": len(hits),
        "_source": False,
    } | kept


def hits_query(hits: Sequence[EngineHit]) -> dict[str, Any]:
    """A query for these hits and no others, though their ids may occur in several indices."""
    found: dict[str, list[str]] = {}
    for hit in hits:
        found.setdefault(hit.index, []).append(hit.doc_id)
    parts = [
        {"bool": {"filter": [{"term": {"_index": index}}, {"ids": {"values": doc_ids}}]}}
        for index, doc_ids in found.items()
    ]
    return parts[0] if len(parts) == 1 else {"bool": {"should": parts, "minimum_should_match": 1}}


def most_hits(search: Search) -> int:
    """How many hits can be asked for without changing the answer: a compound retriever ranks only its own window, and
    hits beyond the window of a rescorer have scores of another kind.
    """
    retriever, rescorers = search.body.get("retriever"), search.body.get("rescore")
    found = MAX_WINDOW if rescorers is None else _window_size("rescorer", {"rescore": rescorers})
    while isinstance(retriever, dict) and len(retriever) == 1:
        kind, inner = next(iter(retriever.items()))
        if kind in ("standard", "knn") or not isinstance(inner, dict):
            break
        found = min(found, _window_size(kind, inner))
        retriever = inner.get("retriever")
    return found


def _window_size(kind: str, inner: Mapping[str, Any]) -> int:
    given = [inner.get("rank_window_size", RANK_WINDOW)]
    if kind == "rescorer":
        given = [part.get("window_size", RANK_WINDOW) for part in _each(inner.get("rescore")) if isinstance(part, dict)]
    return min((n for n in given if isinstance(n, int) and n > 0), default=RANK_WINDOW)


def grows_with_size(search: Search) -> bool:
    """Whether it finds different hits when more are asked for, so that only its first page can be reranked.

    This holds for `knn` without a number of hits, for what becomes such a `knn`, and for a search that ends early.
    """
    body = search.body
    if search.get("terminate_after") not in (None, 0, "0"):
        return True
    if any(isinstance(knn, dict) and "k" not in knn for knn in _each(body.get("knn"))):
        return True
    return any(_grows(body.get(name)) for name in ("query", "retriever"))


def _grows(part: Any) -> bool:
    if isinstance(part, list):
        return any(map(_grows, part))
    if not isinstance(part, dict):
        return False
    knn, semantic = part.get("knn"), part.get("semantic")
    if isinstance(knn, dict) and not {"k", "num_candidates"} <= set(knn):
        return True
    return (isinstance(semantic, dict) and "query" in semantic) or any(map(_grows, part.values()))


def _each(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def holds_inner_hits(part: Any) -> bool:
    """Whether it asks for hits inside hits or aggregations: they would get versions, where none are expected."""
    if isinstance(part, list):
        return any(map(holds_inner_hits, part))
    if not isinstance(part, dict):
        return False
    return "inner_hits" in part or "top_hits" in part or any(map(holds_inner_hits, part.values()))
