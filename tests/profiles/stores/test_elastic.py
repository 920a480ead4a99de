"""The store in Elasticsearch beyond the common contract: its indices, its races, its errors."""

import json
import socket
import threading
import time

import pytest

from answering import HTML, PRODUCT, answering
from bespeak.errors import StoreError, UsageError
from bespeak.profiles.deriving import STATEMENTS_KEPT
from bespeak.profiles.stores import Batch, EventLoad
from bespeak.profiles.stores.elastic import ElasticsearchStore
from bespeak.profiles.stores.elastic.documents import profile_searches
from bespeak.profiles.stores.elastic.indices import VERSION, store_index_body
from bespeak.records import Profile, Rewrite, UserKey
from elasticsearch import BadRequestError, Elasticsearch
from histories import NOW, USER, Key, event, indices

REWRITE = Rewrite("q", "q x")


@pytest.fixture
def store(elastic_place):
    store = elastic_place.open()
    yield store
    store.close()


@pytest.fixture
def client(elasticsearch_url):
    with Elasticsearch(elasticsearch_url) as client:
        yield client


@pytest.mark.elasticsearch
class TestIndices:
    def test_the_first_write_makes_them_all_by_their_aliases(self, store, elastic_place, client):
        store.set_consent(USER, False)
        kinds = ("consent", "events", "loads", "rewrites")
        assert indices(client, elastic_place.prefix) == [f"{elastic_place.prefix}{kind}-{VERSION}" for kind in kinds]
        for kind in kinds:
            assert client.indices.exists_alias(name=elastic_place.prefix + kind)

    def test_a_search_over_all_indices_finds_none_of_them(self, store, elastic_place, client):
        store.add([event("statement", text="zebra")])
        for pattern in ("*", "_all", elastic_place.prefix + "*"):
            found = client.search(index=pattern, query={"match_all": {}}, size=1000)["hits"]["hits"]
            assert not [hit for hit in found if hit["_index"].startswith(elastic_place.prefix)]

    def test_what_they_do_not_know_is_refused(self, store, elastic_place, client):
        store.add([event()])
        with pytest.raises(BadRequestError, match="strict_dynamic_mapping"):
            client.index(index=elastic_place.prefix + "events", routing="r", document={"user": "u", "more": 1})

    def test_one_of_a_newer_version_is_named(self, store, elastic_place, client):
        body = store_index_body("events")
        body["mappings"]["_meta"]["bespeak"]["version"] = VERSION + 1
        name = f"{elastic_place.prefix}events-{VERSION + 1}"
        client.indices.create(index=name, aliases={f"{elastic_place.prefix}events": {"is_hidden": True}}, **body)
        for act in (lambda: store.add([event()]), lambda: store.profile(USER, "", NOW), lambda: store.forget(USER)):
            with pytest.raises(StoreError, match="upgrade Bespeak"):
                act()
        assert indices(client, elastic_place.prefix) == [name]

    def test_a_foreign_index_is_left_alone(self, store, elastic_place, client):
        name = elastic_place.prefix + "events"
        client.index(index=name, id="1", document={"theirs": 1}, refresh=True)
        for act in (lambda: store.add([event()]), lambda: store.profile(USER, "", NOW)):
            with pytest.raises(StoreError, match="not an index of Bespeak's"):
                act()
        assert indices(client, elastic_place.prefix) == [name]

    def test_deleted_indices_are_empty_and_made_again(self, store, elastic_place, client):
        store.add([event()])
        store.put_rewrite(Key(USER), REWRITE)
        elastic_place.clean()
        assert store.profile(USER, "", NOW) == Profile(USER)
        assert store.get_rewrite(Key(USER)) is None
        assert list(store.export(USER)) == []
        store.put_rewrite(Key(USER), REWRITE)
        assert elastic_place.is_empty()
        assert store.add([event()]) == 1
        assert client.indices.get_mapping(index=elastic_place.prefix + "events")

    def test_writing_to_deleted_ones_makes_none_without_its_mapping(self, store, elastic_place, client):
        store.add([event()])
        elastic_place.clean()
        assert store.add([event(), event("click", doc_id="d")]) == 2
        assert indices(client, elastic_place.prefix) == sorted(
            f"{elastic_place.prefix}{kind}-{VERSION}" for kind in ("consent", "events", "loads", "rewrites")
        )

    def test_two_prefixes_never_meet(self, store, elastic_place):
        other = ElasticsearchStore(elastic_place.url, prefix=elastic_place.prefix + "b-")
        other.add([event("statement", text="other")])
        assert store.profile(USER, "", NOW) == Profile(USER)
        store.add([event("statement", text="own")])
        assert store.forget(USER).events == 1
        assert [s.text for s in other.profile(USER, "", NOW).statements] == ["other"]
        other.close()

    def test_a_profile_reads_no_more_for_more_events(self, store, elastic_place, client):
        """Counted in documents that Elasticsearch visits, once its segments are merged: it reads a few of each."""

        def visited():
            client.indices.forcemerge(index=elastic_place.prefix + "events", max_num_segments=1)
            return sum(map(visits, profile_searches(USER, "s")))

        def visits(search):
            name, body = elastic_place.prefix + search.kind, {"profile": True, "track_total_hits": False}
            answer = client.search(index=name, routing=search.routing, body={**body, **search.body})
            queries = [
                query["breakdown"]
                for shard in answer["profile"]["shards"]
                for part in shard["searches"]
                for query in part["query"]
            ]
            return sum(query["next_doc_count"] + query["advance_count"] for query in queries)

        def some(first, n):
            actions = ("click", "view", "impression", "search", "statement")
            return [event(actions[i % 5], i, session_id="s", query_id=f"{i}", text=f"{i}", doc_id=f"{i}")
                    for i in range(first, first + n)]  # fmt: skip

        store.add(some(0, 3000))
        few = visited()
        store.add(some(3000, 6000))
        store.add(event(ago_s=n, user=UserKey("", f"user {n}"), doc_id="d") for n in range(1000))
        assert few > 4 * 200
        assert visited() <= few * 1.1
        assert len(store.profile(USER, "s", NOW).statements) == STATEMENTS_KEPT

    def test_a_name_that_no_index_can_have_is_refused(self):
        with pytest.raises(UsageError, match="lower case"):
            ElasticsearchStore("http://127.0.0.1:9200", prefix="Bespeak-")


