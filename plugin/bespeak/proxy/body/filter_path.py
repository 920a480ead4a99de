r"""Elasticsearch's `filter_path`, applied to a parsed answer.

Dots separate the names of a pattern (`\.` is a dot within a name), `*` stands for any characters of a name, `**` for
one or more names; patterns look into lists. `-` before a pattern leaves out what it names from what the others keep.
Objects and lists of which nothing is left disappear; empty ones stay unless patterns pick others.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

Glob: TypeAlias = tuple[str, ...]
"""A name, cut at its asterisks."""

ANY_DEPTH: Glob = ("", "", "")


class State(NamedTuple):
    """A pattern, and the position of its next name."""

    pattern: tuple[Glob, ...]
    place: int


@dataclass(slots=True)
class Level:
    """An object or a list that is being read, and the part of it that is kept."""

    name: str  # in the object around it
    items: Iterator[tuple[str, Any]]
    states: Sequence[State]
    kept: dict[str, Any] | list[Any]
    empty: bool  # before anything was left out

    def keep(self, name: str, value: object) -> None:
        if isinstance(self.kept, list):
            self.kept.append(value)
        else:
            self.kept[name] = value


def apply(answer: object, patterns: str) -> object:
    """The part of `answer` that Elasticsearch gives with `filter_path=patterns`. `answer` is not changed.

    >>> apply({"took": 3, "hits": {"total": 2, "hits": [{"_id": "a", "_score": 1.0}]}}, "hits.*,-**._score")
    {'hits': {'total': 2, 'hits': [{'_id': 'a'}]}}
    """
    given = [pattern.strip() for pattern in patterns.split(",")]
    included = [pattern for pattern in given if pattern and not pattern.startswith("-")]
    excluded = [pattern[1:].strip() for pattern in given if pattern.startswith("-")]
    found = _filter(answer, included, keeps=True) if included else answer
    return _filter(found, excluded, keeps=False) if excluded else found


def _filter(answer: object, patterns: Sequence[str], keeps: bool) -> object:
    """`keeps`: whether the patterns name what is kept or what is left out. Without recursion, for deep answers."""
    if not isinstance(answer, dict | list):
        return answer
    levels = [_level("", answer, tuple(State(_names(pattern), 0) for pattern in patterns if pattern))]
    while True:
        level = levels[-1]
        for name, value in level.items:
            named, inner = (False, level.states) if isinstance(level.kept, list) else _follow(level.states, name)
            if named or not inner:
                if named == keeps:
                    level.keep(name, value)
            elif isinstance(value, dict | list):
                levels.append(_level(name, value, inner))
                break
            elif not keeps:
                level.keep(name, value)
        else:
            levels.pop()
            if not levels:
                return level.kept
            if level.kept or (level.empty and not keeps):
                levels[-1].keep(level.name, level.kept)


def _level(name: str, value: dict[str, Any] | list[Any], states: Sequence[State]) -> Level:
    if isinstance(value, dict):
        return Level(name, iter(value.items()), states, {}, not value)
    return Level(name, (("", element) for element in value), states, [], not value)


def _follow(states: Iterable[State], name: str) -> tuple[bool, tuple[State, ...]]:
    """Whether a pattern ends with this name; if none does, the states of the patterns after it."""
    found: dict[State, None] = {}
    for pattern, place in states:
        if _matches(pattern[place], name):
            if place + 1 == len(pattern):
                return True, ()
            found[State(pattern, place + 1)] = None
        if place and pattern[place - 1] == ANY_DEPTH:
            found[State(pattern, place)] = None
    return False, tuple(found)


def _matches(glob: Glob, name: str) -> bool:
    """Whether the name matches, in linear time whatever a client asks."""
    first, *others = glob
    if not others:
        return name == first
    *inner, last = others
    at, end = len(first), len(name) - len(last)
    if end < at or not (name.startswith(first) and name.endswith(last)):
        return False
    for part in inner:
        at = name.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


_NAME = re.compile(r"((?:\\\.|[^.])++)\.(.*)", re.DOTALL)


def _names(pattern: str) -> tuple[Glob, ...]:
    """The names of a pattern. A name that begins with a dot takes in all that follows, as in Elasticsearch."""
    names = []
    while found := _NAME.fullmatch(pattern):
        names.append(found[1])
        pattern = found[2]
    return tuple(tuple(_unescaped(name).split("*")) for name in [*names, pattern])


def _unescaped(name: str) -> str:
    return re.sub(r"\\.", ".", name) if r"\." in name else name
