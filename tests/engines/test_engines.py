"""The contract of every engine, then the errors of each."""

from __future__ import annotations

import json
import math
import os
import shutil
import socket
from contextlib import suppress
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from answering import HTML, PRODUCT, answering
from bespeak.engines import MAX_WORDS, IndexInfo, check_index_name, shorten
from bespeak.engines.cluster import read_url
from bespeak.engines.elastic import ElasticsearchEngine
from bespeak.engines.embedded import EmbeddedEngine
from bespeak.errors import EngineRefused, EngineUnreachable, IndexMissing, UsageError
from bespeak.records import Clause, Document, EngineQuery
from elasticsearch_node import PREFIX, new_index_name
from fakes import BagEncoder

ENCODER = BagEncoder(16)
FIELDS = ("title", "text")


def document(doc_id, text, title=None, **more):
    source = {"text": text} | ({"title": title} if title else {}) | more
    return Document(doc_id, source, ENCODER.encode([f"{title or ''} {text}"])[0])


DOCUMENTS = [
    document("d1", "The hotel has clean rooms and a quiet garden", "Garden hotel", kind="hotel", stars=4),
    document("d2", "A restaurant with a garden", kind="restaurant", open=True),
    document("d3", "Rooms, rooms and more rooms; the rooms are cleaned daily", "Rooms", kind="hotel"),
    document("d4", "A museum of trains", kind="museum", place={"town": "Bonn"}),
    document("d5", "A museum of trains", kind="museum", tags=["trains", "steam"]),
    document("d6", "An empty street", kind="street"),
]


def ask(engine, index, *required, **more):
    return engine.search(EngineQuery(index, tuple(map(Clause, required)), **more))


def ids(hits):
    return [hit.doc_id for hit in hits.hits]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory):
    engine = EmbeddedEngine(tmp_path_factory.mktemp("engine") / "indices")
    yield engine
    engine.close()


@pytest.fixture
def own_embedded(tmp_path):
    engine = EmbeddedEngine(tmp_path / "indices")
    yield engine
    engine.close()


@pytest.fixture(scope="module")
def elastic(elasticsearch_url):
    engine = ElasticsearchEngine(elasticsearch_url)
    yield engine
    engine.close()


@pytest.fixture(scope="module", params=["embedded", pytest.param("elastic", marks=pytest.mark.elasticsearch)])
def engine(request):
    return request.getfixturevalue(request.param)


@pytest.fixture(scope="module")
def index(engine):
    """An index that holds DOCUMENTS, and that no test changes."""
    name = new_index_name()
    fill(engine, name, DOCUMENTS)
    return name


@pytest.fixture
def own_index(engine, index_name):
    """An index that holds DOCUMENTS, for a test that changes it."""
    fill(engine, index_name, DOCUMENTS)
    return index_name


def fill(engine, index, documents, fields=FIELDS):
    engine.create(index, fields, ENCODER.dim, ENCODER.name)
    assert engine.load(index, documents) == []
    engine.refresh(index)


def test_what_was_loaded_is_there(engine, index):
    assert engine.describe(index) == IndexInfo(index, FIELDS, 6, 16, "bag")
    assert index in engine.indices()
    first = engine.fetch(index, ["d4", "none", "d1"])
    assert [document.doc_id for document in first] == ["d4", "d1"]
    assert first[1].source == DOCUMENTS[0].source
    np.testing.assert_allclose(first[1].vector, DOCUMENTS[0].vector, atol=1e-6)
    assert engine.fetch(index, []) == []


def test_a_hit_carries_source_vector_and_rank(engine, index):
    hits = ask(engine, index, "gardens")
    assert [(hit.doc_id, hit.rank) for hit in hits.hits] == [("d1", 1), ("d2", 2)]
    assert hits.total == 2
    assert hits.hits[1].source == DOCUMENTS[1].source
    np.testing.assert_allclose(hits.hits[1].vector, DOCUMENTS[1].vector, atol=1e-6)


