"""The front door: its results and refusals, and that it leaves no trace of a user where it should not."""

import io
import json
import stat
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

import bespeak
from bespeak import records
from bespeak.errors import EngineError, IndexMissing, InputError, ModelError, StoreError, UsageError
from bespeak.parts import Models, open_parts
from bespeak.ranking.learning import learnt_path
from bespeak.session import reader as session_reader
from bespeak.settings import Settings
from elasticsearch import Elasticsearch
from fakes import BagEncoder, ScriptedReader, ScriptedRewriter
from histories import indices

DISHES = (
    {"_id": "stew", "title": "Stew", "text": "A vegetarian stew of beans and carrots for cold evenings."},
    {"_id": "roast", "title": "Roast", "text": "A roast of beef with carrots for a large family."},
    {"_id": "salad", "title": "Salad", "text": "A salad of beans, good on hot days."},
    {"_id": "cake", "title": "Cake", "text": "A carrot cake with nuts and a sugar crust."},
    {"_id": "soup", "title": "Soup", "text": "A vegetarian soup of carrots and ginger."},
)


@pytest.fixture
def said():
    """The warnings of the library."""
    return []


@pytest.fixture
def opened(tmp_path, said):
    """A factory of libraries over one folder; they are closed at the end."""
    made = []

    def make(folder="data", **options):
        given = {"rewriter": "last-turn", "encoder": BagEncoder(), "cache": tmp_path / "cache", "warn": said.append}
        made.append(bespeak.open(tmp_path / folder, **given | options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def kitchen(opened):
    library = opened()
    library.index(DISHES, to="dishes")
    return library


def ids(result):
    return [ranked.hit.doc_id for ranked in result.page]


def actions(library, user="ada"):
    return [line.get("action_name", "query") for line in library.export(user)]


# What is imported.


def test_importing_is_cheap_and_gives_the_documented_names_alone():
    script = (
        "import sys, bespeak; print(*sorted(dir(bespeak)), sep=' ');"
        "bespeak.open, bespeak.Result; print(*sorted({name.split('.')[0] for name in sys.modules}), sep=' ')"
    )
    names, modules = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    ).stdout.splitlines()
    assert names.split() == sorted(bespeak.__all__)
    assert not {"onnxruntime", "tantivy", "elasticsearch", "tokenizers", "jinja2", "scipy"} & set(modules.split())


def test_a_name_that_is_not_there_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'serach'"):
        _ = bespeak.serach


# Documents.


def test_dicts_a_file_and_a_stream_are_indexed_alike(opened, tmp_path):
    lines = "".join(json.dumps(dish) + "\n" for dish in DISHES).encode()
    (tmp_path / "dishes.jsonl").write_bytes(lines)
    library = opened()
    loaded = [
        library.index(documents, to=f"dishes-{n}").loaded
        for n, documents in enumerate((iter(DISHES), str(tmp_path / "dishes.jsonl"), io.BytesIO(lines)))
    ]
    assert loaded == [5, 5, 5]
    answers = [ids(library.search("carrots", index=f"dishes-{n}")) for n in range(3)]
    assert answers[0] == answers[1] == answers[2]


def test_an_invalid_dict_is_reported_and_the_rest_is_loaded(opened):
    library = opened()
    done = library.index([{"text": "a word"}, {"text": object()}, {"text": float("nan")}, {"id": [1]}], to="odd")
    assert (done.loaded, done.rejected) == (1, 3)
    assert [number for number, _ in done.rejections] == [2, 3, 4]
    assert "not JSON" in done.rejections[0][1]


def test_documents_are_never_indexed_without_the_vectors_that_were_asked_for(opened):
    with pytest.raises(ModelError, match="there is no model 'no such'"):
        opened(encoder="no such").index(DISHES, to="dishes")
    assert opened(encoder="none").index(DISHES, to="dishes").loaded == 5


# Searches.


def test_without_a_user_the_order_is_the_engines_and_nothing_is_recorded(kitchen):
    result = kitchen.search("carrots", index="dishes")
    assert (result.rerank, result.query_id) == ("off", "")
    assert [ranked.hit.rank for ranked in result.page] == [1, 2, 3, 4]


def test_the_queries_of_a_session_are_its_turns(kitchen):
    kitchen.search("vegetarian soup", index="dishes", user="ada", session="s")
    second = kitchen.search("and with beans", index="dishes", user="ada", session="s")
    assert "vegetarian" in second.rewrite.text
    assert kitchen.search("and with beans", index="dishes", user="ada", session="t").rewrite.text == "and with beans"


def test_a_query_is_recorded_once(kitchen):
    asked = {"index": "dishes", "user": "ada", "session": "s"}
    first = kitchen.search("carrots", size=2, **asked)
    again, next_page = (
        kitchen.search(" Carrots ", size=2, **asked),
        kitchen.search("carrots", size=2, offset=2, **asked),
    )
    assert first.query_id == again.query_id == next_page.query_id != ""
    kitchen.click(next_page, 3)
    assert kitchen.search("carrots", size=2, **asked).query_id == first.query_id
    assert kitchen.search("beans", **asked).query_id != first.query_id
    assert kitchen.search("carrots", **asked).query_id != first.query_id  # asked again, after another query
    assert actions(kitchen) == ["query", "click", "query", "query"]


def test_another_process_recognises_a_repeated_query(kitchen, opened):
    asked = {"index": "dishes", "user": "ada", "session": "s"}
    assert opened().search("carrots", **asked).query_id == kitchen.search("carrots", **asked).query_id


def test_a_query_is_not_recorded_if_so_asked(kitchen):
    result = kitchen.search("carrots", index="dishes", user="ada", session="s", record=False)
    assert (result.query_id, actions(kitchen)) == ("", [])


def test_a_rewrite_alone_records_nothing(kitchen):
    kitchen.search("vegetarian soup", index="dishes", user="ada", session="s")
    assert "vegetarian" in kitchen.rewrite("and with beans", user="ada", session="s").text
    assert kitchen.rewrite("and with beans").text == "and with beans"
    assert actions(kitchen) == ["query"]


@pytest.fixture
def reads_as(monkeypatch):
    """Lets libraries that are opened later read sessions by a table."""

    def use(table):
        reader = ScriptedReader(table)
        monkeypatch.setattr(session_reader, "load_reader", lambda cache, threads: reader)
        return reader

    return use


def test_a_custom_rewriter_and_filters(opened, reads_as):
    reads_as({"that": ["soup"]})
    library = opened(rewriter=ScriptedRewriter({"that": "that soup"}))
    library.index(({**dish, "course": "first" if dish["_id"] == "soup" else "main"} for dish in DISHES), to="dishes")
    library.remember("I like soup", "ada")
    result = library.search("that", index="dishes", user="ada", filters={"course": "first"})
    assert (result.rewrite.text, ids(result)) == ("that soup", ["soup"])


@pytest.mark.parametrize(
    ("arguments", "error", "sentence"),
    [
        ({"query": "", "index": "dishes"}, UsageError, "the query is empty"),
        ({"query": "x", "index": "dish"}, IndexMissing, "there is dishes"),
        ({"query": "x", "index": "dishes", "user": ""}, UsageError, "user is empty"),
        ({"query": "x", "index": "dishes", "user": "u" * 300}, UsageError, "300 characters"),
        ({"query": "x", "index": "dishes", "user": "\ud800"}, UsageError, "not Unicode"),
        ({"query": "x", "index": "dishes", "size": 0}, UsageError, "size must be at least 1"),
        ({"query": "x", "index": "dishes", "offset": -1}, UsageError, "offset at least 0"),
        ({"query": None, "index": "dishes"}, UsageError, "query must be text, but is of type NoneType"),
        ({"query": "x", "index": None}, UsageError, "index must be text"),
        ({"query": "x", "index": "dishes", "user": 7}, UsageError, "user id must be text, but is of type int"),
        ({"query": "x", "index": "dishes", "tenant": None, "user": "ada"}, UsageError, "tenant id must be text"),
        ({"query": "x", "index": "dishes", "session": None}, UsageError, "session id must be text"),
        ({"query": "x", "index": "dishes", "session": "s" * 257}, UsageError, "at most 256"),
        ({"query": "x", "index": "dishes", "size": "3"}, UsageError, "size must be a whole number"),
        ({"query": "x", "index": "dishes", "offset": 2.0}, UsageError, "offset must be a whole number"),
        ({"query": "x", "index": "dishes", "filters": "title"}, UsageError, "filters must be a dict"),
    ],
)
def test_an_invalid_search_is_refused_with_a_reason(kitchen, arguments, error, sentence):
    with pytest.raises(error, match=sentence):
        kitchen.search(**arguments)


def test_whole_numbers_of_any_kind_are_sizes(kitchen):
    assert len(kitchen.search("carrots", index="dishes", size=np.int64(2), offset=np.int32(1)).page) == 2


@pytest.mark.parametrize(
    ("documents", "options", "sentence"),
    [
        (None, {}, "documents must be dicts"),
        (DISHES[0], {}, "documents must be dicts"),
        (b"{}", {}, "documents must be dicts"),
        (io.StringIO("{}"), {}, "binary"),
        (DISHES, {"to": None}, "to must be text"),
        (DISHES, {"fields": "text"}, "fields must be a list of names"),
    ],
)
def test_what_holds_no_documents_is_refused(kitchen, documents, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        kitchen.index(documents, **{"to": "dishes"} | options)
    assert kitchen.index([3, "text"], to="dishes").rejections == ((1, "not a JSON object"), (2, "not a JSON object"))


def test_other_arguments_of_a_wrong_kind_are_refused_in_words(kitchen):
    result = kitchen.search("carrots", index="dishes", user="ada", record=False)
    for use, error, sentence in (
        (lambda: kitchen.rewrite(None), UsageError, "query must be text"),
        (lambda: kitchen.rewrite("x" * 10_001, user="ada"), UsageError, "the limit is 10000"),
        (lambda: kitchen.remember(None, "ada"), UsageError, "the statement must be text"),
        (lambda: kitchen.remember("I am vegetarian", None), UsageError, "user id must be text"),
        (lambda: kitchen.record(None), UsageError, "events must be a dict"),
        (lambda: kitchen.record([3]), InputError, "event 1: not a JSON object"),
        (lambda: kitchen.click(None, 1), UsageError, "result must be what search returned"),
        (lambda: kitchen.click(result, 1, "query"), UsageError, "another action"),
        (lambda: kitchen.click(result, 1, ""), InputError, "action_name is empty"),
        (lambda: kitchen.click(result, 1, None), InputError, "action_name is empty or not text"),
        (lambda: kitchen.profile("ada", session=3), UsageError, "session id must be text"),
        (lambda: kitchen.export(None), UsageError, "user id must be text"),
        (lambda: kitchen.set_consent("ada", "off"), UsageError, "given must be True or False"),
    ):
        with pytest.raises(error, match=sentence):
            use()
    assert actions(kitchen) == []


def test_a_failing_store_costs_only_the_personal_part(kitchen, opened, said, tmp_path):
    (tmp_path / "data" / "bespeak.db").write_bytes(b"not a database" * 1000)
    result = opened().search("beans", index="dishes", user="ada")
    assert set(ids(result)) == {"stew", "salad"}
    assert (result.rerank, result.query_id) == ("off", "")
    assert "not personalised" in result.notes[0]
    assert "The query was not kept" in said[-1]


def test_names_with_control_characters_are_different_users(kitchen):
    for user in ("ada\x00", "ada\n", "\x1b[31mada"):
        kitchen.remember(f"I am {user!r}", user)
        assert [one.text for one in kitchen.profile(user).statements] == [f"I am {user!r}"]
    assert kitchen.profile("ada").is_empty


def test_tenants_share_nothing(kitchen):
    kitchen.remember("I am vegetarian", "ada", tenant="shop")
    assert kitchen.profile("ada").is_empty
    assert not kitchen.profile("ada", tenant="shop").is_empty


# Results.


def test_a_result_prints_as_the_command_line_shows_it_and_a_notebook_as_html(kitchen):
    result = kitchen.search("carrots", index="dishes")
    assert all(hit in str(result) for hit in ("carrots", "Stew", "Roast", "Soup"))
    assert repr(result) == "<Result 4 of 4 hits for 'carrots', rerank off>"
    html = result._repr_html_()
    assert "<ol" in html
    assert "Stew" in html
    assert "<html" not in html


def test_a_result_is_a_record_that_compares_and_escapes_markup(kitchen):
    kitchen.index([{"_id": "x", "text": "carrots <script>alert(1)</script>"}], to="dishes")
    result = kitchen.search("alert", index="dishes")
    assert replace(result) == result
    assert isinstance(result, records.Result)
    assert "<script>" not in result._repr_html_()


# Clicks and other events.


def test_a_click_names_query_document_title_and_position(kitchen):
    result = kitchen.search("carrots", index="dishes", user="ada", session="s", size=2, offset=2)
    kitchen.click(result, 3)
    click = list(kitchen.export("ada"))[-1]
    hit = result.page[0].hit
    assert click["action_name"] == "click"
    assert (click["query_id"], click["session_id"]) == (result.query_id, "s")
    assert click["event_attributes"] == {
        "object": {"object_id": hit.doc_id, "description": hit.source["title"]},
        "position": {"ordinal": 3},
    }
    assert kitchen.profile("ada", session="s").turns[-1].response == hit.source["title"]


@pytest.mark.parametrize("position", [0, 1, 2, 5, -1])
def test_a_position_that_is_not_shown_is_refused(kitchen, position):
    result = kitchen.search("carrots", index="dishes", user="ada", size=2, offset=2)
    with pytest.raises(UsageError, match=f"no hit at position {position}: the page shows 3 to 4"):
        kitchen.click(result, position)


def test_clicks_without_a_user_or_without_a_hit_are_refused(kitchen):
    with pytest.raises(UsageError, match="named no user"):
        kitchen.click(kitchen.search("carrots", index="dishes"), 1)
    with pytest.raises(UsageError, match="the page shows none"):
        kitchen.click(kitchen.search("nothing like it", index="dishes", user="ada", offset=100), 1)


def test_another_action_than_a_click_is_recorded(kitchen):
    kitchen.click(kitchen.search("carrots", index="dishes", user="ada", record=False), 1, "purchase")
    assert [liked.action for liked in kitchen.profile("ada").preferences] == ["purchase"]


def test_all_events_are_added_or_none(kitchen):
    good = {"action_name": "click", "user_id": "ada", "timestamp": "2025-05-31T10:00:00Z"}
    with pytest.raises(InputError, match="event 2: no timestamp"):
        kitchen.record([good, {"action_name": "click", "user_id": "ada"}])
    assert actions(kitchen) == []
    assert (kitchen.record(good), kitchen.record([good])) == (1, 0)


def test_an_export_can_be_recorded_again(kitchen, opened):
    kitchen.remember("I am vegetarian", "ada")
    kitchen.click(kitchen.search("carrots", index="dishes", user="ada", session="s"), 1)
    lines = list(kitchen.export("ada"))
    other = opened("other")
    assert other.record(lines) == 3
    assert list(other.export("ada")) == lines


@pytest.mark.parametrize(("text", "user"), [(" ", "ada"), ("I am vegetarian", "")])
def test_empty_statements_and_empty_users_are_refused(kitchen, text, user):
    with pytest.raises(UsageError):
        kitchen.remember(text, user)


# Forgetting and pausing.


def shown(result):
    return [(ranked.hit.doc_id, ranked.rank, ranked.scores, ranked.evidence) for ranked in result.page]


def know_ada(library):
    library.remember("I am vegetarian", "ada")
    library.click(library.search("vegetarian soup", index="dishes", user="ada", session="s"), 1)


def test_after_forget_the_answer_is_that_of_a_stranger(kitchen):
    asked = {"query": "and with carrots", "index": "dishes", "session": "s", "record": False}
    stranger = kitchen.search(user="eve", **asked)
    know_ada(kitchen)
    assert shown(kitchen.search(user="ada", **asked)) != shown(stranger)
    gone = kitchen.forget("ada")
    assert (gone.events, gone.paused, gone.learn_again) == (3, False, False)
    after = kitchen.search(user="ada", **asked)
    assert (shown(after), after.rewrite) == (shown(stranger), stranger.rewrite)
    assert list(kitchen.export("ada")) == []
    assert kitchen.profile("ada", session="s").is_empty


def test_a_query_that_stands_alone_goes_out_as_typed(opened, reads_as):
    reads_as({})
    library = opened(rewriter=ScriptedRewriter({"that": "that soup"}))
    library.index(DISHES, to="dishes")
    library.remember("I like soup", "ada")
    for rewrite in (library.search("that", index="dishes", user="ada").rewrite, library.rewrite("that", user="ada")):
        assert (rewrite.text, rewrite.status, rewrite.reason) == ("that", "gated", "stands_alone")


def test_forget_clears_what_the_parts_remember(opened, reads_as):
    class Remembers(ScriptedRewriter):
        forgotten = ()

        def forget(self, user):
            self.forgotten = (*self.forgotten, user)

    class Counts(BagEncoder):
        read = 0

        def encode(self, texts, kind="document"):
            self.read += len(texts)
            return super().encode(texts, kind)

    rewriter, encoder, reader = Remembers({}), Counts(), reads_as({"carrots": ["vegetarian"]})
    library = opened(rewriter=rewriter, encoder=encoder)
    library.index(DISHES, to="dishes")
    asked = {"query": "carrots", "index": "dishes", "user": "ada", "session": "s", "record": False}
    library.remember("I am vegetarian", "ada")
    library.search(**asked)
    before = encoder.read
    library.search(**asked)
    assert encoder.read == before  # the query's vector was remembered
    library.forget("ada")
    library.remember("I am vegetarian", "ada")
    assert reader.asked == []
    library.search(**asked)
    assert encoder.read > before
    assert rewriter.forgotten == (records.UserKey("", "ada"),)


def test_what_was_learnt_counts_a_forgotten_user_until_learnt_again(kitchen, tmp_path):
    learnt_path(tmp_path / "data", "").write_bytes(b"")
    assert kitchen.learnt_from()
    assert not kitchen.forget("nobody").learn_again  # this user had no events to learn from
    know_ada(kitchen)
    assert kitchen.forget("ada").learn_again


def test_a_paused_user_gets_a_strangers_answer_and_nothing_is_recorded(kitchen):
    know_ada(kitchen)
    before = actions(kitchen)
    kitchen.set_consent("ada", False)
    result = kitchen.search("carrots", index="dishes", user="ada", session="s")
    assert shown(result) == shown(kitchen.search("carrots", index="dishes"))
    assert (result.query_id, actions(kitchen)) == ("", before)
    kitchen.set_consent("ada", True)
    assert kitchen.search("carrots", index="dishes", user="ada", session="s").query_id


# Opening, closing, sharing.


def test_a_closed_library_says_so(opened):
    with opened() as library:
        library.index(DISHES, to="dishes")
        result = library.search("carrots", index="dishes", user="ada")
    library.close()
    for use in (
        lambda: library.search("carrots", index="dishes"),
        lambda: library.index(DISHES, to="dishes"),
        lambda: library.rewrite("carrots"),
        lambda: library.remember("I am vegetarian", "ada"),
        lambda: library.record([]),
        lambda: library.click(result, 1),
        lambda: library.profile("ada"),
        lambda: library.export("ada"),
        lambda: library.set_consent("ada", True),
        lambda: library.forget("ada"),
    ):
        with pytest.raises(UsageError, match="closed"):
            use()


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"rewriter": "modle"}, "there is no rewriter 'modle'"),
        ({"api_key": "k"}, "api_key is for Elasticsearch"),
        ({"profiles": "elasticsearch"}, "need its URL"),
        ({"profiles": "mysql"}, "not in 'mysql'"),
        ({"elasticsearch": "nonsense"}, "the URL of Elasticsearch must look like"),
        ({"elasticsearch": 9200}, "elasticsearch must be a URL"),
        ({"elasticsearch": "http://127.0.0.1:9", "basic": "user:password"}, "basic must be two texts"),
        ({"rewriter": None}, "rewriter must be a name or have the method rewrite"),
        ({"encoder": 3}, "encoder must be a name or have the method encode"),
        ({"settings": {"window": 3}}, "settings must be Settings"),
        ({"cache": 3}, "cache must be a path"),
    ],
)
def test_arguments_that_do_not_fit_together_are_refused(opened, options, sentence):
    with pytest.raises(UsageError, match=sentence):
        opened(**options)


