"""One search of a client's: what it asks, whether it can be personalised, what the engine is asked instead, and the
page of the answer. Pure; the client's query is never touched in `boost` mode.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple, TypeAlias

from bespeak.engines.dsl import MAX_WINDOW
from bespeak.errors import InputError
from bespeak.proxy.body import splice
from bespeak.proxy.body.query import Typed, find_typed, with_alternatives, words_query
from bespeak.records import Clause, UserKey

Params: TypeAlias = tuple[tuple[str, str], ...]

RANK_WINDOW = 10
"""`rank_window_size` of a retriever, and `window_size` of a rescorer, that names none."""

PINNED = 1e30
"""A `pinned` query gives its documents scores above this: what an operator pinned stays where it is."""

OURS = ("ubi", "bespeak")
"""Members of the body's `ext` that are for Bespeak, and are taken out before the engine sees it."""


@dataclass(frozen=True, slots=True)
class Search:
    """A search as the client sent it. `text` is its body, `{}` where it had none, without what is for Bespeak."""

    index: str  # as in the path or the header line; "" for all
    params: Params  # of the URL, or of the header line
    text: str
    body: Mapping[str, Any]
    ubi: Mapping[str, Any] = field(default_factory=dict)  # the body's ext.ubi
    bespeak: Mapping[str, Any] = field(default_factory=dict)  # the body's ext.bespeak
    edited: bool = False  # what was for Bespeak was taken out of the body

    def get(self, name: str, default: Any = None) -> Any:
        """A parameter of the URL goes before the body's member of the same name, as in Elasticsearch."""
        return dict(self.params).get(name, self.body.get(name, default))

    @property
    def offset(self) -> int:
        return _whole(self.get("from", 0), "from")

    @property
    def size(self) -> int:
        return _whole(self.get("size", 10), "size")

    @property
    def mode(self) -> Literal["boost", "recall"]:
        return "recall" if self.bespeak.get("mode") == "recall" else "boost"

    @property
    def explained(self) -> bool:
        return self.bespeak.get("explain") is True

    def digest(self, user: UserKey, session_id: str) -> bytes:
        """Equal for the pages of one search of one session."""
        params = [pair for pair in self.params if pair[0] not in ("from", "size")]
        body = {name: value for name, value in self.body.items() if name not in ("from", "size")}
        asked = [*user, session_id, self.index, sorted(params), body, dict(self.bespeak)]
        content = json.dumps(asked, sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).digest()


def read_search(index: str, params: Params, text: str) -> Search:
    """Raises InputError where the body is no JSON object, or `from` or `size` no number that the engine takes."""
    given = dict(params)
    if "source" in given and not text.strip():
        text = given["source"]
        params = tuple(pair for pair in params if pair[0] not in ("source", "source_content_type"))
    text = text if text.strip() else "{}"
    members, end = splice.read_object(text)
    if text[end:].strip():
        raise InputError("more than one JSON object in the body of a search")
    body = {name: span.value for name, span in members}
    extension = body.get("ext")
    ours = {name: extension.get(name) for name in OURS} if isinstance(extension, dict) else {}
    ubi, bespeak = (value if isinstance(value, dict) else {} for value in (ours.get("ubi"), ours.get("bespeak")))
    if any(value is not None for value in ours.values()):
        text, body = without_ours(text, dict(members)["ext"].start, body)
        search = Search(index, params, text, body, ubi, bespeak, edited=True)
    else:
        search = Search(index, params, text, body)
    for name in ("from", "size"):
        _whole(search.get(name, 0), name)
    return search