def test_the_score_is_bm25_summed_over_fields(engine, index):
    """Two documents of six have a title, of 2 words and 1; the six texts have 6, 2, 7, 2, 2 and 2 words."""

    def bm25(n_docs, n_with, frequency, length, average):
        idf = math.log(1 + (n_docs - n_with + 0.5) / (n_with + 0.5))
        return idf * 2.2 * frequency / (frequency + 1.2 * (0.25 + 0.75 * length / average))

    in_text, in_title = bm25(6, 2, 1, 6, 3.5), bm25(2, 1, 1, 2, 1.5)
    hits = ask(engine, index, "garden")
    assert hits.hits[0].score == pytest.approx(in_text + in_title)
    assert hits.hits[1].score == pytest.approx(bm25(6, 2, 1, 2, 3.5))


def test_a_repeated_word_and_a_weight_count(engine, index):
    once = ask(engine, index, "museum").hits[0].score
    assert ask(engine, index, "museum museums").hits[0].score == pytest.approx(2 * once)
    weighed = engine.search(EngineQuery(index, (Clause("museum", 0.25),)))
    assert weighed.hits[0].score == pytest.approx(once / 4)


def test_optional_clauses_only_change_the_order(engine, index):
    plain = ask(engine, index, "garden")
    more = ask(engine, index, "garden", optional=(Clause("restaurant", 5.0),))
    assert ids(more) == ["d2", "d1"]
    assert more.total == plain.total


def test_each_required_clause_must_match(engine, index):
    assert ids(ask(engine, index, "rooms", "garden")) == ["d1"]
    assert ids(ask(engine, index, "rooms", "unheard-of")) == []
    assert ids(ask(engine, index, "the and of")) == []
    assert ids(ask(engine, index)) == []


def test_recall_takes_any_clause_and_the_nearest_by_vector(engine, index):
    vector = ENCODER.encode(["an empty street"])[0]
    hits = ask(engine, index, "garden", optional=(Clause("trains"),), vector=vector, recall=True, size=3)
    assert set(ids(hits)[:3]) < {"d1", "d2", "d4", "d5"}
    assert hits.total == 4
    assert "d6" in ids(hits)[3:]
    assert [hit.rank for hit in hits.hits] == list(range(1, len(hits.hits) + 1))
    assert {hit.score for hit in hits.hits[3:]} == {0.0}
    assert hits.hits[ids(hits).index("d6")].source == DOCUMENTS[5].source


def test_without_recall_the_vector_finds_nothing(engine, index):
    assert ids(ask(engine, index, "garden", vector=ENCODER.encode(["street"])[0])) == ["d1", "d2"]


def test_recall_by_vector_alone(engine, index):
    hits = ask(engine, index, vector=DOCUMENTS[5].vector, recall=True, size=1)
    assert (ids(hits), hits.total) == (["d6"], 0)


@pytest.mark.parametrize(
    ("name", "value", "found"),
    [
        ("kind", "hotel", ["d1", "d3"]),
        ("stars", "4", ["d1"]),
        ("open", "true", ["d2"]),
        ("place.town", "Bonn", ["d4"]),
        ("tags", "steam", ["d5"]),
        ("title", "Garden hotel", ["d1"]),
        ("title", "garden", []),
        ("nowhere", "x", []),
    ],
)
def test_filters_take_the_exact_value(engine, index, name, value, found):
    words = "garden rooms museum street"
    assert sorted(ids(ask(engine, index, words, filters={name: value}))) == found
    near = ask(engine, index, vector=DOCUMENTS[0].vector, recall=True, filters={name: value})
    assert sorted(ids(near)) == found


def test_only_those_that_are_named_are_looked_at(engine, index):
    named = ("d1", "d4", "nowhere")
    found, everywhere = (
        ask(engine, index, "garden rooms museum", among=named),
        ask(engine, index, "garden rooms museum"),
    )
    assert sorted(ids(found)) == ["d1", "d4"]
    scores = {hit.doc_id: hit.score for hit in everywhere.hits}
    assert [hit.score for hit in found.hits] == pytest.approx([scores[doc_id] for doc_id in ids(found)])
    assert ids(ask(engine, index, "garden", filters={"kind": "restaurant"}, among=named)) == []
    near = ask(engine, index, vector=DOCUMENTS[1].vector, recall=True, among=named)
    assert sorted(ids(near)) == ["d1", "d4"]


