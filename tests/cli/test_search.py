import json
import sqlite3
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
from click.testing import CliRunner

from bespeak.models.catalogue import default_model
from bespeak.session.reader import MODEL
from bespeak_cli import cli
from fakes import ScriptedReader

DISHES = {
    "stew": "A vegetarian stew of beans and carrots for cold evenings.",
    "roast": "A roast of beef with carrots for a large family.",
    "salad": "A salad of beans, good on hot days.",
    "cake": "A carrot cake with nuts and a sugar crust.",
    "soup": "A vegetarian soup of carrots and ginger.",
}


@pytest.fixture
def data(tmp_path):
    """A data folder with an index of dishes."""
    corpus = tmp_path / "dishes.jsonl"
    corpus.write_text("".join(json.dumps({"_id": key, "text": text}) + "\n" for key, text in DISHES.items()))
    loaded = CliRunner().invoke(cli, ["--data-dir", str(tmp_path / "data"), "index", str(corpus), "--to", "dishes"])
    assert loaded.exit_code == 0, loaded.output
    return tmp_path / "data"


@pytest.fixture
def run(data, tmp_path):
    def invoke(*arguments, index="dishes", rewriter="last-turn"):
        folders = ["--data-dir", str(data), "--cache-dir", str(tmp_path / "cache")]
        return CliRunner().invoke(cli, [*folders, "search", *arguments, "--index", index, "--rewriter", rewriter])

    return invoke


@pytest.fixture
def answering():
    """A server on loopback that answers every request alike; a factory of its URL."""
    servers = []

    def start(status, body=b"", headers=()):
        class Handler(BaseHTTPRequestHandler):
            def answer(self):
                self.rfile.read(int(self.headers.get("Content-Length") or 0))
                self.send_response(status)
                for name, value in headers:
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(body)

            do_GET = do_POST = do_PUT = do_HEAD = answer  # noqa: N815

            def log_message(self, *_):
                pass

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def page(result):
    assert result.exit_code == 0, result.output
    return [hit["doc_id"] for hit in json.loads(result.stdout)["hits"]]


def test_a_stranger_is_not_an_error_and_sees_the_engines_order(run):
    nobody = run("carrots", "--format", "json")
    stranger = run("carrots", "--user", "never seen", "--no-record", "--format", "json")
    assert page(nobody) == page(stranger)
    assert json.loads(stranger.stdout)["rerank"] == "off"


def test_a_statement_moves_what_a_query_that_leans_on_it_finds(run, data, monkeypatch):
    reader = ScriptedReader({"dish with carrots": ["vegetarian"]})
    monkeypatch.setattr("bespeak.session.reader.load_reader", lambda *_: reader)
    asked = ["--user", "ada", "--format", "json"]
    before = page(run("dish with carrots", *asked))
    remembered = ["--data-dir", str(data), "remember", "--user", "ada", "I am vegetarian"]
    assert CliRunner().invoke(cli, remembered).exit_code == 0
    after, alone = run("dish with carrots", *asked), run("carrots", *asked)
    assert json.loads(after.stdout)["rerank"] == "full"
    assert set(page(after)[:2]) == {"stew", "soup"} != set(before[:2])
    told = json.loads(alone.stdout)
    assert (told["rewrite"]["reason"], told["rerank"], told["reason"]) == ("stands_alone", "off", "stands_alone")


def test_the_queries_of_a_session_are_its_turns(run):
    run("vegetarian soup", "--user", "ada", "--session", "s")
    second = run("and with beans", "--user", "ada", "--session", "s", "--format", "json")
    other = run("and with beans", "--user", "ada", "--session", "t", "--format", "json")
    assert "vegetarian" in json.loads(second.stdout)["rewrite"]["text"]
    assert json.loads(other.stdout)["rewrite"]["text"] == "and with beans"
    assert "stew" in page(second)


def test_what_is_not_recorded_is_no_turn(run):
    run("vegetarian soup", "--user", "ada", "--session", "s", "--no-record")
    second = run("and with beans", "--user", "ada", "--session", "s", "--format", "json")
    assert json.loads(second.stdout)["rewrite"]["text"] == "and with beans"


def test_after_forget_the_answer_is_a_strangers_byte_for_byte(run, data):
    run("vegetarian soup", "--user", "ada", "--session", "s")
    asked = ["and with beans", "--session", "s", "--no-record", "--format", "json"]
    personal = run(*asked, "--user", "ada")
    assert CliRunner().invoke(cli, ["--data-dir", str(data), "profile", "forget", "ada"]).exit_code == 0
    forgotten, stranger = run(*asked, "--user", "ada"), run(*asked, "--user", "somebody")
    times = [json.loads(r.stdout) for r in (forgotten, stranger)]
    for answer in times:
        answer.pop("took_ms", None)
        answer.pop("request", None)
    assert times[0] == times[1]
    assert personal.stdout != forgotten.stdout


def test_tenants_do_not_share_a_session(run):
    run("vegetarian soup", "--user", "ada", "--session", "s", "--tenant", "a")
    asked = ["and with beans", "--user", "ada", "--session", "s", "--format", "json"]
    assert json.loads(run(*asked, "--tenant", "b").stdout)["rewrite"]["status"] == "gated"


@pytest.mark.parametrize("format_", ["text", "md", "html", "json"])
def test_every_format_holds_every_hit(run, format_):
    run("vegetarian soup", "--user", "ada", "--session", "s")
    shown = run("and with beans", "--user", "ada", "--session", "s", "--format", format_).stdout
    for doc_id in page(run("and with beans", "--user", "ada", "--session", "s", "--no-record", "--format", "json")):
        assert doc_id in shown


