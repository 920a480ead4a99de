"""`bespeak tune`: the weights that an operator's own judgments or logged clicks speak for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from bespeak_cli.engine import engine_options
from bespeak_cli.learn import open_store, profiles_option

if TYPE_CHECKING:
    from bespeak.evaluation.clicks import Propensity
    from bespeak.evaluation.tuning import Evidence, Tuned
    from bespeak.settings import Settings

REFUSED = 3
"""Exit code where the evidence carries no change."""
TABLES = ("search", "serve", "evaluate")
"""Commands that read what is tuned from the configuration file."""


@click.command()
@click.option("--data", multiple=True, type=click.Path(exists=True, file_okay=False, path_type=Path),
              help="A judged collection (see docs/evaluation.md). May be given many times.")  # fmt: skip
@click.option("--events", is_flag=True, help="Tune the weights of the columns on logged impressions and clicks.")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path),
              help="Write the settings as a TOML file for --config and `serve --compare`.")  # fmt: skip
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True)
@profiles_option
@engine_options
@click.pass_context
def tune(ctx: click.Context, /, **options: Any) -> None:
    """Choose the settings that your own judgments or clicks speak for, by cross-validation.

    Compared with what `bespeak serve` would run with by --config. Exit code 3 and nothing written where the evidence
    carries no change.
    """
    out: Path | None = options["out"]
    if bool(options["data"]) == options["events"]:
        raise click.UsageError("give either judged collections with --data or --events")
    if out and out.exists():
        raise click.UsageError(f"--out {out} is there already: name a new file")
    found = on_events(ctx, options) if options["events"] else on_judgments(ctx, options["data"])
    tuned, chosen, facts = found
    click.echo(as_json(tuned, chosen, facts) if options["format_"] == "json" else as_text(tuned, chosen, facts))
    if tuned.refusal:
        click.echo(f"Nothing is to be changed: {tuned.refusal}.", err=True)
        ctx.exit(REFUSED)
    if out:
        write(out, as_toml(chosen))


Found = tuple["Tuned", dict[str, Any], dict[str, Any]]
"""What came of it, what was picked by name, and what it was tuned on."""


def on_judgments(ctx: click.Context, folders: Sequence[Path]) -> Found:
    from bespeak.evaluation.tuning import cross_validate, grid
    from bespeak_cli.mixing import MIXED
    from bespeak_cli.search import read_settings

    serving = serve_options(ctx)
    settings = grid(read_settings(serving), rewritten=serving["rewriter"] != "none")
    sets = [judge(ctx, folder, serving, settings) for folder in folders]
    tuned = cross_validate(sets, "conversations")
    best = settings[tuned.choice]
    chosen = {"weights": as_weights(best)} | {name: getattr(best, name) for name in MIXED}
    return tuned, chosen, {"measure": "nDCG@10", "groups": "conversations", "settings": len(settings)}


def serve_options(ctx: click.Context) -> dict[str, Any]:
    """What `bespeak serve` would run with: its table in the configuration file, its variables, its defaults."""
    from bespeak_cli.serve import serve

    return serve.make_context("serve", ["--upstream", "none"], ctx.parent).params


def judge(ctx: click.Context, folder: Path, serving: dict[str, Any], settings: Sequence[Settings]) -> Evidence:
    """What had to be computed for it is kept for the next time."""
    from bespeak.evaluation.kept import KeptEncoder, KeptRewriter
    from bespeak.evaluation.signals import gather
    from bespeak.evaluation.topics import read_collection
    from bespeak.evaluation.tuning import judged
    from bespeak.rewriting.opening import choose_rewriter
    from bespeak.session.terms import load_terms
    from bespeak_cli.evaluate import open_context, open_encoder, open_model, progress

    collection, name = read_collection(folder), serving["rewriter"]
    encoder = open_encoder(ctx, serving, collection.digest)
    context = open_context(ctx, encoder, collection.digest)
    made = open_model(ctx) if name == "model" else choose_rewriter(name, ctx.obj.cache)
    rewriter = KeptRewriter(made, ctx.obj.cache / "evaluation", collection.digest)
    try:
        told = progress(f"{collection.name}: queries")
        signals = gather(collection, encoder, rewriter, told, load_terms(), context)
    finally:
        for kept in (encoder, rewriter, context and context.encoder):
            if isinstance(kept, KeptEncoder | KeptRewriter):
                kept.save()
    return judged(signals, settings, progress(f"{collection.name}: settings"))


def on_events(ctx: click.Context, options: dict[str, Any]) -> Found:
    from contextlib import closing

    from bespeak.evaluation.clicks import ACTIONS, clicked, fit_propensity, read_pages, weight_grid
    from bespeak.evaluation.tuning import cross_validate
    from bespeak_cli.search import read_settings

    present = read_settings(serve_options(ctx))
    with closing(open_store(ctx.obj.data, options)) as store:
        pages = list(read_pages(store.of_everyone(ACTIONS)))
    propensity: Propensity = fit_propensity(pages)
    weights = weight_grid(present.weights)
    tuned = cross_validate([clicked(pages, weights, propensity)], "users")
    chosen = {"weights": ",".join(f"{value:g}" for value in weights[tuned.choice].as_tuple())}
    facts = {
        "measure": "1/log2(1+rank) of clicks", "groups": "users", "settings": len(weights), "searches": len(pages),
        "propensity": f"1/rank^{propensity.eta:.2f}", "told by clicks": propensity.clicks,
    }  # fmt: skip
    return tuned, chosen, facts


def as_weights(settings: Settings) -> str:
    return ",".join(f"{value:g}" for value in settings.weights.as_tuple())


def as_toml(chosen: Mapping[str, Any]) -> str:
    """A table for each command that reads these settings."""
    lines = [f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value}" for name, value in chosen.items()]
    return "\n\n".join("\n".join([f"[{table}]", *lines]) for table in TABLES) + "\n"


def write(path: Path, text: str) -> None:
    from bespeak.errors import InputError

    try:
        path.write_text(text, "utf-8")
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): name another file with --out") from error


def as_json(tuned: Tuned, chosen: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """`chosen` is null where nothing is to be changed."""
    import json
    from dataclasses import asdict

    from bespeak.evaluation.tuning import FOLDS

    found = dict(facts) | asdict(tuned) | {"folds": FOLDS, "chosen": None if tuned.refusal else dict(chosen)}
    del found["choice"]
    return json.dumps(found, indent=2)


def as_text(tuned: Tuned, chosen: Mapping[str, Any], facts: Mapping[str, Any]) -> str:
    """A line a set, what was held out; then the settings, where they are to be changed. At most 80 columns."""
    import textwrap

    from bespeak.evaluation.tuning import FOLDS
    from bespeak_cli.evaluate import interval, number

    lines = [*textwrap.wrap(", ".join(f"{name} {value}" for name, value in facts.items()), 80), ""]
    lines.append(f"{'held out':10}{'queries':>8}{facts['groups']:>14}{'now':>6}{'tuned':>6}  {'gain':21} worse")
    for one in tuned.sets:
        worse = f"{one.worse[0]:.1%} {one.worse[1]:.1%}" if one.worse else ""
        numbers = f"{one.queries:8}{one.groups:14}{number(one.before, ''):>6}{number(one.after, ''):>6}"
        lines.append(f"{one.name[:10]:10}{numbers}  {interval(one.gain, '+'):21} {worse}".rstrip())
    if len(tuned.sets) > 1:
        lines.append(f"{'mean':44}  {interval(tuned.gain, '+')}")
    if not tuned.refusal:
        lines += ["", f"{tuned.agreeing} of {FOLDS} folds picked these settings:", "", as_toml(chosen).rstrip()]
    return "\n".join(lines)