def test_the_hits_of_many_texts_are_found_at_once(engine, index):
    texts = ["garden rooms", "zeppelin", "museum of trains", ""] * 30  # more than are asked in one request
    expected = [tuple(ids(ask(engine, index, text, size=1))) for text in texts]
    assert engine.find(index, texts, 1) == expected
    assert expected[1:4] == [(), ("d4",), ()]  # of two that tie the first by doc_id
    assert engine.find(index, [], 1) == []


def test_filters_add_nothing_to_the_score(engine, index):
    assert ask(engine, index, "rooms", filters={"kind": "hotel"}).hits[0].score == pytest.approx(
        ask(engine, index, "rooms").hits[0].score
    )


def test_ties_fall_by_doc_id_even_across_the_border(engine, index_name):
    names = [f"n{number:03}" for number in range(60)]
    fill(engine, index_name, [document(name, "one and the same", "Same") for name in reversed(names)])
    for size in (1, 7, 60, 100):
        hits = ask(engine, index_name, "same", size=size)
        assert ids(hits) == names[:size]
        assert hits.total == 60
        assert hits.hits[0].source == {"text": "one and the same", "title": "Same"}
        assert hits.hits[0].vector is not None


def test_a_document_of_the_same_id_is_replaced(engine, own_index):
    again = [document("d1", "first"), document("d1", "A castle on a hill")]
    assert engine.load(own_index, again) == []
    engine.refresh(own_index)
    assert engine.describe(own_index).n_docs == 6
    assert ids(ask(engine, own_index, "castle")) == ["d1"]
    assert ids(ask(engine, own_index, "garden")) == ["d2"]
    assert ids(ask(engine, own_index, vector=again[1].vector, recall=True, size=1)) == ["d1"]


def test_documents_without_vectors(engine, index_name):
    engine.create(index_name, FIELDS, None, None)
    assert engine.load(index_name, [replace(DOCUMENTS[0], vector=None)]) == []
    engine.refresh(index_name)
    assert engine.describe(index_name) == IndexInfo(index_name, FIELDS, 1, None, None)
    hits = ask(engine, index_name, "hotel", vector=DOCUMENTS[0].vector, recall=True)
    assert [(hit.doc_id, hit.vector) for hit in hits.hits] == [("d1", None)]


def test_what_cannot_be_taken_is_given_back_with_its_reason(engine, own_index):
    wrong = [Document("w1", {"text": {"an": "object"}}), Document("w2" * 300, {"text": "a"}), document("w3", "castle")]
    rejected = engine.load(own_index, wrong)
    assert {refused.doc_id for refused in rejected} == {"w1", "w2" * 300}
    assert all(refused.reason for refused in rejected)
    engine.refresh(own_index)
    assert ids(ask(engine, own_index, "castle")) == ["w3"]


def test_values_of_many_kinds(engine, index_name):
    texts = {"text": ["two parts", "of a castle"], "title": 42, "deep": [{"a": 1}, {"a": None}], "wide": "x" * 5000}
    fill(engine, index_name, [Document("v", texts), Document("empty", {"kind": "none"})])
    assert ids(ask(engine, index_name, "castle")) == ids(ask(engine, index_name, "42")) == ["v"]
    assert engine.fetch(index_name, ["v"])[0].source == texts


def test_an_empty_index_answers(engine, index_name):
    fill(engine, index_name, [])
    hits = ask(engine, index_name, "anything", vector=DOCUMENTS[0].vector, recall=True)
    assert (ids(hits), hits.total) == ([], 0)


def test_a_query_of_thousands_of_words_is_answered(engine, index):
    hits = ask(engine, index, "garden " + " ".join(f"word{number}" for number in range(20_000)))
    assert ids(hits) == ["d1", "d2"]


@pytest.mark.parametrize("query", ['"', "a AND (", "*:*", "title:x~2^9", "\x00", "💥", "{}", "/[/", "<b>"])
def test_no_query_is_syntax(engine, index, query):
    assert ids(ask(engine, index, query)) == []