def test_explain_shows_the_matrix(run):
    run("vegetarian soup", "--user", "ada", "--session", "s")
    shown = run("and with beans", "--user", "ada", "--session", "s", "--explain").stdout
    for word in ("lexical", "embedding", "user", "total", "BM25"):
        assert word in shown


@pytest.mark.parametrize(
    ("arguments", "index", "code", "sentence"),
    [
        (["carrots"], "dish", 1, "no index 'dish': there is dishes"),
        (["carrots"], "../dishes", 1, "no index '../dishes'"),
        ([""], "dishes", 2, "the query is empty"),
        (["   "], "dishes", 2, "the query is empty"),
        (["x" * 100_000], "dishes", 2, "100000 characters long, the limit is 10000"),
        (["carrots", "--weights", "1,2"], "dishes", 2, "takes three numbers"),
        (["carrots", "--weights", "0,0,0"], "dishes", 2, "the weights are all 0"),
        (["carrots", "--window", "0"], "dishes", 2, "0 is not in the range"),
        (["carrots", "--encoder", "no such"], "dishes", 0, "no such"),
        (["carrots", "--api-key", "k"], "dishes", 2, "give its URL with --elasticsearch"),
        (["carrots", "--user", "u" * 300], "dishes", 2, "300 characters"),
        (["carrots", "--user", ""], "dishes", 2, "user is empty"),
        (["carrots", "--user", "u", "--session", "s" * 300], "dishes", 2, "300 characters"),
        (["carrots", "--weights", "nan,0,1"], "dishes", 2, "the lexical weight must be at least 0, but is nan"),
        (["carrots", "--rewrite-ms", "nan"], "dishes", 2, "rewrite_ms must be above 0, but is nan"),
        (["carrots", "--weights", "1,2"], "dishes", 2, " search --help' for help"),
    ],
)
def test_bad_input_gets_its_sentence(run, arguments, index, code, sentence):
    result = run(*arguments, index=index)
    assert (result.exit_code, sentence in result.stderr) == (code, True), result.stderr
    assert "Traceback" not in result.output


def test_json_says_why_and_names_the_recorded_query(run):
    shown = json.loads(run("carrots", "--user", "ada", "--format", "json").stdout)
    assert (shown["rerank"], shown["reason"]) == ("off", "stranger")
    assert len(shown["query_id"]) == 32
    assert json.loads(run("carrots", "--format", "json").stdout)["query_id"] == ""


def test_odd_unicode_is_searched_like_any_other(run):
    assert run("naïve 東京 😀 \u202e carrots\x00", "--user", "é\u0301", "--session", "ß").exit_code == 0


def test_a_locked_database_costs_the_personal_part_not_the_answer(run, data):
    run("vegetarian soup", "--user", "ada", "--session", "s")
    connection = sqlite3.connect(data / "bespeak.db")
    connection.execute("PRAGMA locking_mode=EXCLUSIVE")
    connection.execute("BEGIN EXCLUSIVE")
    try:
        result = run("beans", "--user", "ada", "--session", "s")
    finally:
        connection.close()
    assert result.exit_code == 0
    assert "salad" in result.stdout
    assert "The query was not kept" in result.stderr


def test_a_damaged_database_costs_the_personal_part_not_the_answer(run, data):
    (data / "bespeak.db").write_bytes(b"not a database" * 1000)
    result = run("beans", "--user", "ada")
    assert result.exit_code == 0
    assert "salad" in result.stdout
    assert "not personalised" in result.stdout


def test_a_data_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    result = CliRunner().invoke(cli, ["--data-dir", str(tmp_path / "file" / "data"), "search", "x", "--index", "y"])
    assert result.exit_code == 1
    assert "cannot make the folder" in result.stderr


@pytest.mark.model
def test_the_models_that_choose_what_the_language_model_reads_are_part_of_its_version(data, rewriter_cache):
    folders = ["--data-dir", str(data), "--cache-dir", str(rewriter_cache)]
    session = ["--index", "dishes", "--user", "ada", "--session", "s", "--format", "json"]
    first = CliRunner().invoke(cli, [*folders, "search", "vegetarian stew", *session, "--rewriter", "none"])
    assert first.exit_code == 0
    asked = ["search", "and how much is it?", *session, "--rewriter", "model", "--rewrite-ms", "60000"]
    rewrite = json.loads(CliRunner().invoke(cli, [*folders, *asked]).stdout)["rewrite"]
    assert rewrite["status"] in ("full", "unusable")
    assert f"{default_model('encoder')}@" in rewrite["model"]
    assert f"{MODEL}@" in rewrite["model"]


def test_a_model_that_cannot_be_built_is_replaced_by_the_last_turn(run, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    run("vegetarian soup", "--user", "ada", "--session", "s")
    result = run("and with beans", "--user", "ada", "--session", "s", rewriter="model")
    assert result.exit_code == 0
    assert "vegetarian" in result.stdout
    assert "Without the language model" in result.stderr


@pytest.mark.parametrize(
    ("status", "body", "headers", "sentence"),
    [
        (401, b'{"error":{"type":"security_exception","reason":"no"},"status":401}', (), "refused the credentials"),
        (200, b"<html><body>Welcome to nginx</body></html>", (("Content-Type", "text/html"),), "not Elasticsearch"),
        (503, b"", (), "503"),
    ],
)
def test_an_elasticsearch_that_answers_wrongly(run, answering, status, body, headers, sentence):
    result = run("carrots", "--elasticsearch", answering(status, body, headers), "--basic", "elastic:hunter2")
    assert result.exit_code == 1
    assert sentence in result.stderr
    assert "hunter2" not in result.output
    assert "Traceback" not in result.output


def test_an_elasticsearch_that_is_down(run):
    result = run("carrots", "--elasticsearch", "http://127.0.0.1:1")
    assert result.exit_code == 1
    assert "127.0.0.1:1" in result.stderr
