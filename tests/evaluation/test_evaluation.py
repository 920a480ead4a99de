"""Judged data, results kept between runs, the systems, and that tuning ranks as the pipeline does."""

import json
import random
from dataclasses import replace
from functools import cache
from math import log

import numpy as np
import pytest

from bespeak.engines.embedded import EmbeddedEngine
from bespeak.errors import InputError, UsageError
from bespeak.evaluation import movielens, systems
from bespeak.evaluation.kept import KeptEncoder, KeptRewriter
from bespeak.evaluation.measurement import Bench, open_kept_parts, save_kept
from bespeak.evaluation.measures import Estimate
from bespeak.evaluation.measures import judge as judge_run
from bespeak.evaluation.memory import (
    Bm25,
    best,
    embed,
    make_readings,
    ndcg,
    rank_topics,
    read_to_rank,
    score_settings,
)
from bespeak.evaluation.movielens import Rating, cut_ratings, genre_queries, read_movielens
from bespeak.evaluation.regressions import check_scores, read_expected, verdict_on
from bespeak.evaluation.systems import Cell, cells_of, check_names, load_collection, read_topic, run_all
from bespeak.evaluation.topics import Collection, Topic, read_collection
from bespeak.parts import Parts
from bespeak.pipeline import Retrieved, ask, liked_ids, show_page
from bespeak.reading import query_vector, read
from bespeak.records import Clause, Document, EngineQuery, Profile, Request, Rewrite
from bespeak.rewriting.rewriter import Unchanged
from bespeak.settings import Settings, Weights
from bespeak.statuses import Reason
from fakes import ADA, BagEncoder, ScriptedReader, ScriptedRewriter

# Reading


def write_collection(folder, corpus=None, queries=None, qrels=None, part="dev"):
    (folder / part).mkdir(parents=True, exist_ok=True)
    corpus = corpus or [
        {"_id": "d2", "text": "Trains to Ghent", "title": "Ghent"},
        {"_id": "d1", "text": "Quiet hotels"},
        {"_id": "d3", "text": "Loud hotels near trains"},
    ]
    queries = queries or [
        {
            "_id": "1-1_2",
            "text": "any quiet ones?",
            "statements": ["I sleep badly."],
            "history": [{"query": "hotels", "response": None}],
            "human_rewrite": "quiet hotels",
        },
        {"_id": "1-1_3", "text": "and trains?", "human_rewrite": "trains to Ghent"},
    ]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus), "utf-8")
    (folder / part / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries), "utf-8")
    text = qrels or "query-id\tcorpus-id\tscore\n1-1_2\td1\t1\n1-1_3\td2\t1\n"
    (folder / part / "qrels.tsv").write_text(text, "utf-8")
    return folder


@pytest.mark.parametrize("part", ["dev", "."])
def test_a_collection_is_read_with_its_queries_in_dev_or_beside(tmp_path, part):
    collection = read_collection(write_collection(tmp_path, part=part))
    assert [d.doc_id for d in collection.documents] == ["d1", "d2", "d3"]
    assert collection.fields == ("title", "text")
    assert collection.documents[0].source == {"text": "Quiet hotels"}
    assert collection.topics[0] == Topic(
        "1-1_2", "any quiet ones?", ("I sleep badly.",), (("hotels", ""),), "quiet hotels"
    )
    assert collection.judged == {"1-1_2": {"d1": 1}, "1-1_3": {"d2": 1}}


def test_queries_that_nobody_judged_are_left_out(tmp_path):
    qrels = "query-id\tcorpus-id\tscore\n1-1_3\td2\t1\n"
    assert [t.query_id for t in read_collection(write_collection(tmp_path, qrels=qrels)).topics] == ["1-1_3"]


def test_topics_can_be_limited(tmp_path):
    queries = [{"_id": f"q{n}", "text": "trains"} for n in range(7)]
    qrels = "query-id\tcorpus-id\tscore\n" + "".join(f"q{n}\td2\t1\n" for n in range(7))
    collection = read_collection(write_collection(tmp_path, queries=queries, qrels=qrels))
    assert [t.query_id for t in collection.cut(every=3).topics] == ["q0", "q3", "q6"]
    assert [t.query_id for t in collection.cut(2, 3).topics] == ["q0", "q3"]
    assert collection.cut(2, 3).judged.keys() == {"q0", "q3"}