def test_a_missing_index_is_named_with_the_likely_ones(engine, index):
    for call in (
        lambda: ask(engine, index + "x", "a"),
        lambda: engine.describe(index + "x"),
        lambda: engine.fetch(index + "x", ["a"]),
        lambda: engine.drop(index + "x"),
        lambda: engine.refresh(index + "x"),
    ):
        with pytest.raises(IndexMissing, match=index):
            call()


def test_create_leaves_the_same_index_and_refuses_another(engine, index):
    engine.create(index, FIELDS, ENCODER.dim, ENCODER.name)
    assert engine.describe(index).n_docs == 6
    others = (("text",), 16, "bag"), (FIELDS, 8, "bag"), (FIELDS, 16, "other"), (FIELDS, None, None)
    for fields, dim, encoder in others:
        with pytest.raises(UsageError, match="title, text"):
            engine.create(index, fields, dim, encoder)


def test_a_dropped_index_is_gone(engine, own_index):
    engine.drop(own_index)
    assert own_index not in engine.indices()
    with pytest.raises(IndexMissing):
        ask(engine, own_index, "garden")
    fill(engine, own_index, DOCUMENTS[:1])
    assert engine.describe(own_index).n_docs == 1


BAD_NAMES = [
    "",
    "..",
    ".hidden",
    "../x",
    "a/b",
    "a\\b",
    "Big",
    "-a",
    "_a",
    "+a",
    "a b",
    "a*",
    "a,b",
    "a#b",
    "a:b",
    "a\nb",
]


@pytest.mark.parametrize("name", [*BAD_NAMES, "a\nb", "ä" * 200])
def test_names_that_no_index_can_have(engine, name):
    with pytest.raises(UsageError, match="name of an index"):
        engine.create(name, FIELDS, None, None)


@pytest.mark.parametrize("name", ["ikat", "a.b-c_d+1", "日本語"])
def test_names_that_an_index_can_have(name):
    check_index_name(name)


