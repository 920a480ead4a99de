"""Measures a folder of judged data: opens what this needs, runs the systems, and keeps what was slow to compute."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

from bespeak.engines import Engine
from bespeak.errors import UsageError
from bespeak.evaluation import movielens, systems
from bespeak.evaluation.examples import Examples, check_systems, find_examples
from bespeak.evaluation.kept import KeptEncoder, KeptRewriter, Report
from bespeak.evaluation.measures import check_installed
from bespeak.evaluation.memory import embed
from bespeak.evaluation.systems import STAGES, SYSTEMS, Cell, cells_of, check_names, load_collection, run_all
from bespeak.evaluation.through import MODES, RunningProxy, measure_served
from bespeak.evaluation.topics import Collection, Topic, read_collection
from bespeak.models.encoder import load_encoder
from bespeak.parts import Parts
from bespeak.reading import open_reading, read_context
from bespeak.rewriting.rewriter import Rewriter, Unchanged, model_of
from bespeak.session.reader import ContextReader, load_reader
from bespeak.settings import Settings
from bespeak.statuses import Reason

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder

REWRITTEN = {"rewrite", "rewrite-alone"}
"""Systems that need the language model."""


@dataclass(frozen=True, slots=True)
class Selection:
    """What to measure. Empty systems or stages mean the usual ones."""

    systems: tuple[str, ...] = ()
    stages: tuple[str, ...] = ()
    limit: int | None = None  # queries or users, at most
    every: int = 1  # use every Nth query, or the users whose id is divisible by N
    n_examples: int = 0  # best and worst rewrites to show
    misplaced: bool = False  # ask each query that stands alone after another conversation's turns

    def of(self, collection: Collection) -> Collection:
        """The selected part of the collection. Raises InputError if that is nothing."""
        return (collection.misplaced() if self.misplaced else collection).cut(self.limit, self.every)


OpenModel: TypeAlias = Callable[[ContextReader], Rewriter]
"""Opens a rewriter that may use what the reader says of a session."""


@dataclass(frozen=True, slots=True)
class Bench:
    """What measuring needs. `cache` keeps what was slow to compute for the next run."""

    cache: Path
    settings: Settings
    encoder: str | None  # name or folder; None: the shipped one
    open_engine: Callable[[], Engine]
    open_model: OpenModel
    report: Callable[[str], Report]  # by label, such as "queries"
    say: Callable[[str], object]  # shows a sentence to the user

    @property
    def kept(self) -> Path:
        return self.cache / "evaluation"


class Measured(NamedTuple):
    """The scores, what they were measured on, and examples if asked for."""

    cells: list[Cell]
    facts: dict[str, Any]
    examples: Examples | None = None


def measure(folder: Path, selection: Selection, bench: Bench) -> Measured:
    """Measures a judged collection or MovieLens.

    Raises UsageError if the data lack what is selected, InputError if they cannot be read, ModelError, EngineError.
    """
    if not movielens.is_movielens(folder):
        return measure_topics(selection.of(read_collection(folder)), selection, bench)
    if selection.misplaced:
        raise UsageError("MovieLens has no conversations: leave --misplaced out")
    if selection.n_examples:
        raise UsageError("MovieLens has no rewrites: leave --examples out")
    if selection.stages:
        raise UsageError("MovieLens has no stages: leave --stage out")
    return measure_movielens(movielens.read_movielens(folder, selection.every, selection.limit), selection, bench)


def measure_topics(collection: Collection, selection: Selection, bench: Bench) -> Measured:
    names, stages = selection.systems or usual_systems(collection), selection.stages or STAGES
    check_names("system", names, SYSTEMS)
    check_names("stage", stages, STAGES)
    check_installed()
    if selection.n_examples:
        check_systems(names)
    with closing(bench.open_engine()) as engine, _topic_parts(collection, names, stages, bench) as parts:
        index = index_name(collection.digest, parts.encoder)
        load_collection(collection, engine, parts.encoder, index)
        runs = run_all(collection, names, stages, engine, index, parts, bench.report("queries"))
        examples = None
        if selection.n_examples:
            examples = find_examples(collection, parts, runs, selection.n_examples)
        n_alone = sum(stands_alone(topic, parts.context) for topic in collection.topics)
    counts = {
        "queries": len(collection.topics),
        "conversations": len(set(collection.groups.values())),
        "read as standing alone": n_alone,
    }
    return Measured(cells_of(runs, collection, names), describe(collection.name, counts, parts), examples)


def stands_alone(topic: Topic, reader: ContextReader | None) -> bool:
    """Whether the topic goes out as typed because it leans on nothing."""
    return read_context(open_reading(topic.text, topic.profile), reader).gate == Reason.STANDS_ALONE


def measure_proxy(collection: Collection, selection: Selection, proxy: RunningProxy, bench: Bench) -> Measured:
    """Measures what a proxy serves to its clients. The engine must be the proxy's own. Raises as `measure` does."""
    names = selection.systems or MODES
    check_names("system", names, MODES)
    if selection.stages or selection.n_examples:
        raise UsageError("a proxy is measured as a whole: leave --stage and --examples out")
    check_installed()
    encoder = open_kept_encoder(bench, collection.digest)
    with closing(bench.open_engine()) as engine:
        try:
            index = index_name(collection.digest, encoder)
            load_collection(collection, engine, encoder, index)
        finally:
            encoder.save()
    modes = [mode for mode in MODES if mode in names]
    cells = measure_served(collection, index, proxy, modes, bench.report("queries"))
    counts = {"queries": len(collection.topics), "conversations": len(set(collection.groups.values()))}
    return Measured(cells, {"data": collection.name, **counts, "through": proxy.url, "index by": encoder.name})


