"""Opens a rewriter by its name."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal, assert_never

from bespeak.rewriting.model import find_model
from bespeak.rewriting.rewriter import LastTurn, Rewriter, Unchanged

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder
    from bespeak.session.reader import ContextReader


def choose_rewriter(
    name: Literal["model", "last-turn", "none"],
    cache_dir: Path,
    grounded: bool = True,
    threads: int = 2,
    encoder: Encoder | None = None,
    context: ContextReader | None = None,
    joint: bool = False,
) -> Rewriter:
    """The rewriter of this name.

    `encoder` picks the statements to read when the user has more than the model can read, `context` the words of the
    session that a rewrite may use. `joint` lets several threads of one job share runs of the model; the rewrites are
    the same. Raises ModelError if the language model is not built, damaged, or built from old parts.
    """
    match name:
        case "none":
            return Unchanged()
        case "last-turn":
            return LastTurn()
        case "model":
            from bespeak.rewriting.batched import JointScorer
            from bespeak.rewriting.decoding import DECODING, LanguageModel
            from bespeak.rewriting.scorer import OnnxScorer

            folder, version = find_model(cache_dir)
            scorer = JointScorer(folder, threads) if joint else OnnxScorer(folder, threads)
            return LanguageModel(scorer, f"{version}.{DECODING}", grounded, encoder, context)
    assert_never(name)