def test_queries_that_stand_alone_can_be_asked_after_another_conversation(tmp_path):
    queries = [
        {"_id": "a_1", "text": "trains to Ghent"},
        {"_id": "a_2", "text": "any quiet ones?", "history": [{"query": "hotels"}], "human_rewrite": "quiet hotels"},
        {"_id": "b_2", "text": "and there?", "history": [{"query": "tea"}], "statements": ["I sleep badly."]},
        {"_id": "b_3", "text": "tea in GHENT", "history": [{"query": "tea"}, {"query": "rice"}], "entities": ["Ghent"]},
    ]
    qrels = "query-id\tcorpus-id\tscore\n" + "".join(f"{row['_id']}\td2\t1\n" for row in queries)
    found = read_collection(write_collection(tmp_path, queries=queries, qrels=qrels)).misplaced()
    assert [(topic.query_id, topic.text) for topic in found.topics] == [
        ("a_1", "trains to Ghent"), ("a_2", "quiet hotels"), ("b_3", "tea in GHENT"),
    ]  # fmt: skip
    asked = [{query for query, _ in topic.history} for topic in found.topics]
    assert [queries <= {"tea", "rice"} for queries in asked[:2]] == [True, True]
    assert asked[2] == {"hotels"}
    assert {topic.statements for topic in found.topics} == {()}
    assert found.judged.keys() == {"a_1", "a_2", "b_3"}


def test_without_a_query_that_is_known_to_stand_alone_none_can_be_misplaced(tmp_path):
    with pytest.raises(InputError, match="has no query that is known to stand alone"):
        read_collection(write_collection(tmp_path)).misplaced()


@pytest.mark.parametrize(
    ("query_id", "conversation"), [("1-1_3", "1-1"), ("18ef26<::>7", "18ef26"), ("d2", "d2"), ("_3", "_3")]
)
def test_the_query_id_names_the_conversation(query_id, conversation):
    assert Topic(query_id, "x").conversation == conversation


def test_a_topic_gives_the_profile_of_its_turn():
    topic = Topic("1-1_2", "x", ("I sleep badly.",), (("hotels", "Many."), ("in Ghent?", "")))
    profile = topic.profile
    assert [s.text for s in profile.statements] == ["I sleep badly."]
    assert [(t.query, t.response) for t in profile.turns] == [("hotels", "Many."), ("in Ghent?", "")]
    assert profile.version == topic.profile.version
    assert profile.version != replace(topic, statements=()).profile.version
    assert Topic("1-1_1", "x").profile.is_empty
    assert Topic("1-1_1", "x").profile.version == ""


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("corpus.jsonl", b'{"_id": "d1", "text": "x"}\n{"_id":', r"corpus\.jsonl, line 2 is not JSON"),
        ("corpus.jsonl", b'{"_id": 7, "text": "x"}\n', r"line 1 is not an object with the strings _id and text"),
        ("corpus.jsonl", b'{"_id": "d1", "text": "\xff"}\n', r"corpus\.jsonl is not UTF-8"),
        ("corpus.jsonl", b"\n", r"holds 0 documents and 2 judged queries"),
        ("dev/qrels.tsv", b"header\n1-1_2\td1\n", r"qrels\.tsv, line 2 is not query, document and whole number"),
        ("dev/qrels.tsv", b"\xff\xff", r"qrels\.tsv is not UTF-8"),
        ("dev/qrels.tsv", b"header\n", r"0 judged queries"),
    ],
)
def test_unreadable_data_is_reported_by_file_and_line(tmp_path, name, content, said):
    (write_collection(tmp_path) / name).write_bytes(content)
    with pytest.raises(InputError, match=said):
        read_collection(tmp_path)


def test_a_folder_without_data_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"corpus\.jsonl \(No such file"):
        read_collection(tmp_path)


# Kept between runs


class CountingEncoder(BagEncoder):
    def __init__(self, name="bag", turned=False):
        super().__init__(name=name)
        self.asked, self.turned = [], turned

    def encode(self, texts, kind="document"):
        self.asked += texts
        rows = super().encode(texts, kind)
        return -rows if self.turned else rows


def test_no_text_is_encoded_twice_in_this_run_or_the_next(tmp_path):
    encoder = CountingEncoder()
    first = KeptEncoder(encoder, tmp_path / "kept", "ikat")
    rows = first.encode(["one", "two", "one"])
    first.save()
    assert sorted(encoder.asked[2:]) == ["one", "two"]
    again = CountingEncoder()
    second = KeptEncoder(again, tmp_path / "kept", "ikat")
    assert np.array_equal(second.encode(["one", "two", "one"]), rows)
    assert len(again.asked) == 2  # the probe, as a query and as a document
    assert np.array_equal(rows, BagEncoder().encode(["one", "two", "one"]))


