"""Reading files of documents, loading them, and going on after a kill."""

from __future__ import annotations

import gzip
import io
import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.document import document_text
from bespeak.engines.corpus import MAX_LINE_BYTES, Corpus, find_fields, read_documents
from bespeak.engines.embedded import EmbeddedEngine
from bespeak.engines.loading import BATCH, REJECTIONS_KEPT, Checkpoints, load
from bespeak.errors import InputError, UsageError
from bespeak.records import Clause, EngineQuery
from fakes import BagEncoder

ENCODER = BagEncoder(8)


@pytest.fixture
def engine(tmp_path):
    engine = EmbeddedEngine(tmp_path / "indices")
    yield engine
    engine.close()


def read(content, **how):
    return list(read_documents(Corpus(io.BytesIO(content), **how)))


def lines(tmp_path, rows, name="docs.jsonl"):
    path = tmp_path / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def everything(engine, index):
    """Each document of an index with its source and vector."""
    n_docs = engine.describe(index).n_docs
    hits = engine.search(EngineQuery(index, (Clause("word"),), size=n_docs + 10)).hits
    return {hit.doc_id: (dict(hit.source), None if hit.vector is None else hit.vector.tolist()) for hit in hits}


def test_json_lines():
    rows = read(
        b'\xef\xbb\xbf{"_id": "a", "text": "x"}\r\n\n{"id": 7, "text": "y"}\n{"doc_id": "c", "bespeak_vector": [1]}'
    )
    assert [(row.line_no, row.document.doc_id, row.document.source) for row in rows] == [
        (1, "a", {"text": "x"}),
        (3, "7", {"id": 7, "text": "y"}),
        (4, "c", {"doc_id": "c"}),
    ]


def test_a_document_without_id_gets_the_same_one_each_time():
    one, two, three = read(b'{"a": "x", "b": "y"}\n{"b": "y", "a": "x"}\n{"a": "z"}')
    assert one.document.doc_id == two.document.doc_id != three.document.doc_id


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"nope", "not JSON"),
        (b'{"a": NaN}', "NaN"),
        (b'{"a": "\xff"}', "not UTF-8"),
        (b"[1]", "not a JSON object"),
        (b'{"a": "\\ud800"}', "surrogate"),
        (b'{"_id": [1]}', "its id"),
        (b'{"_id": true}', "its id"),
        (b'{"_id": ""}', "its id"),
        (b'{"_id": "' + b"x" * 600 + b'"}', "its id"),
        (b"[" * 100_000, "nested too deeply"),
        (b'{"a": "' + b"x" * MAX_LINE_BYTES + b'"}', "longer than"),
    ],
)
def test_one_bad_line_does_not_affect_the_others(line, reason):
    first, bad, last = read(b'{"_id": "a"}\n' + line + b'\n{"_id": "b"}')
    assert (first.document.doc_id, last.document.doc_id) == ("a", "b")
    assert bad.document is None
    assert bad.line_no == 2
    assert reason in bad.reason


@given(st.binary(max_size=300).filter(lambda content: not content.startswith(b"\x1f\x8b")))
def test_any_bytes_are_read_line_by_line(content):
    for row in read(content):
        assert (row.document is None) == bool(row.reason)


def test_an_id_field_of_ones_own():
    named, without = read(b'{"sku": 5, "id": "x"}\n{"id": "y"}', id_field="sku")
    assert named.document.doc_id == "5"
    assert "sku" in without.reason


def test_csv(tmp_path):
    path = tmp_path / "docs.csv"
    path.write_bytes(b'id,title,note\n1,"A, ""b""\nc",\n2,d\n3,e,f,g\n\n4,\xff,x\n5,last,y\n')
    rows = list(read_documents(Corpus(path)))
    assert [(row.line_no, row.document and row.document.source) for row in rows] == [
        (3, {"id": "1", "title": 'A, "b"\nc'}),
        (4, {"id": "2", "title": "d"}),
        (5, None),
        (7, None),
        (8, {"id": "5", "title": "last", "note": "y"}),
    ]
    assert "4 cells" in rows[2].reason
    assert "not UTF-8" in rows[3].reason
    assert [row.line_no for row in read_documents(Corpus(path), after=5)] == [7, 8]


def test_tab_separated(tmp_path):
    path = tmp_path / "docs.tsv"
    path.write_text("id\ttext\n1\ta,b\n")
    assert [row.document.source["text"] for row in read_documents(Corpus(path))] == ["a,b"]


