"""What every event store must do, and what the SQLite one must besides."""

import itertools
import json
import multiprocessing
import sqlite3
import threading
from datetime import UTC, datetime, timedelta
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bespeak.errors import StoreError
from bespeak.events import Batch, Load, new_event, read_events
from bespeak.profile import STATEMENTS_KEPT
from bespeak.records import Profile, Rewrite, Term, UserKey
from bespeak.stores.sqlite import MIGRATIONS, SqliteStore

USER = UserKey("", "u")
NOW = datetime(2025, 6, 1, tzinfo=UTC)


class Key(NamedTuple):
    user: UserKey
    profile_version: str = "p"
    model_version: str = "m"
    query: str = "q"


def event(action="view", ago_s=0.0, user=USER, **given):
    return new_event(user, action, NOW - timedelta(seconds=ago_s), **given)


@pytest.fixture
def store(tmp_path):
    store = SqliteStore(tmp_path / "bespeak.db", timeout_s=0.2)
    yield store
    store.close()


def test_a_store_that_is_not_there_is_empty_and_stays_away(store):
    assert store.profile(USER, "s", NOW) == Profile(USER, "s")
    assert store.profile(None, "s", NOW) == Profile(None, "s")
    assert list(store.export(USER)) == []
    assert store.get_rewrite(Key(USER)) is None
    assert store.resume("", "f") == Load("", "f")
    assert sum(store.forget(USER)) == 0
    store.set_consent(USER, True)
    store.put_rewrite(Key(USER), Rewrite("q", "q"))
    assert not store.path.exists()


def test_events_come_back_equal_and_in_time_order(store):
    events = [
        event(
            "click",
            1,
            session_id="s",
            query_id="q",
            doc_id="d",
            title="T",
            attributes={"x": [1, {"y": None}], "z": "é"},
        ),
        event("rating", 3, doc_id="d", value=4.5),
        event("statement", 2, text="nul \0, emoji 🙂, line\u2028end"),
    ]
    assert store.add(events) == 3
    assert list(store.export(USER)) == [events[1], events[2], events[0]]


def test_an_export_longer_than_a_batch_is_whole(store):
    events = [event(doc_id=str(n)) for n in range(1201)]  # all at one moment
    store.add(events)
    assert {e.event_id for e in store.export(USER)} == {e.event_id for e in events}
    assert len(list(store.export(USER))) == 1201


def test_added_twice_is_added_once(store):
    events = [event(ago_s=n, doc_id="d") for n in range(5)]
    assert store.add(events) == 5
    assert store.add([*events, event("click", doc_id="e"), event("click", doc_id="e")]) == 1
    assert len(list(store.export(USER))) == 6


def test_a_profile_is_of_the_users_own_events(store):
    said, liked = event("statement", text="vegetarian"), event("purchase", doc_id="d", title="Tofu")
    asked = event("query", session_id="s", query_id="q", text="dinner")
    store.add([said, liked, asked, event("query", session_id="other", text="elsewhere")])
    known = store.profile(USER, "s", NOW)
    assert [s.text for s in known.statements] == ["vegetarian"]
    assert [t.query for t in known.turns] == ["dinner"]
    assert [p.title for p in known.preferences] == ["Tofu"]
    assert store.profile(USER, "s", NOW, query_id="q").turns == ()
    assert store.profile(USER, "", NOW).turns == ()


def test_tenants_and_users_never_meet(store):
    keys = [UserKey("", "u"), UserKey("a", "u"), UserKey("b", "u"), UserKey("a", "v")]
    for key in keys:
        store.add(
            [event("statement", user=key, text=f"{key}"), event("query", user=key, session_id="s", text=f"{key}")]
        )
        store.put_rewrite(Key(key), Rewrite("q", f"{key}"))
    store.set_consent(keys[1], False)
    store.forget(keys[2])
    for key in keys[:2] + keys[3:]:
        known = store.profile(key, "s", NOW)
        assert [s.text for s in known.statements] == [f"{key}"]
        assert [t.query for t in known.turns] == [f"{key}"]
        assert known.consent == (key != keys[1])
        assert store.get_rewrite(Key(key)).text == f"{key}"
    assert store.profile(keys[2], "s", NOW) == Profile(keys[2], "s")


