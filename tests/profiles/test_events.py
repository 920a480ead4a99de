import io
import json
from collections import Counter
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.errors import InputError, UsageError
from bespeak.profiles.events import new_event, query_event, user_key
from bespeak.profiles.ubi import MAX_LINE_BYTES, RejectedEvent, read_event, read_events, ubi_line
from bespeak.records import Event, Request, UserKey

NOW = datetime(2025, 6, 1, 12, tzinfo=UTC)
AT = "2025-05-31T10:00:00Z"


def line(**given):
    return {"action_name": "click", "user_id": "u", "timestamp": AT} | given


def reasons(*lines: bytes) -> dict[int, str]:
    found = read_events(io.BytesIO(b"\n".join(lines)), now=NOW)
    return {line_no: item.reason for line_no, item in found if isinstance(item, RejectedEvent)}


def test_a_click_is_read_field_by_field():
    shown = {"object_id": "B07", "object_id_field": "asin", "description": "Gold ring"}
    event = read_event(
        line(session_id="s", query_id="q", client_id="c", user_query="gold", message="",
             event_attributes={"object": shown, "position": {"ordinal": 3}}), "shop", now=NOW)  # fmt: skip
    assert event.user == UserKey("shop", "u")
    assert (event.action, event.session_id, event.query_id, event.text) == ("click", "s", "q", "gold")
    assert (event.doc_id, event.title) == ("B07", "Gold ring")
    assert event.timestamp == datetime(2025, 5, 31, 10, tzinfo=UTC)
    assert event.attributes == {
        "client_id": "c", "event_attributes": {"object": {"object_id_field": "asin"}, "position": {"ordinal": 3}}
    }  # fmt: skip


def test_a_line_without_action_is_a_query():
    event = read_event({"user_query": "gold", "client_id": "c", "query_id": "q", "timestamp": AT}, now=NOW)
    assert (event.action, event.text, event.query_id, event.user.user_id) == ("query", "gold", "q", "c")


def test_a_query_may_be_empty():
    event = read_event({"user_query": "", "client_id": "c", "timestamp": AT}, now=NOW)
    assert (event.action, event.text) == ("query", "")
    assert read_event(ubi_line(event), now=NOW) == event


@pytest.mark.parametrize(
    ("given", "user_id"),
    [
        ({"user_id": "u", "client_id": "c"}, "u"),
        ({"user_id": "", "client_id": "c"}, "c"),
        ({"user_id": None, "client_id": "c"}, "c"),
        ({"user_id": None, "client_id": "c", "event_attributes": {"user_id": "inner"}}, "inner"),
        ({"user_id": None, "client_id": "c", "query_attributes": {"user_id": "inner"}}, "inner"),
        ({"user_id": 7}, "7"),
    ],
)
def test_the_user_is_found(given, user_id):
    assert read_event(line(**given), now=NOW).user.user_id == user_id


@pytest.mark.parametrize(
    ("timestamp", "read"),
    [
        ("2025-05-31T10:00:00Z", datetime(2025, 5, 31, 10, tzinfo=UTC)),
        ("2025-05-31T10:00:00", datetime(2025, 5, 31, 10, tzinfo=UTC)),
        ("2025-01-24T07:31:30.699+0000", datetime(2025, 1, 24, 7, 31, 30, 699000, tzinfo=UTC)),
        ("2025-05-31T10:00:00+02:00", datetime(2025, 5, 31, 8, tzinfo=UTC)),
        (1717527762025, datetime(2024, 6, 4, 19, 2, 42, 25000, tzinfo=UTC)),
        ("2025-06-02T11:00:00Z", datetime(2025, 6, 2, 11, tzinfo=UTC)),  # a clock that goes before ours
    ],
)
def test_timestamps(timestamp, read):
    event = read_event(line(timestamp=timestamp), now=NOW)
    assert event.timestamp == read
    assert event.timestamp.utcoffset() == timedelta(0)


@pytest.mark.parametrize(
    "timestamp",
    [None, "", "yesterday", True, [], {}, "2025-06-03T00:00:00Z", 1e300, 10**400, "9999-12-31T23:59:59-12:00",
     "0001-01-01T00:00:00+14:00", 1717527762, -1],
)  # fmt: skip
def test_bad_timestamps_are_rejected(timestamp):
    with pytest.raises(InputError, match="timestamp"):
        read_event(line(timestamp=timestamp), now=NOW)


@pytest.mark.parametrize(
    ("given", "text"),
    [
        ({"action_name": "statement", "message": " I am vegetarian "}, "I am vegetarian"),
        ({"action_name": "statement", "message": "x", "event_attributes": {"statement": "I am"}}, "I am"),
        ({"action_name": "answer", "query_id": "q", "message": "Forty-two"}, "Forty-two"),
        ({"action_name": "answer", "query_id": "q", "event_attributes": {"answer": "long"}}, "long"),
        ({"action_name": "search", "message": "gol"}, "gol"),
        ({"action_name": "query", "message": "gold"}, "gold"),
    ],
)
def test_what_was_said_or_typed(given, text):
    assert read_event(line(**given), now=NOW).text == text


