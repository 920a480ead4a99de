"""A judged collection of documents and conversational queries, read from its folder.

`corpus.jsonl` holds `_id`, `text` and perhaps `title`. `queries.jsonl` (`_id`, `text`, `statements`, `history` of
`query` and `response`, and perhaps `human_rewrite` and `entities`) and `qrels.tsv` (a header, then query, document and
grade) are in `dev/` or beside the corpus.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from bespeak.errors import InputError
from bespeak.records import Document, Profile, Statement, Turn, UserKey

FIELDS = ("title", "text")
FOREIGN_STEP = 7919
"""A large prime, so that neighbouring queries are not put after neighbouring conversations."""
CONVERSATION = re.compile(r"(.+?)(?:_|<::>)\d+")
"""Query ids that name their conversation: `1-1_3`, `18ef26<::>7`."""


@dataclass(frozen=True, slots=True)
class Topic:
    """A test query with its context."""

    query_id: str
    text: str
    statements: tuple[str, ...] = ()
    history: tuple[tuple[str, str], ...] = ()  # (query, response), oldest first
    human_rewrite: str | None = None
    names: tuple[str, ...] = ()  # of what the query is about

    @property
    def whole(self) -> str | None:
        """The query in a form that stands alone, if one is known."""
        if self.human_rewrite or not self.history:
            return self.human_rewrite or self.text
        return self.text if any(name.casefold() in self.text.casefold() for name in self.names) else None

    @property
    def conversation(self) -> str:
        """The part of the query id that all turns of a conversation share; the whole id if it names none."""
        match = CONVERSATION.fullmatch(self.query_id)
        return match.group(1) if match else self.query_id

    @property
    def profile(self) -> Profile:
        """The profile at this turn; event ids are `s1`, `s2`, … and `t1`, `t2`, …"""
        statements = tuple(Statement(text, f"s{n}") for n, text in enumerate(self.statements, 1))
        turns = tuple(Turn(query, response, f"t{n}") for n, (query, response) in enumerate(self.history, 1))
        known = json.dumps([self.statements, self.history])
        version = hashlib.sha256(known.encode()).hexdigest()[:32] if statements or turns else ""
        user = UserKey("evaluation", self.conversation)
        return Profile(user, self.query_id, statements, turns, version=version)


@dataclass(frozen=True)
class Collection:
    """Documents in order of doc_id, topics in the file's order, and the judgments."""

    name: str
    documents: tuple[Document, ...]
    fields: tuple[str, ...]
    topics: tuple[Topic, ...]
    qrels: Mapping[str, Mapping[str, int]] = field(repr=False)

    @cached_property
    def digest(self) -> str:
        """A digest of the documents, to name what is made from them."""
        content = hashlib.sha256()
        for document in self.documents:
            content.update(json.dumps([document.doc_id, *document.source.items()]).encode())
        return content.hexdigest()[:16]

    @property
    def groups(self) -> dict[str, str]:
        """`query_id → conversation`."""
        return {topic.query_id: topic.conversation for topic in self.topics}

    @property
    def judged(self) -> dict[str, Mapping[str, int]]:
        """The judgments of this collection's topics."""
        return {topic.query_id: self.qrels[topic.query_id] for topic in self.topics}

    def cut(self, limit: int | None = None, every: int = 1) -> Collection:
        """The collection with every Nth topic (`every`), from the first, and at most `limit` of them."""
        return replace(self, topics=self.topics[::every][:limit])

    def misplaced(self) -> Collection:
        """The queries that stand alone, each asked after the turns of another conversation.

        Raises InputError if there is none.
        """
        told = [topic for topic in self.topics if topic.history]
        found = []
        for place, topic in enumerate(self.topics):
            others = [other for other in told if other.conversation != topic.conversation]
            if topic.whole and others:
                other = others[place * FOREIGN_STEP % len(others)]
                found.append(replace(topic, text=topic.whole, statements=(), history=other.history, human_rewrite=None))
        if not found:
            raise InputError(f"{self.name} has no query that is known to stand alone: it needs `human_rewrite`")
        return replace(self, topics=tuple(found))


def read_collection(folder: Path) -> Collection:
    """Reads a collection without the topics that nobody judged. Raises `InputError`."""
    part = folder / "dev" if (folder / "dev" / "queries.jsonl").is_file() else folder
    documents = sorted((_document(line) for line in read_rows(folder / "corpus.jsonl")), key=lambda d: d.doc_id)
    qrels = read_qrels(part / "qrels.tsv")
    topics = tuple(t for t in (_topic(line) for line in read_rows(part / "queries.jsonl")) if t.query_id in qrels)
    if not documents or not topics:
        raise InputError(f"{folder} holds {len(documents)} documents and {len(topics)} judged queries: both are needed")
    fields = tuple(name for name in FIELDS if any(document.source.get(name) for document in documents))
    return Collection(folder.resolve().name, tuple(documents), fields, topics, qrels)


def read_rows(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a JSON lines file, each with an `_id` and a `text`."""
    try:
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _row(line, path, number)
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): --data must name a folder of judged data") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: convert it, then run this again") from error


def _row(line: str, path: Path, number: int) -> dict[str, Any]:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise InputError(f"{path}, line {number} is not JSON: {error}") from error
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("_id", "text")):
        raise InputError(f"{path}, line {number} is not an object with the strings _id and text")
    return row


def _document(row: Mapping[str, Any]) -> Document:
    return Document(row["_id"], {name: row[name] for name in FIELDS if row.get(name)})


def _topic(row: Mapping[str, Any]) -> Topic:
    history = tuple((turn.get("query") or "", turn.get("response") or "") for turn in row.get("history") or ())
    names = tuple(row.get("entities") or ())
    return Topic(row["_id"], row["text"], tuple(row.get("statements") or ()), history, row.get("human_rewrite"), names)


def read_qrels(path: Path) -> dict[str, dict[str, int]]:
    """`query_id → doc_id → grade`; the first line is a header."""
    qrels: dict[str, dict[str, int]] = {}
    try:
        lines = path.read_text("utf-8").splitlines()
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): the judgments belong beside the queries") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is not UTF-8: convert it, then run this again") from error
    for number, line in enumerate(lines[1:], 2):
        try:
            query_id, doc_id, grade = line.split("\t")
            qrels.setdefault(query_id, {})[doc_id] = int(grade)
        except ValueError as error:
            raise InputError(f"{path}, line {number} is not query, document and whole number, by tabs") from error
    return qrels
