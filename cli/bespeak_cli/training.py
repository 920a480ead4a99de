"""`bespeak models train…`: train the models that Bespeak ships, on your own data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from bespeak_cli.progress import Progress as ProgressBar

if TYPE_CHECKING:
    from collections.abc import Callable

    from bespeak.training.fit import FitStep
    from bespeak.training.gain import StageProgress

Command = TypeVar("Command", bound="Callable[..., Any]")

LINE_EVERY_S = 60.0

A_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)
A_FOLDER = click.Path(file_okay=False, path_type=Path)

pairs_option = click.option(
    "--data",
    type=A_FILE,
    multiple=True,
    required=True,
    help="JSON lines of query, rewrite, history, statements and source. May be repeated.",
)
held_out_option = click.option(
    "--held-out",
    type=A_FILE,
    show_default="one conversation in twenty of --data",
    help="Pairs to score the result on.",
)
seed_option = click.option("--seed", type=int, default=0, show_default=True, help="Seed of all random choices.")
threads_option = click.option(
    "--threads",
    type=click.IntRange(min=1),
    default=lambda: os.cpu_count() or 1,
    show_default="one for each core",
    help="Threads to train with; the result does not depend on them.",
)
adapter_option = click.option(
    "--adapter",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    show_default="the shipped one",
    help="Folder of an adapter that 'bespeak models train' wrote.",
)


def passes_option(default: float) -> Callable[[Command], Command]:
    return click.option(
        "--passes",
        type=click.FloatRange(min=0, min_open=True),
        default=default,
        show_default=True,
        help="Passes over the data.",
    )


def out_option(default: str) -> Callable[[Command], Command]:
    return click.option("--out", type=A_FOLDER, show_default=default, help="Folder to write.")


@click.command()
@pairs_option
@out_option("in --cache-dir")
@held_out_option
@passes_option(1.0)
@seed_option
@threads_option
@click.pass_context
def train(ctx: click.Context, /, **options: Any) -> None:
    """Train the rewriter's adapter on pairs of queries and rewrites.

    An interrupted training resumes when you repeat the command. Needs the extra 'train'.
    """
    from bespeak.training.job import train as train_adapter
    from bespeak.training.options import TrainingOptions

    folder = options.pop("out") or ctx.obj.cache / "training"
    scores = train_adapter(TrainingOptions(**options), folder, report_steps())
    click.echo(
        f"Cross-entropy of {scores.n_held_out} held-out rewrites: {scores.adapter:.3f} nats per token "
        f"(the base without an adapter: {scores.base:.3f})",
        err=True,
    )
    click.echo(str(folder))


@click.command("train-gain")
@pairs_option
@adapter_option
@out_option("in --cache-dir")
@click.option(
    "--turns",
    type=click.IntRange(min=1),
    default=800,
    show_default=True,
    help="Learn from at most this many queries with a known answer.",
)
@seed_option
@threads_option
@click.pass_context
def train_gain(ctx: click.Context, /, **options: Any) -> None:
    """Train an adapter further, towards rewrites that find the answer.

    It learns from conversations in --data in which the answer to a query is known: the history of a later query
    contains it. An interrupted training resumes when you repeat the command. Needs the extra 'train'.
    """
    from bespeak.training.gain import train_gain as train_further
    from bespeak.training.options import GainOptions

    folder = options.pop("out") or ctx.obj.cache / "training-gain"
    scores = train_further(GainOptions(**options), folder, report_stages())
    click.echo(
        f"Mean gain of {scores.n_turns} queries, {scores.n_learnt} of them learnt from: as typed {scores.query:.3f}, "
        f"rewritten by a person {scores.person:.3f}, by the adapter before {scores.before:.3f} and after "
        f"{scores.after:.3f}",
        err=True,
    )
    click.echo(str(folder))


@click.command("train-context")
@pairs_option
@held_out_option
@out_option("in --cache-dir, where all commands use it instead of the shipped one")
@passes_option(2.0)
@seed_option
@threads_option
@click.pass_context
def train_context(ctx: click.Context, /, **options: Any) -> None:
    """Train the encoder that reads the session together with the query.

    An interrupted training resumes when you repeat the command. Needs the extra 'train'.
    """
    from bespeak.training.contextual import train as train_encoder
    from bespeak.training.options import TrainingOptions

    folder = options.pop("out") or ctx.obj.cache / "models" / "context"
    scores = train_encoder(TrainingOptions(**options), folder, report_steps())
    click.echo(
        f"Mean cosine to {scores.n_held_out} held-out rewrites: of the query as typed {scores.query:.3f}, "
        f"with its session {scores.context:.3f}",
        err=True,
    )
    click.echo(str(folder))


@click.command("train-reader")
@pairs_option
@held_out_option
@out_option("in --cache-dir, where all commands use it instead of the shipped one")
@passes_option(2.0)
@click.option("--steps", type=click.IntRange(min=1), help="Stop after this many steps of 48 queries.")
@seed_option
@threads_option
@click.pass_context
def train_reader(ctx: click.Context, /, **options: Any) -> None:
    """Train the reader that decides what a query depends on in its session.

    An interrupted training resumes when you repeat the command. Needs the extra 'train'.
    """
    from bespeak.training.options import TrainingOptions
    from bespeak.training.reader import train as train_model

    folder = options.pop("out") or ctx.obj.cache / "models" / "reader"
    scores = train_model(TrainingOptions(**options), folder, report_steps())
    click.echo(
        f"{scores.n_held_out} held-out queries: mean cosine to the rewrite {scores.context:.3f} (as typed "
        f"{scores.query:.3f}), average precision of the added words {scores.words:.3f}, area under the curve of "
        f"leaning {scores.leaning:.3f}",
        err=True,
    )
    click.echo(str(folder))


def report_steps(line_every_s: float = LINE_EVERY_S) -> Callable[[FitStep], None]:
    """Shows the step, the mean loss of the last 50 steps and the speed."""
    from collections import deque
    from time import monotonic

    bar = ProgressBar("training", line_every_s=line_every_s)
    losses: deque[float] = deque(maxlen=50)
    n_targets, started = 0, 0.0  # since the first step, whose preparation takes a minute and would distort the speed

    def report(progress: FitStep) -> None:
        nonlocal n_targets, started
        n_targets, started = (n_targets + progress.n_targets, started) if losses else (0, monotonic())
        losses.append(progress.loss)
        note = f"step {progress.step} of {progress.n_steps}, loss {sum(losses) / len(losses):.3f}"
        if n_targets:
            note += f", {n_targets / max(monotonic() - started, 1e-3):.1f} rewrites per second"
        bar.update(progress.step, progress.n_steps, note)

    return report


def report_stages(line_every_s: float = LINE_EVERY_S) -> Callable[[FitStep | StageProgress], None]:
    """Like `report_steps`, also for the stages before and after the steps."""
    from bespeak.training.gain import StageProgress

    report_step, bars = report_steps(line_every_s), dict[str, ProgressBar]()

    def report(progress: FitStep | StageProgress) -> None:
        if isinstance(progress, StageProgress):
            bar = bars.setdefault(progress.what, ProgressBar(progress.what, line_every_s=line_every_s))
            bar.update(progress.done, progress.size)
        else:
            report_step(progress)

    return report