@pytest.mark.parametrize("key", ["rating", "value"])
def test_a_rating_has_its_value(key):
    event = read_event(line(action_name="rating", event_attributes={"object": {"object_id": 12}, key: 4}), now=NOW)
    assert (event.doc_id, event.value) == ("12", 4.0)


RATED = {"object": {"object_id": "d"}}


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (b'{"action_name": "click"', "broken JSON at character"),
        (b"[1, 2]", "not a JSON object"),
        (b'{"user_query": "caf\xe9"}', "not UTF-8 at byte"),
        (b'{"user_query": NaN}', "NaN is not a JSON number"),
        (b'{"a": ' + b"9" * 5000 + b"}", "number is too long"),
        (b"[" * 100_000, "nested"),
        (b'{"index": {"_index": "x"}, "user_id": "u"}', "neither action_name nor user_query"),
        (b'{"delete": {"_id": "x"}}', "neither action_name nor user_query"),
        (b'"' + b"x" * MAX_LINE_BYTES + b'"', "longer than"),
        ({"user_id": None}, "neither user_id nor client_id"),
        ({"user_id": ["u"]}, "user_id is not text"),
        ({"user_id": "u" * 257}, "user id has 257 characters"),
        ({"user_id": "\ud800"}, "not Unicode"),
        ({"action_name": "x" * 101}, "action_name has 101"),
        ({"action_name": True}, "action_name is not text"),
        ({"event_attributes": "x"}, "event_attributes is not an object"),
        ({"event_attributes": {"object": []}}, "object is not an object"),
        ({"extra": "\udfff"}, "surrogate"),
        ({"user_query": "x" * 32_769}, "text has 32769 characters"),
        ({"extra": [[[[[[[[[[]]]]]]]]]] * 5}, ""),
        ({"action_name": "statement", "message": "  "}, "a statement without text"),
        ({"action_name": "answer", "message": "x"}, "an answer without query_id"),
        ({"action_name": "rating", "event_attributes": {"rating": 4}}, "a rating without object_id"),
        ({"action_name": "rating", "event_attributes": RATED}, "a rating that is not a number"),
        ({"action_name": "rating", "event_attributes": RATED | {"rating": 6}}, "a rating that is not a number"),
        ({"action_name": "rating", "event_attributes": RATED | {"rating": True}}, "a rating that is not a number"),
    ],
)
def test_a_bad_line_is_rejected_with_its_number_and_the_rest_is_read(bad, reason):
    good = json.dumps(line()).encode()
    bad = bad if isinstance(bad, bytes) else json.dumps(line(**bad)).encode()
    found = list(read_events(io.BytesIO(b"\n".join([good, bad, b"", good])), now=NOW))
    assert [line_no for line_no, _ in found] == [1, 2, 4]
    assert isinstance(found[0][1], Event)
    assert found[0][1] == found[2][1]
    if reason:
        assert reason in found[1][1].reason
    else:
        assert isinstance(found[1][1], Event)


def test_too_deep_is_rejected_at_any_breadth():
    deep = json.dumps(line(extra=json.loads("[" * 60 + "]" * 60))).encode()
    assert reasons(deep) == {1: "nested deeper than 50"}


def test_a_number_that_is_infinite_is_rejected():
    assert list(reasons(json.dumps(line()).encode()[:-1] + b', "x": 1e999}')) == [1]


def test_reasons_hold_nothing_of_the_line():
    secret = json.dumps(line(user_id=["secret"], message="secret")).encode()
    assert not any("secret" in reason for reason in reasons(secret, b'{"secret', b'{"secret": "\xff"}').values())


def test_a_bulk_file_with_a_byte_order_mark_is_read():
    body = "\ufeff" + "\n".join(
        json.dumps(part) for part in ({"index": {"_id": "1"}}, line(), {"create": {}}, line(query_id="q"))
    )
    found = list(read_events(io.BytesIO(body.encode()), now=NOW))
    assert [(line_no, type(item)) for line_no, item in found] == [(2, Event), (4, Event)]


def test_the_id_is_of_the_content():
    event = read_event(line(), "a", now=NOW)
    assert read_event(json.dumps(line()), "a", now=NOW).event_id == event.event_id
    assert read_event(line(timestamp="2025-05-31T12:00:00+02:00"), "a", now=NOW).event_id == event.event_id
    others = [read_event(line(), "b", now=NOW), read_event(line(user_id="v"), "a", now=NOW),
              read_event(line(query_id="q"), "a", now=NOW), read_event(line(extra=1), "a", now=NOW)]  # fmt: skip
    assert len({event.event_id, *(other.event_id for other in others)}) == 5


