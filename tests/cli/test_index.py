"""`bespeak index`, as a person calls it, and killed in the middle."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner

from bespeak.engines.elastic import ElasticsearchEngine
from bespeak.engines.embedded import EmbeddedEngine
from bespeak.records import Clause, EngineQuery
from bespeak_cli import cli

GOOD = '{"_id": "a", "text": "a red hat"}\n{"_id": "b", "text": "a blue hat"}\n'


def run(tmp_path, *arguments, **more):
    return CliRunner().invoke(cli, ["--data-dir", str(tmp_path / "data"), "index", *map(str, arguments)], **more)


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "docs.jsonl"
    path.write_text(GOOD)
    return path


def test_a_file_is_loaded(tmp_path, file):
    done = run(tmp_path, file, "--to", "hats", "--no-embeddings")
    assert done.exit_code == 0
    assert done.stdout == "2 documents loaded into hats, searchable by text, 0 lines rejected\n"
    engine = EmbeddedEngine(tmp_path / "data" / "indices")
    assert engine.search(EngineQuery("hats", (Clause("red"),))).hits[0].doc_id == "a"


def test_standard_input(tmp_path):
    done = run(tmp_path, "-", "--to", "hats", "--no-embeddings", input=GOOD)
    assert (done.exit_code, done.stdout.split(" ")[0]) == (0, "2")


def test_bad_lines_are_reported_and_the_others_are_loaded(tmp_path, file):
    file.write_bytes(GOOD.encode() + b"nope\n\xff\n" + b"[]\n" * 30)
    done = run(tmp_path, file, "--to", "hats", "--no-embeddings")
    assert done.exit_code == 0
    assert "line 3: not JSON" in done.stderr
    assert "line 4: not UTF-8" in done.stderr
    assert done.stderr.count("\nline") + done.stderr.startswith("line") <= 20
    assert "and 12 more" in done.stderr
    assert "2 documents loaded" in done.stdout
    assert "32 lines rejected" in done.stdout


@pytest.mark.parametrize("content", [b"", b"nope\n", b"\x00\xff\x01"])
def test_nothing_to_load(tmp_path, file, content):
    file.write_bytes(content)
    done = run(tmp_path, file, "--to", "hats", "--no-embeddings")
    assert done.exit_code == 1
    assert "nothing of" in done.stderr


def test_chosen_fields_and_ids(tmp_path):
    path = tmp_path / "films.csv"
    path.write_text("movieId,title,genres\n1,Up,Animation|Drama\n2,Heat,Crime\n")
    done = run(tmp_path, path, "--to", "films", "--fields", "title, genres", "--id-field", "movieId", "--no-embeddings")
    assert "searchable by title, genres" in done.stdout
    engine = EmbeddedEngine(tmp_path / "data" / "indices")
    assert [hit.doc_id for hit in engine.search(EngineQuery("films", (Clause("drama"),))).hits] == ["1"]


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("none.jsonl", "--to", "a"), 2, "does not exist"),
        (("FILE",), 2, "--to"),
        (("FILE", "--to", "Big"), 2, "lower case"),
        (("FILE", "--to", "../x"), 2, "begin with ."),
        (("FILE", "--to", "a", "--api-key", "k"), 2, "--elasticsearch"),
        (("FILE", "--to", "a", "--elasticsearch", "http://h", "--basic", "s3cret"), 2, "USER:PASSWORD"),
        (("FILE", "--to", "a", "--elasticsearch", "nonsense"), 2, "must look like"),
        (("FILE", "--to", "a", "--elasticsearch", "http://me:s3cret@127.0.0.1:1"), 1, "no answer from Elasticsearch"),
        (("FILE", "--to", "a", "--elasticsearch", "http://h", "--ca-file", "none"), 2, "does not exist"),
    ],
)
def test_errors_are_sentences(tmp_path, file, arguments, code, said):
    done = run(tmp_path, *(file if argument == "FILE" else argument for argument in arguments), "--no-embeddings")
    assert done.exit_code == code
    assert said in done.stderr
    assert "s3cret" not in done.output
    assert "Traceback" not in done.output


def test_a_data_folder_that_cannot_be_written(tmp_path, file):
    (tmp_path / "taken").write_text("in the way")
    done = run(tmp_path / "taken", file, "--to", "hats", "--no-embeddings")
    assert done.exit_code == 1
    assert "--data-dir" in done.stderr


# Killed

N_DOCUMENTS = 12_000
KILLS = 4


def killed_at_random(command, seconds):
    """Whether the process was killed before it had ended by itself."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
        return True
    assert process.returncode == 0
    return False


def kill_and_go_on(tmp_path, *options):
    """Loads a file with a process that is killed again and again, then to its end; what the last run said."""
    path = tmp_path / "many.jsonl"
    words = random.Random(2).choices(["red", "green", "blue", "hat", "shoe"], k=N_DOCUMENTS)
    rows = ({"_id": f"{number}", "text": f"word {word} {number}"} for number, word in enumerate(words))
    path.write_text("".join(json.dumps(row) + "\n" for row in rows) + "nope\n")
    command = [sys.executable, "-c", "from bespeak_cli import cli; cli()", "--data-dir", str(tmp_path / "data")]
    command += ["index", str(path), "--no-embeddings", *options]
    began = time.monotonic()
    subprocess.run([*command[:5], "--help"], check=True, capture_output=True)
    start = time.monotonic() - began
    chosen = random.Random(9)
    for _ in range(KILLS):
        killed_at_random(command, start + chosen.uniform(0.1, 1.5))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"{N_DOCUMENTS} documents loaded" in done.stdout
    assert "1 lines rejected" in done.stdout
    return path


def contents(engine, index):
    engine.refresh(index)
    assert engine.describe(index).n_docs == N_DOCUMENTS
    names = [str(number) for number in range(N_DOCUMENTS)]
    totals = [engine.search(EngineQuery(index, (Clause(word),), size=1)).total for word in ("red", "hat", "word")]
    return [(document.doc_id, document.source) for document in engine.fetch(index, names)], totals


def test_a_killed_load_resumes_embedded(tmp_path):
    path = kill_and_go_on(tmp_path, "--to", "many")
    whole = run(tmp_path, path, "--to", "whole", "--no-embeddings")
    assert whole.exit_code == 0
    engine = EmbeddedEngine(tmp_path / "data" / "indices")
    assert contents(engine, "many") == contents(engine, "whole")
    engine.close()


@pytest.mark.elasticsearch
def test_a_killed_load_resumes_elasticsearch(tmp_path, elasticsearch_url, index_name):
    there = ("--elasticsearch", elasticsearch_url)
    path = kill_and_go_on(tmp_path, "--to", index_name, *there)
    whole = run(tmp_path, path, "--to", f"{index_name}-whole", "--no-embeddings", *there)
    assert whole.exit_code == 0
    engine = ElasticsearchEngine(elasticsearch_url)
    assert contents(engine, index_name) == contents(engine, f"{index_name}-whole")
    engine.close()
