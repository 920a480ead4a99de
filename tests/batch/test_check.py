"""Rewrites that find nothing useful are dropped, on every engine."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime

import pytest

from bespeak.batch.check import RewriteCheck
from bespeak.batch.queries import QueryLine
from bespeak.batch.work import Tools, find_profile, find_rewrites
from bespeak.engines.elastic import ElasticsearchEngine
from bespeak.engines.embedded import EmbeddedEngine
from bespeak.profiles.events import new_event
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.records import Document, Rewrite, Term, UserKey
from elasticsearch_node import new_index_name
from fakes import ScriptedRewriter

ADA = UserKey("", "ada")
DOCUMENTS = [Document(f"hat{n}", {"text": f"hat of felt, number {n}"}) for n in range(150)] + [
    Document("tea", {"text": "green tea from Ghent"})
]


@pytest.fixture(params=["embedded", pytest.param("elastic", marks=pytest.mark.elasticsearch)])
def searched(request, tmp_path):
    """An engine and an index that holds many hats and one tea."""
    if request.param == "embedded":
        engine, index = EmbeddedEngine(tmp_path / "indices"), "things"
    else:
        engine, index = ElasticsearchEngine(request.getfixturevalue("elasticsearch_url")), new_index_name()
    engine.create(index, ("text",), None, None)
    engine.load(index, DOCUMENTS)
    engine.refresh(index)
    yield engine, index
    engine.drop(index)
    engine.close()


def made(query, text):
    return Rewrite(query, text, (Term("x", "turn", "e"),) if text != query else (), "full", model="m 1")


REWRITES = [
    made("tea", "green tea"),
    made("tea", "zeppelin"),
    made("tea", "felt hat"),  # finds a hundred hats, and no tea
    made("zeppelin", "felt hat"),  # which as typed finds nothing that could be lost
    made("zeppelin", "zeppelin"),
]


@pytest.mark.parametrize(
    ("mode", "reasons"),
    [
        ("recall", ["", "finds nothing", "loses the first hits", "", ""]),
        ("boost", ["", "finds nothing", "", "", ""]),
    ],
)
def test_failing_rewrites_are_replaced_by_the_query_as_typed(searched, mode, reasons):
    judged = RewriteCheck(*searched, mode).apply(REWRITES)
    expected = [
        Rewrite(one.query, one.query, (), "dropped", reason, "m 1") if reason else one
        for one, reason in zip(REWRITES, reasons, strict=True)
    ]
    assert judged == expected


def test_without_rewrites_the_engine_is_not_searched():
    assert RewriteCheck(None, "things").apply([made("tea", "tea")]) == [made("tea", "tea")]
    assert RewriteCheck(None, "things").apply([]) == []


@pytest.fixture
def store(tmp_path):
    made = SqliteStore(tmp_path / "bespeak.db")
    made.add([new_event(ADA, "query", datetime(2025, 6, 1, tzinfo=UTC), session_id="s", text="hats")])
    yield made
    made.close()


def test_a_failing_rewrite_is_not_cached_and_a_cached_one_is_dropped(tmp_path, store):
    engine = EmbeddedEngine(tmp_path / "indices")
    engine.create("things", ("text",), None, None)
    engine.load("things", DOCUMENTS)
    engine.refresh("things")
    tools = Tools(ScriptedRewriter({"tea": "green tea", "coffee": "zeppelin"}), None, store)
    asked = [QueryLine(1, None, "tea", ADA, "s"), QueryLine(2, None, "coffee", ADA, "s")]
    profiles = [find_profile(one, store) for one in asked]
    checked = replace(tools, check=RewriteCheck(engine, "things"))

    def statuses(tools):
        rewrites, from_cache = find_rewrites(asked, profiles, tools)
        return [rewrite.status for rewrite in rewrites], from_cache

    assert statuses(checked) == (["full", "dropped"], 0)
    assert statuses(tools) == (["full", "full"], 1)  # unchecked, and now both are kept
    assert statuses(tools) == (["full", "full"], 2)
    assert statuses(checked) == (["full", "dropped"], 2)
    assert statuses(tools) == (["full", "full"], 1)
    engine.close()
