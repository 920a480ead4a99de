"""The stores, each alone in a place that goes with the test."""

import contextlib

import pytest

from elasticsearch_node import new_index_name
from histories import ElasticPlace, SqlitePlace


@pytest.fixture
def sqlite_place(tmp_path):
    return SqlitePlace(tmp_path / "bespeak.db")


@pytest.fixture
def elastic_place(elasticsearch_url):
    place = ElasticPlace(elasticsearch_url, new_index_name() + "-")
    yield place
    place.clean()


@pytest.fixture(params=["sqlite", pytest.param("elastic", marks=pytest.mark.elasticsearch)])
def place(request):
    """The place of one store; each `open` is one process's view of it."""
    return request.getfixturevalue(f"{request.param}_place")


@pytest.fixture
def open_store(place):
    with contextlib.ExitStack() as closing:

        def opened(**options):
            store = place.open(**options)
            closing.callback(store.close)
            return store

        yield opened


@pytest.fixture
def store(open_store):
    return open_store()
