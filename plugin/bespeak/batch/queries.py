"""Reads a line of the input: the query, its user, and the history that the line itself gives."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

from bespeak.errors import InputError, UsageError
from bespeak.profiles.deriving import STATEMENTS_KEPT, TURNS_KEPT
from bespeak.profiles.events import MAX_ID_CHARS, user_key
from bespeak.profiles.ubi import read_object
from bespeak.reading import MAX_QUERY_CHARS
from bespeak.records import Profile, Statement, Turn, UserKey

Form: TypeAlias = Literal["jsonl", "tsv"]

QUOTED_CHARS = 2_000
"""How much of a rejected line is repeated beside the reason."""


def form_of(name: str) -> Form:
    """How the lines of a file are written, by its name.

    >>> form_of("queries.tsv.gz"), form_of("queries.jsonl")
    ('tsv', 'jsonl')
    """
    return "tsv" if name.removesuffix(".gz").removesuffix(".zst").endswith(".tsv") else "jsonl"


@dataclass(frozen=True, slots=True)
class QueryLine:
    """One query. `history` is what the line itself gives, in place of the user's stored history."""

    line_no: int
    query_id: str | int | None  # as the line gives it
    query: str
    user: UserKey | None = None
    session_id: str = ""
    history: Profile | None = None


class RejectedQuery(NamedTuple):
    """A line without a query that can be rewritten. `text` is the beginning of the line."""

    line_no: int
    reason: str
    text: str = ""

    @property
    def kind(self) -> str:
        """The reason without the place in the line.

        >>> RejectedQuery(7, "broken JSON at character 12: Expecting value").kind
        'broken JSON'
        """
        return self.reason.partition(" at ")[0]


def read_queries(first_no: int, lines: Sequence[bytes | None], form: Form) -> Iterator[QueryLine | RejectedQuery]:
    """The query of each line, or why it is rejected. Empty lines and the heading of a TSV file are skipped."""
    for line_no, line in enumerate(lines, first_no):
        if line is None:
            yield RejectedQuery(line_no, "longer than a line may be")
        elif line.strip() and not (form == "tsv" and line_no == 1 and line.rstrip(b"\r\n") == b"id\tquery"):
            try:
                yield _read_json(line_no, line) if form == "jsonl" else _read_tsv(line_no, line)
            except (InputError, UsageError) as error:
                yield RejectedQuery(line_no, str(error), line.rstrip(b"\r\n").decode("utf-8", "replace")[:QUOTED_CHARS])


def _read_tsv(line_no: int, line: bytes) -> QueryLine:
    try:
        cells = line.decode("utf-8").rstrip("\r\n").split("\t")
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start + 1}") from error
    if len(cells) != 2:
        raise InputError("not two columns, id and query")
    given = {"id": cells[0], "query": cells[1]}
    return QueryLine(line_no, _text(given, "id"), _query(given))


def _read_json(line_no: int, line: bytes) -> QueryLine:
    given = {name: value for name, value in read_object(line).items() if value is not None}
    user_id, tenant, session_id = (str(_id(given, name) or "") for name in ("user", "tenant", "session"))
    user = user_key(tenant, user_id) if user_id else None
    history = _history(given, user, session_id) if "history" in given or "statements" in given else None
    return QueryLine(line_no, _id(given, "id"), _query(given), user, session_id, history)


def _query(given: Mapping[str, Any]) -> str:
    query = _text(given, "query")
    if not query.strip():
        raise InputError("the query is empty" if "query" in given else "no query")
    if len(query) > MAX_QUERY_CHARS:
        raise InputError(f"the query is longer than {MAX_QUERY_CHARS} characters")
    return query


def _id(given: Mapping[str, Any], name: str) -> str | int | None:
    value = given.get(name)
    if isinstance(value, int) and not isinstance(value, bool):
        if abs(value) >= 1 << 63:
            raise InputError(f"{name} is a number of more than 64 bits")
        return value
    if value is not None and len(_text(given, name)) > MAX_ID_CHARS:
        raise InputError(f"{name} is longer than {MAX_ID_CHARS} characters")
    return value


def _text(given: Mapping[str, Any], name: str, within: str = "") -> str:
    value = given.get(name, "")
    if not isinstance(value, str):
        raise InputError(f"{within}{name} is not text")
    _check(value, f"{within}{name}")
    return value


def _check(text: str, name: str) -> None:
    if "\0" in text:
        raise InputError(f"{name} holds a NUL")
    if not text.isascii() and any("\ud800" <= character <= "\udfff" for character in text):
        raise InputError(f"{name} holds half of a surrogate pair")


def _history(given: Mapping[str, Any], user: UserKey | None, session_id: str) -> Profile:
    """The profile that a line gives, cut to the latest turns and statements as a stored profile would be."""
    turns = tuple(_turns(_items(given, "history")))[-TURNS_KEPT:]
    statements = tuple(_statements(_items(given, "statements")))[-STATEMENTS_KEPT:]
    version = _version([s.text for s in statements], [(t.query, t.response) for t in turns])
    return Profile(user, session_id, statements, turns, version=version if turns or statements else "")


def _items(given: Mapping[str, Any], name: str) -> list[Any]:
    items = given.get(name, [])
    if not isinstance(items, list):
        raise InputError(f"{name} is not an array")
    return items


def _turns(items: Sequence[Any]) -> Iterator[Turn]:
    for place, item in enumerate(items):
        if not isinstance(item, dict):
            raise InputError("history holds something that is not an object")
        turn = {name: value for name, value in item.items() if value is not None}
        query, response = _text(turn, "query", "history: "), _text(turn, "response", "history: ")
        if not query.strip():
            raise InputError("history holds a turn without query")
        yield Turn(query, response, f"history[{place}]")


def _statements(items: Sequence[Any]) -> Iterator[Statement]:
    for place, item in enumerate(items):
        if not isinstance(item, str):
            raise InputError("statements holds something that is not text")
        _check(item, "statements")
        if item.strip():
            yield Statement(item, f"statements[{place}]")


def _version(statements: Sequence[str], turns: Sequence[tuple[str, str]]) -> str:
    """A digest of the history alone: two lines with the same history have the same version."""
    return hashlib.blake2b(json.dumps([statements, turns]).encode("ascii"), digest_size=16).hexdigest()