@contextmanager
def _topic_parts(collection: Collection, names: Sequence[str], stages: Sequence[str], bench: Bench) -> Iterator[Parts]:
    """The parts that these systems need; what they computed is kept, even if measuring fails."""
    open_model = bench.open_model if REWRITTEN & set(names) else None
    parts = open_kept_parts(bench, collection.digest, open_model, with_encoder=set(stages) != {"lexical"})
    try:
        yield parts
    finally:
        save_kept(parts)


def measure_movielens(data: movielens.MovieLens, selection: Selection, bench: Bench) -> Measured:
    encoder = open_kept_encoder(bench, data.movies.digest)
    parts = Parts(bench.settings, Unchanged(), encoder)
    with closing(bench.open_engine()) as engine:
        try:
            index = index_name(data.movies.digest, encoder)
            load_collection(data.movies, engine, encoder, index)
            names, note = (selection.systems, "") if selection.systems else movielens.known_systems(data)
            if note:
                bench.say(note.capitalize())
            setup = movielens.Setup(engine, index, encoder, embed(data.movies, encoder), parts.settings.weights)
            cells = movielens.measure_systems(data, names, setup, bench.report("queries"))
        finally:
            encoder.save()
    counts = {"queries": len(data.queries), "users": len(set(data.groups.values()))}
    return Measured(cells, describe(data.movies.name, counts, parts))


def usual_systems(collection: Collection) -> tuple[str, ...]:
    """The systems that are measured by default: `human` only if every query has a person's rewrite."""
    has_human = all(topic.human_rewrite is not None for topic in collection.topics)
    return ("raw", "last-turn", "rewrite", *(("human",) if has_human else ()))


def open_kept_encoder(bench: Bench, label: str) -> KeptEncoder:
    return KeptEncoder(load_encoder(bench.encoder, bench.cache), bench.kept, label, bench.report("vectors"))


def open_kept_parts(bench: Bench, label: str, open_model: OpenModel | None, with_encoder: bool = True) -> Parts:
    """The parts to measure with. They keep vectors and rewrites; a rewrite may take as long as it needs."""
    context = load_reader(bench.cache)
    rewriter = KeptRewriter(open_model(context), bench.kept, label) if open_model else Unchanged()
    encoder = open_kept_encoder(bench, label) if with_encoder else None
    return Parts(systems.unhurried(bench.settings), rewriter, encoder, context=context)


def save_kept(parts: Parts) -> None:
    """Saves the vectors and rewrites of the parts that keep them."""
    for part in (parts.encoder, parts.rewriter):
        if isinstance(part, KeptEncoder | KeptRewriter):
            part.save()


def index_name(digest: str, encoder: Encoder | None) -> str:
    """The index of a collection; vectors of another encoder go to another index."""
    made_by = hashlib.sha256(encoder.name.encode()).hexdigest()[:8] if encoder else "lexical"
    return f"bespeak-evaluation-{digest}-{made_by}"


def describe(name: str, counts: dict[str, int], parts: Parts) -> dict[str, Any]:
    """What the scores were measured on and with, by name."""
    facts: dict[str, Any] = {"data": name, **counts}
    if parts.encoder:
        facts |= {"encoder": parts.encoder.name, "weights": list(parts.settings.weights.as_tuple())}
    return facts | ({} if parts.rewriter.name == "none" else {"rewriter": model_of(parts.rewriter)})


def baseline_of(cells: Sequence[Cell]) -> str:
    """The system that the others are compared with."""
    if {cell.system for cell in cells} & set(MODES):
        return MODES[0]
    is_movielens = {cell.system for cell in cells} & set(movielens.SYSTEMS)
    return movielens.BASELINE if is_movielens else systems.BASELINE
