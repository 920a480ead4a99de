"""One path for every query: our own search, the proxy in both modes and evaluation agree on the rewrite, the order, the
statuses and the evidence."""

from __future__ import annotations

import contextlib
import json
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import bespeak
from bespeak.engines.elastic import ElasticsearchEngine
from bespeak.errors import ModelError
from bespeak.evaluation.memory import make_readings, rank_topics
from bespeak.evaluation.systems import rank_topic, read_topic
from bespeak.evaluation.topics import Collection, Topic
from bespeak.parts import Models, Parts, open_parts
from bespeak.pipeline import search
from bespeak.profiles.events import new_event
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.proxy import Upstream
from bespeak.proxy.assembly import ProxyOptions, assemble
from bespeak.ranking.behaviour import gather
from bespeak.ranking.interleaving import Comparison, Side
from bespeak.ranking.learning import LearntFolder, learn, learnt_path, write_learnt
from bespeak.records import Document, Request, Term, UserKey
from bespeak.settings import Settings, Weights
from bespeak.statuses import RerankStatus
from bespeak_cli import cli
from elasticsearch_node import new_index_name
from fakes import ADA, BagEncoder, ScriptedReader, ScriptedRewriter
from personal_proxy import call
from proxy_server import serving

pytestmark = pytest.mark.elasticsearch

STUFFS = ("wool", "silk", "felt", "linen", "hemp")
COLOURS = ("red", "blue", "green", "black", "white", "grey", "brown")
N_DOCS = 60
NOW = datetime.now(UTC)
CALM = Settings(rewrite_ms=60_000, rerank_ms=60_000, profile_ms=60_000)
TERM = Term("silk", "turn", "an event", "silk scarf")
REWRITER = ScriptedRewriter({"coat for winter": "silk coat for winter", "coat": "silk coat"}, [TERM])


def texts():
    """Every document holds the word that every query asks for, so that all faces retrieve the same documents."""
    draw = np.random.default_rng(5)
    return {
        f"d{n}": " ".join(["coat", STUFFS[n % 5], COLOURS[n % 7], f"number{n}", *draw.choice(STUFFS, n % 4)])
        for n in range(N_DOCS)
    }


class BrokenEncoder(BagEncoder):
    def encode(self, texts, kind="document"):
        if kind == "query":
            raise ModelError("the encoder is out of memory")
        return super().encode(texts, kind)


class BrokenReader(ScriptedReader):
    def read(self, query, profile):
        raise ModelError("the reader is out of memory")


def turn(query, *answers, minutes=5, query_id="q1"):
    asked = new_event(ADA, "query", NOW - timedelta(minutes=minutes), session_id="s", query_id=query_id, text=query)
    return [asked, *(new_event(ADA, "answer", NOW - timedelta(minutes=minutes - 1), session_id="s", query_id=query_id,
                              text=answer) for answer in answers)]  # fmt: skip


SESSION = turn("silk scarf", "silk is light")
SAID = [new_event(ADA, "statement", NOW - timedelta(hours=1), text="I love felt and blue.")]
LIKED = [new_event(ADA, "click", NOW - timedelta(minutes=n), doc_id=f"d{n}", title=f"number{n}") for n in (4, 11)]


@dataclass(frozen=True)
class Case:
    events: list[Any]
    query: str = "coat for winter"
    parts: Parts = field(default_factory=lambda: Parts(CALM, REWRITER, BagEncoder()))
    rerank: str = "full"
    rewritten: bool = True
    learns: bool = False


def crowd():
    """Events of users with two tastes."""
    draw = np.random.default_rng(3)
    halves = np.split(draw.permutation(N_DOCS), 2)
    return [
        new_event(UserKey("", f"u{user}"), "purchase", NOW - timedelta(hours=hours), doc_id=f"d{n}", title=f"number{n}")
        for user in range(200)
        for hours, n in enumerate(draw.choice(halves[user % 2], 12, replace=False), 1)
    ]