@pytest.mark.parametrize("events_first", [True, False])
def test_a_query_without_session_belongs_to_that_of_its_events(store, events_first):
    asked = event("query", 9, query_id="q", text="gold")
    shown = event("impression", 8, session_id="s", query_id="q", doc_id="d")
    store.add([shown] if events_first else [asked])
    store.add([asked] if events_first else [shown])
    store.add([event("query", 7, user=UserKey("t", "u"), query_id="q", text="silver")])
    assert [t.query for t in store.profile(USER, "s", NOW).turns] == ["gold"]
    assert [e.session_id for e in store.export(USER)] == ["", "s"]


def test_consent_is_kept_until_given_again(store):
    store.add([event("click", doc_id="d")])
    store.set_consent(USER, False)
    store.set_consent(USER, False)
    assert not store.profile(USER, "", NOW).consent
    assert store.profile(USER, "", NOW).preferences
    store.set_consent(USER, True)
    assert store.profile(USER, "", NOW).consent


def test_a_rewrite_comes_back_equal(store):
    rewrite = Rewrite("q", "q x", (Term("x", "turn", "e", "gold"),), "full", "", "m 1")
    store.add([event()])
    store.put_rewrite(Key(USER), Rewrite("q", "older"))
    store.put_rewrite(Key(USER), rewrite)
    assert store.get_rewrite(Key(USER)) == rewrite
    for other in (Key(USER, query="r"), Key(USER, "p2"), Key(USER, model_version="m2"), Key(UserKey("t", "u"))):
        assert store.get_rewrite(other) is None


def test_the_oldest_rewrites_go(tmp_path):
    store = SqliteStore(tmp_path / "bespeak.db", rewrites_kept=3)
    store.add([event()])
    for n in range(5):
        store.put_rewrite(Key(USER, query=str(n)), Rewrite("q", str(n)))
    assert [store.get_rewrite(Key(USER, query=str(n))) is not None for n in range(5)] == [
        False,
        False,
        True,
        True,
        True,
    ]
    store.close()


def test_a_rewrite_that_ends_after_forget_leaves_no_trace(store):
    store.add([event()])
    store.forget(USER)
    store.put_rewrite(Key(USER), Rewrite("q", "q secret"))
    assert store.get_rewrite(Key(USER)) is None
    assert bytes_of(store).count(b"secret") == 0


def bytes_of(store):
    return b"".join(path.read_bytes() for path in store.path.parent.glob("bespeak.db*"))


def test_forget_leaves_no_byte(store):
    """Long and short texts, so that overflow pages and all indexes have held them; beside a user who stays."""
    other = UserKey("", "stays")
    for n in range(300):
        store.add([
            event("statement", n, text=f"zebra {n}" + " zebra" * (n * 7 % 900)),
            event("click", n, session_id="zebra-session", query_id=f"zebra-{n}", doc_id="zebra", title="zebra"),
            event("statement", n, user=other, text=f"giraffe {n}" * (n % 60 + 1)),
        ])  # fmt: skip
    store.put_rewrite(Key(USER, query="zebra"), Rewrite("zebra", "zebra"))
    store.set_consent(UserKey("", "u"), False)
    before = list(store.export(other))
    assert bytes_of(store).count(b"zebra") > 1000
    assert store.forget(USER) == (600, 1, 1)
    assert bytes_of(store).count(b"zebra") == 0
    assert bytes_of(store).count(b"giraffe") > 100
    assert list(store.export(other)) == before
    assert store.profile(USER, "zebra-session", NOW) == Profile(USER, "zebra-session")


