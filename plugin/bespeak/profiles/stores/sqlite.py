"""Events, consent and cached rewrites in one SQLite file that any number of threads and processes share."""

from __future__ import annotations

import itertools
import json
import sqlite3
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import astuple
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from bespeak.errors import StoreError
from bespeak.files import make_private_file
from bespeak.profiles.deriving import PREFERRING, UserEvents, derive
from bespeak.profiles.events import EPOCH, microseconds
from bespeak.profiles.stores import (
    ADD_BATCH,
    EXPORT_BATCH,
    PREFERENCES_READ,
    REWRITES_KEPT,
    SESSION_EVENTS_READ,
    STATEMENTS_READ,
    Batch,
    EventLoad,
    ForgottenCounts,
)
from bespeak.profiles.stores.text import json_text, read_rewrite, rewrite_text
from bespeak.records import Event, Profile, Rewrite, UserKey
from bespeak.sqlite_errors import empty_log, primary_code, retry_while_busy

if TYPE_CHECKING:
    from bespeak.rewriting.rewriter import RewriteKey

MIGRATIONS: tuple[tuple[str, ...], ...] = (
    (
        # `session` is the session that a turn belongs to: the event's own session_id or, for a UBI query, which has
        # none, that of the events on it. `session_id` stays as it was sent, so that an export gives the same event.
        """CREATE TABLE events (
            tenant TEXT NOT NULL, user_id TEXT NOT NULL, at_us INTEGER NOT NULL, event_id TEXT NOT NULL,
            action TEXT NOT NULL, session_id TEXT NOT NULL, query_id TEXT NOT NULL, text TEXT NOT NULL,
            doc_id TEXT NOT NULL, title TEXT NOT NULL, value REAL, attributes TEXT NOT NULL, session TEXT NOT NULL)""",
        "CREATE UNIQUE INDEX events_by_user ON events (tenant, user_id, at_us, event_id)",
        """CREATE INDEX events_by_action ON events (tenant, user_id, action, at_us, event_id)
            WHERE action <> 'impression'""",
        """CREATE INDEX events_by_session ON events (tenant, user_id, session, at_us, event_id)
            WHERE action <> 'impression' AND session <> ''""",
        """CREATE INDEX events_without_session ON events (tenant, user_id, query_id)
            WHERE action <> 'impression' AND session = '' AND query_id <> ''""",
        """CREATE TABLE query_sessions (
            tenant TEXT NOT NULL, user_id TEXT NOT NULL, query_id TEXT NOT NULL, session TEXT NOT NULL,
            PRIMARY KEY (tenant, user_id, query_id)) WITHOUT ROWID""",
        """CREATE TABLE paused (
            tenant TEXT NOT NULL, user_id TEXT NOT NULL, PRIMARY KEY (tenant, user_id)) WITHOUT ROWID""",
        """CREATE TABLE rewrites (
            rewrite_no INTEGER PRIMARY KEY, tenant TEXT NOT NULL, user_id TEXT NOT NULL, profile_version TEXT NOT NULL,
            model_version TEXT NOT NULL, query TEXT NOT NULL, rewrite TEXT NOT NULL,
            UNIQUE (tenant, user_id, profile_version, model_version, query) ON CONFLICT REPLACE)""",
        """CREATE TABLE loads (
            tenant TEXT NOT NULL, file_digest TEXT NOT NULL, offset INTEGER NOT NULL, line_no INTEGER NOT NULL,
            events INTEGER NOT NULL, added INTEGER NOT NULL, rejected INTEGER NOT NULL,
            PRIMARY KEY (tenant, file_digest)) WITHOUT ROWID""",
        """CREATE TABLE rejections (
            tenant TEXT NOT NULL, file_digest TEXT NOT NULL, line_no INTEGER NOT NULL, reason TEXT NOT NULL,
            PRIMARY KEY (tenant, file_digest, line_no)) WITHOUT ROWID""",
    ),
)
"""One migration for each version of the file, oldest first. A released migration never changes."""


class _EventRow(NamedTuple):
    """An event as the columns of the table `events`."""

    event_id: str
    tenant: str
    user_id: str
    action: str
    at_us: int  # microseconds since 1970
    session_id: str
    query_id: str
    text: str
    doc_id: str
    title: str
    value: float | None
    attributes: str = "{}"  # JSON; not read for a profile


EVENT = ", ".join(_EventRow._fields[:-1])
BY_ACTION = f"""SELECT {EVENT} FROM events WHERE tenant = ? AND user_id = ? AND action = ? AND action <> 'impression'
    ORDER BY at_us DESC, event_id DESC LIMIT ?"""
