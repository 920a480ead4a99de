"""A run interrupted anywhere resumes, and writes what an uninterrupted run writes."""

from __future__ import annotations

import gzip
import io
import json
import shutil

import pytest
import zstandard

from batch_runs import INPUT, Runs
from bespeak.batch.output import StreamOutput
from bespeak.batch.report import STATUSES
from bespeak.batch.run import rewrite_file
from bespeak.errors import InputError, UsageError
from bespeak.rewriting.rewriter import Unchanged
from bespeak.statuses import RewriteStatus
from fakes import ScriptedReader

OUTPUTS = ("out.jsonl", "out.jsonl.rejected")


def whole(tmp_path, output="out.jsonl", content=INPUT, **more):
    """The output of an uninterrupted run in its own folder."""
    (tmp_path / "whole").mkdir()
    runs = Runs(tmp_path / "whole")
    runs.write(content)
    runs.run("in.jsonl", output, **more)
    return [runs.read(output), runs.read(output + ".rejected")]


def test_each_query_gives_a_line_in_the_order_of_the_input(runs):
    state = runs.run()
    rows = [json.loads(line) for line in runs.read().splitlines()]
    assert [row["id"] for row in rows] == [*(f"q{n}" for n in range(13)), 16, "q13", "q14"]
    assert rows[0]["rewrite"] == "how much is it 0? red hats kind Borsalino costs 300 euros"
    assert rows[0]["terms"][0] == {"text": "red", "source": "turn", "event_id": "history[0]"}
    assert (rows[0]["status"], rows[0]["model"]) == ("full", "last-turn 1")
    assert (rows[13]["status"], rows[13]["reason"], rows[13]["profile"]) == ("gated", "no_history", "")
    assert rows[0]["profile"] == rows[7]["profile"] != rows[1]["profile"]
    assert [json.loads(line)["line"] for line in runs.read("out.jsonl.rejected").splitlines()] == [13, 18]
    assert state.tally.statuses == {"full": 15, "gated": 1}
    assert state.tally.rejected == {"broken JSON": 1, "not a JSON object": 1}
    assert runs.names() == ["in.jsonl", "out.jsonl", "out.jsonl.progress", "out.jsonl.rejected"]


def test_the_report_has_words_for_every_status():
    assert set(STATUSES) == set(RewriteStatus) - {RewriteStatus.CACHED}  # which it counts beside its status


@pytest.mark.parametrize("n_workers", [1, 2])
def test_queries_that_stand_alone_are_counted(runs, n_workers):
    state = runs.run(context=ScriptedReader({}), n_workers=n_workers)
    assert state.tally.statuses == {"gated": 16}
    assert state.tally.gates == {"stands_alone": 15, "no_history": 1}


@pytest.mark.parametrize("n_steps", [1, 2, 3, 4])
@pytest.mark.parametrize("output", ["out.jsonl", "out.jsonl.gz", "out.jsonl.zst"])
def test_a_run_interrupted_after_any_chunk_resumes(runs, tmp_path, n_steps, output):
    runs.begin(n_steps, "in.jsonl", output)
    assert runs.read(output) is None
    state = runs.run("in.jsonl", output)
    assert [runs.read(output), runs.read(output + ".rejected")] == whole(tmp_path, output)
    assert sum(state.tally.statuses.values()) == 16
    assert state.tally.lines_rejected == 2


def test_a_run_resumes_from_any_end_of_its_journal_and_output(runs, tmp_path):
    """A power cut: the journal ends at any byte, and the output holds more than the journal says."""
    expected = whole(tmp_path)
    runs.begin(3)
    left = {name: runs.read(name) for name in ("out.jsonl.part", "out.jsonl.rejected", "out.jsonl.progress")}
    journal = left["out.jsonl.progress"]
    ends = [place for place, byte in enumerate(journal) if byte == ord("\n")]
    near = {end + by for end in ends for by in (-1, 0, 1, 2)}
    for n_bytes in sorted(near | set(range(0, len(journal), 61))):
        again = Runs(tmp_path / f"at{n_bytes}")
        again.folder.mkdir()
        again.write(INPUT)
        again.write(left["out.jsonl.part"] + b'{"id": "half', "out.jsonl.part")
        again.write(left["out.jsonl.rejected"] + b"\0\0\0", "out.jsonl.rejected")
        again.write(journal[:n_bytes], "out.jsonl.progress")
        again.run()
        assert [again.read(name) for name in OUTPUTS] == expected
        shutil.rmtree(again.folder)


@pytest.mark.parametrize("lost", ["name", "journal's end"])
def test_an_interrupted_end_is_repeated(runs, lost):
    """The journal does not know whether the output has its final name."""
    runs.run()
    expected = runs.read()
    journal = runs.read("out.jsonl.progress").splitlines(keepends=True)
    runs.write(b"".join(journal[:-1]), "out.jsonl.progress")
    if lost == "name":
        (runs.folder / "out.jsonl").rename(runs.folder / "out.jsonl.part")
    assert runs.run().finished
    assert runs.read() == expected


