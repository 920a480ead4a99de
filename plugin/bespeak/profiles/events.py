"""What users did, in User Behavior Insights form (schema 1.3), and the seam to where it is kept.

A line with `action_name` is an event, one without it but with `user_query` is a query (action `query`). Beside
UBI's own actions there are `statement`, `rating` and `answer`; `docs/events.md` shows each of them.
"""

from __future__ import annotations

import gzip
import hashlib
import itertools
import json
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, NamedTuple, Protocol

from bespeak.errors import InputError, UsageError
from bespeak.records import Event, Profile, Request, Rewrite, UserKey

if TYPE_CHECKING:
    from bespeak.rewriting.rewriter import RewriteKey

MAX_LINE_BYTES = 1 << 18
MAX_TEXT_CHARS = 32_768
MAX_ID_CHARS = 256
MAX_ACTION_CHARS = 100
MAX_DEPTH = 50  # of objects and arrays in one line
MAX_AHEAD = timedelta(days=1)  # clocks differ; more than this is a fault
EARLIEST = datetime(1990, 1, 1, tzinfo=UTC)  # epoch seconds read as milliseconds fall before it
RATING_RANGE = (0.5, 5.0)
MESSAGE_CHARS = 1024  # UBI's limit for `message`; a longer text goes to `event_attributes`
LOAD_BATCH = 1000  # lines in one transaction

SAID = ("statement", "answer")  # actions whose text is what was said, not what was searched
TYPED = ("search", "on_search")  # sent by a search box while its user types, with the text in `message`
BULK_ACTIONS = ("index", "create")
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Rejected:
    """A line that was not taken, and why; the reason holds nothing of the line's content."""

    reason: str


@dataclass(frozen=True, slots=True)
class Load:
    """How far one file has been loaded for one tenant; `offset` counts bytes after decompression."""

    tenant: str
    file_digest: str
    offset: int = 0
    line_no: int = 0
    events: int = 0  # readable events up to `offset`
    added: int = 0  # of them, new to the store
    rejected: int = 0


class Batch(NamedTuple):
    """Some lines of a file, up to `line_no` and `offset`."""

    line_no: int
    offset: int
    events: tuple[Event, ...]
    rejected: tuple[tuple[int, str], ...]


class Forgotten(NamedTuple):
    """What `forget` deleted."""

    events: int
    rewrites: int
    consent: int


class EventStore(Protocol):
    """Where events are kept and profiles come from. Raises `StoreError`; a store that does not exist yet is empty."""

    def add(self, events: Iterable[Event]) -> int:
        """How many of them were new; an event that is there already is left as it is."""
        ...

    def profile(self, user: UserKey | None, session_id: str, now: datetime, query_id: str = "") -> Profile:
        """What is known of the user in this session.

        Ask before adding the event of the query that is being asked, or name its `query_id` where the client
        has sent it already: that query is then not a turn.
        """
        ...

    def export(self, user: UserKey) -> Iterator[Event]:
        """All events of the user, oldest first."""
        ...

    def of_everyone(self, actions: Sequence[str]) -> Iterator[Event]:
        """The events of these actions of all users of all tenants, those of one user together.

        Without those of users who paused: nobody else is served by what they did.
        """
        ...

    def forget(self, user: UserKey) -> Forgotten:
        """Deletes the user's events, consent and cached rewrites, so that no byte of them stays in the store.

        A cluster finds nothing of them at once, and rewrites its files later.
        """
        ...

    def set_consent(self, user: UserKey, given: bool) -> None: ...

    def get_rewrite(self, key: RewriteKey) -> Rewrite | None: ...

    def put_rewrite(self, key: RewriteKey, rewrite: Rewrite) -> None:
        """Kept only for a user with events: one who was forgotten meanwhile leaves no trace."""
        ...

    def drop_rewrite(self, key: RewriteKey) -> None: ...

    def resume(self, tenant: str, file_digest: str) -> Load:
        """Where an interrupted load of this file stands; its beginning if there is none."""
        ...

    def record(self, load: Load, batch: Batch) -> Load:
        """Adds the batch and moves the load to its end, in one transaction."""
        ...

    def rejections(self, load: Load) -> Iterator[tuple[int, str]]:
        """(line number, reason) of every rejected line of this load, in order."""
        ...

    def finish(self, load: Load) -> None:
        """Forgets the load, so that loading the file again reads it again."""
        ...

    def close(self) -> None: ...