BY_SESSION = f"""SELECT {EVENT} FROM events WHERE tenant = ? AND user_id = ? AND session = ? AND session <> ''
    AND action <> 'impression' ORDER BY at_us DESC, event_id DESC LIMIT ?"""
BY_TIME = f"""SELECT {EVENT}, attributes FROM events WHERE tenant = ? AND user_id = ? AND (at_us, event_id) > (?, ?)
    ORDER BY at_us, event_id LIMIT ?"""
OF_EVERYONE = f"""SELECT {EVENT}, attributes FROM events
    WHERE action IN ({{}}) AND (tenant, user_id, at_us, event_id) > (?, ?, ?, ?)
    AND NOT EXISTS (SELECT 1 FROM paused WHERE paused.tenant = events.tenant AND paused.user_id = events.user_id)
    ORDER BY tenant, user_id, at_us, event_id LIMIT ?"""
ADD = f"""INSERT INTO events ({EVENT}, attributes, session)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING"""
FIND_SESSION = """UPDATE events SET session = found.session FROM query_sessions AS found
    WHERE events.tenant = ? AND events.user_id = ? AND events.query_id = ? AND events.query_id <> ''
    AND events.session = '' AND events.action <> 'impression' AND found.tenant = events.tenant
    AND found.user_id = events.user_id AND found.query_id = events.query_id"""


