"""`bespeak evaluate` over a small collection, a small MovieLens, and the development data if they are present."""

import json
import re
import sys

import pytest
from click.testing import CliRunner

from bespeak.evaluation import movielens, systems
from bespeak_cli import cli

CORPUS = [
    {"_id": "d1", "text": "Quiet hotels for light sleepers"},
    {"_id": "d2", "text": "Trains from Brussels to Ghent", "title": "Ghent"},
    {"_id": "d3", "text": "Loud hotels near the trains"},
]
QUERIES = [
    {
        "_id": "1-1_2",
        "text": "any quiet ones?",
        "statements": ["I sleep badly."],
        "history": [{"query": "hotels for light sleepers", "response": ""}],
        "human_rewrite": "quiet hotels",
    },
    {"_id": "1-1_3", "text": "and to Ghent?", "statements": [], "history": [], "human_rewrite": "trains to Ghent"},
]


@pytest.fixture
def run(tmp_path):
    def invoke(*arguments):
        return CliRunner().invoke(cli, ["--cache-dir", str(tmp_path / "cache"), "evaluate", *map(str, arguments)])

    return invoke


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "data" / "small"
    folder.mkdir(parents=True)
    (folder / "corpus.jsonl").write_text("\n".join(map(json.dumps, CORPUS)))
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, QUERIES)))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n1-1_2\td1\t1\n1-1_3\td2\t1\n")
    return folder


@pytest.fixture
def cinema(tmp_path):
    folder = tmp_path / "data" / "cinema"
    folder.mkdir(parents=True)
    movies = "".join(f"{n},{'Train' if n % 2 else 'Boat'} {n} (2001),Comedy\n" for n in range(1, 31))
    ratings = "".join(f"{user},{n},5,{n},,\n" for user in (1, 2, 3) for n in (1, 3, 5, 7, 9, 11, 13, 21, 23, 25))
    (folder / "movies.csv").write_text("movieId,title,genres\n" + movies)
    (folder / "ratings.csv").write_text("userId,movieId,rating,timestamp,,\n" + ratings)
    return folder


def test_a_missing_package_is_reported_before_anything_slow(run, folder, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "ir_measures", None)
    result = run("--data", folder, "--system", "raw")
    assert (result.exit_code, "pip install 'bespeak[evaluate]'" in result.stderr) == (2, True), result.output
    assert not (tmp_path / "cache" / "evaluation").exists()


def test_a_table_fits_80_columns_and_stdout_holds_nothing_else(run, folder):
    result = run("--data", folder, "--system", "raw,last-turn,human")
    assert result.exit_code == 0, result.output
    assert max(map(len, result.stdout.splitlines())) <= 80
    assert re.search(r"^human +lexical +1\.000 \[1\.000 1\.000\]", result.stdout, re.MULTILINE)
    assert re.search(r"^last-turn +hybrid .*\d%$", result.stdout, re.MULTILINE)
    said = " ".join(result.stdout.split())
    assert re.match("data small, queries 2, conversations 1, read as standing alone [01], encoder ", said)
    assert "queries: 100%, 2 of 2" in result.stderr


def test_json_holds_the_same(run, folder):
    result = run("--data", folder, "--system", "raw,human", "--stage", "lexical,hybrid", "--format", "json")
    found = json.loads(result.stdout)
    assert (found["data"], found["queries"], found["conversations"]) == ("small", 2, 1)
    assert [(cell["system"], cell["stage"]) for cell in found["results"]] == [
        ("raw", "lexical"),
        ("raw", "hybrid"),
        ("human", "lexical"),
        ("human", "hybrid"),
    ]
    raw, *_, human = found["results"]
    assert raw["gain"] is None
    assert human["scores"]["nDCG@10"]["mean"] == 1.0
    assert set(human["gain"]) == {"difference", "worse", "better"}


def test_the_next_run_uses_what_was_kept(run, folder, tmp_path):
    first = run("--data", folder, "--system", "raw,human")
    kept = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("meta.json")}
    assert kept
    assert run("--data", folder, "--system", "raw,human").stdout == first.stdout
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("meta.json")} == kept


