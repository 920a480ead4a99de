"""Reads the sides of `bespeak serve --compare`, and shows the results of `bespeak evaluate --interleaving`."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bespeak_cli.mixing import MIXED

if TYPE_CHECKING:
    from bespeak.evaluation.comparisons import InterleavedPages, SplitTest
    from bespeak.ranking.interleaving import Comparison, Side
    from bespeak.settings import Settings

CURRENT = "current"


def read_comparison(text: str, current: Settings) -> Comparison:
    """Reads `A:B`, or `A|B` for a split test. Each side is `engine`, `current` or a TOML file.

    Raises UsageError, InputError.
    """
    from bespeak.errors import UsageError
    from bespeak.ranking.interleaving import Comparison

    found = re.fullmatch(r"([^:|]+)([:|])([^:|]+)", text)
    if not found:
        raise UsageError(f"--compare takes two sides as A:B or A|B, not {text!r}")
    first, second = read_side(found[1], current), read_side(found[3], current)
    if first.name == second.name:
        raise UsageError(f"--compare takes two sides with different names, but both are {first.name!r}")
    return Comparison((first, second), split=found[2] == "|")


def read_side(text: str, current: Settings) -> Side:
    """A side that is named like its file, without the ending. The file's table `serve` overrides current settings."""
    import tomllib
    from dataclasses import replace

    from bespeak.errors import InputError
    from bespeak.ranking.interleaving import ENGINE, Side
    from bespeak_cli.mixing import read_weights

    if text in (ENGINE, CURRENT):
        return Side(text, None if text == ENGINE else current)
    path = Path(text)
    try:
        given: dict[str, Any] = tomllib.loads(path.read_text("utf-8"))["serve"]
        mixed: dict[str, Any] = {name: float(given[name]) for name in MIXED if name in given}
        weights = read_weights(given["weights"]) if "weights" in given else current.weights
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is no TOML file with settings in a table [serve]: see docs/tuning.md") from error
    return Side(path.stem, replace(current, weights=weights, **mixed))


def as_data(found: list[InterleavedPages | SplitTest]) -> list[dict[str, Any]]:
    from dataclasses import asdict

    return [asdict(one) | {"better": one.better} for one in found]


def as_report(found: list[InterleavedPages | SplitTest]) -> str:
    """A paragraph for each comparison."""
    return "\n\n".join(map(paragraph, found)) or "Nothing was compared: start `bespeak serve` with --compare."


def paragraph(one: InterleavedPages | SplitTest) -> str:
    from bespeak.evaluation.comparisons import InterleavedPages

    first, second = one.sides
    if isinstance(one, InterleavedPages):
        mean = one.preference
        lines = [
            f"{first}:{second}, {one.searches} searches",
            f"  won by {first} {one.wins[0]}, by {second} {one.wins[1]}, ties {one.ties}",
            f"  users who prefer {first} {one.users[0]}, {second} {one.users[1]}; sign test p = {one.p_value:.4f}",
            f"  preference for {second} {mean.mean:+.3f} [{mean.low:+.3f} {mean.high:+.3f}]",
        ]
    else:
        mean = one.difference
        lines = [
            f"{first}|{second}, searches {one.searches[0]} and {one.searches[1]}, users {one.users[0]}, {one.users[1]}",
            f"  MRR of clicks {one.values[0].mean:.3f} and {one.values[1].mean:.3f}, "
            f"difference {mean.mean:+.3f} [{mean.low:+.3f} {mean.high:+.3f}]",
        ]
    return "\n".join([*lines, f"  better: {one.better}" if one.better else "  neither is significantly better"])