@pytest.mark.parametrize("header", [b"id,id\n1,2\n", b"id,,b\n1,2,3\n"])
def test_a_csv_header_must_name_each_column_once(tmp_path, header):
    (tmp_path / "docs.csv").write_bytes(header)
    with pytest.raises(InputError, match="first row"):
        list(read_documents(Corpus(tmp_path / "docs.csv")))


def test_gzip_is_known_by_its_first_bytes(tmp_path):
    packed = gzip.compress(b'{"_id": "a"}\n' * 3)
    assert len(read(packed)) == 3
    (tmp_path / "docs.csv.gz").write_bytes(gzip.compress(b"id\n1\n2\n"))
    assert [row.document.doc_id for row in read_documents(Corpus(tmp_path / "docs.csv.gz"))] == ["1", "2"]


def test_a_gzip_file_cut_short_is_reported(tmp_path):
    rng = np.random.default_rng(1)
    content = b"".join(b'{"_id": "%d"}\n' % number for number in rng.integers(0, 10**12, 5000))
    (tmp_path / "docs.gz").write_bytes(gzip.compress(content)[:20_000])
    with pytest.raises(InputError, match="to its end"):
        list(read_documents(Corpus(tmp_path / "docs.gz")))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="cannot read"):
        list(read_documents(Corpus(tmp_path / "none")))


def test_fields_that_hold_running_text():
    rows = read(b'{"id": "a b", "url": "http://x", "body": "two words", "text": "x", "n": 3}\n{"title": "t"}')
    assert find_fields(rows) == ("title", "text", "body")


def test_the_embedded_text_follows_the_fields():
    source = {"a": "one", "b": ["two", "three"], "c": {"d": 4}}
    assert document_text(source, ("c.d", "a", "none", "b")) == "4 one two\nthree"


def test_load(engine, tmp_path):
    rows = [{"_id": str(n), "title": f"word {n}", "text": f"word number {n}"} for n in range(BATCH + 5)]
    seen = []
    done = load(engine, "docs", Corpus(lines(tmp_path, rows)), ENCODER, progress=seen.append)
    assert (done.loaded, done.rejected, done.fields) == (BATCH + 5, 0, ("title", "text"))
    assert [step.lines for step in seen] == [BATCH, BATCH + 5]
    info = engine.describe("docs")
    assert (info.n_docs, info.dim, info.encoder, info.fields) == (BATCH + 5, 8, "bag", ("title", "text"))
    np.testing.assert_allclose(
        engine.fetch("docs", ["7"])[0].vector, ENCODER.encode(["word 7 word number 7"])[0], atol=1e-6
    )


def test_rejections_are_counted_and_the_first_ones_kept(engine, tmp_path):
    path = lines(tmp_path, [{"_id": "a", "text": "a word"}, {"_id": "b", "other": 1}])
    with path.open("a") as file:
        file.write("nope\n" * 30)
    done = load(engine, "docs", Corpus(path), None)
    assert (done.loaded, done.rejected, len(done.rejections)) == (1, 31, REJECTIONS_KEPT)
    assert done.rejections[0] == (2, "no text in text")
    assert done.rejections[1][0] == 3


def test_what_the_engine_refuses_is_reported_by_line(engine, tmp_path):
    path = lines(tmp_path, [{"_id": "a", "text": "a word"}, {"_id": "b", "text": "a word", "title": {"x": 1}}])
    done = load(engine, "docs", Corpus(path, ("text", "title")), None)
    assert (done.loaded, done.rejections) == (1, ((2, "its field 'title' is not text"),))


@pytest.mark.parametrize("content", [b"", b"nope\n", b'{"n": 1}\n'])
def test_a_file_without_text_makes_no_index(engine, content):
    done = load(engine, "docs", Corpus(io.BytesIO(content)), None)
    assert done.loaded == 0
    assert done.rejected == content.count(b"\n")
    assert engine.indices() == []


def test_another_file_adds_and_the_same_file_changes_nothing(engine, tmp_path):
    one = lines(tmp_path, [{"_id": "a", "text": "a word"}, {"_id": "b", "text": "b word"}], "one.jsonl")
    two = lines(tmp_path, [{"_id": "b", "text": "new word"}, {"_id": "c", "text": "c word"}], "two.jsonl")
    for path in (one, one, two, two):
        load(engine, "docs", Corpus(path), ENCODER, checkpoints=Checkpoints(tmp_path / "loads"))
    assert {doc_id: source["text"] for doc_id, (source, _) in everything(engine, "docs").items()} == {
        "a": "a word",
        "b": "new word",
        "c": "c word",
    }
    assert list((tmp_path / "loads").iterdir()) == []


