"""Reads the session together with the query, to find what the query leans on.

A small model reads the query, the last turn, earlier queries and statements as one text. It says whether the query
leans on the session or on a statement at all, and gives the probability of each word that a person would have used it
in a full query (term classification as in QuReTeC; Voskarides et al., 2020). The context encoder gives the vector of a
query that leans on something.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from bespeak.caching import RecentlyUsed
from bespeak.deadline import Deadline, Late
from bespeak.errors import ModelError
from bespeak.models.catalogue import known_models, verify
from bespeak.models.encoder import RememberingEncoder, open_session, open_tokenizer, read_config
from bespeak.records import Profile, Term
from bespeak.session.context import load_context, session_text
from bespeak.session.sections import EARLIER_TURNS, MAX_CHARS, Section, sections
from bespeak.text import analysis
from bespeak.text.words import FUNCTION_WORDS, fold, words

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bespeak.models.encoder import Encoder
    from bespeak.records import UserKey, Vector

MODEL = "context-reader"
CONTEXTS_REMEMBERED = 2_000
MAX_TERMS = 8
MIN_PROBABILITY = 0.1
"""At most `MAX_TERMS` words are picked, each with at least this probability."""
MAY_BE_ADDED, IS_ADDED = 0.1, 0.5
"""The least probability of a word that a rewrite may add, and of one that it must."""
LEANS = 0.4
"""The least probability at which a query is taken to lean on something."""
HEADS = ("added", "dropped", "session", "statement")
"""What the model says of each token, as logits, in this order: whether a full query would use a word of the session,
and whether it would leave out a word of the query; and of the first token, what the query leans on."""


class SectionWord(NamedTuple):
    """A word of a section, and its tokens `[start, end)`: none if the tokenizer leaves out all its characters."""

    section: Section
    text: str
    start: int
    end: int


class ReaderInput(NamedTuple):
    """What the model reads. Tokens of the query have type 0, those of the session type 1."""

    token_ids: list[int]
    types: list[int]
    words: list[SectionWord]


def reader_input(found: Sequence[Section], tokenizer: Tokenizer, prefix: str) -> ReaderInput:
    """The sections as tokens, with `[SEP]` between them."""
    before, after = tokenizer.encode("").ids
    token_ids = [before, *tokenizer.encode(prefix, add_special_tokens=False).ids]
    types = [0] * len(token_ids)
    spans: list[SectionWord] = []
    for section in found:
        encoded = tokenizer.encode(section.text, add_special_tokens=False)
        first = len(token_ids)
        token_ids += [*encoded.ids, after]
        types += [0 if section.source == "query" else 1] * (len(encoded.ids) + 1)
        spans += _words(section, encoded.offsets, first)
    return ReaderInput(token_ids, types, spans)


def _words(section: Section, offsets: Sequence[tuple[int, int]], first: int) -> Iterator[SectionWord]:
    token = 0
    for match in re.finditer(r"\S+", section.text):
        if not (found := words(match[0])):
            continue
        begin = match.start() + match[0].index(found[0])
        while token < len(offsets) and offsets[token][0] < begin:
            token += 1
        start = token
        while token < len(offsets) and offsets[token][0] < begin + len(found[0]):
            token += 1
        yield SectionWord(section, found[0], first + start, first + token)


class Leaning(NamedTuple):
    """The probabilities that a query leans on the session, and on a statement."""

    session: float
    statement: float


class ReadWord(NamedTuple):
    """A word that was read, and the probability that a full query has it (the session's) or lacks it (the query's)."""

    text: str
    source: Literal["query", "turn", "statement"]
    place: int  # of the turn or statement in the profile; of a word of the query among its words
    probability: float


@dataclass(frozen=True, slots=True)
class Context:
    """What of the session a query leans on."""

    leaning: Leaning
    added: tuple[ReadWord, ...]  # the content words of the session that the query lacks, in the order they were read
    dropped: tuple[ReadWord, ...]  # the words of the query
    text: str = ""  # the query and the parts of its session that were read

    @property
    def stands_alone(self) -> bool:
        """Whether the query leans on nothing."""
        return max(self.leaning) < LEANS

    def may_add(self) -> frozenset[str]:
        """The folded words of the session that a rewrite may use."""
        return frozenset(fold(word.text) for word in self.added if word.probability >= MAY_BE_ADDED)

    def likely(self, least: float) -> list[ReadWord]:
        """The likeliest words of the session, at most `MAX_TERMS`, each once, in the order they were read."""
        ranked = sorted(range(len(self.added)), key=lambda i: -self.added[i].probability)
        best: dict[str, int] = {}
        for i in ranked:
            if self.added[i].probability >= least:
                best.setdefault(fold(self.added[i].text), i)
        return [self.added[i] for i in sorted(list(best.values())[:MAX_TERMS])]

    def terms(self, profile: Profile) -> tuple[Term, ...]:
        """The words of the session to search for."""
        return tuple(_term(word, profile) for word in self.likely(MIN_PROBABILITY))


def _term(word: ReadWord, profile: Profile) -> Term:
    if word.source == "statement":
        statement = profile.statements[word.place]
        return Term(word.text, "statement", statement.event_id, statement.text)
    turn = profile.turns[word.place]
    return Term(word.text, "turn", turn.event_id, turn.query)


class ContextReader(Protocol):
    """Finds what of its session a query leans on. May be used from several threads."""

    name: str
    of: str  # the encoder whose document vectors its own compare with

    def read(self, query: str, profile: Profile) -> Context:
        """What the query leans on: the same for the same session. May raise Late, and ModelError."""
        ...

    def knows(self, query: str, profile: Profile) -> bool:
        """Whether the context is remembered, so that reading it takes no time."""
        ...

    def encode(self, context: Context) -> Vector:
        """`(dim,)`, of unit length: the query read with its session. May raise Late, and ModelError."""
        ...

    def knows_vector(self, context: Context) -> bool:
        """Whether this vector is remembered."""
        ...

    def forget(self, user: UserKey) -> None:
        """Drops whatever is remembered of the user."""
        ...


class OnnxContextReader:
    """Reads sessions with the model in a folder, and remembers what it read."""

    def __init__(
        self, folder: Path, encoder: Encoder, of: str, threads: int | None = None, name: str | None = None
    ) -> None:
        """`encoder` reads a session together with a query; its vectors compare with those of the encoder `of`."""
        self.name, self.of = name or folder.name, of
        self._encoder = RememberingEncoder(encoder, CONTEXTS_REMEMBERED)
        self._prefix = read_config(folder).query_prefix
        self._tokenizer = open_tokenizer(folder, MAX_CHARS)
        self._session = open_session(folder / "model.onnx", threads)
        self._remembered: RecentlyUsed[bytes, Context] = RecentlyUsed(CONTEXTS_REMEMBERED)

    def read(self, query: str, profile: Profile) -> Context:
        key = digest_read(query, profile)
        if (known := self._remembered.get(key)) is not None:
            return known
        n_forgotten = self._remembered.n_forgotten
        found = sections(query, profile, self._tokenizer)
        read = reader_input(found, self._tokenizer, self._prefix)
        _, heads = run_reader(self._session, read, self.name)
        context = replace(make_context(query, read, heads), text=session_text(found))
        self._remembered.put(key, context, n_forgotten)
        return context

    def knows(self, query: str, profile: Profile) -> bool:
        return digest_read(query, profile) in self._remembered

    def encode(self, context: Context) -> Vector:
        vector: Vector = self._encoder.encode([context.text], "query")[0]
        return vector

    def knows_vector(self, context: Context) -> bool:
        return self._encoder.knows([context.text], "query")

    def forget(self, user: UserKey) -> None:
        """Drops what is remembered of all users."""
        self._remembered.clear()
        self._encoder.forget(user)


def digest_read(query: str, profile: Profile) -> bytes:
    """A digest of everything that is read."""
    turns = [(turn.query, turn.response) for turn in profile.turns[-1 - EARLIER_TURNS :]]
    stated = [statement.text for statement in profile.statements]
    events = [turn.event_id for turn in profile.turns[-1 - EARLIER_TURNS :]]
    events += [statement.event_id for statement in profile.statements]
    text = json.dumps([query, len(profile.turns), turns, stated, events])
    return hashlib.blake2b(text.encode("ascii"), digest_size=16).digest()


def run_reader(session: Any, read: ReaderInput, name: str) -> tuple[Vector, Any]:
    """The vector `(dim,)`, of unit length, and the heads `(n_tokens, len(HEADS))`. Raises Late and ModelError."""
    import numpy as np

    token_ids, types = (np.array([row], np.int64) for row in (read.token_ids, read.types))
    feeds = {"input_ids": token_ids, "token_type_ids": types, "attention_mask": np.ones_like(token_ids)}
    deadline = Deadline.current()
    deadline.check()
    with deadline.model_run() as run:
        try:
            vectors, heads = session.run(["vector", "heads"], feeds, run)
        except Exception as error:  # onnxruntime's own exceptions have no common class below this
            if deadline.over or run.terminate:
                raise Late from error
            raise ModelError(f"the model {name} failed ({error}): run 'bespeak models verify'") from error
    vector = vectors[0].astype(np.float32)
    return vector / max(float(np.linalg.norm(vector)), 1e-12), heads[0]


def make_context(query: str, read: ReaderInput, heads: Any) -> Context:
    """What the model's outputs say."""
    likely = probabilities(heads)
    typed = QueryWords.of(query)
    added: list[ReadWord] = []
    dropped: list[ReadWord] = []
    for word in read.words:
        section = word.section
        head, place = (HEADS.index("dropped"), len(dropped)) if section.source == "query" else (0, section.place)
        tokens = likely[word.start : word.end, head]
        found = ReadWord(word.text, section.source, place, float(tokens.mean()) if len(tokens) else 0.0)
        if section.source == "query":
            dropped.append(found)
        elif typed.lacks(word.text):
            added.append(found)
    leaning = Leaning(*(float(likely[0, HEADS.index(head)]) for head in ("session", "statement")))
    return Context(leaning, tuple(added), tuple(dropped))


