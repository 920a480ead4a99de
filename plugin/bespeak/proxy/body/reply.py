"""The engine's answer to a search, and the client's page of it."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from bespeak.errors import InputError
from bespeak.proxy.body import splice
from bespeak.proxy.body.search import Search

PINNED = 1e30
"""A `pinned` query gives its documents scores above this; what an operator pinned keeps its place."""


@dataclass(frozen=True, slots=True)
class EngineHit:
    """A hit of the engine's answer, and the place of its text."""

    span: splice.Span
    index: str
    doc_id: str
    version: str  # changes with every write of the document; "" if unknown
    score: float
    source: Mapping[str, Any]
    noted: Mapping[str, Any] = field(default_factory=dict)  # details for the event of its impression

    @property
    def pinned(self) -> bool:
        return self.score > PINNED


@dataclass(frozen=True, slots=True)
class Reply:
    """An engine's answer: its text, the place of its array of hits (`text[start:end]`), and the hits."""

    text: str
    start: int
    end: int
    hits: tuple[EngineHit, ...]


IN_ANSWER = {"hits": splice.members({"hits": splice.elements})}


def read_reply(text: str) -> Reply:
    """Raises InputError unless it is the answer to a search, and its hits have scores and ids."""
    outer = dict(splice.read_members(text, 0, IN_ANSWER)[0])
    inner = outer["hits"].value if "hits" in outer else {}
    if "hits" not in inner:
        raise InputError("the engine's answer has no list of hits")
    found = inner["hits"]
    return Reply(text, found.start, found.end, tuple(_found(span) for span in found.value))


def _found(span: splice.Span) -> EngineHit:
    hit = span.value
    try:
        source = hit.get("_source")
        source = source if isinstance(source, dict) else {}
        return EngineHit(span, hit["_index"], hit["_id"], version_of(hit), float(hit["_score"]), source)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError("a hit of the engine's answer has no index, id or score") from error


def version_of(hit: Mapping[str, Any]) -> str:
    """A text that changes with every write of the document; "" if the engine was not asked for it."""
    return f"{hit['_primary_term']}.{hit['_seq_no']}" if "_seq_no" in hit and "_primary_term" in hit else ""


def write_page(reply: Reply, order: Sequence[int], search: Search, added: Mapping[str, object]) -> str:
    """The answer with the client's page of the hits in this order, and the members `added` at its end.

    `order` holds indices of `reply.hits`. Scores stay in the engine's order, so they never rise down the page: the k-th
    hit shows the k-th best score.
    """
    scores = sorted((hit.score for hit in reply.hits), reverse=True)
    shown = range(search.offset, min(search.offset + search.size, len(order)))
    dropped = () if search.get("seq_no_primary_term") in (True, "true", "") else ("_seq_no", "_primary_term")
    page = [
        splice.edit_read(reply.text, reply.hits[order[k]].span, {"_score": json.dumps(scores[k])}, dropped)
        for k in shown
    ]
    text = splice.replace(reply.text, [(reply.start, reply.end, f"[{','.join(page)}]")])
    return add_members(text, added)


def add_members(text: str, added: Mapping[str, object]) -> str:
    """The answer with further members at the end of its object."""
    if not added:
        return text
    end = text.rindex("}")
    return (
        text[:end] + "".join(f",{json.dumps(name)}:{json.dumps(value)}" for name, value in added.items()) + text[end:]
    )
