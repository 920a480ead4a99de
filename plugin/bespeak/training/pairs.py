"""Training data: queries of conversations, and rewrites of them that stand alone."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias

from bespeak.errors import InputError

Kind: TypeAlias = Literal["person", "whole", "switch", "ellipsis", "personal", "written", "chat", "nothing"]
"""Where a target comes from: a person, or a function of `augment`, `personal`, `scenarios` or `placing`."""


class PastTurn(NamedTuple):
    """An earlier query and its response: a text, the titles of clicked hits, or "" if it is not known."""

    query: str
    response: str = ""


class Target(NamedTuple):
    """A query after the first `n_before` turns of a conversation, and the rewrite to learn."""

    n_before: int
    query: str
    rewrite: str
    kind: Kind = "person"


@dataclass(frozen=True, slots=True)
class Pair:
    """One line of a file of pairs."""

    source: str
    query: str
    rewrite: str
    history: tuple[PastTurn, ...] = ()
    statements: tuple[str, ...] = ()
    used: tuple[str, ...] = ()  # statements that concern the query
    title: str = ""  # of the page that the conversation is about


@dataclass(frozen=True, slots=True)
class Conversation:
    """Queries that share the start of a conversation, which is read once for all of them."""

    source: str
    turns: tuple[PastTurn, ...]
    targets: tuple[Target, ...]  # by n_before
    statements: tuple[str, ...] = ()
    used: tuple[str, ...] = ()
    title: str = ""
    changes: tuple[str, ...] = ()  # what `augment` did to turns and statements

    def changed(self, how: str, **fields: Any) -> Conversation:
        return replace(self, changes=(*self.changes, how), **fields)


def read_pairs(path: Path) -> Iterator[Pair]:
    """The pairs of a JSON Lines file. Raises InputError with the number of the line."""
    try:
        with path.open(encoding="utf-8") as lines:
            for number, line in enumerate(lines, 1):
                if line.strip():
                    yield _parse(line, f"line {number} of {path}")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"{path} cannot be read as pairs ({error}): give a file of JSON lines in UTF-8") from error


def _parse(line: str, where: str) -> Pair:
    try:
        row = json.loads(line)
        history = tuple(
            PastTurn(_text(turn, "query", ""), _text(turn, "response", "")) for turn in row.get("history") or ()
        )
        return Pair(
            _text(row, "source", "own"),
            _text(row, "query"),
            _text(row, "rewrite"),
            history,
            _texts(row, "statements"),
            _texts(row, "statements_used"),
            _text(row, "title", ""),
        )
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(
            f"{where} is no pair ({error}): it needs the texts 'query' and 'rewrite', and may have 'history' "
            "(a list of 'query' and 'response'), 'statements' (a list of texts) and 'source'"
        ) from error


def _text(row: Mapping[str, Any], name: str, otherwise: str | None = None) -> str:
    """The text on one line. Raises ValueError if it is required but missing."""
    value = row.get(name)
    value = otherwise if value is None else value
    if not isinstance(value, str) or (otherwise is None and not value.strip()):
        raise ValueError(f"'{name}' is not a text")
    return " ".join(value.split())


def _texts(row: Mapping[str, Any], name: str) -> tuple[str, ...]:
    values = row.get(name) or []
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"'{name}' is not a list of texts")
    return tuple(" ".join(value.split()) for value in values)


def conversations(pairs: Iterable[Pair]) -> list[Conversation]:
    """Joins consecutive pairs into one conversation if their histories continue one another."""
    found: list[list[Pair]] = []
    trunk: tuple[PastTurn, ...] = ()
    for pair in pairs:
        if found and _is_same(found[-1][0], pair) and (longer := _join(trunk, pair, found[-1])) is not None:
            found[-1].append(pair)
            trunk = longer
        else:
            found.append([pair])
            trunk = pair.history
    return [_conversation(group) for group in found]


def _is_same(one: Pair, other: Pair) -> bool:
    return (one.source, one.title, one.statements) == (other.source, other.title, other.statements)


def _join(trunk: tuple[PastTurn, ...], pair: Pair, group: Sequence[Pair]) -> tuple[PastTurn, ...] | None:
    """The turns with the pair's, if the pair continues them or comes after some of them; otherwise None."""
    if not pair.history and not trunk:
        return None  # two first queries
    if pair.history == trunk[: len(pair.history)] and (pair.history or pair.query == trunk[0].query):
        return trunk
    if trunk == pair.history[: len(trunk)] and pair.history[len(trunk)].query == group[-1].query:
        return pair.history
    return None


def _conversation(group: Sequence[Pair]) -> Conversation:
    first = group[0]
    turns = max((pair.history for pair in group), key=len)
    targets = sorted((Target(len(pair.history), pair.query, pair.rewrite) for pair in group), key=lambda t: t.n_before)
    used = tuple(dict.fromkeys(text for pair in group for text in pair.used))
    return Conversation(first.source, turns, tuple(targets), first.statements, used, first.title)


def split(found: Iterable[Conversation], one_in: int = 20) -> tuple[list[Conversation], list[Conversation]]:
    """The conversations to train on, and one in `one_in` to score on; those with the same start stay together."""
    parts: tuple[list[Conversation], list[Conversation]] = [], []
    for conversation in found:
        beginning = conversation.title or (conversation.turns or conversation.targets)[0].query
        digest = hashlib.blake2b(beginning.casefold().encode(), digest_size=8).digest()
        parts[int.from_bytes(digest, "big") % one_in == 0].append(conversation)
    return parts
