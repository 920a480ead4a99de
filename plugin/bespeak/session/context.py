"""An encoder for queries that reads the session together with the query; document vectors stay as they are.

It was trained towards the vectors of a person's rewrite and of the answer, as in ConvDR (Yu et al., "Few-shot
conversational dense retrieval", 2021). It reads one text of at most 176 tokens: the query, the last turn, earlier
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
"""Tokens before the query: the start token, and the prefix that the model's authors put before queries."""
MAX_CHARS = 2_000
"""Each text is cut to this length before it is tokenised."""
BETWEEN = " [SEP] "


@dataclass(frozen=True, slots=True)
class ContextEncoder:
    """Its vectors compare with the document vectors of the encoder that it was trained for."""

    encoder: Encoder
    tokenizer: Tokenizer

    def encode(self, query: str, profile: Profile) -> Vector:
        """`(dim,)`, of unit length. May raise Late, and ModelError."""
        vector: Vector = self.encoder.encode([self.text(query, profile)], "query")[0]
        return vector

    def text(self, query: str, profile: Profile) -> str:
        """The text that the encoder reads."""
        return session_text(query, profile, self.tokenizer)

    def knows(self, query: str, profile: Profile) -> bool:
        """Whether the vector is remembered, so that encoding takes no time."""
        return isinstance(self.encoder, RememberingEncoder) and self.encoder.knows([self.text(query, profile)], "query")

    def forget(self, user: UserKey) -> None:
        if isinstance(self.encoder, RememberingEncoder):
            self.encoder.forget(user)


def session_text(query: str, profile: Profile, tokenizer: Tokenizer) -> str:
    """The query and its session as one text, at most `MAX_TOKENS` with special tokens and prefix.

    A part that does not fit is left out.
    """

    @lru_cache
    def start_of(text: str, limit: int) -> tuple[str, int]:
        """The first `limit` tokens of the text, and how many they are."""
        text = " ".join(well_formed(text[:MAX_CHARS]).split())
        ends = [end for _, end in tokenizer.encode(text, add_special_tokens=False).offsets[:limit]]
        return (text[: ends[-1]], len(ends)) if ends else ("", 0)

    typed, n = start_of(query, QUERY_TOKENS)
    parts, room = [typed], MAX_TOKENS - BEFORE_TOKENS - n - 1
    for text, limit in _turn_texts(profile):
        found, n = start_of(text, limit)
        if found and n < room:
            parts.append(found)
            room -= n + 1
    chosen = choose_statements(query, profile, lambda text: start_of(text, STATEMENT_TOKENS)[1] + 1, room, encoder=None)
    return BETWEEN.join([*parts, *(start_of(statement.text, STATEMENT_TOKENS)[0] for statement in chosen)])


def _turn_texts(profile: Profile) -> Iterator[tuple[str, int]]:
    """The last turn's query and answer, then earlier queries, newest first, each with the most tokens it may take."""
    if not profile.turns:
        return
    last = profile.turns[-1]
    yield last.query, LAST_QUERY_TOKENS
    yield last.response, LAST_RESPONSE_TOKENS
    for turn in reversed(profile.turns[-1 - EARLIER_TURNS : -1]):
        yield turn.query, EARLIER_QUERY_TOKENS


def load_context(encoder: Encoder, cache: Path | None = None, threads: int | None = None) -> ContextEncoder | None:
    """The context encoder for this encoder: one in the cache, or else the shipped one; None if there is neither.

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
