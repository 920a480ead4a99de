"""Events: what a user did, complete and within the limits that every store keeps.

The fields follow User Behavior Insights (schema 1.3). The actions `statement`, `rating` and `answer` are Bespeak's own.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any, TypedDict, Unpack

from bespeak.errors import InputError, UsageError
from bespeak.records import Event, Request, UserKey

MAX_TEXT_CHARS = 32_768
MAX_ID_CHARS = 256
MAX_ACTION_CHARS = 100
MAX_DEPTH = 50  # of objects and arrays in the attributes
RATING_RANGE = (0.5, 5.0)

SAID = ("statement", "answer")  # actions whose text is what was said, not what was searched
TYPED = ("search", "on_search")  # sent by a search box while its user types
EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
CANONICAL = json.JSONEncoder(sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":"))


def user_key(tenant: str, user_id: str) -> UserKey:
    """The key of a user. Raises `UsageError` if no event can have such a user."""
    check_id("tenant", tenant)
    check_id("user", user_id)
    if not user_id:
        raise UsageError("user is empty: name the user whose data it is")
    return UserKey(tenant, user_id)


def check_id(name: str, value: str) -> None:
    """Raises `UsageError` if no event can have such a user, session or tenant."""
    if reason := _fault_of_id(name, value):
        raise UsageError(reason)


class EventDetails(TypedDict, total=False):
    """The fields of an `Event` that not every action has; what is left out is empty."""

    session_id: str
    query_id: str
    text: str
    doc_id: str
    title: str
    value: float | None
    attributes: Mapping[str, Any]


def new_event(user: UserKey, action: str, timestamp: datetime, **details: Unpack[EventDetails]) -> Event:
    """An event whose `event_id` is a digest of its content. `timestamp` must be aware. Raises `InputError`."""
    event = Event("", user, action, timestamp.astimezone(UTC), **details)
    if reason := _fault_of(event):
        raise InputError(reason)
    return replace(event, event_id=_digest(event), attributes=dict(event.attributes))


def query_event(request: Request, now: datetime | None = None, query_id: str = "") -> Event:
    """The event of a query, to be added once it is answered. Raises `InputError` if it is too long or has no user."""
    if request.user is None:
        raise InputError("a query without a user cannot be recorded: name its user")
    attributes = {"query_attributes": {"index": request.index}}
    return new_event(
        request.user, "query", now or datetime.now(UTC), session_id=request.session_id, query_id=query_id,
        text=request.query, attributes=attributes,
    )  # fmt: skip


def microseconds(timestamp: datetime) -> int:
    """Microseconds since 1970, exact."""
    return (timestamp - EPOCH) // timedelta(microseconds=1)


def _fault_of(event: Event) -> str:
    """Why no store takes this event; "" if it is complete and within the limits."""
    ids = {"tenant": event.user.tenant, "user": event.user.user_id, "session": event.session_id,
           "query": event.query_id, "object": event.doc_id}  # fmt: skip
    for name, given in ids.items():
        if reason := _fault_of_id(name, given):
            return reason
    if not event.action or not isinstance(event.action, str):
        return "action_name is empty or not text"
    if len(event.action) > MAX_ACTION_CHARS:
        return f"action_name has {len(event.action)} characters, at most {MAX_ACTION_CHARS} are allowed"
    for name, given in (("text", event.text), ("description", event.title)):
        if len(given) > MAX_TEXT_CHARS:
            return f"{name} has {len(given)} characters, at most {MAX_TEXT_CHARS} are allowed"
    return _incomplete(event)


def _fault_of_id(name: str, value: str) -> str:
    """Why this cannot be an id; "" if it can."""
    if not isinstance(value, str):
        return f"{name} id must be text, but is of type {type(value).__name__}"
    if len(value) > MAX_ID_CHARS:
        return f"{name} id has {len(value)} characters, at most {MAX_ID_CHARS} are allowed"
    if not value.isascii() and any("\ud800" <= char <= "\udfff" for char in value):
        return f"{name} id is not Unicode text"
    return ""


def _incomplete(event: Event) -> str:
    """What the event lacks for its action; "" if nothing."""
    if event.action in SAID and not event.text:
        return f"{'a statement' if event.action == 'statement' else 'an answer'} without text"
    if event.action == "answer" and not event.query_id:
        return "an answer without query_id"
    if event.action != "rating":
        return ""
    if event.value is None or not RATING_RANGE[0] <= event.value <= RATING_RANGE[1]:
        return f"a rating that is not a number from {RATING_RANGE[0]:g} to {RATING_RANGE[1]:g}"
    return "" if event.doc_id else "a rating without object_id"


def _digest(event: Event) -> str:
    """Digest of all fields but `event_id`. Raises `InputError` for attributes that are not JSON."""
    details = (event.session_id, event.query_id, event.text, event.doc_id, event.title, event.value, event.attributes)
    try:
        text = CANONICAL.encode((*event.user, event.action, microseconds(event.timestamp), *details))
        digest = hashlib.blake2b(text.encode("utf-8"), digest_size=16).hexdigest()
    except UnicodeEncodeError as error:
        raise InputError("holds half of a surrogate pair, which is not a character") from error
    except (RecursionError, ValueError) as error:
        raise InputError("nested too deep, or a number is too large") from error
    except TypeError as error:
        raise InputError("attributes hold something that is not JSON") from error
    if text.count("{") + text.count("[") > MAX_DEPTH and _depth(event.attributes) > MAX_DEPTH:
        raise InputError(f"nested deeper than {MAX_DEPTH}")
    return digest


def _depth(value: Any) -> int:
    """How deep objects and arrays are nested."""
    depth, level = 0, [value]
    while level := [item for item in level if isinstance(item, (dict, list, tuple))]:
        depth += 1
        level = [inner for item in level for inner in (item.values() if isinstance(item, dict) else item)]
    return depth
