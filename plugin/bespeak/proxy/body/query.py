"""Finds what the user typed in a search body of any form, and adds other words to search for.

A text in a filter (`bool.filter`, `constant_score`) counts only if no other text adds to the score: most filters are
choices from a list and not typed, but a search may hold nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bespeak.proxy.body.leaves import BY_FIELD, KEPT, MAX_LEAVES, Leaf, find_leaves
from bespeak.proxy.body.paths import Path, each, get, put
from bespeak.records import Clause
from bespeak.statuses import Reason


@dataclass(frozen=True, slots=True)
class Typed:
    """What the user typed, and every leaf that searches for it; there may be none."""

    text: str
    leaves: tuple[Leaf, ...]
    reason: str = ""  # why there is no text: no_text, ambiguous


def find_typed(body: Mapping[str, Any], user_query: str = "", path: str = "") -> Typed:
    """The one text that the user typed. Texts that differ only in white space or case count as one.

    If there are several, `path` (dotted, `*` for any one step) leads to it, or `user_query` is it: what the client says
    was typed. If no leaf holds that text, it belongs to the leaves that share a word with it, since the client may have
    spelt it differently or in query syntax.
    """
    leaves = find_leaves(body)
    if len(leaves) > MAX_LEAVES:
        return Typed(user_query.strip(), (), "" if user_query.strip() else Reason.AMBIGUOUS)
    named = [leaf for leaf in leaves if path and leaf.is_at(path)]
    if named and _is_one(named):
        return Typed(named[0].text.strip(), tuple(named))
    found = named or [leaf for leaf in leaves if leaf.scoring] or list(leaves)
    if user_query.strip():
        return Typed(user_query.strip(), _leaves_for(user_query, found, leaves))
    if not found:
        return Typed("", (), Reason.NO_TEXT)
    if not _is_one(found):
        return Typed("", (), Reason.AMBIGUOUS)
    return Typed(found[0].text.strip(), tuple(found))


def words_query(typed: Typed, clauses: Sequence[Clause]) -> dict[str, Any] | None:
    """A query for each clause on each leaf's own fields; None if no leaf is searched by words.

    Any of a clause's words may be missing, and none is read as query syntax. Boosts around a leaf count, so a clause of
    weight 1 scores as the leaf does. Leaves that differ only in what they demand of their words count once. A phrase is
    left out if its fields are also searched without it.
    """
    asked: dict[str, dict[str, Any]] = {}
    for leaf in typed.leaves:
        for clause in () if _is_extra_phrase(leaf, typed.leaves) else clauses:
            if query := _loose_query(leaf, clause.text, clause.weight * leaf.boost * leaf.place.boost):
                key = json.dumps(_wrapped(leaf, _loose_query(leaf, clause.text, 1.0)), sort_keys=True)
                asked.setdefault(key, _wrapped(leaf, query))
    return {"bool": {"should": list(asked.values())}} if asked else None


def with_alternatives(body: Mapping[str, Any], typed: Typed, clauses: Sequence[Clause]) -> dict[str, Any]:
    """The body with the clauses as alternatives to each scoring leaf of `typed`.

    They stand at the leaf's own place, so the filters around it hold. Beside a phrase whose fields are also searched
    without it, they match but add nothing to the score. Highlights without a query of their own keep the client's.
    Leaves that only filter, or are not in this body, stay as they are.
    """
    found: Any = dict(body)
    replaced: dict[Path, Leaf] = {}
    for leaf in typed.leaves:
        boost = 0.0 if _is_extra_phrase(leaf, typed.leaves) else leaf.boost
        added = [query for clause in clauses if (query := _loose_query(leaf, clause.text, clause.weight * boost))]
        if not (added and leaf.scoring) or get(body, leaf.text_path) != leaf.text:
            continue
        choice = {"bool": {"should": [get(body, leaf.path), *added], "minimum_should_match": 1}}
        found = put(found, leaf.path, choice)
        replaced[leaf.path] = leaf
    for path, own in _highlights(body, replaced.values()):
        found = put(found, (*path, "highlight_query"), own)
    return dict(found)


# Which text it is.


def _is_one(leaves: Sequence[Leaf]) -> bool:
    return len({_normal(leaf.text) for leaf in leaves}) == 1


def _normal(text: str) -> str:
    return " ".join(text.split()).casefold()


def _words(text: str) -> set[str]:
    return set(re.findall(r"\w+", text.casefold()))


def _leaves_for(user_query: str, found: Sequence[Leaf], leaves: Sequence[Leaf]) -> tuple[Leaf, ...]:
    """The leaves that search for what the client says was typed, in `found` if possible."""
    wanted = _normal(user_query)
    for among in (found, leaves):
        if equal := tuple(leaf for leaf in among if _normal(leaf.text) == wanted):
            return equal
    words = _words(user_query)
    return tuple(leaf for leaf in found if words & _words(leaf.text))


# Other words on the fields of a leaf.


def _loose_query(leaf: Leaf, text: str, boost: float) -> dict[str, Any] | None:
    """Other words on the leaf's fields, any of which may be missing; None if the leaf is not searched by words.

    `lenient`, since the client's text may fit a field of numbers or dates that other words do not fit.
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


def _is_extra_phrase(leaf: Leaf, leaves: Sequence[Leaf]) -> bool:
    """Whether it asks for a phrase on fields that another leaf searches without one: then it only adds to the score."""
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
    """The path of each highlight whose query was changed, and the client's own query for it."""
    roots = list(dict.fromkeys(_root(leaf.path) for leaf in replaced))
    if not roots:
        return
    queries = [get(body, root) for root in roots]
    query = queries[0] if len(queries) == 1 else {"bool": {"should": queries}}
    places: dict[Path, object] = {("highlight",): query}
    for steps, _ in each(get(body, ("collapse", "inner_hits"))):
        places[("collapse", "inner_hits", *steps, "highlight")] = query
    for wrapper in (wrapper for leaf in replaced for wrapper in leaf.wrappers):
        inside = (*wrapper.path, wrapper.kind)
        places[(*inside, "inner_hits", "highlight")] = get(body, (*inside, "query"))
    for path, own in places.items():
        highlight = get(body, path)
        if isinstance(highlight, Mapping) and "highlight_query" not in highlight:
            yield path, own


def _root(path: Path) -> Path:
    """The path of the whole query around a leaf: the body's own, or that of a retriever."""
    return path[:1] if path[0] == "query" else path[: path.index("standard") + 2]