def user_key(tenant: str, user_id: str) -> UserKey:
    """Raises `UsageError` where no event could ever have this user."""
    for name, value in (("tenant", tenant), ("user", user_id)):
        if reason := _odd_id(name, value):
            raise UsageError(reason)
    if not user_id:
        raise UsageError("user is empty: name the user whose data it is")
    return UserKey(tenant, user_id)


def new_event(
    user: UserKey,
    action: str,
    timestamp: datetime,
    *,
    session_id: str = "",
    query_id: str = "",
    text: str = "",
    doc_id: str = "",
    title: str = "",
    value: float | None = None,
    attributes: Mapping[str, Any] | None = None,
) -> Event:
    """An event whose `event_id` is a digest of its content, `timestamp` aware. Raises `InputError`."""
    ids = {"tenant": user.tenant, "user": user.user_id, "session": session_id, "query": query_id, "object": doc_id}
    for name, given in ids.items():
        if reason := _odd_id(name, given):
            raise InputError(reason)
    if len(action) > MAX_ACTION_CHARS:
        raise InputError(f"action_name has {len(action)} characters, at most {MAX_ACTION_CHARS} are taken")
    for name, given in (("text", text), ("description", title)):
        if len(given) > MAX_TEXT_CHARS:
            raise InputError(f"{name} has {len(given)} characters, at most {MAX_TEXT_CHARS} are taken")
    if reason := _incomplete(action, text, query_id, doc_id, value):
        raise InputError(reason)
    rest = dict(attributes or {})
    told = (session_id, query_id, text, doc_id, title, value, rest)
    event_id = _digest((*user, action, microseconds(timestamp), *told))
    return Event(event_id, user, action, timestamp.astimezone(UTC), *told)


def query_event(request: Request, now: datetime | None = None, query_id: str = "") -> Event:
    """The event of a query asked here, to be added after it was answered. Raises `InputError` for one too long."""
    if request.user is None:
        raise InputError("a query without user is nobody's event")
    attributes = {"query_attributes": {"index": request.index}}
    return new_event(
        request.user, "query", now or datetime.now(UTC), session_id=request.session_id, query_id=query_id,
        text=request.query, attributes=attributes,
    )  # fmt: skip


def microseconds(timestamp: datetime) -> int:
    """Since 1970, exact."""
    return (timestamp - EPOCH) // timedelta(microseconds=1)


def read_event(line: bytes | str | Mapping[str, Any], tenant: str = "", *, now: datetime | None = None) -> Event:
    """The event of one UBI line. Raises `InputError` with the reason alone."""
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
    """The event as a UBI line; `read_event` of it, for the same tenant, is the event again."""
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


def read_events(
    stream: IO[bytes], tenant: str = "", *, now: datetime | None = None
) -> Iterator[tuple[int, Event | Rejected]]:
    """(line number from 1, event or why not) for each line; empty ones and a bulk file's action lines are left out."""
    for line_no, _, line in read_lines(stream):
        item = _item(line, tenant, now or datetime.now(UTC))
        if item is not None:
            yield line_no, item


def load(path: Path, tenant: str, store: EventStore, report: Callable[[int], object] = lambda _: None) -> Load:
    """Adds a file (plain or gzip) to the store, from where an earlier run was cut off.

    `report` gets the bytes of the file read since the last report. The load stays in the store, with its rejected
    lines, until `store.finish`. Raises `InputError` for a file that cannot be read.
    """
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, lambda: hashlib.blake2b(digest_size=16)).hexdigest()
            done, reported = store.resume(tenant, digest), 0
            for batch in _batches(_plain(file, done.offset), done):
                done = store.record(done, batch)
                report(file.tell() - reported)
                reported = file.tell()
            return done
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise InputError(
            f"{path} is cut short or damaged as a gzip file: fetch it again, then load it again"
        ) from error
    except OSError as error:
        raise InputError(f"cannot read {path} ({error.strerror}): check the path and its permissions") from error


def _plain(file: IO[bytes], offset: int) -> IO[bytes]:
    """The file's lines, decompressed where it is a gzip file, from `offset` on."""
    file.seek(0)
    zipped = file.read(2) == b"\x1f\x8b"
    file.seek(0)
    stream: IO[bytes] = gzip.GzipFile(fileobj=file) if zipped else file  # type: ignore[assignment]
    stream.seek(offset)
    return stream


def _batches(stream: IO[bytes], done: Load) -> Iterator[Batch]:
    now, lines = datetime.now(UTC), read_lines(stream, done.line_no, done.offset)
    while chunk := list(itertools.islice(lines, LOAD_BATCH)):
        items = [(line_no, _item(line, done.tenant, now)) for line_no, _, line in chunk]
        rejected = tuple((line_no, item.reason) for line_no, item in items if isinstance(item, Rejected))
        events = tuple(item for _, item in items if isinstance(item, Event))
        line_no, offset, _ = chunk[-1]
        yield Batch(line_no, offset, events, rejected)


