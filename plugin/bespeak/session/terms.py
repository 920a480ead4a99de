"""Which words of the session a query leans on: a small network picks them, without a language model.

Each word of the latest turns and of the statements is a candidate, told by where it stands and what the query looks
like; the network gives the probability that a person would have said it in the whole query (term classification as in
QuReTeC, Voskarides et al. 2020, on features in place of BERT). The query followed by the picked words is encoded once.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypeAlias

from bespeak.errors import ModelError
from bespeak.records import Profile, Term, UserKey
from bespeak.text import analysis
from bespeak.text.words import FUNCTION_WORDS, fold, words

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Array: TypeAlias = npt.NDArray[np.float32]

MODEL = "context-terms"
PICKED = 8
LEAST = 0.1
"""At most so many words, each at least so probable."""
TURNS = 5
KNOWN_TURNS = 8
RESPONSE_CHARS = 1_000
PROFILES_READ = 100
"""Users whose statements are kept as they were read, so that the next query of a session need not read them again."""
RARE = 25
"""A term that was a candidate less often has no weight of its own."""

_POINTING = (
    {"it", "its", "it's"}, {"they", "them", "their", "theirs"}, {"he", "him", "his", "she", "her", "hers"},
    {"this", "that", "these", "those"}, {"there", "here"}, {"one", "ones"},
    {"other", "others", "else", "more", "another", "also", "too", "same"},
    {"first", "second", "third", "last", "former", "latter", "previous", "above", "next"},
    {"yes", "no", "ok", "okay", "yeah", "sure", "thanks", "thank"}, {"i", "my", "me", "we", "our"},
)  # fmt: skip
_ASKING = {"what", "who", "when", "where", "why", "how", "which", "whose"}
_GOING_ON = ("what about", "how about", "and ", "or ", "but ", "tell me more", "what else")
_SENTENCE = re.compile(r"(?<=[.!?;])\s+|\n")


class Candidate(NamedTuple):
    """A word that may be picked; `place` is the turn's or statement's index in the profile."""

    stem: str
    word: str
    source: Literal["turn", "statement"]
    place: int


@dataclass(slots=True)
class _Seen:
    """Where a stem stands in the turns; a turn's `back` is 0 for the last."""

    surfaces: dict[str, float] = field(default_factory=dict)
    places: set[tuple[int, str]] = field(default_factory=set)
    n: int = 0
    n_inside: int = 0  # not first in a sentence
    n_capital: int = 0
    n_capital_inside: int = 0
    in_query: float = 1.0  # relative place in the last turn's query, and in its response in 30 words
    in_response: float = 3.0
    in_first: float = 0.0  # first and last sentence of the last turn's texts
    in_last: float = 0.0
    beside: float = 0.0  # shares a sentence with a word of the query
    distance: int = 99
    after_name: float = 0.0
    before_name: float = 0.0


Frequency: TypeAlias = Mapping[str, float]
"""Stem → rarity in about [-1, 1.2]."""


@dataclass(frozen=True, slots=True)
class Stated:
    """What a user's statements hold, whatever is asked: each stem as where no statement shares a word with the query.

    `features` are `(n_stems, N_OWN)`, `words` for each statement the last word of each of its stems.
    """

    row: Mapping[str, int]  # stem -> its place
    found: Sequence[Candidate]
    times: Sequence[int]
    features: Array
    terms: Sequence[frozenset[str]]
    words: Sequence[Mapping[str, str]]

    def leaning(self, meant: set[str]) -> dict[str, tuple[int, str, int]]:
        """`stem → words shared with the query, word, statement`, of statements that share most, the last."""
        found: dict[str, tuple[int, str, int]] = {}
        for place, terms in enumerate(self.terms):
            if shares := len(terms & meant):
                found |= {
                    stem: (shares, word, place)
                    for stem, word in self.words[place].items()
                    if shares >= found.get(stem, (0,))[0]
                }
        return found


def read_statements(texts: Sequence[str], rarity: Frequency, unseen: float) -> Stated:
    import numpy as np

    times: dict[str, int] = {}
    last: dict[str, tuple[str, int]] = {}
    by_text = []
    for place, text in enumerate(texts):
        words_of: dict[str, str] = {}
        for word in words(text):
            stem = next(iter(analysis.terms(word)), "")
            if _usable(word, stem):
                times[stem] = times.get(stem, 0) + 1
                words_of[stem] = word
        last |= {stem: (word, place) for stem, word in words_of.items()}
        by_text.append(words_of)
    features = [_statement_features(last[stem][0], n, 0, rarity.get(stem, unseen)) for stem, n in times.items()]
    return Stated(
        {stem: row for row, stem in enumerate(times)},
        [Candidate(stem, last[stem][0], "statement", last[stem][1]) for stem in times],
        list(times.values()),
        np.array(features, np.float32).reshape(len(times), N_OWN),
        [frozenset(analysis.terms(text)) for text in texts],
        by_text,
    )


