"""The requests of a personal search to the engine, and its answer if something is refused or breaks."""

import contextlib
import gzip
import json
import logging
import threading
import time
from dataclasses import dataclass, field
from datetime import UTC, datetime
from urllib.parse import quote

import pytest

from bespeak.deadline import Late
from bespeak.errors import ModelError
from bespeak.profiles.events import new_event
from bespeak.proxy.asking import MAX_ANSWER_BYTES
from bespeak.proxy.exchanges import MAX_PERSONAL_SEARCHES
from bespeak.ranking.interleaving import Comparison, Side
from bespeak.records import Rewrite, UserKey
from bespeak.settings import Settings, Weights
from bespeak.statuses import Reason, RewriteStatus
from fakes import BagEncoder, ScriptedReader
from personal_proxy import ADA, call, personal_proxy
from proxy_server import connected, exchange, read_all, request, serving, split

AS_ADA = {"X_Bespeak_User": "ada", "X_Bespeak_Session": "s"}
COAT = {"query": {"match": {"text": "coat"}}}
TEXTS = ["coat", "coat wool", "coat silk", "coat felt", "coat linen", "coat leather"]


@dataclass
class Engine:
    """Answers searches with the same six hits, and notes what it was asked."""

    asked: list = field(default_factory=list)
    forbidden: set = field(default_factory=set)  # credentials that may search an alias, and nothing by its index
    fill: int = 0  # bytes of blank beside each widened answer
    pause_s: float = 0.0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        headers = dict(scope["headers"])
        self.asked.append((scope["method"], scope["path"], scope["query_string"], headers, body))
        status, answer = self.answer(scope["path"], headers, body)
        own = [(b"content-type", b"application/json"), (b"x-elastic-product", b"Elasticsearch")]
        await send({"type": "http.response.start", "status": status, "headers": own})
        if self.fill and b'"size":6' in body:
            for _ in range(self.fill // 1_000_000 + 1):
                await send({"type": "http.response.body", "body": b" " * 1_000_000, "more_body": True})
        await send({"type": "http.response.body", "body": answer})

    def answer(self, path, headers, body):
        time.sleep(self.pause_s)
        if headers.get(b"authorization") in self.forbidden and (path.startswith("/i") or b'"ids"' in body):
            return 403, b'{"error": {}, "status": 403}'
        if path.endswith("_msearch"):
            parts = [self.one(json.loads(line)) for line in body.decode().splitlines()[1::2]]
            return 200, json.dumps({"took": 1, "responses": parts}).encode()
        if path.endswith("_search"):
            return 200, json.dumps(self.one(json.loads(body or b"{}"))).encode()
        mapping = {"mappings": {"properties": {"text": {"type": "text"}}}, "settings": {"index": {"uuid": "u"}}}
        return 200, json.dumps({"i": mapping}).encode()

    def one(self, asked):
        first, size = asked.get("from", 0), asked.get("size", 10)
        versions = {"_seq_no": 1, "_primary_term": 1} if asked.get("seq_no_primary_term") else {}
        hits = [
            {"_index": "i", "_id": f"d{n}", "_score": 9.0 - n / 10, "_source": {"text": text}, **versions}
            for n, text in enumerate(TEXTS)
        ][first : first + size]
        hits_ = {"total": {"value": len(TEXTS), "relation": "eq"}, "max_score": 9.0, "hits": hits}
        return {"took": 1, "timed_out": False, "hits": hits_, "status": 200}


@contextlib.contextmanager
def proxied(tmp_path, engine=None, window=6, rerank_ms=5000, **options):
    engine = engine or Engine()
    settings = Settings(window=window, profile_ms=5000, rerank_ms=rerank_ms)
    with serving(engine) as url, personal_proxy(url, tmp_path / "p", settings=settings, **options) as (proxy, store):
        yield engine, proxy, store


def test_the_engine_learns_nothing_about_the_user(tmp_path):
    with proxied(tmp_path) as (engine, url, _):
        body = COAT | {"ext": {"ubi": {"client_id": "ada", "user_query": "coat"}, "bespeak": {"explain": True}}}
        headers = {"Authorization": "Basic eDp5", "Cookie": "c=1", "X_Opaque_Id": "o", "X_Bespeak_Session": "s"}
        assert call(url, "/alias/_search?expand_wildcards=open", body, **headers).outcome["rerank"] == "full"
        assert len(engine.asked) >= 3
        for method, path, query, given, sent in engine.asked:
            assert b"ada" not in sent + query
            assert b"ubi" not in sent
            assert not any(name.startswith(b"x-bespeak") for name in given)
            assert given[b"authorization"] == b"Basic eDp5"
            assert given[b"cookie"] == b"c=1"
            if method == "POST":  # where the client's search went, an alias and its filter hold for ours
                assert path == "/alias/_search"
                assert b"expand_wildcards=open" in query


def test_a_client_without_rights_costs_the_others_nothing(tmp_path):
    engine = Engine(forbidden={b"Basic bad"})
    with proxied(tmp_path, engine) as (_, url, _):
        for _ in range(8):
            ours = call(url, "/alias/_search", COAT, Authorization="Basic bad", **AS_ADA)
            assert (ours.status, ours.outcome["rerank"], ours.outcome["reason"]) == (200, "failed", "embed_refused")
            assert ours.ids == [f"d{n}" for n in range(6)]
        assert call(url, "/alias/_search", COAT, Authorization="Basic good", **AS_ADA).outcome["rerank"] == "full"


def test_kept_vectors_are_asked_for_once(tmp_path):
    with proxied(tmp_path) as (engine, url, _):
        for _ in range(2):
            call(url, "/alias/_search", {"query": {"match": {"text": "hat"}}}, **AS_ADA)
        by_id = [asked for asked in engine.asked if b'"ids"' in asked[-1]]
        assert len(by_id) == 1


def test_nothing_is_recorded_without_consent_on_any_page(tmp_path):
    with proxied(tmp_path) as (_, url, store):
        before = len(list(store.export(ADA)))
        store.set_consent(ADA, False)
        for offset in (0, 2, 4):
            page = call(url, "/i/_search", COAT | {"from": offset, "size": 2}, **AS_ADA)
            assert page.outcome["reason"] == "refused"
    assert len(list(store.export(ADA))) == before


def test_later_pages_say_what_the_first_one_lacked(tmp_path):
    with proxied(tmp_path, encoder="none") as (_, url, _):
        pages = [call(url, "/i/_search", COAT | {"from": n, "size": 2}, **AS_ADA) for n in (0, 2, 4)]
    assert {(page.outcome["rerank"], page.outcome["reason"]) for page in pages} == {("partial", "no_encoder")}
    assert sorted(doc_id for page in pages for doc_id in page.ids) == [f"d{n}" for n in range(6)]


def test_a_user_is_known_in_one_tenant_only(tmp_path):
    with proxied(tmp_path) as (_, url, _):
        assert call(url, "/i/_search", COAT, **AS_ADA).outcome["rerank"] == "full"
        for tenant in ("t", "ada"):
            other = call(url, "/i/_search", COAT, X_Bespeak_Tenant=tenant, **AS_ADA)
            assert other.outcome["reason"] == "stranger"
            assert other.ids == [f"d{n}" for n in range(6)]


def test_the_first_of_many_searches_are_personalised(tmp_path):
    n = MAX_PERSONAL_SEARCHES + 15
    lines = "".join(f"{{}}\n{json.dumps({'query': {'match': {'text': f'coat {n}'}}})}\n" for n in range(n)).encode()
    with proxied(tmp_path) as (_, url, _):
        ours = call(url, "/i/_msearch", lines, Content_Type="application/x-ndjson", **AS_ADA)
    told = ours.headers["X-Bespeak"].split(", ")
    assert len(ours.json["responses"]) == n
    assert ["rerank=full" in one for one in told] == [True] * MAX_PERSONAL_SEARCHES + [False]
    assert told[-1].endswith("reason=too_many_searches")
    plain = [hit["_id"] for hit in ours.json["responses"][-1]["hits"]["hits"]]
    assert plain == [f"d{n}" for n in range(6)]
    assert [hit["_id"] for hit in ours.json["responses"][0]["hits"]["hits"]] != plain


def test_searches_of_one_request_wait_together(tmp_path):
    """Each may take its whole budget, but not one after the other."""

    class Slow:
        name, version = "slow", "1"

        def rewrite(self, query, profile, budget_ms=None):
            time.sleep(min(budget_ms or 9000, 9000) / 1000)
            raise TimeoutError

        def forget(self, user):
            pass

    lines = "".join(f"{{}}\n{json.dumps({'query': {'match': {'text': f'coat {n}'}}})}\n" for n in range(12)).encode()
    settings = Settings(window=6, rewrite_ms=300, profile_ms=5000, rerank_ms=5000)
    with serving(Engine()) as engine, personal_proxy(engine, tmp_path / "p", rewriter=Slow(), settings=settings,
                                                     model_runs=1) as (url, _):  # fmt: skip
        ours = call(url, "/i/_msearch", lines, Content_Type="application/x-ndjson", **AS_ADA)
        statuses = [one.split(";")[0] for one in ours.headers["X-Bespeak"].split(", ")]
        assert 'stage="rewrite"} 0.0' in call(url, "/_bespeak/metrics").body.decode()
    # One could run in the budget that all share; the others found no free run in it, which is no fault of theirs.
    assert statuses.count("rewrite=late") >= 11


def test_a_body_in_the_url_passes_without_what_is_for_bespeak(tmp_path):
    body = quote(json.dumps(COAT | {"sort": ["n"], "ext": {"ubi": {"client_id": "ada"}}}))
    with proxied(tmp_path) as (engine, url, _):
        ours = call(url, f"/i/_search?source={body}&pretty&source_content_type=application/json")
        assert ours.outcome["reason"] == "sort"
        _, _, query, _, sent = engine.asked[-1]
    assert query == b"pretty"
    assert json.loads(sent) == COAT | {"sort": ["n"]}


def test_an_asynchronous_search_passes_without_what_is_for_bespeak(tmp_path):
    with proxied(tmp_path) as (engine, url, _):
        ours = call(url, "/i/_async_search", COAT | {"ext": {"ubi": {"client_id": "ada"}}})
        assert ours.outcome["reason"] == "async_search"
        assert json.loads(engine.asked[-1][-1]) == COAT
        body = json.dumps(COAT | {"ext": {"other": {}}}).encode()
        assert "X-Bespeak" not in call(url, "/i/_async_search", body).headers
        assert engine.asked[-1][-1] == body


def test_a_text_that_nobody_typed_costs_no_model_run(tmp_path):
    with proxied(tmp_path) as (_, url, _):
        ours = call(url, "/i/_search", {"query": {"match": {"text": "coat " * 3000}}}, **AS_ADA)
        assert ours.outcome["reason"] == "too_long"
        assert ours.ids == [f"d{n}" for n in range(6)]


@pytest.mark.parametrize("body", [gzip.compress(b"{}") + gzip.compress(b" "), b"\x1f\x8b broken", bytes(10)])
def test_a_packed_body_that_cannot_be_read_passes_as_it_came(tmp_path, body):
    with proxied(tmp_path) as (engine, url, _):
        with contextlib.suppress(Exception):  # the engine of this test cannot read it either
            call(url, "/i/_search", body, Content_Encoding="gzip", **AS_ADA)
        assert engine.asked[-1][-1] == body
        assert engine.asked[-1][3][b"content-encoding"] == b"gzip"


def test_a_body_without_a_content_type_is_left_for_the_engine_to_refuse(tmp_path):
    body = json.dumps(COAT).encode()
    with proxied(tmp_path) as (engine, url, _):
        exchange(url, request(b"/i/_search", b"POST", [b"X-Bespeak-User: ada", b"X-Bespeak-Session: s"], body))
        assert all(b"content-type" not in asked[3] for asked in engine.asked if b"match" in asked[-1][:12])


def test_a_client_may_wait_to_be_asked_for_the_body(tmp_path):
    body = json.dumps(COAT).encode()
    headers = [b"Content-Type: application/json", b"X-Bespeak-User: ada", b"X-Bespeak-Session: s",
               b"Expect: 100-continue"]  # fmt: skip
    whole = request(b"/i/_search", b"POST", headers, body)
    head, _, _ = whole.partition(b"\r\n\r\n")
    with proxied(tmp_path) as (_, url, _), connected(url) as client:
        client.sendall(head + b"\r\n\r\n")
        assert client.recv(1000).startswith(b"HTTP/1.1 100")
        client.sendall(body)
        status, told, answer = split(read_all(client))
    assert status.startswith(b"HTTP/1.1 200")
    assert any(line.startswith(b"X-Bespeak: ") and b"rerank=full" in line for line in told)
    assert len(json.loads(answer)["hits"]["hits"]) == 6


def test_an_answer_that_is_too_long_to_read_passes(tmp_path):
    with proxied(tmp_path, Engine(fill=MAX_ANSWER_BYTES)) as (_, url, _):
        ours = call(url, "/i/_search", COAT | {"size": 3}, **AS_ADA)
        assert (ours.outcome["rerank"], ours.outcome["reason"]) == ("failed", "engine")
        assert ours.ids == ["d0", "d1", "d2"]
        assert call(url, "/_bespeak/health/live").status == 200


def test_a_client_that_goes_away_is_no_fault(tmp_path, caplog):
    class Slow(BagEncoder):
        def encode(self, texts, kind="document"):
            time.sleep(0.4 if kind == "query" else 0)
            return super().encode(texts, kind)

    body = json.dumps(COAT).encode()
    headers = [b"Content-Type: application/json", b"X-Bespeak-User: ada", b"X-Bespeak-Session: s"]
    with proxied(tmp_path, encoder=Slow()) as (_, url, _), caplog.at_level(logging.WARNING):
        for n in range(7):
            with connected(url) as client:
                client.sendall(request(b"/i/_search?n=%d" % n, b"POST", headers, body))
                time.sleep(0.15)
        assert not caplog.records
        time.sleep(0.5)
        assert call(url, "/i/_search", COAT, **AS_ADA).outcome["rerank"] == "full"
        assert 'stage="rerank"} 0.0' in call(url, "/_bespeak/metrics").body.decode()
    assert not caplog.records


@pytest.mark.parametrize("query_id", ["a\r\nX-Evil: 1", "a; rerank=full", "ä", "x" * 101, "", 7, None, ["q"]])
def test_a_clients_query_id_cannot_write_a_header(tmp_path, query_id):
    body = COAT | {"ext": {"ubi": {"client_id": "ada", "query_id": query_id}}}
    with proxied(tmp_path) as (_, url, _):
        ours = call(url, "/i/_search", body, X_Bespeak_Session="s")
    assert "X-Evil" not in ours.headers
    assert len(ours.outcome["query_id"]) == 32
    assert ours.outcome["rerank"] == "full"


# What an explanation says.

BEA = UserKey("", "bea")
LIKED = [("d2", "silk", 40), ("d3", "felt", 3), ("d4", "linen", 20)]


def explained(tmp_path, left_out, name):
    """The explanation of each hit, for a user who liked all but one of these."""
    with proxied(tmp_path / name) as (_, url, store):
        events = [
            new_event(BEA, "purchase", datetime(2026, 1, 1 + days % 28, tzinfo=UTC), doc_id=doc_id, title=title)
            for doc_id, title, days in LIKED
        ]
        store.add([event for event in events if event.doc_id != left_out])
        body = COAT | {"ext": {"bespeak": {"explain": True}}}
        ours = call(url, "/i/_search", body, X_Bespeak_User="bea", X_Bespeak_Session="s")
        assert ours.outcome["rerank"] == "full"
        return {hit["_id"]: hit for hit in ours.json["bespeak"]["hits"]}, {e.doc_id: e.event_id for e in events}


def test_an_explanation_matches_the_computation(tmp_path):
    for name in ("all", "d2", "d3", "d4"):
        (tmp_path / name).mkdir()
    told, event_ids = explained(tmp_path, "", "all")
    weights = Settings().weights.as_tuple()
    for hit in told.values():
        scores = [hit["scores"][name] for name in ("lexical", "embedding", "user")]
        mixed = sum(w * s for w, s in zip(weights, scores, strict=True)) / sum(weights)
        assert hit["score"] == pytest.approx(mixed, abs=1e-5)
        assert hit["because"] == sorted(hit["because"], key=lambda because: -because["share"])
    for doc_id, event_id in event_ids.items():
        without, _ = explained(tmp_path, doc_id, doc_id)
        shares = {because["event_id"]: because["share"] for because in told[doc_id]["because"]}
        assert shares[event_id] > 0
        assert without[doc_id]["score"] < told[doc_id]["score"]
        assert event_id not in {because["event_id"] for hit in without.values() for because in hit["because"]}


@pytest.mark.parametrize("split", [False, True])
def test_compared_sides_share_pages_that_fit_and_say_who_placed_each_hit(tmp_path, split):
    sides = (Side("engine"), Side("words", Settings(Weights(1.0, 0.0, 0.0), window=6)))
    with proxied(tmp_path, comparison=Comparison(sides, split)) as (_, url, store):
        pages = [call(url, "/i/_search", COAT | {"from": n, "size": 3}, **AS_ADA) for n in (0, 3)]
        assert sorted(pages[0].ids + pages[1].ids) == [f"d{n}" for n in range(6)]
        query_id = pages[0].outcome["query_id"]
        end = time.monotonic() + 10
        while time.monotonic() < end:
            shown = [e for e in store.export(ADA) if e.action == "impression" and e.query_id == query_id]
            if len(shown) == 6:
                break
            time.sleep(0.05)
    noted = {e.doc_id: e.attributes["event_attributes"]["bespeak"] for e in shown}
    assert {one["compared"] for one in noted.values()} == {"engine|words" if split else "engine:words"}
    placed = [noted[doc_id]["side"] for doc_id in pages[0].ids + pages[1].ids]
    assert len(set(placed)) == (1 if split else 2)
    assert split or sorted(placed) == ["engine"] * 3 + ["words"] * 3


# What a query leans on. Bea searched for silk scarfs in this session and liked nothing; Ada liked linen too.

AS_BEA = {"X_Bespeak_User": "bea", "X_Bespeak_Session": "s"}


@contextlib.contextmanager
def reading_sessions(tmp_path, reader, **options):
    """Two functions, of which one sends a search through the proxy and one past it; the engine and the store."""
    with proxied(tmp_path, context=reader, **options) as (engine, url, store), serving(engine) as engine_url:
        now = datetime.now(UTC)
        store.add([new_event(BEA, "query", now, session_id="s", query_id="q1", text="silk scarf")])

        def ask(text="coat", offset=0, size=3, **whose):
            body = {"query": {"match": {"text": text}}, "from": offset, "size": size}
            return call(url, "/i/_search", body, **(whose or AS_BEA)), call(engine_url, "/i/_search", body)

        yield ask, engine, store


def recorded(store, query_id, n_events):
    """The events of a search, which are written after its answer."""
    end = time.monotonic() + 10
    while time.monotonic() < end:
        if len(found := [e for e in store.export(BEA) if e.query_id == query_id]) >= n_events:
            break
        time.sleep(0.05)
    return found


def test_a_query_that_stands_alone_gets_the_engines_answer_and_is_recorded(tmp_path):
    reader = ScriptedReader({})
    with reading_sessions(tmp_path, reader) as (ask, engine, store):
        (first, own_first), (second, own_second) = ask(), ask(offset=3)
        bodies = [asked[-1] for asked in engine.asked]
        events = recorded(store, first.outcome["query_id"], 7)
    assert (first.body, second.body) == (own_first.body, own_second.body)
    assert bodies[0::2] == bodies[1::2]  # nothing else was asked, and nothing was added
    for page in (first, second):
        told = {name: page.outcome[name] for name in ("rewrite", "rerank", "reason")}
        assert told == {"rewrite": "gated", "rerank": "off", "reason": "stands_alone"}
    assert first.outcome["query_id"] == second.outcome["query_id"]
    assert [event.text for event in events if event.action == "query"] == ["coat"]
    assert sorted(event.doc_id for event in events if event.action == "impression") == first.ids + second.ids
    assert reader.asked == ["coat"]


def test_a_query_that_stands_alone_is_still_ranked_by_what_the_user_liked(tmp_path):
    with reading_sessions(tmp_path, ScriptedReader({})) as (ask, engine, _):
        ours, own = ask(size=6, **AS_ADA)
        assert not any(b"silk" in asked[-1] for asked in engine.asked)  # of her session
    told = {name: ours.outcome[name] for name in ("rewrite", "rerank", "reason")}
    assert told == {"rewrite": "gated", "rerank": "full", "reason": "stands_alone"}
    assert sorted(ours.ids) == sorted(own.ids)
    assert ours.ids.index("d4") < own.ids.index("d4")  # linen


def test_a_query_that_leans_on_the_session_is_searched_with_its_words(tmp_path):
    with reading_sessions(tmp_path, ScriptedReader({"coat": ["silk"]})) as (ask, engine, _):
        ours, own = ask(size=6)
        assert any(b"silk" in asked[-1] for asked in engine.asked)
    assert (ours.outcome["rewrite"], ours.outcome["rerank"]) == ("full", "full")
    assert "reason" not in ours.outcome
    assert ours.ids.index("d2") < own.ids.index("d2")  # silk


@pytest.mark.parametrize(
    ("text", "whose", "reason"),
    [
        ('"coat"', AS_ADA, "quoted"),
        ("coat " * 61, AS_ADA, "too_long"),
        ("coat AND hat", AS_ADA, "operators"),
        ("coat", {"X_Bespeak_User": "nobody"}, "stranger"),
    ],
)
def test_a_session_is_not_read_for_a_query_that_leans_on_none(tmp_path, text, whose, reason):
    reader = ScriptedReader({})
    with reading_sessions(tmp_path, reader) as (ask, _, _):
        assert ask(text, **whose)[0].outcome["reason"] == reason
    assert reader.asked == []


def test_a_control_users_session_is_not_read(tmp_path):
    reader = ScriptedReader({})
    with reading_sessions(tmp_path, reader, share=0.0) as (ask, _, _):
        assert ask()[0].outcome["reason"] == "control"
    assert reader.asked == []


class FaultyReader(ScriptedReader):
    def __init__(self, error):
        super().__init__({"coat": ["silk"]})
        self.error = error

    def read(self, query, profile):
        super().read(query, profile)
        raise self.error


@pytest.mark.parametrize(
    ("error", "reason"),
    [(ModelError("damaged"), "encode"), (MemoryError(), "encode"), (ValueError(), "encode"), (Late(), "encode_late")],
)
def test_a_reader_that_fails_or_is_late_leaves_the_engines_answer(tmp_path, caplog, error, reason):
    with reading_sessions(tmp_path, FaultyReader(error)) as (ask, _, _):
        for offset, rerank in ((0, "failed"), (3, "off")):
            ours, own = ask(offset=offset)
            assert ours.body == own.body
            assert (ours.outcome["rerank"], ours.outcome["reason"]) == (rerank, reason)
    assert "coat" not in caplog.text


def test_a_hanging_reader_costs_only_the_budget(tmp_path):
    released = threading.Event()

    class Hanging(ScriptedReader):
        def read(self, query, profile):
            released.wait(30)
            return super().read(query, profile)

    with reading_sessions(tmp_path, Hanging({"coat": ["silk"]}), rerank_ms=150) as (ask, _, _):
        ours, own = ask()
        assert ours.body == own.body
        assert (ours.outcome["rerank"], ours.outcome["reason"]) == ("failed", "encode_late")
        released.set()


def test_a_reader_that_keeps_failing_rests_for_a_while(tmp_path):
    reader = FaultyReader(MemoryError())
    with reading_sessions(tmp_path, reader) as (ask, _, _):
        reasons = [ask()[0].outcome["reason"] for _ in range(7)]
    assert reasons == ["encode"] * 5 + ["encode_resting"] * 2
    assert len(reader.asked) == 5


def test_a_reader_that_works_does_not_keep_a_failing_encoder_from_resting(tmp_path):
    class Faulty(BagEncoder):
        def encode(self, texts, kind="document"):
            if kind == "query":
                raise MemoryError
            return super().encode(texts, kind)

    with reading_sessions(tmp_path, ScriptedReader({"coat": ["silk"]}), encoder=Faulty()) as (ask, _, _):
        reasons = [ask()[0].outcome["reason"] for _ in range(7)]
    assert reasons == ["encode"] * 5 + ["encode_resting"] * 2


@pytest.mark.parametrize(
    ("reader", "status", "said"),
    [
        (ScriptedReader({}), 200, {"text": "coat", "status": "gated", "reason": "stands_alone"}),
        (ScriptedReader({"coat": ["silk"]}), 200, {"text": "silk coat", "status": "full", "reason": ""}),
        (FaultyReader(ModelError("damaged")), 503, {"status": 503}),
    ],
    ids=["alone", "leaning", "faulty"],
)
def test_the_session_is_read_for_a_rewrite_without_a_search_too(tmp_path, reader, status, said):
    with proxied(tmp_path, context=reader) as (_, url, _):
        reply = call(url, "/_bespeak/rewrite", {"query": "coat", "user": "ada", "session": "s"})
    assert reply.status == status
    assert reply.json | said == reply.json


def test_unusable_rewrites_are_no_faults(tmp_path):
    class Unusable:
        name, version = "unusable", "1"

        def rewrite(self, query, profile, budget_ms=None):
            return Rewrite(query, query, status=RewriteStatus.UNUSABLE, reason=Reason.STRAINED, model="unusable 1")

        def warm(self, profile):
            pass

        def forget(self, user):
            pass

    explained = COAT | {"ext": {"bespeak": {"explain": True}}}
    with proxied(tmp_path, rewriter=Unusable()) as (_, url, _):
        pages = [call(url, "/i/_search", explained | {"size": 1 + n}, **AS_ADA) for n in range(6)]
        metrics = call(url, "/_bespeak/metrics").body.decode()
    assert {(page.outcome["rewrite"], page.outcome["rerank"]) for page in pages} == {("unusable", "full")}
    assert {page.json["bespeak"]["rewrite"]["reason"] for page in pages} == {"strained"}
    assert 'bespeak_breaker_open{stage="rewrite"} 0.0' in metrics
    assert 'bespeak_rewrites_total{reason="strained",status="unusable"} 6.0' in metrics
