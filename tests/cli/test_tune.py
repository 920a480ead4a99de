"""`bespeak tune` over a small invented collection and log, and that the commands read what it writes."""

import json
import tomllib
from dataclasses import replace

import pytest
from click.testing import CliRunner
from test_tuning import by_words, log

from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.settings import Settings, Weights
from bespeak_cli import cli
from bespeak_cli.compare import read_comparison
from bespeak_cli.evaluate import evaluate
from bespeak_cli.mixing import read_settings
from bespeak_cli.search import search
from bespeak_cli.serve import serve
from bespeak_cli.tune import as_toml


@pytest.fixture
def run(tmp_path):
    (tmp_path / "serve.toml").write_text('[serve]\nrewriter = "none"\n')

    def invoke(*arguments):
        folders = [
            "--data-dir",
            tmp_path / "data",
            "--cache-dir",
            tmp_path / "cache",
            "--config",
            tmp_path / "serve.toml",
        ]
        return CliRunner().invoke(cli, [*map(str, folders), "tune", *map(str, arguments)])

    return invoke


@pytest.fixture
def store(tmp_path):
    (tmp_path / "data").mkdir()
    store = SqliteStore(tmp_path / "data" / "bespeak.db")
    yield store
    store.close()


NAMES = ["Abel", "Bora", "Cato", "Dara", "Egon", "Fina", "Gerd", "Hana", "Ivar", "Jola", "Kuno", "Lena", "Milo",
         "Nora", "Odin", "Pola", "Rolf", "Saga", "Timo", "Ulla", "Vito", "Wren"]  # fmt: skip


def write_collection(folder, relevant, n=22, query="which vessel belongs to {name}"):
    """`n` conversations of one turn; each person has a list of goods, and a text on the sea that names them."""
    folder.mkdir()
    corpus, queries, qrels = [], [], ["query\tdocument\tgrade"]
    for name in NAMES[:n]:
        goods = {"_id": f"{name}-goods", "text": f"{name} {name} {name}: rope, nails, flour, candles"}
        sea = {"_id": f"{name}-sea", "text": f"Sailing boats and ships in the harbour, with anchors and sails. {name}"}
        corpus += [goods, sea]
        history = [{"query": "a house with a garden", "response": ""}]
        queries.append({"_id": f"{name}_2", "text": query.format(name=name), "history": history})
        qrels.append(f"{name}_2\t{name}-{relevant}\t1")
    for file, rows in (("corpus.jsonl", corpus), ("queries.jsonl", queries)):
        (folder / file).write_text("\n".join(map(json.dumps, rows)))
    (folder / "qrels.tsv").write_text("\n".join(qrels) + "\n")
    return folder


def test_judgments_that_favour_words_raise_the_lexical_weight(run, tmp_path):
    folder, out = write_collection(tmp_path / "goods", "goods"), tmp_path / "tuned.toml"
    found = run("--data", folder, "--out", out)
    assert found.exit_code == 0, found.output
    assert max(map(len, found.stdout.splitlines())) <= 80
    assert found.stdout.endswith(out.read_text())
    weights = Weights(*map(float, tomllib.loads(out.read_text())["serve"]["weights"].split(",")))
    assert weights.lexical > Weights().lexical
    assert weights.user == Weights().user


def test_judgments_that_favour_the_present_settings_change_nothing(run, tmp_path):
    folder, out = write_collection(tmp_path / "sea", "sea", query="sailing ships {name}"), tmp_path / "tuned.toml"
    found = run("--data", folder, "--out", out, "--format", "json")
    assert found.exit_code == 3
    assert "Nothing should be changed: no other settings are better than the present ones." in found.stderr
    assert not out.exists()
    told = json.loads(found.stdout)
    assert (told["chosen"], told["sets"][0]["queries"]) == (None, len(NAMES))


def test_few_conversations_change_nothing(run, tmp_path):
    found = run("--data", write_collection(tmp_path / "few", "goods", 5))
    assert (found.exit_code, "there are 5 conversations" in found.stderr) == (3, True)


def test_clicks_choose_weights(run, store, tmp_path):
    store.add(log(by_words, users=200))
    found = run("--events", "--out", tmp_path / "tuned.toml")
    assert found.exit_code == 0, found.output
    assert "propensity 1/rank^" in found.stdout
    tables = tomllib.loads((tmp_path / "tuned.toml").read_text())
    assert tables["search"].keys() == {"weights"}
    assert float(tables["search"]["weights"].split(",")[0]) > 0.5


def test_clicks_without_signal_change_nothing(run, store, tmp_path):
    store.add(log(lambda scores: 0.4))
    found = run("--events", "--out", tmp_path / "tuned.toml")
    assert (found.exit_code, "Nothing should be changed" in found.stderr) == (3, True)
    assert not (tmp_path / "tuned.toml").exists()


def test_without_logged_scores_is_a_sentence(run):
    found = run("--events")
    assert (found.exit_code, "bespeak serve --compare" in found.stderr) == (1, True)


def test_the_commands_and_compare_read_what_tune_writes(tmp_path):
    path = tmp_path / "tuned.toml"
    path.write_text(as_toml({"weights": "0.5,0.5,0.15", "rewrite_weight": 0.5, "last_turn_weight": 0.05,
                             "last_turn_share": 0.25}))  # fmt: skip
    tuned = Settings(Weights(0.5, 0.5, 0.15), rewrite_weight=0.5, last_turn_weight=0.05, last_turn_share=0.25)
    above = cli.make_context("bespeak", ["--config", str(path), "serve"])
    assert read_settings(serve.make_context("serve", ["--upstream", "none"], above).params) == tuned
    asked = search.make_context("search", ["hello", "--index", "things"], above).params
    assert read_settings(asked) == tuned
    given = ["hello", "--index", "things", "--last-turn-share", "1"]
    assert read_settings(search.make_context("search", given, above).params) == replace(tuned, last_turn_share=1.0)
    assert read_settings(evaluate.make_context("evaluate", [], above).params) == tuned
    assert read_comparison(f"current:{path}", Settings()).sides[1].settings == tuned


def test_the_present_settings_are_those_that_serve_would_run_with(run, store, tmp_path):
    store.add(log(by_words, users=200))
    (tmp_path / "serve.toml").write_text('[serve]\nweights = "1,0,0"\n')
    found = run("--events")
    assert found.exit_code == 3


@pytest.mark.parametrize("arguments", [[], ["--events", "--data", "."]])
def test_one_kind_of_evidence_is_needed(run, arguments):
    found = run(*arguments)
    assert (found.exit_code, "either judged collections with --data or --events" in found.stderr) == (2, True)


def test_no_file_is_overwritten(run, tmp_path):
    found = run("--events", "--out", tmp_path / "serve.toml")
    assert (found.exit_code, "exists already" in found.stderr) == (2, True)


def test_judged_collections_need_no_elasticsearch(run, tmp_path):
    found = run("--data", tmp_path, "--elasticsearch", "http://127.0.0.1:9")
    assert (found.exit_code, "leave those options out" in found.stderr) == (2, True)
