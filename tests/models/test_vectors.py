import random
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bespeak.models.vectors import APPLICATION_ID, REST_S, VectorCache

DIM = 48


def vector_of(doc_id, dim=DIM):
    """The same vector for an id in every process."""
    found = np.random.default_rng(list(doc_id.encode("utf-8", "surrogatepass"))).standard_normal(dim)
    return (found / np.linalg.norm(found)).astype(np.float32)


def rows_of(doc_ids, version="1"):
    return {doc_id: (version, vector_of(doc_id)) for doc_id in doc_ids}


def numbered(start, end):
    return [f"doc-{i}" for i in range(start, end)]


def assert_true(found, versions=("1",)):
    """Everything that was found is what was put."""
    for doc_id, (version, vector) in found.items():
        assert version in versions
        assert np.array_equal(vector, vector_of(doc_id))


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def path(tmp_path):
    return tmp_path / "vectors.db"


@pytest.fixture
def open_cache(path, clock):
    opened = []

    def open_one(at=path, rows=1000):
        opened.append(VectorCache(at, rows, timeout_s=0.02, clock=clock))
        return opened[-1]

    yield open_one
    for cache in opened:
        cache.close()


@pytest.fixture
def cache(open_cache):
    return open_cache()


def works(cache):
    cache.put("check", rows_of(["a"]))
    assert set(cache.get("check", ["a"])) == {"a"}
    assert cache.fault == ""


def test_vectors_come_back_bit_for_bit(cache):
    cache.put("s", rows_of(numbered(0, 300), "7/2"))
    found = cache.get("s", numbered(0, 300))
    assert len(found) == 300
    assert_true(found, ["7/2"])
    assert {vector.dtype for _, vector in found.values()} == {np.dtype(np.float32)}
    assert cache.fault == ""


def test_unknown_documents_are_not_found(cache):
    assert cache.get("s", ["a"]) == {}
    cache.put("s", rows_of(["a"]))
    assert set(cache.get("s", ["b", "a", "c", "a"])) == {"a"}
    assert cache.get("s", []) == {}


def test_spaces_are_separate(cache):
    cache.put("s", rows_of(["a"]))
    assert cache.get("", ["a"]) == cache.get("s2", ["a"]) == {}
    cache.put("s2", {"a": ("2", vector_of("other"))})
    assert_true(cache.get("s", ["a"]))


def test_a_newer_version_replaces_the_older(cache):
    cache.put("s", {"a": ("1", vector_of("old"))})
    cache.put("s", rows_of(["a"], "2"))
    assert_true(cache.get("s", ["a"]), ["2"])


def test_another_cache_of_the_same_file_finds_them(cache, open_cache):
    cache.put("s", rows_of(["a"]))
    assert_true(open_cache().get("s", ["a"]))
    cache.close()
    assert set(open_cache().get("s", ["a"])) == {"a"}


ANY_TEXT = st.text(st.characters(codec=None), max_size=30)


@settings(max_examples=60)
@given(ids=st.lists(ANY_TEXT, unique=True, max_size=8), space=ANY_TEXT, version=ANY_TEXT)
def test_any_text_can_be_an_id_a_space_or_a_version(tmp_path_factory, ids, space, version):
    cache = VectorCache(tmp_path_factory.mktemp("any") / "vectors.db")
    cache.put(space, rows_of(ids, version))
    found = cache.get(space, ids)
    cache.close()
    assert set(found) == set(ids)
    assert_true(found, [version])


def test_long_ids_that_differ_at_their_ends_are_distinct(cache):
    ids = ["x" * 100_000 + end for end in "ab"]
    cache.put("s", rows_of(ids))
    assert len(cache.get("s", ids)) == 2
    assert_true(cache.get("s", ids))


@pytest.mark.parametrize(
    "odd", [np.zeros(0), np.ones((1, DIM)), np.float32(1), np.full(DIM, np.nan), np.array([1, np.inf])], ids=str
)
def test_invalid_vectors_are_left_out(cache, odd):
    cache.put("s", {"odd": ("1", np.asarray(odd, np.float32)), **rows_of(["a"])})
    assert set(cache.get("s", ["odd", "a"])) == {"a"}
    cache.put("s", {"odd": ("1", np.asarray(odd, np.float32))})
    assert (set(cache.get("s", ["odd", "a"])), cache.fault) == ({"a"}, "")


def test_vectors_of_other_lengths_than_the_newest_are_left_out(cache):
    cache.put("s", {doc_id: ("1", vector_of(doc_id, 7)) for doc_id in ("a", "b")})
    cache.put("s", rows_of(["b", "c"]))
    assert set(cache.get("s", ["a", "b", "c"])) == {"b", "c"}


def test_the_oldest_are_evicted(open_cache):
    cache = open_cache(rows=100)
    for start in range(0, 1000, 30):
        cache.put("s", rows_of(numbered(start, start + 30)))
    found = cache.get("s", numbered(0, 1020))
    assert set(found) == set(numbered(920, 1020))


