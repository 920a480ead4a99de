"""The searches of an `_msearch`, two lines each, and the answers to them."""

from __future__ import annotations

import json
from typing import Any, NamedTuple

from bespeak.errors import InputError
from bespeak.proxy.body import splice
from bespeak.proxy.body.search import Search, read_search


class HeadedSearch(NamedTuple):
    """A search and the header line before it."""

    head: str
    search: Search


def read_msearch(text: str, index: str) -> list[HeadedSearch]:
    """`index` is the one of the path, for searches that name none. Raises InputError for broken pairs of lines."""
    *lines, end = text.split("\n")
    if end:
        raise InputError("the last line has no end")
    if len(lines) % 2 and not lines[-1].strip():
        lines.pop()  # Elasticsearch ignores an empty line at the end
    if len(lines) % 2 or not lines:
        raise InputError("a line is missing")
    return [_read_pair(head, body, index) for head, body in zip(lines[::2], lines[1::2], strict=True)]


def _read_pair(head: str, body: str, index: str) -> HeadedSearch:
    if not body.strip():
        raise InputError("a search is missing")
    head = head.strip() or "{}"
    params = tuple((name, as_parameter(span.value)) for name, span in splice.read_members(head)[0])
    named = next((value for name, value in params if name in ("index", "indices")), index)
    return HeadedSearch(head, read_search(named, params, body))


def as_parameter(value: Any) -> str:
    """A member of a header line, written as a parameter of a URL."""
    if isinstance(value, list):
        return ",".join(map(as_parameter, value))
    return value if isinstance(value, str) else json.dumps(value)


def read_responses(answer: str, n_searches: int) -> list[splice.Span]:
    """The answer to each search. Raises InputError unless there are `n_searches` of them."""
    members = dict(splice.read_members(answer, 0, {"responses": splice.elements})[0])
    responses: list[splice.Span] = members["responses"].value if "responses" in members else []
    if len(responses) != n_searches:
        raise InputError(f"{len(responses)} answers to {n_searches} searches")
    return responses
