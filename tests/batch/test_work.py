"""A chunk: which history counts, what comes from the cache, and what is rewritten once."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest

from bespeak.batch.queries import QueryLine
from bespeak.batch.rewriting import rewrite_all
from bespeak.batch.work import Tools, find_profile, find_rewrites
from bespeak.errors import ModelError
from bespeak.profiles.events import new_event
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.reading import open_reading
from bespeak.records import Profile, Rewrite, Turn, UserKey
from fakes import ADA, ScriptedReader

NOW = datetime(2025, 6, 1, tzinfo=UTC)
BOB = UserKey("", "bob")
READER = ScriptedReader({"and red?": ["hats"]})


class Noting:
    """Records what it rewrites; the rewrite is the query and that of the last turn."""

    name, version = "noting", "1"

    def __init__(self):
        self.asked = []

    def rewrite(self, query, profile, budget_ms=None):
        self.asked.append((query, profile.user, profile.session_id))
        if query == "fails":
            raise ModelError("it fails")
        if query == "strange":
            return Rewrite(query, query, (), "unusable", "no_end", "noting 1")
        return Rewrite(query, f"{query} {profile.turns[-1].query}", (), "full", model="noting 1")

    def warm(self, profile):
        pass

    def forget(self, user):
        pass


@pytest.fixture
def store(tmp_path):
    made = SqliteStore(tmp_path / "bespeak.db")
    for user in (ADA, BOB):
        made.add([
            new_event(user, "query", NOW, session_id="s", query_id="q1", text="hats"),
            new_event(user, "query", NOW.replace(hour=1), session_id="s", query_id="q2", text="red ones"),
        ])  # fmt: skip
    yield made
    made.close()


def own(*queries, user=None):
    return Profile(user, "s", turns=tuple(Turn(query, "", f"history[{n}]") for n, query in enumerate(queries)))


def turns(asked, store):
    return [turn.query for turn in find_profile(asked, store).turns]


def test_the_lines_own_history_comes_before_the_stored_one(store):
    assert turns(QueryLine(1, None, "q", ADA, "s"), store) == ["hats", "red ones"]
    assert turns(QueryLine(1, None, "q", ADA, "other"), store) == []
    assert turns(QueryLine(1, None, "q", ADA, "s", own("tea", user=ADA)), store) == ["tea"]
    assert turns(QueryLine(1, None, "q", None, "s", own("tea")), store) == ["tea"]
    assert turns(QueryLine(1, None, "q", None, "s"), store) == []


def test_a_query_that_the_store_knows_is_not_its_own_history(store):
    assert turns(QueryLine(1, "q2", "red ones", ADA, "s"), store) == ["hats"]


def test_a_paused_user_is_not_personalised_by_the_lines_history(store):
    store.set_consent(ADA, False)
    asked = [QueryLine(1, None, "q", ADA, "s"), QueryLine(2, None, "q", ADA, "s", own("tea", user=ADA))]
    rewrites, _ = find_rewrites(asked, [find_profile(one, store) for one in asked], Tools(Noting(), None, store))
    assert [(rewrite.status, rewrite.reason) for rewrite in rewrites] == [("gated", "refused")] * 2


@pytest.mark.parametrize("concurrency", [1, 4])
def test_rewrites_from_stored_history_are_cached_and_others_are_not(store, concurrency):
    asked = [
        QueryLine(1, None, "and red?", ADA, "s"),
        QueryLine(2, None, "and red?", ADA, "s", own("tea", user=ADA)),
        QueryLine(3, None, '"quoted"', ADA, "s"),
        QueryLine(4, None, "fails", ADA, "s"),
        QueryLine(5, None, "and red?", ADA, "s"),
    ]
    profiles = [find_profile(one, store) for one in asked]
    first, second = Noting(), Noting()
    rewrites, from_cache = find_rewrites(asked, profiles, Tools(first, None, store, concurrency=concurrency))
    assert from_cache == 0
    assert [rewrite.text for rewrite in rewrites] == [
        "and red? red ones", "and red? tea", '"quoted"', "fails", "and red? red ones",
    ]  # fmt: skip
    assert [rewrite.status for rewrite in rewrites] == ["full", "full", "gated", "failed", "full"]
    again, from_cache = find_rewrites(asked, profiles, Tools(second, None, store, concurrency=concurrency))
    assert again == rewrites
    assert from_cache == 2
    assert [query for query, _, _ in second.asked] == ["and red?", "fails"]


def test_a_query_that_stands_alone_is_left_as_typed_and_not_cached(store):
    asked = [QueryLine(n, None, query, ADA, "s") for n, query in enumerate(("and red?", "tea from Ghent"), 1)]
    profiles, tools = [find_profile(one, store) for one in asked], Tools(Noting(), READER, store)
    for n_cached in (0, 1):
        rewrites, from_cache = find_rewrites(asked, profiles, tools)
        assert [(rewrite.text, rewrite.status, rewrite.reason) for rewrite in rewrites] == [
            ("and red? red ones", "full", ""), ("tea from Ghent", "gated", "stands_alone"),
        ]  # fmt: skip
        assert from_cache == n_cached
    assert [query for query, _, _ in tools.rewriter.asked] == ["and red?"]


def test_an_unusable_rewrite_is_cached_as_such(store):
    asked = [QueryLine(1, None, "strange", ADA, "s")]
    profiles, tools = [find_profile(one, store) for one in asked], Tools(Noting(), None, store)
    (first,), _ = find_rewrites(asked, profiles, tools)
    assert (first.text, first.status, first.reason) == ("strange", "unusable", "no_end")
    assert find_rewrites(asked, profiles, tools) == ([first], 1)
    assert len(tools.rewriter.asked) == 1


def test_an_output_depends_on_who_reads_the_sessions():
    facts = {"model": "noting 1", "profiles": "here", "form": "jsonl"}
    assert Tools(Noting(), None, None).describe("here") == facts
    assert Tools(Noting(), READER, None).describe("here") == facts | {"sessions": "scripted reader"}


def test_equal_queries_are_rewritten_once_and_queries_of_a_session_follow_each_other():
    rewriter = Noting()
    ada, bob, other = own("tea", user=ADA), own("tea", user=BOB), own("rice", user=ADA)
    pairs = [("a", ada), ("b", bob), ("c", ada), ("a", ada), ("d", bob), ("a", other), ("a", Profile())]
    rewrites = rewrite_all([open_reading(*pair) for pair in pairs], rewriter)
    assert [rewrite.text for rewrite in rewrites] == ["a tea", "b tea", "c tea", "a tea", "d tea", "a rice", "a"]
    assert rewrites[-1].reason == "no_history"
    assert [query for query, _, _ in rewriter.asked] == ["a", "c", "b", "d", "a"]


def test_no_queries_give_no_rewrites():
    assert rewrite_all([], Noting()) == []


class Together(Noting):
    """As `Noting`, and records the thread; each of four threads waits for the others at its first query."""

    def __init__(self):
        super().__init__()
        self.threads = {}
        self._begun, self._all = set(), threading.Barrier(4)

    def rewrite(self, query, profile, budget_ms=None):
        thread = threading.get_ident()
        self.threads.setdefault(profile.turns[0].query, []).append((thread, query))
        if thread not in self._begun:
            self._begun.add(thread)
            self._all.wait(60)
        return super().rewrite(query, profile, budget_ms)


def test_threads_give_the_same_rewrites_and_each_conversation_stays_on_one_thread():
    pairs = [(f"how much {n}?", Profile(turns=(Turn(f"hats {n % 5}", "A Borsalino", "t"),))) for n in range(40)]
    readings, rewriter = [open_reading(*pair) for pair in pairs], Together()
    assert rewrite_all(readings, rewriter, n_threads=4) == rewrite_all(readings, Noting())
    assert len({thread for noted in rewriter.threads.values() for thread, _ in noted}) == 4
    for conversation, noted in rewriter.threads.items():
        assert len({thread for thread, _ in noted}) == 1
        assert [query for _, query in noted] == [query for query, p in pairs if p.turns[0].query == conversation]
