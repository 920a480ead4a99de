"""The library's front door: index documents, search them for a user, and manage what is known about that user.

`open` takes many keyword arguments instead of a record: it is the one place that names engine, store and models
together, and most callers give one or two.
"""

from __future__ import annotations

import io
import logging
import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from types import NoneType
from typing import IO, TYPE_CHECKING, Any, Literal

from bespeak import records
from bespeak.arguments import require, require_text
from bespeak.engines import Engine
from bespeak.engines.corpus import Corpus
from bespeak.engines.loading import Checkpoints, IndexLoad, load
from bespeak.errors import BespeakError, InputError, StoreError, UsageError
from bespeak.files import make_private_folder
from bespeak.parts import Models, Parts, Warn, forget_user, open_encoder, open_parts, open_rewriter, remember_vectors
from bespeak.pipeline import check_query, check_request
from bespeak.pipeline import search as run_search
from bespeak.profiles.events import check_id, new_event, query_event, user_key
from bespeak.profiles.stores import EventStore
from bespeak.profiles.ubi import read_event, ubi_line
from bespeak.reading import rewrite_query, same_text
from bespeak.records import Event, Profile, Request, Rewrite, UserKey
from bespeak.settings import Settings

if TYPE_CHECKING:
    from bespeak.models.encoder import Encoder
    from bespeak.parts import RewriterName
    from bespeak.rewriting.rewriter import Rewriter

logger = logging.getLogger("bespeak")

WIDTH = 100
"""Width of a printed result, in terminal cells."""
TITLE_CHARS = 200
"""Characters of a title that an event keeps."""


@dataclass(frozen=True, slots=True, repr=False)
class Result(records.Result):
    """The requested page, and what was done to produce it. Prints as text; notebooks show it as HTML."""

    @classmethod
    def of(cls, result: records.Result, query_id: str = "") -> Result:
        values = {field.name: getattr(result, field.name) for field in fields(result)}
        return cls(**values | {"query_id": query_id})

    def __repr__(self) -> str:
        return f"<Result {len(self.page)} of {self.hits.total} hits for {self.request.query!r}, rerank {self.rerank}>"

    def __str__(self) -> str:
        from bespeak.show.render import render

        return render(self, "text", width=WIDTH)

    def _repr_html_(self) -> str:
        from bespeak.show.render import render

        return render(self, "fragment")


@dataclass(frozen=True, slots=True)
class Deleted:
    """What `Bespeak.forget` deleted."""

    events: int
    rewrites: int
    paused: bool  # whether personalisation was paused; the pause is deleted too
    learn_again: bool  # whether what `bespeak learn` learnt may count this user until it runs again


@dataclass(frozen=True, slots=True)
class Address:
    """The URL of an Elasticsearch, and credentials for it: an API key, or a user with a password."""

    url: str
    api_key: str | None = None
    basic: tuple[str, str] | None = None
    ca_file: Path | None = None


def open(
    folder: str | Path | None = None,
    *,
    cache: str | Path | None = None,
    elasticsearch: str | None = None,
    api_key: str | None = None,
    basic: tuple[str, str] | None = None,
    ca_file: str | Path | None = None,
    profiles: Literal["sqlite", "elasticsearch"] = "sqlite",
    rewriter: RewriterName | Rewriter = "model",
    encoder: str | Encoder | None = None,
    settings: Settings | None = None,
    warn: Warn = logger.warning,
) -> Bespeak:
    """A search over the indices in `folder`, or over an Elasticsearch.

    Nothing is loaded or contacted yet: the first call that needs a model opens it.

    - `folder` holds embedded indices, events and what was learnt; `cache` holds models built on this machine. By
      default both are the command line's folders.
    - `elasticsearch` is a URL; `api_key` (encoded) or `basic` (user, password) are its credentials, `ca_file` is the
      certificate (PEM) of the authority that signed its own.
    - `profiles="elasticsearch"` keeps events in that cluster, for any number of processes on any machine.
    - `rewriter` is the language model, `"last-turn"`, `"none"`, or one of your own. `encoder` is a model's name or
      folder, None for the shipped one, `"none"` for no embeddings, or one of your own.
    - `warn` gets a sentence for each model that is missing and each query that could not be recorded.

    Raises UsageError for arguments that do not fit together, and StoreError for a folder that cannot be created.
    """
    import platformdirs

    require("settings", settings, (Settings, NoneType), "Settings")
    require("elasticsearch", elasticsearch, (str, NoneType), "a URL")
    if basic is not None and not (isinstance(basic, tuple | list) and [type(part) for part in basic] == [str, str]):
        raise UsageError("basic must be two texts: user and password")
    for name, path in (("folder", folder), ("cache", cache), ("ca_file", ca_file)):
        require(name, path, (str, Path, NoneType), "a path")
    folder = Path(folder) if folder else platformdirs.user_data_path("bespeak")
    cache = Path(cache) if cache else platformdirs.user_cache_path("bespeak")
    for name, given in (("api_key", api_key), ("basic", basic), ("ca_file", ca_file)):
        if given and elasticsearch is None:
            raise UsageError(f"{name} is for Elasticsearch: pass the URL as elasticsearch=")
    address = Address(elasticsearch, api_key, basic, Path(ca_file) if ca_file else None) if elasticsearch else None
    models = Models(cache, rewriter, encoder)
    make_folder(folder)
    return Bespeak(open_engine(folder, address), open_store(folder, profiles, address), models, settings, folder, warn)