def candidates(
    query: str, profile: Profile, rarity: Frequency, unseen: float, stated: Stated | None = None
) -> tuple[list[Candidate], Array]:
    """What may be picked, and its features `(n, N_FEATURES)`; `stated` where the statements are read already."""
    import numpy as np

    given = set(analysis.terms(query))
    meant = {s for w in words(query) if fold(w) not in FUNCTION_WORDS for s in analysis.terms(w)}
    turns = profile.turns[-KNOWN_TURNS:]
    seen, overlap = _read_turns([(t.query, t.response) for t in turns[-TURNS:]], given, meant)
    stated = stated or read_statements([s.text for s in profile.statements], rarity, unseen)
    first = set(analysis.terms(turns[0].query)) if turns else set()
    found, rows = [], []
    for stem, one in seen.items():
        word, back = max(one.surfaces, key=one.surfaces.__getitem__), min(back for back, _ in one.places)
        found.append(Candidate(stem, word, "turn", len(profile.turns) - 1 - back))
        rows.append(_turn_features(one, word, back, stem in first, rarity.get(stem, unseen), stem in stated.row))
    said, said_rows = _stated_candidates(stated, given | seen.keys(), meant, rarity, unseen)
    features = np.empty((len(rows) + len(said), N_FEATURES), np.float32)
    features[: len(rows), :N_OWN] = np.array(rows, np.float32).reshape(len(rows), N_OWN)
    features[len(rows) :, :N_OWN] = said_rows
    features[:, N_OWN:] = [*_query_features(query, [(t.query, t.response) for t in turns], meant), overlap]
    return found + said, features


def _stated_candidates(
    stated: Stated, gone: set[str], meant: set[str], rarity: Frequency, unseen: float
) -> tuple[list[Candidate], Array]:
    """Those whose stem is not gone, and their own features."""
    import numpy as np

    found, features = list(stated.found), stated.features.copy()
    for stem, (shares, word, place) in stated.leaning(meant).items():
        row = stated.row[stem]
        found[row] = Candidate(stem, word, "statement", place)
        features[row] = _statement_features(word, stated.times[row], shares, rarity.get(stem, unseen))
    without = {stated.row[stem] for stem in gone if stem in stated.row}
    kept = [one for row, one in enumerate(found) if row not in without]
    return kept, np.delete(features, list(without), axis=0) if without else features


def _usable(word: str, stem: str) -> bool:
    return len(stem) > 1 and fold(word) not in FUNCTION_WORDS


def _tokens(text: str) -> list[tuple[str, str, bool, int]]:
    """Word, stem, whether it begins a sentence, and which one."""
    return [
        (word, next(iter(analysis.terms(word)), ""), i == 0, n)
        for n, sentence in enumerate(_SENTENCE.split(text))
        for i, word in enumerate(words(sentence))
    ]


def _read_turns(turns: Sequence[tuple[str, str]], given: set[str], meant: set[str]) -> tuple[dict[str, _Seen], float]:
    """Every stem of the turns, and the share of the query's words that the last turn has."""
    seen: dict[str, _Seen] = {}
    overlap = 0.0
    for back, (query, response) in enumerate(reversed(turns)):
        for kind, text in (("query", query), ("response", response[:RESPONSE_CHARS])):
            tokens = _tokens(text)
            if back == 0:
                overlap = max(overlap, len({t[1] for t in tokens} & meant) / max(len(meant), 1))
            _read_text(tokens, back, kind, seen, given, meant)
    return seen, overlap


def _read_text(
    tokens: Sequence[tuple[str, str, bool, int]],
    back: int,
    kind: str,
    seen: dict[str, _Seen],
    given: set[str],
    meant: set[str],
) -> None:
    hits = [i for i, token in enumerate(tokens) if token[1] in meant]
    near = {tokens[i][3] for i in hits}
    names = [word[:1].isupper() and not first for word, _, first, _ in tokens]
    for i, (word, stem, first, sentence) in enumerate(tokens):
        if stem in given or not _usable(word, stem):
            continue
        one = seen.setdefault(stem, _Seen())
        one.surfaces[word] = one.surfaces.get(word, 0.0) + (1.5 if back == 0 else 1.0)
        one.places.add((back, kind))
        one.n += 1
        one.n_inside += not first
        one.n_capital += word[:1].isupper()
        one.n_capital_inside += names[i]
        if back == 0 and kind == "query":
            one.in_query = min(one.in_query, i / len(tokens))
        if back == 0 and kind == "response":
            one.in_response = min(one.in_response, i / 30)
            one.in_first, one.in_last = max(one.in_first, sentence == 0), max(one.in_last, sentence == tokens[-1][3])
        one.beside = max(one.beside, sentence in near)
        one.distance = min([one.distance, *(abs(i - hit) for hit in hits)])
        one.after_name = max(one.after_name, i > 0 and names[i - 1])
        one.before_name = max(one.before_name, i + 1 < len(names) and names[i + 1])


