"""Vectors of documents: for which clients they are kept, for how long, and with whose rights they are fetched."""

import asyncio
import json
from collections import Counter
from urllib.parse import unquote

import numpy as np
import pytest

from bespeak.deadline import Deadline
from bespeak.errors import EngineRefused
from bespeak.models.vectors import VectorCache
from bespeak.proxy.asking import Asker
from bespeak.proxy.body.reply import read_reply
from bespeak.proxy.bounds import Bounds
from bespeak.proxy.documents import ABSENT_S, Documents
from bespeak.proxy.indices import DESCRIBED_S, MAX_TARGET_CHARS, chunks
from fakes import BagEncoder


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


class Answer:
    def __init__(self, status, content):
        self.status, self.content = status, content

    async def read(self, limit):
        return json.dumps(self.content).encode()

    async def close(self):
        pass


class Cluster:
    """One index `i` with the alias `a`. Clients with the key may read `secret`, and its owner `i` itself."""

    def __init__(self):
        self.uuid, self.texts, self.version = "u1", {"d1": "coat", "d2": "hat"}, 1
        self.asked = []

    async def send(self, method, target, headers, body):
        path, key = (
            unquote(target.decode()).partition("?")[0],
            {name.lower(): value for name, value in headers}.get(b"authorization", b""),
        )
        self.asked.append((method, path, key))
        if key == b"alias" and path.split("/")[1] != "a":
            return Answer(403, {"error": {}})
        fields = {"text": {"type": "text"}} | ({"secret": {"type": "text"}} if key == b"key" else {})
        if method == "GET":
            return Answer(200, {"i": {"mappings": {"properties": fields}, "settings": {"index": {"uuid": self.uuid}}}})
        ids = {doc_id for found in find(json.loads(body), "ids") for doc_id in found["values"]}
        hits = [
            {"_index": "i", "_id": doc_id, "_seq_no": self.version, "_primary_term": 1,
             "_source": {name: value for name, value in (("text", text), ("secret", "silk")) if name in fields}}
            for doc_id, text in self.texts.items() if doc_id in ids
        ]  # fmt: skip
        return Answer(200, {"hits": {"hits": hits}})

    @property
    def searches(self):
        return Counter(method for method, _, _ in self.asked)["POST"]


def find(part, name):
    """All that stands under a name, however deep."""
    if isinstance(part, dict):
        return ([part[name]] if name in part else []) + [one for inner in part.values() for one in find(inner, name)]
    return [one for inner in part for one in find(inner, name)] if isinstance(part, list) else []


@pytest.fixture
def cluster():
    return Cluster()


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def embed(cluster, clock, tmp_path):
    """Vectors of the cluster's hits and of liked documents, asked for by a client with a key."""
    cache, bounds = VectorCache(tmp_path / "vectors.db"), Bounds(1)
    documents = Documents(cluster, BagEncoder(), cache, bounds, clock)

    def ask(key=b"", liked=(), index="a"):
        hits = [
            {"_index": "i", "_id": i, "_score": 1.0, "_seq_no": cluster.version, "_primary_term": 1}
            for i in cluster.texts
        ]
        found = read_reply(json.dumps({"hits": {"hits": hits}})).hits
        asker = Asker([(b"Authorization", key)] if key else [], index)
        return asyncio.run(documents.embed(found, liked, asker, Deadline.after_ms(20_000)))

    yield ask
    bounds.close()
    cache.close()


def is_of(vector, text):
    return np.allclose(vector, BagEncoder().encode([text])[0], atol=1e-6)


def test_vectors_are_kept_by_version(embed, cluster):
    assert all(is_of(vector, text) for vector, text in zip(embed().hits, ("coat", "hat"), strict=True))
    embed()
    assert cluster.searches == 1
    cluster.texts["d1"], cluster.version = "scarf", 2
    assert is_of(embed().hits[0], "scarf")


def test_a_new_index_with_an_old_name_gets_new_vectors(embed, cluster, clock):
    embed()
    cluster.uuid, cluster.texts["d1"] = "u2", "scarf"
    clock.now += DESCRIBED_S + 1
    assert is_of(embed().hits[0], "scarf")


def test_vectors_hold_nothing_of_fields_hidden_from_the_client(embed):
    with_key, without = embed(b"key"), embed()
    assert is_of(with_key.hits[0], "coat silk")
    assert is_of(without.hits[0], "coat")
    assert is_of(embed(b"key").hits[0], "coat silk")


def test_a_client_with_rights_on_an_alias_alone_asks_through_it(embed, cluster):
    embed(b"alias")
    assert is_of(embed(b"alias").hits[1], "hat")
    assert cluster.searches == 1
    cluster.version = 2
    with pytest.raises(EngineRefused):
        embed(b"alias", index="i")


def test_liked_documents_that_are_missing_are_asked_for_once_by_each_client(embed, cluster, clock):
    for _ in range(2):
        assert embed(liked=["gone", "d2"]).liked.keys() == {"d2"}
    assert cluster.searches == 1
    embed(b"key", liked=["gone"])
    assert cluster.searches == 2
    clock.now += ABSENT_S + 1
    embed(liked=["gone"])
    assert cluster.searches == 3


def test_a_document_without_text_has_a_zero_vector(embed, cluster):
    cluster.texts["d1"] = " "
    found = embed()
    assert not found.hits[0].any()
    assert is_of(found.hits[1], "hat")


def test_index_names_are_asked_for_in_bounded_lines():
    names = [f"index-of-a-long-name-{n:04}" for n in range(300)] + ["é" * 80, "one"]
    found = list(chunks(names))
    assert [name for some in found for name in some] == names
    assert len(found) > 3
    assert all(len(",".join(some)) <= MAX_TARGET_CHARS for some in found)
