import importlib.util
import json

import pytest
from click.testing import CliRunner

from bespeak.training.gain import StageProgress
from bespeak.training.options import ReaderScores, TrainingOptions
from bespeak_cli import cli
from bespeak_cli.training import report_stages, report_steps

HAS_TRAIN = importlib.util.find_spec("torch") is not None
# Torch brings gigabytes of packages, too much for every run: `.ci/train` runs these.
needs_train = pytest.mark.skipif(not HAS_TRAIN, reason="needs the extra 'train'")


@pytest.fixture
def run(tmp_path):
    def invoke(*arguments, command="train"):
        return CliRunner().invoke(
            cli, ["--cache-dir", str(tmp_path / "cache"), "models", command, *map(str, arguments)]
        )

    return invoke


@pytest.fixture
def pairs(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"query": "Why?", "rewrite": "Why?"}) + "\n")
    return path


@pytest.mark.parametrize(
    "arguments", [[], ["--data", "missing.jsonl"], ["--data", ".", "--passes", "0"], ["--passes", "x"]]
)
def test_wrong_usage(run, arguments):
    assert run(*arguments).exit_code == 2


def test_wrong_usage_of_train_context(run, pairs):
    assert run(command="train-context").exit_code == 2
    assert run("--data", pairs, "--held-out", "missing.jsonl", command="train-context").exit_code == 2
    assert run("--data", pairs, "--steps", "0", command="train-context").exit_code == 2


def test_wrong_usage_of_train_gain(run, pairs):
    assert run(command="train-gain").exit_code == 2
    assert run("--data", pairs, "--turns", "0", command="train-gain").exit_code == 2
    assert run("--data", pairs, "--adapter", "missing", command="train-gain").exit_code == 2


# Either side is skipped where the other one runs: the extra, torch and all, is there or it is not.
@pytest.mark.skipif(HAS_TRAIN, reason="the extra 'train' is installed")
@pytest.mark.parametrize("command", ["train", "train-gain", "train-context", "train-reader"])
def test_without_the_extra_it_says_so(run, pairs, command):
    result = run("--data", pairs, command=command)
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: training needs the extra 'train'")


@pytest.mark.train
@needs_train
def test_a_line_that_is_no_pair_is_a_sentence(run, tmp_path):
    (tmp_path / "pairs.jsonl").write_text("{}\n")
    result = run("--data", tmp_path / "pairs.jsonl")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: line 1 of ")
    assert result.stdout == ""


@pytest.mark.train
@needs_train
def test_pairs_whose_answers_are_not_known_are_a_sentence(run, pairs):
    result = run("--data", pairs, command="train-gain")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: no query of --data has a known answer: ")
    assert result.stdout == ""


def test_train_reader_says_how_well_it_reads(run, pairs, tmp_path, monkeypatch):
    asked = []

    def train(options, out, report):
        asked.append((options, out))
        return ReaderScores(query=0.8, context=0.9, words=0.75, leaning=0.95, n_held_out=120)

    monkeypatch.setattr("bespeak.training.reader.train", train)
    given = ("--data", pairs, "--held-out", pairs, "--passes", "0.5", "--steps", "7", "--seed", "3")
    result = run(*given, command="train-reader")
    out = tmp_path / "cache" / "models" / "reader"
    assert asked == [(TrainingOptions((pairs,), pairs, 0.5, 3, steps=7), out)]
    assert result.stdout == f"{out}\n"
    assert result.stderr == (
        "120 held-out queries: mean cosine to the rewrite 0.900 (as typed 0.800), average precision of the added words "
        "0.750, area under the curve of leaning 0.950\n"
    )


class Step:
    def __init__(self, step, loss):
        self.step, self.n_steps, self.n_targets, self.loss = step, 4, 10, loss


def test_the_last_step_is_shown(capsys):
    show = report_steps(line_every_s=3600)
    for step in range(2, 5):  # a resumed training
        show(Step(step, float(step)))
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("training: 100%, step 4 of 4, loss 3.000, ")


def test_the_end_of_every_stage_is_shown(capsys):
    show = report_stages(line_every_s=3600)
    for done in range(1, 4):
        show(StageProgress("turns rewritten", done, 3))
    show(Step(4, 0.5))
    assert capsys.readouterr().err.splitlines() == [
        "turns rewritten: 100%, 3 of 3",
        "training: 100%, step 4 of 4, loss 0.500",
    ]
