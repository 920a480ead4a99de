import itertools
import threading
from datetime import UTC, datetime, timedelta

import pytest

from bespeak.errors import InputError, StoreError
from bespeak.profiles.events import new_event
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.profiles.ubi import read_event, ubi_line
from bespeak.proxy.recording import BATCH, TITLE_CHARS, Recorder, RecorderCounts, ShownHit, impressions, query_recorded
from bespeak.records import UserKey

ADA, BOB = UserKey("", "ada"), UserKey("shop", "bob")
NOW = datetime(2025, 6, 1, tzinfo=UTC)


def clicks(user, *doc_ids, at=NOW):
    return [new_event(user, "click", at, doc_id=doc_id) for doc_id in doc_ids]


class ScriptedStore:
    """Keeps what is added; an `add` waits for `go`, and fails while there are `faults`."""

    def __init__(self, faults=()):
        self.faults, self.events, self.sizes = list(faults), [], []
        self.go, self.adding = threading.Event(), threading.Semaphore(0)
        self.go.set()

    def add(self, events):
        self.adding.release()
        assert self.go.wait(20)
        if self.faults:
            raise self.faults.pop(0)
        self.sizes.append(len(events))
        self.events += events
        return len(events)


@pytest.fixture
def recorded():
    """Makes recorders, and closes them."""
    made = []

    def make(store, **given):
        made.append((store, Recorder(store, **{"clock": lambda: NOW, **given})))
        return made[-1][1]

    yield make
    for store, recorder in made:
        if isinstance(store, ScriptedStore):
            store.go.set()
        recorder.close()


def test_recorded_events_reach_the_store(tmp_path, recorded):
    store = SqliteStore(tmp_path / "bespeak.db")
    recorder = recorded(store)
    asked = query_recorded(ADA, "s", "q1", "cake", "shop", NOW)
    shown = impressions(
        ADA, "s", "q1", [ShownHit("d7", "Lemon cake"), ShownHit("d8", "")], 11, NOW + timedelta(seconds=1)
    )
    assert recorder.record([asked, *shown]) == 0
    recorder.flush()
    assert {event.event_id for event in store.export(ADA)} == {event.event_id for event in [asked, *shown]}
    assert recorder.counts == RecorderCounts(0, 3, 0)
    assert [turn.query for turn in store.profile(ADA, "s", NOW).turns] == ["cake"]
    recorder.close()
    store.close()


def test_events_have_the_form_of_ubi():
    asked = query_recorded(ADA, "s", "q1", "cake", "shop", NOW)
    assert ubi_line(asked) == {
        "user_query": "cake", "user_id": "ada", "session_id": "s", "query_id": "q1",
        "timestamp": NOW.isoformat(), "query_attributes": {"index": "shop"},
    }  # fmt: skip
    (shown,) = impressions(ADA, "s", "q1", [ShownHit("d7", "Lemon cake")], 11, NOW)
    assert ubi_line(shown) == {
        "action_name": "impression", "user_id": "ada", "session_id": "s", "query_id": "q1",
        "timestamp": NOW.isoformat(),
        "event_attributes": {"object": {"object_id": "d7", "description": "Lemon cake"}, "position": {"ordinal": 11}},
    }  # fmt: skip
    assert read_event(ubi_line(shown), now=NOW) == shown
    assert read_event(ubi_line(asked), now=NOW) == asked


def test_hits_that_no_event_can_hold_still_count_as_ranks():
    found = impressions(ADA, "s", "q", [ShownHit("a", "x" * 5000), ShownHit("b" * 400, ""), ShownHit("c", "")], 1, NOW)
    assert [(e.doc_id, e.attributes["event_attributes"]["position"]["ordinal"]) for e in found] == [("a", 1), ("c", 3)]
    assert found[0].title == "x" * TITLE_CHARS
    with pytest.raises(InputError):
        query_recorded(ADA, "s", "q", "x" * 40_000, "shop", NOW)


def test_a_full_queue_drops_and_counts_and_does_not_wait(recorded):
    store = ScriptedStore()
    store.go.clear()
    recorder = recorded(store, limit=5)
    assert recorder.record(clicks(ADA, "1", "2")) == 0
    assert recorder.record(clicks(ADA, "3", "4", "5", "6", "7")) == 2
    assert recorder.counts == RecorderCounts(5, 0, 2)
    store.go.set()
    recorder.flush()
    assert [event.doc_id for event in store.events] == ["1", "2", "3", "4", "5"]
    assert recorder.counts == RecorderCounts(0, 5, 2)
    assert recorder.record(clicks(ADA, "8")) == 0


def test_batches_are_bounded_and_in_order(recorded):
    store = ScriptedStore()
    store.go.clear()
    recorder = recorded(store)
    doc_ids = [str(n) for n in range(2 * BATCH + 1)]
    recorder.record(clicks(ADA, "first"))
    assert store.adding.acquire(timeout=20)
    recorder.record(clicks(ADA, *doc_ids))
    store.go.set()
    recorder.flush()
    assert store.sizes == [1, BATCH, BATCH, 1]
    assert [event.doc_id for event in store.events] == ["first", *doc_ids]


