"""The query's side of an encoder that reads the session beside the query; documents and their vectors stay as they are.

It was trained towards the vector of a person's rewrite and that of the answer: the idea is ConvDR's (Yu et al.,
"Few-shot conversational dense retrieval", 2021). One text of at most 176 tokens: the query, the last turn, earlier
queries, and statements.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

from bespeak.models.catalogue import known_models, verify
from bespeak.models.encoder import OnnxEncoder, RememberingEncoder, open_tokenizer, read_config, well_formed
from bespeak.records import Profile
from bespeak.session.statements import choose_statements

if TYPE_CHECKING:
    from tokenizers import Tokenizer

    from bespeak.models.encoder import Encoder
    from bespeak.records import UserKey, Vector

MODEL = "bge-small-en-v1.5-context-int8"
MAX_TOKENS = 176
QUERY_TOKENS = 56
LAST_QUERY_TOKENS, LAST_RESPONSE_TOKENS = 40, 60
EARLIER_TURNS, EARLIER_QUERY_TOKENS = 4, 24
STATEMENT_TOKENS = 20
BEFORE_TOKENS = 9
"""Of what stands before the query: a beginning and the text that the model's authors put before queries."""
MAX_CHARS = 2_000
"""Of each text, before it is tokenised."""
BETWEEN = " [SEP] "


@dataclass(frozen=True, slots=True)
class ContextEncoder:
    """Its vectors compare with those of the documents of the encoder that it was trained for."""

    encoder: Encoder
    tokenizer: Tokenizer

    def encode(self, query: str, profile: Profile) -> Vector:
        """`(dim,)`, of unit length. May raise Late, and ModelError."""
        vector: Vector = self.encoder.encode([self.text(query, profile)], "query")[0]
        return vector

    def text(self, query: str, profile: Profile) -> str:
        """What the encoder reads."""
        return session_text(query, profile, self.tokenizer)

    def knows(self, query: str, profile: Profile) -> bool:
        """Whether it is remembered, so that encoding it takes no time."""
        return isinstance(self.encoder, RememberingEncoder) and self.encoder.knows([self.text(query, profile)], "query")

    def forget(self, user: UserKey) -> None:
        if isinstance(self.encoder, RememberingEncoder):
            self.encoder.forget(user)


def session_text(query: str, profile: Profile, tokenizer: Tokenizer) -> str:
    """At most `MAX_TOKENS` with all that is put around it; a part that does not fit is left out."""

    @lru_cache
    def read(text: str, limit: int) -> tuple[str, int]:
        """The beginning that so many tokens hold, and how many it has."""
        text = " ".join(well_formed(text[:MAX_CHARS]).split())
        ends = [end for _, end in tokenizer.encode(text, add_special_tokens=False).offsets[:limit]]
        return (text[: ends[-1]], len(ends)) if ends else ("", 0)

    begun, n = read(query, QUERY_TOKENS)
    parts, room = [begun], MAX_TOKENS - BEFORE_TOKENS - n - 1
    for text, limit in _turn_texts(profile):
        found, n = read(text, limit)
        if found and n < room:
            parts.append(found)
            room -= n + 1
    chosen = choose_statements(query, profile, lambda text: read(text, STATEMENT_TOKENS)[1] + 1, room, encoder=None)
    return BETWEEN.join([*parts, *(read(statement.text, STATEMENT_TOKENS)[0] for statement in chosen)])


def _turn_texts(profile: Profile) -> Iterator[tuple[str, int]]:
    """The last turn's query and answer, then earlier queries, newest first, each with the tokens that it may take."""
    if not profile.turns:
        return
    last = profile.turns[-1]
    yield last.query, LAST_QUERY_TOKENS
    yield last.response, LAST_RESPONSE_TOKENS
    for turn in reversed(profile.turns[-1 - EARLIER_TURNS : -1]):
        yield turn.query, EARLIER_QUERY_TOKENS


def load_context(encoder: Encoder, cache: Path | None = None, threads: int | None = None) -> ContextEncoder | None:
    """The one that was trained for this encoder: one made in the cache, else the shipped one, else None.

    Raises ModelError.
    """
    found = [
        folder
        for record, folder in known_models(cache)
        if record.kind == "context-encoder" and read_config(folder).of == encoder.name
    ]
    if not found:
        return None
    record = verify(found[-1], cache)
    reader = OnnxEncoder(found[-1], threads, f"{record.name}@{record.version}")
    return ContextEncoder(reader, open_tokenizer(found[-1], MAX_CHARS))