def make_folder(path: Path) -> None:
    try:
        make_private_folder(path)
    except OSError as error:
        raise StoreError(f"cannot make the folder {path} ({error.strerror}): choose a writable one") from error


def open_engine(folder: Path, address: Address | None) -> Engine:
    """Elasticsearch if there is an address, otherwise the embedded engine of a data folder. Contacts nothing yet.

    Raises UsageError for a malformed URL.
    """
    if address is None:
        from bespeak.engines.embedded import EmbeddedEngine

        return EmbeddedEngine(folder / "indices")
    from bespeak.engines.elastic import ElasticsearchEngine

    return ElasticsearchEngine(address.url, address.api_key, address.basic, address.ca_file)


def open_store(
    folder: Path, profiles: Literal["sqlite", "elasticsearch"], address: Address | None, timeout_s: float = 5.0
) -> EventStore:
    """The store of events: one file in a data folder, or indices of the cluster. Raises UsageError."""
    if profiles == "sqlite":
        from bespeak.profiles.stores.sqlite import SqliteStore

        return SqliteStore(folder / "bespeak.db", timeout_s)
    if profiles != "elasticsearch":
        raise UsageError(f"profiles are kept in sqlite or elasticsearch, not in {profiles!r}")
    if address is None:
        raise UsageError("profiles in Elasticsearch need its URL: pass it as elasticsearch=")
    from bespeak.profiles.stores.elastic import ElasticsearchStore

    return ElasticsearchStore(address.url, address.api_key, address.basic, address.ca_file, timeout_s=timeout_s)


