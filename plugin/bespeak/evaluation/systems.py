"""The systems compared on a conversational collection, and the stages at which each of them is measured."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeAlias

from bespeak.engines import Engine
from bespeak.errors import IndexMissing, InputError, UsageError
from bespeak.evaluation.kept import Report, silent
from bespeak.evaluation.measures import MEASURES, Estimate, Gain, Qrels, Run, compare, estimate, judge
from bespeak.evaluation.memory import DEPTH, best, embed, read_to_rank, search_vector
from bespeak.evaluation.topics import Collection, Topic
from bespeak.parts import Parts
from bespeak.pipeline import Retrieved, ask, show_page
from bespeak.reading import Reading, rewrite_query
from bespeak.records import Document, Matrix, Request
from bespeak.rewriting.rewriter import LastTurn, Unchanged
from bespeak.settings import Settings

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder

SYSTEMS = ("raw", "last-turn", "session", "rewrite", "rewrite-alone", "human")
STAGES = ("lexical", "dense", "hybrid")
BASELINE = "raw"
LAST_TURN_SHARE = 0.5  # of the last turn's vector in the baseline `last-turn`
UNHURRIED_MS = 600_000.0  # a measure must not depend on how busy the machine is
Runs: TypeAlias = dict[tuple[str, str], dict[str, list[str]]]
"""`(system, stage) → run`."""


@dataclass(frozen=True, slots=True)
class Cell:
    """The scores of one system at one stage, and its gain over the baseline there (None for the baseline)."""

    system: str
    stage: str
    scores: dict[str, Estimate]  # by MEASURES
    gain: Gain | None
    n_queries: int


def unhurried(settings: Settings) -> Settings:
    return replace(settings, rewrite_ms=UNHURRIED_MS)


def cells_of(runs: Runs, collection: Collection, systems: Sequence[str]) -> list[Cell]:
    """The cells of these systems, in this order. `runs` comes from `run_all`."""
    cells = tabulate(runs, collection.judged, collection.groups, BASELINE)
    return [cell for name in dict.fromkeys(systems) for cell in cells if cell.system == name]


def check_names(what: str, names: Sequence[str], known: Sequence[str]) -> None:
    """Raises UsageError for a name that is not known."""
    if unknown := [name for name in names if name not in known]:
        raise UsageError(f"there is no {what} {unknown[0]!r} for these data: choose from {', '.join(known)}")


def run_all(
    collection: Collection,
    systems: Sequence[str],
    stages: Sequence[str],
    engine: Engine,
    index: str,
    parts: Parts,
    report: Report = silent,
) -> Runs:
    """Runs these systems, and the baseline in any case. Raises UsageError, InputError and EngineError."""
    systems = list(dict.fromkeys([BASELINE, *systems]))
    vectors = embed(collection, parts.encoder) if "dense" in stages and parts.encoder else None
    runs: Runs = {(s, stage): {} for s in systems for stage in stages}
    for done, topic in enumerate(collection.topics, 1):
        for system in systems:
            search = read_topic(system, topic, index, parts)
            for stage in stages:
                runs[system, stage][topic.query_id] = rank_topic(stage, search, engine, collection, vectors)
        report(done, len(collection.topics))
    return runs


@dataclass(frozen=True, slots=True)
class TopicSearch:
    """One topic as a system reads it, and the parts that rank its hits."""

    request: Request
    reading: Reading
    parts: Parts


def read_topic(system: str, topic: Topic, index: str, parts: Parts) -> TopicSearch:
    """Reads a topic as the system does. Raises `InputError` if the topic lacks what the system needs."""
    if system == "rewrite":
        return make_search(topic.text, topic, index, parts)
    if system == "session":
        return make_search(topic.text, topic, index, replace(parts, rewriter=Unchanged()))
    if system == "last-turn":
        return _last_turn(topic, index, parts)
    if system == "human" and topic.human_rewrite is None:
        raise InputError(f"query {topic.query_id} has no human_rewrite: leave the system human out for these data")
    text = {"raw": topic.text, "human": topic.human_rewrite}.get(system)
    if text is None:
        text = rewrite_query(topic.text, topic.profile, parts.rewriter, parts.context, parts.settings.rewrite_ms).text
    return make_search(text, topic, index, without_session(parts))


def make_search(text: str, topic: Topic, index: str, parts: Parts) -> TopicSearch:
    return TopicSearch(Request(text, index, size=DEPTH), read_to_rank(text, topic.profile, parts), parts)


def without_session(parts: Parts) -> Parts:
    """The same parts without those that use the history."""
    settings = replace(parts.settings, last_turn_weight=0.0, last_turn_share=0.0)
    return replace(parts, rewriter=Unchanged(), settings=settings, context=None)


def _last_turn(topic: Topic, index: str, parts: Parts) -> TopicSearch:
    """The query with the last turn's salient words; its vector is the query's plus half of the last turn's."""
    settings = replace(parts.settings, last_turn_weight=0.0, last_turn_share=LAST_TURN_SHARE)
    parts = replace(parts, rewriter=LastTurn(), settings=settings, context=None)
    search = make_search(topic.text, topic, index, parts)
    vectors = dict(search.reading.vectors)
    vectors.pop("rewrite", None)
    return replace(search, reading=replace(search.reading, vectors=vectors))