class SqliteStore:
    """An `EventStore` in the file at `path`, which is made by the first write.

    A writer waits up to `timeout_s` for others. Each thread has its own connection; `close` closes them all.
    """

    def __init__(self, path: Path, timeout_s: float = 5.0, rewrites_kept: int = REWRITES_KEPT) -> None:
        self.path = path
        self._timeout_s = timeout_s
        self._rewrites_kept = rewrites_kept
        self._connections: dict[threading.Thread, sqlite3.Connection] = {}
        self._lock = threading.Lock()

    def add(self, events: Iterable[Event]) -> int:
        n_new, rest = 0, iter(events)
        while some := list(itertools.islice(rest, ADD_BATCH)):
            with self._writing() as connection:
                n_new += _add(connection, some)
        return n_new

    def profile(self, user: UserKey | None, session_id: str, now: datetime, query_id: str = "") -> Profile:
        if user is None:
            return Profile(session_id=session_id)
        with self._reading() as connection:
            if connection is None:
                return derive(UserEvents(user, session_id), now)
            known = UserEvents(
                user,
                session_id,
                _events(connection, BY_ACTION, (*user, "statement", STATEMENTS_READ)),
                _events(connection, BY_SESSION, (*user, session_id, SESSION_EVENTS_READ)),
                [
                    event
                    for action in PREFERRING
                    for event in _events(connection, BY_ACTION, (*user, action, PREFERENCES_READ))
                ],
                connection.execute("SELECT 1 FROM paused WHERE tenant = ? AND user_id = ?", user).fetchone() is None,
            )
        return derive(known, now, query_id)

    def export(self, user: UserKey) -> Iterator[Event]:
        """In batches, so that a slow reader blocks no writer."""
        after: tuple[int, str] = (-(1 << 62), "")
        while True:
            with self._reading() as connection:
                some = [] if connection is None else _events(connection, BY_TIME, (*user, *after, EXPORT_BATCH))
            if not some:
                return
            yield from some
            after = (microseconds(some[-1].timestamp), some[-1].event_id)

    def of_everyone(self, actions: Sequence[str]) -> Iterator[Event]:
        """In batches, like `export`."""
        named = ", ".join("?" * len(actions))
        after: tuple[str, str, int, str] = ("", "", -(1 << 62), "")
        while True:
            with self._reading() as connection:
                some = [] if connection is None else _events(
                    connection, OF_EVERYONE.format(named), (*actions, *after, EXPORT_BATCH)
                )  # fmt: skip
            if not some:
                return
            yield from some
            after = (*some[-1].user, microseconds(some[-1].timestamp), some[-1].event_id)

    def forget(self, user: UserKey) -> ForgottenCounts:
        """Also raises `StoreError` if all is deleted, but another process keeps the old bytes open."""
        if not self._is_there():
            return ForgottenCounts(0, 0, 0)
        with self._writing() as connection:
            counts = [
                connection.execute(f"DELETE FROM {table} WHERE tenant = ? AND user_id = ?", user).rowcount
                for table in ("events", "rewrites", "paused", "query_sessions")
            ]
        self._scrub()
        return ForgottenCounts(*counts[:3])

    def set_consent(self, user: UserKey, given: bool) -> None:
        change = (
            "DELETE FROM paused WHERE tenant = ? AND user_id = ?"
            if given
            else "INSERT OR IGNORE INTO paused VALUES (?, ?)"
        )
        if given and not self._is_there():
            return
        with self._writing() as connection:
            connection.execute(change, user)

    def get_rewrite(self, key: RewriteKey) -> Rewrite | None:
        with self._reading() as connection:
            if connection is None:
                return None
            row = connection.execute(
                "SELECT rewrite FROM rewrites WHERE tenant = ? AND user_id = ? AND profile_version = ? "
                "AND model_version = ? AND query = ?",
                (*key.user, key.profile_version, key.model_version, key.query),
            ).fetchone()
        return None if row is None else read_rewrite(row[0])

    def put_rewrite(self, key: RewriteKey, rewrite: Rewrite) -> None:
        if not self._is_there():
            return
        values = (*key.user, key.profile_version, key.model_version, key.query, rewrite_text(rewrite))
        with self._writing() as connection:
            connection.execute(
                "INSERT INTO rewrites (tenant, user_id, profile_version, model_version, query, rewrite) "
                "SELECT ?, ?, ?, ?, ?, ? WHERE EXISTS (SELECT 1 FROM events WHERE tenant = ? AND user_id = ?)",
                (*values, *key.user),
            )
            connection.execute(
                "DELETE FROM rewrites WHERE rewrite_no <= (SELECT max(rewrite_no) FROM rewrites) - ?",
                (self._rewrites_kept,),
            )

    def drop_rewrite(self, key: RewriteKey) -> None:
        if not self._is_there():
            return
        with self._writing() as connection:
            connection.execute(
                "DELETE FROM rewrites WHERE tenant = ? AND user_id = ? AND profile_version = ? AND model_version = ? "
                "AND query = ?",
                (*key.user, key.profile_version, key.model_version, key.query),
            )

    def resume(self, tenant: str, file_digest: str) -> EventLoad:
        with self._reading() as connection:
            return EventLoad(tenant, file_digest) if connection is None else _load(connection, tenant, file_digest)

    def record(self, load: EventLoad, batch: Batch) -> EventLoad:
        with self._writing() as connection:
            if _load(connection, load.tenant, load.file_digest) != load:
                raise StoreError("another process is loading the same file: let it end, then load the file again")
            moved = load.after(batch, _add(connection, batch.events))
            connection.executemany(
                "INSERT INTO rejections VALUES (?, ?, ?, ?)",
                [(load.tenant, load.file_digest, line_no, reason) for line_no, reason in batch.rejected],
            )
            connection.execute("INSERT OR REPLACE INTO loads VALUES (?, ?, ?, ?, ?, ?, ?)", astuple(moved))
        return moved

    def rejections(self, load: EventLoad) -> Iterator[tuple[int, str]]:
        line_no = -1
        while True:
            with self._reading() as connection:
                some = [] if connection is None else connection.execute(
                    "SELECT line_no, reason FROM rejections WHERE tenant = ? AND file_digest = ? AND line_no > ? "
                    "ORDER BY line_no LIMIT ?", (load.tenant, load.file_digest, line_no, EXPORT_BATCH),
                ).fetchall()  # fmt: skip
            if not some:
                return
            yield from some
            line_no = some[-1][0]

    def finish(self, load: EventLoad) -> None:
        if not self._is_there():
            return
        with self._writing() as connection:
            for table in ("loads", "rejections"):
                connection.execute(
                    f"DELETE FROM {table} WHERE tenant = ? AND file_digest = ?", (load.tenant, load.file_digest)
                )

    def close(self) -> None:
        with self._lock:
            for connection in self._connections.values():
                connection.close()
            self._connections.clear()

    @contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """A connection that sees one state of the store throughout; None if there is no store yet."""
        with self._store_errors():
            if not self._is_there():
                yield None
                return
            with _transaction(self._connection(), "BEGIN") as connection:
                yield connection

    @contextmanager
    def _writing(self) -> Iterator[sqlite3.Connection]:
        with self._store_errors(), _transaction(self._connection(), "BEGIN IMMEDIATE") as connection:
            yield connection

    def _is_there(self) -> bool:
        try:
            return self.path.exists()
        except OSError as error:
            raise StoreError(
                f"cannot read {self.path} ({error.strerror}): give another folder with --data-dir"
            ) from error

    def _scrub(self) -> None:
        """Empties the log, which holds copies of deleted rows; `secure_delete` has overwritten the rows themselves."""
        with self._store_errors():
            is_empty = empty_log(self._connection(), self._timeout_s)
        if not is_empty:
            raise StoreError(
                f"all is deleted from {self.path}, but another process still reads its older state: "
                "run `forget` again when it has ended, so that the bytes go too"
            )

    def _connection(self) -> sqlite3.Connection:
        thread = threading.current_thread()
        with self._lock:
            if connection := self._connections.get(thread):
                return connection
            for gone in [other for other in self._connections if not other.is_alive()]:
                self._connections.pop(gone).close()
        connection = self._open()
        with self._lock:
            self._connections[thread] = connection
        return connection

    def _open(self) -> sqlite3.Connection:
        with suppress(OSError):  # SQLite says better what is wrong
            make_private_file(self.path)
        connection = sqlite3.connect(self.path, timeout=self._timeout_s, isolation_level=None, check_same_thread=False)
        try:
            retry_while_busy(lambda: connection.execute("PRAGMA journal_mode = WAL"), self._timeout_s)
            for pragma in ("synchronous = NORMAL", "secure_delete = ON", "temp_store = MEMORY"):
                connection.execute(f"PRAGMA {pragma}")
            self._migrate(connection)
        except BaseException:
            connection.close()
            raise
        return connection

    def _migrate(self, connection: sqlite3.Connection) -> None:
        if _version(connection) == len(MIGRATIONS):
            return
        for number, migration in enumerate(MIGRATIONS, start=1):
            with _transaction(connection, "BEGIN IMMEDIATE"):
                if _version(connection) < number:
                    for statement in migration:
                        connection.execute(statement)
                    connection.execute(f"PRAGMA user_version = {number}")
        if (version := _version(connection)) > len(MIGRATIONS):
            raise StoreError(
                f"{self.path} has version {version}, but this Bespeak knows at most {len(MIGRATIONS)}: "
                "upgrade Bespeak, or give another folder with --data-dir"
            )

    @contextmanager
    def _store_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise StoreError(_sentence(self.path, primary_code(error), self._timeout_s)) from error