def test_a_store_that_fails_for_a_while_loses_nothing(recorded):
    store = ScriptedStore([StoreError("locked"), StoreError("locked")])
    recorder = recorded(store)
    recorder.record(clicks(ADA, "1"))
    recorder.flush()
    assert recorder.counts == RecorderCounts(0, 1, 0)


def test_a_store_that_keeps_failing_costs_one_batch(recorded):
    store = ScriptedStore([StoreError("locked")])
    recorder = recorded(store, patience_s=0)
    recorder.record(clicks(ADA, "1"))
    recorder.flush()
    assert recorder.counts == RecorderCounts(0, 0, 1)
    recorder.record(clicks(ADA, "2"))
    recorder.flush()
    assert (store.events, recorder.counts) == (clicks(ADA, "2"), RecorderCounts(0, 1, 1))


def test_other_faults_are_not_retried_and_the_recorder_continues(recorded, caplog):
    store = ScriptedStore([ValueError("ada asked for cake")])
    recorder = recorded(store)
    recorder.record(clicks(ADA, "1"))
    recorder.flush()
    recorder.record(clicks(ADA, "2"))
    recorder.flush()
    assert recorder.counts == RecorderCounts(0, 1, 1)
    assert "ValueError" in caplog.text
    assert "ada" not in caplog.text


def test_forgetting_drops_queued_events(recorded):
    store = ScriptedStore()
    store.go.clear()
    recorder = recorded(store)
    recorder.record(clicks(BOB, "1"))
    assert store.adding.acquire(timeout=20)
    recorder.record(clicks(ADA, "2") + clicks(BOB, "3"))
    recorder.forget(ADA)
    store.go.set()
    recorder.flush()
    assert store.events == clicks(BOB, "1", "3")


def test_forgetting_waits_while_the_store_writes(recorded):
    store = ScriptedStore()
    store.go.clear()
    recorder = recorded(store)
    recorder.record(clicks(ADA, "1"))
    assert store.adding.acquire(timeout=20)
    seen = []
    forgetting = threading.Thread(target=lambda: (recorder.forget(ADA), seen.append(list(store.events))))
    forgetting.start()
    forgetting.join(0.2)
    assert seen == []
    store.go.set()
    forgetting.join(20)
    assert seen == [clicks(ADA, "1")]  # already there when `forget` returns, so that the store's own can delete it


def test_forgetting_drops_events_that_are_retried(recorded):
    store = ScriptedStore([StoreError("locked")] * 3)
    recorder = recorded(store)
    recorder.record(clicks(ADA, "1") + clicks(BOB, "2"))
    assert store.adding.acquire(timeout=20)
    recorder.forget(ADA)
    recorder.flush()
    assert store.events == clicks(BOB, "2")
    assert recorder.counts == RecorderCounts(0, 1, 0)


def test_a_search_in_progress_leaves_no_trace_of_a_forgotten_user(recorded):
    store = ScriptedStore()
    recorder = recorded(store)
    recorder.forget(ADA)
    before, after = clicks(ADA, "1"), clicks(ADA, "2", at=NOW + timedelta(seconds=1))
    assert recorder.record(before + after + clicks(BOB, "3")) == 0
    recorder.flush()
    assert store.events == after + clicks(BOB, "3")


def test_events_recorded_while_their_user_is_forgotten_do_not_return(tmp_path):
    """A user's searches go on in several threads; at any moment the user is forgotten: nothing older comes back."""
    store = SqliteStore(tmp_path / "bespeak.db")
    recorder, stop = Recorder(store), threading.Event()

    def search(number):
        for n in itertools.count():
            if stop.is_set():
                return
            at = datetime.now(UTC)
            recorder.record([query_recorded(ADA, "s", f"q{number}.{n}", "cake", "shop", at)])

    threads = [threading.Thread(target=search, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for _ in range(20):
        before = datetime.now(UTC)
        recorder.forget(ADA)
        store.forget(ADA)
        assert all(event.timestamp > before for event in store.export(ADA))
    stop.set()
    for thread in threads:
        thread.join()
    recorder.forget(ADA)
    store.forget(ADA)
    recorder.close()
    assert list(store.export(ADA)) == []
    store.close()


def test_closing_writes_what_is_queued_and_takes_no_more(recorded):
    store = ScriptedStore()
    store.go.clear()
    recorder = recorded(store)
    recorder.record(clicks(ADA, "1"))
    assert store.adding.acquire(timeout=20)
    recorder.record(clicks(ADA, "2"))
    store.go.set()
    recorder.close()
    recorder.close()
    assert store.events == clicks(ADA, "1", "2")
    assert recorder.record(clicks(ADA, "3")) == 1
    assert recorder.counts == RecorderCounts(0, 2, 1)


def test_closing_does_not_wait_for_a_store_that_fails(recorded):
    store = ScriptedStore([StoreError("locked")] * 100)
    recorder = recorded(store, patience_s=3600)
    recorder.record(clicks(ADA, "1"))
    assert store.adding.acquire(timeout=20)
    recorder.close()
    assert recorder.counts == RecorderCounts(0, 0, 1)


def test_a_flush_returns_at_its_timeout(recorded):
    store = ScriptedStore()
    store.go.clear()
    recorder = recorded(store)
    recorder.record(clicks(ADA, "1"))
    recorder.flush(timeout_s=0.01)
    assert recorder.counts == RecorderCounts(1, 0, 0)
