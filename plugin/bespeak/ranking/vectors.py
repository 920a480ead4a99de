"""A vector as a sum of addends, so that each addend's part in a cosine is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import numpy.typing as npt

from bespeak.records import Vector


@dataclass(frozen=True, slots=True)
class Addend:
    """One addend, already multiplied by its weight, and the event that it comes from, if any."""

    vector: npt.NDArray[np.float32]  # (dim,)
    event_id: str = ""
    text: str = ""
    action: str = ""  # as in Evidence

    def times(self, weight: float) -> Addend:
        return replace(self, vector=(self.vector * weight).astype(np.float32))


@dataclass(frozen=True, slots=True)
class VectorSum:
    """The sum of its addends, scaled to unit length; `norm` is the length before scaling."""

    vector: Vector
    addends: tuple[Addend, ...]
    norm: float


@dataclass(frozen=True, slots=True)
class QueryVector:
    """The query's vector as the settings mix it."""

    mixed: VectorSum
    typed: Addend  # the query as typed, alone
    last_turn: Addend | None = None  # the last turn, alone


def add_up(addends: Sequence[Addend]) -> VectorSum | None:
    """The sum of the addends as a unit vector; None without addends, or if they cancel out."""
    if not addends:
        return None
    total = np.sum([addend.vector for addend in addends], axis=0)
    norm = float(np.linalg.norm(total))
    if norm < 1e-6:
        return None
    return VectorSum((total / norm).astype(np.float32), tuple(addends), norm)


@dataclass(frozen=True, slots=True)
class Embedded:
    """The vectors that ranking needs: the seam between a face's engine and the ranking.

    A face gives the vector that its index holds if that compares with the query's, otherwise one made from the
    document's text; a liked document that the index lacks is embedded by its title. A document without text has a
    vector of zeros.
    """

    hits: tuple[Vector | None, ...]  # in the order of the hits; None: there was no time, or there is no encoder
    liked: Mapping[str, Vector] = field(default_factory=dict)  # by doc_id
    fields: Mapping[str, tuple[str, ...]] = field(default_factory=dict)  # by index: what its documents are found by
