"""`bespeak models`: list, verify, export, build and train models."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

if TYPE_CHECKING:
    from collections.abc import Callable

    from bespeak.models.catalogue import ModelRecord
    from bespeak.models.export import Precision
    from bespeak.training.fit import FitStep
    from bespeak.training.gain import Stage


Command = TypeVar("Command", bound="Callable[..., Any]")


@click.group()
def models() -> None:
    """List, verify, export, build and train models."""


@models.command("list")
@click.option("--format", "format_", type=click.Choice(["text", "json"]), default="text", show_default=True)
@click.pass_context
def list_(ctx: click.Context, format_: str) -> None:
    """Show the shipped models and those made on this machine; * marks those taken where none is named."""
    from bespeak.models.catalogue import known_models

    found = list(known_models(ctx.obj.cache))
    if format_ == "json":
        click.echo(as_json(found))
        return
    for record, folder in found:
        megabytes = sum(file.bytes for file in record.files.values()) / 1e6
        mark = "*" if record.default else " "
        adapter = f", {adapter_in_use(record, ctx.obj.cache)}" if record.kind == "rewriter" else ""
        click.echo(f"{mark} {record.name}  {record.kind}{adapter}  {megabytes:.0f} MB  {record.licence}  {folder}")
    if not any(record.kind == "rewriter" for record, _ in found):
        click.echo("The rewriter is not built yet: run 'bespeak models build'.", err=True)


def adapter_in_use(record: ModelRecord, cache: Path) -> str:
    """Which adapter a built rewriter is made with."""
    from bespeak.rewriting.model import made_from

    if record.made == made_from(None):
        return "shipped adapter"
    return "own adapter" if record.made == made_from(cache) else "of older parts"


def as_json(found: list[tuple[ModelRecord, Path]]) -> str:
    import json
    from dataclasses import asdict

    rows = [asdict(record) | {"version": record.version, "folder": str(folder)} for record, folder in found]
    return json.dumps(rows, indent=2)


@models.command()
@click.argument("name", required=False)
@click.pass_context
def verify(ctx: click.Context, name: str | None) -> None:
    """Compare the size and sha256 of every file of a model, or of all, with what they have to be."""
    from bespeak.errors import ModelError
    from bespeak.models.catalogue import known_models, model_folder
    from bespeak.models.catalogue import verify as verify_model

    cache = ctx.obj.cache
    folders = [model_folder(name, cache)] if name else [folder for _, folder in known_models(cache)]
    broken = []
    for folder in folders:
        try:
            record = verify_model(folder)
            click.echo(f"{record.name}: {len(record.files)} files are whole")
        except ModelError as error:
            broken.append(folder.name)
            click.echo(f"{folder.name}: {error}", err=True)
    if broken:
        raise ModelError(f"{len(broken)} of {len(folders)} models are damaged: {', '.join(broken)}")


@models.command()
@click.argument("name_or_folder")
@click.option(
    "--to", type=click.Path(file_okay=False, path_type=Path), help="Folder to write; in the cache if not given."
)
@click.option("--precision", type=click.Choice(["int8", "fp32"]), default="int8", show_default=True)
@click.pass_context
def export(ctx: click.Context, name_or_folder: str, to: Path | None, precision: Precision) -> None:
    """Turn a sentence-transformers model into an encoder that --encoder takes.

    NAME_OR_FOLDER is the model's folder, or its name on the hub. Needs the extra 'train'.
    """
    from bespeak.models.export import default_name, export_model

    folder = to or ctx.obj.cache / "models" / default_name(name_or_folder)
    click.echo(f"Exporting {name_or_folder} to {folder} …", err=True)
    record = export_model(name_or_folder, folder, precision)
    click.echo(f"{record.name}: {record.made}", err=True)
    click.echo(str(to) if to else record.name)


@models.command()
@click.option(
    "--adapter",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder that 'bespeak models train' wrote; the shipped adapter if not given.",
)
@click.pass_context
def build(ctx: click.Context, adapter: Path | None) -> None:
    """Make the rewriter's model in the cache, from the packages of the extra 'rewriter'.

    It is what all commands take then, until it is built again with another adapter.
    """
    from bespeak.rewriting.build import use_adapter
    from bespeak_cli.parts import build_with_progress

    use_adapter(ctx.obj.cache, adapter)
    click.echo(str(build_with_progress(ctx.obj.cache)))


pairs_option = click.option(
    "--data",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    multiple=True,
    required=True,
    help="JSON lines of query, rewrite, history, statements and source. May be given several times.",
)
held_out_option = click.option(
    "--held-out",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    help="Pairs to score on; one conversation in twenty of --data if not given.",
)
seed_option = click.option("--seed", type=int, default=0, show_default=True)
threads_option = click.option("--threads", type=click.IntRange(min=1), help="One for each processor if not given.")


def passes_option(default: float) -> Callable[[Command], Command]:
    return click.option(
        "--passes",
        type=click.FloatRange(min=0, min_open=True),
        default=default,
        show_default=True,
        help="How often the data are gone through.",
    )


@models.command()
@pairs_option
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder to write; in the cache if not given."
)
@held_out_option
@passes_option(1.0)
@seed_option
@threads_option
@click.pass_context
def train(
    ctx: click.Context,
    data: tuple[Path, ...],
    out: Path | None,
    held_out: Path | None,
    passes: float,
    seed: int,
    threads: int | None,
) -> None:
    """Train the rewriter's adapter on pairs of queries and rewrites.

    One that was ended goes on where it was, if the same command is given again. Needs the extra 'train'.
    """
    import os

    from bespeak.training.job import train as train_adapter
    from bespeak.training.options import TrainingOptions

    folder = out or ctx.obj.cache / "training"
    scores = train_adapter(
        TrainingOptions(data, held_out, passes, seed, threads or os.cpu_count() or 1), folder, tell_progress()
    )
    click.echo(
        f"Cross-entropy of {scores.n_held_out} held-out rewrites: {scores.adapter:.3f} nats a token "
        f"(the base without an adapter {scores.base:.3f})",
        err=True,
    )
    click.echo(str(folder))


def tell_progress(every_s: float = 60) -> Callable[[FitStep], None]:
    """A line on stderr after the first step, after the last one, and about once a minute."""
    from collections import deque
    from time import monotonic

    started = told = 0.0
    n_targets = 0  # since the first step: what comes before it takes a minute, and would slow the figure
    losses: deque[float] = deque(maxlen=50)

    def tell(progress: FitStep) -> None:
        nonlocal started, told, n_targets
        now, first = monotonic(), not losses
        losses.append(progress.loss)
        started, n_targets = (now, 0) if first else (started, n_targets + progress.n_targets)
        if first or now - told >= every_s or progress.step == progress.n_steps:
            told = now
            loss, speed = sum(losses) / len(losses), n_targets / max(now - started, 1e-3)
            fast = f", {speed:.1f} rewrites a second" if n_targets else ""
            click.echo(f"step {progress.step} of {progress.n_steps}: loss {loss:.3f}{fast}", err=True)

    return tell


@models.command("train-gain")
@pairs_option
@click.option(
    "--adapter",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    help="A folder that 'bespeak models train' wrote; the shipped adapter if not given.",
)
@click.option(
    "--out", type=click.Path(file_okay=False, path_type=Path), help="Folder to write; in the cache if not given."
)
@click.option(
    "--turns",
    type=click.IntRange(min=1),
    default=800,
    show_default=True,
    help="Queries with a known answer that are learnt from, at most.",
)
@seed_option
@threads_option
@click.pass_context
def train_gain(
    ctx: click.Context,
    data: tuple[Path, ...],
    adapter: Path | None,
    out: Path | None,
    turns: int,
    seed: int,
    threads: int | None,
) -> None:
    """Train an adapter on, by which of its rewrites find what was answered.

    It learns from conversations in --data in which the answer to a query is known: it stands in the history of a later
    one. One that was ended goes on where it was, if the same command is given again. Needs the extra 'train'.
    """
    import os

    from bespeak.training.gain import train_gain as train_on
    from bespeak.training.options import GainOptions

    folder = out or ctx.obj.cache / "training-gain"
    scores = train_on(GainOptions(data, adapter, turns, seed, threads or os.cpu_count() or 1), folder, tell_stages())
    click.echo(
        f"Mean gain of {scores.n_turns} queries, {scores.n_learnt} of them learnt from: as typed {scores.query:.3f}, a "
        f"person's rewrite {scores.person:.3f}, the adapter's before {scores.before:.3f}, after {scores.after:.3f}",
        err=True,
    )
    click.echo(str(folder))


def tell_stages(every_s: float = 60) -> Callable[[FitStep | Stage], None]:
    """`tell_progress` of the steps; of what goes before and after them a line at each end, and about once a minute."""
    from time import monotonic

    from bespeak.training.gain import Stage

    tell_step, told = tell_progress(every_s), monotonic()

    def tell(progress: FitStep | Stage) -> None:
        nonlocal told
        if not isinstance(progress, Stage):
            tell_step(progress)
        elif progress.done == progress.size or monotonic() - told >= every_s:
            told = monotonic()
            click.echo(f"{progress.what}: {progress.done} of {progress.size}", err=True)

    return tell


@models.command("train-terms")
@pairs_option
@click.option("--held-out", type=click.Path(exists=True, dir_okay=False, path_type=Path), help="Pairs to score on.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder to write.")
@seed_option
def train_terms(data: tuple[Path, ...], held_out: Path | None, out: Path, seed: int) -> None:
    """Train the network that picks the words of a session a query leans on. Takes minutes."""
    from bespeak.training.terms import train, write

    learnt = train(data, held_out, seed)
    write(learnt, out)
    click.echo(f"Pairs by source: {learnt.sources}; average precision held out: {learnt.precision:.3f}", err=True)
    click.echo(str(out / "terms.npz"))


@models.command("train-context")
@pairs_option
@held_out_option
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder to write; in the cache, from where it is taken in place of the shipped one, if not given.",
)
@passes_option(2.0)
@seed_option
@threads_option
@click.pass_context
def train_context(
    ctx: click.Context,
    data: tuple[Path, ...],
    held_out: Path | None,
    out: Path | None,
    passes: float,
    seed: int,
    threads: int | None,
) -> None:
    """Train the encoder that reads a session beside the query.

    One that was ended goes on where it was, if the same command is given again. Needs the extra 'train'.
    """
    import os

    from bespeak.training.contextual import train
    from bespeak.training.options import TrainingOptions

    folder = out or ctx.obj.cache / "models" / "context"
    scores = train(
        TrainingOptions(data, held_out, passes, seed, threads or os.cpu_count() or 1), folder, tell_progress()
    )
    click.echo(
        f"Mean cosine to {scores.n_held_out} held-out rewrites: the query as typed {scores.query:.3f}, "
        f"with its session {scores.context:.3f}",
        err=True,
    )
    click.echo(str(folder))
