"""One session of one user gives the same results on the embedded engine and on a real Elasticsearch."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from bespeak.engines.elastic import ElasticsearchEngine
from bespeak.engines.embedded import EmbeddedEngine
from bespeak.parts import Parts
from bespeak.pipeline import search
from bespeak.profiles.events import new_event
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.records import Document, Request
from bespeak.rewriting.rewriter import LastTurn
from bespeak.settings import Settings
from fakes import ADA, BagEncoder

NOW = datetime(2026, 1, 1, tzinfo=UTC)
TURNS = ("best diet for diabetes", "is fruit allowed in it", "and which one is cheap")


def tell(engine, index, documents, encoder, folder):
    """Loads the index, asks the turns and opens the first hit of each. Gives the doc_ids and outcome of each page."""
    engine.create(index, ("text",), encoder.dim, encoder.name)
    assert engine.load(index, documents) == []
    engine.refresh(index)
    store = SqliteStore(folder / f"{engine.name}.db")
    store.add([new_event(ADA, "statement", NOW, text="I am vegetarian")])
    pages = []
    for number, query in enumerate(TURNS, start=1):
        now = NOW + timedelta(minutes=number)
        result = search(engine, store, Request(query, index, ADA, "s"), Parts(Settings(), LastTurn(), encoder), now)
        top = result.page[0].hit
        asked = {"session_id": "s", "query_id": f"q{number}"}
        store.add([
            new_event(ADA, "query", now, text=query, **asked),
            new_event(ADA, "click", now, doc_id=top.doc_id, title=top.source["text"][:60], **asked),
        ])  # fmt: skip
        pages.append((result.rewrite.text, result.rerank, [r.hit.doc_id for r in result.page]))
    store.close()
    return pages


@pytest.mark.elasticsearch
@pytest.mark.data
def test_both_engines_give_the_same_session(shared_data, elasticsearch_url, index_name, tmp_path):
    lines = (shared_data / "ikat" / "corpus.jsonl").read_text("utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    encoder = BagEncoder(dim=128)
    vectors = encoder.encode([row["text"] for row in rows])
    documents = [Document(r["_id"], {"text": r["text"]}, v) for r, v in zip(rows, vectors, strict=True)]
    embedded, elastic = EmbeddedEngine(tmp_path / "indices"), ElasticsearchEngine(elasticsearch_url)
    own = tell(embedded, index_name, documents, encoder, tmp_path)
    theirs = tell(elastic, index_name, documents, encoder, tmp_path)
    assert own == theirs
    assert [status for _, status, _ in own] == ["full"] * 3
    assert own[1][0] != TURNS[1]
    embedded.close()
    elastic.close()