def test_a_query_and_a_document_of_the_same_words_are_two_texts(tmp_path):
    encoder = CountingEncoder()
    kept = KeptEncoder(encoder, tmp_path, "x")
    kept.encode(["one"], kind="query")
    kept.encode(["one"], kind="document")
    assert encoder.asked[2:] == ["one", "one"]


@pytest.mark.parametrize(
    "other", [CountingEncoder(name="other"), CountingEncoder(turned=True)], ids=["name", "weights"]
)
def test_another_encoder_has_vectors_of_its_own(tmp_path, other):
    kept = KeptEncoder(CountingEncoder(), tmp_path, "x")
    kept.encode(["one"])
    kept.save()
    assert np.array_equal(KeptEncoder(other, tmp_path, "x").encode(["one"]), other.encode(["one"]))


def test_a_damaged_file_of_vectors_is_made_again(tmp_path):
    kept = KeptEncoder(BagEncoder(), tmp_path / "kept", "x")
    kept.encode(["one"])
    kept.save()
    (path,) = (tmp_path / "kept").iterdir()
    path.write_bytes(path.read_bytes()[:100])
    assert KeptEncoder(BagEncoder(), tmp_path / "kept", "x").encode(["one"]).shape == (1, 64)


def test_no_texts_give_no_rows(tmp_path):
    assert KeptEncoder(BagEncoder(), tmp_path, "x").encode([]).shape == (0, 64)


class CountingRewriter(ScriptedRewriter):
    def __init__(self, status="full", version="1"):
        super().__init__({})
        self.asked, self.status, self.version = [], status, version

    def rewrite(self, query: str, profile: Profile, budget_ms=None) -> Rewrite:
        self.asked.append(query)
        return Rewrite(query, f"{query} more", status=self.status)

    def forget(self, user):
        pass


def test_a_rewrite_is_kept_by_query_profile_and_version(tmp_path):
    topic, other = Topic("q1", "quiet ones", ("I sleep badly.",)), Topic("q2", "quiet ones", ("I like noise.",))
    first = KeptRewriter(CountingRewriter(), tmp_path, "x")
    made = [first.rewrite(t.text, t.profile) for t in (topic, other, topic)]
    first.save()
    again, newer = CountingRewriter(), CountingRewriter(version="2")
    second = KeptRewriter(again, tmp_path, "x")
    assert [second.rewrite(t.text, t.profile) for t in (topic, other, topic)] == made
    assert again.asked == []
    KeptRewriter(newer, tmp_path, "x").rewrite(topic.text, topic.profile)
    assert newer.asked == ["quiet ones"]


@pytest.mark.parametrize(("made", "kept"), [("full", "full"), ("cached", "full"), ("unusable", "unusable")])
def test_rewrites_that_last_are_kept(tmp_path, made, kept):
    first, again = KeptRewriter(CountingRewriter(made), tmp_path, "x"), CountingRewriter()
    first.rewrite("q", Profile())
    first.save()
    assert KeptRewriter(again, tmp_path, "x").rewrite("q", Profile()).status == kept
    assert again.asked == []


@pytest.mark.parametrize("status", ["late", "failed"])
def test_unfinished_rewrites_are_not_kept(tmp_path, status):
    rewriter = CountingRewriter(status)
    kept = KeptRewriter(rewriter, tmp_path, "x")
    for _ in range(2):
        kept.rewrite("q", Profile())
    assert len(rewriter.asked) == 2


def test_what_is_measured_with_keeps_its_results_and_reads_sessions(tmp_path):
    opened = []

    def open_model(context):
        opened.append(context)
        return CountingRewriter()

    bench = Bench(tmp_path, Settings(), None, lambda: None, open_model, lambda label: lambda done, size: None, print)
    parts = open_kept_parts(bench, "x", open_model)
    assert opened == [parts.context]
    assert (type(parts.encoder), type(parts.rewriter)) == (KeptEncoder, KeptRewriter)
    assert parts.context.of == parts.encoder.name
    parts.encoder.encode(["one"])
    parts.rewriter.rewrite("q", Profile())
    assert not bench.kept.exists()
    save_kept(parts)
    assert len(list(bench.kept.iterdir())) == 2
    bare = open_kept_parts(bench, "x", None, with_encoder=False)
    assert (bare.encoder, bare.rewriter.name, bare.context.name) == (None, "none", parts.context.name)


# Signals

WORDS = ["hotel", "train", "quiet", "loud", "ghent", "paris", "cheap", "clean", "breakfast", "view", "room", "price"]