@pytest.mark.elasticsearch
def test_no_file_holds_what_was_forgotten_once_its_shard_lets_go_of_it(store, elastic_place, client):
    """A shard keeps what was deleted for its copies for about half a minute."""

    def documents():
        rows = client.cat.segments(index=names, h="docs.count,docs.deleted", format="json")
        return sum(int(row["docs.count"]) for row in rows), sum(int(row["docs.deleted"]) for row in rows)

    names = [elastic_place.prefix + kind for kind in ("events", "rewrites", "consent")]
    stays = UserKey("", "stays")
    for n in range(5):
        store.add([event("statement", n * 9, user=user, text=f"zebra {n}") for user in (USER, stays)])
        store.add([event("query", n * 9 + 1, user=user, query_id=f"{n}", text="zebra") for user in (USER, stays)])
        store.add([event("click", n * 9, user=user, session_id="s", query_id=f"{n}") for user in (USER, stays)])
    store.put_rewrite(Key(USER), REWRITE)
    store.set_consent(USER, False)
    assert store.forget(USER) == (15, 1, 1)
    end = time.monotonic() + 180
    while documents()[1] and time.monotonic() < end:
        time.sleep(3)
        store.scrub()
    assert documents() == (15, 0)
    assert len(list(store.export(stays))) == 15


class Interrupted(ElasticsearchStore):
    """Lets another act just before or after it writes to an index of this kind."""

    before = after = kind = None

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self._write, self._indices.write = self._indices.write, self._write_interrupted

    def _write_interrupted(self, kind, actions, refresh=True):
        act_before, act_after = (self.before, self.after) if kind == self.kind else (None, None)
        if act_before:
            self.before = None
            act_before()
        answers = self._write(kind, actions, refresh)
        if act_after:
            self.after = None
            act_after()
        return answers


