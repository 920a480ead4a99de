"""Plots the gain of each system by length of history. Needs the extra `plot`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bespeak.errors import InputError, UsageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from bespeak.evaluation.systems import Cell


FORMATS = (".png", ".svg", ".pdf")


def check_plot(path: Path) -> None:
    """Raises `UsageError` if no plot can be drawn to this file. Call it before the measuring, which is slow."""
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise UsageError("a plot needs Matplotlib, which is not installed: pip install 'bespeak[plot]'") from error
    if path.suffix.lower() not in FORMATS:
        raise UsageError(f"the plot {path} must end in one of {', '.join(FORMATS)}")


def plot_gains(cells: Sequence[Cell], baseline: str, path: Path) -> None:
    """Draws the plot to a file. Raises `InputError` if it cannot be written."""
    try:
        gain_figure(cells, baseline).savefig(path)
    except OSError as error:
        raise InputError(f"cannot write {path} ({error.strerror}): give a file that can be written") from error


def gain_figure(cells: Sequence[Cell], baseline: str) -> Figure:
    """A line with 95 % intervals for each system; horizontal for a system that does not use the history."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    gained = by_system(cells)
    stages = list(dict.fromkeys(cell.stage for found in gained.values() if len(found) > 1 for cell in found))
    axes.axhline(0, color="black", linewidth=0.8, label=baseline)
    for n, (system, found) in enumerate(gained.items()):
        draw(axes, system, found, stages, f"C{n}")
    axes.set_xticks(range(len(stages)), stages)
    axes.set_xlabel("known events of the user")
    axes.set_ylabel(f"nDCG@10 above {baseline}")
    axes.legend()
    return figure


def by_system(cells: Sequence[Cell]) -> dict[str, list[Cell]]:
    """The cells of each system but the baseline, which has no gain."""
    found: dict[str, list[Cell]] = {}
    for cell in cells:
        if cell.gain:
            found.setdefault(cell.system, []).append(cell)
    return found


def draw(axes: Any, system: str, cells: Sequence[Cell], stages: Sequence[str], color: str) -> None:
    gains = [cell.gain.difference for cell in cells if cell.gain]
    low, high = [gain.low for gain in gains], [gain.high for gain in gains]
    if len(cells) == 1:
        axes.axhline(gains[0].mean, linestyle="--", label=system, color=color)
        axes.axhspan(low[0], high[0], alpha=0.12, color=color)
        return
    places = [stages.index(cell.stage) for cell in cells]
    axes.plot(places, [gain.mean for gain in gains], marker="o", label=system, color=color)
    axes.fill_between(places, low, high, alpha=0.2, color=color)
