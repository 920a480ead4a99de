"""The embedded engine: one folder of tantivy indices on disk."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

from bespeak.engines import IndexInfo, RejectedDocument, check_index_name, index_missing, require_fields
from bespeak.engines.tantivy_index import DESCRIPTION, TantivyIndex, engine_errors, make_index
from bespeak.errors import EngineRefused
from bespeak.files import make_private_folder
from bespeak.records import Clause, Document, EngineQuery, Hits


class EmbeddedEngine:
    """The indices in one folder. Several threads may search at once, but only one may load."""

    name = "embedded"

    def __init__(self, folder: Path) -> None:
        self.folder, self.location = folder, str(folder)
        self._opened: dict[str, TantivyIndex] = {}

    def search(self, query: EngineQuery) -> Hits:
        return self._index(query.index).search(query)

    def find(self, index: str, texts: Sequence[str], size: int) -> list[tuple[str, ...]]:
        queries = [EngineQuery(index, (Clause(text),), size=size) for text in texts]
        return [tuple(hit.doc_id for hit in self.search(query).hits) for query in queries]

    def fetch(self, index: str, doc_ids: Sequence[str]) -> list[Document]:
        return self._index(index).fetch(doc_ids)

    def create(self, index: str, fields: Sequence[str], dim: int | None, encoder: str | None) -> None:
        check_index_name(index)
        require_fields(index, fields)
        if index in self.indices():
            self._index(index).check_same(fields, dim, encoder)
            return
        with engine_errors(f"cannot make the index {index!r} in {self.folder}"):
            make_private_folder(self.folder)
            with tempfile.TemporaryDirectory(prefix=".new-", dir=self.folder) as beside:
                made = Path(beside) / "made"
                make_index(made, fields, dim, encoder)
                made.rename(self.folder / index)

    def load(self, index: str, documents: Sequence[Document]) -> list[RejectedDocument]:
        return self._index(index).load(documents)

    def refresh(self, index: str) -> None:
        self._index(index).refresh()

    def describe(self, index: str) -> IndexInfo:
        return self._index(index).describe()

    def indices(self) -> list[str]:
        try:
            return sorted(path.parent.name for path in self.folder.glob(f"[!.]*/{DESCRIPTION}"))
        except OSError as error:
            raise EngineRefused(f"cannot read the folder {self.folder}: {error.strerror}") from error

    def drop(self, index: str) -> None:
        if index not in self.indices():
            raise index_missing(index, self.indices())
        if opened := self._opened.pop(index, None):
            opened.close()
        with (
            engine_errors(f"cannot delete the index {index!r} in {self.folder}"),
            tempfile.TemporaryDirectory(prefix=".old-", dir=self.folder) as gone,
        ):
            (self.folder / index).rename(Path(gone) / "index")

    def close(self) -> None:
        for index in self._opened.values():
            index.close()
        self._opened.clear()

    def _index(self, index: str) -> TantivyIndex:
        if index not in self._opened:
            if index not in self.indices():
                raise index_missing(index, self.indices())
            self._opened[index] = TantivyIndex(self.folder / index)
        return self._opened[index]
