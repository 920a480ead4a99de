"""The seam to a search engine: one Protocol, implemented by the embedded engine and by Elasticsearch."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from typing import Any, Protocol

from bespeak.errors import IndexMissing, UsageError
from bespeak.records import Clause, Document, EngineQuery, Hits
from bespeak.text.analysis import tokens

VECTOR_FIELD = "bespeak_vector"
"""The `dense_vector` field that `bespeak index` adds. It is never shown as part of a document's source."""


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What an index holds: its searchable text fields, in the order they were named, and its vectors."""

    index: str
    fields: tuple[str, ...]
    n_docs: int
    dim: int | None  # None: no vectors
    encoder: str | None  # name of the encoder that made the vectors, if known


@dataclass(frozen=True, slots=True)
class RejectedDocument:
    """A document that the engine refused."""

    doc_id: str
    reason: str


class Engine(Protocol):
    """Its methods raise only `IndexMissing`, `EngineUnreachable`, `EngineRefused` or, for wrong usage, `UsageError`."""

    name: str
    location: str  # of its indices, without credentials

    def search(self, query: EngineQuery) -> Hits: ...

    def find(self, index: str, texts: Sequence[str], size: int) -> list[tuple[str, ...]]:
        """For each text, the doc_ids of its first `size` hits in the order of `search`. Texts are searched in bulk."""
        ...

    def fetch(self, index: str, doc_ids: Sequence[str]) -> list[Document]:
        """The documents with their vectors, in the order of `doc_ids`, without those that do not exist."""
        ...

    def create(self, index: str, fields: Sequence[str], dim: int | None, encoder: str | None) -> None:
        """Makes the index. An index with the same fields, `dim` and encoder is left as it is."""
        ...

    def load(self, index: str, documents: Sequence[Document]) -> list[RejectedDocument]:
        """Adds documents or replaces them by doc_id. The batch is durable on return and searchable after `refresh`."""
        ...

    def refresh(self, index: str) -> None: ...

    def describe(self, index: str) -> IndexInfo: ...

    def indices(self) -> list[str]: ...

    def drop(self, index: str) -> None: ...

    def close(self) -> None: ...


MAX_WORDS = 1024
"""Words times fields in a query, the least that any Elasticsearch allows. Words beyond it are left out."""

MAX_ID_BYTES = 512
KEYWORD_CHARS = 1024
"""Longer values cannot be filtered by."""


def check_index_name(index: str) -> None:
    """Raises UsageError for a name that Elasticsearch refuses, or that is hidden (.name) and so not for documents."""
    wrong = ""
    if not index or len(index.encode("utf-8", "replace")) > 255:
        wrong = "it must have 1 to 255 bytes"
    elif index[0] in ".-_+":
        wrong = f"it must not begin with {index[0]}"
    elif index != index.lower():
        wrong = "it must be lower case"
    elif bad := sorted(set(index) & set('\\/*?"<>| ,#:') or {c for c in index if not c.isprintable()}):
        wrong = f"it must not hold {' '.join(map(repr, bad))}"
    if wrong:
        raise UsageError(f"{index[:80]!r} cannot be the name of an index: {wrong}")


def refuse_id(doc_id: str) -> str:
    """Why no engine takes a document with this id; "" if they do."""
    return "" if 1 <= len(doc_id.encode()) <= MAX_ID_BYTES else f"its id must have 1 to {MAX_ID_BYTES} bytes"


def shorten(query: EngineQuery, n_fields: int) -> EngineQuery:
    """The query with at most `MAX_WORDS / n_fields` words, those of the required clauses first."""
    left = max(MAX_WORDS // max(n_fields, 1), 1)

    def cut(clauses: Sequence[Clause]) -> Iterator[Clause]:
        nonlocal left
        for clause in clauses:
            words = tokens(clause.text)
            if len(words) <= left:
                yield clause
            elif left:
                yield replace(clause, text=clause.text[: words[left - 1].end])
            left -= min(left, len(words))

    return replace(query, required=tuple(cut(query.required)), optional=tuple(cut(query.optional)))


def require_fields(index: str, fields: Sequence[str]) -> None:
    """Raises UsageError if there is no field to search in."""
    if not fields:
        raise UsageError(f"the index {index!r} needs at least one text field")


def index_missing(index: str, names: Sequence[str]) -> IndexMissing:
    """The error for an index that does not exist; it names existing indices with a similar name."""
    near = get_close_matches(index, names, 3, 0.5) or sorted(names)[:5]
    there = f"there {'is' if len(near) == 1 else 'are'} {', '.join(near)}" if near else "there is none yet"
    return IndexMissing(f"no index {index!r}: {there}; load one with `bespeak index FILE --to {index}`")


def index_differs(index: str, existing: tuple[Any, ...], wanted: tuple[Any, ...]) -> UsageError:
    """The error for an index that exists, but with other (fields, dim, encoder) than wanted."""

    def contents(fields: Sequence[str], dim: int | None, encoder: str | None) -> str:
        return f"the fields {', '.join(fields)} and {f'{dim} dimensions by {encoder}' if dim else 'no vectors'}"

    return UsageError(
        f"the index {index!r} already has {contents(*existing)}, not {contents(*wanted)}: choose another name, or"
        " use the same fields and encoder"
    )
