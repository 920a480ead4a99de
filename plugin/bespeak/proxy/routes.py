"""Bespeak's own routes under `/_bespeak`: events, profiles, rewrites, health, metrics, and the share of users.

Nothing here goes to the engine, and nothing that a client sends chooses a file, an upstream, a template or a model.
"""

from __future__ import annotations

import asyncio
import gzip
import hmac
import io
import ipaddress
import itertools
import json
import re
import zlib
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias, TypeVar
from urllib.parse import unquote_to_bytes

from bespeak.errors import BespeakError, InputError, StoreError, UsageError
from bespeak.profiles.deriving import STRENGTHS
from bespeak.profiles.events import MAX_ID_CHARS, user_key
from bespeak.profiles.stores import EventStore, Forgotten
from bespeak.profiles.ubi import MAX_LINE_BYTES, STRICT, RejectedLine, read_events, ubi_line
from bespeak.proxy.http.passing import (
    Message,
    Receive,
    Scope,
    Send,
    WhileThere,
    answer_error,
    answer_json,
    read_body,
    target,
)
from bespeak.proxy.http.upstream import Headers
from bespeak.proxy.identity import Share, tenant_of
from bespeak.proxy.metrics import CONTENT_TYPE, Metrics
from bespeak.proxy.recording import Recorder
from bespeak.reading import MAX_QUERY_CHARS
from bespeak.records import Event, Rewrite, UserKey

FORWARDED = (b"forwarded", b"via", b"x-forwarded-for", b"x-real-ip")
"""Where one of these stands, another proxy on this machine passes on what came from elsewhere."""

T = TypeVar("T")

MAX_EVENTS_BYTES = 8 << 20
"""Of the events in one request, also after decompression."""

MAX_BODY_BYTES = 1 << 16
"""Of a request's body otherwise."""

REJECTED_LISTED = 1000
EVENTS_BATCH = 500  # read or written in one turn of a thread
FLUSH_S = 2.0  # what is queued is written before an export, if the store lets it
READY_S = 5.0
STORE_THREADS = 4
"""Of their own: a store that hangs keeps none from what the event loop does in its threads, such as finding hosts."""

MIN_TOKEN_CHARS = 16

HOST = re.compile(r"(?:\[([0-9a-fA-F:.]+)\]|([^:\[\]]+))(?::\d*)?", re.ASCII)

Respond: TypeAlias = Callable[[Scope, Receive, Send], Awaitable[None]]
AskRewrite: TypeAlias = Callable[[str, UserKey | None, str], Awaitable[Rewrite]]
AskReady: TypeAlias = Callable[[], Awaitable[Sequence[str]]]


class Refusal(Exception):
    """What is answered in place of what was asked."""

    def __init__(self, status: HTTPStatus, reason: str, headers: Headers = ()) -> None:
        super().__init__(reason)
        self.status, self.reason, self.headers = status, reason, headers


KINDS = {
    HTTPStatus.BAD_REQUEST: "illegal_argument_exception",
    HTTPStatus.UNAUTHORIZED: "security_exception",
    HTTPStatus.FORBIDDEN: "security_exception",
    HTTPStatus.NOT_FOUND: "resource_not_found_exception",
    HTTPStatus.METHOD_NOT_ALLOWED: "method_not_allowed_exception",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "content_too_long_exception",
    HTTPStatus.UNSUPPORTED_MEDIA_TYPE: "media_type_header_exception",
    HTTPStatus.SERVICE_UNAVAILABLE: "bespeak_exception",
}
"""Types of errors, named as Elasticsearch names its own."""


class Taken(NamedTuple):
    """How many events of a body were taken, (line number, reason) of the first that were not, and user and session of
    the last that tells what came of a query.
    """

    taken: int
    n_rejected: int
    rejected: list[tuple[int, str]]
    answered: tuple[UserKey, str] | None = None


ANSWERING = {"answer", *(action for action, strength in STRENGTHS.items() if strength > 0)}
"""Actions that say what came of a query: what the session's next rewrite reads of it."""