def test_an_index_with_vectors_takes_no_documents_without(engine, tmp_path):
    path = lines(tmp_path, [{"_id": "a", "text": "a word"}])
    load(engine, "docs", Corpus(path), ENCODER)
    with pytest.raises(UsageError, match="no vectors"):
        load(engine, "docs", Corpus(path), None)


class Killed(BaseException):
    """Raised by tests in place of a kill."""


class KilledEngine:
    """Ends after so many calls of `load`, before or after the batch is durable."""

    def __init__(self, engine, calls, after):
        self.engine, self.calls, self.after = engine, calls, after

    def __getattr__(self, name):
        return getattr(self.engine, name)

    def load(self, index, documents):
        self.calls -= 1
        if self.calls == 0 and not self.after:
            raise Killed
        rejected = self.engine.load(index, documents)
        if self.calls == 0:
            raise Killed
        return rejected


@pytest.mark.parametrize("after", [False, True])
@pytest.mark.parametrize("calls", [1, 2, 3])
def test_an_interrupted_load_resumes(engine, tmp_path, calls, after):
    rows = [{"_id": str(n), "text": f"word number {n}"} for n in range(3 * BATCH - 7)]
    path = lines(tmp_path, rows)
    path.write_bytes(path.read_bytes().replace(b'{"_id": "5", ', b"{ "))
    checkpoints = Checkpoints(tmp_path / "loads")
    with pytest.raises(Killed):
        load(KilledEngine(engine, calls, after), "docs", Corpus(path), ENCODER, checkpoints=checkpoints)
    done = load(engine, "docs", Corpus(path), ENCODER, checkpoints=checkpoints)
    assert (done.loaded, done.rejected) == (len(rows), 0)
    assert done.resumed_at == (calls - 1) * BATCH
    load(engine, "whole", Corpus(path), ENCODER)
    assert everything(engine, "docs") == everything(engine, "whole")


def test_a_checkpoint_of_an_index_that_is_gone_does_not_count(engine, tmp_path):
    path = lines(tmp_path, [{"_id": str(n), "text": f"word number {n}"} for n in range(2 * BATCH)])
    checkpoints = Checkpoints(tmp_path / "loads")
    with pytest.raises(Killed):
        load(KilledEngine(engine, 2, False), "docs", Corpus(path), ENCODER, checkpoints=checkpoints)
    engine.drop("docs")
    done = load(engine, "docs", Corpus(path), ENCODER, checkpoints=checkpoints)
    assert (done.resumed_at, engine.describe("docs").n_docs) == (0, 2 * BATCH)


def test_a_checkpoint_belongs_to_one_file_and_one_encoder(engine, tmp_path):
    rows = [{"_id": str(n), "text": f"word number {n}"} for n in range(2 * BATCH)]
    checkpoints = Checkpoints(tmp_path / "loads")
    with pytest.raises(Killed):
        load(KilledEngine(engine, 2, False), "docs", Corpus(lines(tmp_path, rows)), ENCODER, checkpoints=checkpoints)
    other = load(engine, "docs", Corpus(lines(tmp_path, rows[::-1])), ENCODER, checkpoints=checkpoints)
    assert other.resumed_at == 0


@pytest.mark.parametrize("content", ["", "[]", "{", '{"lines": 5}', '{"rejections": [[1]], "fields": [], "proof": []}'])
def test_a_damaged_checkpoint_does_not_count(engine, tmp_path, content):
    path = lines(tmp_path, [{"_id": str(n), "text": f"word number {n}"} for n in range(2 * BATCH)])
    checkpoints = Checkpoints(tmp_path / "loads")
    with pytest.raises(Killed):
        load(KilledEngine(engine, 2, False), "docs", Corpus(path), ENCODER, checkpoints=checkpoints)
    (kept,) = checkpoints.folder.glob("*.json")
    kept.write_text(content)
    done = load(engine, "docs", Corpus(path), ENCODER, checkpoints=checkpoints)
    assert (done.resumed_at, done.loaded) == (0, 2 * BATCH)


def test_a_folder_for_checkpoints_that_cannot_be_written(engine, tmp_path):
    (tmp_path / "file").write_text("in the way")
    path = lines(tmp_path, [{"_id": "a", "text": "a word"}])
    with pytest.raises(InputError, match="how far"):
        load(engine, "docs", Corpus(path), None, checkpoints=Checkpoints(tmp_path / "file"))
