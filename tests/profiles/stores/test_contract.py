"""The contract of every event store."""

import itertools
import json
import multiprocessing
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bespeak.errors import StoreError
from bespeak.profiles.stores import Batch, EventLoad
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.profiles.ubi import read_events
from bespeak.records import Profile, Rewrite, Term, UserKey
from histories import NOW, USER, Key, add_from_a_process, add_until_killed, event, long_history


def test_a_store_that_is_not_there_is_empty_and_stays_away(store, place):
    load = EventLoad("", "f")
    assert store.profile(USER, "s", NOW) == Profile(USER, "s")
    assert store.profile(None, "s", NOW) == Profile(None, "s")
    assert list(store.export(USER)) == []
    assert list(store.of_everyone(["click"])) == []
    assert store.get_rewrite(Key(USER)) is None
    assert store.resume("", "f") == load
    assert list(store.rejections(load)) == []
    assert sum(store.forget(USER)) == 0
    assert store.add([]) == 0
    store.finish(load)
    store.set_consent(USER, True)
    store.put_rewrite(Key(USER), Rewrite("q", "q"))
    assert place.is_empty()


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


def test_events_of_everyone_come_by_action_a_user_after_the_other(store):
    users = [USER, UserKey("shop", USER.user_id), UserKey("", "zoe")]
    events = [event("click", ago_s=n % 7, user=users[n % 3], doc_id=str(n), attributes={"n": n}) for n in range(1201)]
    others = [event("statement", user=USER, text="I ski."), event("impression", user=users[2], doc_id="d")]
    store.add([*events, *others])
    found = list(store.of_everyone(["click"]))
    assert {e.event_id: e for e in found} == {e.event_id: e for e in events}
    assert len(found) == len(events)
    together = [found[0].user, *(b.user for a, b in itertools.pairwise(found) if a.user != b.user)]
    assert sorted(together) == sorted(users)
    assert {e.action for e in store.of_everyone(["impression", "statement"])} == {"impression", "statement"}
    store.forget(users[1])
    assert {e.user for e in store.of_everyone(["click"])} == {users[0], users[2]}


def test_events_of_paused_users_are_left_out_of_everyones(store):
    paused = UserKey("shop", USER.user_id)
    store.add(event("click", user=user, doc_id="d") for user in (USER, paused))
    store.set_consent(paused, False)
    assert [e.user for e in store.of_everyone(["click"])] == [USER]
    assert len(list(store.export(paused))) == 1
    store.set_consent(paused, True)
    assert {e.user for e in store.of_everyone(["click"])} == {USER, paused}


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
    assert store.profile(UserKey("t", "u"), "s", NOW).turns == ()


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


def test_a_rewrite_that_is_dropped_is_gone_and_no_other(store):
    store.drop_rewrite(Key(USER))  # of a store that is not there yet
    store.add([event()])
    for key in (Key(USER), Key(USER, query="r")):
        store.put_rewrite(key, Rewrite("q", "q x"))
    store.drop_rewrite(Key(USER))
    assert store.get_rewrite(Key(USER)) is None
    assert store.get_rewrite(Key(USER, query="r")) == Rewrite("q", "q x")


def test_a_load_moves_with_its_events_and_not_without(store):
    load = store.resume("", "f")
    moved = store.record(load, Batch(2, 50, (event(doc_id="d"),), ((2, "broken"),)))
    assert moved == EventLoad("", "f", 50, 2, 1, 1, 1)
    assert store.resume("", "f") == moved
    assert store.resume("other", "f") == EventLoad("other", "f")
    with pytest.raises(StoreError, match="another process is loading"):
        store.record(load, Batch(2, 50, (event(doc_id="e"),), ()))
    assert len(list(store.export(USER))) == 1
    last = store.record(moved, Batch(3, 60, (event(doc_id="d"),), ((3, "worse"),)))
    assert (last.events, last.added, last.rejected) == (2, 1, 2)
    assert list(store.rejections(last)) == [(2, "broken"), (3, "worse")]
    store.finish(last)
    assert store.resume("", "f") == load
    assert list(store.rejections(last)) == []


def test_what_one_adds_another_finds_at_once(open_store):
    one, other = open_store(), open_store()
    assert other.profile(USER, "s", NOW) == Profile(USER, "s")
    for n in range(3):
        one.add([event("query", 9 - n, session_id="s", query_id=f"{n}", text=f"query {n}")])
        assert len(other.profile(USER, "s", NOW).turns) == n + 1
    other.set_consent(USER, False)
    assert not one.profile(USER, "s", NOW).consent
    assert other.profile(USER, "s", NOW) == one.profile(USER, "s", NOW)
    rewrite = Rewrite("q", "q x")
    other.put_rewrite(Key(USER), rewrite)
    assert one.get_rewrite(Key(USER)) == rewrite
    assert one.forget(USER) == (3, 1, 1)
    assert other.profile(USER, "s", NOW) == Profile(USER, "s")
    assert other.get_rewrite(Key(USER)) is None
    assert list(other.export(USER)) == []


def test_an_event_on_a_query_gives_its_session_to_all_of_them(store):
    """Also where the session comes last, and to no query that has one."""
    store.add(
        [event("query", 9, query_id="q", text="gold"), event("query", 8, session_id="t", query_id="r", text="tin")]
    )
    store.add([event("click", 7, query_id="q", doc_id="d", title="Ring")])
    assert store.profile(USER, "s", NOW).turns == ()
    store.add([event("view", 6, session_id="s", query_id="q", doc_id="d"), event(session_id="s", query_id="r")])
    assert [(t.query, t.response) for t in store.profile(USER, "s", NOW).turns] == [("gold", "Ring")]
    assert [t.query for t in store.profile(USER, "t", NOW).turns] == ["tin"]


