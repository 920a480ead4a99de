"""Events as lines of JSON in the form of User Behavior Insights (schema 1.3).

A line with `action_name` is an event. A line with `user_query` but no `action_name` is a query (action `query`).
`docs/events.md` shows a line of each kind.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import IO, Any

from bespeak.errors import InputError
from bespeak.profiles.events import EPOCH, MAX_DEPTH, SAID, TYPED, new_event
from bespeak.records import Event, UserKey

MAX_LINE_BYTES = 1 << 18
MAX_AHEAD = timedelta(days=1)  # clocks differ, but not by more
EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)  # epoch seconds read as milliseconds are earlier
MESSAGE_CHARS = 1024  # UBI's limit for `message`; a longer text goes to `event_attributes`
BULK_ACTIONS = ("index", "create")


@dataclass(frozen=True, slots=True)
class RejectedEvent:
    """A line that holds no valid event. The reason repeats nothing of the line."""

    reason: str


def read_events(
    stream: IO[bytes], tenant: str = "", *, now: datetime | None = None
) -> Iterator[tuple[int, Event | RejectedEvent]]:
    """(line number from 1, event or rejection) of each line but empty ones and the action lines of a bulk file."""
    for line_no, _, line in read_lines(stream):
        item = read_line(line, tenant, now or datetime.now(UTC))
        if item is not None:
            yield line_no, item


def read_line(line: bytes | None, tenant: str, now: datetime) -> Event | RejectedEvent | None:
    """The event of a line, or why it has none; None for an empty line and for the action line of a bulk file.

    `line` is None if it was too long to be read.
    """
    if line is None:
        return RejectedEvent(f"longer than {MAX_LINE_BYTES} bytes")
    if not line.strip():
        return None
    try:
        parsed = read_object(line)
        return None if _is_bulk_action(parsed) else read_event(parsed, tenant, now=now)
    except InputError as error:
        return RejectedEvent(str(error))


def read_event(line: bytes | str | Mapping[str, Any], tenant: str = "", *, now: datetime | None = None) -> Event:
    """The event of a UBI line. Raises `InputError`, whose message repeats nothing of the line."""
    if not isinstance(line, (bytes, str, Mapping)):
        raise InputError("not a JSON object")
    rest = dict(read_object(line) if isinstance(line, (bytes, str)) else line)
    rest = {key: value for key, value in rest.items() if value is not None and (value != "" or key == "user_query")}
    inner, query_inner = _taken_object(rest, "event_attributes"), _taken_object(rest, "query_attributes")
    shown = _taken_object(inner, "object")
    action = _action(rest)
    user = UserKey(tenant, _user_id(rest, inner, query_inner))
    timestamp = read_timestamp(rest.pop("timestamp", None), now or datetime.now(UTC))
    session_id = _taken(rest, "session_id") or _taken(inner, "session_id") or _taken(query_inner, "session_id")
    doc_id = _taken(shown, "object_id") or str(shown.get("internal_id") or "")
    title = _taken(shown, "description") or (_taken(shown, "title") if isinstance(shown.get("title"), str) else "")
    text = _text(action, rest, inner)
    value = _rating(inner) if action == "rating" else None
    query_id = _taken(rest, "query_id")
    _put(inner, "object", shown)
    _put(rest, "event_attributes", inner)
    _put(rest, "query_attributes", query_inner)
    return new_event(user, action, timestamp, session_id=session_id, query_id=query_id, text=text, doc_id=doc_id,
                     title=title, value=value, attributes=rest)  # fmt: skip


def ubi_line(event: Event) -> dict[str, Any]:
    """The event as a UBI line, from which `read_event` makes the same event again for the same tenant."""
    line: dict[str, Any] = {} if event.action == "query" else {"action_name": event.action}
    line |= {"user_id": event.user.user_id, "timestamp": event.timestamp.isoformat()}
    line |= {key: value for key in ("session_id", "query_id") if (value := getattr(event, key))}
    line |= event.attributes
    inner = dict(line.pop("event_attributes", {}))
    shown = dict(inner.pop("object", {}))
    if event.doc_id:
        shown["object_id"] = event.doc_id
    if event.title:
        shown["description"] = event.title
    if event.value is not None:
        inner["rating"] = event.value
    if event.action in SAID and ("message" in line or len(event.text) > MESSAGE_CHARS):
        inner[event.action] = event.text
    elif event.text or event.action == "query":
        line["message" if event.action in (*SAID, *TYPED) else "user_query"] = event.text
    _put(inner, "object", shown)
    _put(line, "event_attributes", inner)
    return line


def read_lines(
    stream: IO[bytes], line_no: int = 0, offset: int = 0, max_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, int, bytes | None]]:
    """(line number, offset of its end, line) of each line; the line is None if it is too long."""
    while line := stream.readline(max_bytes + 1):
        line_no, offset, rest = line_no + 1, offset + len(line), line
        while len(rest) > max_bytes and not rest.endswith(b"\n"):
            rest = stream.readline(max_bytes + 1)
            offset += len(rest)
        yield line_no, offset, line if len(line) <= max_bytes else None


def read_object(line: bytes | str) -> dict[str, Any]:
    """The JSON object in a line. Raises `InputError`, whose message repeats nothing of the line."""
    try:
        text = line if isinstance(line, str) else line.decode("utf-8-sig")
        parsed = STRICT.decode(text)
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"broken JSON at character {error.pos + 1}: {error.msg}") from error
    except RecursionError as error:
        raise InputError(f"nested deeper than {MAX_DEPTH}") from error
    except ValueError as error:  # an integer of thousands of digits
        raise InputError("broken JSON: a number is too long") from error
    if not isinstance(parsed, dict):
        raise InputError("not a JSON object")
    return parsed


def _refuse_constant(name: str) -> float:
    raise InputError(f"broken JSON: {name} is not a JSON number")


STRICT = json.JSONDecoder(parse_constant=_refuse_constant)


def read_timestamp(given: Any, now: datetime) -> datetime:
    """The moment, in UTC, of an ISO 8601 text (UTC if it has no offset) or of milliseconds since 1970.

    Raises `InputError`.
    """
    if given is None:
        raise InputError("no timestamp")
    try:
        if isinstance(given, str):
            read = datetime.fromisoformat(given)
            read = read.replace(tzinfo=UTC) if read.tzinfo is None else read.astimezone(UTC)
        elif isinstance(given, (int, float)) and not isinstance(given, bool):
            read = EPOCH + timedelta(microseconds=round(given * 1000))
        else:
            raise InputError("timestamp is neither text nor a number")
    except (ValueError, OverflowError) as error:
        raise InputError("timestamp is neither ISO 8601 nor milliseconds since 1970") from error
    if read < EARLIEST:
        raise InputError(f"timestamp is before {EARLIEST.year}: a number counts milliseconds since 1970, not seconds")
    if read > now + MAX_AHEAD:
        raise InputError("timestamp is more than a day in the future")
    return read


def _is_bulk_action(parsed: Mapping[str, Any]) -> bool:
    return len(parsed) == 1 and any(isinstance(parsed.get(name), dict) for name in BULK_ACTIONS)


def _action(rest: dict[str, Any]) -> str:
    """The action of a line. An empty `user_query` is a query too: the start page of a shop sends it."""
    if action := _taken(rest, "action_name"):
        return action
    if "user_query" in rest:
        return "query"
    raise InputError("neither action_name nor user_query")


def _user_id(rest: dict[str, Any], inner: dict[str, Any], query_inner: dict[str, Any]) -> str:
    """The user of a line. In UBI 1.3, events have `user_id`; queries have it as an additional property, if at all."""
    user_id = _taken(rest, "user_id") or _taken(inner, "user_id") or _taken(query_inner, "user_id")
    client_id = rest.get("client_id", "")  # stays in the line: several users may share the device
    if not user_id and isinstance(client_id, (str, int)):
        user_id = str(client_id)
    if not user_id:
        raise InputError("neither user_id nor client_id")
    return user_id


def _text(action: str, rest: dict[str, Any], inner: dict[str, Any]) -> str:
    if action in SAID:
        return (_taken(inner, action) or _taken(rest, "message")).strip()
    if action in TYPED:
        return _taken(rest, "message") or _taken(rest, "user_query")
    text = _taken(rest, "user_query")
    return text or (_taken(rest, "message") if action == "query" else "")


def _rating(inner: dict[str, Any]) -> float | None:
    value = inner.pop("rating", None)
    value = inner.pop("value", None) if value is None else value
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


def _taken(mapping: dict[str, Any], key: str) -> str:
    """Removes a text from the mapping and returns it. Whole numbers count as text, since ids may be numbers."""
    value = mapping.pop(key, None)
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InputError(f"{key} is not text")


def _taken_object(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    """Removes an object from the mapping and returns a copy of it."""
    value = mapping.pop(key, None)
    if value is None or isinstance(value, dict):
        return dict(value or {})
    raise InputError(f"{key} is not an object")


def _put(mapping: dict[str, Any], key: str, value: dict[str, Any]) -> None:
    if value:
        mapping[key] = value
