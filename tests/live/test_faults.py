"""A fault of ours at any stage: the client gets the engine's own answer, and a header names the stage."""

import json
import sqlite3
import threading

import pytest

from bespeak.errors import ModelError, StoreError
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.settings import Settings
from elasticsearch_node import new_index_name
from fakes import BagEncoder
from personal_proxy import call, load_things, personal_proxy
from proxy_server import serving

pytestmark = pytest.mark.elasticsearch
AS_ADA = {"X_Bespeak_User": "ada", "X_Bespeak_Session": "s"}
BODY = {"query": {"match": {"text": "coat"}}, "size": 15, "highlight": {"fields": {"text": {}}}}
HASTE = Settings(window=20, rewrite_ms=150, profile_ms=300, rerank_ms=300)


@pytest.fixture(scope="module")
def index(elasticsearch_url):
    name = new_index_name()
    load_things(elasticsearch_url, name)
    return name


class FaultyEncoder(BagEncoder):
    """An encoder that fails for texts of one kind."""

    def __init__(self, error, kind):
        super().__init__()
        self.error, self.kind = error, kind

    def encode(self, texts, kind="document"):
        if kind == self.kind:
            raise self.error
        return super().encode(texts, kind)


class HangingEncoder(BagEncoder):
    """An encoder that ignores deadlines until it is released."""

    def __init__(self):
        super().__init__()
        self.released = threading.Event()

    def encode(self, texts, kind="document"):
        self.released.wait(30)
        return super().encode(texts, kind)


class FaultyRewriter:
    name, version = "faulty", "1"

    def __init__(self, error=None):
        self.error, self.released = error, threading.Event()

    def rewrite(self, query, profile, budget_ms=None):
        if self.error:
            raise self.error
        self.released.wait(30)
        raise ModelError("released")

    def forget(self, user):
        pass


def same_as_direct(ours, url, index):
    own = call(url, f"/{index}/_search", BODY)
    assert ours.status == own.status == 200
    assert ours.same() == own.same()


@pytest.mark.parametrize(
    ("encoder", "stage"),
    [
        (FaultyEncoder(MemoryError(), "query"), "encode"),
        (FaultyEncoder(ModelError("damaged"), "query"), "encode"),
        (FaultyEncoder(MemoryError(), "document"), "embed"),
        (FaultyEncoder(ValueError("bad shape"), "document"), "embed"),
    ],
)
def test_a_failing_encoder_leaves_the_engines_answer(elasticsearch_url, index, tmp_path, encoder, stage):
    with personal_proxy(elasticsearch_url, tmp_path / "p", encoder=encoder) as (url, _):
        ours = call(url, f"/{index}/_search", BODY, **AS_ADA)
        assert (ours.outcome["rerank"], ours.outcome["reason"]) == ("failed", stage)
        same_as_direct(ours, elasticsearch_url, index)


def test_a_hanging_encoder_costs_only_its_budget(elasticsearch_url, index, tmp_path):
    encoder = HangingEncoder()
    with personal_proxy(elasticsearch_url, tmp_path / "p", encoder=encoder, settings=HASTE) as (url, _):
        reasons = []
        for _ in range(3):
            ours = call(url, f"/{index}/_search", BODY, **AS_ADA)
            same_as_direct(ours, elasticsearch_url, index)
            reasons.append(ours.outcome["reason"])
        assert set(reasons) <= {"encode_late", "encode_busy"}
        encoder.released.set()
        assert call(url, f"/{index}/_search", BODY, **AS_ADA).outcome["rerank"] == "full"


def test_a_stage_that_keeps_failing_rests_for_a_while(elasticsearch_url, index, tmp_path):
    encoder = FaultyEncoder(MemoryError(), "query")
    with personal_proxy(elasticsearch_url, tmp_path / "p", encoder=encoder) as (url, _):
        reasons = [call(url, f"/{index}/_search", BODY, **AS_ADA).outcome["reason"] for _ in range(7)]
        assert reasons == ["encode"] * 5 + ["encode_resting"] * 2
        assert 'bespeak_breaker_open{stage="rerank"} 1.0' in call(url, "/_bespeak/metrics").body.decode()


@pytest.mark.parametrize("error", [ModelError("missing"), MemoryError(), RuntimeError("cut")])
def test_a_failing_rewriter_costs_only_the_rewrite(elasticsearch_url, index, tmp_path, error):
    with personal_proxy(elasticsearch_url, tmp_path / "p", rewriter=FaultyRewriter(error)) as (url, _):
        ours = call(url, f"/{index}/_search", BODY, **AS_ADA)
        assert (ours.outcome["rewrite"], ours.outcome["rerank"]) == ("failed", "full")
        own = call(elasticsearch_url, f"/{index}/_search", BODY)
        assert ours.json["hits"]["total"] == own.json["hits"]["total"]


def test_a_hanging_rewriter_is_late(elasticsearch_url, index, tmp_path):
    rewriter = FaultyRewriter()
    with personal_proxy(elasticsearch_url, tmp_path / "p", rewriter=rewriter, settings=HASTE, model_runs=2) as (url, _):
        statuses = {call(url, f"/{index}/_search", BODY, **AS_ADA).outcome["rewrite"] for _ in range(2)}
        rewriter.released.set()
        assert statuses == {"late"}


