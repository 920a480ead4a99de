"""The texts that a search body asks for: a walk through every form of query that is known here.

Pure functions over parsed JSON: nothing is changed in place and nothing raises, whatever a body holds. A query of an
unknown kind is opaque: nothing in it is read or changed.

The filters of `knn`, of retrievers and of score functions, `must_not`, `boosting.negative`, `post_filter`, rescorers
and aggregations are never read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from types import MappingProxyType
from typing import Any, TypeGuard

from bespeak.proxy.body.paths import Path, each, get

MAX_STEPS = 200
"""Anything deeper is opaque; Elasticsearch refuses queries that are nested more than 30 deep."""
MAX_LEAVES = 256
"""A body with more texts was written by a program, and none of them is what the user typed."""

CHILDREN: Mapping[str, tuple[tuple[str, bool], ...]] = {
    "bool": (("must", True), ("should", True), ("filter", False)),
    "dis_max": (("queries", True),),
    "boosting": (("positive", True),),
    "constant_score": (("filter", False),),
    "function_score": (("query", True),),
    "script_score": (("query", True),),
    "nested": (("query", True),),
    "has_child": (("query", True),),
    "has_parent": (("query", True),),
    "pinned": (("organic", True),),
    "rule": (("organic", True),),
    "rule_query": (("organic", True),),
}
"""The members of a compound query that hold queries (one or a list), and whether these add to the score."""

JOINS: Mapping[str, tuple[str, ...]] = {
    "nested": ("path", "score_mode", "ignore_unmapped"),
    "has_child": ("type", "score_mode", "ignore_unmapped"),
    "has_parent": ("parent_type", "score", "ignore_unmapped"),
}
"""Queries whose inner fields can only be searched through them, and the members that another such query needs."""

BY_FIELD = ("match", "match_phrase", "match_phrase_prefix", "match_bool_prefix")
KEPT: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(BY_FIELD, ("analyzer",)),
    "intervals": ("analyzer",),
    "multi_match": ("analyzer", "tie_breaker"),
    "query_string": ("analyzer", "tie_breaker"),
    "simple_query_string": ("analyzer",),
    "combined_fields": (),
}
"""The options that other words on the same fields keep. Leaves of other kinds are not searched by words."""

RETRIEVER_TEXTS = {"rrf": "query", "linear": "query", "text_similarity_reranker": "inference_text"}
"""The member of a compound retriever that holds a text of its own."""

OPTIONAL_TYPES = {"most_fields": "most_fields", "cross_fields": "cross_fields", "bool_prefix": "most_fields"}
"""How a `multi_match` of each type scores words that may be missing; other types score as `best_fields`."""


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A join around a leaf. `members` are those that the same join around other words needs."""

    path: Path  # of the query object, `{"nested": {…}}`
    kind: str
    members: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Place:
    """The place of a query in a body, and its boosts and joins there."""

    path: Path = ()  # of the query object, `{"match": {…}}`
    scoring: bool = True
    boost: float = 1.0  # product of the boosts of the queries around it
    wrappers: tuple[Wrapper, ...] = ()  # outermost first

    def at(self, *steps: str | int) -> Place:
        return replace(self, path=self.path + steps)


@dataclass(frozen=True, slots=True)
class Leaf:
    """A text in a body, and how it is searched."""

    place: Place
    text_path: Path
    kind: str
    text: str
    kept: Mapping[str, Any] = field(default_factory=dict)  # analyzer, tie_breaker
    boost: float = 1.0
    fields: tuple[str, ...] = ()  # with their ^boosts; (): the index's default, or none at all
    type: str = "best_fields"  # of other words on the same fields
    in_order: bool = False  # the words must be in this order

    @property
    def path(self) -> Path:
        return self.place.path

    @property
    def scoring(self) -> bool:
        return self.place.scoring

    @property
    def wrappers(self) -> tuple[Wrapper, ...]:
        return self.place.wrappers

    def is_at(self, pattern: str) -> bool:
        """Whether a dotted path leads to this text, or to a part of the body around it. `*` is any one step."""
        own = ".".join(map(str, self.text_path)).split(".")
        wanted = pattern.split(".")
        return len(wanted) <= len(own) and all(w in ("*", o) for w, o in zip(wanted, own, strict=False))