def test_shorten_keeps_required_words_first():
    query = EngineQuery("i", (Clause("one " * (MAX_WORDS // 2 - 1)),), (Clause("two three four"), Clause("the")))
    short = shorten(query, 2)
    assert short.required == query.required
    assert [clause.text for clause in short.optional] == ["two", "the"]


# Both engines side by side

WORDS = ["red", "green", "blue", "hotel", "hotels", "garden", "train", "trains", "ROOM", "rooms", "the", "of"]
TEXTS = st.lists(st.sampled_from(WORDS), max_size=8)


@pytest.mark.elasticsearch
def test_both_engines_answer_the_same(embedded, elastic, index_name):
    """Any query: the same hits with the same scores, as near as the padding of missing titles brings their average."""
    rng = np.random.default_rng(3)
    documents = [
        document(f"d{number}", " ".join(rng.choice(WORDS, rng.integers(1, 30))), *([title] if number % 3 else []))
        for number in range(300)
        for title in [" ".join(rng.choice(WORDS, rng.integers(1, 4)))]
    ]
    for engine in (embedded, elastic):
        fill(engine, index_name, documents)

    @settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
    @given(
        st.lists(st.tuples(TEXTS, st.sampled_from([0.1, 1.0, 2.0])), min_size=1, max_size=2),
        st.lists(st.tuples(TEXTS, st.sampled_from([0.1, 1.0])), max_size=2),
        st.booleans(),
        st.sampled_from([1, 10, 400]),
    )
    def compare(required, optional, recall, size):
        made = [tuple(Clause(" ".join(text), weight) for text, weight in part) for part in (required, optional)]
        query = EngineQuery(index_name, made[0], made[1], recall=recall, size=size)
        one, two = embedded.search(query), elastic.search(query)
        assert one.total == two.total
        assert [hit.score for hit in one.hits] == pytest.approx([hit.score for hit in two.hits], rel=1e-3)
        if all(a.score - b.score > 2e-3 * a.score for a, b in pairwise(one.hits)):
            assert ids(one) == ids(two)

    compare()


@pytest.mark.elasticsearch
@pytest.mark.data
def test_both_engines_rank_alike_on_judged_data(embedded, elastic, index_name, shared_data):
    """nDCG@10 within 0.005 on iKAT: raw query, and query with the last turn."""
    lines = (shared_data / "ikat" / "corpus.jsonl").read_text("utf-8").splitlines()
    documents = [Document(row["_id"], {"text": row["text"]}) for row in map(json.loads, lines)]
    topics = [json.loads(line) for line in (shared_data / "ikat/dev/queries.jsonl").read_text("utf-8").splitlines()]
    rows = (line.split("\t") for line in (shared_data / "ikat/dev/qrels.tsv").read_text("utf-8").splitlines()[1:])
    qrels: dict[str, dict[str, int]] = {}
    for query_id, doc_id, grade in rows:
        qrels.setdefault(query_id, {})[doc_id] = int(grade)
    means = {}
    for engine in (embedded, elastic):
        engine.create(index_name, ("text",), None, None)
        engine.load(index_name, documents)
        engine.refresh(index_name)
        for with_turn in (False, True):
            scores = []
            for topic in topics:
                turn = " ".join(str(v) for v in topic["history"][-1].values()) if topic["history"] and with_turn else ""
                hits = ask(engine, index_name, f"{topic['text']} {turn}", size=10)
                scores.append(ndcg(ids(hits), qrels[topic["_id"]]))
            means[engine.name, with_turn] = sum(scores) / len(scores)
    for with_turn in (False, True):
        assert means["embedded", with_turn] == pytest.approx(means["elasticsearch", with_turn], abs=0.005)
    assert means["embedded", False] == pytest.approx(0.243, abs=0.005)


def ndcg(ranking, grades):
    gain = sum(grades.get(doc_id, 0) / math.log2(rank + 1) for rank, doc_id in enumerate(ranking, 1))
    best = sum(g / math.log2(rank + 1) for rank, g in enumerate(sorted(grades.values(), reverse=True)[:10], 1))
    return gain / best


# The embedded engine


def test_a_process_sees_what_another_committed(embedded, index_name):
    fill(embedded, index_name, DOCUMENTS)
    other = EmbeddedEngine(embedded.folder)
    assert len(ids(ask(other, index_name, "castle"))) == 0
    fill(embedded, index_name, [document("d7", "A castle")])
    assert ids(ask(other, index_name, "castle")) == ["d7"]
    assert ids(ask(other, index_name, vector=document("x", "A castle").vector, recall=True, size=1)) == ["d7"]
    other.close()


def test_one_process_at_a_time_writes(embedded, index_name):
    fill(embedded, index_name, DOCUMENTS[:1])
    embedded.load(index_name, DOCUMENTS[1:2])
    other = EmbeddedEngine(embedded.folder)
    with pytest.raises(EngineRefused, match="another process is writing"):
        other.load(index_name, DOCUMENTS[2:3])
    embedded.refresh(index_name)
    assert other.load(index_name, DOCUMENTS[2:3]) == []
    other.close()


def test_an_index_that_cannot_be_locked_is_not_called_damaged(embedded, index_name):
    fill(embedded, index_name, DOCUMENTS[:1])
    embedded.close()
    lock = embedded.folder / index_name / "tantivy" / ".tantivy-meta.lock"
    lock.unlink()
    lock.mkdir()
    with pytest.raises(EngineRefused, match="its lock file is not writable; give a writable folder"):
        ask(embedded, index_name, "castle")


@pytest.mark.parametrize("damage", ["cut", "missing", "text"])
def test_a_damaged_vector_cache_is_rebuilt(embedded, index_name, damage):
    fill(embedded, index_name, DOCUMENTS)
    (kept,) = (embedded.folder / index_name).glob("vectors-*")
    matrix = kept / "matrix.npy"
    if damage == "cut":
        os.truncate(matrix, 100)
    elif damage == "missing":
        shutil.rmtree(kept)
    else:
        (kept / "ids.json").write_text("[]")
    other = EmbeddedEngine(embedded.folder)
    assert ids(ask(other, index_name, vector=DOCUMENTS[5].vector, recall=True, size=1)) == ["d6"]
    other.close()


def test_vectors_of_an_earlier_commit_are_taken_away(embedded, index_name):
    for start in range(3):
        fill(embedded, index_name, DOCUMENTS[start : start + 1])
    assert len(list((embedded.folder / index_name).glob("vectors-*"))) == 1


@pytest.mark.parametrize("damage", ["description", "meta", "format"])
def test_a_damaged_index_is_reported_in_a_sentence(embedded, index_name, damage):
    fill(embedded, index_name, DOCUMENTS)
    folder = embedded.folder / index_name
    if damage == "description":
        (folder / "bespeak.json").write_text("{")
    elif damage == "format":
        (folder / "bespeak.json").write_text('{"format": 9}')
    else:
        (folder / "tantivy" / "meta.json").write_text("no")
    with pytest.raises(EngineRefused, match="cannot open the index"):
        ask(EmbeddedEngine(embedded.folder), index_name, "garden")


def test_lost_segments_are_reported_in_a_sentence(embedded, index_name):
    fill(embedded, index_name, DOCUMENTS)
    for path in (embedded.folder / index_name / "tantivy").glob("*.store"):
        path.unlink()
    with pytest.raises(EngineRefused, match="cannot open the index"):
        ask(EmbeddedEngine(embedded.folder), index_name, "garden")


@pytest.mark.parametrize("kind", ["store", "idx", "term", "fieldnorm", "fast"])
def test_flipped_bits_are_reported_or_do_no_harm(own_embedded, index_name, kind):
    fill(own_embedded, index_name, [document(f"d{n}", f"garden {n} " * (n % 7)) for n in range(2000)])
    own_embedded.close()
    for path in (own_embedded.folder / index_name / "tantivy").glob(f"*.{kind}"):
        content = bytearray(path.read_bytes())
        content[len(content) // 4 : len(content) // 2] = b"\x5a" * (len(content) // 2 - len(content) // 4)
        path.write_bytes(content)
    with suppress(EngineRefused):
        ask(EmbeddedEngine(own_embedded.folder), index_name, "garden 7", vector=DOCUMENTS[0].vector, recall=True)


def test_a_folder_that_cannot_be_written_is_reported(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(EngineRefused, match="cannot make the index"):
        EmbeddedEngine(tmp_path / "file").create("a", FIELDS, None, None)
    assert EmbeddedEngine(tmp_path / "none").indices() == []


# Elasticsearch that is not there, or says no


@pytest.mark.parametrize(
    ("status", "body", "kind", "error", "said"),
    [
        (200, HTML, "text/html", EngineRefused, "is not Elasticsearch"),
        (404, HTML, "text/html", EngineRefused, "is not Elasticsearch"),
        (200, b'{"hello": 1}', "application/json", EngineRefused, "is not Elasticsearch"),
        (200, b"{", "application/json", EngineRefused, "is not Elasticsearch"),
        (401, HTML, "text/html", EngineRefused, "refused the credentials"),
        (302, HTML, "text/html", EngineRefused, "redirects"),
        (502, HTML, "text/html", EngineUnreachable, "status 502"),
        (503, b"", "text/plain", EngineUnreachable, "status 503"),
    ],
)
def test_answers_of_something_else(status, body, kind, error, said):
    with answering(status, body, kind) as url:
        refuses(url, error, said)


@pytest.mark.parametrize(
    ("status", "reason", "error", "said"),
    [
        (401, "missing authentication", EngineRefused, "refused the credentials"),
        (403, "action is unauthorized", EngineRefused, "does not allow .*unauthorized"),
        (429, "too many", EngineUnreachable, "status 429"),
        (503, "no master", EngineUnreachable, "status 503"),
        (400, "illegal", EngineRefused, "illegal"),
        (404, "no such index", IndexMissing, "no index 'any'"),
    ],
)
def test_answers_of_elasticsearch(status, reason, error, said):
    body = json.dumps({"error": {"type": "x", "reason": reason, "root_cause": []}, "status": status}).encode()
    with answering(status, body, "application/json", headers=PRODUCT) as url:
        refuses(url, error, said)


def refuses(url, error, said):
    """Every call ends in the error, in one line that does not hold the credentials."""
    engine = ElasticsearchEngine(url, basic=("me", "s3cret"), timeout_s=5)
    for call in (
        lambda: engine.describe("any"),
        lambda: ask(engine, "any", "query"),
        lambda: engine.load("any", DOCUMENTS),
    ):
        with pytest.raises(error, match=said) as caught:
            call()
        assert "s3cret" not in str(caught.value)
        assert "\n" not in str(caught.value)
    engine.close()


def test_credentials_that_are_wanted():
    with answering(401) as url, pytest.raises(EngineRefused, match="wants credentials"):
        ElasticsearchEngine(url).describe("any")


def test_no_one_there():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        url = f"http://me:s3cret@127.0.0.1:{free.getsockname()[1]}"
        with pytest.raises(EngineUnreachable, match="refused") as caught:
            ElasticsearchEngine(url).describe("any")
    assert "s3cret" not in str(caught.value)
    with pytest.raises(EngineUnreachable, match=r"nohost\.invalid"):
        ElasticsearchEngine("http://me:s3cret@nohost.invalid:9200").describe("any")


def test_too_slow():
    with answering(200, wait_s=1.0) as url, pytest.raises(EngineUnreachable, match=r"within 0\.2 s"):
        ElasticsearchEngine(url, timeout_s=0.2).describe("any")


def test_no_tls_there():
    with answering(200) as url, pytest.raises(EngineUnreachable, match="no secure connection"):
        ElasticsearchEngine(url.replace("http:", "https:")).describe("any")


@pytest.mark.parametrize("url", ["", "localhost:9200", "ftp://a", "http://", "http://a:b", "http://a:99999"])
def test_urls_that_make_no_sense(url):
    with pytest.raises(UsageError, match="must look like"):
        read_url(url)


def test_urls_with_credentials_and_without_port():
    assert read_url("http://a%40b:c@h") == ("http://h:9200", ("a@b", "c"))
    assert read_url("https://[::1]/path/") == ("https://[::1]:443/path", None)


def test_a_user_may_be_named_in_two_ways():
    with pytest.raises(UsageError, match="not both"):
        ElasticsearchEngine("http://a:b@h", api_key="k")


def test_a_ca_file_that_holds_no_certificate(tmp_path):
    (tmp_path / "ca.pem").write_text("nothing")
    with answering(200) as url, pytest.raises(EngineUnreachable, match="certificate"):
        ElasticsearchEngine(url.replace("http:", "https:"), ca_file=tmp_path / "ca.pem").describe("any")


# Indices that Bespeak did not make


@pytest.mark.elasticsearch
def test_any_existing_index_can_be_searched(elastic, elasticsearch_url, index_name):
    from elasticsearch import Elasticsearch

    client = Elasticsearch(elasticsearch_url)
    rows = {
        "a": {"name": "Red shoe", "made": {"by": "Ann Shoemaker"}, "price": 3},
        "b": {"name": "Blue hat", "price": 4},
    }
    for doc_id, row in rows.items():
        client.index(index=index_name, id=doc_id, document=row, refresh=True)
    client.indices.put_alias(index=index_name, name=index_name + "-alias")
    client.close()
    for name in (index_name, index_name + "-alias"):
        assert elastic.describe(name) == IndexInfo(name, ("made.by", "name"), 2, None, None)
        hits = ask(elastic, name, "shoe", vector=DOCUMENTS[0].vector, recall=True)
        assert [(hit.doc_id, hit.source, hit.vector) for hit in hits.hits] == [("a", rows["a"], None)]
        assert ids(ask(elastic, name, "hat shoe", filters={"name": "Blue hat"})) == ["b"]
        assert ids(ask(elastic, name, "hat shoe", filters={"price": "3"})) == ["a"]
    assert name in elastic.indices()


def test_own_indices_of_the_tests_have_a_prefix(index_name):
    assert index_name.startswith(PREFIX)