def test_forget_says_so_where_another_still_reads_the_old_state(store):
    store.add([event("statement", text="zebra")])
    reader = sqlite3.connect(store.path, isolation_level=None)
    reader.execute("BEGIN")
    reader.execute("SELECT count(*) FROM events").fetchone()
    with pytest.raises(StoreError, match="run `forget` again"):
        store.forget(USER)
    reader.close()
    assert store.forget(USER) == (0, 0, 0)
    assert bytes_of(store).count(b"zebra") == 0


def test_a_profile_reads_no_more_for_more_events(store):
    """Counted in steps of SQLite's machine, not in time."""

    def steps():
        n_steps = itertools.count()
        connection = store._connection()
        connection.set_progress_handler(lambda: next(n_steps) and 0, 10)
        store.profile(USER, "s", NOW)
        connection.set_progress_handler(None, 0)
        return next(n_steps)

    def some(first, n):
        actions = ("click", "view", "impression", "search", "statement")
        return [event(actions[i % 5], i, session_id="s", query_id=f"{i}", text=f"{i}", doc_id=f"{i}")
                for i in range(first, first + n)]  # fmt: skip

    store.add(some(0, 3000))
    few = steps()
    store.add(some(3000, 9000))
    store.add(event(ago_s=n, user=UserKey("", f"user {n}"), doc_id="d") for n in range(3000))
    assert steps() <= few * 1.1
    assert len(store.profile(USER, "s", NOW).statements) == STATEMENTS_KEPT


def test_a_load_moves_with_its_events_and_not_without(store):
    load = store.resume("", "f")
    moved = store.record(load, Batch(2, 50, (event(doc_id="d"),), ((2, "broken"),)))
    assert moved == Load("", "f", 50, 2, 1, 1, 1)
    assert store.resume("", "f") == moved
    assert store.resume("other", "f") == Load("other", "f")
    with pytest.raises(StoreError, match="another process is loading"):
        store.record(load, Batch(2, 50, (event(doc_id="e"),), ()))
    assert len(list(store.export(USER))) == 1
    last = store.record(moved, Batch(3, 60, (event(doc_id="d"),), ((3, "worse"),)))
    assert (last.events, last.added, last.rejected) == (2, 1, 2)
    assert list(store.rejections(last)) == [(2, "broken"), (3, "worse")]
    store.finish(last)
    assert store.resume("", "f") == load
    assert list(store.rejections(last)) == []


def test_threads_share_a_store(tmp_path):
    def write(n):
        store.add([event(ago_s=n * 100 + i, doc_id="d") for i in range(50)])
        seen.append(len(store.profile(USER, "", NOW).preferences))

    seen: list[int] = []
    store = SqliteStore(tmp_path / "bespeak.db", timeout_s=30)
    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [1] * 8
    assert len(list(store.export(USER))) == 400
    store.close()


def write_from_a_process(path, n, ready):
    ready.wait(30)
    store = SqliteStore(path, timeout_s=60)
    store.add([event(ago_s=n * 100 + i, doc_id="d") for i in range(50)])
    store.close()


def test_processes_make_and_share_a_store(tmp_path, store):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    processes = [context.Process(target=write_from_a_process, args=(store.path, n, ready)) for n in range(3)]
    for process in processes:
        process.start()
    ready.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(store.export(USER))) == 150


def test_a_locked_store_is_named_and_still_read(store):
    store.add([event("statement", text="x")])
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(StoreError, match="locked by another process"):
        store.add([event("statement", text="y")])
    assert len(store.profile(USER, "", NOW).statements) == 1
    other.close()
    assert store.add([event("statement", text="y")]) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="--data-dir"):
        SqliteStore(tmp_path / "file" / "bespeak.db").add([event()])


def test_a_folder_that_cannot_be_looked_into_is_named(tmp_path):
    store = SqliteStore(tmp_path / ("x" * 300) / "bespeak.db")
    for act in (lambda: store.add([event()]), lambda: store.profile(USER, "", NOW), lambda: store.forget(USER)):
        with pytest.raises(StoreError, match="--data-dir"):
            act()