def test_a_vector_that_is_put_again_counts_as_new(open_cache):
    cache = open_cache(rows=100)
    cache.put("s", rows_of(numbered(0, 100)))
    cache.put("s", rows_of(["doc-0"], "2"))
    cache.put("s", rows_of(numbered(100, 150)))
    assert "doc-0" in cache.get("s", numbered(0, 2))
    assert "doc-1" not in cache.get("s", numbered(0, 2))


@pytest.mark.parametrize("rows", [1, 3])
def test_putting_more_than_the_limit_keeps_the_last(open_cache, rows):
    cache = open_cache(rows=rows)
    cache.put("s", rows_of(numbered(0, 20)))
    assert set(cache.get("s", numbered(0, 20))) == set(numbered(20 - rows, 20))


def test_a_lowered_limit_is_reached(open_cache):
    open_cache(rows=20_000).put("s", {f"doc-{i}": ("1", np.ones(1, np.float32)) for i in range(20_000)})
    cache = open_cache(rows=10)
    for i in range(10):
        cache.put("s", {f"more-{i}": ("1", np.ones(1, np.float32))})
    assert cache.get("s", numbered(0, 20_000)) == {}
    assert len(cache.get("s", [f"more-{i}" for i in range(10)])) == 10


def test_threads_share_it(cache):
    faults = []

    def work(number):
        mine = numbered(number * 100, number * 100 + 100)
        for _ in range(5):
            cache.put("s", rows_of(mine))
            found = cache.get("s", mine)
            if len(found) != 100:
                faults.append(cache.fault or "lost")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert faults == []
    assert_true(cache.get("s", numbered(0, 800)))


def test_after_closing_nothing_is_found_or_kept(cache, open_cache):
    cache.put("s", rows_of(["a"]))
    cache.close()
    cache.close()
    cache.put("s", rows_of(["b"]))
    assert cache.get("s", ["a", "b"]) == {}
    assert set(open_cache().get("s", ["a", "b"])) == {"a"}


WRITE = """
import sys
sys.path[:0] = {folders!r}
from pathlib import Path
from bespeak.models.vectors import VectorCache
from test_vectors import numbered, rows_of
cache = VectorCache(Path(sys.argv[1]), 5000, timeout_s=30)
start = int(sys.argv[2])
for begin in range(start, start + int(sys.argv[3]), 50):
    cache.put("s", rows_of(numbered(begin, begin + 50)))
    print(cache.fault, flush=True)
"""


def write_in_another_process(path, start, n_rows):
    code = WRITE.format(folders=[folder for folder in sys.path if folder])
    return subprocess.Popen([sys.executable, "-c", code, path, str(start), str(n_rows)], stdout=subprocess.PIPE)


def test_processes_share_it(path):
    with closing(VectorCache(path, timeout_s=30)) as cache:
        writers = [write_in_another_process(path, start, 1000) for start in (0, 1000)]
        while any(writer.poll() is None for writer in writers):
            assert_true(cache.get("s", numbered(0, 2000)))
            assert cache.fault == ""
        assert [writer.communicate()[0].split() for writer in writers] == [[], []]
        found = cache.get("s", numbered(0, 2000))
        assert len(found) == 2000
        assert_true(found)


@pytest.mark.parametrize("seed", range(6))
def test_a_killed_writer_leaves_an_intact_file(path, seed):
    chance = random.Random(seed)
    writer = write_in_another_process(path, 0, 100_000)
    for _ in range(chance.randint(0, 20)):
        writer.stdout.readline()
    threading.Event().wait(chance.random() * 0.02)
    writer.send_signal(signal.SIGKILL)
    printed = writer.communicate()[0]
    with closing(VectorCache(path, timeout_s=30)) as cache:
        assert_true(cache.get("s", numbered(0, 5000)))
        cache.put("s", rows_of(numbered(0, 100)))
        assert len(cache.get("s", numbered(0, 100))) == 100
        assert (cache.fault, printed.strip()) == ("", b"")


def filled(path, n_rows=400):
    with closing(VectorCache(path)) as cache:
        cache.put("s", rows_of(numbered(0, n_rows)))
    return path


@settings(max_examples=40)
@given(data=st.data())
def test_a_damaged_file_never_gives_a_wrong_vector(tmp_path_factory, data):
    path = filled(tmp_path_factory.mktemp("damaged") / "vectors.db")
    content = bytearray(path.read_bytes())
    for _ in range(data.draw(st.integers(1, 20))):
        at = data.draw(st.one_of(st.integers(0, len(content) - 1), st.integers(0, 200)))
        rubbish = data.draw(st.binary(min_size=1, max_size=300))
        content[at : at + len(rubbish)] = rubbish
    path.write_bytes(content[: data.draw(st.one_of(st.just(len(content)), st.integers(0, len(content))))])
    with closing(VectorCache(path, timeout_s=0.02)) as cache:
        for start in (0, 200, 400):
            assert_true(cache.get("s", numbered(0, 600)))
            cache.put("s", rows_of(numbered(start, start + 100)))
        assert_true(cache.get("s", numbered(0, 600)))


