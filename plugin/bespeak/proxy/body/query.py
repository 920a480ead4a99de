"""Where the text that the user typed stands in a search body of any form, and what can be asked beside it.

Pure functions over parsed JSON: nothing is changed in place, and nothing raises, whatever stands in a body. A query of
a kind that is not known here is opaque: nothing in it is read or changed.

A text in a filter (`bool.filter`, `constant_score`) counts only where none adds to the score: what filters is mostly a
choice from a list and not typed, but a search may hold nothing else. The filters of `knn`, of retrievers and of score
functions, `must_not`, `boosting.negative`, `post_filter`, rescorers and aggregations are never read.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from typing import Any, TypeAlias, TypeGuard

from bespeak.records import Clause

Path: TypeAlias = tuple[str | int, ...]
"""Names and places that lead from a body to a part of it."""

MAX_STEPS = 200
"""What lies deeper is opaque; Elasticsearch refuses queries that stand more than 30 deep in one another."""
MAX_LEAVES = 256
"""A body with more texts was written by a program, and no text in it is the one that was typed."""

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
"""The queries that a compound query holds (one or a list), and whether they add to the score."""

JOINS: Mapping[str, tuple[str, ...]] = {
    "nested": ("path", "score_mode", "ignore_unmapped"),
    "has_child": ("type", "score_mode", "ignore_unmapped"),
    "has_parent": ("parent_type", "score", "ignore_unmapped"),
}
"""Queries whose inner fields can be asked only through them, and what of them another query on these fields needs."""

BY_FIELD = ("match", "match_phrase", "match_phrase_prefix", "match_bool_prefix")
KEPT: Mapping[str, tuple[str, ...]] = {
    **dict.fromkeys(BY_FIELD, ("analyzer",)),
    "intervals": ("analyzer",),
    "multi_match": ("analyzer", "tie_breaker"),
    "query_string": ("analyzer", "tie_breaker"),
    "simple_query_string": ("analyzer",),
    "combined_fields": (),
}
"""What other words on the same fields keep of a leaf. A kind that is missing here has no words to be put beside."""

OPTIONAL_TYPES = {"most_fields": "most_fields", "cross_fields": "cross_fields", "bool_prefix": "most_fields"}
"""How a `multi_match` of this type scores words of which any may be missing; the others as `best_fields`."""


@dataclass(frozen=True, slots=True)
class Wrapper:
    """A join around a leaf: `members` are what the same join around other words needs."""

    path: Path  # of the query object, `{"nested": {…}}`
    kind: str
    members: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Leaf:
    """A text in a body, and how it is searched."""

    path: Path  # of the query object, `{"match": {…}}`
    text_path: Path
    kind: str
    text: str
    fields: tuple[str, ...] = ()  # with their ^boosts; (): the index's default, or none at all
    scoring: bool = True
    wrappers: tuple[Wrapper, ...] = ()  # outermost first
    kept: Mapping[str, Any] = field(default_factory=dict)  # analyzer, tie_breaker
    type: str = "best_fields"  # of other words on the same fields
    in_order: bool = False  # the words have to stand in this order
    boost: float = 1.0
    boost_around: float = 1.0  # product of the boosts of the queries around it

    def is_at(self, pattern: str) -> bool:
        """Does a dotted path lead to this text, or to a part of the body around it? `*` is any one name or place."""
        own = ".".join(map(str, self.text_path)).split(".")
        wanted = pattern.split(".")
        return len(wanted) <= len(own) and all(w in ("*", o) for w, o in zip(wanted, own, strict=False))


@dataclass(frozen=True, slots=True)
class Typed:
    """What the user typed, and every leaf that searches for it. `leaves` is empty where a text stands in none."""

    text: str
    leaves: tuple[Leaf, ...]
    reason: str = ""  # why there is no text: no_text, ambiguous


@dataclass(frozen=True, slots=True)
class Place:
    """Where the walk through a body is, and what holds there."""

    path: Path = ()
    scoring: bool = True
    boost: float = 1.0
    wrappers: tuple[Wrapper, ...] = ()

    def at(self, *steps: str | int) -> Place:
        return replace(self, path=self.path + steps)


def find_leaves(body: Mapping[str, Any]) -> tuple[Leaf, ...]:
    """Every text that the body searches for, in the order of the body; at most `MAX_LEAVES` + 1."""
    return tuple(islice(_body(body), MAX_LEAVES + 1))


def find_typed(body: Mapping[str, Any], user_query: str = "", path: str = "") -> Typed:
    """The one text that the user typed. Texts that differ only in white space or case are one.

    Of several, it is the one that `path` (dotted, `*` for any one name) leads to, else `user_query`: what the client
    says was typed. Where no leaf holds that text, it belongs to the leaves that share a word with it: the client may
    have spelt it otherwise, or in query syntax; where none does, to no leaf.
    """
    leaves = find_leaves(body)
    if len(leaves) > MAX_LEAVES:
        return Typed(user_query.strip(), (), "" if user_query.strip() else "ambiguous")
    named = [leaf for leaf in leaves if path and leaf.is_at(path)]
    if named and _is_one(named):
        return Typed(named[0].text.strip(), tuple(named))
    found = named or [leaf for leaf in leaves if leaf.scoring] or list(leaves)
    if user_query.strip():
        return Typed(user_query.strip(), _spoken(user_query, found, leaves))
    if not found:
        return Typed("", (), "no_text")
    if not _is_one(found):
        return Typed("", (), "ambiguous")
    return Typed(found[0].text.strip(), tuple(found))


def hoist(typed: Typed, clauses: Sequence[Clause]) -> dict[str, Any] | None:
    """A query for `rescore.query.rescore_query`: each clause, as words of which any may be missing, on each leaf's
    own fields; None where no leaf has any. Its words are never read as query syntax.

    Boosts around a leaf count, so that a clause of weight 1 scores as the leaf does. Leaves that differ in nothing
    but what they demand of their words are one, and a phrase on fields that are searched without it is left out.
    """
    asked: dict[str, dict[str, Any]] = {}
    for leaf in typed.leaves:
        for clause in () if _repeats(leaf, typed.leaves) else clauses:
            if query := _optional(leaf, clause.text, clause.weight * leaf.boost * leaf.boost_around):
                same = json.dumps(_wrapped(leaf, _optional(leaf, clause.text, 1.0)), sort_keys=True)
                asked.setdefault(same, _wrapped(leaf, query))
    return {"bool": {"should": list(asked.values())}} if asked else None


def replace_text(body: Mapping[str, Any], typed: Typed, clauses: Sequence[Clause]) -> dict[str, Any]:
    """The body with each scoring leaf of `typed` as one of several choices, the others being the clauses.

    They stand at the leaf's own spot, so that filters around it hold; beside a phrase on fields that are searched
    without it they match but add nothing to the score. Highlights that have no query of their own keep the client's.
    Leaves that are not in this body, or only filter, stay as they are.
    """
    found: Any = dict(body)
    replaced: dict[Path, Leaf] = {}
    for leaf in typed.leaves:
        boost = 0.0 if _repeats(leaf, typed.leaves) else leaf.boost
        added = [query for clause in clauses if (query := _optional(leaf, clause.text, clause.weight * boost))]
        if not (added and leaf.scoring) or _get(body, leaf.text_path) != leaf.text:
            continue
        choice = {"bool": {"should": [_get(body, leaf.path), *added], "minimum_should_match": 1}}
        found = _put(found, leaf.path, choice)
        replaced[leaf.path] = leaf
    for path, own in _highlights(body, replaced.values()):
        found = _put(found, (*path, "highlight_query"), own)
    return dict(found)


# The walk: what of a body is read.


def _body(body: object) -> Iterator[Leaf]:
    yield from _queries(_get(body, ("query",)), Place(("query",)))
    for steps, knn in _each(_get(body, ("knn",))):
        yield from _knn(knn, Place(("knn", *steps)), Place(("knn", *steps)))
    yield from _retrievers(_get(body, ("retriever",)), Place(("retriever",)))


def _queries(value: object, place: Place) -> Iterator[Leaf]:
    """Of one query or a list of them."""
    if len(place.path) > MAX_STEPS:
        return
    for steps, query in _each(value):
        if not isinstance(query, Mapping) or len(query) != 1:
            continue
        kind, inner = next(iter(query.items()))
        if not isinstance(inner, Mapping):
            continue
        if kind in CHILDREN:
            yield from _children(kind, inner, place.at(*steps))
        elif kind in LEAVES:
            yield from LEAVES[kind](kind, inner, place.at(*steps))


def _children(kind: str, inner: Mapping[str, Any], at: Place) -> Iterator[Leaf]:
    wrappers = at.wrappers
    if kind in JOINS:
        members = {name: inner[name] for name in JOINS[kind] if isinstance(inner.get(name), str | bool)}
        wrappers = (*wrappers, Wrapper(at.path, kind, members))
    for member, scoring in CHILDREN[kind]:
        place = Place((*at.path, kind, member), at.scoring and scoring, at.boost * _boost(inner), wrappers)
        yield from _queries(inner.get(member), place)


def _retrievers(value: object, place: Place) -> Iterator[Leaf]:
    """Of one retriever or a list of them, each by itself or with its weight beside it."""
    if len(place.path) > MAX_STEPS:
        return
    for steps, retriever in _each(value):
        if not isinstance(retriever, Mapping):
            continue
        at = place.at(*steps)
        if isinstance(retriever.get("retriever"), Mapping):
            yield from _retrievers(retriever["retriever"], at.at("retriever"))
            continue
        if len(retriever) != 1:
            continue
        kind, inner = next(iter(retriever.items()))
        if kind == "standard":
            yield from _queries(_get(inner, ("query",)), at.at(kind, "query"))
        elif kind == "knn":
            yield from _knn(inner, at.at(kind), at)
        else:
            spoken = {"rrf": "query", "linear": "query", "text_similarity_reranker": "inference_text"}.get(kind)
            if spoken:
                yield from _wordless(kind, _get(inner, (spoken,)), at, (kind, spoken))
            for member in ("retriever", "retrievers"):
                yield from _retrievers(_get(inner, (member,)), at.at(kind, member))


def _each(value: object) -> Iterable[tuple[Path, object]]:
    """A value that stands by itself, or each of a list with the step to it."""
    return (((i,), element) for i, element in enumerate(value)) if isinstance(value, list) else [((), value)]


# The leaves, one function for each form.


def _by_field(kind: str, inner: Mapping[str, Any], at: Place) -> Iterator[Leaf]:
    if len(inner) != 1:
        return
    name, value = next(iter(inner.items()))
    in_order = kind in ("match_phrase", "match_phrase_prefix")
    if isinstance(value, Mapping) and _is_text(text := value.get("query")):
        yield _leaf(at, (kind, name, "query"), kind, text, (name,), value, in_order=in_order)
    elif _is_text(value):
        yield _leaf(at, (kind, name), kind, value, (name,), {}, in_order=in_order)


def _by_fields(kind: str, inner: Mapping[str, Any], at: Place) -> Iterator[Leaf]:
    text, asked = inner.get("query"), inner.get("type")
    if not _is_text(text):
        return
    given = inner.get("fields")
    if given is None and kind == "query_string":
        given = inner.get("default_field")
    names = tuple(name for name in (given if isinstance(given, list) else [given]) if isinstance(name, str))
    default = "most_fields" if kind == "simple_query_string" else "best_fields"
    type_ = OPTIONAL_TYPES.get(asked, default) if isinstance(asked, str) else default
    yield _leaf(at, (kind, "query"), kind, text, names, inner, type_, asked in ("phrase", "phrase_prefix"))


def _intervals(kind: str, inner: Mapping[str, Any], at: Place) -> Iterator[Leaf]:
    """The `match` rules on one field, whatever they stand in; their filters are not read."""
    if len(inner) != 1:
        return
    name, rules = next(iter(inner.items()))
    pending: list[tuple[Path, object]] = [((kind, name), rules)]
    while pending:
        steps, rule = pending.pop()
        if not isinstance(rule, Mapping) or len(steps) > MAX_STEPS:
            continue
        match = rule.get("match")
        if isinstance(match, Mapping) and _is_text(match.get("query")):
            options = {"boost": rules.get("boost"), "analyzer": match.get("analyzer")}
            yield _leaf(at, (*steps, "match", "query"), kind, match["query"], (name,), options, in_order=True)
        for member in ("any_of", "all_of"):
            inside = _get(rule, (member, "intervals"))
            if isinstance(inside, list):
                deeper = [((*steps, member, "intervals", i), one) for i, one in enumerate(inside)]
                pending += reversed(deeper)


def _semantic(kind: str, inner: Mapping[str, Any], at: Place) -> Iterator[Leaf]:
    yield from _wordless(kind, inner.get("query"), at, (kind, "query"))


def _text_expansion(kind: str, inner: Mapping[str, Any], at: Place) -> Iterator[Leaf]:
    for name, value in islice(inner.items(), 1):
        yield from _wordless(kind, _get(value, ("model_text",)), at, (kind, name, "model_text"))


def _knn_query(kind: str, inner: Mapping[str, Any], at: Place) -> Iterator[Leaf]:
    yield from _knn(inner, at.at(kind), at)


def _knn(knn: object, inside: Place, at: Place) -> Iterator[Leaf]:
    steps = ("query_vector_builder", "text_embedding", "model_text")
    yield from _wordless("knn", _get(knn, steps), at, inside.path[len(at.path) :] + steps)


def _wordless(kind: str, text: object, at: Place, steps: Path) -> Iterator[Leaf]:
    """A text that is searched by its meaning."""
    if _is_text(text):
        yield _leaf(at, steps, kind, text, (), {})


LEAVES = {
    **dict.fromkeys(BY_FIELD, _by_field),
    **dict.fromkeys(("multi_match", "combined_fields", "query_string", "simple_query_string"), _by_fields),
    **dict.fromkeys(("semantic", "sparse_vector"), _semantic),
    "text_expansion": _text_expansion,
    "intervals": _intervals,
    "knn": _knn_query,
}


def _leaf(
    at: Place,
    steps: Path,
    kind: str,
    text: str,
    fields: tuple[str, ...],
    options: Mapping[str, Any],
    type_: str = "best_fields",
    in_order: bool = False,
) -> Leaf:
    kinds: Mapping[str, Any] = {"analyzer": str, "tie_breaker": int | float}
    kept = {name: options[name] for name in KEPT.get(kind, ()) if isinstance(options.get(name), kinds[name])}
    return Leaf(
        at.path,
        at.path + steps,
        kind,
        text,
        fields,
        at.scoring,
        at.wrappers,
        kept,
        type_,
        in_order,
        _boost(options),
        at.boost,
    )


def _boost(options: Mapping[str, Any]) -> float:
    try:
        boost = float(options.get("boost", 1.0))
    except (TypeError, ValueError, OverflowError):
        return 1.0
    return boost if math.isfinite(boost) and boost >= 0 else 1.0


def _is_text(value: object) -> TypeGuard[str]:
    return isinstance(value, str) and bool(value.strip())


# Which text it is.


def _is_one(leaves: Sequence[Leaf]) -> bool:
    return len({_normal(leaf.text) for leaf in leaves}) == 1


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _spoken(user_query: str, found: Sequence[Leaf], leaves: Sequence[Leaf]) -> tuple[Leaf, ...]:
    """The leaves that search for what the client says was typed."""
    wanted = _normal(user_query)
    for among in (found, leaves):
        if equal := tuple(leaf for leaf in among if _normal(leaf.text) == wanted):
            return equal
    words = _words(user_query)
    return tuple(leaf for leaf in found if words & _words(leaf.text))


# Other words beside a leaf.


def _optional(leaf: Leaf, text: str, boost: float) -> dict[str, Any] | None:
    """Other words on the leaf's fields, without what the leaf demands of its own words.

    `lenient`, since the client's text may be fit for a field of numbers or dates where other words are not.
    """
    if leaf.kind not in KEPT or not text.strip():
        return None
    asked: dict[str, Any] = {"query": text, **leaf.kept, "boost": boost}
    if leaf.kind in BY_FIELD or leaf.kind == "intervals":
        return {"match": {leaf.fields[0]: asked | {"lenient": True}}}
    if leaf.fields:
        asked["fields"] = list(leaf.fields)
    if leaf.kind == "combined_fields":
        return {"combined_fields": asked}
    return {"multi_match": asked | {"type": leaf.type, "lenient": True}}


def _repeats(leaf: Leaf, leaves: Sequence[Leaf]) -> bool:
    """Does it ask for a phrase on fields that another leaf searches without asking for one? It only lifts then."""
    names = {name.partition("^")[0] for name in leaf.fields}
    return leaf.in_order and any(
        other.kind in KEPT
        and not other.in_order
        and [(w.kind, w.members) for w in other.wrappers] == [(w.kind, w.members) for w in leaf.wrappers]
        and (not other.fields or (names and names <= {name.partition("^")[0] for name in other.fields}))
        for other in leaves
    )


def _wrapped(leaf: Leaf, query: dict[str, Any] | None) -> dict[str, Any]:
    assert query is not None
    for wrapper in reversed(leaf.wrappers):
        query = {wrapper.kind: {**wrapper.members, "query": query}}
    return query


def _highlights(body: Mapping[str, Any], replaced: Iterable[Leaf]) -> Iterator[tuple[Path, object]]:
    """Where a highlight asks for the words of a query that is not the client's any more, and the client's query."""
    roots = list(dict.fromkeys(_root(leaf.path) for leaf in replaced))
    if not roots:
        return
    queries = [_get(body, root) for root in roots]
    query = queries[0] if len(queries) == 1 else {"bool": {"should": queries}}
    places: dict[Path, object] = {("highlight",): query}
    for steps, _ in _each(_get(body, ("collapse", "inner_hits"))):
        places[("collapse", "inner_hits", *steps, "highlight")] = query
    for wrapper in (wrapper for leaf in replaced for wrapper in leaf.wrappers):
        inside = (*wrapper.path, wrapper.kind)
        places[(*inside, "inner_hits", "highlight")] = _get(body, (*inside, "query"))
    for path, own in places.items():
        highlight = _get(body, path)
        if isinstance(highlight, Mapping) and "highlight_query" not in highlight:
            yield path, own


def _root(path: Path) -> Path:
    """Of the whole query that a leaf stands in: the body's own, or that of a retriever."""
    return path[:1] if path[0] == "query" else path[: path.index("standard") + 2]


def _get(value: Any, path: Path) -> Any:
    """What stands at a path, None where nothing does."""
    for step in path:
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def _put(value: Any, path: Path, new: object) -> Any:
    """A copy with something new at a path; only what leads there is copied."""
    if not path:
        return new
    copied: Any = list(value) if isinstance(value, list) else dict(value)
    copied[path[0]] = _put(_get(value, path[:1]), path[1:], new)
    return copied