PARTS = Parts(CALM, REWRITER, BagEncoder())
LEANS = {"is the coat light?": ["silk", "scarf"], "coat for me": ["felt", "blue"], "coat for winter": ["silk"]}
READING = replace(PARTS, context=ScriptedReader(LEANS))
CASES = {
    "a session": Case([*SESSION, *SAID, *LIKED]),
    "no encoder": Case([*SESSION, *LIKED], parts=replace(PARTS, encoder=None), rerank="partial"),
    "a broken encoder": Case([*SESSION, *LIKED], parts=replace(PARTS, encoder=BrokenEncoder()), rerank="failed"),
    "a reader": Case([*SESSION, *SAID, *LIKED], query="is the coat light?", parts=READING, rewritten=False),
    "a reader and a rewrite": Case([*SESSION, *SAID], parts=READING),
    "a reader of statements": Case([*SESSION, *SAID], query="coat for me", parts=READING, rewritten=False),
    "a reader for another encoder": Case(
        [*SESSION, *SAID, *LIKED],
        query="is the coat light?",
        parts=replace(PARTS, context=ScriptedReader(LEANS, BagEncoder(name="other"))),
        rewritten=False,
    ),
    "a reader without an encoder": Case(
        SESSION,
        query="is the coat light?",
        parts=replace(READING, encoder=None),
        rerank="partial",
        rewritten=False,
    ),
    "a query that stands alone": Case([*SESSION, *SAID], query="coat", parts=READING, rerank="off", rewritten=False),
    "standing alone, something liked": Case([*SESSION, *LIKED], query="coat", parts=READING, rewritten=False),
    "a broken reader": Case(
        [*SESSION, *LIKED], parts=replace(PARTS, context=BrokenReader({})), rerank="failed", rewritten=False
    ),
    "something learnt": Case([*SESSION, *LIKED], query="coat", learns=True),
    "a repeated query": Case([*SESSION, *LIKED, *turn("coat for winter", "a red one", minutes=2, query_id="q2")]),
    "no session": Case(LIKED, rewritten=False),
    "statements only": Case(SAID),
    "quoted": Case([*SESSION, *LIKED], query='"coat for winter"', rerank="off", rewritten=False),
    "a stranger": Case([], rerank="off", rewritten=False),
}


@pytest.fixture(scope="module")
def index(elasticsearch_url):
    name, encoder = new_index_name(), BagEncoder()
    engine = ElasticsearchEngine(elasticsearch_url)
    engine.create(name, ("text",), encoder.dim, encoder.name)
    vectors = encoder.encode(list(texts().values()))
    documents = [Document(d, {"text": t}, v) for (d, t), v in zip(texts().items(), vectors, strict=True)]
    assert engine.load(name, documents) == []
    engine.refresh(name)
    engine.close()
    return name


@dataclass(frozen=True)
class Seen:
    """One page as a face shows it."""

    rewrite: tuple[str, str, str]
    rerank: str
    reason: str
    ids: list[str]
    evidence: list[list[tuple[str, str, str]]]
    unranked: list[str] = field(default_factory=list)  # the engine's own order


class Faces:
    """All faces over one store and the same parts."""

    def __init__(self, url, index, folder, case):
        self.url, self.index, self.case, self.folder = url, index, case, folder
        self.parts = case.parts
        if case.learns:
            write_learnt(learnt_path(folder, ""), learn(gather(crowd())[""]))
            self.parts = replace(self.parts, learnt=LearntFolder(folder))

    def store(self, name):
        """Gives each face its own store, since the proxy records queries."""
        store = SqliteStore(self.folder / f"{name}.db")
        store.add(self.case.events)
        return store

    def search(self, mode="recall", offset=0, size=N_DOCS):
        parts = replace(self.parts, settings=replace(self.parts.settings, mode=mode))
        engine = ElasticsearchEngine(self.url)
        with contextlib.closing(engine), contextlib.closing(self.store(f"search-{mode}-{offset}")) as store:
            request = Request(self.case.query, self.index, ADA, "s", offset, size)
            result = search(engine, store, request, parts)
        rewrite = result.rewrite
        evidence = [[(e.column, e.text, e.event_id) for e in ranked.evidence] for ranked in result.page]
        ids = [ranked.hit.doc_id for ranked in result.page]
        own = [hit.doc_id for hit in result.hits.hits]
        return Seen((rewrite.text, rewrite.status, rewrite.reason), result.rerank, result.reason, ids, evidence, own)

    @contextlib.contextmanager
    def proxy(self, **options):
        app = assemble(
            Upstream([self.url]), self.store("proxy"), self.parts, self.folder / "vectors.db", ProxyOptions(**options)
        )
        with serving(app) as url:
            yield url

    def ask(self, url, mode="boost", offset=0, size=N_DOCS, **ours):
        body = {
            "query": {"match": {"text": self.case.query}}, "from": offset, "size": size,
        }  # fmt: skip
        if url != self.url:
            body["ext"] = {"bespeak": {"mode": mode, **ours}}
        return call(url, f"/{self.index}/_search", body, X_Bespeak_User=ADA.user_id, X_Bespeak_Session="s")

    def served(self, url, mode="boost", offset=0, size=N_DOCS):
        reply = self.ask(url, mode, offset, size, explain=True)
        told = reply.outcome
        ours = reply.json.get("bespeak")
        if ours is None:
            return Seen((self.case.query, told.get("rewrite", ""), ""), told["rerank"], told["reason"], reply.ids, [])
        rewrite = ours["rewrite"]
        evidence = [[(e["column"], e["text"], e["event_id"]) for e in hit.get("because", [])] for hit in ours["hits"]]
        reason = "" if ours["reason"] == rewrite["reason"] else ours["reason"]
        return Seen(
            (rewrite["text"], rewrite["status"], rewrite["reason"]), ours["rerank"], reason, reply.ids, evidence
        )


