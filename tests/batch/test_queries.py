"""Reading queries from lines, and the reasons why lines are rejected."""

from __future__ import annotations

import io
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.batch.lines import CHUNK_BYTES, MAX_LINE_BYTES, LinePosition, read_chunks
from bespeak.batch.queries import QueryLine, RejectedQuery, read_queries
from bespeak.records import Statement, Turn, UserKey


def read(line, form="jsonl"):
    (found,) = read_queries(1, [line if isinstance(line, bytes) else line.encode()], form)
    return found


def test_a_line_may_give_query_user_session_and_history():
    given = {
        "id": 7, "query": "how much?", "user": "ada", "session": 3, "tenant": "shop", "statements": ["I am tall"],
        "history": [{"query": "hats", "response": "red ones"}, {"query": "scarves"}], "more": {"a": 1},
    }  # fmt: skip
    asked = read(json.dumps(given))
    assert (asked.query_id, asked.query, asked.user, asked.session_id) == (7, "how much?", UserKey("shop", "ada"), "3")
    assert asked.history.turns == (Turn("hats", "red ones", "history[0]"), Turn("scarves", "", "history[1]"))
    assert asked.history.statements == (Statement("I am tall", "statements[0]"),)
    assert (asked.history.user, asked.history.session_id) == (asked.user, "3")


def test_null_is_as_if_not_given():
    names = ("id", "user", "session", "tenant", "history", "statements")
    assert read(json.dumps({"query": "q"} | dict.fromkeys(names))) == read('{"query": "q"}') == QueryLine(1, None, "q")


def test_an_empty_history_is_an_empty_profile():
    assert read('{"query": "q", "user": "ada", "history": []}').history.is_empty
    assert read('{"query": "q", "user": "ada", "history": []}').history.version == ""


def test_a_long_history_is_cut_to_its_end_and_keeps_its_numbering():
    turns = [{"query": f"q{n}"} for n in range(1000)]
    own = read(json.dumps({"query": "q", "history": turns, "statements": [f"s{n}" for n in range(1000)]})).history
    assert (len(own.turns), own.turns[-1].event_id, own.turns[0].query) == (20, "history[999]", "q980")
    assert (len(own.statements), own.statements[0].event_id) == (250, "statements[750]")


def test_equal_histories_have_equal_versions():
    def version(**given):
        return read(json.dumps({"query": "q"} | given)).history.version

    said = version(history=[{"query": "hats", "response": "red"}])
    assert said == version(history=[{"query": "hats", "response": "red"}], user="ada")
    others = [
        version(history=[{"query": "hats"}]),
        version(history=[{"query": "hats", "response": "red"}] * 2),
        version(statements=["hats"]),
        version(history=[{"query": "hats", "response": "red"}], statements=["hats"]),
    ]
    assert len({said, *others}) == 5


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b'{"query": "caf\xe9"}', "not UTF-8"),
        (b"\xff\xfe{\0", "not UTF-8"),
        (b'{"query": "a\0b"}', "broken JSON"),
        (b'{"query": "a\\u0000b"}', "query holds a NUL"),
        (b'{"query": "a\\ud800"}', "query holds half of a surrogate pair"),
        (b'{"query": "q", "history": [{"query": "\\udfff"}]}', "history: query holds half of a surrogate pair"),
        (b'{"query": "q", "statements": ["\\u0000"]}', "statements holds a NUL"),
        (b'{"query": ""}', "the query is empty"),
        (b'{"query": " \\t"}', "the query is empty"),
        (b'{"id": 1}', "no query"),
        (b'{"query": null}', "no query"),
        (b'{"query": 7}', "query is not text"),
        (b'{"query": ["q"]}', "query is not text"),
        (b'{"query": "%s"}' % (b"x" * 10_001), "the query is longer than 10000 characters"),
        (b'{"query": "q", "id": 1.5}', "id is not text"),
        (b'{"query": "q", "id": true}', "id is not text"),
        (b'{"query": "q", "id": {}}', "id is not text"),
        (b'{"query": "q", "id": 9223372036854775808}', "id is a number of more than 64 bits"),
        (b'{"query": "q", "id": "%s"}' % (b"x" * 257), "id is longer than 256 characters"),
        (b'{"query": "q", "user": []}', "user is not text"),
        (b'{"query": "q", "tenant": {}, "user": "u"}', "tenant is not text"),
        (b'{"query": "q", "history": {}}', "history is not an array"),
        (b'{"query": "q", "history": ["hats"]}', "history holds something that is not an object"),
        (b'{"query": "q", "history": [{"response": "r"}]}', "history holds a turn without query"),
        (b'{"query": "q", "history": [{"query": "h", "response": 1}]}', "history: response is not text"),
        (b'{"query": "q", "statements": "I am"}', "statements is not an array"),
        (b'{"query": "q", "statements": [1]}', "statements holds something that is not text"),
        (b'{"query": "q", "x": NaN}', "broken JSON: NaN is not a JSON number"),
        (b'{"query": "q", "x": %s}' % (b"1" * 5_000), "broken JSON: a number is too long"),
        (b'{"query": "q", "x": %s}' % (b"[" * 200_000), "nested deeper than 50"),
        (b'["query"]', "not a JSON object"),
        (b'{"query": "q"} {"query": "r"}', "broken JSON"),
    ],
)
def test_bad_lines_have_reasons(line, reason):
    rejected = read(line)
    assert isinstance(rejected, RejectedQuery)
    assert rejected.kind == reason
    assert rejected.line_no == 1
    assert len(rejected.text) <= 2_000


