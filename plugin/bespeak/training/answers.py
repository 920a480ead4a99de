"""Searches the answers of all conversations to measure how well a rewrite finds the one that was given."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import numpy.typing as npt

from bespeak.evaluation.memory import Bm25
from bespeak.models.encoder import digest_of
from bespeak.models.vectors import VectorCache
from bespeak.ranking.tuned import LAST_TURN_BESIDE_SESSION
from bespeak.reading import Reading, VectorName, clauses, query_vector, turn_text
from bespeak.records import Document, Rewrite, Vector
from bespeak.settings import Settings
from bespeak.statuses import RewriteStatus
from bespeak.training.candidates import SHORTEST_ANSWER, AnsweredTurn

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder
    from bespeak.records import Matrix
    from bespeak.training.pairs import Conversation

READ_CHARS = 600
"""Characters of an answer that are embedded."""
AT_ONCE = 64
SETTINGS = Settings(
    last_turn_weight=Settings().last_turn_weight * LAST_TURN_BESIDE_SESSION,
    last_turn_share=Settings().last_turn_share * LAST_TURN_BESIDE_SESSION,
)
"""The last turn counts as in a search that reads its session, although no session is read here."""


class Gains(NamedTuple):
    """The gain 1 / log2(1 + rank) of the turn's own answer in three searches, each in (0, 1]."""

    dense: float  # by the vector of query, candidate and last turn
    lexical: float  # by BM25 of the three
    alone: float  # by the candidate's vector alone

    @property
    def mean(self) -> float:
        return sum(self) / len(self)


def texts_of(found: Iterable[Conversation]) -> list[str]:
    """The answers that are long enough, without duplicates."""
    said = (turn.response for conversation in found for turn in conversation.turns)
    return list(dict.fromkeys(text for text in said if len(text) >= SHORTEST_ANSWER))


class Answers:
    """All answers, to search by words and by `vectors`, `(n_texts, dim)` of unit length."""

    def __init__(self, texts: Sequence[str], vectors: Matrix, encoder: Encoder) -> None:
        self._rows = {text: row for row, text in enumerate(texts)}
        self._bm25 = Bm25([Document(str(row), {"text": text}) for row, text in enumerate(texts)], ["text"])
        self._vectors, self._encoder = vectors, encoder

    def gains(self, turn: AnsweredTurn, candidates: Sequence[str]) -> list[Gains]:
        """The gains of each candidate. Earlier answers of the conversation are left out: nobody asks for them now."""
        readings = self._read(turn, candidates)
        own = self._rows[turn.answer]
        others = np.ones(len(self._rows), bool)
        others[[self._rows[t.response] for t in turn.history if t.response in self._rows]] = False
        others[own] = False
        return [
            Gains(*(gain(scores, own, others) for scores in self._scores(reading, text)))
            for reading, text in zip(readings, candidates, strict=True)
        ]

    def _read(self, turn: AnsweredTurn, candidates: Sequence[str]) -> list[Reading]:
        """The turn with each candidate as its rewrite."""
        last = turn_text(turn.profile.turns[-1])
        typed, latest, *rows = self._encoder.encode([turn.query, last, *candidates], "query")
        found = []
        for text, row in zip(candidates, rows, strict=True):
            rewrite = Rewrite(turn.query, text, status=RewriteStatus.FULL)
            vectors: dict[VectorName, Vector] = {"typed": typed, "rewrite": row, "last_turn": latest}
            if not rewrite.changed:
                del vectors["rewrite"]
            found.append(Reading(turn.query, turn.profile, None, None, rewrite, vectors=vectors))
        return found

    def _scores(self, reading: Reading, text: str) -> Iterator[npt.NDArray[np.float32]]:
        """Scores of all answers, `(n_texts,)` each: by the mixed vector, by words, by the candidate's vector alone."""
        asked = query_vector(reading, SETTINGS)
        assert asked is not None
        yield self._vectors @ asked.mixed.vector
        weights = {reading.query: 1.0} | {clause.text: clause.weight for clause in clauses(reading, SETTINGS)}
        yield np.sum([weight * self._bm25.scores(said) for said, weight in weights.items()], axis=0)
        yield self._vectors @ reading.vectors["rewrite" if text != reading.query else "typed"]


def gain(scores: npt.NDArray[np.float32], answer: int, others: npt.NDArray[np.bool_]) -> float:
    """The gain of answer `own`: its rank is one more than the number of `others` with a higher score; both `(n,)`."""
    n_above = int((scores[others] > scores[answer]).sum())
    return float(1 / np.log2(2 + n_above))


def encode_all(texts: Sequence[str], encoder: Encoder, kept: Path, report: Callable[[int], None]) -> Matrix:
    """Vectors of the texts, `(n_texts, dim)`. Reuses those in the file `kept`, and reports how many are done."""
    cache = VectorCache(kept)
    rows: list[npt.NDArray[np.float32]] = []
    try:
        for start in range(0, len(texts), AT_ONCE):
            some = [text[:READ_CHARS] for text in texts[start : start + AT_ONCE]]
            keys = [digest_of(text, "document").hex() for text in some]
            known = {key: vector for key, (_, vector) in cache.get(encoder.name, keys).items()}
            missing = {key: text for key, text in zip(keys, some, strict=True) if key not in known}
            made = dict(zip(missing, encoder.encode(list(missing.values())), strict=True))
            cache.put(encoder.name, {key: ("", vector) for key, vector in made.items()})
            rows += [known[key] if key in known else made[key] for key in keys]
            report(len(rows))
    finally:
        cache.close()
    return np.stack(rows)