def test_a_store_locked_for_writing_can_still_be_read(elasticsearch_url, index, tmp_path):
    with personal_proxy(elasticsearch_url, tmp_path / "p") as (url, store):
        other = sqlite3.connect(store.path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        try:
            assert call(url, f"/{index}/_search", BODY, **AS_ADA).outcome["rerank"] == "full"
        finally:
            other.close()


class FaultyStore(SqliteStore):
    """Cannot give profiles."""

    def __init__(self, path, error=None):
        super().__init__(path)
        self.error, self.released = error, threading.Event()

    def profile(self, user, session_id, now, query_id=""):
        if self.error:
            raise self.error
        self.released.wait(30)
        return super().profile(user, session_id, now, query_id)


def test_a_store_without_a_profile_leaves_the_engines_answer(elasticsearch_url, index, tmp_path):
    store = FaultyStore(tmp_path / "events.db", StoreError("locked"))
    with personal_proxy(elasticsearch_url, tmp_path / "p", store=store) as (url, _):
        ours = call(url, f"/{index}/_search", BODY, **AS_ADA)
        assert (ours.outcome["rerank"], ours.outcome["reason"]) == ("failed", "profile")
        same_as_direct(ours, elasticsearch_url, index)


def test_a_hanging_store_leaves_the_engines_answer(elasticsearch_url, index, tmp_path):
    store = FaultyStore(tmp_path / "events.db")
    with personal_proxy(elasticsearch_url, tmp_path / "p", store=store, settings=HASTE) as (url, _):
        ours = call(url, f"/{index}/_search", BODY, **AS_ADA)
        store.released.set()
        assert (ours.outcome["rerank"], ours.outcome["reason"]) == ("failed", "profile_late")
        same_as_direct(ours, elasticsearch_url, index)


def test_a_damaged_store_leaves_the_engines_answer(elasticsearch_url, index, tmp_path):
    with personal_proxy(elasticsearch_url, tmp_path / "p") as (url, store):
        store.close()
        store.path.write_bytes(b"no database" * 1000)
        for beside in store.path.parent.glob("bespeak.db-*"):
            beside.unlink()
        ours = call(url, f"/{index}/_search", BODY, **AS_ADA)
        assert (ours.outcome["rerank"], ours.outcome["reason"]) == ("failed", "profile")
        same_as_direct(ours, elasticsearch_url, index)


def test_damaged_kept_vectors_are_made_again(elasticsearch_url, index, tmp_path):
    (tmp_path / "p").mkdir()
    (tmp_path / "p" / "vectors.db").write_bytes(b"no database" * 1000)
    with personal_proxy(elasticsearch_url, tmp_path / "p") as (url, _):
        assert call(url, f"/{index}/_search", BODY, **AS_ADA).outcome["rerank"] == "full"


def engine_with(spoil):
    """An engine that spoils its answer to a widened search, but not to the client's own request."""

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        hits = [{"_index": "i", "_id": f"d{n}", "_score": 3.0 - n, "_source": {"text": "coat"}} for n in range(3)]
        answer = json.dumps({"took": 1, "hits": {"total": {"value": 3, "relation": "eq"}, "hits": hits}}).encode()
        status = 200
        if b"seq_no_primary_term" in body and scope["path"] == "/i/_search" and b'"ids"' not in body:
            status, answer = spoil(answer)
        headers = [(b"content-type", b"application/json"), (b"content-length", str(len(answer)).encode())]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": answer})

    return app


@pytest.mark.parametrize(
    ("spoil", "stage"),
    [
        (lambda answer: (200, answer[:-20]), "engine_answer"),
        (lambda _: (200, b"<html>hello</html>"), "engine_answer"),
        (lambda _: (200, b"\xff\xfe"), "engine"),
        (lambda _: (200, b'{"hits": {"hits": [{"_id": "d0"}]}}'), "engine_answer"),
        (lambda _: (200, b'{"hits": {"hits": {}}}'), "engine_answer"),
        (lambda _: (200, b'{"hits": []}'), "engine_answer"),
        (lambda _: (200, b"{}"), "engine_answer"),
        (lambda _: (200, b""), "engine_answer"),
        (lambda _: (429, b'{"error": {}}'), "engine_status"),
        (lambda _: (503, b"no"), "engine_status"),
    ],
)
def test_a_broken_answer_is_replaced_by_the_engines_own(tmp_path, spoil, stage):
    with serving(engine_with(spoil)) as engine, personal_proxy(engine, tmp_path / "p") as (url, _):
        ours, own = call(url, "/i/_search", BODY, **AS_ADA), call(engine, "/i/_search", BODY)
        assert (ours.outcome["rerank"], ours.outcome["reason"]) == ("failed", stage)
        assert ours.body == own.body
        assert ours.status == own.status == 200


def test_a_missing_engine_is_reported(tmp_path):
    with personal_proxy("http://127.0.0.1:9", tmp_path / "p") as (url, _):
        ours = call(url, "/i/_search", BODY, **AS_ADA)
        assert ours.status == 502
        assert ours.json["status"] == 502
        assert ours.json["error"]["type"]


@pytest.mark.parametrize(
    "body",
    [b"{", b"[]", b'"x"', b"{}{}", b'{"query":{},"query":{}}', b'{"size": "many"}', b'{"from": -1}', b"\xff",
     b'{"ext": 3}', b'{"ext": {"ubi": 3, "bespeak": []}}', b'{"size": 1e400}', b"[" * 100_000,
     b'{"query": {"match": {"text": null}}}', b'{"query": {"bool": {"must": "coat"}}}', b'{"query": {"match": []}}'],
)  # fmt: skip
def test_a_broken_body_is_left_to_the_engine(elasticsearch_url, index, tmp_path, body):
    with personal_proxy(elasticsearch_url, tmp_path / "p") as (url, _):
        ours = call(url, f"/{index}/_search", body, **AS_ADA)
        own = call(elasticsearch_url, f"/{index}/_search", body)
        if b'"ext"' not in body:  # anything for Bespeak is removed, the rest is the engine's
            assert ours.same() == own.same()
            assert ours.status == own.status
        assert ours.status != 500
        assert "X-Bespeak" in ours.headers