def test_folders_and_files_are_their_owners_alone(kitchen, opened, tmp_path):
    kitchen.remember("I like soup.", "ada")
    assert stat.S_IMODE((tmp_path / "data").stat().st_mode) == 0o700
    for end in ("", "-wal", "-shm"):
        assert stat.S_IMODE((tmp_path / "data" / f"bespeak.db{end}").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "cache").stat().st_mode) == 0o700


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="cannot make the folder"):
        bespeak.open(tmp_path / "file" / "data")


def test_an_engine_that_does_not_answer_is_an_engine_error(opened):
    with pytest.raises(EngineError, match="no answer from Elasticsearch"):
        opened(elasticsearch="http://127.0.0.1:9").search("carrots", index="dishes")


def test_a_missing_model_is_a_warning_or_an_error(opened, said, tmp_path):
    library = opened(rewriter="model", encoder="no such")
    opened(encoder="none").index(DISHES, to="dishes")
    library.search("vegetarian soup", index="dishes", user="ada", session="s")
    result = library.search("and with beans", index="dishes", user="ada", session="s")
    assert "vegetarian" in result.rewrite.text
    assert [sentence.partition(":")[0] for sentence in said] == [
        "Without embeddings",
        "Without the language model, with the words of the last turn instead",
    ]
    with pytest.raises(ModelError, match="the language model is not built"):
        open_parts(Models(tmp_path, encoder="none"), Settings())


