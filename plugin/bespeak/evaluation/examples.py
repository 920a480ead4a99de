"""The rewrites that gained and lost most, and what each kind has in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from bespeak.errors import UsageError
from bespeak.evaluation.measures import Run, judge
from bespeak.evaluation.systems import BASELINE, UNHURRIED_MS, Runs
from bespeak.evaluation.topics import Collection, Topic
from bespeak.reading import rewrite_query
from bespeak.records import Profile, Rewrite, Term
from bespeak.rewriting.rewriter import Rewriter
from bespeak.text.words import FUNCTION_WORDS, fold, words

Origin: TypeAlias = Literal["last query", "last answer", "earlier turns", "statements", "function words", "nowhere"]
ORIGINS: tuple[Origin, ...] = (
    "last query", "last answer", "earlier turns", "statements", "function words", "nowhere",
)  # fmt: skip
REWRITTEN = ("rewrite", "rewrite-alone")
"""The systems whose rewrites can be shown."""


@dataclass(frozen=True, slots=True)
class Example:
    """A query that was rewritten; `typed` and `rewritten` are the nDCG@10 without and with its rewrite."""

    query_id: str
    query: str
    rewrite: str
    last_query: str
    added: tuple[tuple[str, Origin], ...]
    typed: float
    rewritten: float

    @property
    def gain(self) -> float:
        return self.rewritten - self.typed


@dataclass(frozen=True, slots=True)
class Common:
    """What some rewrites have in common: words that each adds on average, else shares in [0, 1]."""

    n_rewrites: int
    words_added: float
    origins: dict[Origin, float]  # of all added words
    name_added: float  # of the rewrites: with a name or a number that the query lacks
    name_typed: float  # … whose query has a name or a number, and keeps it
    word_lost: float  # … that lack a word of the query which is no function word


@dataclass(frozen=True, slots=True)
class Examples:
    """At one stage the rewrites that gained most, first the best; those that lost most, first the worst."""

    system: str
    stage: str
    n_queries: int
    best: tuple[Example, ...]
    worst: tuple[Example, ...]
    common: dict[str, Common]  # best, worst, all


def find_examples(
    collection: Collection,
    rewriter: Rewriter,
    runs: Runs,
    n: int,
) -> Examples:
    """At most `n` of either kind: a rewrite that lost nothing is not among the worst. `runs` are those of `run_all`;
    seen at the stage hybrid, else at the first one. Raises UsageError where no run is of a rewrite.
    """
    systems, stages = [system for system, _ in runs], [stage for _, stage in runs]
    system = check_systems(systems)
    stage = "hybrid" if "hybrid" in stages else stages[0]
    typed, rewritten = (_values(collection, runs[name, stage]) for name in (BASELINE, system))
    found = []
    for topic in collection.topics:
        rewrite = rewrite_query(topic.text, topic.profile, rewriter, UNHURRIED_MS)
        if rewrite.changed:
            found.append(_example(topic, rewrite, typed[topic.query_id], rewritten[topic.query_id]))
    by_gain = sorted(found, key=lambda one: (-one.gain, one.query_id))
    best = tuple(one for one in by_gain[:n] if one.gain > 0)
    worst = tuple(one for one in by_gain[::-1][:n] if one.gain < 0)
    common = {"best": in_common(best), "worst": in_common(worst), "all": in_common(found)}
    return Examples(system, stage, len(collection.topics), best, worst, common)


def check_systems(systems: Sequence[str]) -> str:
    """The system whose rewrites are shown. Raises UsageError where none of them rewrites."""
    system = next((name for name in REWRITTEN if name in systems), None)
    if system is None:
        raise UsageError("examples are of rewrites: name the system rewrite or rewrite-alone")
    return system


def _values(collection: Collection, run: Run) -> dict[str, float]:
    return judge(collection.judged, run)["nDCG@10"]


def _example(topic: Topic, rewrite: Rewrite, typed: float, rewritten: float) -> Example:
    profile = topic.profile
    added = tuple((term.text, origin(term, profile)) for term in rewrite.terms)
    last = profile.turns[-1].query if profile.turns else ""
    return Example(topic.query_id, topic.text, rewrite.text, last, added, typed, rewritten)


def origin(term: Term, profile: Profile) -> Origin:
    """Where an added word was taken from."""
    if term.source == "turn":
        last = profile.turns[-1]
        if term.event_id != last.event_id:
            return "earlier turns"
        return "last query" if term.evidence == last.query else "last answer"
    return "statements" if term.source == "statement" else "function words" if term.source == "function" else "nowhere"


def in_common(examples: Sequence[Example]) -> Common:
    """All 0 for none."""
    n = max(len(examples), 1)
    given = [place for one in examples for _, place in one.added]
    return Common(
        len(examples),
        len(given) / n,
        {place: given.count(place) / max(len(given), 1) for place in ORIGINS},
        sum(bool(names(one.rewrite) - names(one.query)) for one in examples) / n,
        sum(bool(names(one.query)) and names(one.query) <= folded(one.rewrite) for one in examples) / n,
        sum(bool(folded(one.query) - folded(one.rewrite) - FUNCTION_WORDS) for one in examples) / n,
    )


def names(text: str) -> set[str]:
    """Words with a capital, but the first one, and words with a digit; folded.

    >>> sorted(names("Did Zappa win in 1969?"))
    ['1969', 'zappa']
    """
    found = {fold(w) for i, w in enumerate(words(text)) if any(map(str.isdigit, w)) or (i and w[0].isupper())}
    return found - FUNCTION_WORDS


def folded(text: str) -> set[str]:
    return {fold(word) for word in words(text)}
