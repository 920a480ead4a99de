"""What was learnt from other users ranks alike on the embedded engine and on a real Elasticsearch."""

from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from bespeak.engines.elastic import ElasticsearchEngine
from bespeak.engines.embedded import EmbeddedEngine
from bespeak.parts import Parts
from bespeak.pipeline import search
from bespeak.profiles.events import new_event
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.ranking.behaviour import gather
from bespeak.ranking.learning import LearntFolder, learn, learnt_path, write_learnt
from bespeak.records import Document, Request, UserKey
from bespeak.rewriting.rewriter import Unchanged
from bespeak.settings import Settings, Weights
from fakes import ADA, BagEncoder

NOW = datetime(2026, 1, 1, tzinfo=UTC)
STUFFS = ("wool", "silk", "felt", "linen")
N_DOCS = 48


def title(n):
    return f"{STUFFS[n % 4]} coat {'warm ' * (n % 3)}number{n}"


def bought(user, *places):
    return [
        new_event(user, "purchase", NOW - timedelta(hours=hours), doc_id=f"d{n}", title=title(n))
        for hours, n in enumerate(places, 1)
    ]


def crowd():
    """Four hundred users who each keep to one of two halves of the catalogue."""
    draw = np.random.default_rng(3)
    halves = np.split(draw.permutation(N_DOCS), 2)
    users = [(UserKey(ADA.tenant, f"u{n}"), halves[n % 2]) for n in range(400)]
    return halves, [event for user, half in users for event in bought(user, *draw.choice(half, 12, replace=False))]


def ask(engine, index, store, learnt):
    """The whole ranking with its evidence, and beside it its numbers."""
    encoder = BagEncoder(dim=64)
    engine.create(index, ("text",), encoder.dim, encoder.name)
    texts = [title(n) for n in range(N_DOCS)]
    vectors = encoder.encode(texts)
    assert engine.load(index, [Document(f"d{n}", {"text": t}, vectors[n]) for n, t in enumerate(texts)]) == []
    engine.refresh(index)
    parts = Parts(Settings(weights=Weights(0.2, 0.2, 1.0)), Unchanged(), encoder, learnt=learnt)
    result = search(engine, store, Request("coat", index, ADA, "s", size=N_DOCS), parts, NOW)
    assert (result.rerank, result.notes) == ("full", ())
    told = [(one.hit.doc_id, [(e.column, e.text, e.event_id) for e in one.evidence]) for one in result.page]
    numbers = [[*one.scores, *(e.share for e in one.evidence)] for one in result.page]
    return told, [number for row in numbers for number in row]


@pytest.mark.elasticsearch
def test_both_engines_rank_and_explain_alike_by_what_was_learnt(elasticsearch_url, index_name, tmp_path):
    halves, events = crowd()
    store = SqliteStore(tmp_path / "bespeak.db")
    store.add([*events, *bought(ADA, *halves[0][:3])])
    write_learnt(learnt_path(tmp_path, ADA.tenant), learn(gather(events)[ADA.tenant]))
    learnt = LearntFolder(tmp_path)
    embedded, elastic = EmbeddedEngine(tmp_path / "indices"), ElasticsearchEngine(elasticsearch_url)
    (own, numbers), (theirs, others) = (ask(engine, index_name, store, learnt) for engine in (embedded, elastic))
    without, _ = ask(embedded, f"{index_name}-without", store, None)
    for engine in (embedded, elastic):
        engine.close()
    store.close()
    assert own == theirs
    assert numbers == pytest.approx(others, abs=1e-4)
    assert [doc_id for doc_id, _ in own] != [doc_id for doc_id, _ in without]
    own_half = {f"d{n}" for n in halves[0]}
    with_it, without_it = (sum(doc_id in own_half for doc_id, _ in ranking[:24]) for ranking in (own, without))
    assert with_it > without_it + 5
    named = {text for _, evidence in own[:10] for column, text, _ in evidence if column == "user"}
    assert named == {title(n) for n in halves[0][:3]}