@pytest.fixture(params=CASES.values(), ids=CASES)
def faces(request, elasticsearch_url, index, tmp_path):
    return Faces(elasticsearch_url, index, tmp_path, request.param)


def test_search_and_both_modes_of_the_proxy_agree(faces):
    expected = {mode: faces.search(mode) for mode in ("boost", "recall")}
    with faces.proxy() as url:
        served = {mode: faces.served(url, mode) for mode in ("boost", "recall")}
    for mode, seen in served.items():
        own = expected[mode]
        assert seen.rerank == own.rerank == faces.case.rerank, mode
        assert seen.reason == own.reason, mode
        if own.rerank in ("full", "partial"):
            assert seen.ids == own.ids, mode
            assert seen.rewrite == own.rewrite, mode
            assert seen.evidence == own.evidence, mode
            assert any(own.evidence)
        else:  # each engine's own order, even if scores are equal
            assert seen.ids == faces.ask(faces.url).ids
            assert own.ids == own.unranked
            assert sorted(seen.ids) == sorted(own.ids)
    assert (expected["boost"].rewrite[0] != faces.case.query) == faces.case.rewritten
    assert (expected["boost"].ids == expected["boost"].unranked) == (faces.case.rerank in ("off", "failed"))


@pytest.mark.parametrize("size", [7, 20])
def test_pages_of_every_face_follow_one_another(elasticsearch_url, index, tmp_path, size):
    faces = Faces(elasticsearch_url, index, tmp_path, CASES["a session"])
    whole = faces.search("boost").ids
    offsets = range(0, N_DOCS, size)
    assert [doc_id for offset in offsets for doc_id in faces.search("boost", offset, size).ids] == whole
    with faces.proxy() as url:
        assert [doc_id for offset in offsets for doc_id in faces.served(url, "boost", offset, size).ids] == whole


def test_evaluation_ranks_as_search_does(elasticsearch_url, index, tmp_path):
    """Without preferences, since topics have none; with both engines of evaluation."""
    case = Case([*SAID, *SESSION], parts=READING)
    expected = Faces(elasticsearch_url, index, tmp_path, case).search("recall")
    topic = Topic("t", case.query, ("I love felt and blue.",), (("silk scarf", "silk is light"),))
    documents = tuple(Document(doc_id, {"text": text}) for doc_id, text in texts().items())
    collection = Collection("coats", documents, ("text",), (topic,), {"t": {"d1": 1}})
    engine = ElasticsearchEngine(elasticsearch_url)
    with contextlib.closing(engine):
        asked = read_topic("rewrite", topic, index, case.parts)
        found = rank_topic("hybrid", asked, engine, collection, None)
    assert (asked.reading.rewrite.text, asked.reading.rewrite.status) == expected.rewrite[:2]
    assert found == expected.ids
    assert rank_topics(make_readings(collection, case.parts), CALM)["hybrid"] == [expected.ids]