def without_ours(text: str, at: int, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The body without Bespeak's members of `ext`, and without an `ext` that they leave empty."""
    left = {name: value for name, value in body["ext"].items() if name not in OURS}
    kept = {name: value for name, value in body.items() if name != "ext"}
    if not left:
        return splice.edit_object(text, 0, {}, ["ext"]), kept
    return splice.edit_object(text, 0, {"ext": splice.edit_object(text, at, {}, OURS)}), kept | {"ext": left}


def _whole(value: Any, name: str) -> int:
    """As Elasticsearch reads it: a number's fraction is cut off, a text is a whole number. Raises InputError."""
    if value is None:
        raise InputError(f"{name} is null")
    if isinstance(value, str) and not re.fullmatch(r"\+?\d{1,10}", value, re.ASCII):
        raise InputError(f"{name} is no whole number")
    if isinstance(value, bool) or not isinstance(value, int | float | str) or not -1 < float(value) < 2**31:
        raise InputError(f"{name} is no whole number from 0 on")
    return int(value)


def decline(search: Search) -> str:
    """Why the order of this search's hits is not Bespeak's to change; "" where it may be."""
    if search.get("scroll") is not None:
        return "scroll"
    if search.size == 0:
        return "size_0"
    if search.body.get("search_after") is not None:
        return "search_after"
    if search.body.get("slice") is not None:
        return "slice"
    if not sorted_by_score(search.get("sort"), pit="pit" in search.body):
        return "sort"
    if any(not sorted_by_score(inner.get("sort"), pit=False) for inner in standard_retrievers(search.body)):
        return "sort"
    if any(inner.get("search_after") is not None for inner in standard_retrievers(search.body)):
        return "search_after"
    for name in ("explain", "profile"):  # somebody looks at how the engine came to its order
        if search.get(name) in (True, "true", ""):
            return name
    if search.get("stored_fields") in ("_none_", ["_none_"]):
        return "no_ids"
    if dict(search.params).get("format", "json") != "json":
        return "format"
    return ""


def sorted_by_score(sort: Any, pit: bool) -> bool:
    """No sort, or one by nothing but the score; with a point in time even that is for `search_after`."""
    if sort is None or sort == []:
        return True
    keys = sort.split(",") if isinstance(sort, str) else sort if isinstance(sort, list) else [sort]
    # Several, or with a point in time even the score by itself, give each hit a key for `search_after`.
    return (
        not pit
        and len(keys) == 1
        and keys[0] in ("_score", "_score:desc", {"_score": "desc"}, {"_score": {"order": "desc"}}, {"_score": {}})
    )


def typed_text(search: Search, path: str = "") -> Typed:
    """What the user typed, wherever it stands; `q` of the URL is a query of its own."""
    user_query = search.ubi.get("user_query")
    return find_typed(queried(search), user_query if isinstance(user_query, str) else "", path)


def queried(search: Search) -> Mapping[str, Any]:
    """The body as it is searched: `q` of the URL goes before its query."""
    given = dict(search.params)
    if "q" not in given:
        return search.body
    options = {"default_field": given.get("df"), "default_operator": given.get("default_operator"),
               "analyzer": given.get("analyzer"), "lenient": given.get("lenient")}  # fmt: skip
    query = {"query": given["q"]} | {name: value for name, value in options.items() if value}
    return {**search.body, "query": {"query_string": query}}


def these(hits: Sequence[Found]) -> dict[str, Any]:
    """A query for these hits and no others: an id may stand in several indices."""
    found: dict[str, list[str]] = {}
    for hit in hits:
        found.setdefault(hit.index, []).append(hit.doc_id)
    parts = [
        {"bool": {"filter": [{"term": {"_index": index}}, {"ids": {"values": doc_ids}}]}}
        for index, doc_ids in found.items()
    ]
    return parts[0] if len(parts) == 1 else {"bool": {"should": parts, "minimum_should_match": 1}}


class Asked(NamedTuple):
    """What the engine is asked in place of a search, and what of its answer is to be reranked."""

    params: Params
    text: str
    window: int  # the first hits of the answer; 0: none, the answer is the page itself


def widen(search: Search, window: int, typed: Typed, clauses: Sequence[Clause], preference: str) -> Asked:
    """The search with its whole window in place of one page.

    In `boost` mode the client's query stays as it is, so that the matching set, and all that is counted or cut by it,
    is the client's; in `recall` mode `clauses` (the rewrite's words) stand beside each text that the user typed.
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
        found = with_alternatives(queried(search), typed, clauses)
        changes |= {name: json.dumps(value) for name, value in found.items() if value != search.body.get(name)}
    dropped = ["from", "size", "filter_path", "seq_no_primary_term"]
    if "query" in changes:
        dropped += ["q", "df", "default_operator", "analyzer", "lenient"]
    params = tuple(pair for pair in search.params if pair[0] not in dropped)
    if "pit" not in search.body and "preference" not in dict(params):
        params = (*params, ("preference", preference))  # all pages from the same copies of the shards
    return Asked(params, splice.edit_object(search.text, 0, changes), window if inside else 0)


def holds_inner_hits(part: Any) -> bool:
    """Elasticsearch would write versions into the hits inside hits and aggregations too, where none are expected."""
    if isinstance(part, list):
        return any(map(holds_inner_hits, part))
    if not isinstance(part, dict):
        return False
    return "inner_hits" in part or "top_hits" in part or any(map(holds_inner_hits, part.values()))


def words_body(search: Search, typed: Typed, clauses: Sequence[Clause], hits: Sequence[Found]) -> dict[str, Any] | None:
    """A search for nothing but what `clauses` score in the hits, by the fields that the client's query searches.

    None where there is nothing to ask. In `recall` mode the hits' own scores hold it already.
    """
    words = words_query(typed, clauses) if clauses and search.mode == "boost" else None
    if words is None or not hits:
        return None
    kept = {name: search.body[name] for name in ("pit", "runtime_mappings") if name in search.body}
    return {"query": {"bool": {"must": [words], "filter": [these(hits)]}}, "size": len(hits), "_source": False} | kept


def most_hits(search: Search) -> int:
    """How many hits may be asked without another answer: a compound retriever ranks only its own window, and beyond
    that of a rescorer the shards' hits have scores of another kind.
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


def standard_retrievers(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the body's retriever says where it is a `standard` one, of which hits come as they are."""
    found = body.get("retriever")
    inner = found.get("standard") if isinstance(found, dict) else None
    return [inner] if isinstance(inner, dict) else []


def grows_with_size(search: Search) -> bool:
    """Does it find other hits when more are asked? So does `knn` that does not say how many, what is turned into one,
    and a search that ends early: its first page is then all that can be reranked.
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


@dataclass(frozen=True, slots=True)
class Found:
    """A hit of the engine's answer with its place in the text of it."""

    span: splice.Span
    index: str
    doc_id: str
    version: str  # changes with every write of the document; "" where it was not asked for
    score: float
    source: Mapping[str, Any]
    noted: Mapping[str, Any] = field(default_factory=dict)  # what its impression tells of how it came to its place

    @property
    def pinned(self) -> bool:
        return self.score > PINNED


@dataclass(frozen=True, slots=True)
class Reply:
    """An engine's answer: its text, where its array of hits stands, and the hits."""

    text: str
    start: int
    end: int
    hits: tuple[Found, ...]


IN_ANSWER = {"hits": splice.members({"hits": splice.elements})}


def read_reply(text: str) -> Reply:
    """Raises InputError for what is no answer to a search whose hits have scores and ids."""
    outer = dict(splice.read_object(text, 0, IN_ANSWER)[0])
    inner = outer["hits"].value if "hits" in outer else {}
    if "hits" not in inner:
        raise InputError("the engine's answer holds no list of hits")
    found = inner["hits"]
    return Reply(text, found.start, found.end, tuple(_found(span) for span in found.value))


def _found(span: splice.Span) -> Found:
    hit = span.value
    try:
        source = hit.get("_source")
        source = source if isinstance(source, dict) else {}
        return Found(span, hit["_index"], hit["_id"], version_of(hit), float(hit["_score"]), source)
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise InputError("a hit of the engine's answer has no index, id or score") from error


def version_of(hit: Mapping[str, Any]) -> str:
    """Changes with every write of the document; "" where it was not asked for."""
    return f"{hit['_primary_term']}.{hit['_seq_no']}" if "_seq_no" in hit and "_primary_term" in hit else ""


def write_page(reply: Reply, order: Sequence[int], search: Search, added: Mapping[str, object]) -> str:
    """The answer with the client's page of the hits in this order, and further members at its end.

    `order` holds indices of `reply.hits`. The scores stay in the engine's order, so that they never rise down the
    page: the k-th hit shows the k-th best score.
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
    """Members of our own, at the end of an answer's object."""
    if not added:
        return text
    end = text.rindex("}")
    return (
        text[:end] + "".join(f",{json.dumps(name)}:{json.dumps(value)}" for name, value in added.items()) + text[end:]
    )
