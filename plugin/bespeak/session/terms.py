"""Picks the words of the session that a query depends on, with a small network instead of a language model.

Each word of the latest turns and of the statements is a candidate. From its features the network estimates the
probability that a person would have used it in a full query (term classification as in QuReTeC, Voskarides et al. 2020,
on features instead of BERT). The query followed by the picked words is then encoded once.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bespeak.caching import RecentlyUsed
from bespeak.errors import ModelError
from bespeak.records import Profile, Term, UserKey
from bespeak.session.candidates import Candidate, Rarity, StatementWords, find_candidates, read_statements

if TYPE_CHECKING:
    from bespeak.session.candidates import Floats

MODEL = "context-terms"
MAX_TERMS = 8
MIN_PROBABILITY = 0.1
"""At most `MAX_TERMS` words are picked, each with at least this probability."""
PROFILES_READ = 100
"""Users whose statements stay read, so that the next query of a session need not read them again."""


class TermPicker:
    """The network, with the rarity of each stem. Picks the same words for the same profile."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        stems = arrays["stems"].tolist()
        self._layers = [(arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(3)]
        self._own_weights = dict(zip(stems, arrays["own"].tolist(), strict=True))
        self.rarity = Rarity(dict(zip(stems, arrays["rarity"].tolist(), strict=True)), float(arrays["unseen"]))
        self._statements: RecentlyUsed[tuple[str, ...], StatementWords] = RecentlyUsed(PROFILES_READ)

    def forget(self, _user: UserKey) -> None:
        """Drops what is kept of this user's statements, and of everybody else's."""
        self._statements.clear()

    def pick(self, query: str, profile: Profile) -> tuple[Term, ...]:
        """The likeliest words, at most `MAX_TERMS`, in the order in which they occur, newest turn first."""
        found, features = find_candidates(query, profile, self.rarity, self._read_statements(profile))
        if not found:
            return ()
        likely = self.probabilities(found, features)
        best = sorted(i for i in (-likely).argsort(kind="stable")[:MAX_TERMS] if likely[i] >= MIN_PROBABILITY)
        return tuple(_term(found[i], profile) for i in best)

    def probabilities(self, found: Sequence[Candidate], features: Floats) -> Floats:
        """`(n,)` in [0, 1]."""
        import numpy as np

        h = features
        for w, b in self._layers[:-1]:
            h = np.maximum(h @ w + b, 0)  # (n, hidden)
        w, b = self._layers[-1]
        own = np.array([self._own_weights.get(one.stem, 0.0) for one in found], np.float32)
        return (1 / (1 + np.exp(-((h @ w)[:, 0] + b[0] + own)))).astype(np.float32)  # type: ignore[no-any-return]

    def _read_statements(self, profile: Profile) -> StatementWords:
        texts = tuple(statement.text for statement in profile.statements)
        found, n_forgotten = self._statements.get(texts), self._statements.n_forgotten
        if found is None:
            found = read_statements(texts, self.rarity)
            self._statements.put(texts, found, n_forgotten)
        return found


def _term(one: Candidate, profile: Profile) -> Term:
    if one.source == "statement":
        statement = profile.statements[one.place]
        return Term(one.word, "statement", statement.event_id, statement.text)
    turn = profile.turns[one.place]
    return Term(one.word, "turn", turn.event_id, turn.query)


def load_terms(folder: Path | None = None) -> TermPicker:
    """The shipped network, or the one in `folder`. Raises ModelError."""
    import zipfile

    import numpy as np

    from bespeak.models.catalogue import asset_folder

    path = (folder or asset_folder("onnx_models") / MODEL) / "terms.npz"
    try:
        with np.load(path) as arrays:
            return TermPicker({name: arrays[name] for name in arrays.files})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} cannot be read ({error}): run 'bespeak models verify'") from error