def read_lines(
    stream: IO[bytes], line_no: int = 0, offset: int = 0, max_bytes: int = MAX_LINE_BYTES
) -> Iterator[tuple[int, int, bytes | None]]:
    """(line number, offset of its end, line), the line None where it is too long."""
    while line := stream.readline(max_bytes + 1):
        line_no, offset, part = line_no + 1, offset + len(line), line
        while len(part) > max_bytes and not part.endswith(b"\n"):
            part = stream.readline(max_bytes + 1)
            offset += len(part)
        yield line_no, offset, line if len(line) <= max_bytes else None


def _item(line: bytes | None, tenant: str, now: datetime) -> Event | Rejected | None:
    """None for what holds no event: an empty line, or an action line of a bulk file."""
    if line is None:
        return Rejected(f"longer than {MAX_LINE_BYTES} bytes")
    if not line.strip():
        return None
    try:
        parsed = read_object(line)
        return None if _is_bulk_action(parsed) else read_event(parsed, tenant, now=now)
    except InputError as error:
        return Rejected(str(error))


def _is_bulk_action(parsed: Mapping[str, Any]) -> bool:
    return len(parsed) == 1 and any(isinstance(parsed.get(name), dict) for name in BULK_ACTIONS)


def read_object(line: bytes | str) -> dict[str, Any]:
    """The JSON object that a line holds. Raises `InputError` with the reason alone."""
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
CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def _digest(content: tuple[Any, ...]) -> str:
    try:
        text = CANONICAL.encode(content)
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()
    except UnicodeEncodeError as error:
        raise InputError("holds half of a surrogate pair, which is not a character") from error
    except (RecursionError, ValueError) as error:
        raise InputError("nested too deep, or a number is too large") from error
    except TypeError as error:
        raise InputError("attributes hold something that is not JSON") from error
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(content[-1]) > MAX_DEPTH:
        raise InputError(f"nested deeper than {MAX_DEPTH}")
    return digest


def _depth(value: Any) -> int:
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (dict, list, tuple))]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth


def _odd_id(name: str, value: str) -> str:
    if len(value) > MAX_ID_CHARS:
        return f"{name} id has {len(value)} characters, at most {MAX_ID_CHARS} are taken"
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        return f"{name} id is not Unicode text"
    return ""


def _incomplete(action: str, text: str, query_id: str, doc_id: str, value: float | None) -> str:
    if action in SAID and not text:
        return f"a {action} without text" if action == "statement" else "an answer without text"
    if action == "answer" and not query_id:
        return "an answer without query_id"
    if action != "rating":
        return ""
    if value is None or not RATING_RANGE[0] <= value <= RATING_RANGE[1]:
        return f"a rating that is not a number from {RATING_RANGE[0]:g} to {RATING_RANGE[1]:g}"
    return "" if doc_id else "a rating without object_id"


def _action(rest: dict[str, Any]) -> str:
    """An empty `user_query` is a query too: a shop's start page asks it."""
    if action := _taken(rest, "action_name"):
        return action
    if "user_query" in rest:
        return "query"
    raise InputError("neither action_name nor user_query")


def _user_id(rest: dict[str, Any], inner: dict[str, Any], query_inner: dict[str, Any]) -> str:
    """UBI 1.3 has `user_id` in events; its queries carry it as an additional property, if at all."""
    user_id = _taken(rest, "user_id") or _taken(inner, "user_id") or _taken(query_inner, "user_id")
    client_id = rest.get("client_id", "")  # stays in the line, a device that the user may share
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


def read_timestamp(given: Any, now: datetime) -> datetime:
    """ISO 8601 (UTC where no offset is given) or milliseconds since 1970; aware, UTC. Raises `InputError`."""
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


def _taken(mapping: dict[str, Any], key: str) -> str:
    """Takes a text out of the mapping; ids may be whole numbers there."""
    value = mapping.pop(key, None)
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    raise InputError(f"{key} is not text")


def _taken_object(mapping: dict[str, Any], key: str) -> dict[str, Any]:
    """Takes an object out of the mapping, as a copy that may be taken from in turn."""
    value = mapping.pop(key, None)
    if value is None or isinstance(value, dict):
        return dict(value or {})
    raise InputError(f"{key} is not an object")


def _put(mapping: dict[str, Any], key: str, value: dict[str, Any]) -> None:
    if value:
        mapping[key] = value