class Bespeak:
    """An engine, a store of events and the models, used together. `open` makes one; `with` or `close` closes it.

    Thread-safe. Every error that a method raises on purpose is a BespeakError; after `close`, it is a UsageError.
    """

    def __init__(
        self,
        engine: Engine,
        store: EventStore,
        models: Models,
        settings: Settings | None = None,
        folder: Path | None = None,
        warn: Warn = logger.warning,
    ) -> None:
        """Takes ownership of `engine` and `store`: `close` closes them. `folder` holds what was learnt."""
        self._engine, self._store, self._models = engine, store, models
        self._settings, self._folder, self._warn = settings or Settings(), folder, warn
        self._parts: Parts | None = None  # without a rewriter until a named user asks
        self._has_rewriter = self._closed = False
        self._opening, self._loading = threading.Lock(), threading.Lock()

    def __enter__(self) -> Bespeak:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Closes engine and store; calling it again does nothing. No other thread may be using them any more."""
        if not self._closed:
            self._closed = True
            self._engine.close()
            self._store.close()

    # Documents and searches.

    def index(
        self,
        documents: str | Path | IO[bytes] | Iterable[Mapping[str, Any]],
        *,
        to: str,
        fields: Sequence[str] = (),
        id_field: str | None = None,
        progress: Callable[[IndexLoad], None] | None = None,
    ) -> IndexLoad:
        """Loads documents into an index, which is created if needed. A document replaces an older one with its id.

        `documents` are dicts, or a file of JSON lines or CSV, plain or gzip. `fields` names those to search, by default
        all that hold running text. The id is the value of `id_field`, or of `_id`, `id` or `doc_id`, or a digest of the
        content. An interrupted load of a file resumes when you repeat it. The result counts the documents `loaded` and
        `rejected`, and gives the first `rejections` as (line from 1, reason). Raises ModelError if the encoder is
        missing, InputError, UsageError and EngineError.
        """
        self._check_open()
        require_text("to", to)
        require("fields", fields, (list, tuple), "a list of names")
        source = Path(documents) if isinstance(documents, str) else documents
        _check_documents(source)
        self._make_cache()
        encoder = open_encoder(self._models)
        checkpoints = Checkpoints(self._folder / "loads") if self._folder else None
        with self._loading:
            return load(self._engine, to, Corpus(source, tuple(fields), id_field), encoder, checkpoints, progress)

    def search(
        self,
        query: str,
        *,
        index: str,
        user: str | None = None,
        session: str = "",
        tenant: str = "",
        size: int = 10,
        offset: int = 0,
        filters: Mapping[str, str] | None = None,
        record: bool = True,
    ) -> Result:
        """One page of hits in the order for this user; without a user, in the engine's own order.

        `filters` gives exact values of keyword fields. The queries of a `session` are the turns that the next query is
        rewritten from. Unless `record` is False, this query becomes one, and the result's `query_id` names it. Asking
        the same query again right away, as for its next page, does not record it twice.

        If a model or the store fails, the hits keep the engine's order, and the result's `rerank` and `notes` say so.
        Raises UsageError for an empty query, IndexMissing, and EngineError if the engine fails.
        """
        self._check_open()
        key = _user(tenant, user)
        request = Request(query, index, key, session, offset, size, filters or {})
        check_request(request)
        profiles = _ProfileReads(self._store)
        found = run_search(self._engine, profiles, request, self._parts_for(key))
        return Result.of(found, self._record_query(request, profiles) if key and record else "")

    def rewrite(self, query: str, *, user: str | None = None, session: str = "", tenant: str = "") -> Rewrite:
        """Rewrites the query as a search for this user would. Searches and records nothing.

        The status says why a query was left as typed. Raises UsageError as `search` does, and StoreError if the profile
        cannot be read.
        """
        self._check_open()
        check_query(query)
        check_id("session", session)
        key = _user(tenant, user)
        profile, parts = self._store.profile(key, session, datetime.now(UTC)), self._parts_for(key)
        return rewrite_query(query, profile, parts.rewriter, parts.context, self._settings.rewrite_ms)

    # What is known about users.

    def remember(self, text: str, user: str, *, tenant: str = "") -> None:
        """Keeps what a user says about themselves, such as "I am vegetarian". Raises UsageError if it is empty."""
        self._check_open()
        require_text("the statement", text)
        if not text.strip():
            raise UsageError("nothing to remember: the statement is empty")
        self._store.add([new_event(user_key(tenant, user), "statement", datetime.now(UTC), text=text.strip())])

    def record(self, events: Mapping[str, Any] | Iterable[Mapping[str, Any]], *, tenant: str = "") -> int:
        """Adds events in User Behavior Insights form, all of them or none. Returns how many were new.

        Raises InputError with the number (from 1) of the first invalid event, and StoreError.
        """
        self._check_open()
        require("events", events, (Mapping, Iterable), "a dict, or several")
        given = [events] if isinstance(events, Mapping) else events
        return self._store.add([_event(number, event, tenant) for number, event in enumerate(given, 1)])

    def click(self, result: records.Result, position: int, action: str = "click") -> None:
        """Records that the user clicked the hit at this position: its `rank`, which counts from 1 over all pages.

        `action` may be another of User Behavior Insights, such as "purchase". Raises UsageError for a position that
        the page does not show and for a search without a user.
        """
        self._check_open()
        require("result", result, records.Result, "what search returned")
        if action == "query":
            raise UsageError("a query is not done to a hit: give another action, such as click")
        user = result.request.user
        if user is None:
            raise UsageError("the search named no user to record a click for: search with a user")
        hit = next((ranked.hit for ranked in result.page if ranked.rank == position), None)
        if hit is None:
            shown = f"{result.page[0].rank} to {result.page[-1].rank}" if result.page else "none"
            raise UsageError(f"there is no hit at position {position}: the page shows {shown}")
        self._store.add([_click(result, user, hit, position, action)])

    def profile(self, user: str, *, session: str = "", tenant: str = "") -> Profile:
        """What is known about a user, with the turns of the session; empty for a stranger. Raises StoreError."""
        self._check_open()
        check_id("session", session)
        return self._store.profile(user_key(tenant, user), session, datetime.now(UTC))

    def export(self, user: str, *, tenant: str = "") -> Iterator[dict[str, Any]]:
        """All events of a user in User Behavior Insights form, oldest first; `record` takes them back."""
        self._check_open()
        return map(ubi_line, self._store.export(user_key(tenant, user)))

    def set_consent(self, user: str, given: bool, *, tenant: str = "") -> None:
        """Pauses personalisation for a user (False) or resumes it (True). Deletes nothing. Raises StoreError."""
        self._check_open()
        require("given", given, bool, "True or False")
        self._store.set_consent(user_key(tenant, user), given)

    def forget(self, user: str, *, tenant: str = "") -> Deleted:
        """Deletes everything known about a user, in the store and in memory. The next answer is a stranger's.

        Raises StoreError if something could not be deleted from the store; memory is cleared in any case.
        """
        self._check_open()
        key = user_key(tenant, user)
        try:
            deleted = self._store.forget(key)
        finally:
            with self._opening:
                if self._parts:
                    forget_user(self._parts, key)
        return Deleted(
            deleted.events, deleted.rewrites, bool(deleted.consent), bool(deleted.events) and self.learnt_from(tenant)
        )

    def learnt_from(self, tenant: str = "") -> bool:
        """Whether `bespeak learn` has run for this tenant. What it learnt counts each user until it runs again."""
        from bespeak.ranking.learning import LearntFolder

        return self._folder is not None and LearntFolder(self._folder).holds(tenant)

    def _check_open(self) -> None:
        if self._closed:
            raise UsageError("this Bespeak is closed: open another")

    def _make_cache(self) -> None:
        """Creates the cache folder if possible. Without it, models are checked again each time."""
        with suppress(OSError):
            make_private_folder(self._models.cache)

    def _parts_for(self, user: UserKey | None) -> Parts:
        """The parts, opened on first use; the rewriter, which may be slow to open, on the first query of a user."""
        with self._opening:
            if self._parts is None:
                self._make_cache()
                bare = open_parts(
                    replace(self._models, rewriter="none"), self._settings, learnt=self._folder, warn=self._warn
                )
                self._parts = remember_vectors(bare)
            if user and not self._has_rewriter:
                rewriter = open_rewriter(
                    self._models, self._parts.encoder, self._parts.context, self._store, self._warn
                )
                self._parts, self._has_rewriter = replace(self._parts, rewriter=rewriter), True
            return self._parts

    def _record_query(self, request: Request, profiles: _ProfileReads) -> str:
        """The id of the recorded query; "" if it was not recorded. A query repeated right away keeps its id."""
        try:
            known = profiles.last()
            if not known.consent:
                return ""
            before = known.turns[-1] if known.turns else None
            if before and before.query_id and same_text(before.query) == same_text(request.query):
                return before.query_id
            event = query_event(request, query_id=uuid.uuid4().hex)
            self._store.add([event])
        except BespeakError as error:
            self._warn(f"The query was not kept: {error}")
            return ""
        return event.query_id


class _ProfileReads:
    """The store as one search reads it, keeping the profile for recording the query."""

    def __init__(self, store: EventStore) -> None:
        self._store = store
        self._profile: Profile | None = None
        self._fault: StoreError | None = None

    def profile(self, user: UserKey | None, session_id: str, now: datetime) -> Profile:
        try:
            self._profile = self._store.profile(user, session_id, now)
        except StoreError as error:
            self._fault = error
            raise
        return self._profile

    def last(self) -> Profile:
        """The profile that was read. Raises StoreError if it could not be read."""
        if self._fault:
            raise self._fault
        return self._profile or Profile()


def _user(tenant: str, user: str | None) -> UserKey | None:
    """The key of a user; None only without one. Raises UsageError for an empty name, which is a mistake."""
    return None if user is None else user_key(tenant, user)


def _check_documents(documents: object) -> None:
    """Raises UsageError for what holds no documents."""
    if isinstance(documents, io.TextIOBase):
        raise UsageError("documents are a stream of text: open it in binary mode")
    if isinstance(documents, Mapping | bytes) or not isinstance(documents, Path | Iterable):
        raise UsageError(f"documents must be dicts, a file or a binary stream, but are one {type(documents).__name__}")


def _event(number: int, event: Mapping[str, Any], tenant: str) -> Event:
    try:
        return read_event(event, tenant)
    except InputError as error:
        raise InputError(f"event {number}: {error}") from error


def _click(result: records.Result, user: UserKey, hit: records.Hit, position: int, action: str) -> Event:
    from bespeak.show.summary import title_of

    return new_event(
        user,
        action,
        datetime.now(UTC),
        session_id=result.request.session_id,
        query_id=result.query_id,
        doc_id=hit.doc_id,
        title=title_of(hit.source)[:TITLE_CHARS],
        attributes={"event_attributes": {"position": {"ordinal": position}}},
    )