class Routes:
    """The ASGI app for paths under `/_bespeak`.

    Without a token only those on this machine are served, and no page of another site in their browsers.
    """

    def __init__(
        self,
        *,
        store: EventStore,
        recorder: Recorder,
        metrics: Metrics,
        share: Share,
        rewrite: AskRewrite,
        ready: AskReady,
        token: str | None = None,
        forgets: Sequence[Callable[[UserKey], object]] = (),
        answered: Callable[[UserKey, str], object] = lambda _user, _session_id: None,
        learnt: Callable[[str], bool] = lambda _tenant: False,
        ready_s: float = READY_S,
    ) -> None:
        """`ready` gives what is missing, a sentence each, within `ready_s`.

        `forgets` are called once the store has forgotten a user, `answered` with the user and session of the last
        event, of those taken, that tells what came of a query. `learnt` says whether there is a sum over a tenant's
        users, which may count one of them still.
        """
        self._store, self._recorder, self._metrics, self._share = store, recorder, metrics, share
        self._rewrite, self._ready, self._ready_s = rewrite, ready, ready_s
        self._token, self._forgets, self._answered = token, tuple(forgets), answered
        self._learnt = learnt
        self._threads = ThreadPoolExecutor(STORE_THREADS, "bespeak-routes")

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            parts = segments(scope)
            if parts[:1] != ["health"]:
                check_access(scope, self._token)
            respond = choose(self._routes(parts), scope["method"])
            await respond(scope, receive, send)
        except Refusal as refusal:
            await answer_error(send, refusal.status, KINDS[refusal.status], refusal.reason, refusal.headers)
        except (InputError, UsageError) as error:
            await answer_error(send, 400, KINDS[HTTPStatus.BAD_REQUEST], str(error))

    def close(self) -> None:
        """Waits for what the store is doing."""
        self._threads.shutdown()

    def _routes(self, parts: Sequence[str]) -> Mapping[str, Respond]:
        """What may be done at a path, by method."""
        match parts:
            case ["events"]:
                return {"POST": self._take_events}
            case ["profile", user_id]:
                return {"GET": partial(self._export, user_id), "DELETE": partial(self._forget, user_id)}
            case ["profile", user_id, "consent"]:
                return {"PUT": partial(self._set_consent, user_id)}
            case ["rewrite"]:
                return {"POST": self._answer_rewrite}
            case ["health"] | ["health", "live" | "ready"]:
                respond = partial(self._tell_health, parts[-1])
                return {"GET": respond, "HEAD": respond}
            case ["metrics"]:
                return {"GET": self._tell_metrics}
            case ["share"]:
                return {"GET": self._tell_share, "PUT": self._set_share}
        return {}

    async def _take_events(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers: Headers = scope["headers"]
        tenant, zipped = tenant_of(headers), is_zipped(headers)
        body = await whole_body(receive, MAX_EVENTS_BYTES)
        with_store = partial(self._add_events, body, zipped, tenant)
        found = await self._stored(with_store, " Some events may have been taken; sending all again doubles none.")
        content: dict[str, object] = {
            "taken": found.taken,
            "rejected": [{"line": line_no, "reason": reason} for line_no, reason in found.rejected],
        }
        if more := found.n_rejected - len(found.rejected):
            content["rejected_unlisted"] = more
        await answer_json(send, 400 if found.n_rejected and not found.taken else 200, content)
        if found.answered:
            self._answered(*found.answered)

    def _add_events(self, body: bytes, zipped: bool, tenant: str) -> Taken:
        """Straight to the store, so that the next search knows them. Raises StoreError, InputError, Refusal."""
        items = read_events(io.BytesIO(as_lines(unzip(body) if zipped else body)), tenant)
        taken, n_rejected, listed = 0, 0, list[tuple[int, str]]()
        answered: tuple[UserKey, str] | None = None
        while some := list(itertools.islice(items, EVENTS_BATCH)):
            events = [item for _, item in some if isinstance(item, Event)]
            rejected = [(line_no, item.reason) for line_no, item in some if isinstance(item, RejectedLine)]
            if events:
                self._store.add(events)
            told = [event for event in events if event.session_id and event.action in ANSWERING]
            answered = (told[-1].user, told[-1].session_id) if told else answered
            taken, n_rejected = taken + len(events), n_rejected + len(rejected)
            listed += rejected[: REJECTED_LISTED - len(listed)]
        return Taken(taken, n_rejected, listed, answered)

    async def _export(self, user_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        """UBI lines as they are read; a fault in the middle breaks the answer off, so that it does not look whole."""
        user = user_key(tenant_of(scope["headers"]), user_id)
        await self._in_thread(partial(self._recorder.flush, FLUSH_S))
        events = self._store.export(user)
        lines = await self._stored(partial(next_lines, events))
        headers = [(b"content-type", b"application/x-ndjson")]
        with WhileThere(receive) as there:
            there.listen()
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            while lines:
                await send({"type": "http.response.body", "body": lines, "more_body": True})
                lines = await self._in_thread(partial(next_lines, events))
            await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def _forget(self, user_id: str, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        user = user_key(tenant_of(scope["headers"]), user_id)
        gone = await self._stored(partial(self._forget_everywhere, user))
        await answer_json(send, 200, gone._asdict() | self._due(gone.events > 0, user))

    def _due(self, lost: bool, user: UserKey) -> dict[str, bool]:
        """A sum over everyone cannot lose one user; it can be made anew."""
        return {"learn_again": True} if lost and self._learnt(user.tenant) else {}

    def _forget_everywhere(self, user: UserKey) -> Forgotten:
        """First what is on its way to the store, then the store, then what was derived from it."""
        try:
            self._recorder.forget(user)
            return self._store.forget(user)
        finally:
            for forget in self._forgets:
                forget(user)

    async def _set_consent(self, user_id: str, scope: Scope, receive: Receive, send: Send) -> None:
        user = user_key(tenant_of(scope["headers"]), user_id)
        given = {b"true": True, b"false": False}.get((await whole_body(receive)).strip())
        if given is None:
            raise Refusal(HTTPStatus.BAD_REQUEST, "the body is true or false")
        await self._stored(partial(self._store.set_consent, user, given))
        for forget in self._forgets:  # pages under way too begin anew
            forget(user)
        await answer_json(send, 200, {"consent": given} | self._due(not given, user))

    async def _answer_rewrite(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked = read_asked(await whole_body(receive))
        user = user_key(asked["tenant"] or tenant_of(scope["headers"]), asked["user"]) if asked["user"] else None
        try:
            made = await self._rewrite(asked["query"], user, asked["session"])
        except BespeakError as error:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, str(error)) from error
        await answer_json(send, 200, asdict(made))

    async def _tell_health(self, what: str, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        told: dict[str, object] = {} if what == "ready" else {"live": True}
        missing: Sequence[str] = ()
        if what != "live":
            missing = await self._missing()
            told |= {"ready": not missing, "missing": list(missing)}
        bodiless = without_body(send) if scope["method"] == "HEAD" else send
        await answer_json(bodiless, 503 if missing else 200, told)

    async def _missing(self) -> Sequence[str]:
        try:
            async with asyncio.timeout(self._ready_s):
                return await self._ready()
        except TimeoutError:
            return [f"no answer within {self._ready_s:g} s"]
        except BespeakError as error:
            return [str(error)]

    async def _tell_metrics(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        body = self._metrics.text()
        headers = [(b"content-type", CONTENT_TYPE.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    async def _tell_share(self, scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG002
        await answer_json(send, 200, {"share": self._share.value})

    async def _set_share(self, scope: Scope, receive: Receive, send: Send) -> None:
        text = (await whole_body(receive)).decode("utf-8", "replace")
        self._share.set(Share.parse(text.strip().strip('"')))
        await self._tell_share(scope, receive, send)

    async def _in_thread(self, act: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, act)

    async def _stored(self, act: Callable[[], T], hint: str = "") -> T:
        """Raises Refusal where the store fails."""
        try:
            return await self._in_thread(act)
        except StoreError as error:
            raise Refusal(HTTPStatus.SERVICE_UNAVAILABLE, f"{error}.{hint}" if hint else str(error)) from error


def check_binding(host: str, token: str | None) -> None:
    """Raises UsageError for an address that others reach without a token, and for one that is easily guessed."""
    if token is None and not is_loopback(host):
        raise UsageError(
            f"{host or 'every address'} can be reached from elsewhere, and /_bespeak holds what is known of users: "
            "give a token, or bind to 127.0.0.1"
        )
    if token is not None and (len(token) < MIN_TOKEN_CHARS or not all("!" <= char <= "~" for char in token)):
        raise UsageError(
            f"a token has at least {MIN_TOKEN_CHARS} characters, ASCII without spaces: "
            "make one with 'openssl rand -hex 32'"
        )


def read_token(path: Path) -> str:
    """The token in a file, without the end of its line. Raises InputError."""
    try:
        return path.read_text("ascii").strip()
    except UnicodeDecodeError as error:
        raise InputError(f"the token in {path} is not ASCII: make one with 'openssl rand -hex 32'") from error
    except OSError as error:
        raise InputError(f"cannot read the token {path} ({error.strerror}): check the path") from error


def is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def check_access(scope: Scope, token: str | None) -> None:
    """Raises Refusal for who does not know the token or, where there is none, for who is not on this machine."""
    if token is None:
        check_local(scope)
        return
    given = values(scope, b"x-bespeak-token")
    for value in values(scope, b"authorization"):
        scheme, _, rest = value.partition(b" ")
        if scheme.lower() == b"bearer":
            given.append(rest.strip())
    if not any(hmac.compare_digest(value, token.encode()) for value in given):
        raise Refusal(
            HTTPStatus.UNAUTHORIZED,
            "a token is needed, as 'Authorization: Bearer …' or 'X-Bespeak-Token: …'",
            [(b"www-authenticate", b'Bearer realm="bespeak"')],
        )


def check_local(scope: Scope) -> None:
    """Raises Refusal for another machine, and for a page of another site in a browser on this one.

    Such a page cannot choose its `Origin`, and one that lets its own name lead to this machine cannot choose `Host`.
    """
    client = scope.get("client")
    passed_on = any(values(scope, name) for name in FORWARDED)
    if passed_on or (client and not is_loopback(client[0])):
        raise Refusal(HTTPStatus.FORBIDDEN, "without a token only this machine is served: start with one")
    hosts = values(scope, b"host")
    if len(hosts) != 1 or not is_loopback(host_name(hosts[0])):
        raise Refusal(HTTPStatus.FORBIDDEN, "without a token only the host names localhost, 127.0.0.1 and [::1] serve")
    own = (b"http://" + hosts[0].lower(), b"https://" + hosts[0].lower())
    foreign = any(origin.lower() not in own for origin in values(scope, b"origin"))
    if foreign or any(site not in (b"same-origin", b"none") for site in values(scope, b"sec-fetch-site")):
        raise Refusal(HTTPStatus.FORBIDDEN, "without a token no page of another site is served: start with one")


def host_name(host: bytes) -> str:
    """Of a `Host` header, without its port; "" for what is none."""
    found = HOST.fullmatch(host.decode("latin-1"))
    return (found[1] or found[2]) if found else ""


def values(scope: Scope, name: bytes) -> list[bytes]:
    return [value.strip() for given, value in scope["headers"] if given.lower() == name]


def segments(scope: Scope) -> list[str]:
    """The parts of the path below `/_bespeak`, each percent-decoded by itself. Raises Refusal."""
    try:
        path = target(scope).partition(b"?")[0]
        parts = [unquote_to_bytes(part).decode("utf-8") for part in path.split(b"/")]
    except UnicodeDecodeError as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, "the path is not UTF-8") from error
    return parts[2:] if parts[:2] == ["", "_bespeak"] else []


def choose(routes: Mapping[str, Respond], method: str) -> Respond:
    """Raises Refusal."""
    if not routes:
        raise Refusal(HTTPStatus.NOT_FOUND, "no such path under /_bespeak")
    if method not in routes:
        allowed = ", ".join(routes)
        raise Refusal(
            HTTPStatus.METHOD_NOT_ALLOWED, f"this path takes {allowed}", [(b"allow", allowed.encode())]
        )  # fmt: skip
    return routes[method]


async def whole_body(receive: Receive, limit: int = MAX_BODY_BYTES) -> bytes:
    """Raises Refusal for a longer one."""
    body, whole = await read_body(receive, limit)
    if not whole or len(body) > limit:
        raise Refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body is longer than {limit} bytes: send it in parts")
    return body


def is_zipped(headers: Headers) -> bool:
    """Raises Refusal for any other encoding than gzip."""
    names = [value.strip().lower() for name, value in headers if name.lower() == b"content-encoding"]
    names = [name for name in names if name not in (b"", b"identity")]
    if names not in ([], [b"gzip"], [b"x-gzip"]):
        raise Refusal(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, "the only Content-Encoding taken is gzip")
    return bool(names)


def unzip(body: bytes) -> bytes:
    """Raises Refusal for what is damaged, or too long once unzipped."""
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(body)) as file:
            plain = file.read(MAX_EVENTS_BYTES + 1)
    except (EOFError, zlib.error, gzip.BadGzipFile) as error:
        raise Refusal(HTTPStatus.BAD_REQUEST, "the body is cut short or damaged as gzip") from error
    if len(plain) > MAX_EVENTS_BYTES:
        raise Refusal(
            HTTPStatus.REQUEST_ENTITY_TOO_LARGE,
            f"the body is longer than {MAX_EVENTS_BYTES} bytes once unzipped: send it in parts",
        )
    return plain


def as_lines(body: bytes) -> bytes:
    """One line for each event: NDJSON as it is, the elements of an array, or one object over several lines.

    Raises InputError where an array is broken.
    """
    start = body.removeprefix(b"\xef\xbb\xbf").lstrip()[:1]
    if start == b"[":
        return b"\n".join(map(as_line, parse(body)))
    if start == b"{" and len(body) <= MAX_LINE_BYTES:
        try:
            return as_line(parse(body))
        except InputError:  # several objects: each line is judged by itself
            return body
    return body


def as_line(value: object) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def parse(body: bytes) -> Any:
    """Raises InputError."""
    try:
        return STRICT.decode(body.decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise InputError(f"the body is not UTF-8 at byte {error.start + 1}") from error
    except json.JSONDecodeError as error:
        raise InputError(f"the body is broken JSON at character {error.pos + 1}: {error.msg}") from error
    except RecursionError as error:
        raise InputError("the body is nested too deep") from error
    except ValueError as error:  # an integer of thousands of digits
        raise InputError("the body is broken JSON: a number is too long") from error


def read_asked(body: bytes) -> dict[str, str]:
    """`query`, `user`, `session` and `tenant`, "" where not given. Raises InputError."""
    given = parse(body)
    names = ("query", "user", "session", "tenant")
    if not isinstance(given, dict) or not given.keys() <= set(names):
        raise InputError(f"the body is an object with {', '.join(names)}, of which only query is needed")
    for name, value in given.items():
        if not isinstance(value, str):
            raise InputError(f"{name} is not text")
        if any("\ud800" <= char <= "\udfff" for char in value):
            raise InputError(f"{name} holds half of a surrogate pair, which is not a character")
    asked = {name: given.get(name, "") for name in names}
    if not asked["query"].strip() or len(asked["query"]) > MAX_QUERY_CHARS:
        raise InputError(f"query must have 1 to {MAX_QUERY_CHARS} characters, but has {len(asked['query'])}")
    if len(asked["session"]) > MAX_ID_CHARS:
        raise InputError(f"session has {len(asked['session'])} characters, at most {MAX_ID_CHARS} are taken")
    return asked


def next_lines(events: Iterator[Event]) -> bytes:
    """The next events as UBI lines, empty at the end. Raises StoreError."""
    return b"".join(as_line(ubi_line(event)) + b"\n" for event in itertools.islice(events, EVENTS_BATCH))


def without_body(send: Send) -> Send:
    async def sent(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return sent