@given(st.binary(max_size=200))
def test_any_bytes_are_read_or_rejected(line):
    for form in ("jsonl", "tsv"):
        for found in read_queries(1, [line.replace(b"\n", b"")], form):
            assert isinstance(found, QueryLine) or found.reason
            json.dumps(found.query if isinstance(found, QueryLine) else found.text, ensure_ascii=False).encode()


@given(st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner, max_size=3)
       | st.dictionaries(st.sampled_from(["query", "response", "x"]), inner, max_size=3), max_leaves=6),
       st.sampled_from(["id", "query", "user", "session", "tenant", "history", "statements"]))  # fmt: skip
def test_any_value_is_accepted_or_rejected(value, name):
    found = read(json.dumps({"query": "q"} | {name: value}))
    assert isinstance(found, QueryLine) or found.reason


@pytest.mark.parametrize(
    ("line", "query_id", "query"),
    [(b"7\thow much?\r\n", "7", "how much?"), (b"\thow much?", "", "how much?"), ("ü\té".encode(), "ü", "é")],
)
def test_two_columns_are_a_query(line, query_id, query):
    asked = read(line, "tsv")
    assert (asked.query_id, asked.query) == (query_id, query)


def chunks(content, after=LinePosition()):  # noqa: B008
    return list(read_chunks(io.BytesIO(content), after))


def test_a_line_that_is_too_long_is_skipped_without_being_kept_in_memory():
    content = b'{"query": "%s"}\n{"query": "r"}' % (b"x" * 3 * MAX_LINE_BYTES)
    (chunk,) = chunks(content)
    found = list(read_queries(chunk.first_no, chunk.lines, "jsonl"))
    assert (found[0].reason, found[1].query) == ("longer than a line may be", "r")
    assert chunk.end == LinePosition(2, len(content))


def test_long_lines_end_a_chunk():
    line = b'{"query": "q", "x": "%s"}\n' % (b"x" * (MAX_LINE_BYTES - 100))
    found = chunks(line * 9)
    assert [len(chunk.lines) for chunk in found] == [5, 4]
    assert all(sum(map(len, chunk.lines)) < CHUNK_BYTES + MAX_LINE_BYTES for chunk in found)


@given(st.lists(st.binary(max_size=8), max_size=40), st.integers(0, 9))
def test_reading_can_start_at_the_end_of_any_chunk(lines, which):
    content = b"-" + b"\n".join(lines)  # which looks packed by no chance
    every = chunks(content)
    after = every[which % len(every)].end if every else LinePosition()
    assert [chunk._replace(read_bytes=0) for chunk in chunks(content, after)] == [
        chunk._replace(read_bytes=0) for chunk in every if chunk.first_no > after.line_no
    ]
    taken = [line for chunk in every for line in chunk.lines]
    assert b"".join(taken) == content


def test_a_byte_order_mark_is_ignored():
    (chunk,) = chunks(b'\xef\xbb\xbf{"query": "q"}')
    assert chunk.lines == (b'{"query": "q"}',)