def find_leaves(body: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """Every text that the body searches for, in the order of the body; at most `MAX_LEAVES` + 1."""
    return tuple(islice(_body(body), MAX_LEAVES + 1))


def _body(body: object) -> Iterator[Leaf]:
    yield from _queries(get(body, ("query",)), Place(("query",)))
    for steps, knn in each(get(body, ("knn",))):
        yield from _knn(knn, Place(("knn", *steps)), ())
    yield from _retrievers(get(body, ("retriever",)), Place(("retriever",)))


def _queries(value: object, place: Place) -> Iterator[Leaf]:
    """The leaves of one query or of a list of queries."""
    if len(place.path) > MAX_STEPS:
        return
    for steps, query in each(value):
        if not isinstance(query, Mapping) or len(query) != 1:
            continue
        kind, inner = next(iter(query.items()))
        if not isinstance(inner, Mapping):
            continue
        if kind in CHILDREN:
            yield from _children(kind, inner, place.at(*steps))
        elif kind in LEAVES:
            yield from LEAVES[kind](kind, inner, place.at(*steps))


def _children(kind: str, inner: Mapping[str, Any], place: Place) -> Iterator[Leaf]:
    wrappers = place.wrappers
    if kind in JOINS:
        members = {name: inner[name] for name in JOINS[kind] if isinstance(inner.get(name), str | bool)}
        wrappers = (*wrappers, Wrapper(place.path, kind, members))
    boost = place.boost * _boost(inner)
    for member, scoring in CHILDREN[kind]:
        inside = Place((*place.path, kind, member), place.scoring and scoring, boost, wrappers)
        yield from _queries(inner.get(member), inside)


def _retrievers(value: object, place: Place) -> Iterator[Leaf]:
    """The leaves of one retriever or of a list, each by itself or with its weight beside it."""
    if len(place.path) > MAX_STEPS:
        return
    for steps, retriever in each(value):
        if not isinstance(retriever, Mapping):
            continue
        here = place.at(*steps)
        if isinstance(retriever.get("retriever"), Mapping):
            yield from _retrievers(retriever["retriever"], here.at("retriever"))
        elif len(retriever) == 1:
            kind, inner = next(iter(retriever.items()))
            yield from _retriever(kind, inner, here)


def _retriever(kind: str, inner: object, place: Place) -> Iterator[Leaf]:
    if kind == "standard":
        yield from _queries(get(inner, ("query",)), place.at(kind, "query"))
    elif kind == "knn":
        yield from _knn(inner, place, (kind,))
    else:
        if member := RETRIEVER_TEXTS.get(kind):
            yield from _by_meaning(kind, get(inner, (member,)), place, (kind, member))
        for member in ("retriever", "retrievers"):
            yield from _retrievers(get(inner, (member,)), place.at(kind, member))


# One function for each form of leaf.


def _by_field(kind: str, inner: Mapping[str, Any], place: Place) -> Iterator[Leaf]:
    if len(inner) != 1:
        return
    name, value = next(iter(inner.items()))
    in_order = kind in ("match_phrase", "match_phrase_prefix")
    if isinstance(value, Mapping) and _is_text(text := value.get("query")):
        leaf = _leaf(kind, text, place, (kind, name, "query"), value)
    elif _is_text(value):
        leaf = _leaf(kind, value, place, (kind, name))
    else:
        return
    yield replace(leaf, fields=(name,), in_order=in_order)


def _by_fields(kind: str, inner: Mapping[str, Any], place: Place) -> Iterator[Leaf]:
    text, asked = inner.get("query"), inner.get("type")
    if not _is_text(text):
        return
    given = inner.get("fields")
    if given is None and kind == "query_string":
        given = inner.get("default_field")
    names = tuple(name for name in (given if isinstance(given, list) else [given]) if isinstance(name, str))
    default = "most_fields" if kind == "simple_query_string" else "best_fields"
    type_ = OPTIONAL_TYPES.get(asked, default) if isinstance(asked, str) else default
    in_order = asked in ("phrase", "phrase_prefix")
    yield replace(_leaf(kind, text, place, (kind, "query"), inner), fields=names, type=type_, in_order=in_order)


def _intervals(kind: str, inner: Mapping[str, Any], place: Place) -> Iterator[Leaf]:
    """The `match` rules on one field, whatever contains them; their filters are not read."""
    if len(inner) != 1:
        return
    name, rules = next(iter(inner.items()))
    pending: list[tuple[Path, object]] = [((kind, name), rules)]
    while pending:
        steps, rule = pending.pop()
        if not isinstance(rule, Mapping) or len(steps) > MAX_STEPS:
            continue
        match = rule.get("match")
        if isinstance(match, Mapping) and _is_text(text := match.get("query")):
            options = {"boost": rules.get("boost"), "analyzer": match.get("analyzer")}
            leaf = _leaf(kind, text, place, (*steps, "match", "query"), options)
            yield replace(leaf, fields=(name,), in_order=True)
        for member in ("any_of", "all_of"):
            inside = get(rule, (member, "intervals"))
            if isinstance(inside, list):
                deeper = [((*steps, member, "intervals", i), one) for i, one in enumerate(inside)]
                pending += reversed(deeper)


def _semantic(kind: str, inner: Mapping[str, Any], place: Place) -> Iterator[Leaf]:
    yield from _by_meaning(kind, inner.get("query"), place, (kind, "query"))


def _text_expansion(kind: str, inner: Mapping[str, Any], place: Place) -> Iterator[Leaf]:
    for name, value in islice(inner.items(), 1):
        yield from _by_meaning(kind, get(value, ("model_text",)), place, (kind, name, "model_text"))


def _knn_query(kind: str, inner: Mapping[str, Any], place: Place) -> Iterator[Leaf]:
    yield from _knn(inner, place, (kind,))


def _knn(knn: object, place: Place, steps: Path) -> Iterator[Leaf]:
    """The text of a `knn` that stands `steps` inside a place."""
    inside = ("query_vector_builder", "text_embedding", "model_text")
    yield from _by_meaning("knn", get(knn, inside), place, steps + inside)


def _by_meaning(kind: str, text: object, place: Place, steps: Path) -> Iterator[Leaf]:
    """A text that is searched by its meaning, and not by its words."""
    if _is_text(text):
        yield _leaf(kind, text, place, steps)


LEAVES = {
    **dict.fromkeys(BY_FIELD, _by_field),
    **dict.fromkeys(("multi_match", "combined_fields", "query_string", "simple_query_string"), _by_fields),
    **dict.fromkeys(("semantic", "sparse_vector"), _semantic),
    "text_expansion": _text_expansion,
    "intervals": _intervals,
    "knn": _knn_query,
}


def _leaf(kind: str, text: str, place: Place, steps: Path, options: Mapping[str, Any] = MappingProxyType({})) -> Leaf:
    """A text that stands `steps` inside a place; `options` are the members beside it."""
    kinds: Mapping[str, Any] = {"analyzer": str, "tie_breaker": int | float}
    kept = {name: options[name] for name in KEPT.get(kind, ()) if isinstance(options.get(name), kinds[name])}
    return Leaf(place, place.path + steps, kind, text, kept, _boost(options))


def _boost(options: Mapping[str, Any]) -> float:
    try:
        boost = float(options.get("boost", 1.0))
    except (TypeError, ValueError, OverflowError):
        return 1.0
    return boost if math.isfinite(boost) and boost >= 0 else 1.0


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())