@contextmanager
def _transaction(connection: sqlite3.Connection, begin: str) -> Iterator[sqlite3.Connection]:
    connection.execute(begin)
    try:
        yield connection
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise


def _sentence(path: Path, kind: str, timeout_s: float) -> str:
    match kind:
        case "SQLITE_BUSY" | "SQLITE_LOCKED":
            return f"{path} is locked by another process for more than {timeout_s:g} s: let it end, then try again"
        case "SQLITE_READONLY" | "SQLITE_CANTOPEN" | "SQLITE_PERM" | "SQLITE_AUTH":
            return f"cannot write {path}: give a writable folder with --data-dir"
        case "SQLITE_FULL":
            return f"the disk of {path} is full: make room, then try again; nothing was half written"
        case "SQLITE_NOTADB" | "SQLITE_CORRUPT" | "SQLITE_FORMAT":
            return f"{path} is damaged or not a database: put a backup in its place, or move it away to start anew"
        case "SQLITE_IOERR":
            return f"the disk of {path} reports a fault: check the disk, then try again"
        case _:
            return f"{path} cannot be used ({kind}): move it away to start anew, and please report this"


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def _add(connection: sqlite3.Connection, events: Sequence[Event]) -> int:
    """Adds events and returns how many were new. Queries without a session get that of the events on them."""
    before = connection.total_changes
    connection.executemany(ADD, map(_row, events))
    n_new = connection.total_changes - before
    on_query = [event for event in events if event.query_id]
    sessions = {(*event.user, event.query_id): event.session_id for event in reversed(on_query) if event.session_id}
    connection.executemany(
        "INSERT OR IGNORE INTO query_sessions VALUES (?, ?, ?, ?)",
        [(*key, session) for key, session in sessions.items()],
    )
    connection.executemany(FIND_SESSION, list(dict.fromkeys((*event.user, event.query_id) for event in on_query)))
    return n_new


def _row(event: Event) -> tuple[Any, ...]:
    """The columns of the event, and last the session that it names itself."""
    row = _EventRow(
        event.event_id, *event.user, event.action, microseconds(event.timestamp), event.session_id, event.query_id,
        event.text, event.doc_id, event.title, event.value, json_text(event.attributes),
    )  # fmt: skip
    return (*row, event.session_id)


def _events(connection: sqlite3.Connection, query: str, values: tuple[object, ...]) -> list[Event]:
    return [_event(_EventRow(*row)) for row in connection.execute(query, values)]


def _event(row: _EventRow) -> Event:
    return Event(
        row.event_id,
        UserKey(row.tenant, row.user_id),
        row.action,
        EPOCH + timedelta(microseconds=row.at_us),
        row.session_id,
        row.query_id,
        row.text,
        row.doc_id,
        row.title,
        row.value,
        json.loads(row.attributes) if row.attributes != "{}" else {},
    )


def _load(connection: sqlite3.Connection, tenant: str, file_digest: str) -> EventLoad:
    row = connection.execute(
        "SELECT * FROM loads WHERE tenant = ? AND file_digest = ?", (tenant, file_digest)
    ).fetchone()
    return EventLoad(*row) if row else EventLoad(tenant, file_digest)