def test_a_search_without_a_user_opens_no_language_model(opened, said):
    library = opened(rewriter="model")
    library.index(DISHES, to="dishes")
    library.search("carrots", index="dishes")
    assert said == []


def test_many_threads_share_one_library(kitchen):
    faults = []

    def ask(n):
        try:
            user = f"user {n}"
            kitchen.remember("I am vegetarian", user)
            for query in ("soup", "and with carrots", "and with beans"):
                kitchen.click(kitchen.search(query, index="dishes", user=user, session="s"), 1)
            assert len(kitchen.profile(user, session="s").turns) == 3
            assert kitchen.forget(user).events == 7
        except Exception as error:
            faults.append(error)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not faults


@pytest.fixture
def clean_cluster(elasticsearch_url):
    """A cluster from which the profile indices that a test makes are deleted afterwards."""
    with Elasticsearch(elasticsearch_url) as client:
        there = indices(client, "bespeak-")
        yield elasticsearch_url
        for name in set(indices(client, "bespeak-")) - set(there):
            client.indices.delete(index=name)


@pytest.mark.elasticsearch
def test_documents_and_profiles_in_one_cluster(opened, clean_cluster, index_name):
    library = opened(elasticsearch=clean_cluster, profiles="elasticsearch")
    user = index_name  # a user of its own, because the cluster is shared
    assert library.index(DISHES, to=index_name).loaded == 5
    know = {"index": index_name, "user": user, "session": "s"}
    first = library.search("vegetarian soup", **know)
    assert (
        opened("elsewhere", elasticsearch=clean_cluster, profiles="elasticsearch")
        .search("vegetarian soup", **know)
        .query_id
        == first.query_id
    )
    library.click(first, 1)
    assert "vegetarian" in library.search("and with beans", **know).rewrite.text
    assert library.forget(user).events == 3