class GaussEncoder(BagEncoder):
    """The sum of a random vector per word, so that texts with different words never tie."""

    def encode(self, texts, kind="document"):
        rows = np.zeros((len(texts), self.dim))
        for row, text in zip(rows, texts, strict=True):
            row += np.sum([vector_of(word, self.dim) for word in text.lower().split()], axis=0)
        return (rows / np.linalg.norm(rows, axis=1, keepdims=True)).astype(np.float32)


@cache
def vector_of(word, dim):
    return np.random.default_rng(list(word.encode())).normal(size=dim)


def random_collection(n_docs=250, n_topics=12):
    draw = random.Random(3)

    def text(n):
        return " ".join(draw.choice(WORDS) for _ in range(n))

    documents = [
        Document(f"d{n:03}", {"title": text(2), "text": f"{text(draw.randint(3, 60))} only{n}"}) for n in range(n_docs)
    ]
    topics = [Topic(f"c{n // 3}_{n}", text(3), (), ((text(3), text(5)),) * (n % 3)) for n in range(n_topics)]
    qrels = {t.query_id: {f"d{draw.randrange(n_docs):03}": 1 for _ in range(3)} for t in topics}
    return Collection("random", tuple(documents), ("title", "text"), tuple(topics), qrels)


def test_bm25_is_the_formula():
    documents = [Document("a", {"text": "cat cat dog"}), Document("b", {"text": "dog"}), Document("c", {"text": ""})]
    found = Bm25(documents, ["text"]).scores("Cats")
    idf = log(1 + (2 - 1 + 0.5) / (1 + 0.5))
    assert found == pytest.approx([idf * 2.2 * 2 / (2 + 1.2 * (1 - 0.75 + 0.75 * 3 / 2)), 0, 0])


def test_bm25_scores_as_the_embedded_engine(tmp_path):
    collection = random_collection()
    engine = EmbeddedEngine(tmp_path)
    load_collection(collection, engine, None, "random")
    bm25 = Bm25(collection.documents, collection.fields)
    for topic in collection.topics:
        hits = engine.search(EngineQuery("random", (Clause(topic.text),), size=250)).hits
        expected = {d.doc_id: s for d, s in zip(collection.documents, bm25.scores(topic.text), strict=True) if s > 0}
        assert {hit.doc_id: hit.score for hit in hits} == pytest.approx(expected, rel=1e-5)


def test_the_best_are_in_order_and_ties_by_row():
    values = np.array([0.5, 0.9, 0.5, 0.1, 0.5], np.float32)
    assert best(values, 3).tolist() == [1, 0, 2]
    assert best(values, 99).tolist() == [1, 0, 2, 4, 3]


SETTINGS = {
    "default": Settings(),
    "narrow": Settings(window=20, last_turn_weight=0.5, last_turn_share=1.0, rewrite_weight=0.3),
    "lexical": Settings(weights=Weights(0.8, 0.2, 0.0), last_turn_weight=0.0),
    "boost": Settings(mode="boost", window=10),
}


def leaning(collection):
    """Two words of the last answer for each query but the first ones, which stand alone."""
    return {topic.text: topic.history[-1][1].split()[:2] for topic in collection.topics[3:] if topic.history}


READERS = {
    "unread": lambda collection: None,
    "read": lambda collection: ScriptedReader(leaning(collection), GaussEncoder()),
    "read for another encoder": lambda collection: ScriptedReader(leaning(collection), BagEncoder(name="other")),
}


@pytest.mark.parametrize("reader", READERS.values(), ids=READERS)
@pytest.mark.parametrize("settings", SETTINGS.values(), ids=SETTINGS)
def test_tuning_ranks_as_the_pipeline_does(tmp_path, settings, reader):
    collection, encoder = random_collection(), GaussEncoder()
    context = reader(collection)
    rewriter = ScriptedRewriter({t.text: f"{t.text} breakfast view" for t in collection.topics[::2]})
    engine = EmbeddedEngine(tmp_path)
    load_collection(collection, engine, encoder, "random")
    parts = Parts(settings, rewriter, encoder, context=context)
    runs = run_all(collection, ["rewrite"], systems.STAGES, engine, "random", parts)
    found = rank_topics(make_readings(collection, parts), settings)
    for stage in systems.STAGES:
        for topic, doc_ids in zip(collection.topics, found[stage], strict=True):
            assert doc_ids == runs["rewrite", stage][topic.query_id], (stage, topic.query_id)