def probabilities(logits: Any) -> Any:
    import numpy as np

    return 1 / (1 + np.exp(-logits.astype(np.float64)))


class QueryWords(NamedTuple):
    """The words of a query, folded, and their stems."""

    folded: frozenset[str]
    stems: frozenset[str]

    @classmethod
    def of(cls, query: str) -> QueryWords:
        return cls(frozenset(map(fold, words(query))), frozenset(analysis.terms(query)))

    def lacks(self, word: str) -> bool:
        """Whether a content word is not in the query, in any form."""
        folded = fold(word)
        if folded in FUNCTION_WORDS or folded in self.folded:
            return False
        stems = analysis.terms(word)
        return bool(stems) and not self.stems.issuperset(stems)


def load_reader(cache: Path | None = None, threads: int | None = None) -> OnnxContextReader:
    """The context reader made on this machine, or else the shipped one, with the context encoder. Raises ModelError."""
    found = [folder for record, folder in known_models(cache) if record.kind == "context-reader"]
    if not found:
        raise ModelError("this installation has no context reader: install bespeak again")
    record = verify(found[-1], cache)
    encoder = load_context(cache, threads)
    name = f"{record.name}@{record.version} {encoder.name}"
    return OnnxContextReader(found[-1], encoder, encoder.config.of, threads, name)