def test_each_side_of_a_comparison_ranks_as_search_does(elasticsearch_url, index, tmp_path):
    words, vectors = (replace(CALM, weights=weights) for weights in (Weights(1, 0.01, 0), Weights(0.01, 1, 1)))
    comparison = Comparison((Side("words", words), Side("vectors", vectors)))
    faces = Faces(elasticsearch_url, index, tmp_path, CASES["a session"])
    expected = {}
    for side in comparison.sides:
        own = replace(faces.case, parts=replace(faces.parts, settings=side.settings))
        folder = tmp_path / side.name
        folder.mkdir()
        expected[side.name] = Faces(elasticsearch_url, index, folder, own).search("boost").ids
    assert expected["words"] != expected["vectors"]
    with faces.proxy(comparison=comparison) as url:
        reply = faces.ask(url)
        assert reply.outcome["rerank"] == RerankStatus.FULL
        exported = call(url, "/_bespeak/profile/ada").body.decode().splitlines()
    events = [event for event in map(json.loads, exported) if event.get("action_name") == "impression"]
    noted = [event["event_attributes"] for event in events]
    sides = {attributes["object"]["object_id"]: attributes["bespeak"]["side"] for attributes in noted}
    picked = []
    for doc_id in reply.ids:
        assert doc_id == next(d for d in expected[sides[doc_id]] if d not in picked)
        picked.append(doc_id)
    assert set(sides.values()) == {"words", "vectors"}


def test_the_commands_and_the_library_agree_with_the_proxy(elasticsearch_url, tmp_path):
    """With the shipped encoder and reader, and the last turn's words as the rewriter."""
    query = "what about a coat of it?"
    index, models = new_index_name(), Models(tmp_path / "cache", "last-turn")
    options = ["--elasticsearch", elasticsearch_url]
    file = tmp_path / "coats.jsonl"
    file.write_text("".join(json.dumps({"_id": d, "text": t}) + "\n" for d, t in texts().items()))

    def run(*arguments):
        done = CliRunner().invoke(cli, ["--data-dir", str(tmp_path / "data"), *arguments])
        assert done.exit_code == 0, done.output
        return done.stdout

    run("index", str(file), "--to", index, *options)
    run("remember", "I love felt and blue.", "--user", "ada")
    asked = ["--index", index, "--user", "ada", "--session", "s", "--rewriter", "last-turn", *options]
    run("search", "silk scarf", *asked)
    command = json.loads(run("search", query, *asked, "--format", "json", "--size", str(N_DOCS)))
    again = json.loads(run("search", query, *asked, "--format", "json", "--size", str(N_DOCS)))
    with bespeak.open(tmp_path / "data", elasticsearch=elasticsearch_url, rewriter="last-turn") as library:
        found = library.search(query, index=index, user="ada", session="s", size=N_DOCS)
        rewrite = library.rewrite(query, user="ada", session="s")
        store = SqliteStore(tmp_path / "data" / "bespeak.db")
        parts = open_parts(models, CALM, rewrites=store)
        app = assemble(Upstream([elasticsearch_url]), store, parts, tmp_path / "vectors.db")
        with serving(app) as url:
            body = {"query": {"match": {"text": query}}, "size": N_DOCS,
                    "ext": {"bespeak": {"mode": "recall", "explain": True}}}  # fmt: skip
            served = call(url, f"/{index}/_search", body, X_Bespeak_User="ada", X_Bespeak_Session="s")
            asked = {"query": query, "user": "ada", "session": "s"}
            alone = call(url, "/_bespeak/rewrite", asked).json
    ours = served.json["bespeak"]
    ids = [hit["doc_id"] for hit in command["hits"]]
    assert ids == [hit["doc_id"] for hit in again["hits"]] == [one.hit.doc_id for one in found.page] == served.ids
    assert command["rerank"] == found.rerank == ours["rerank"] == "full"
    texts_found = {command["rewrite"]["text"], found.rewrite.text, rewrite.text, ours["rewrite"]["text"], alone["text"]}
    assert texts_found == {f"{query} silk scarf"}
    evidence = [[(e["column"], e["text"], e["event_id"]) for e in hit["evidence"]] for hit in command["hits"]]
    assert any(evidence)
    assert evidence == [[(e["column"], e["text"], e["event_id"]) for e in hit["because"]] for hit in ours["hits"]]
