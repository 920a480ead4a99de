"""The seam to a search engine: one Protocol, the embedded engine and Elasticsearch behind it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from bespeak.records import Document, EngineQuery, Hits

VECTOR_FIELD = "bespeak_vector"
"""Name of the `dense_vector` field that `bespeak index` adds; never shown as part of a document's source."""


@dataclass(frozen=True, slots=True)
class IndexInfo:
    """What an index holds: its searchable text fields in the order they were given, and its vectors."""

    index: str
    fields: tuple[str, ...]
    n_docs: int
    dim: int | None  # None: no vectors
    encoder: str | None  # name of the encoder that made the vectors, where it is known


@dataclass(frozen=True, slots=True)
class Rejected:
    """A document that the engine did not take."""

    doc_id: str
    reason: str


class Engine(Protocol):
    """Raises `IndexMissing`, `EngineUnreachable` or `EngineRefused`, each a sentence; nothing else on purpose."""

    name: str

    def search(self, query: EngineQuery) -> Hits: ...

    def fetch(self, index: str, doc_ids: Sequence[str]) -> list[Document]:
        """The documents with their vectors, in the order asked; those that are not there are left out."""
        ...

    def create(self, index: str, fields: Sequence[str], dim: int | None, encoder: str | None) -> None:
        """Makes the index; one that exists with the same fields and dim is left as it is."""
        ...

    def load(self, index: str, documents: Sequence[Document]) -> list[Rejected]:
        """Adds or replaces by doc_id. On return the batch is durable; it may be searched after `refresh`."""
        ...

    def refresh(self, index: str) -> None: ...

    def describe(self, index: str) -> IndexInfo: ...

    def indices(self) -> list[str]: ...

    def drop(self, index: str) -> None: ...

    def close(self) -> None: ...