def test_settings_are_scored_with_the_measure_that_is_reported():
    collection, encoder = random_collection(), GaussEncoder()
    readings = make_readings(collection, Parts(Settings(), Unchanged(), encoder))
    scores = score_settings(readings, Settings())
    for stage, rankings in rank_topics(readings, Settings()).items():
        run = {topic.query_id: doc_ids for topic, doc_ids in zip(collection.topics, rankings, strict=True)}
        expected = judge_run(collection.judged, run)["nDCG@10"]
        assert scores[stage].tolist() == pytest.approx([expected[t.query_id] for t in collection.topics])


def test_a_query_without_relevant_hits_scores_0():
    assert ndcg(["1", "2"], {"3": 1}) == 0
    assert ndcg(["1", "2"], {}) == 0


# Systems


@pytest.fixture
def ghent(tmp_path):
    """A small collection, its index, and parts whose rewriter knows the answer."""
    collection = read_collection(write_collection(tmp_path / "data"))
    engine, encoder = EmbeddedEngine(tmp_path / "indices"), BagEncoder()
    load_collection(collection, engine, encoder, "ghent")
    rewriter = ScriptedRewriter({"any quiet ones?": "any quiet hotels?"})
    return collection, engine, Parts(Settings(), rewriter, encoder)


def test_each_system_asks_with_its_own_text(ghent):
    collection, engine, parts = ghent
    info = engine.describe("ghent")
    found = {name: read_topic(name, collection.topics[0], "ghent", parts) for name in systems.SYSTEMS}
    asked = {name: ask(one.request, info, one.reading, one.parts) for name, one in found.items()}
    assert asked["raw"].required == (Clause("any quiet ones?"),)
    assert asked["raw"].optional == ()
    assert asked["human"].required == (Clause("quiet hotels"),)
    assert asked["rewrite-alone"].required == (Clause("any quiet hotels?"),)
    assert asked["rewrite"].required == (Clause("any quiet ones?"),)
    assert Clause("any quiet hotels?") in asked["rewrite"].optional
    assert "hotels" in asked["last-turn"].optional[0].text


def test_the_vector_of_last_turn_is_the_query_and_half_of_the_turn(ghent):
    collection, engine, parts = ghent
    found = read_topic("last-turn", collection.topics[0], "ghent", parts)
    asked = ask(found.request, engine.describe("ghent"), found.reading, found.parts)
    query, turn = parts.encoder.encode(["any quiet ones?", "hotels"])
    expected = (query + 0.5 * turn) / np.linalg.norm(query + 0.5 * turn)
    assert asked.vector == pytest.approx(expected, abs=1e-6)
    assert query_vector(found.reading, found.parts.settings).mixed.vector == pytest.approx(expected, abs=1e-6)


def test_what_stands_alone_goes_out_as_typed_and_is_ranked_to_be_measured(ghent):
    collection, engine, parts = ghent
    topic, parts = collection.topics[0], replace(parts, context=ScriptedReader({}))
    served = read(topic.text, topic.profile, parts)
    measured = read_to_rank(topic.text, topic.profile, parts)
    assert (served.declined, served.vectors) == (Reason.STANDS_ALONE, {})
    assert (measured.gate, measured.declined, set(measured.vectors)) == (Reason.STANDS_ALONE, None, {"typed"})
    for name in ("session", "rewrite", "rewrite-alone"):
        found = read_topic(name, topic, "ghent", parts)
        asked = ask(found.request, engine.describe("ghent"), found.reading, found.parts)
        assert (asked.required, asked.optional) == ((Clause(topic.text),), ())
        assert asked.vector == pytest.approx(parts.encoder.encode([topic.text])[0], abs=1e-6)


def test_a_query_that_leans_on_the_session_is_asked_with_its_words(ghent):
    collection, engine, parts = ghent
    topic, parts = collection.topics[0], replace(parts, context=ScriptedReader({"any quiet ones?": ["hotels"]}))
    found = read_topic("session", topic, "ghent", parts)
    asked = ask(found.request, engine.describe("ghent"), found.reading, found.parts)
    assert asked.required == (Clause("any quiet ones?"),)
    assert "hotels" in [clause.text for clause in asked.optional]


def measure(collection, names, stages, engine, parts, **options):
    return cells_of(run_all(collection, names, stages, engine, "ghent", parts, **options), collection, names)


def test_every_system_is_measured_at_every_stage(ghent):
    collection, engine, parts = ghent
    seen = []
    names, stages = ["rewrite", "raw"], ["lexical", "dense"]
    cells = measure(collection, names, stages, engine, parts, report=lambda *done: seen.append(done))
    assert [(c.system, c.stage) for c in cells] == [
        ("rewrite", "lexical"),
        ("rewrite", "dense"),
        ("raw", "lexical"),
        ("raw", "dense"),
    ]
    assert all(cell.n_queries == 2 for cell in cells)
    assert [cell.gain is None for cell in cells] == [False, False, True, True]
    assert seen == [(1, 2), (2, 2)]