def _form(word: str) -> list[float]:
    return [word.isupper() and len(word) > 1, any(c.isdigit() for c in word), min(len(word), 14) / 10]


def _turn_features(one: _Seen, word: str, back: int, in_first: bool, rarity: float, stated: bool) -> list[float]:
    standing = [(b, kind) in one.places for b in range(3) for kind in ("query", "response")]
    earlier = [any(b > 2 and k == kind for b, k in one.places) for kind in ("query", "response")]
    spread = [math.log1p(one.n), len({b for b, _ in one.places}) / 3, sum(k == "query" for _, k in one.places) / 2]
    capital = [one.n_capital_inside > 0, one.n_capital_inside / max(one.n_inside, 1), one.n_capital == one.n]
    near = [one.in_query, min(one.in_response, 3), one.beside, 1 / (1 + one.distance), one.after_name, one.before_name]
    return [*standing, *earlier, in_first, *spread, *capital, *_form(word), rarity, *near,
            one.in_first, one.in_last, back / 3, stated, 0.0]  # fmt: skip


def _statement_features(word: str, n: int, shares: int, rarity: float) -> list[float]:
    place = [0.0] * 9 + [math.log1p(n), 0.0, 0.0, word[:1].isupper(), 0.0, 0.0]
    return [*place, *_form(word), rarity, 1.0, 3.0, shares > 0, *[0.0] * 6, 1.0, min(shares, 3) / 2]


def _query_features(query: str, turns: Sequence[tuple[str, str]], meant: set[str]) -> list[float]:
    plain, folded = words(query), {fold(w) for w in words(query)}
    response = turns[-1][1] if turns else ""
    named = any(word[:1].isupper() for word in plain[1:] if word != "I")
    return [
        *(not folded.isdisjoint(group) for group in _POINTING),
        bool(plain) and fold(plain[0]) in _ASKING, query.lower().startswith(_GOING_ON), min(len(meant), 12) / 6,
        min(len(plain), 20) / 10, query.strip().endswith("?"), named, min(len(turns), 8) / 4,
        min(len(response), 600) / 300, response.strip().endswith("?"), bool(turns) and not response,
    ]  # fmt: skip


N_OWN = 30
N_FEATURES = N_OWN + 20 + 1
"""A candidate's own, those of the query, and the share of its words that the last turn has."""


class TermPicker:
    """The network, and how rare each stem is. Picks the same words for the same profile."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        self._layers = [(arrays[f"w{i}"], arrays[f"b{i}"]) for i in range(3)]
        self._rarity = dict(zip(arrays["stems"].tolist(), arrays["rarity"].tolist(), strict=True))
        self._own = dict(zip(arrays["stems"].tolist(), arrays["own"].tolist(), strict=True))
        self._unseen = float(arrays["unseen"])
        self._read = lru_cache(PROFILES_READ)(lambda texts: read_statements(texts, self._rarity, self._unseen))

    def forget(self, _user: UserKey) -> None:
        """Drops what is kept in memory of this user's statements, and of all others'."""
        self._read.cache_clear()

    def pick(self, query: str, profile: Profile) -> tuple[Term, ...]:
        """The likeliest words in the order in which they are found, newest turn first; at most `PICKED`."""
        stated = self._read(tuple(statement.text for statement in profile.statements))
        found, features = candidates(query, profile, self._rarity, self._unseen, stated)
        if not found:
            return ()
        likely = self.probabilities(found, features)
        best = sorted(i for i in (-likely).argsort(kind="stable")[:PICKED] if likely[i] >= LEAST)
        return tuple(_term(found[i], profile) for i in best)

    def probabilities(self, found: Sequence[Candidate], features: Array) -> Array:
        """`(n,)` in [0, 1]."""
        import numpy as np

        h = features
        for w, b in self._layers[:-1]:
            h = np.maximum(h @ w + b, 0)  # (n, hidden)
        w, b = self._layers[-1]
        own = np.array([self._own.get(one.stem, 0.0) for one in found], np.float32)
        return (1 / (1 + np.exp(-((h @ w)[:, 0] + b[0] + own)))).astype(np.float32)  # type: ignore[no-any-return]


def _term(one: Candidate, profile: Profile) -> Term:
    if one.source == "statement":
        statement = profile.statements[one.place]
        return Term(one.word, "statement", statement.event_id, statement.text)
    turn = profile.turns[one.place]
    return Term(one.word, "turn", turn.event_id, turn.query)


def load_terms(folder: Path | None = None) -> TermPicker:
    """The shipped network, or the one in a folder. Raises ModelError."""
    import zipfile

    import numpy as np

    from bespeak.models.catalogue import asset_folder

    path = (folder or asset_folder("onnx_models") / MODEL) / "terms.npz"
    try:
        with np.load(path) as arrays:
            return TermPicker({name: arrays[name] for name in arrays.files})
    except (OSError, ValueError, KeyError, zipfile.BadZipFile) as error:
        raise ModelError(f"{path} cannot be read ({error}): run 'bespeak models verify'") from error
