"""Checks scores against a file of expected ones, which names the data, the options, the scores and a tolerance:

data: ikat                 # a folder inside the data folder
options: {system: [raw, human], stage: [lexical]}
needs: model               # only if the language model must be built
tolerance: 0.005
scores:
  raw: {lexical: {nDCG@10: 0.243, MRR: 0.284}}
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias

from bespeak.errors import InputError, UsageError
from bespeak.evaluation.measures import MEASURES
from bespeak.evaluation.systems import Cell

EXACT = 0.0005
"""Scores that differ by no more are equal, since they are written with three digits."""
OPTIONS = ("system", "stage", "limit", "every", "encoder", "weights")
NAMES = ("system", "stage")
KEYS = {"data", "options", "needs", "tolerance", "scores"}
Verdict: TypeAlias = Literal["OK", "OKish", "FAIL"]


@dataclass(frozen=True, slots=True)
class ExpectedScores:
    """The content of one file. `scores` are `system → stage → measure → value`."""

    path: Path
    data: str
    options: Mapping[str, Any]
    scores: Mapping[str, Mapping[str, Mapping[str, float]]]
    tolerance: float
    needs: str = ""


@dataclass(frozen=True, slots=True)
class ScoreCheck:
    """A measured score beside the expected one. `found` is None if the system or stage was not measured."""

    system: str
    stage: str
    measure: str
    expected: float
    found: float | None
    verdict: Verdict


def read_expected(path: Path) -> ExpectedScores:
    """Reads a file of expected scores. Raises `InputError` if it is not one, `UsageError` without PyYAML."""
    try:
        import yaml
    except ImportError as error:
        raise UsageError(
            "reading expected scores needs PyYAML, which is not installed: pip install 'bespeak[evaluate]'"
        ) from error
    try:
        content = yaml.safe_load(path.read_text("utf-8"))
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): --check names a file of expected scores") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        raise InputError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    return _expected(path, content)


def _expected(path: Path, content: Any) -> ExpectedScores:
    if not isinstance(content, dict) or not {"data", "scores", "tolerance"} <= content.keys() <= KEYS:
        raise InputError(f"{path} must hold data, scores and tolerance, and may hold options and needs, nothing else")
    options = content.get("options") or {}
    if not isinstance(options, dict) or not options.keys() <= set(OPTIONS):
        raise InputError(f"{path}: options may be {', '.join(OPTIONS)}, but are {options!r}")
    if not all(isinstance(options.get(name, []), list) for name in NAMES):
        raise InputError(f"{path}: {' and '.join(NAMES)} are lists of names, such as [raw, human]")
    try:
        scores = {
            str(system): {str(stage): {m: float(v) for m, v in values.items()} for stage, values in stages.items()}
            for system, stages in content["scores"].items()
        }
        tolerance = float(content["tolerance"])
    except (AttributeError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: scores are system, stage, measure and a number, nested; tolerance one number"
        ) from error
    if unknown := {m for stages in scores.values() for values in stages.values() for m in values} - set(MEASURES):
        raise InputError(f"{path}: there is no measure {min(unknown)!r}: choose from {', '.join(MEASURES)}")
    return ExpectedScores(path, str(content["data"]), options, scores, tolerance, str(content.get("needs") or ""))


def check_scores(expected: ExpectedScores, cells: Sequence[Cell]) -> Iterator[ScoreCheck]:
    """A verdict for each expected score, in the order of the file."""
    found = {(cell.system, cell.stage): cell.scores for cell in cells}
    for system, stages in expected.scores.items():
        for stage, values in stages.items():
            for measure, value in values.items():
                scores = found.get((system, stage))
                reached = scores[measure].mean if scores else None
                yield ScoreCheck(system, stage, measure, value, reached, verdict_on(value, reached, expected.tolerance))


def verdict_on(expected: float, found: float | None, tolerance: float) -> Verdict:
    """OK: equal to three digits; OKish: within the tolerance, as on other machines and versions; otherwise FAIL."""
    if found is None or abs(found - expected) > max(tolerance, EXACT) + 1e-9:
        return "FAIL"
    return "OK" if abs(found - expected) <= EXACT + 1e-9 else "OKish"
