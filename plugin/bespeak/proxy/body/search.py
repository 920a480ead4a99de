"""One search of a client's: what it asks for, and whether its hits may be reordered."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

from bespeak.errors import InputError
from bespeak.proxy.body import splice
from bespeak.proxy.body.query import Typed, find_typed
from bespeak.records import UserKey
from bespeak.statuses import Reason

Params: TypeAlias = tuple[tuple[str, str], ...]

OURS = ("ubi", "bespeak")
"""Members of the body's `ext` that are for Bespeak and are removed before the engine sees it."""


@dataclass(frozen=True, slots=True)
class Search:
    """A search as the client sent it. `text` is its body without anything for Bespeak; `{}` if it had no body."""

    index: str  # as in the path or the header line; "" for all
    params: Params  # of the URL, or of the header line
    text: str
    body: Mapping[str, Any]
    ubi: Mapping[str, Any] = field(default_factory=dict)  # the body's ext.ubi
    bespeak: Mapping[str, Any] = field(default_factory=dict)  # the body's ext.bespeak
    edited: bool = False  # something for Bespeak was removed from the body

    def get(self, name: str, default: Any = None) -> Any:
        """A parameter of the URL or else the member of the body with this name, as in Elasticsearch."""
        return dict(self.params).get(name, self.body.get(name, default))

    @property
    def offset(self) -> int:
        return _whole_number(self.get("from", 0), "from")

    @property
    def size(self) -> int:
        return _whole_number(self.get("size", 10), "size")

    @property
    def mode(self) -> Literal["boost", "recall"]:
        return "recall" if self.bespeak.get("mode") == "recall" else "boost"

    @property
    def explained(self) -> bool:
        return self.bespeak.get("explain") is True

    def digest(self, user: UserKey, session_id: str) -> bytes:
        """A digest that is equal for the pages of one search in one session."""
        params = [pair for pair in self.params if pair[0] not in ("from", "size")]
        body = {name: value for name, value in self.body.items() if name not in ("from", "size")}
        asked = [*user, session_id, self.index, sorted(params), body, dict(self.bespeak)]
        content = json.dumps(asked, sort_keys=True)
        return hashlib.blake2b(content.encode(), digest_size=16).digest()


def read_search(index: str, params: Params, text: str) -> Search:
    """Raises InputError for a body that is not a JSON object, and for a `from` or `size` that the engine refuses."""
    given = dict(params)
    if "source" in given and not text.strip():
        text = given["source"]
        params = tuple(pair for pair in params if pair[0] not in ("source", "source_content_type"))
    text = text if text.strip() else "{}"
    members, end = splice.read_members(text)
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
        _whole_number(search.get(name, 0), name)
    return search


def without_ours(text: str, at: int, body: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """The body, as text and parsed, without Bespeak's members of `ext`, and without an `ext` that is then empty."""
    left = {name: value for name, value in body["ext"].items() if name not in OURS}
    kept = {name: value for name, value in body.items() if name != "ext"}
    if not left:
        return splice.edit_object(text, 0, {}, ["ext"]), kept
    return splice.edit_object(text, 0, {"ext": splice.edit_object(text, at, {}, OURS)}), kept | {"ext": left}


def _whole_number(value: Any, name: str) -> int:
    """The number as Elasticsearch reads it: fractions are cut off, text may hold a whole number. Raises InputError."""
    if value is None:
        raise InputError(f"{name} is null")
    if isinstance(value, str) and not re.fullmatch(r"\+?\d{1,10}", value, re.ASCII):
        raise InputError(f"{name} is not a whole number")
    if isinstance(value, bool) or not isinstance(value, int | float | str) or not -1 < float(value) < 2**31:
        raise InputError(f"{name} is not a whole number of at least 0")
    return int(value)


def decline_reordering(search: Search) -> Reason | None:
    """Why the order of this search's hits must stay as it is; None if it may change."""
    if search.get("scroll") is not None:
        return Reason.SCROLL
    if search.size == 0:
        return Reason.SIZE_0
    if search.body.get("search_after") is not None:
        return Reason.SEARCH_AFTER
    if search.body.get("slice") is not None:
        return Reason.SLICE
    if not sorted_by_score(search.get("sort"), pit="pit" in search.body):
        return Reason.SORT
    if any(not sorted_by_score(inner.get("sort"), pit=False) for inner in standard_retrievers(search.body)):
        return Reason.SORT
    if any(inner.get("search_after") is not None for inner in standard_retrievers(search.body)):
        return Reason.SEARCH_AFTER
    for reason in (Reason.EXPLAIN, Reason.PROFILE):  # the engine's own ranking is being studied
        if search.get(reason) in (True, "true", ""):
            return reason
    if search.get("stored_fields") in ("_none_", ["_none_"]):
        return Reason.NO_IDS
    if dict(search.params).get("format", "json") != "json":
        return Reason.FORMAT
    return None


def sorted_by_score(sort: Any, pit: bool) -> bool:
    """Whether there is no sort, or only one by score; with a point in time even that is for `search_after`."""
    if sort is None or sort == []:
        return True
    keys = sort.split(",") if isinstance(sort, str) else sort if isinstance(sort, list) else [sort]
    # Several keys, or a point in time and any key, give each hit a value for `search_after`.
    return (
        not pit
        and len(keys) == 1
        and keys[0] in ("_score", "_score:desc", {"_score": "desc"}, {"_score": {"order": "desc"}}, {"_score": {}})
    )


def typed_text(search: Search, path: str = "") -> Typed:
    """What the user typed, in `q` of the URL or in the body. `path` says where, for bodies with several texts."""
    user_query = search.ubi.get("user_query")
    return find_typed(queried(search), user_query if isinstance(user_query, str) else "", path)


def queried(search: Search) -> Mapping[str, Any]:
    """The body as the engine searches it: `q` of the URL replaces its query."""
    given = dict(search.params)
    if "q" not in given:
        return search.body
    options = {"default_field": given.get("df"), "default_operator": given.get("default_operator"),
               "analyzer": given.get("analyzer"), "lenient": given.get("lenient")}  # fmt: skip
    query = {"query": given["q"]} | {name: value for name, value in options.items() if value}
    return {**search.body, "query": {"query_string": query}}


def standard_retrievers(body: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """The body's retriever if it is a `standard` one, whose hits come as they are; else none."""
    found = body.get("retriever")
    inner = found.get("standard") if isinstance(found, dict) else None
    return [inner] if isinstance(inner, dict) else []
