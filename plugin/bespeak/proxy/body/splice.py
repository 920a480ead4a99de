"""Edits JSON as text: everything not replaced keeps its bytes, so numbers, order and spaces do not change."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from types import MappingProxyType
from typing import Any, NamedTuple, TypeAlias

from bespeak.errors import InputError

_SPACE, _SPACES = re.compile(r"[ \t\n\r]*"), frozenset(" \t\n\r")
_DECODER = json.JSONDecoder()


class Span(NamedTuple):
    """A value and its place: `text[start:end]`."""

    start: int
    end: int
    value: Any


def read_value(text: str, at: int = 0) -> Span:
    """The value at `at`, after any spaces. Raises InputError."""
    start = _skip(text, at)
    try:
        value, end = _DECODER.raw_decode(text, start)
    except (ValueError, RecursionError) as error:
        raise InputError(f"no JSON value at character {start + 1}") from error
    return Span(start, end, value)


Reader: TypeAlias = Callable[[str, int], Span]


def read_members(
    text: str, at: int = 0, readers: Mapping[str, Reader] = MappingProxyType({})
) -> tuple[list[tuple[str, Span]], int]:
    """The members of the object at `at`, and its end. Raises InputError, also for a name that occurs twice.

    `readers` read the members that are taken apart further, so that each part is read once.
    """
    done, at = _open(text, at, "{", "}")
    found: list[tuple[str, Span]] = []
    while not done:
        name = read_value(text, at)
        at = _skip(text, name.end)
        if not isinstance(name.value, str) or text[at : at + 1] != ":":
            raise InputError(f"no member of an object at character {name.start + 1}")
        member = readers.get(name.value, read_value)(text, at + 1)
        found.append((name.value, member))
        done, at = _next(text, member.end, "}")
    if len({name for name, _ in found}) != len(found):
        raise InputError("a name occurs twice in one object")
    return found, at


def read_array(text: str, at: int = 0) -> tuple[list[Span], int]:
    """The elements of the array at `at`, and its end. Raises InputError."""
    done, at = _open(text, at, "[", "]")
    found: list[Span] = []
    while not done:
        found.append(read_value(text, at))
        done, at = _next(text, found[-1].end, "]")
    return found, at


def elements(text: str, at: int) -> Span:
    """A reader for an array: its value is the list of its elements' spans."""
    found, end = read_array(text, at)
    return Span(_skip(text, at), end, found)


def members(readers: Mapping[str, Reader]) -> Reader:
    """A reader for an object: its value holds its members' spans by name."""

    def read(text: str, at: int) -> Span:
        found, end = read_members(text, at, readers)
        return Span(_skip(text, at), end, dict(found))

    return read


def edit_object(text: str, at: int, changes: Mapping[str, str], removed: Collection[str] = ()) -> str:
    """The object at `at` with members set to the JSON of `changes` (in place, or at the end) and others removed."""
    there, _ = read_members(text, at)
    kept = [
        f"{json.dumps(name)}:{changes.get(name, text[span.start : span.end])}"
        for name, span in there
        if name not in removed
    ]
    names = {name for name, _ in there if name not in removed}
    added = [f"{json.dumps(name)}:{value}" for name, value in changes.items() if name not in names]
    return "{" + ",".join(kept + added) + "}"


def edit_read(text: str, span: Span, changes: Mapping[str, str], removed: Collection[str] = ()) -> str:
    """As `edit_object`, for an object that was read before; reads it again only up to the last of the names."""
    wanted = {name for name in (*changes, *removed) if name in span.value}
    parts = []
    done, at = _open(text, span.start, "{", "}")
    while wanted and not done:
        name = read_value(text, at)
        member = read_value(text, _skip(text, name.end) + 1)
        if name.value not in wanted:
            parts.append(text[name.start : member.end])
        elif name.value in changes:
            parts.append(f"{json.dumps(name.value)}:{changes[name.value]}")
        wanted.discard(name.value)
        done, at = _next(text, member.end, "}")
    if not done:
        parts.append(text[at : span.end - 1].rstrip())
    parts += [f"{json.dumps(name)}:{value}" for name, value in changes.items() if name not in span.value]
    return "{" + ",".join(parts) + "}"


def replace(text: str, parts: Sequence[tuple[int, int, str]]) -> str:
    """The text with each `(start, end)` replaced; the parts must not overlap."""
    made, at = [], 0
    for start, end, new in sorted(parts):
        made += [text[at:start], new]
        at = end
    return "".join([*made, text[at:]])


def _skip(text: str, at: int) -> int:
    if text[at : at + 1] not in _SPACES:
        return at
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _open(text: str, at: int, begin: str, end: str) -> tuple[bool, int]:
    """Whether it is empty, and the position of its first part or, if empty, of what follows."""
    at = _skip(text, at)
    if text[at : at + 1] != begin:
        raise InputError(f"no {begin} at character {at + 1}")
    at = _skip(text, at + 1)
    return (True, at + 1) if text[at : at + 1] == end else (False, at)


def _next(text: str, at: int, end: str) -> tuple[bool, int]:
    at = _skip(text, at)
    if text[at : at + 1] == end:
        return True, at + 1
    if text[at : at + 1] != ",":
        raise InputError(f"no , or {end} at character {at + 1}")
    return False, _skip(text, at + 1)
