"""Loads files of documents into an index, in batches and with vectors, and resumes after an interruption."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from itertools import chain, islice
from pathlib import Path
from typing import TYPE_CHECKING

from bespeak.document import document_text
from bespeak.engines import Engine
from bespeak.engines.corpus import Corpus, Row, find_fields, read_documents
from bespeak.errors import IndexMissing, InputError
from bespeak.files import make_private_folder, replacing
from bespeak.records import Document

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder

BATCH = 128
"""Documents between two checkpoints if they are embedded: a few seconds' work."""

PLAIN_BATCH = 2_000
"""Documents between two checkpoints without an encoder."""

SAMPLE = 200
"""Documents that are read to find the text fields."""

REJECTIONS_KEPT = 20


@dataclass(frozen=True)
class IndexLoad:
    """How far a load has come; this is what a checkpoint holds."""

    lines: int = 0  # read so far
    loaded: int = 0
    rejected: int = 0
    rejections: tuple[tuple[int, str], ...] = ()  # the first ones: line and reason
    fields: tuple[str, ...] = ()
    proof: tuple[str, ...] = ()  # the first and the last doc_id loaded: the index must still hold them
    resumed_at: int = 0  # the line after which this run began


class Checkpoints:
    """One small file for each unfinished load, replaced as a whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def read(self, key: str) -> IndexLoad:
        """How far the load has come; its beginning if there is no readable checkpoint."""
        try:
            found = json.loads((self.folder / f"{key}.json").read_bytes())
            rejections = tuple((int(line), str(reason)) for line, reason in found.pop("rejections"))
            fields, proof = tuple(found.pop("fields")), tuple(found.pop("proof"))
            return IndexLoad(**found, rejections=rejections, fields=fields, proof=proof)
        except (OSError, ValueError, TypeError, KeyError, AttributeError):
            return IndexLoad()

    def write(self, key: str, done: IndexLoad) -> None:
        """Raises InputError if the folder cannot be written."""
        try:
            make_private_folder(self.folder)
            with replacing(self.folder / f"{key}.json", "w", durable=True, encoding="utf-8") as file:
                json.dump(asdict(done), file)
        except OSError as error:
            raise InputError(f"cannot note in {self.folder} how far the load is: {error.strerror}") from error

    def drop(self, key: str) -> None:
        with suppress(OSError):
            (self.folder / f"{key}.json").unlink()


def load(
    engine: Engine,
    index: str,
    corpus: Corpus,
    encoder: Encoder | None,
    checkpoints: Checkpoints | None = None,
    progress: Callable[[IndexLoad], None] | None = None,
) -> IndexLoad:
    """Loads a file into an index, which is created if needed. Documents replace those with the same id.

    A corpus that names no fields has the index's or, for a new index, those that hold running text. An interrupted load
    of a file (not of a stream) resumes after its last durable batch. Raises InputError, UsageError, EngineError.
    """
    key = _key(engine, index, corpus, encoder) if checkpoints and isinstance(corpus.file, Path) else ""
    done = checkpoints.read(key) if checkpoints and key else IndexLoad()
    if done.lines and not _still_there(engine, index, done):
        done = IndexLoad()
    rows = read_documents(corpus, done.lines)
    fields = corpus.fields or done.fields or _fields_of(engine, index)
    if not fields:
        sample = _sample(rows)
        fields, rows = find_fields(sample), chain(sample, rows)
    if not fields:
        rejections = [(row.line_no, row.reason or "no field that holds text") for row in rows]
        return IndexLoad(rejected=len(rejections), rejections=tuple(rejections[:REJECTIONS_KEPT]))
    engine.create(index, fields, encoder.dim if encoder else None, encoder.name if encoder else None)
    done = replace(done, fields=tuple(fields), resumed_at=done.lines)
    while batch := list(islice(rows, BATCH if encoder else PLAIN_BATCH)):
        done = _load_batch(engine, index, batch, encoder, done)
        if checkpoints and key:
            checkpoints.write(key, done)
        if progress:
            progress(done)
    engine.refresh(index)
    if checkpoints and key:
        checkpoints.drop(key)
    return done


def _load_batch(
    engine: Engine, index: str, batch: Sequence[Row], encoder: Encoder | None, done: IndexLoad
) -> IndexLoad:
    """Embeds and loads a batch; how far the load has come then."""
    documents, rejected = _loadable(batch, done.fields)
    if encoder and documents:
        documents = _embedded(documents, done.fields, encoder)
    refused = engine.load(index, list(documents.values())) if documents else []
    reasons = {one.doc_id: one.reason for one in refused}
    rejected |= {line: reasons[document.doc_id] for line, document in documents.items() if document.doc_id in reasons}
    kept = [document.doc_id for document in documents.values() if document.doc_id not in reasons]
    return replace(
        done,
        lines=batch[-1].line_no,
        loaded=done.loaded + len(kept),
        rejected=done.rejected + len(rejected),
        rejections=(done.rejections + tuple(sorted(rejected.items())))[:REJECTIONS_KEPT],
        proof=(*(done.proof[:1] or kept[:1]), *(kept[-1:] or done.proof[1:])),
    )


def _loadable(batch: Sequence[Row], fields: Sequence[str]) -> tuple[dict[int, Document], dict[int, str]]:
    """Line -> document for those with text in the fields; line -> reason for the others."""
    documents: dict[int, Document] = {}
    rejected: dict[int, str] = {}
    for row in batch:
        if row.document is None:
            rejected[row.line_no] = row.reason
        elif document_text(row.document.source, fields):
            documents[row.line_no] = row.document
        else:
            rejected[row.line_no] = f"no text in {', '.join(fields)}"
    return documents, rejected


def _embedded(documents: dict[int, Document], fields: Sequence[str], encoder: Encoder) -> dict[int, Document]:
    texts = [document_text(document.source, fields) for document in documents.values()]
    vectors = encoder.encode(texts, "document")
    with_vectors = zip(documents.items(), vectors, strict=True)
    return {line: replace(document, vector=vector) for (line, document), vector in with_vectors}


def _sample(rows: Iterator[Row]) -> list[Row]:
    """The rows up to the first `SAMPLE` documents."""
    sample, n_documents = [], 0
    for row in rows:
        sample.append(row)
        n_documents += row.document is not None
        if n_documents == SAMPLE:
            break
    return sample


def _fields_of(engine: Engine, index: str) -> tuple[str, ...]:
    try:
        return engine.describe(index).fields
    except IndexMissing:
        return ()


def _still_there(engine: Engine, index: str, done: IndexLoad) -> bool:
    """Whether the index holds what the checkpoint says: it may have been dropped, or made again."""
    try:
        engine.refresh(index)
        return len(engine.fetch(index, list(dict.fromkeys(done.proof)))) == len(set(done.proof))
    except IndexMissing:
        return False


def _key(engine: Engine, index: str, corpus: Corpus, encoder: Encoder | None) -> str:
    """A digest of what makes two loads the same: engine, index, how documents are read, and the file's content."""
    assert isinstance(corpus.file, Path)
    try:
        with corpus.file.open("rb") as stream:
            content = hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"cannot read {corpus}: {error.strerror}") from error
    encoder_name = encoder.name if encoder else ""
    how = [encoder_name, *corpus.fields, corpus.id_field or "", corpus.suffix]
    parts = [engine.name, engine.location, index, *how, content]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:32]