def rank_topic(
    stage: str, search: TopicSearch, engine: Engine, collection: Collection, vectors: Matrix | None
) -> list[str]:
    """At most `DEPTH` doc_ids, best first. Raises UsageError without an encoder for `dense`, and EngineError."""
    info = engine.describe(search.request.index)
    query = ask(search.request, info, search.reading, search.parts)
    if stage == "lexical":
        hits = engine.search(replace(query, vector=None)).hits
        return [hit.doc_id for hit in hits if hit.score > 0][:DEPTH]
    if stage == "dense":
        if vectors is None or search.parts.encoder is None:
            raise UsageError("the stage dense needs an encoder: name one with --encoder")
        rows = best(vectors @ search_vector(search.reading, search.parts.settings, search.parts.encoder), DEPTH)
        return [collection.documents[row].doc_id for row in rows]
    found = engine.search(query)
    page = show_page(
        search.request, search.reading, Retrieved(info, found, found, vector=query.vector), search.parts
    ).page
    return [ranked.hit.doc_id for ranked in page]


def load_collection(collection: Collection, engine: Engine, encoder: Encoder | None, index: str) -> None:
    """Loads the collection into an index, unless it is complete already. Raises InputError and EngineError."""
    name = encoder.name if encoder else None
    try:
        info = engine.describe(index)
        if (info.n_docs, info.encoder) == (len(collection.documents), name):
            return
        engine.drop(index)
    except IndexMissing:
        pass
    engine.create(index, collection.fields, encoder.dim if encoder else None, name)
    vectors = embed(collection, encoder) if encoder else [None] * len(collection.documents)
    documents = [Document(d.doc_id, d.source, vector) for d, vector in zip(collection.documents, vectors, strict=True)]
    if rejected := engine.load(index, documents):
        raise InputError(
            f"the engine refused {len(rejected)} of {len(documents)} documents, first {rejected[0].doc_id}: "
            f"{rejected[0].reason}"
        )
    engine.refresh(index)


def tabulate(
    runs: Runs | dict[tuple[str, str], Run],
    qrels: Qrels,
    groups: dict[str, str],
    baseline: str,
) -> list[Cell]:
    """A cell for each run. Its gain is over the baseline's run at the same stage, or at the baseline's only stage."""
    values = {key: judge(qrels, run) for key, run in runs.items()}
    of_baseline = {stage: found["nDCG@10"] for (system, stage), found in values.items() if system == baseline}
    cells = []
    for (system, stage), found in values.items():
        against = of_baseline.get(stage) or next(iter(of_baseline.values()), None)
        gain = compare(found["nDCG@10"], against, groups) if against and system != baseline else None
        scores = {name: estimate(found[name], groups) for name in MEASURES}
        cells.append(Cell(system, stage, scores, gain, len(qrels)))
    return cells