@pytest.mark.elasticsearch
class TestRaces:
    @pytest.fixture
    def slow(self, elastic_place):
        slow = elastic_place.open(kind=Interrupted)
        yield slow
        slow.close()

    @pytest.mark.parametrize("when", ["before", "after"])
    def test_forget_while_a_rewrite_is_put_leaves_no_trace(self, store, slow, elastic_place, client, when):
        store.add([event()])
        slow.kind = "rewrites"
        setattr(slow, when, lambda: store.forget(USER))
        slow.put_rewrite(Key(USER), REWRITE)
        assert store.get_rewrite(Key(USER)) is None
        client.indices.refresh(index=elastic_place.prefix + "rewrites")
        assert client.count(index=elastic_place.prefix + "rewrites")["count"] == 0

    def test_a_query_and_the_event_that_names_its_session_may_be_added_together(self, store, slow):
        slow.kind = "events"
        slow.after = lambda: store.add([event("impression", 8, session_id="s", query_id="q", doc_id="d")])
        slow.add([event("query", 9, query_id="q", text="gold")])
        assert [t.query for t in store.profile(USER, "s", NOW).turns] == ["gold"]

    def test_forget_while_a_session_is_found_leaves_no_event(self, store, slow):
        store.add([event("query", 9, query_id="q", text="gold")])
        shown = [event("impression", 8, user=USER, session_id="s", query_id="q", doc_id="d")]
        slow.kind = "events"
        slow.after = lambda: store.forget(USER)
        slow.add(shown)
        assert list(store.export(USER)) == []

    def test_two_that_load_the_same_file_at_once(self, store, slow):
        """One of them continues, and no event is stored twice."""
        start, batch = EventLoad("", "f"), Batch(2, 50, (event(doc_id="d"),), ((2, "broken"),))
        slow.kind = "events"
        slow.before = lambda: store.record(start, batch)
        with pytest.raises(StoreError, match="another process is loading"):
            slow.record(start, batch)
        done = store.resume("", "f")
        assert (done.events, done.added, done.rejected) == (1, 1, 1)
        slow.before = lambda: store.record(done, Batch(3, 60, (event(doc_id="e"),), ()))
        with pytest.raises(StoreError, match="another process is loading"):
            slow.record(done, Batch(3, 60, (event(doc_id="e"),), ()))
        assert list(store.rejections(done)) == [(2, "broken")]
        assert len(list(store.export(USER))) == 2

    def test_a_batch_that_was_cut_off_is_recorded_again(self, store, slow):
        """Its events are in, the load has not moved."""

        def cut():
            raise KeyboardInterrupt

        start, batch = EventLoad("", "f"), Batch(2, 50, (event(doc_id="d"), event(doc_id="e")), ((2, "broken"),))
        slow.kind, slow.after = "events", cut
        with pytest.raises(KeyboardInterrupt):
            slow.record(start, batch)
        assert store.resume("", "f") == start
        moved = store.record(start, batch)
        assert (moved.offset, moved.events, moved.rejected) == (50, 2, 1)
        assert len(list(store.export(USER))) == 2

    def test_a_while_after_a_forget_the_bytes_are_asked_for_once_more(self, elastic_place):
        asked = threading.Semaphore(0)

        class Counting(ElasticsearchStore):
            def scrub(self):
                asked.release()

        store = elastic_place.open(kind=Counting, scrubbed_after_s=0.05)
        store.add([event("statement", text="zebra")])
        store.forget(USER)
        assert all(asked.acquire(timeout=20) for _ in range(2))
        store.close()

    def test_indices_can_be_made_before_they_are_needed(self, elastic_place):
        store = elastic_place.open()
        store.prepare()
        store.prepare()
        assert store.profile(USER, "", NOW) == Profile(USER)
        assert store.add([event("statement", text="zebra")]) == 1
        store.close()

    def test_bytes_that_cannot_be_merged_away_are_reported(self, elastic_place):
        class Unmerged(ElasticsearchStore):
            def scrub(self):
                raise StoreError("no disk")

        store = elastic_place.open(kind=Unmerged)
        store.add([event("statement", text="zebra")])
        with pytest.raises(StoreError, match=r"all is deleted.*no disk.*again"):
            store.forget(USER)
        assert store.profile(USER, "", NOW) == Profile(USER)
        store.close()


SECRET = UserKey("tenant-secret", "user-secret")