def test_impressions_are_exported_and_no_part_of_a_profile(store):
    shown = event("impression", 5, session_id="s", query_id="q", text="gold", doc_id="d", title="Ring")
    store.add([shown])
    assert store.profile(USER, "s", NOW) == Profile(USER, "s")
    assert list(store.export(USER)) == [shown]


def test_the_oldest_rewrites_go(open_store):
    store = open_store(rewrites_kept=3)
    store.add([event()])
    for n in range(5):
        store.put_rewrite(Key(USER, query=str(n)), Rewrite("q", str(n)))
    kept = [store.get_rewrite(Key(USER, query=str(n))) is not None for n in range(5)]
    assert kept == [False, False, True, True, True]


def test_a_rewrite_that_ends_after_forget_is_not_kept(store):
    store.add([event()])
    store.forget(USER)
    store.put_rewrite(Key(USER), Rewrite("q", "q secret"))
    assert store.get_rewrite(Key(USER)) is None


def test_forget_takes_all_of_one_user_and_nothing_of_others(store):
    other = UserKey("", "stays")
    for user in (USER, other):
        store.add(event("statement", n, user=user, text=f"zebra {n}") for n in range(1300))
        store.put_rewrite(Key(user), Rewrite("q", "zebra"))
        store.set_consent(user, False)
    before = list(store.export(other))
    assert store.forget(USER) == (1300, 1, 1)
    assert store.forget(USER) == (0, 0, 0)
    assert store.profile(USER, "", NOW) == Profile(USER)
    assert list(store.export(other)) == before
    assert not store.profile(other, "", NOW).consent
    assert store.get_rewrite(Key(other)) == Rewrite("q", "zebra")
    assert store.add([event("statement", text="anew")]) == 1
    assert [s.text for s in store.profile(USER, "", NOW).statements] == ["anew"]


def test_a_user_who_is_forgotten_while_others_add_is_whole_or_gone(open_store):
    def write():
        for n in range(20):
            open_store().add([event("statement", n, text=f"{n}"), event("statement", n, user=other, text=f"{n}")])
        done.set()

    other, done = UserKey("", "stays"), threading.Event()
    writer = threading.Thread(target=write)
    writer.start()
    store = open_store()
    while not done.is_set():
        store.forget(USER)
    writer.join()
    store.forget(USER)
    assert list(store.export(USER)) == []
    assert len(list(store.export(other))) == 20


def test_threads_share_a_store(store):
    def write(n):
        store.add([event(ago_s=n * 100 + i, doc_id="d") for i in range(50)])
        seen.append(len(store.profile(USER, "", NOW).preferences))

    seen: list[int] = []
    threads = [threading.Thread(target=write, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert seen == [1] * 8
    assert len(list(store.export(USER))) == 400


def test_processes_make_and_share_a_store(place, store):
    context = multiprocessing.get_context("spawn")
    ready = context.Event()
    processes = [context.Process(target=add_from_a_process, args=(place, n, ready)) for n in range(3)]
    for process in processes:
        process.start()
    ready.set()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0, 0]
    assert len(list(store.export(USER))) == 10 + 3 * 40


def has_events(store):
    """Not yet, too, where the other process is making the indices at this moment."""
    try:
        return next(store.export(USER), None) is not None
    except StoreError:
        return False


def test_what_was_killed_in_mid_add_is_completed_by_adding_again(place, store):
    context = multiprocessing.get_context("spawn")
    began = context.Event()
    process = context.Process(target=add_until_killed, args=(place, began))
    process.start()
    assert began.wait(60)
    while process.is_alive() and not has_events(store):
        pass
    process.kill()
    process.join()
    events = long_history()
    there = len(list(store.export(USER)))
    assert there > 0
    # A batch that was under way may be written after the kill.
    assert store.add(events) <= len(events) - there
    assert len(list(store.export(USER))) == len(events)
    assert [t.query for t in store.profile(USER, "s", NOW).turns] == [f"{n}" for n in range(19, -1, -1)]


UNICODE = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=30)


def test_any_unicode_is_kept_and_never_meets(store):
    @settings(max_examples=60 if isinstance(store, SqliteStore) else 15)
    @given(st.lists(st.tuples(UNICODE, UNICODE, UNICODE, UNICODE), min_size=1, max_size=5, unique=True))
    def check(rows):
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

    check()


def test_the_longest_of_everything_is_kept(store):
    user = UserKey("🙂" * 256, "/" * 255 + "\0")
    longest = event(
        "statement", user=user, session_id="🙂" * 256, query_id="\n" * 256, doc_id="é" * 256, title="🙂" * 32_768,
        text="🙂" * 32_768, attributes={"a.b": {"": [1.5, 10**300, None, "x" * 200_000]}, ".": {"user": "not mine"}},
    )  # fmt: skip
    action = event("a" * 100, user=user, session_id="s")
    store.add([longest, action])
    assert list(store.export(user)) == sorted([longest, action], key=lambda e: (e.timestamp, e.event_id))
    assert len(store.profile(user, "🙂" * 256, NOW).statements) == 1
    assert store.forget(user).events == 2


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