def test_the_lexical_stage_needs_no_encoder(run, folder, tmp_path):
    result = run("--data", folder, "--system", "raw,last-turn,human", "--stage", "lexical")
    assert result.exit_code == 0, result.output
    assert re.match(r"data small, queries 2, conversations 1, read as standing alone [01]\n", result.stdout)
    assert not list((tmp_path / "cache").rglob("*.npz"))


def test_a_part_of_the_queries(run, folder):
    found = json.loads(run("--data", folder, "--system", "raw", "--limit", 1, "--format", "json").stdout)
    assert found["queries"] == 1


def test_queries_that_stand_alone_are_asked_after_another_conversation(run, folder):
    rows = [row | {"_id": f"{n}_1"} for n, row in enumerate(QUERIES)]
    (folder / "queries.jsonl").write_text("\n".join(map(json.dumps, rows)))
    (folder / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n0_1\td1\t1\n1_1\td2\t1\n")
    found = json.loads(run("--data", folder, "--system", "raw", "--misplaced", "--format", "json").stdout)
    assert (found["queries"], found["conversations"]) == (1, 1)  # nothing was said before the other one
    assert found["read as standing alone"] in (0, 1)


def test_movielens_shows_each_length_of_history(run, cinema):
    result = run("--data", cinema, "--system", "engine,user,popularity", "--every", 2)
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("data cinema, queries 1, users 1, encoder ")
    assert max(map(len, result.stdout.splitlines())) <= 80
    for row in ("engine +any", "user +0", "user +1", "user +3", "user +10", "user +30", "user +all", "popularity +any"):
        assert re.search(f"^{row} ", result.stdout, re.MULTILINE), row
    assert "nDCG@10 against engine" in result.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (["--system", "row"], 2, "there is no system 'row' for these data: choose from raw, last-turn"),
        (["--stage", "deep"], 2, "there is no stage 'deep'"),
        (["--weights", "1,2"], 2, "--weights takes three numbers"),
        (["--every", "0"], 2, "x>=1"),
        (["--examples", "3", "--system", "raw"], 2, "--examples shows rewrites: add rewrite"),
        (["--encoder", "nowhere", "--system", "raw"], 1, "Error: "),
        (["--misplaced"], 1, "has no query that is known to stand alone"),
    ],
)
def test_a_wrong_option_is_a_sentence(run, folder, arguments, code, said):
    result = run("--data", folder, *arguments)
    assert result.exit_code == code, result.output
    assert said in result.stderr
    assert "Traceback" not in result.output


def test_the_help_lists_every_system_and_stage(run):
    help_text = " ".join(run("--help").output.replace("-\n", "-").split()).replace("- ", "-")
    assert f"{', '.join(systems.SYSTEMS)}; for MovieLens {', '.join(movielens.SYSTEMS)}." in help_text
    assert f"{', '.join(systems.STAGES)}; all if not given." in help_text


def test_profiles_are_for_interleaving_alone(run, folder):
    result = run("--data", folder, "--profiles", "elasticsearch", "--elasticsearch", "http://127.0.0.1:1")
    assert (result.exit_code, "--profiles is for --interleaving" in result.stderr) == (2, True)


def test_movielens_has_no_stages_and_systems_of_its_own(run, cinema):
    assert "MovieLens has no stages" in run("--data", cinema, "--stage", "lexical").stderr
    assert "MovieLens has no conversations" in run("--data", cinema, "--misplaced").stderr
    result = run("--data", cinema, "--system", "raw")
    assert (result.exit_code, "choose from engine, user" in result.stderr) == (2, True)


def test_movielens_says_if_there_is_too_little_to_learn_from(run, cinema):
    by_default = run("--data", cinema, "--every", 2)
    assert by_default.exit_code == 0, by_default.output
    assert "Without the system learnt: 20 events of 2 users are too few to learn from" in by_default.stderr
    assert "learnt" not in by_default.stdout
    named = run("--data", cinema, "--system", "learnt")
    assert (named.exit_code, "nobody is left to learn from: give --every 5" in named.stderr) == (1, True)


def test_movielens_has_no_rewrites(run, cinema):
    result = run("--data", cinema, "--examples", 3)
    assert (result.exit_code, "leave --examples out" in result.stderr) == (2, True)


