"""Writes the scores that are reached now into files of expected scores.

    python tests/regressions/update.py tests/regressions/films.yaml …

A file keeps its head and the systems, stages and measures that it lists; one with `scores: {}` gets all of them.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from bespeak.evaluation.regressions import read_expected

HERE = Path(__file__).parent


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", nargs="+", type=Path, help="files of expected scores")
    parser.add_argument("--data", type=Path, default=HERE / "data", help="the folder that holds the data of the files")
    arguments = parser.parse_args()
    for path in arguments.files:
        expected = read_expected(path)
        scores = measure(arguments.data / expected.data, expected.options)
        head = path.read_text("utf-8").partition("\nscores:")[0]
        path.write_text(f"{head}\nscores:\n{as_yaml(chosen(scores, expected.scores))}", "utf-8")


def measure(folder, options):
    """`system → stage → measure → value`, by `bespeak evaluate` itself."""
    arguments = []
    for name, value in options.items():
        arguments += [f"--{name.replace('_', '-')}", ",".join(value) if isinstance(value, list) else str(value)]
    command = [sys.executable, "-m", "bespeak_cli", "evaluate", "--data", str(folder), *arguments, "--format", "json"]
    results = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE).stdout)["results"]
    scores = {}
    for cell in results:
        values = {name: estimate["mean"] for name, estimate in cell["scores"].items()}
        scores.setdefault(cell["system"], {})[cell["stage"]] = values
    return scores


def chosen(scores, listed):
    """The scores that a file lists, or all if it lists none."""
    return {
        system: {stage: {name: scores[system][stage][name] for name in names} for stage, names in stages.items()}
        for system, stages in (listed or scores).items()
    }


def as_yaml(scores):
    lines = []
    for system, stages in scores.items():
        lines.append(f"  {system}:")
        for stage, values in stages.items():
            key = f'"{stage}"' if stage.isdecimal() else stage  # else YAML reads a number
            lines.append(f"    {key}: {{" + ", ".join(f"{name}: {value:.3f}" for name, value in values.items()) + "}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    main()
