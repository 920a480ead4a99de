"""`bespeak evaluate --check` over the files of expected scores beside this test."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from bespeak.evaluation import movielens, systems
from bespeak.evaluation.regressions import read_expected
from bespeak_cli import cli

HERE = Path(__file__).parent
FILES = sorted(HERE.glob("*.yaml"))
SHIPPED = [path for path in FILES if (HERE / "data" / read_expected(path).data).is_dir()]
RATINGS = {"movielens", "films"}


def check(path, data, cache):
    """Every score of the file is as expected; the sentences of those that are not."""
    arguments = ["--cache-dir", cache, "evaluate", "--data", data, "--check", path]
    result = CliRunner().invoke(cli, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    n_scores = sum(len(values) for stages in read_expected(path).scores.values() for values in stages.values())
    assert n_scores == result.stdout.count("\n[OK") > 0


@pytest.mark.parametrize(
    "path", [path for path in SHIPPED if not read_expected(path).needs], ids=lambda path: path.stem
)
def test_the_scores_on_the_shipped_data_are_as_expected(path, tmp_path):
    check(path, HERE / "data", tmp_path / "cache")


@pytest.mark.model
@pytest.mark.parametrize("path", [path for path in SHIPPED if read_expected(path).needs], ids=lambda path: path.stem)
def test_the_scores_of_the_language_model_on_the_shipped_data_are_as_expected(path, rewriter_cache, tmp_path):
    cache = tmp_path / "cache"  # an empty one: rewrites that an earlier run kept would hide a change
    cache.mkdir()
    (cache / "models").symlink_to(rewriter_cache / "models")
    check(path, HERE / "data", cache)


@pytest.mark.data
def test_the_lexical_scores_on_ikat_are_as_expected(shared_data, tmp_path):
    check(HERE / "ikat-lexical.yaml", shared_data, tmp_path / "cache")


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_every_file_of_expected_scores_names_systems_that_there_are(path):
    expected = read_expected(path)
    known = movielens.SYSTEMS if expected.data in RATINGS else systems.SYSTEMS
    assert set(expected.scores) <= set(expected.options["system"]) <= set(known)
    assert expected.needs == ("model" if {"rewrite", "rewrite-alone"} & set(expected.scores) else "")


def test_the_shipped_data_are_small():
    size = sum(path.stat().st_size for path in (HERE / "data").rglob("*") if path.is_file())
    assert size < 200_000