def calls(store):
    load = EventLoad("tenant-secret", "f")
    return [
        lambda: store.add([event("statement", user=SECRET, text="text-secret")]),
        lambda: store.profile(SECRET, "session-secret", NOW),
        lambda: list(store.export(SECRET)),
        lambda: store.forget(SECRET),
        lambda: store.set_consent(SECRET, False),
        lambda: store.set_consent(SECRET, True),
        lambda: store.get_rewrite(Key(SECRET)),
        lambda: store.put_rewrite(Key(SECRET), REWRITE),
        lambda: store.resume(load.tenant, "f"),
        lambda: store.record(load, Batch(1, 1, (), ())),
        lambda: list(store.rejections(load)),
        lambda: store.finish(load),
    ]


def refuses(store, said):
    """Every call ends in one line that holds nothing of the user and no credential."""
    for call in calls(store):
        with pytest.raises(StoreError, match=said) as caught:
            call()
        assert "secret" not in str(caught.value)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("status", "kind", "said"),
    [
        (401, "security_exception", "refused the credentials"),
        (403, "security_exception", r"does not allow.*privileges"),
        (403, "cluster_block_exception", "blocked"),
        (429, "circuit_breaking_exception", "try again"),
        (503, "master_not_discovered_exception", "not ready"),
        (400, "illegal_argument_exception", r"status 400\): illegal_argument_exception"),
        (404, "resource_not_found_exception", "status 404"),
    ],
)
def test_answers_of_elasticsearch(status, kind, said):
    error = {"type": kind, "reason": "action of [user-secret] with text-secret", "root_cause": []}
    body = json.dumps({"error": error, "status": status}).encode()
    with answering(status, body, "application/json", headers=PRODUCT) as url:
        store = ElasticsearchStore(url, basic=("me", "pass-secret"), timeout_s=5)
        refuses(store, said)
        store.close()


def test_answers_of_something_else():
    with answering(200, HTML) as url:
        store = ElasticsearchStore(url, api_key="key-secret", timeout_s=5)
        refuses(store, "is not Elasticsearch")
        store.close()


def test_a_cluster_that_does_not_answer_is_reported():
    with socket.socket() as taken:  # bound, not listening
        taken.bind(("127.0.0.1", 0))
        store = ElasticsearchStore(f"http://me:pass-secret@127.0.0.1:{taken.getsockname()[1]}", timeout_s=5)
        refuses(store, "no answer from Elasticsearch")
        store.close()


def test_a_hanging_cluster_is_given_up():
    with answering(200, wait_s=1.0) as url:
        store = ElasticsearchStore(url, timeout_s=0.1)
        with pytest.raises(StoreError, match=r"within 0\.1 s"):
            store.profile(USER, "", NOW)
        store.close()


@pytest.mark.elasticsearch
def test_a_closed_index_is_named(store, elastic_place, client):
    store.add([event("statement", user=SECRET, text="x")])
    client.indices.close(index=f"{elastic_place.prefix}events-{VERSION}")
    for call in [*calls(store)[:4], calls(store)[7]]:
        with pytest.raises(StoreError, match="is closed: open it") as caught:
            call()
        assert "secret" not in str(caught.value)
    client.indices.open(index=f"{elastic_place.prefix}events-{VERSION}")
    assert len(store.profile(SECRET, "", NOW).statements) == 1


@pytest.mark.elasticsearch
def test_one_that_refuses_writes_is_named_and_still_read(store, elastic_place, client):
    """Blocks the index, as Elasticsearch does if a disk is full."""
    store.add([event("statement", text="x")])
    name = f"{elastic_place.prefix}events-{VERSION}"
    client.indices.put_settings(index=name, settings={"index.blocks.write": True})
    with pytest.raises(StoreError, match="blocked"):
        store.add([event("statement", text="y")])
    assert len(store.profile(USER, "", NOW).statements) == 1
    client.indices.put_settings(index=name, settings={"index.blocks.write": None})
    assert store.add([event("statement", text="y")]) == 1


@pytest.mark.elasticsearch
def test_many_threads_may_be_the_first(elastic_place):
    stores = [elastic_place.open() for _ in range(4)]
    added: list[int] = []
    threads = [
        threading.Thread(target=lambda store=store, n=n: added.append(store.add([event(ago_s=n), event(ago_s=9)])))
        for n, store in enumerate(stores)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sum(added) == 5
    assert len(list(stores[0].export(USER))) == 5
    for store in stores:
        store.close()
