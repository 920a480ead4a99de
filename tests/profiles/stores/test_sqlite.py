"""The SQLite store beyond the common contract: no byte stays, and each fault of the file is reported."""

import itertools
import sqlite3
from concurrent.futures import ThreadPoolExecutor

import pytest

from bespeak.errors import StoreError
from bespeak.profiles.deriving import STATEMENTS_KEPT
from bespeak.profiles.stores.sqlite import MIGRATIONS, SqliteStore
from bespeak.records import Profile, Rewrite, UserKey
from histories import NOW, USER, Key, event


@pytest.fixture
def store(sqlite_place):
    store = sqlite_place.open(timeout_s=0.2)
    yield store
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


def test_many_users_can_be_forgotten_at_the_same_time(sqlite_place):
    """Each forget empties the log, and SQLite lets only one do so at a time, without waiting."""
    store = sqlite_place.open(timeout_s=5.0)
    users = [UserKey("", f"zebra {n}") for n in range(8)]
    for _ in range(10):
        store.add([event("statement", n, user=user, text="zebra") for user in users for n in range(3)])
        with ThreadPoolExecutor(len(users)) as threads:
            assert [found.events for found in threads.map(store.forget, users)] == [3] * len(users)
        assert bytes_of(store).count(b"zebra") == 0
    store.close()


def test_forget_reports_that_another_process_still_reads_the_old_state(store):
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
