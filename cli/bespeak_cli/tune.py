"""`bespeak tune`: choose the settings that fit an operator's own judgments or logged clicks best."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import click

from bespeak_cli.store import CLUSTER_OPTIONS, check_store_options, open_store, store_options

if TYPE_CHECKING:
    from bespeak.evaluation.tuning import SettingScores, TuningResult
    from bespeak.settings import Settings

REFUSED = 3
"""Exit code when the evidence justifies no change."""
TABLES = ("search", "serve", "evaluate")
"""Commands that read the tuned settings from the configuration file."""


@click.command()
@click.option(
    "--data",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="Tune on this judged collection (see docs/evaluation.md). May be repeated.",
)
@click.option("--events", is_flag=True, help="Tune --weights on recorded impressions and clicks instead.")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    help="Write the chosen settings to this new TOML file, for --config and for `serve --compare`.",
)
@click.option("--format", type=click.Choice(["text", "json"]), default="text", show_default=True)
@store_options
@click.pass_context
def tune(ctx: click.Context, /, **options: Any) -> None:
    """Choose the settings that fit your own judgments or clicks best, by cross-validation.

    Give judged collections with --data, or --events. Candidates must beat the present settings, which are those that
    `bespeak serve` would use: the table [serve] of --config, its variables and its defaults.

    If the evidence does not justify a change, nothing is written and the exit code is 3. The options for profiles
    and Elasticsearch apply only to --events.
    """
    check_usage(options)
    found = on_events(ctx, options) if options["events"] else on_judgments(ctx, options["data"])
    click.echo(as_json(found) if options["format"] == "json" else as_text(found))
    if found.tuned.refusal:
        click.echo(f"Nothing should be changed: {found.tuned.refusal}.", err=True)
        ctx.exit(REFUSED)
    if options["out"]:
        write(options["out"], as_toml(found.chosen))


def check_usage(options: Mapping[str, Any]) -> None:
    """Raises click.UsageError for options that do not go together."""
    if bool(options["data"]) == options["events"]:
        raise click.UsageError("give either judged collections with --data or --events")
    if options["data"] and (options["profiles"] != "sqlite" or any(options[name] for name in CLUSTER_OPTIONS)):
        raise click.UsageError("judged collections need neither profiles nor Elasticsearch: leave those options out")
    check_store_options(options)
    if options["out"] and options["out"].exists():
        raise click.UsageError(f"--out {options['out']} exists already: name a new file")


class TuningReport(NamedTuple):
    """The result, the chosen settings by name, and facts about the evidence."""

    tuned: TuningResult
    chosen: dict[str, Any]
    facts: dict[str, Any]


def on_judgments(ctx: click.Context, folders: Sequence[Path]) -> TuningReport:
    from bespeak.evaluation.tuning import cross_validate, grid
    from bespeak_cli.mixing import MIXED, read_settings

    serving = serve_options(ctx)
    settings = grid(read_settings(serving), rewritten=serving["rewriter"] != "none")
    sets = [judge(ctx, folder, serving, settings) for folder in folders]
    tuned = cross_validate(sets, "conversations")
    best = settings[tuned.choice]
    chosen = {"weights": as_weights(best)} | {name: getattr(best, name) for name in MIXED}
    return TuningReport(tuned, chosen, {"measure": "nDCG@10", "groups": "conversations", "settings": len(settings)})


def serve_options(ctx: click.Context) -> dict[str, Any]:
    """The options that `bespeak serve` would use: from the configuration file, its variables, its defaults."""
    from bespeak_cli.serve import serve

    return serve.make_context("serve", ["--upstream", "none"], ctx.parent).params


def judge(ctx: click.Context, folder: Path, serving: dict[str, Any], settings: Sequence[Settings]) -> SettingScores:
    """What had to be computed for it is kept for the next time."""
    from bespeak.evaluation.measurement import open_kept_parts, save_kept
    from bespeak.evaluation.memory import make_readings
    from bespeak.evaluation.topics import read_collection
    from bespeak.evaluation.tuning import judged
    from bespeak.rewriting.opening import choose_rewriter
    from bespeak_cli.evaluate import make_bench
    from bespeak_cli.progress import Progress

    collection, name = read_collection(folder), serving["rewriter"]
    bench = make_bench(ctx, serving)
    baseline = partial(choose_rewriter, name, ctx.obj.cache)
    open_model = bench.open_model if name == "model" else lambda context: baseline(context=context)
    parts = open_kept_parts(bench, collection.digest, open_model)
    try:
        readings = make_readings(collection, parts, Progress(f"{collection.name}: queries").update)
    finally:
        save_kept(parts)
    return judged(readings, settings, Progress(f"{collection.name}: settings").update)


def on_events(ctx: click.Context, options: dict[str, Any]) -> TuningReport:
    from contextlib import closing

    from bespeak.evaluation.clicks import ACTIONS, click_evidence, fit_propensity, read_pages, weight_grid
    from bespeak.evaluation.tuning import cross_validate
    from bespeak_cli.mixing import read_settings

    present = read_settings(serve_options(ctx))
    with closing(open_store(ctx.obj.data, options)) as store:
        pages = list(read_pages(store.of_everyone(ACTIONS)))
    propensity = fit_propensity(pages)
    weights = weight_grid(present.weights)
    tuned = cross_validate([click_evidence(pages, weights, propensity)], "users")
    chosen = {"weights": ",".join(f"{value:g}" for value in weights[tuned.choice].as_tuple())}
    facts = {
        "measure": "1/log2(1+rank) of clicks", "groups": "users", "settings": len(weights), "searches": len(pages),
        "propensity": f"1/rank^{propensity.eta:.2f}", "clicks behind it": propensity.clicks,
    }  # fmt: skip
    return TuningReport(tuned, chosen, facts)


def as_weights(settings: Settings) -> str:
    return ",".join(f"{value:g}" for value in settings.weights.as_tuple())


def as_toml(chosen: Mapping[str, Any]) -> str:
    """A TOML table for each command that reads these settings."""
    lines = [f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value}" for name, value in chosen.items()]
    return "\n\n".join("\n".join([f"[{table}]", *lines]) for table in TABLES) + "\n"


def write(path: Path, text: str) -> None:
    from bespeak.errors import InputError

    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): name another file with --out") from error


def as_json(found: TuningReport) -> str:
    """All numbers; `chosen` is null if nothing should be changed."""
    import json
    from dataclasses import asdict

    from bespeak.evaluation.tuning import FOLDS

    tuned, chosen, facts = found
    data = facts | asdict(tuned) | {"folds": FOLDS, "chosen": None if tuned.refusal else chosen}
    del data["choice"]
    return json.dumps(data, indent=2)


def as_text(found: TuningReport) -> str:
    """A row for each held-out set, then the settings if they should be changed; at most 80 columns."""
    import textwrap

    from bespeak.evaluation.tuning import FOLDS
    from bespeak_cli.scores import interval, number

    tuned, chosen, facts = found
    lines = [*textwrap.wrap(", ".join(f"{name} {value}" for name, value in facts.items()), 80), ""]
    lines.append(f"{'held out':10}{'queries':>8}{facts['groups']:>14}{'now':>6}{'tuned':>6}  {'gain':21} worse")
    for held in tuned.sets:
        worse = f"{held.worse[0]:.1%} {held.worse[1]:.1%}" if held.worse else ""
        numbers = f"{held.queries:8}{held.groups:14}{number(held.before, ''):>6}{number(held.after, ''):>6}"
        lines.append(f"{held.name[:10]:10}{numbers}  {interval(held.gain, '+'):21} {worse}".rstrip())
    if len(tuned.sets) > 1:
        lines.append(f"{'mean':44}  {interval(tuned.gain, '+')}")
    if not tuned.refusal:
        lines += ["", f"{tuned.agreeing} of {FOLDS} folds picked these settings:", "", as_toml(chosen).rstrip()]
    return "\n".join(lines)
