import json
import os
import subprocess
import sys
import zipfile
from dataclasses import replace

import pytest

from bespeak.errors import ModelError
from bespeak.models.catalogue import (
    ModelRecord,
    asset_folder,
    default_model,
    describe_files,
    known_models,
    manifest,
    model_folder,
    read_record,
    verify,
    write_record,
)
from bespeak.session.reader import MODEL
from conftest import CHECKOUT


@pytest.fixture
def cache(tmp_path):
    folder = tmp_path / "cache"
    folder.mkdir()
    return folder


@pytest.fixture
def model(cache):
    """A model made in the cache: two small files and their record."""
    folder = cache / "models" / "tiny"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(b"0123456789")
    (folder / "tokenizer.json").write_text("{}")
    write_record(folder, ModelRecord("tiny", "encoder", describe_files(folder), "MIT", "here", "by hand"))
    return folder


def change_unseen(path):
    """Other bytes, with size, time and inode as they were."""
    stat = path.stat()
    with path.open("r+b") as file:
        file.write(b"X")
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))


@pytest.mark.parametrize("name", sorted(manifest()))
def test_a_shipped_model_is_intact_and_lists_all_its_files(name):
    folder = asset_folder("onnx_models") / name
    assert verify(folder) == manifest()[name]
    assert describe_files(folder) == manifest()[name].files
    assert {"CARD.md", "LICENSE"} <= set(manifest()[name].files)


def test_the_default_encoder_and_the_context_reader_are_shipped():
    assert model_folder(default_model("encoder")).is_dir()
    assert [name for name, record in manifest().items() if record.kind == "context-reader"] == [MODEL]


def test_a_kind_that_is_not_shipped_has_no_default():
    with pytest.raises(ModelError, match="no rewriter is shipped"):
        default_model("rewriter")


def test_the_wheel_carries_templates_and_models(tmp_path):
    """Built and unpacked elsewhere, the package finds both inside itself and loads its encoder and its reader."""
    build = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation"]
    subprocess.run([*build, "--wheel-dir", str(tmp_path), str(CHECKOUT)], check=True)
    site = tmp_path / "site"
    with zipfile.ZipFile(next(tmp_path.glob("*.whl"))) as wheel:
        wheel.extractall(site)
    code = (
        "from bespeak.models.catalogue import asset_folder; from bespeak.models.encoder import load_encoder\n"
        "from bespeak.session.reader import load_reader; from bespeak.training.scenarios import FOLDER\n"
        "print(asset_folder('templates'), asset_folder('onnx_models'), load_encoder().dim, sep='\\n')\n"
        "print(load_reader().of == load_encoder().name, FOLDER)"
    )
    environment = {**os.environ, "PYTHONPATH": str(site)}
    found = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    package = (site / "bespeak").resolve()
    dim = json.loads((package / "onnx_models" / default_model("encoder") / "config.json").read_text())["dim"]
    texts = package / "training" / "made"
    assert found.stdout.splitlines() == [
        str(package / "templates"), str(package / "onnx_models"), str(dim), f"True {texts}"
    ]  # fmt: skip
    written = [path.name for path in (CHECKOUT / "plugin" / "bespeak" / "training" / "made").glob("*.txt")]
    assert sorted(written) == sorted(path.name for path in texts.iterdir())


def test_the_checkout_is_found_if_the_package_holds_no_assets():
    assert asset_folder("onnx_models") == CHECKOUT / "onnx_models"
    assert asset_folder("templates") == CHECKOUT / "templates"


def test_a_record_is_read_as_it_was_written(model):
    record = read_record(model)
    write_record(model, record)
    assert read_record(model) == record
    assert verify(model) == record


@pytest.mark.parametrize(("name", "changes"), [("tokenizer.json", True), ("model.onnx", True), ("CARD.md", False)])
def test_the_version_changes_with_files_that_affect_results(model, name, changes):
    before = read_record(model).version
    (model / name).write_text("[]")
    after = ModelRecord("tiny", "encoder", describe_files(model), "MIT", "here", "by hand").version
    assert (before != after) == changes


def test_a_file_cut_short_is_named_with_both_sizes(model, cache):
    verify(model, cache)
    (model / "model.onnx").write_bytes(b"01234")
    with pytest.raises(ModelError, match=r"model\.onnx .* has 5 bytes instead of 10, so it was cut short: "):
        verify(model, cache)


@pytest.mark.parametrize(
    ("kind", "command"),
    [
        ("encoder", "export"),
        ("context-reader", "train-reader"),
        ("context-encoder", "train-context"),
        ("rewriter", "build"),
    ],
)
def test_a_damaged_model_is_made_again_by_the_command_that_made_it(model, kind, command):
    write_record(model, replace(read_record(model), kind=kind))
    (model / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=f"'bespeak models {command}'"):
        verify(model)


def test_a_missing_file_is_named(model):
    (model / "tokenizer.json").unlink()
    with pytest.raises(ModelError, match=r"tokenizer\.json .*cannot be read \(No such file"):
        verify(model)


def test_a_wrong_sha256_is_an_error(model, cache):
    (model / "model.onnx").write_bytes(b"012345678X")
    with pytest.raises(ModelError, match="was damaged or changed: "):
        verify(model, cache)


def test_a_sha256_is_remembered_until_the_file_is_touched(model, cache):
    verify(model, cache)
    change_unseen(model / "model.onnx")
    verify(model, cache)
    os.utime(model / "model.onnx")
    with pytest.raises(ModelError, match="was damaged or changed"):
        verify(model, cache)


def test_without_a_cache_folder_every_byte_is_checked_each_time(model, cache):
    verify(model, cache)
    change_unseen(model / "model.onnx")
    with pytest.raises(ModelError, match="was damaged or changed"):
        verify(model)


@pytest.mark.parametrize("content", ["", "[]", "null", '{"PATH": 3}', '{"PATH": [10, 1, 2, null]}', "\udcff"])
def test_broken_remembered_digests_are_computed_again(model, cache, content):
    path = str((model / "model.onnx").resolve())
    (cache / "verified.json").write_bytes(content.replace("PATH", path).encode("utf-8", "surrogateescape"))
    assert verify(model, cache).name == "tiny"


def test_a_cache_that_cannot_be_written_costs_only_time(model, tmp_path):
    assert verify(model, tmp_path / "nowhere").name == "tiny"
    assert not (tmp_path / "nowhere").exists()


def test_a_model_of_the_cache_is_found_by_its_name(model, cache):
    assert model_folder("tiny", cache) == model
    assert [record.name for record, _ in known_models(cache)][-1] == "tiny"


def test_a_model_is_found_by_its_folder(model):
    assert model_folder(str(model)) == model


@pytest.mark.parametrize("name", ["nothing", "", "..", "models/nothing"])
def test_an_unknown_model_lists_what_there_is(name, model, cache):
    with pytest.raises(ModelError) as caught:
        model_folder(name, cache)
    assert f"there is no model {name!r}" in str(caught.value)
    assert default_model("encoder") in str(caught.value)
    assert "tiny" in str(caught.value)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"files": {"a": {}}}', '{"files": {}, "name": "x"}'])
def test_a_broken_record_is_an_error(model, content):
    (model / "model.json").write_text(content)
    with pytest.raises(ModelError, match=r"model\.json"):
        read_record(model)