def test_gains_are_over_raw_even_if_raw_is_not_selected(ghent):
    collection, engine, parts = ghent
    (cell,) = measure(collection, ["human"], ["lexical"], engine, parts)
    assert cell.system == "human"
    assert cell.scores["nDCG@10"].mean == 1.0
    assert cell.gain.difference.mean >= 0


def test_an_unknown_name_is_refused_with_those_that_are_known():
    with pytest.raises(UsageError, match=r"no system 'row' for these data: choose from raw, last-turn, session"):
        check_names("system", ["raw", "row"], systems.SYSTEMS)


def test_human_needs_a_persons_rewrite(ghent):
    collection, engine, parts = ghent
    bare = replace(collection, topics=(replace(collection.topics[0], human_rewrite=None),))
    with pytest.raises(InputError, match="1-1_2 has no human_rewrite"):
        measure(bare, ["human"], ["lexical"], engine, parts)


def test_an_index_that_is_complete_is_used_again_and_another_replaced(ghent):
    collection, engine, _ = ghent
    encoder = CountingEncoder()
    load_collection(collection, engine, encoder, "ghent")
    assert encoder.asked == []
    load_collection(replace(collection, documents=collection.documents[:2]), engine, encoder, "ghent")
    assert engine.describe("ghent").n_docs == 2


# MovieLens

MOVIES = """movieId,title,genres
1,Alpha,Comedy|War
2,Beta,Comedy
3,Gamma,Comedy
4,Delta,War
10,Epsilon,Comedy
11,Zeta,(no genres listed)
"""
RATINGS = """userId,movieId,rating,timestamp,,
7,1,5,100,,
7,2,1,100,,3.4
7,3,4.5,200,,
7,10,3,300,,
9,2,4,50,,
9,4,4,60,,
"""


def write_movielens(folder, movies=MOVIES, ratings=RATINGS):
    folder.mkdir(exist_ok=True)
    (folder / "movies.csv").write_text(movies, "utf-8")
    (folder / "ratings.csv").write_text(ratings, "utf-8")
    return folder


def test_ratings_are_cut_at_seven_tenths_with_ties_by_movie():
    ratings = [Rating(str(n), 4.0, 100) for n in (10, 9, 8, 7, 6, 5, 4, 3, 2, 1)]
    viewer = cut_ratings(1, ratings)
    assert [r.movie_id for r in viewer.before] == ["1", "2", "3", "4", "5", "6", "7"]
    assert [r.movie_id for r in viewer.after] == ["8", "9", "10"]
    assert [len(cut_ratings(1, ratings[:n]).before) for n in (1, 2, 3, 4)] == [0, 1, 2, 2]


def test_movies_liked_later_are_relevant_in_each_of_their_genres():
    genres = {"1": ("Comedy",), "2": ("Comedy",), "3": ("War", "Comedy"), "4": ("War",)}
    ratings = [Rating("1", 5, 1), Rating("2", 5, 2), Rating("3", 4, 3), Rating("4", 3.5, 4)]
    queries = list(genre_queries(cut_ratings(7, ratings), genres))
    assert [(q.query_id, q.relevant) for q in queries] == [("7 Comedy", {"3"}), ("7 War", {"3"})]


def test_movielens_is_read_without_its_surplus_columns(tmp_path):
    data = read_movielens(write_movielens(tmp_path / "ml"))
    assert [(q.query_id, q.relevant) for q in data.queries] == [("7 Comedy", {"3"}), ("9 War", {"4"})]
    assert data.qrels == {"7 Comedy": {"3": 1}, "9 War": {"4": 1}}
    assert data.groups == {"7 Comedy": "7", "9 War": "9"}
    assert [data.movies.documents[row].doc_id for row in data.candidates(data.queries[0])] == ["10", "3"]
    assert data.movies.documents[0].source == {"title": "Alpha", "genres": "Comedy War"}


def test_users_can_be_limited(tmp_path):
    folder = write_movielens(tmp_path / "ml")
    assert [q.query_id for q in read_movielens(folder, every=3).queries] == ["9 War"]
    assert [q.query_id for q in read_movielens(folder, limit=1).queries] == ["7 Comedy"]


