"""The tables that `bespeak evaluate` prints."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from bespeak_cli.examples import as_examples, examples_data

if TYPE_CHECKING:
    from bespeak.evaluation.measurement import Measured
    from bespeak.evaluation.measures import Estimate
    from bespeak.evaluation.regressions import ScoreCheck
    from bespeak.evaluation.systems import Cell


def as_json(found: Measured) -> str:
    import json
    from dataclasses import asdict

    examples = {"examples": examples_data(found.examples)} if found.examples else {}
    return json.dumps(found.facts | {"results": [asdict(cell) for cell in found.cells]} | examples, indent=2)


def as_text(found: Measured) -> str:
    """At most 80 columns: the facts, the scores with their intervals, the gains, and examples if there are any."""
    facts = ", ".join(f"{name} {_brief(value)}" for name, value in found.facts.items())
    blocks = [textwrap.wrap(facts, 80, break_on_hyphens=False), _score_rows(found.cells), _gain_rows(found.cells)]
    if found.examples:
        blocks.append([as_examples(found.examples)])
    return "\n\n".join("\n".join(rows) for rows in blocks if rows)


def _score_rows(cells: Sequence[Cell]) -> list[str]:
    from bespeak.evaluation.measures import MEASURES

    rows = [f"{'system':14}{'stage':9}" + "".join(f"{name:19}" for name in MEASURES).rstrip()]
    for cell in cells:
        scores = "".join(f"{interval(cell.scores[name]):19}" for name in MEASURES)
        rows.append(f"{cell.system:14}{cell.stage:9}{scores.rstrip()}")
    return rows


def _gain_rows(cells: Sequence[Cell]) -> list[str]:
    """Each system against the baseline; empty if only the baseline was measured."""
    from bespeak.evaluation.measurement import baseline_of

    rows = [
        f"{cell.system:14}{cell.stage:9}{interval(cell.gain.difference, '+'):26}"
        f"{cell.gain.worse:8.1%}{cell.gain.better:8.1%}"
        for cell in cells
        if cell.gain
    ]
    heading = f"{'system':14}{'stage':9}{'nDCG@10 against ' + baseline_of(cells):26}{'worse':>8}{'better':>8}"
    return [heading, *rows] if rows else []


def _brief(value: Any) -> str:
    return ":".join(f"{v:g}" for v in value) if isinstance(value, list) else str(value)


def interval(estimate: Estimate, sign: str = "") -> str:
    return " ".join((number(estimate.mean, sign), f"[{number(estimate.low, sign)} {number(estimate.high, sign)}]"))


def number(value: float, sign: str) -> str:
    """Three digits, without the 0 before the point."""
    text = f"{value:{sign}.3f}"
    return text.replace("0.", ".", 1) if abs(value) < 0.9995 else text


def check_row(one: ScoreCheck) -> str:
    found = "none" if one.found is None else f"{one.found:.3f}"
    return f"{f'[{one.verdict}]':8}{one.system:14}{one.stage:9}{one.measure:11}{found} (expected {one.expected:.3f})"