def test_new_event_turns_the_time_to_utc():
    at = datetime(2025, 1, 1, 12, tzinfo=timezone(timedelta(hours=2)))
    assert new_event(UserKey("", "u"), "view", at, doc_id="d").timestamp.isoformat() == "2025-01-01T10:00:00+00:00"


def test_the_event_of_a_request():
    event = query_event(Request("gold", "shop", UserKey("", "u"), "s"), NOW)
    assert (event.action, event.text, event.session_id, event.timestamp) == ("query", "gold", "s", NOW)
    with pytest.raises(InputError, match="without a user"):
        query_event(Request("gold", "shop"))
    with pytest.raises(InputError, match="102400 characters"):
        query_event(Request("x" * 102_400, "shop", UserKey("", "u")))


@pytest.mark.parametrize(("tenant", "user"), [("", ""), ("", "x" * 257), ("\ud800", "u"), ("", "a\udc80")])
def test_a_user_that_cannot_be_is_wrong_usage(tenant, user):
    with pytest.raises(UsageError):
        user_key(tenant, user)


def test_the_lines_of_the_guide_are_events():
    guide = (Path(__file__).parents[2] / "docs" / "events.md").read_text("utf-8")
    block = "\n".join(row for row in guide.splitlines() if row.startswith("    ") and ("{" in row or '"' in row))
    block, events = block[block.index('{"user_query') :], []
    while block.startswith("{"):
        read, end = json.JSONDecoder().raw_decode(block)
        events.append(read_event(read, now=NOW))
        block = block[end:].strip()
    assert [e.action for e in events] == ["query", "click", "answer", "statement", "rating"]


TEXT = st.text(max_size=40)
LEAF = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | TEXT
JSON = st.recursive(
    LEAF, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXT, inner, max_size=3), max_leaves=6
)
KEYS = ["message", "user_query", "session_id", "query_id", "client_id", "user_id", "message_type", "application"]
INNER = ["statement", "answer", "rating", "value", "session_id", "user_id", "position", "object"]
OBJECT = st.dictionaries(
    st.sampled_from(["object_id", "internal_id", "description", "title", "x"]), TEXT | st.integers()
)
LINES = st.fixed_dictionaries(
    {
        "action_name": st.sampled_from(["click", "query", "search", "statement", "answer", "rating"]) | TEXT,
        "timestamp": st.datetimes(datetime(1990, 1, 2), datetime(2025, 1, 1)).map(datetime.isoformat),
        "user_id": TEXT,
    },
    optional={key: TEXT | st.none() for key in KEYS if key != "user_id"}
    | {
        "event_attributes": st.none() | st.dictionaries(st.sampled_from(INNER), JSON | OBJECT, max_size=4),
        "query_attributes": st.dictionaries(TEXT, JSON, max_size=3),
        "x": JSON,
    },
)


@given(LINES, TEXT)
def test_an_event_comes_back_from_its_line(given_line, tenant):
    """Whatever the line: it is rejected with a reason, or its event written and read again is equal."""
    try:
        event = read_event(json.dumps(given_line), tenant, now=NOW)
    except InputError:
        return
    assert read_event(json.dumps(ubi_line(event)), tenant, now=NOW) == event
    assert ubi_line(event).get("action_name", "query") == event.action


def test_most_of_those_lines_are_events():
    """So that the property above is one of events, not of rejections."""
    whole = line(
        message="m", session_id="s", query_id="q", event_attributes={"object": {"object_id": "d"}, "rating": 3}
    )
    for action in ("click", "query", "search", "statement", "answer", "rating"):
        event = read_event(whole | {"action_name": action}, now=NOW)
        assert read_event(ubi_line(event), now=NOW) == event


@given(st.binary(max_size=300))
def test_any_bytes_are_events_or_rejections(body):
    found = list(read_events(io.BytesIO(body), now=NOW))
    assert len(found) <= body.count(b"\n") + 1


@pytest.mark.data
def test_the_real_file_counted_independently(shared_data):
    """Counted by text alone: bulk action lines, events by their action, queries by its absence."""
    path = shared_data / "ubi" / "ubi_queries_events.ndjson"
    texts = path.read_text("utf-8").splitlines()
    documents = [text for text in texts if not text.startswith('{"index":')]
    actions = Counter(json.loads(text).get("action_name", "query") for text in documents)
    with path.open("rb") as file:
        found = [item for _, item in read_events(file, "shop")]
    assert not [item for item in found if isinstance(item, RejectedEvent)]
    assert Counter(event.action for event in found) == actions
    assert len(found) == 3921
    assert {event.user.tenant for event in found} == {"shop"}
    clicks = [event for event in found if event.action in ("click", "add_to_cart", "purchase", "impression")]
    assert all(event.doc_id and event.query_id for event in clicks)
    for event in found:
        assert read_event(json.dumps(ubi_line(event)), "shop") == event