def test_a_plot_names_systems_and_lengths_of_history_beside_the_table(run, cinema, tmp_path):
    arguments = ["--data", cinema, "--system", "engine,user,popularity", "--every", 2]
    result = run(*arguments, "--plot", tmp_path / "gain.svg")
    assert result.exit_code == 0, result.output
    assert result.stdout == run(*arguments).stdout
    drawn = (tmp_path / "gain.svg").read_text()
    lengths = re.findall(r"^user +(\S+)", result.stdout, re.MULTILINE)
    for text in ("engine", "user", "popularity", "nDCG@10 above engine", *lengths):
        assert f"<!-- {text} -->" in drawn, text


def test_an_impossible_plot_is_refused_before_anything_is_measured(run, folder, cinema, tmp_path, monkeypatch):
    def refused(data, name):
        result = run("--data", data, "--plot", tmp_path / name)
        assert result.exit_code == 2, result.output
        assert "queries" not in result.stderr
        return result.stderr

    assert "leave --plot out" in refused(folder, "gain.svg")
    assert "one of .png, .svg, .pdf" in refused(cinema, "gain.doc")
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert "pip install 'bespeak[plot]'" in refused(cinema, "gain.svg")


def test_a_plot_that_cannot_be_written_is_a_sentence(run, cinema, tmp_path):
    result = run("--data", cinema, "--system", "popularity", "--plot", tmp_path / "nowhere" / "gain.svg")
    assert (result.exit_code, "cannot write" in result.stderr) == (1, True)


@pytest.mark.model
def test_examples_follow_the_table(folder, rewriter_cache):
    def run(*more):
        arguments = ["--cache-dir", str(rewriter_cache), "evaluate", "--data", str(folder), "--examples", "2", *more]
        result = CliRunner().invoke(cli, [*arguments, "--system", "raw,rewrite", "--stage", "lexical"])
        assert result.exit_code == 0, result.output
        return result.stdout

    assert re.search(r"against raw,\s+lexical\n.*\nin common +best +worst +all\n", run(), re.DOTALL)
    assert json.loads(run("--format", "json"))["examples"]["stage"] == "lexical"


def test_a_folder_without_data_is_a_sentence(run, tmp_path):
    (tmp_path / "empty").mkdir()
    result = run("--data", tmp_path / "empty")
    assert result.exit_code == 1
    assert "--data must name a folder of judged data" in result.stderr


EXPECTED = """
data: small
options: {system: [human], stage: [lexical]}
tolerance: 0.001
scores:
  human:
    lexical: {nDCG@10: VALUE, MRR: 1.0}
"""


@pytest.mark.parametrize(
    ("value", "code", "verdict"), [("1.0", 0, "[OK]"), ("0.9991", 0, "[OKish]"), ("0.9", 1, "[FAIL]")]
)
def test_measured_scores_are_compared_with_expected_ones(run, folder, tmp_path, value, code, verdict):
    (tmp_path / "small.yaml").write_text(EXPECTED.replace("VALUE", value))
    result = run("--data", folder.parent, "--check", tmp_path / "small.yaml")
    assert result.exit_code == code, result.output
    assert re.search(rf"^{re.escape(verdict)} +human +lexical +nDCG@10 ", result.stdout, re.MULTILINE)
    assert re.search(r"^\[OK\] +human +lexical +MRR ", result.stdout, re.MULTILINE)
    assert ("1 of the scores" in result.stderr) == (code == 1)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--through", "http://127.0.0.1:9", "--elasticsearch", "http://127.0.0.1:9"], "--through measures a proxy"),
        (["--through", "http://127.0.0.1:9", "--stage", "dense"], "leave --stage and --examples out"),
        (["--through", "http://127.0.0.1:9", "--system", "raw"], "choose from direct, boost, recall"),
        (["--token-file", __file__], "--token-file is for --through"),
    ],
)
def test_what_does_not_fit_a_measure_through_a_proxy_is_refused(run, folder, arguments, said):
    done = run("--data", str(folder), *arguments)
    assert done.exit_code == 2
    assert said in " ".join(done.output.split())