@pytest.mark.parametrize(
    "content", [b"rubbish" * 1000, b"SQLite format 3\0" + b"\xff" * 10_000], ids=["other file", "damaged header"]
)
def test_a_damaged_file_is_replaced(path, cache, content):
    path.write_bytes(content)
    assert cache.get("s", ["a"]) == {}
    assert "damaged" in cache.fault
    works(cache)
    assert path.with_name("vectors.db.damaged").read_bytes() == content


def test_a_file_damaged_while_in_use_is_replaced(path, cache):
    cache.put("s", rows_of(numbered(0, 100)))
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    for _ in range(3):
        assert_true(cache.get("s", numbered(0, 100)))
        cache.put("s", rows_of(numbered(0, 100)))
    works(cache)


def test_a_deleted_file_is_made_again(path, cache):
    works(cache)
    for file in path.parent.glob("vectors.db*"):
        file.unlink()
    assert cache.get("check", ["a"]) == {}
    works(cache)


def test_a_file_that_another_cache_replaced_is_not_moved_away(path, open_cache):
    """Both caches have the damaged file open; the second to notice finds the new file."""
    filled(path)
    first, second = open_cache(), open_cache()
    for cache in (first, second):
        assert cache.get("s", ["doc-1"])
    with path.open("r+b") as file:
        file.write(b"\xff" * path.stat().st_size)
    for cache in (first, second):
        cache.get("s", numbered(0, 400))
        cache.put("s", rows_of(["a"]))
        cache.put("s", rows_of(["a"]))
    assert set(first.get("s", ["a"])) == set(second.get("s", ["a"])) == {"a"}


def test_a_file_of_another_version_is_replaced(path, cache):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE older (x)")
        connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")
        connection.execute("PRAGMA user_version = 99")
    cache.get("s", ["a"])
    assert "another version of Bespeak" in cache.fault
    works(cache)


def test_another_programs_database_is_left_alone(path, cache):
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE events (x)")
    before = path.read_bytes()
    cache.put("s", rows_of(["a"]))
    assert cache.get("s", ["a"]) == {}
    assert "another program's database" in cache.fault
    cache.close()
    assert path.read_bytes() == before
    assert [file.name for file in path.parent.glob("vectors*")] == ["vectors.db"]


def test_a_locked_file_is_left_alone_for_a_while(path, open_cache, clock):
    filled(path)
    cache = open_cache()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("PRAGMA locking_mode = EXCLUSIVE")
        other.execute("BEGIN EXCLUSIVE")
        assert cache.get("s", ["doc-1"]) == {}
        cache.put("s", rows_of(["a"]))
        assert "locked by another process" in cache.fault
    assert cache.get("s", ["doc-1"]) == {}
    clock.now += REST_S
    assert set(cache.get("s", ["doc-1", "a"])) == {"doc-1"}
    works(cache)


def test_readers_do_not_wait_for_writers(path, open_cache):
    filled(path)
    cache = open_cache()
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        cache.put("s", rows_of(["a"]))
        assert "locked" in cache.fault
        assert set(cache.get("s", ["doc-1", "a"])) == {"doc-1"}


@pytest.mark.parametrize("place", ["a folder", "under a file", "too long a name"])
def test_nothing_is_kept_if_the_folder_cannot_be_written(tmp_path, open_cache, clock, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_text("x")
    places = {"a folder": "folder", "under a file": "file/vectors.db", "too long a name": "x" * 999}
    cache = open_cache(tmp_path / places[place])
    for _ in range(2):
        cache.put("s", rows_of(["a"]))
        assert cache.get("s", ["a"]) == {}
        assert "cannot be written" in cache.fault
        clock.now += REST_S


def test_a_missing_folder_is_made(tmp_path, open_cache):
    works(open_cache(tmp_path / "new" / "folder" / "vectors.db"))


def test_on_a_full_disk_older_vectors_are_still_found(path):
    """A limit on the size of the process's files stands for the end of the disk."""
    filled(path)
    code = """
import resource, sys
sys.path[:0] = {folders!r}
from pathlib import Path
from bespeak.models.vectors import VectorCache
from test_vectors import assert_true, numbered, rows_of
path = Path(sys.argv[1])
resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 40_000,) * 2)
cache = VectorCache(path)
for start in range(400, 2000, 100):
    cache.put("s", rows_of(numbered(start, start + 100)))
print(cache.fault)
found = cache.get("s", numbered(0, 2000))
assert set(found) >= set(numbered(0, 400)), len(found)
assert len(found) % 100 == 0
assert_true(found)
cache.close()
"""
    done = subprocess.run(
        [sys.executable, "-c", code.format(folders=[f for f in sys.path if f]), path], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert "no vectors are kept" in done.stdout or "no more vectors are kept" in done.stdout
    with closing(VectorCache(path)) as cache:
        works(cache)
