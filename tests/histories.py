"""Events of one user around one moment, the places where stores keep them, and other processes that write there."""

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from bespeak.profiles.events import new_event
from bespeak.profiles.stores.elastic import ElasticsearchStore
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.records import UserKey
from elasticsearch import Elasticsearch

USER = UserKey("", "u")
NOW = datetime(2025, 6, 1, tzinfo=UTC)


class Key(NamedTuple):
    user: UserKey
    profile_version: str = "p"
    model_version: str = "m"
    query: str = "q"


def event(action="view", ago_s=0.0, user=USER, **given):
    return new_event(user, action, NOW - timedelta(seconds=ago_s), **given)


class SqlitePlace(NamedTuple):
    path: Path

    def open(self, timeout_s=30.0, **options):
        return SqliteStore(self.path, timeout_s=timeout_s, **options)

    def is_empty(self):
        return not self.path.exists()


class ElasticPlace(NamedTuple):
    url: str
    prefix: str

    def open(self, timeout_s=30.0, kind=ElasticsearchStore, **options):
        return kind(self.url, timeout_s=timeout_s, prefix=self.prefix, **options)

    def is_empty(self):
        with Elasticsearch(self.url) as client:
            return not indices(client, self.prefix)

    def clean(self):
        with Elasticsearch(self.url) as client:
            for index in indices(client, self.prefix):
                client.indices.delete(index=index)


def indices(client, prefix):
    return sorted(client.indices.get(index=prefix + "*", expand_wildcards="all"))


def add_from_a_process(place, n, ready):
    """50 events, of which every fifth is the same in all processes."""
    ready.wait(30)
    store = place.open()
    store.add([event(ago_s=0 if i % 5 == 0 else n + 1, doc_id=f"{i}") for i in range(50)])
    store.close()


def add_until_killed(place, began):
    store = place.open()
    began.set()
    store.add(long_history())


def long_history():
    """Queries without a session, then the clicks that name it."""
    asked = [event("query", n, query_id=f"{n}", text=f"{n}") for n in range(2500)]
    return asked + [event("click", n, session_id="s", query_id=f"{n}", doc_id="d") for n in range(2500)]