def test_a_read_only_store_is_named(store):
    store.add([event()])
    store._connection().execute("PRAGMA query_only = ON")
    with pytest.raises(StoreError, match="cannot write"):
        store.add([event(doc_id="d")])


def test_a_full_disk_is_named_and_nothing_is_half_written(store):
    store.add([event()])
    store._connection().execute("PRAGMA max_page_count = 1")  # as many pages as there are
    with pytest.raises(StoreError, match="is full"):
        store.add([event("statement", n, text="x" * 1000) for n in range(500)])
    store.close()
    assert len(list(store.export(USER))) == 1


@pytest.mark.parametrize(
    "body", [b"this is not a database, but it is long enough " * 9, b"SQLite format 3\0" + b"\xff" * 4096]
)
def test_a_damaged_file_is_named_and_left_alone(tmp_path, body):
    path = tmp_path / "bespeak.db"
    path.write_bytes(body)
    for act in (lambda s: s.add([event()]), lambda s: s.profile(USER, "", NOW), lambda s: s.forget(USER)):
        with pytest.raises(StoreError, match="damaged"):
            act(SqliteStore(path))
    assert path.read_bytes() == body


def test_a_file_cut_short_is_named(store):
    store.add([event("statement", n, text="x" * 3000) for n in range(300)])
    store._connection().execute("PRAGMA wal_checkpoint(TRUNCATE)")
    store.close()
    whole = store.path.read_bytes()
    store.path.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(StoreError, match="damaged"):
        list(store.export(USER))


def test_a_newer_file_is_named(store):
    store.add([event()])
    store.close()
    with sqlite3.connect(store.path) as newer:
        newer.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    newer.close()
    with pytest.raises(StoreError, match="upgrade Bespeak"):
        store.profile(USER, "", NOW)


def test_an_empty_file_becomes_a_store(store):
    store.path.touch()
    assert store.profile(USER, "", NOW) == Profile(USER)
    assert store.add([event()]) == 1


UNICODE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(UNICODE, UNICODE, UNICODE, UNICODE), min_size=1, max_size=5, unique=True))
def test_any_unicode_is_kept_and_never_meets(store, rows):
    events = [
        event("statement", user=UserKey(tenant, user), text=text.strip() or "x", session_id=session)
        for tenant, user, text, session in rows
    ]
    store.add(events)
    for key in {e.user for e in events}:
        own = {e.event_id for e in events if e.user == key}
        assert {e.event_id for e in store.export(key)} == own
        assert {e.text for e in store.export(key)} == {e.text for e in events if e.user == key}
        store.profile(key, rows[0][3], NOW)
    for key in {e.user for e in events}:
        store.forget(key)
        assert list(store.export(key)) == []


@pytest.mark.data
def test_the_real_file_gives_profiles(store, shared_data):
    path = shared_data / "ubi" / "ubi_queries_events.ndjson"
    with path.open("rb") as file:
        events = [item for _, item in read_events(file)]
    assert store.add(events) == 3920  # one line is there twice
    user, session = "CLIENT-9a9968ac-664b-42d7-9a9e-96f412b5ab49", "SESSION-ddf28a1d-c8e8-40fd-b6a6-89ca0547c184"
    known = store.profile(UserKey("", user), session, NOW)
    lines = [json.loads(text) for text in path.read_text("utf-8").splitlines()]
    actions = ("click", "add_to_cart", "purchase", "item_click", "watch", "view", "declined_product")
    touched = {row["event_attributes"]["object"]["object_id"] for row in lines
               if row.get("client_id") == user and row.get("action_name") in actions}  # fmt: skip
    assert {p.doc_id for p in known.preferences} == touched
    assert all(p.title for p in known.preferences)
    assert "wireless earbuds" in [t.query for t in known.turns]