@pytest.mark.parametrize(
    ("movies", "ratings", "said"),
    [
        ("id,title\n", RATINGS, r"movies\.csv does not start with the columns movieId, title, genres"),
        (MOVIES + "1,Again,War\n", RATINGS, r"movies\.csv, line 8 repeats the movie 1"),
        (MOVIES, RATINGS + "9,2\n", r"ratings\.csv, line 8 has 2 columns instead of 4"),
        (MOVIES, RATINGS + "9,2,good,1\n", r"ratings\.csv, line 8 does not hold user, movie, stars and seconds"),
        (MOVIES, "userId,movieId,rating,timestamp\n7,1,5,1\n", r"gives no query"),
    ],
)
def test_faulty_movielens_files_are_reported(tmp_path, movies, ratings, said):
    with pytest.raises(InputError, match=said):
        read_movielens(write_movielens(tmp_path / "ml", movies, ratings))


@pytest.fixture
def cinema(tmp_path):
    """Two kinds of comedies. User 1 likes trains, and will like another train."""
    movies = "movieId,title,genres\n" + "".join(
        f"{n},{'train' if n % 2 else 'boat'} story {n},Comedy\n" for n in range(1, 41)
    )
    liked = [1, 3, 5, 7, 9, 11, 13, 21, 23, 25]
    ratings = "userId,movieId,rating,timestamp\n" + "".join(f"1,{n},5,{t}\n" for t, n in enumerate(liked))
    ratings += "".join(f"2,{n},4,{t}\n" for t, n in enumerate([1, 3, 21, 23, 22]))
    data = read_movielens(write_movielens(tmp_path / "ml", movies, ratings), limit=1)
    engine, encoder = EmbeddedEngine(tmp_path / "indices"), BagEncoder()
    load_collection(data.movies, engine, encoder, "movies")
    weights = Weights(0.0, 0.0, 1.0)
    return data, movielens.Setup(engine, "movies", encoder, embed(data.movies, encoder), weights)


def test_a_history_helps_and_a_stranger_gets_the_engines_order(cinema):
    data, setup = cinema
    cells = {(c.system, c.stage): c for c in movielens.measure_systems(data, movielens.known_systems(data)[0], setup)}
    engine = cells["engine", "any"].scores["nDCG@10"].mean
    assert cells["user", "0"].scores["nDCG@10"].mean == engine
    assert cells["user", "0"].gain.difference == Estimate(0, 0, 0)
    assert cells["user", "all"].scores["nDCG@10"].mean > engine
    assert cells["item-knn", "all"].scores["MRR"].mean == 1.0
    assert cells["popularity", "any"].scores["MRR"].mean == 1.0
    assert {stage for system, stage in cells if system == "user"} == set(movielens.LENGTHS)


def test_a_user_is_no_neighbour_of_their_own_future(cinema):
    data, setup = cinema
    alone = replace(data, viewers=data.viewers[:1])
    cells = movielens.measure_systems(alone, ["popularity", "item-knn"], setup)
    assert {c.scores["nDCG@10"].mean for c in cells} == {cells[0].scores["nDCG@10"].mean}
    scorers = movielens.make_systems(["popularity", "item-knn"], alone, setup)
    (query,) = alone.queries
    assert not scorers["popularity"].scores(query, alone.candidates(query), "any").any()
    assert not scorers["item-knn"].scores(query, alone.candidates(query), "all").any()


def test_the_shortened_history_is_the_latest_part():
    ratings = [Rating(str(n), 4.0, n) for n in range(12)]
    assert [r.movie_id for r in movielens.latest(ratings, 2)] == ["10", "11"]
    assert list(movielens.latest(ratings, 0)) == []
    assert list(movielens.latest(ratings, 200)) == ratings
    assert list(movielens.latest(ratings[:1], 5)) == ratings[:1]


@pytest.mark.parametrize("weights", [Weights(), Weights(0, 0, 1), Weights(0.2, 0.3, 0.9)], ids=str)
def test_the_user_score_ranks_as_the_pipeline_does(cinema, weights):
    data, setup = cinema
    (query,) = data.queries
    rows = data.candidates(query)
    scorer = movielens.make_systems(["user"], data, replace(setup, weights=weights))["user"]
    found = [data.movies.documents[row].doc_id for row in rows[best(scorer.scores(query, rows, "all"), 40)]]
    parts = Parts(Settings(weights=weights, mode="boost"), ScriptedRewriter({}), setup.encoder)
    profile = movielens.profile_of(query.viewer, query.viewer.before)
    request, info = Request("Comedy", "movies", ADA, size=40), setup.engine.describe("movies")
    reading = read("Comedy", profile, parts)
    hits = setup.engine.search(ask(request, info, reading, parts))
    fresh = replace(hits, hits=tuple(hit for hit in hits.hits if hit.doc_id not in query.viewer.rated))
    liked = tuple(setup.engine.fetch("movies", liked_ids(profile)))
    result = show_page(request, reading, Retrieved(info, fresh, fresh, liked), parts)
    assert found == [ranked.hit.doc_id for ranked in result.page]
    assert len(found) == 33


