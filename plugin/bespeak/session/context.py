"""An encoder for queries that reads the session together with the query; document vectors stay as they are.

It was trained towards the vectors of a person's rewrite and of the answer, as in ConvDR (Yu et al., "Few-shot
conversational dense retrieval", 2021).
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bespeak.errors import ModelError
from bespeak.models.catalogue import known_models, verify
from bespeak.models.encoder import OnnxEncoder
from bespeak.session.sections import Section

MODEL = "bge-small-en-v1.5-context-int8"
BETWEEN = " [SEP] "


def session_text(found: Sequence[Section]) -> str:
    """What the encoder reads: the query, then the sections of its session."""
    return BETWEEN.join(section.text for section in found)


def load_context(cache: Path | None = None, threads: int | None = None) -> OnnxEncoder:
    """The context encoder made on this machine, or else the shipped one. Raises ModelError."""
    found = [folder for record, folder in known_models(cache) if record.kind == "context-encoder"]
    if not found:
        raise ModelError("this installation has no context encoder: install bespeak again")
    record = verify(found[-1], cache)
    return OnnxEncoder(found[-1], threads, f"{record.name}@{record.version}")
