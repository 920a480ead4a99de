import importlib.util
import json

import pytest
from click.testing import CliRunner

from bespeak.models.catalogue import ModelRecord, default_model, describe_files, manifest, write_record
from bespeak.session.reader import MODEL as READER
from bespeak_cli import cli

HAS_TRAIN = importlib.util.find_spec("sentence_transformers") is not None
# Torch brings gigabytes of packages, too much for every run: `.ci/train` runs these.
needs_train = pytest.mark.skipif(not HAS_TRAIN, reason="needs the extra 'train'")


@pytest.fixture
def run(tmp_path):
    def invoke(*arguments):
        return CliRunner().invoke(cli, ["--cache-dir", str(tmp_path / "cache"), "models", *arguments])

    return invoke


@pytest.fixture
def made(tmp_path):
    folder = tmp_path / "cache" / "models" / "mine"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"0123456789")
    write_record(folder, ModelRecord("mine", "encoder", describe_files(folder), "MIT", "here", "by hand"))
    return folder


def test_list_shows_shipped_and_made_models(run, made):
    result = run("list")
    assert result.exit_code == 0
    assert f"* {default_model('encoder')}  encoder  " in result.stdout
    assert f"  {READER}  context-reader  " in result.stdout
    assert f"  mine  encoder  0 MB  MIT  {made}\n" in result.stdout
    assert "models build" in result.stderr


def test_list_as_json(run, made):
    rows = {row["name"]: row for row in json.loads(run("list", "--format", "json").stdout)}
    assert set(rows) == {*manifest(), "mine"}
    assert rows["mine"]["folder"] == str(made)


def test_verify_reports_whole_models(run, made):
    result = run("verify")
    assert result.exit_code == 0
    assert "mine: 1 files are intact\n" in result.stdout
    assert default_model("encoder") in result.stdout


def test_verify_of_one_model(run, made):
    assert run("verify", "mine").stdout == "mine: 1 files are intact\n"


def test_verify_names_damaged_models_and_fails(run, made):
    (made / "model.onnx").write_bytes(b"0123")
    result = run("verify")
    assert result.exit_code == 1
    assert "4 bytes instead of 10" in result.stderr
    assert result.stderr.endswith("models are damaged: mine\n")
    assert default_model("encoder") in result.stdout


def test_list_says_with_which_adapter_the_rewriter_is_built(run, tmp_path):
    from bespeak.rewriting.model import MODEL, made_from

    folder = tmp_path / "cache" / "models" / MODEL
    folder.mkdir(parents=True)
    for made, said in ((made_from(None), "shipped adapter"), ("another", "of older parts")):
        write_record(folder, ModelRecord(MODEL, "rewriter", {}, "terms", "base", made))
        assert f"  {MODEL}  rewriter, {said}  " in run("list").stdout


def test_build_of_a_folder_without_adapter_is_a_sentence(run, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run("build", "--adapter", str(tmp_path / "empty"))
    assert result.exit_code == 1
    assert "has no adapter.npz: give the folder that 'bespeak models train --out' wrote" in result.stderr
    assert run("build", "--adapter", str(tmp_path / "missing")).exit_code == 2


def test_an_unknown_model_is_a_sentence(run, made):
    result = run("verify", "other")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: there is no model 'other': choose one of ")


# Either side is skipped where the other one runs: the extra, torch and all, is there or it is not.
@pytest.mark.skipif(HAS_TRAIN, reason="the extra 'train' is installed")
def test_export_without_the_extra_is_a_sentence(run, tmp_path):
    result = run("export", "some/model")
    assert result.exit_code == 1
    assert "needs the extra 'train'" in result.stderr
    assert not (tmp_path / "cache" / "models").exists()


@pytest.mark.train
@needs_train
@pytest.mark.filterwarnings("ignore")
def test_export_of_a_folder_that_is_no_model_is_a_sentence(run, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run("export", str(tmp_path / "empty"))
    assert result.exit_code == 1
    assert "cannot be opened as a sentence-transformers model" in result.stderr
