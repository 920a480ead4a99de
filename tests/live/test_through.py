"""A collection measured through a running proxy."""

import contextlib

import pytest

from bespeak.engines.elastic import ElasticsearchEngine
from bespeak.errors import EngineRefused, EngineUnreachable
from bespeak.evaluation.systems import load_collection
from bespeak.evaluation.through import RunningProxy, events_of, measure_served, user_of
from bespeak.evaluation.topics import Collection, Topic
from bespeak.records import Document
from bespeak.settings import Settings
from elasticsearch_node import new_index_name
from fakes import BagEncoder, ScriptedRewriter
from personal_proxy import call, personal_proxy

CALM = Settings(rewrite_ms=60_000, rerank_ms=60_000, profile_ms=60_000)
TOPICS = (
    Topic("1_1", "a warm coat", ("I am allergic to wool.",), (("silk scarf", "silk is light"),)),
    Topic("2_1", "a warm coat"),
)


@pytest.mark.elasticsearch
def test_the_proxys_modes_are_measured_and_its_users_forgotten(elasticsearch_url, tmp_path):
    stuffs = ("wool", "felt", "hemp", "linen", "silk")
    documents = tuple(Document(f"d{n}", {"text": f"warm coat of {stuffs[n % 5]} number{n}"}) for n in range(30))
    wanted = {f"d{n}": 1 for n in range(30) if n % 5 == 4}
    collection = Collection("coats", documents, ("text",), TOPICS, {"1_1": wanted, "2_1": wanted})
    index, encoder = new_index_name(), BagEncoder()
    rewriter = ScriptedRewriter({"a warm coat": "a warm silk coat"})
    with contextlib.closing(ElasticsearchEngine(elasticsearch_url)) as engine:
        load_collection(collection, engine, encoder, index)
    seen = []
    with personal_proxy(elasticsearch_url, tmp_path, rewriter=rewriter, encoder=encoder, settings=CALM) as (
        url,
        _store,
    ):
        cells = measure_served(collection, index, RunningProxy(url), report=lambda *done: seen.append(done))
        for topic in TOPICS:
            assert call(url, f"/_bespeak/profile/{user_of(topic).replace(' ', '%20')}",
                        X_Bespeak_Tenant="bespeak-evaluation").body == b""  # fmt: skip
    found = {cell.system: cell for cell in cells}
    assert list(found) == ["direct", "boost", "recall"]
    assert seen == [(1, 2), (2, 2)]
    # The first topic's silk coats all come first; nothing is known of the second topic's user.
    assert found["boost"].gain.better == found["recall"].gain.better == 0.5
    assert found["boost"].gain.worse == 0
    assert found["direct"].gain is None


def test_a_topics_session_and_statements_become_events_in_order():
    events = events_of(TOPICS[0])
    assert [event.get("user_query") or event["message"] for event in events] == [
        "I am allergic to wool.", "silk scarf", "silk is light",
    ]  # fmt: skip
    assert [event["timestamp"] for event in events] == sorted(event["timestamp"] for event in events)
    assert events_of(TOPICS[1]) == []


def test_a_server_that_is_no_proxy_is_reported():
    with pytest.raises(EngineUnreachable, match="is `bespeak serve` running"):
        RunningProxy("http://127.0.0.1:9").tell(TOPICS[0])


@pytest.mark.elasticsearch
def test_an_elasticsearch_is_no_proxy(elasticsearch_url):
    with pytest.raises(EngineRefused, match="refused /_bespeak/events"):
        RunningProxy(elasticsearch_url).tell(TOPICS[0])
