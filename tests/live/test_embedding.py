"""The seam of vectors: our own searches and the proxy give the same vectors of hits and of liked documents."""

import asyncio
import contextlib
from datetime import UTC, datetime

import numpy as np
import pytest

from bespeak.deadline import Deadline
from bespeak.engines.elastic import ElasticsearchEngine
from bespeak.models.vectors import VectorCache
from bespeak.parts import Parts
from bespeak.pipeline import Retrieved, embed, liked_ids
from bespeak.proxy import Upstream
from bespeak.proxy.asking import Asker
from bespeak.proxy.body.reply import read_reply
from bespeak.proxy.bounds import Bounds
from bespeak.proxy.chains import Chains
from bespeak.proxy.documents import Documents
from bespeak.proxy.metrics import Metrics
from bespeak.proxy.personal import Personaliser, Rules, Runs, Shared
from bespeak.records import Clause, Document, EngineQuery, Preference, Profile
from bespeak.rewriting.rewriter import Unchanged
from bespeak.settings import Settings
from elasticsearch_node import new_index_name
from fakes import ADA, BagEncoder
from personal_proxy import call

pytestmark = pytest.mark.elasticsearch

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENCODER = BagEncoder()
TEXTS = {"a": "a coat of wool", "b": "a coat of silk", "c": "a long coat", "d": "a hat"}
LIKED = [Preference(doc_id, title, 1.0, "click", f"click {doc_id}", NOW)
         for doc_id, title in (("b", "silk"), ("d", "hat"), ("gone", "a scarf of felt"), ("bare", ""))]  # fmt: skip
PROFILE = Profile(ADA, preferences=tuple(LIKED))
MADE_BY = {"its own vectors": ENCODER, "vectors of another encoder": BagEncoder(name="foreign"), "no vectors": None}


def load(url, encoder):
    index = new_index_name()
    with contextlib.closing(ElasticsearchEngine(url)) as engine:
        engine.create(index, ("text",), encoder.dim if encoder else None, encoder.name if encoder else None)
        vectors = encoder.encode([f"other {text}" for text in TEXTS.values()]) if encoder else [None] * len(TEXTS)
        documents = [Document(d, {"text": t}, v) for (d, t), v in zip(TEXTS.items(), vectors, strict=True)]
        assert engine.load(index, documents) == []
        engine.refresh(index)
    return index


def of_our_own(url, index, _folder):
    with contextlib.closing(ElasticsearchEngine(url)) as engine:
        hits = engine.search(EngineQuery(index, (Clause("coat"),)))
        liked = tuple(engine.fetch(index, liked_ids(PROFILE)))
        retrieved = Retrieved(engine.describe(index), hits, hits, liked)
    found = embed(hits.hits, [True] * len(hits.hits), retrieved, PROFILE, ENCODER)
    return dict(zip([hit.doc_id for hit in hits.hits], found.hits, strict=True)), found


def of_the_proxy(url, index, folder):
    body = {"query": {"match": {"text": "coat"}}, "seq_no_primary_term": True}
    reply = read_reply(call(url, f"/{index}/_search", body).body.decode())

    async def run():
        upstream, runs, cache = Upstream([url]), Runs.bounded(1), VectorCache(folder / "vectors.db")
        documents = Documents(upstream, ENCODER, cache, Bounds(1))
        parts = Parts(Settings(), Unchanged(), ENCODER)
        shared = Shared(runs, Chains(), Metrics())
        personaliser = Personaliser(upstream, None, parts, documents, shared, Rules())
        try:
            return await personaliser._embed(PROFILE, reply.hits, Asker([], index), Deadline.after_ms(60_000))
        finally:
            await documents.close()
            cache.close()
            await upstream.close()

    found = asyncio.run(run())
    return dict(zip([hit.doc_id for hit in reply.hits], found.hits, strict=True)), found


@pytest.mark.parametrize("face", [of_our_own, of_the_proxy])
@pytest.mark.parametrize("encoder", MADE_BY.values(), ids=MADE_BY)
def test_vectors_are_the_indexs_own_or_made_from_texts(elasticsearch_url, tmp_path, face, encoder):
    index = load(elasticsearch_url, encoder)
    hits, found = face(elasticsearch_url, index, tmp_path)
    own = encoder is ENCODER
    expected = dict(
        zip(TEXTS, ENCODER.encode([f"other {text}" if own else text for text in TEXTS.values()]), strict=True)
    )
    assert set(hits) == {"a", "b", "c"}
    for doc_id, vector in hits.items():
        assert vector == pytest.approx(expected[doc_id], abs=1e-6), doc_id
    assert set(found.liked) == {"b", "d", "gone"}
    for doc_id in ("b", "d"):
        assert found.liked[doc_id] == pytest.approx(expected[doc_id], abs=1e-6), doc_id
    assert found.liked["gone"] == pytest.approx(ENCODER.encode(["a scarf of felt"])[0], abs=1e-6)
    assert found.fields == {index: ("text",)}
    assert all(vector.dtype == np.float32 for vector in (*hits.values(), *found.liked.values()))
