"""Events, rewrites and loads as documents of the store's indices, and back: pure functions.

A document's id is a digest of what it is, so that writing it again, by a retry or by another proxy, adds nothing.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from bespeak.profiles.deriving import PREFERRING
from bespeak.profiles.events import EPOCH, microseconds
from bespeak.profiles.stores import PREFERENCES_READ, SESSION_EVENTS_READ, STATEMENTS_READ, EventLoad
from bespeak.profiles.stores.elastic.indices import (
    CONSENT,
    EVENTS,
    NEWEST_FIRST,
    Action,
    IndexSearch,
    sort_by,
)
from bespeak.profiles.stores.text import json_text, rewrite_text
from bespeak.records import Event, Rewrite, UserKey

if TYPE_CHECKING:
    from bespeak.rewriting.rewriter import RewriteKey


def profile_searches(user: UserKey, session_id: str) -> list[IndexSearch]:
    """The searches for a profile: whether the user paused, statements, events of the session, and of each action."""
    user_digest = digest(*user)

    def newest(field: str, value: str, size: int) -> IndexSearch:
        body = {
            "query": {"bool": {"filter": [{"term": {"user": user_digest}}, {"term": {field: value}}]}},
            "sort": sort_by(NEWEST_FIRST), "size": size, "_source": {"excludes": ["event.attributes"]},
        }  # fmt: skip
        return IndexSearch(EVENTS, body, user_digest)

    return [
        IndexSearch(CONSENT, {"query": {"ids": {"values": [user_digest]}}, "size": 1, "_source": False}),
        newest("action", "statement", STATEMENTS_READ),
        newest("session", session_id, SESSION_EVENTS_READ),
        *(newest("action", action, PREFERENCES_READ) for action in PREFERRING),
    ]


def create_event(event: Event) -> Action:
    """The write that adds an event if it is not there yet."""
    user = digest(*event.user)
    found = {"user": user, "at": _at(event), "action": event.action, "event": _kept(event)}
    if event.query_id and event.session_id:
        found["on_query"] = query_digest(event)
    if event.action != "impression":  # part of an export, not of a profile
        if event.session_id:
            found["session"] = event.session_id
        elif event.query_id:
            found["awaits"] = query_digest(event)
    return Action("create", digest(*event.user, event.event_id), user, found)


def _at(event: Event) -> str:
    """A text that sorts by time, also before 1970, then by event_id."""
    return f"{microseconds(event.timestamp) + (1 << 62):016x}-{event.event_id}"


def _kept(event: Event) -> dict[str, Any]:
    """The event itself. Its attributes are text, so that any JSON comes back unchanged."""
    kept = {
        "event_id": event.event_id, "at_us": microseconds(event.timestamp), "tenant": event.user.tenant,
        "user_id": event.user.user_id, "session_id": event.session_id,
        "query_id": event.query_id, "text": event.text, "doc_id": event.doc_id, "title": event.title,
        "value": event.value, "attributes": json_text(event.attributes) if event.attributes else "",
    }  # fmt: skip
    return {name: value for name, value in kept.items() if value not in ("", None)}


def restore_events(user: UserKey, hits: Iterable[Mapping[str, Any]]) -> list[Event]:
    """The events in hits of a search for those of one user."""
    return [restore_event(user, hit["_source"]) for hit in hits]


def restore_event(user: UserKey, found: Mapping[str, Any]) -> Event:
    kept = found["event"]
    return Event(
        event_id=kept["event_id"],
        user=user,
        action=found["action"],
        timestamp=EPOCH + timedelta(microseconds=kept["at_us"]),
        session_id=kept.get("session_id", ""),
        query_id=kept.get("query_id", ""),
        text=kept.get("text", ""),
        doc_id=kept.get("doc_id", ""),
        title=kept.get("title", ""),
        value=kept.get("value"),
        attributes=json.loads(kept["attributes"]) if "attributes" in kept else {},
    )


def index_rejection(load: EventLoad, line_no: int, reason: str) -> Action:
    found = {"of": load_id(load), "line_no": line_no, "reason": {"text": reason}}
    return Action("index", digest(load_id(load), str(line_no)), document=found)


def rewrite_document(user: UserKey, at_us: int, rewrite: Rewrite) -> dict[str, Any]:
    """The document of a cached rewrite. `at_us` is when it was made, in microseconds since 1970."""
    return {"user": digest(*user), "at_us": at_us, "rewrite": {"json": rewrite_text(rewrite)}}


def query_digest(event: Event) -> str:
    return digest(*event.user, event.query_id)


def rewrite_id(key: RewriteKey) -> str:
    return digest(*key.user, key.profile_version, key.model_version, key.query)


def load_id(load: EventLoad) -> str:
    return digest(load.tenant, load.file_digest)


def digest(*parts: str) -> str:
    """An id that Elasticsearch takes, for parts of any length and characters. Different parts have different ids."""
    return hashlib.blake2b(json.dumps(parts).encode("ascii"), digest_size=16).hexdigest()
