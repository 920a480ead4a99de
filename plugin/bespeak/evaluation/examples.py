"""Finds the rewrites that gained and lost most, and what each group has in common."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from bespeak.errors import UsageError
from bespeak.evaluation.measures import Run, judge
from bespeak.evaluation.systems import BASELINE, UNHURRIED_MS, Runs
from bespeak.evaluation.topics import Collection, Topic
from bespeak.parts import Parts
from bespeak.reading import rewrite_query
from bespeak.records import Profile, Rewrite, Term
from bespeak.text.words import FUNCTION_WORDS, fold, words

Origin: TypeAlias = Literal["last query", "last answer", "earlier turns", "statements", "function words", "nowhere"]
ORIGINS: tuple[Origin, ...] = (
    "last query", "last answer", "earlier turns", "statements", "function words", "nowhere",
)  # fmt: skip
REWRITTEN = ("rewrite", "rewrite-alone")
"""The systems whose rewrites can be shown."""


@dataclass(frozen=True, slots=True)
class Example:
    """A rewritten query. `typed` and `rewritten` are its nDCG@10 without and with the rewrite."""

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
class RewriteTraits:
    """What some rewrites have in common: the mean number of added words, and shares in [0, 1]."""

    n_rewrites: int
    words_added: float
    origins: dict[Origin, float]  # shares of all added words
    name_added: float  # share of rewrites that add a name or a number
    name_typed: float  # share of rewrites that keep a name or a number of the query
    word_lost: float  # share of rewrites that lose a word of the query, function words aside


@dataclass(frozen=True, slots=True)
class Examples:
    """The rewrites that gained most (best first) and lost most (worst first) at one stage."""

    system: str
    stage: str
    n_queries: int
    best: tuple[Example, ...]
    worst: tuple[Example, ...]
    common: dict[str, RewriteTraits]  # best, worst, all


def find_examples(
    collection: Collection,
    parts: Parts,
    runs: Runs,
    n: int,
) -> Examples:
    """At most `n` rewrites that gained, and at most `n` that lost, in the runs of `run_all`.

    Compares at the stage hybrid if it was run, otherwise at the first stage. Raises UsageError if no system rewrites.
    """
    systems, stages = [system for system, _ in runs], [stage for _, stage in runs]
    system = check_systems(systems)
    stage = "hybrid" if "hybrid" in stages else stages[0]
    typed, rewritten = (_values(collection, runs[name, stage]) for name in (BASELINE, system))
    found = []
    for topic in collection.topics:
        rewrite = rewrite_query(topic.text, topic.profile, parts.rewriter, parts.context, UNHURRIED_MS)
        if rewrite.changed:
            found.append(_example(topic, rewrite, typed[topic.query_id], rewritten[topic.query_id]))
    by_gain = sorted(found, key=lambda one: (-one.gain, one.query_id))
    best = tuple(one for one in by_gain[:n] if one.gain > 0)
    worst = tuple(one for one in by_gain[::-1][:n] if one.gain < 0)
    common = {"best": traits_of(best), "worst": traits_of(worst), "all": traits_of(found)}
    return Examples(system, stage, len(collection.topics), best, worst, common)


def check_systems(systems: Sequence[str]) -> str:
    """The system whose rewrites are shown. Raises UsageError if none of them rewrites."""
    system = next((name for name in REWRITTEN if name in systems), None)
    if system is None:
        raise UsageError("--examples shows rewrites: add rewrite or rewrite-alone to --system")
    return system


def _values(collection: Collection, run: Run) -> dict[str, float]:
    return judge(collection.judged, run)["nDCG@10"]


def _example(topic: Topic, rewrite: Rewrite, typed: float, rewritten: float) -> Example:
    profile = topic.profile
    added = tuple((term.text, origin(term, profile)) for term in rewrite.terms)
    last = profile.turns[-1].query if profile.turns else ""
    return Example(topic.query_id, topic.text, rewrite.text, last, added, typed, rewritten)


def origin(term: Term, profile: Profile) -> Origin:
    """Where an added word comes from."""
    if term.source == "turn":
        last = profile.turns[-1]
        if term.event_id != last.event_id:
            return "earlier turns"
        return "last query" if term.evidence == last.query else "last answer"
    return "statements" if term.source == "statement" else "function words" if term.source == "function" else "nowhere"


def traits_of(examples: Sequence[Example]) -> RewriteTraits:
    """What the examples have in common; all 0 if there are none."""
    n = max(len(examples), 1)
    given = [place for one in examples for _, place in one.added]
    return RewriteTraits(
        len(examples),
        len(given) / n,
        {place: given.count(place) / max(len(given), 1) for place in ORIGINS},
        sum(bool(names(one.rewrite) - names(one.query)) for one in examples) / n,
        sum(bool(names(one.query)) and names(one.query) <= folded(one.rewrite) for one in examples) / n,
        sum(bool(folded(one.query) - folded(one.rewrite) - FUNCTION_WORDS) for one in examples) / n,
    )


def names(text: str) -> set[str]:
    """Words with a capital (except the first word) and words with a digit, folded.

    >>> sorted(names("Did Zappa win in 1969?"))
    ['1969', 'zappa']
    """
    found = {fold(w) for i, w in enumerate(words(text)) if any(map(str.isdigit, w)) or (i and w[0].isupper())}
    return found - FUNCTION_WORDS


def folded(text: str) -> set[str]:
    return {fold(word) for word in words(text)}
