"""Parts of parsed JSON by the path that leads to them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, TypeAlias

Path: TypeAlias = tuple[str | int, ...]
"""Names and positions that lead from a body to a part of it."""


def get(value: Any, path: Path) -> Any:
    """The part at a path; None if there is none.

    >>> get({"hits": [{"id": 7}]}, ("hits", 0, "id"))
    7
    """
    for step in path:
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and isinstance(step, int) and step < len(value):
            value = value[step]
        else:
            return None
    return value


def put(value: Any, path: Path, new: object) -> Any:
    """A copy with `new` at a path; only what leads there is copied.

    >>> put({"a": {"b": 1}}, ("a", "b"), 2)
    {'a': {'b': 2}}
    """
    if not path:
        return new
    copied: Any = list(value) if isinstance(value, list) else dict(value)
    copied[path[0]] = put(get(value, path[:1]), path[1:], new)
    return copied


def each(value: object) -> Iterable[tuple[Path, object]]:
    """The elements of a list, each with the step to it; any other value by itself, with no step."""
    return (((i,), element) for i, element in enumerate(value)) if isinstance(value, list) else [((), value)]