@pytest.fixture
def clubs(tmp_path):
    """Movies with equal texts, and two tastes of twelve movies each; user 50, who is measured, has the first taste."""
    circles = [range(1, 13), range(21, 33)]
    movies = "movieId,title,genres\n" + "".join(f"{n},Story,Comedy\n" for n in range(1, 41))
    seen = {user: [n for n in circles[user % 2] if n % 6 != user // 2 % 6] for user in range(1, 41)}
    seen[50] = [40, *range(1, 11)]
    rows = [f"{user},{n},5,{t}\n" for user, found in seen.items() for t, n in enumerate(found)]
    ratings = "userId,movieId,rating,timestamp\n" + "".join(rows)
    data = read_movielens(write_movielens(tmp_path / "ml", movies, ratings), every=50)
    engine, encoder = EmbeddedEngine(tmp_path / "indices"), BagEncoder()
    load_collection(data.movies, engine, encoder, "movies")
    return data, movielens.Setup(engine, "movies", encoder, embed(data.movies, encoder), Weights(0, 0, 1))


def test_what_other_users_did_is_learnt_and_used(clubs):
    data, setup = clubs
    (query,) = data.queries
    rows = data.candidates(query)
    scorer = movielens.make_systems(["learnt"], data, setup)["learnt"]
    found = [data.movies.documents[row].doc_id for row in rows[best(scorer.scores(query, rows, "all"), 6)]]
    assert sorted(map(int, found)) == [7, 8, 9, 10, 11, 12]
    cells = {c.stage: c for c in movielens.measure_systems(data, ["learnt"], setup)}
    assert cells["0"].gain.difference == Estimate(0, 0, 0)
    assert cells["all"].gain.difference.mean > 0


def test_nothing_is_learnt_from_users_who_are_measured(clubs):
    data, _ = clubs
    assert 50 not in {viewer.user_id for viewer in data.teachers}
    assert "40" not in data.learnt.doc_ids
    assert movielens.known_systems(data) == (movielens.SYSTEMS, "")


def test_a_profile_holds_what_a_store_would_read():
    viewer = cut_ratings(1, [Rating(str(n), 4.0, n) for n in range(400)])
    kept = movielens.latest(viewer.before, movielens.LENGTHS["all"])
    assert [r.movie_id for r in kept] == [str(n) for n in range(80, 280)]


# Expected scores

EXPECTED = """
data: ikat
options: {system: [raw], stage: [lexical]}
tolerance: 0.01
scores:
  raw:
    lexical: {nDCG@10: 0.25, MRR: 0.3, recall@100: 0.5}
  human:
    lexical: {MRR: 0.5}
"""


def test_each_expected_score_gets_its_verdict(tmp_path):
    (tmp_path / "x.yaml").write_text(EXPECTED)
    expected = read_expected(tmp_path / "x.yaml")
    scores = {"nDCG@10": Estimate(0.2504, 0, 1), "MRR": Estimate(0.305, 0, 1), "recall@100": Estimate(0.52, 0, 1)}
    found = list(check_scores(expected, [Cell("raw", "lexical", scores, None, 3)]))
    assert [(c.system, c.measure, c.verdict) for c in found] == [
        ("raw", "nDCG@10", "OK"),
        ("raw", "MRR", "OKish"),
        ("raw", "recall@100", "FAIL"),
        ("human", "MRR", "FAIL"),
    ]
    assert found[3].found is None


def test_better_than_expected_is_not_as_expected():
    assert verdict_on(0.5, 0.6, 0.01) == "FAIL"


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("data: [", "is not YAML"),
        ("data: ikat", "must hold data, scores and tolerance"),
        (EXPECTED + "more: 1", "nothing else"),
        (EXPECTED.replace("stage:", "window:"), "options may be"),
        (EXPECTED.replace("[raw]", "raw"), "are lists of names"),
        (EXPECTED.replace("0.25", "high"), "and a number"),
        (EXPECTED.replace("nDCG@10", "nDCG"), "there is no measure 'nDCG'"),
    ],
)
def test_an_invalid_file_of_expected_scores_is_refused(tmp_path, content, said):
    (tmp_path / "x.yaml").write_text(content)
    with pytest.raises(InputError, match=said):
        read_expected(tmp_path / "x.yaml")
