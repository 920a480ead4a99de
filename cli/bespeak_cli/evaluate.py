"""`bespeak evaluate`: measures retrieval and personalisation on judged data, or checks expected scores."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bespeak_cli.engine import engine_options, open_engine_of
from bespeak_cli.mixing import MIXED, mixing_options, read_settings
from bespeak_cli.progress import Progress
from bespeak_cli.store import profiles_option

if TYPE_CHECKING:
    from bespeak.engines import Engine
    from bespeak.evaluation.measurement import Bench, Measured, Selection
    from bespeak.evaluation.regressions import ExpectedScores
    from bespeak.rewriting.rewriter import Rewriter
    from bespeak.session.reader import ContextReader


def split_names(_ctx: click.Context, _param: click.Parameter, value: str | None) -> tuple[str, ...]:
    """Names between commas."""
    return tuple(name.strip() for name in (value or "").split(",") if name.strip())


class NamesOption(click.Option):
    """An option whose help lists the names that the library knows."""

    def get_help_record(self, ctx: click.Context) -> tuple[str, str] | None:
        from bespeak.evaluation import movielens, systems

        names = {
            "system": f"{', '.join(systems.SYSTEMS)}; for MovieLens {', '.join(movielens.SYSTEMS)}.",
            "stage": f"{', '.join(systems.STAGES)}; all if not given. MovieLens has no stages.",
        }
        self.help = names[str(self.name)]
        return super().get_help_record(ctx)


@click.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="A judged collection or MovieLens (see docs/evaluation.md). "
              "With --check: the folder that holds them.")  # fmt: skip
@click.option("--system", cls=NamesOption, callback=split_names, metavar="NAMES")
@click.option("--stage", cls=NamesOption, callback=split_names, metavar="NAMES")
@click.option("--limit", type=click.IntRange(min=1), help="Use at most this many queries (for MovieLens: users).")
@click.option("--every", type=click.IntRange(min=1),
              help="Use every Nth query (for MovieLens: users whose id is divisible by N).")  # fmt: skip
@click.option("--misplaced", is_flag=True,
              help="Ask only queries that stand alone, each after the turns of another conversation.")  # fmt: skip
@click.option("--encoder", help="Name or folder of an encoder; by default the shipped one.")
@mixing_options
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.option("--examples", type=click.IntRange(min=1), metavar="N", help="Show the N best and the N worst rewrites.")
@click.option("--plot", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE",
              help="For MovieLens: plot the gain by length of history to FILE (.png, .svg or .pdf). "
              "Needs the extra 'plot'.")  # fmt: skip
@click.option("--through", metavar="URL",
              help="Measure what clients of the proxy at this URL are served: systems direct, boost and recall. "
              "The documents are loaded into its cluster.")  # fmt: skip
@click.option("--token-file", type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="With --through: the token for the proxy's own routes.")  # fmt: skip
@click.option("--interleaving", is_flag=True, help="Report what clicks say about the sides of `serve --compare`.")
@profiles_option
@click.option("--check", "checks", multiple=True, type=click.Path(exists=True, dir_okay=False, path_type=Path),
              help="Check the expected scores in this file; exit code 1 if one is missed. Repeatable.")  # fmt: skip
@engine_options
@click.pass_context
def evaluate(ctx: click.Context, /, **options: Any) -> None:
    """Measure retrieval and personalisation on judged data.

    Vectors, rewrites and the index are kept in the cache folder, which makes the next run fast. --profiles is for
    --interleaving alone, which reads the recorded events instead of judged data.
    """
    if options["interleaving"]:
        report_comparisons(ctx, options)
        return
    check_usage(options)
    if options["checks"]:
        check_all(ctx, options)
    else:
        show_scores(ctx, options)


def check_usage(options: dict[str, Any]) -> None:
    """Refuses options that do not fit, before anything is measured."""
    from bespeak.evaluation.movielens import is_movielens
    from bespeak.evaluation.plot import check_plot

    if options["profiles"] != "sqlite":
        raise click.UsageError("--profiles is for --interleaving: judged data bring their own profiles")
    if options["through"]:
        if options["elasticsearch"] or options["checks"] or options["plot"]:
            raise click.UsageError("--through measures a proxy alone: leave --elasticsearch, --check and --plot out")
    elif options["token_file"]:
        raise click.UsageError("--token-file is for --through: add the proxy's URL")
    if options["data"] is None:
        raise click.MissingParameter(param_hint="'--data'", param_type="option")
    if options["plot"]:
        if not is_movielens(options["data"]):
            raise click.UsageError("only MovieLens has histories of several lengths: leave --plot out")
        check_plot(options["plot"])


def show_scores(ctx: click.Context, options: dict[str, Any]) -> None:
    from bespeak.evaluation.measurement import baseline_of, measure
    from bespeak_cli.scores import as_json, as_text

    if options["through"]:
        found = measure_through(ctx, options)
    else:
        found = measure(options["data"], read_selection(options), make_bench(ctx, options))
    if options["plot"]:
        from bespeak.evaluation.plot import plot_gains

        plot_gains(found.cells, baseline_of(found.cells), options["plot"])
    click.echo(as_json(found) if options["format_"] == "json" else as_text(found))


def measure_through(ctx: click.Context, options: dict[str, Any]) -> Measured:
    from bespeak.evaluation.measurement import measure_proxy
    from bespeak.evaluation.movielens import is_movielens
    from bespeak.evaluation.through import RunningProxy
    from bespeak.evaluation.topics import read_collection

    if is_movielens(options["data"]):
        raise click.UsageError("MovieLens is not measured through a proxy: leave --through out")
    selection = read_selection(options)
    collection = selection.of(read_collection(options["data"]))
    token = options["token_file"].read_text("utf-8").strip() if options["token_file"] else ""
    bench = make_bench(ctx, options | {"elasticsearch": options["through"]})
    return measure_proxy(collection, selection, RunningProxy(options["through"], token), bench)


def report_comparisons(ctx: click.Context, options: dict[str, Any]) -> None:
    """What the recorded clicks say about the sides that were compared."""
    from contextlib import closing

    from bespeak.evaluation.comparisons import ACTIONS, judge_comparisons
    from bespeak_cli.compare import as_data, as_report
    from bespeak_cli.store import check_store_options, open_store

    check_store_options(options)
    with closing(open_store(ctx.obj.data, options)) as store:
        found = judge_comparisons(store.of_everyone(ACTIONS))
    if options["format_"] == "json":
        import json

        click.echo(json.dumps(as_data(found), indent=2))
    else:
        click.echo(as_report(found))


def read_selection(options: dict[str, Any]) -> Selection:
    from bespeak.evaluation.measurement import Selection

    return Selection(
        tuple(options["system"] or ()),
        tuple(options["stage"] or ()),
        options["limit"],
        options["every"] or 1,
        options["examples"] or 0,
        options["misplaced"],
    )


def make_bench(ctx: click.Context, options: dict[str, Any]) -> Bench:
    from bespeak.evaluation.measurement import Bench

    return Bench(
        ctx.obj.cache,
        read_settings(options),
        options["encoder"],
        partial(open_index, ctx, options),
        partial(open_language_model, ctx),
        lambda label: Progress(label).update,
        partial(click.echo, err=True),
    )


def open_index(ctx: click.Context, options: dict[str, Any]) -> Engine:
    """Elasticsearch if its URL is given, otherwise an embedded engine in the cache folder."""
    if options.get("elasticsearch"):
        return open_engine_of(ctx.obj.data, options)
    from bespeak.engines.embedded import EmbeddedEngine

    return EmbeddedEngine(ctx.obj.cache / "evaluation" / "indices")


def open_language_model(ctx: click.Context, context: ContextReader) -> Rewriter:
    """The language model, built if missing. Never another rewriter, whose scores would pass for the model's."""
    from bespeak.errors import ModelError
    from bespeak.rewriting.opening import choose_rewriter
    from bespeak_cli.parts import build_with_progress

    try:
        return choose_rewriter("model", ctx.obj.cache, context=context)
    except ModelError:
        build_with_progress(ctx.obj.cache)
        return choose_rewriter("model", ctx.obj.cache, context=context)


def check_all(ctx: click.Context, options: dict[str, Any]) -> None:
    """Measures what each file names and shows a verdict for each score; exit code 1 if one is missed."""
    from bespeak.evaluation.measurement import measure
    from bespeak.evaluation.regressions import check_scores, read_expected
    from bespeak_cli.scores import check_row

    failed = 0
    for path in options["checks"]:
        expected = read_expected(path)
        named = options | named_options(expected)
        measured = measure(options["data"] / expected.data, read_selection(named), make_bench(ctx, named))
        found = list(check_scores(expected, measured.cells))
        click.echo("\n".join([f"{path.name}: {expected.data}", *map(check_row, found)]))
        failed += sum(one.verdict == "FAIL" for one in found)
    if failed:
        raise click.ClickException(f"{failed} of the scores are not as expected")


def named_options(expected: ExpectedScores) -> dict[str, Any]:
    """The options that the file names; the others are as if not given."""
    names = ("system", "stage", "limit", "every", "encoder", "weights", *MIXED, "examples")
    return {name: expected.options.get(name) for name in names}