def test_a_finished_run_is_left_as_it_is(runs):
    first = runs.run()
    (runs.folder / "out.jsonl").write_bytes(b"as somebody left it")
    assert runs.run() == first
    assert runs.read() == b"as somebody left it"
    (runs.folder / "out.jsonl").unlink()
    runs.run()
    assert runs.read().startswith(b'{"id":"q0"')


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"begun_with": {"model": "other 2"}}, r"another model \(last-turn 1 then, other 2 now\)"),
        ({"begun_with": {"model": "last-turn 1", "check": "hats"}}, r"another check \(none then, hats now\)"),
        ({"begun_with": {}}, r"another model \(last-turn 1 then, none now\)"),
        ({"format": "parquet"}, r"another format \(jsonl then, parquet now\)"),
    ],
)
def test_changed_options_are_refused(runs, change, said):
    runs.begin(2)
    with pytest.raises(InputError, match=said):
        runs.run(**change)
    runs.run()


def test_a_changed_input_is_refused_before_and_after_the_end(runs):
    runs.begin(2)
    for _ in range(2):
        runs.write([*INPUT[:-1], INPUT[0]])
        with pytest.raises(InputError, match="another input: give the same again, or another --output, or delete"):
            runs.run()
        runs.write(INPUT)
        runs.run()


def test_an_existing_file_is_never_overwritten(runs):
    runs.write(b"precious", "out.jsonl")
    with pytest.raises(InputError, match="exists, and no run that could resume"):
        runs.run()
    assert runs.read() == b"precious"


def test_files_that_lost_what_was_committed_are_refused(runs):
    runs.begin(3)
    (runs.folder / "out.jsonl.part").write_bytes(b"")
    with pytest.raises(InputError, match="shorter than the run left it"):
        runs.run()


def test_two_processes_do_not_write_one_output(runs):
    def second(_state, _read_bytes):
        with pytest.raises(InputError, match="another process"):
            runs.run()

    runs.run(report=second)
    assert len(runs.read().splitlines()) == 16


def test_a_rejected_line_stops_a_strict_run(runs):
    with pytest.raises(InputError, match=r"^line 13: broken JSON"):
        runs.run(strict=True)
    assert runs.run().tally.queries == 16  # without it, the same run resumes


@pytest.mark.parametrize("pack", [gzip.compress, lambda content: zstandard.ZstdCompressor().compress(content)])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_a_run_over_packed_input_resumes(runs, tmp_path, pack, n_steps):
    content = "\n".join(INPUT).encode()
    packed = pack(content[:700]) + pack(content[700:])  # two members or frames, cut within a line
    expected = whole(tmp_path)
    runs.write(packed, "in.jsonl")
    runs.begin(n_steps)
    runs.run()
    assert [runs.read(name) for name in OUTPUTS] == expected


@pytest.mark.parametrize("pack", [gzip.compress, lambda content: zstandard.ZstdCompressor().compress(content)])
def test_a_packed_input_that_is_cut_short_is_refused(runs, pack):
    runs.write(pack("\n".join(INPUT).encode())[:-9])
    with pytest.raises(InputError, match="cut short or damaged after line"):
        runs.run()
    assert runs.read() is None


@pytest.mark.parametrize("content", [b"", b"\n\n", b"{\n"])
@pytest.mark.parametrize(("output", "unpack"), [
    ("out.jsonl", bytes), ("out.jsonl.gz", gzip.decompress),
    ("out.jsonl.zst", lambda packed: zstandard.ZstdDecompressor().decompress(packed)),
])  # fmt: skip
def test_an_input_without_queries_has_an_empty_output(runs, content, output, unpack):
    runs.write(content)
    runs.run("in.jsonl", output)
    assert unpack(runs.read(output)) == b""


def test_streams_are_rewritten_but_cannot_be_resumed(runs, tmp_path):
    expected = whole(tmp_path)
    out, rejected = io.BytesIO(), []
    job, open_tools = runs.job()
    streamed = type(job)(io.BytesIO("\n".join(INPUT).encode()), StreamOutput(out, rejected.append), {})
    assert not streamed.resumable
    rewrite_file(streamed, open_tools)
    assert [out.getvalue(), b"".join(rejected)] == expected
    to_file = type(job)(io.BytesIO("\n".join(INPUT).encode()), job.output, {})
    rewrite_file(to_file, open_tools)
    assert [runs.read(name) for name in OUTPUTS] == expected
    assert "out.jsonl.progress" not in runs.names()


@pytest.mark.parametrize("n_steps", [0, 2])
def test_parquet_holds_the_same(runs, n_steps):
    parquet = pytest.importorskip("pyarrow.parquet", reason="pyarrow is not installed (extra `parquet`)")
    if n_steps:
        runs.begin(n_steps, "in.jsonl", "out.parquet", format="parquet")
    runs.run("in.jsonl", "out.parquet", format="parquet")
    runs.run()
    rows = [json.loads(line) for line in runs.read().splitlines()]
    assert parquet.read_table(runs.folder / "out.parquet").to_pylist() == [
        {**row, "id": str(row["id"])} for row in rows
    ]
    assert "out.parquet.part" not in runs.names()


def test_parquet_cannot_be_written_to_a_stream(runs):
    pytest.importorskip("pyarrow", reason="pyarrow is not installed (extra `parquet`)")
    job, open_tools = runs.job(format="parquet")
    with pytest.raises(UsageError, match="stream"):
        rewrite_file(type(job)(job.source, StreamOutput(io.BytesIO(), print), {}, "parquet"), open_tools)


def test_without_a_rewriter_every_query_is_as_typed(runs):
    runs.run(rewriter=Unchanged)
    rows = [json.loads(line) for line in runs.read().splitlines()]
    assert {(row["query"] == row["rewrite"], row["status"]) for row in rows} == {(True, "off"), (True, "gated")}
