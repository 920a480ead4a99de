"""`bespeak evaluate`: what retrieval and personalisation reach on judged data, or whether expected scores hold."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from bespeak_cli.engine import engine_options, open_engine
from bespeak_cli.examples import as_examples, examples_data
from bespeak_cli.mixing import MIXED, mixing_options

if TYPE_CHECKING:
    from bespeak.engines import Engine
    from bespeak.evaluation.examples import Examples
    from bespeak.evaluation.measures import Estimate
    from bespeak.evaluation.regressions import Check, Expected
    from bespeak.evaluation.systems import Cell
    from bespeak.models.encoder import Encoder
    from bespeak.parts import Parts
    from bespeak.rewriting.rewriter import Rewriter
    from bespeak.session.context import ContextEncoder


def split_names(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A judged collection or MovieLens (see docs/evaluation.md); with --check the folder that holds them.",
)
@click.option(
    "--system",
    callback=split_names,
    metavar="NAMES",
    help="raw, last-turn, terms, rewrite, rewrite-alone, human; for MovieLens engine, user, learnt, popularity, "
    "item-knn.",
)
@click.option("--stage", callback=split_names, metavar="NAMES", help="lexical, dense, hybrid; all if not given.")
@click.option("--limit", type=click.IntRange(min=1), help="At most so many queries, or users.")
@click.option(
    "--every", type=click.IntRange(min=1), help="Every so manieth query, or the users whose number it divides."
)
@click.option("--encoder", help="A model's name or folder; the shipped one if not given.")
@mixing_options
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--examples", type=click.IntRange(min=1), metavar="N", help="Show the N best and the N worst rewrites.")
@click.option(
    "--plot",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="For MovieLens: a picture of the gain by length of history, .png or .svg; needs the extra plot.",
)
@click.option("--interleaving", is_flag=True, help="What clicks say of what `serve --compare` compared.")
@click.option(
    "--check",
    "checks",
    multiple=True,
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="A file of expected scores; exit 1 where one is missed. May be given many times.",
)
@engine_options
@click.pass_context
def evaluate(ctx: click.Context, /, **options: Any) -> None:
    """Measure retrieval and personal gain on judged data.

    Vectors, rewrites and the index are kept in the cache folder, so that the next run is fast.
    """
    if options["interleaving"]:
        report_compared(ctx, options)
        return
    if options["data"] is None:
        raise click.MissingParameter(param_hint="'--data'", param_type="option")
    if options["plot"]:
        check_plotted(options)
    if options["checks"]:
        check_all(ctx, options)
        return
    found = measure(ctx, options["data"], options)
    if options["plot"]:
        from bespeak.evaluation.plot import plot_gains

        plot_gains(found.cells, baseline(found.cells), options["plot"])
    if options["format_"] == "json":
        import json

        click.echo(json.dumps(as_data(found), indent=2))
    else:
        click.echo(as_table(found.cells, found.facts))
        if found.examples:
            click.echo("\n" + as_examples(found.examples))


def check_plotted(options: dict[str, Any]) -> None:
    """A measure may take long: what forbids the picture is said before it."""
    from bespeak.evaluation.movielens import is_movielens
    from bespeak.evaluation.plot import check_plot

    if not is_movielens(options["data"]):
        raise click.UsageError("only MovieLens has histories of several lengths: leave --plot out")
    check_plot(options["plot"])


def report_compared(ctx: click.Context, options: dict[str, Any]) -> None:
    """From the events in the data folder."""
    from contextlib import closing
    from dataclasses import asdict

    from bespeak.evaluation.comparisons import ACTIONS, report
    from bespeak.profiles.stores.sqlite import SqliteStore
    from bespeak_cli.compare import as_report

    with closing(SqliteStore(ctx.obj.data / "bespeak.db")) as store:
        found = report(store.of_everyone(ACTIONS))
    if options["format_"] == "json":
        import json

        click.echo(json.dumps([asdict(one) | {"better": one.better} for one in found], indent=2))
    else:
        click.echo(as_report(found))


class Measured(NamedTuple):
    """The cells, what they were measured on, and examples where they were asked for."""

    cells: list[Cell]
    facts: dict[str, Any]
    examples: Examples | None = None


def measure(ctx: click.Context, folder: Path, options: dict[str, Any]) -> Measured:
    from bespeak.evaluation.movielens import is_movielens

    if is_movielens(folder):
        if options.get("examples"):
            raise click.UsageError("MovieLens has no rewrites: leave --examples out")
        if options.get("stage"):
            raise click.UsageError("MovieLens has no stages: leave --stage out")
        return measure_movielens(ctx, folder, options)
    return measure_topics(ctx, folder, options)


def measure_topics(ctx: click.Context, folder: Path, options: dict[str, Any]) -> Measured:
    from bespeak.evaluation.examples import check_systems, find_examples
    from bespeak.evaluation.kept import KeptEncoder, KeptRewriter
    from bespeak.evaluation.systems import STAGES, SYSTEMS, cells_of, check_names, load_collection, run_all, unhurried
    from bespeak.evaluation.topics import read_collection
    from bespeak.parts import Parts
    from bespeak.rewriting.rewriter import Unchanged
    from bespeak.session.terms import load_terms
    from bespeak_cli.search import read_settings

    collection = read_collection(folder).cut(options.get("limit"), options.get("every") or 1)
    systems = options.get("system") or ("raw", "last-turn", "rewrite") + (("human",) if has_human(collection) else ())
    stages = options.get("stage") or STAGES
    check_names("system", systems, SYSTEMS)
    check_names("stage", stages, STAGES)
    n_examples: int | None = options.get("examples")
    if n_examples:
        check_systems(systems)
    settings = unhurried(read_settings(options))
    kept = ctx.obj.cache / "evaluation"
    encoder = open_encoder(ctx, options, collection.digest) if set(stages) != {"lexical"} else None
    rewriter: Rewriter = Unchanged()
    if {"rewrite", "rewrite-alone"} & set(systems):
        rewriter = KeptRewriter(open_model(ctx), kept, collection.digest)
    context = open_context(ctx, encoder, collection.digest) if encoder else None
    parts = Parts(settings, rewriter, encoder, terms=load_terms(), context=context)
    engine, index = open_index(ctx, options), index_name(collection.digest, encoder)
    try:
        load_collection(collection, engine, encoder, index)
        runs = run_all(collection, systems, stages, engine, index, parts, progress("queries"))
        examples = find_examples(collection, rewriter, runs, n_examples) if n_examples else None
    finally:
        for kept_part in (encoder, rewriter, context and context.encoder):
            if isinstance(kept_part, KeptEncoder | KeptRewriter):
                kept_part.save()
        engine.close()
    n_groups = len(set(collection.groups.values()))
    facts = facts_of(collection.name, len(collection.topics), n_groups, "conversations", parts)
    return Measured(cells_of(runs, collection, systems), facts, examples)


def measure_movielens(ctx: click.Context, folder: Path, options: dict[str, Any]) -> Measured:
    from bespeak.evaluation.movielens import Means, known_systems, read_movielens
    from bespeak.evaluation.movielens import measure as run
    from bespeak.evaluation.systems import embed, load_collection
    from bespeak.parts import Parts
    from bespeak.rewriting.rewriter import Unchanged
    from bespeak_cli.search import read_settings

    data = read_movielens(folder, options.get("every") or 1, options.get("limit"))
    encoder = open_encoder(ctx, options, data.movies.digest)
    parts = Parts(read_settings(options), Unchanged(), encoder)
    engine, index = open_index(ctx, options), index_name(data.movies.digest, encoder)
    try:
        load_collection(data.movies, engine, encoder, index)
        means = Means(engine, index, encoder, embed(data.movies, encoder), parts.settings.weights)
        systems, note = (options["system"], "") if options.get("system") else known_systems(data)
        if note:
            click.echo(note.capitalize(), err=True)
        cells = run(data, systems, means, progress("queries"))
    finally:
        encoder.save()
        engine.close()
    n_users = len(set(data.groups.values()))
    return Measured(cells, facts_of(data.movies.name, len(data.queries), n_users, "users", parts))


def has_human(collection: Any) -> bool:
    return all(topic.human_rewrite is not None for topic in collection.topics)


def open_encoder(ctx: click.Context, options: dict[str, Any], label: str) -> Any:
    from bespeak.evaluation.kept import KeptEncoder
    from bespeak.models.encoder import load_encoder

    encoder = load_encoder(options.get("encoder"), ctx.obj.cache)
    return KeptEncoder(encoder, ctx.obj.cache / "evaluation", label, progress("vectors"))


def open_context(ctx: click.Context, encoder: Encoder, label: str) -> ContextEncoder | None:
    """None where no shipped one was trained for this encoder."""
    from dataclasses import replace

    from bespeak.evaluation.kept import KeptEncoder
    from bespeak.session.context import load_context

    context = load_context(encoder, ctx.obj.cache)
    if context is None:
        return None
    kept = KeptEncoder(context.encoder, ctx.obj.cache / "evaluation", label, progress("sessions"))
    return replace(context, encoder=kept)


def open_model(ctx: click.Context) -> Any:
    """The language model, built where it is not; never something else in its place, which would be measured for it."""
    from bespeak.errors import ModelError
    from bespeak.rewriting.opening import choose_rewriter
    from bespeak_cli.parts import build_with_progress

    try:
        return choose_rewriter("model", ctx.obj.cache)
    except ModelError:
        build_with_progress(ctx.obj.cache)
        return choose_rewriter("model", ctx.obj.cache)


def open_index(ctx: click.Context, options: dict[str, Any]) -> Engine:
    """Elasticsearch where it is named, else an embedded engine of our own in the cache folder."""
    if options.get("elasticsearch"):
        return open_engine(ctx, options)
    from bespeak.engines.embedded import EmbeddedEngine

    return EmbeddedEngine(ctx.obj.cache / "evaluation" / "indices")


def index_name(digest: str, encoder: Encoder | None) -> str:
    import hashlib

    made_by = hashlib.sha256(encoder.name.encode()).hexdigest()[:8] if encoder else "lexical"
    return f"bespeak-evaluation-{digest}-{made_by}"


def facts_of(name: str, n_queries: int, n_groups: int, groups: str, parts: Parts) -> dict[str, Any]:
    """What stands over the table."""
    from bespeak.rewriting.rewriter import model_of

    facts: dict[str, Any] = {"data": name, "queries": n_queries, groups: n_groups}
    if parts.encoder:
        facts |= {"encoder": parts.encoder.name, "weights": list(parts.settings.weights.as_tuple())}
    return facts | ({} if parts.rewriter.name == "none" else {"rewriter": model_of(parts.rewriter)})


def progress(label: str) -> Callable[[int, int], None]:
    """A counter on stderr: one line on a terminal, one at the end elsewhere."""
    live = sys.stderr.isatty()

    def report(done: int, total: int) -> None:
        if live:
            click.echo(f"\r{label} {done}/{total}", err=True, nl=done == total)
        elif done == total:
            click.echo(f"{label} {total}", err=True)

    return report


def as_data(found: Measured) -> dict[str, Any]:
    from dataclasses import asdict

    shown = {"examples": examples_data(found.examples)} if found.examples else {}
    return found.facts | {"results": [asdict(cell) for cell in found.cells]} | shown


def as_table(cells: Sequence[Cell], facts: dict[str, Any]) -> str:
    """Scores with their intervals, then what each system gains; at most 80 columns."""
    from bespeak.evaluation.measures import MEASURES

    told = ", ".join(f"{name} {_brief(value)}" for name, value in facts.items())
    lines = [*textwrap.wrap(told, 80, break_on_hyphens=False), ""]
    lines.append(f"{'system':14}{'stage':9}" + "".join(f"{name:19}" for name in MEASURES).rstrip())
    for cell in cells:
        scores = "".join(f"{interval(cell.scores[name]):19}" for name in MEASURES)
        lines.append(f"{cell.system:14}{cell.stage:9}{scores.rstrip()}")
    gains = [cell for cell in cells if cell.gain]
    if gains:
        lines += ["", f"{'system':14}{'stage':9}{'nDCG@10 against ' + baseline(cells):26}{'worse':>8}{'better':>8}"]
    for cell in gains:
        assert cell.gain is not None
        difference = interval(cell.gain.difference, "+")
        lines.append(f"{cell.system:14}{cell.stage:9}{difference:26}{cell.gain.worse:8.1%}{cell.gain.better:8.1%}")
    return "\n".join(lines)


def baseline(cells: Sequence[Cell]) -> str:
    from bespeak.evaluation import movielens, systems

    return movielens.BASELINE if {c.system for c in cells} & set(movielens.SYSTEMS) else systems.BASELINE


def _brief(value: Any) -> str:
    return ":".join(f"{v:g}" for v in value) if isinstance(value, list) else str(value)


def interval(estimate: Estimate, sign: str = "") -> str:
    return " ".join((number(estimate.mean, sign), f"[{number(estimate.low, sign)} {number(estimate.high, sign)}]"))


def number(value: float, sign: str) -> str:
    """Three digits without the 0 before the point."""
    text = f"{value:{sign}.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.9995 else text


def check_all(ctx: click.Context, options: dict[str, Any]) -> None:
    """Runs each file's measure and says what came of each score; exit 1 on a miss."""
    from bespeak.evaluation.regressions import check, read_expected

    failed = 0
    for path in options["checks"]:
        expected = read_expected(path)
        measured = measure(ctx, options["data"] / expected.data, options | settled(expected))
        found = list(check(expected, measured.cells))
        click.echo("\n".join([f"{path.name}: {expected.data}", *map(verdict_line, found)]))
        failed += sum(one.verdict == "FAIL" for one in found)
    if failed:
        raise click.ClickException(f"{failed} of the scores are not as expected")


def settled(expected: Expected) -> dict[str, Any]:
    """The options that the file names, and no others."""
    names = ("system", "stage", "limit", "every", "encoder", "weights", *MIXED, "examples")
    return {name: expected.options.get(name) for name in names}


def verdict_line(one: Check) -> str:
    found = "none" if one.found is None else f"{one.found:.3f}"
    return f"{f'[{one.verdict}]':8}{one.system:14}{one.stage:9}{one.measure:11}{found} (expected {one.expected:.3f})"
