import asyncio
import gzip
import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.errors import EngineUnreachable, InputError, ModelError, StoreError, UsageError
from bespeak.profiles.events import new_event
from bespeak.profiles.stores import ForgottenCounts
from bespeak.profiles.stores.sqlite import SqliteStore
from bespeak.profiles.ubi import MAX_LINE_BYTES, read_event, ubi_line
from bespeak.proxy.access import check_binding, is_loopback, read_token
from bespeak.proxy.app import Proxy
from bespeak.proxy.http.passing import ClientGone
from bespeak.proxy.identity import Share
from bespeak.proxy.metrics import Metrics
from bespeak.proxy.posted import MAX_EVENTS_BYTES
from bespeak.proxy.recording import Recorder
from bespeak.proxy.routes import Hooks, Routes
from bespeak.proxy.user_data import REJECTED_LISTED, UserData
from bespeak.records import Rewrite, Term, UserKey

ADA, NOW = UserKey("", "ada"), datetime(2025, 6, 1, tzinfo=UTC)
TOKEN = "a-token-of-some-length"
CLICK = {"action_name": "click", "user_id": "ada", "timestamp": "2025-06-01T00:00:00Z",
         "event_attributes": {"object": {"object_id": "d1", "description": "Lemon cake"}}}  # fmt: skip


class Reply:
    def __init__(self, messages):
        start, *self.parts = messages
        self.status, self.headers = start["status"], dict(start["headers"])
        self.body = b"".join(part["body"] for part in self.parts)
        self.ended = not self.parts[-1]["more_body"]

    @property
    def json(self):
        return json.loads(self.body)


def call(app, method, raw_path, body=b"", headers=None, client=("127.0.0.1", 5), chunk=1 << 16, **scope):
    """The app's answer to one request, driven as a server does it."""
    named = {"host": "localhost:9200"} | (headers or {})
    raw = [(name.encode(), value if isinstance(value, bytes) else value.encode()) for name, value in named.items()]
    parts = [body[i : i + chunk] for i in range(0, len(body), chunk)] or [b""]
    sent = []

    async def drive():
        waiting = [{"type": "http.request", "body": part, "more_body": True} for part in parts]
        waiting[-1]["more_body"] = False

        async def receive():
            return waiting.pop(0) if waiting else await asyncio.Event().wait()

        async def send(message):
            sent.append(message)

        made = {"type": "http", "method": method, "path": "", "raw_path": raw_path.encode("latin-1"),
                "query_string": b"", "headers": raw, "client": client}  # fmt: skip
        await app(made | scope, receive, send)

    asyncio.run(drive())
    return Reply(sent)


@pytest.fixture
def store(tmp_path):
    store = SqliteStore(tmp_path / "bespeak.db", timeout_s=0.2)
    yield store
    store.close()


@pytest.fixture
def recorder(store):
    recorder = Recorder(store)
    yield recorder
    recorder.close()


@pytest.fixture
def built(store, recorder):
    """Makes routes, with other parts if given."""

    async def rewrite(query, user, session_id):
        return Rewrite(query, f"{query} {user} {session_id}", status="full")

    async def ready():
        return []

    made = []

    def make(**given):
        data = UserData(given.pop("store", store), recorder, given.pop("forgets", ()))
        hooked = {name: given.pop(name) for name in ("rewrite", "ready", "ready_s") if name in given}
        hooks = Hooks(**{"rewrite": rewrite, "ready": ready} | hooked)
        made.append(Routes(data, hooks, **{"metrics": Metrics(), "share": Share()} | given))
        return made[-1]

    yield make
    for routes in made:
        routes.close()


def error_of(reply):
    assert reply.json["status"] == reply.status
    assert reply.json["error"]["root_cause"][0]["reason"] == reply.json["error"]["reason"]
    return reply.json["error"]["type"]


class BrokenStore:
    """Fails at everything, after `good` batches."""

    def __init__(self, good=0):
        self.good = good

    def add(self, events):
        if self.good == 0:
            raise StoreError("the store is locked")
        self.good -= 1
        return len(events)

    def export(self, user):
        for n in range(self.good):
            yield new_event(user, "click", NOW, doc_id=str(n))
        raise StoreError("the store is locked")

    def forget(self, user):
        raise StoreError("the store is locked")

    def set_consent(self, user, given):
        raise StoreError("the store is locked")


# Events


@pytest.mark.parametrize(
    "body",
    [
        json.dumps(CLICK),
        json.dumps(CLICK, indent=2),
        "\ufeff" + json.dumps(CLICK),
        json.dumps([CLICK], indent=1),
        " \n" + json.dumps(CLICK) + "\n\n",
        '{"index": {}}\n' + json.dumps(CLICK) + "\n",
    ],
)
def test_events_are_taken_in_any_form_of_json(built, store, body):
    reply = call(built(), "POST", "/_bespeak/events", body.encode())
    assert (reply.status, reply.json) == (200, {"taken": 1, "rejected": []})
    assert list(store.export(ADA)) == [read_event(CLICK)]


def test_the_next_query_knows_posted_events(built, store):
    call(built(), "POST", "/_bespeak/events", json.dumps(CLICK).encode())
    assert [liked.doc_id for liked in store.profile(ADA, "", NOW + timedelta(days=1)).preferences] == ["d1"]


def test_each_line_is_checked_separately(built, store):
    lines = [json.dumps(CLICK), "{", "", '{"user_query": "cake"}', json.dumps(CLICK | {"user_id": "bob"}), "[1]"]
    reply = call(built(), "POST", "/_bespeak/events", "\n".join(lines).encode())
    assert reply.status == 200
    assert reply.json["taken"] == 2
    assert [rejected["line"] for rejected in reply.json["rejected"]] == [2, 4, 6]
    assert reply.json["rejected"][2] == {"line": 6, "reason": "not a JSON object"}
    assert list(store.export(UserKey("", "bob")))


def test_each_element_is_checked_separately(built):
    body = json.dumps([CLICK, 7, {}, "\ud800", CLICK | {"user_id": "a\ud800"}, CLICK | {"user_id": "Žofie"}])
    reply = call(built(), "POST", "/_bespeak/events", body.encode())
    assert (reply.status, reply.json["taken"]) == (200, 2)
    assert [rejected["line"] for rejected in reply.json["rejected"]] == [2, 3, 4, 5]


def test_a_body_of_rejected_events_alone_is_a_client_error(built):
    reply = call(built(), "POST", "/_bespeak/events", b"{}\nnonsense")
    assert (reply.status, reply.json["taken"], len(reply.json["rejected"])) == (400, 0, 2)
    assert call(built(), "POST", "/_bespeak/events", b"").json == {"taken": 0, "rejected": []}
    assert call(built(), "POST", "/_bespeak/events", b"[]").status == 200


@pytest.mark.parametrize("body", [b"[1,", b"[NaN]", b"[" * 100_000, b"[" + b"1" * 5000 + b"]", b'["\xff"]', b"[] []"])
def test_a_broken_array_is_refused_as_a_whole(built, body):
    reply = call(built(), "POST", "/_bespeak/events", body)
    assert (reply.status, error_of(reply)) == (400, "illegal_argument_exception")


def test_a_broken_line_of_any_kind_is_a_rejected_line(built):
    for bad in (b"NaN", b'{"a": NaN}', b'{"a":' * 100_000, b'{"a": ' + b"1" * 5000 + b"}", b"\xff", b"x" * 300_000):
        body = json.dumps(CLICK).encode() + b"\n" + bad
        reply = call(built(), "POST", "/_bespeak/events", body)
        assert (reply.status, [rejected["line"] for rejected in reply.json["rejected"]]) == (200, [2])


class AnyStore:
    """Takes everything and keeps nothing."""

    def add(self, events):
        return len(events)


json_values = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: (
        st.lists(inner) | st.dictionaries(st.sampled_from([*CLICK, "user_query", "index"]) | st.text(), inner)
    ),
)


bodies = (
    st.binary()
    | json_values.map(lambda value: json.dumps(value).encode())
    | st.lists(json_values | st.just(CLICK)).map(lambda lines: b"\n".join(json.dumps(line).encode() for line in lines))
)


def test_any_posted_body_gets_an_answer(built):
    app = built(store=AnyStore())

    @given(bodies)
    def judged(body):
        reply = call(app, "POST", "/_bespeak/events", body)
        if "error" in reply.json:
            assert reply.status == 400
            assert body.removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"[")
        else:
            assert reply.status == (400 if reply.json["rejected"] and not reply.json["taken"] else 200)

    judged()


def test_a_long_event_of_an_array_is_rejected_as_a_long_line_is(built):
    long = CLICK | {"note": "x" * MAX_LINE_BYTES}
    reply = call(built(), "POST", "/_bespeak/events", json.dumps([long, CLICK]).encode())
    assert (reply.json["taken"], [rejected["line"] for rejected in reply.json["rejected"]]) == (1, [1])


def test_events_may_come_zipped(built, store):
    body = gzip.compress(json.dumps(CLICK).encode()) + gzip.compress(b"\n{}")
    reply = call(built(), "POST", "/_bespeak/events", body, {"content-encoding": "gzip"}, chunk=7)
    assert (reply.json["taken"], len(reply.json["rejected"])) == (1, 1)
    assert list(store.export(ADA))


@pytest.mark.parametrize("body", [b"not gzip", gzip.compress(b"{}" * 1000)[:-9], b"\x1f\x8b"])
def test_a_damaged_zip_is_refused(built, body):
    reply = call(built(), "POST", "/_bespeak/events", body, {"content-encoding": "gzip"})
    assert (reply.status, error_of(reply)) == (400, "illegal_argument_exception")


def test_other_encodings_are_refused(built):
    for encoding in ("br", "gzip, gzip", "zstd"):
        reply = call(built(), "POST", "/_bespeak/events", b"{}", {"content-encoding": encoding})
        assert (reply.status, error_of(reply)) == (415, "media_type_header_exception")


def test_a_body_that_is_too_long_is_refused_zipped_or_not(built):
    long = b" " * (MAX_EVENTS_BYTES + 1)
    for body, headers in ((long, {}), (gzip.compress(long), {"content-encoding": "gzip"})):
        reply = call(built(), "POST", "/_bespeak/events", body, headers)
        assert (reply.status, error_of(reply)) == (413, "content_too_long_exception")


def test_the_answer_stays_short_however_much_is_rejected(built):
    reply = call(built(), "POST", "/_bespeak/events", b"x\n" * (REJECTED_LISTED + 700))
    assert (len(reply.json["rejected"]), reply.json["rejected_unlisted"]) == (REJECTED_LISTED, 700)


def test_a_failing_store_is_reported_in_a_sentence(built):
    body = b"\n".join(json.dumps(CLICK | {"session_id": str(n)}).encode() for n in range(1200))
    reply = call(built(store=BrokenStore(good=1)), "POST", "/_bespeak/events", body)
    assert reply.status == 503
    assert "the store is locked" in reply.json["error"]["reason"]


def test_events_get_the_tenant_of_the_header(built, store):
    headers = {"x-bespeak-tenant": "Žižkov"}
    call(built(), "POST", "/_bespeak/events", json.dumps(CLICK).encode(), headers)
    assert list(store.export(ADA)) == []
    reply = call(built(), "GET", "/_bespeak/profile/ada", headers=headers)
    assert read_event(reply.body, "Žižkov") == read_event(CLICK, "Žižkov")
    assert call(built(), "GET", "/_bespeak/profile/ada").body == b""
    assert call(built(), "GET", "/_bespeak/profile/ada", headers={"x-bespeak-tenant": b"\xff"}).status == 400


# Profiles


def test_an_export_includes_queued_events(built, store, recorder):
    events = [new_event(ADA, "click", NOW + timedelta(seconds=n), doc_id=str(n), title="É") for n in range(1234)]
    store.add(events[:-1])
    recorder.record(events[-1:])
    reply = call(built(), "GET", "/_bespeak/profile/ada")
    assert (reply.status, reply.headers[b"content-type"]) == (200, b"application/x-ndjson")
    assert [read_event(line) for line in reply.body.splitlines()] == events
    assert len(reply.parts) > 2
    assert json.loads(reply.body.splitlines()[0]) == ubi_line(events[0])


def test_a_user_is_one_part_of_the_path_percent_decoded(built, store):
    for user_id, path in (
        ("a/b?c", "a%2Fb%3Fc"),
        ("Žofie", "%C5%BDofie"),
        ("consent", "consent"),
        ("a b%", "a%20b%25"),
    ):
        store.add([new_event(UserKey("", user_id), "click", NOW, doc_id="d")])
        reply = call(built(), "GET", f"/_bespeak/profile/{path}")
        assert json.loads(reply.body)["user_id"] == user_id


def test_an_invalid_user_is_refused(built):
    for path in ("", "a" * 257):
        reply = call(built(), "GET", f"/_bespeak/profile/{path}")
        assert (reply.status, error_of(reply)) == (400, "illegal_argument_exception")
    assert call(built(), "GET", "/_bespeak/profile/%FF").status == 400
    assert call(built(), "GET", "/_bespeak/profile/a/b").status == 404


def test_an_export_that_cannot_start_is_refused_and_a_broken_one_looks_broken(built):
    reply = call(built(store=BrokenStore()), "GET", "/_bespeak/profile/ada")
    assert (reply.status, error_of(reply)) == (503, "bespeak_exception")
    with pytest.raises(StoreError):
        call(built(store=BrokenStore(good=700)), "GET", "/_bespeak/profile/ada")


def test_an_export_ends_when_its_reader_goes_away(built, store):
    store.add([new_event(ADA, "click", NOW + timedelta(seconds=n), doc_id=str(n)) for n in range(2000)])
    sent = []

    async def drive():
        waiting = [{"type": "http.request", "body": b"", "more_body": False}, {"type": "http.disconnect"}]

        async def receive():
            return waiting.pop(0)

        async def send(message):
            sent.append(message)
            await asyncio.sleep(0)

        scope = {"type": "http", "method": "GET", "path": "", "raw_path": b"/_bespeak/profile/ada",
                 "headers": [(b"host", b"localhost")], "client": None}  # fmt: skip
        await built()(scope, receive, send)

    with pytest.raises(ClientGone):
        asyncio.run(drive())
    assert all(message.get("more_body", True) for message in sent)


def test_a_user_is_forgotten_everywhere(built, store, recorder):
    forgotten = []
    app = built(forgets=[forgotten.append, lambda user: forgotten.append(list(store.export(user)))])
    store.add([new_event(ADA, "click", NOW, doc_id="1"), new_event(ADA, "click", NOW, doc_id="2")])
    store.set_consent(ADA, False)
    late = new_event(ADA, "click", datetime.now(UTC), doc_id="3")
    reply = call(app, "DELETE", "/_bespeak/profile/ada")
    assert (reply.status, reply.json) == (200, {"events": 2, "rewrites": 0, "consent": 1})
    assert forgotten == [ADA, []]
    recorder.record([late])  # of a search that was under way
    recorder.flush()
    assert call(app, "GET", "/_bespeak/profile/ada").body == b""
    assert call(app, "DELETE", "/_bespeak/profile/ada").json == ForgottenCounts(0, 0, 0)._asdict()


def test_derived_data_is_forgotten_even_if_the_store_fails(built):
    forgotten = []
    reply = call(built(store=BrokenStore(), forgets=[forgotten.append]), "DELETE", "/_bespeak/profile/ada")
    assert (reply.status, forgotten) == (503, [ADA])


def test_consent_is_paused_and_given_again(built, store):
    store.add([new_event(ADA, "click", NOW, doc_id="1")])
    for body, consent in ((b"false", False), (b" true\n", True)):
        reply = call(built(), "PUT", "/_bespeak/profile/ada/consent", body)
        assert (reply.status, reply.json) == (200, {"consent": consent})
        assert store.profile(ADA, "", NOW).consent is consent
    for body in (b"", b"False", b"1", b'{"consent": true}'):
        assert call(built(), "PUT", "/_bespeak/profile/ada/consent", body).status == 400
    assert call(built(store=BrokenStore()), "PUT", "/_bespeak/profile/ada/consent", b"true").status == 503
    assert call(built(), "PUT", "/_bespeak/profile/ada/consent", b"x" * 100_000).status == 413


# Rewrites


def test_a_rewrite_is_answered_with_all_its_parts(built):
    asked = []

    async def rewrite(*given):
        asked.append(given)
        return Rewrite("it", "it lemon", (Term("lemon", "turn", "e1", "Lemon cake"),), "full", model="m 1")

    body = {"query": "it", "user": "ada", "session": "s", "tenant": "shop"}
    reply = call(built(rewrite=rewrite), "POST", "/_bespeak/rewrite", json.dumps(body).encode())
    assert asked == [("it", UserKey("shop", "ada"), "s")]
    assert reply.json == {
        "query": "it", "text": "it lemon", "status": "full", "reason": "", "model": "m 1",
        "terms": [{"text": "lemon", "source": "turn", "event_id": "e1", "evidence": "Lemon cake"}],
    }  # fmt: skip
    call(
        built(rewrite=rewrite),
        "POST",
        "/_bespeak/rewrite",
        b'{"query": "it", "user": "ada"}',
        {"x-bespeak-tenant": "t"},
    )
    call(built(rewrite=rewrite), "POST", "/_bespeak/rewrite", b'{"query": "it"}')
    assert asked[1:] == [("it", UserKey("t", "ada"), ""), ("it", None, "")]


@pytest.mark.parametrize(
    "body",
    [b"", b"[]", b"{", b'{"query": ""}', b'{"query": 7}', b'{"query": "a", "user": 7}', b'{"query": "a", "model": "x"}',
     b'{"query": "\\ud800"}', json.dumps({"query": "a" * 10_001}).encode(),
     json.dumps({"query": "a", "user": "u" * 257}).encode(), json.dumps({"query": "a", "session": "s" * 257}).encode()],
)  # fmt: skip
def test_invalid_questions_for_a_rewrite_are_refused(built, body):
    reply = call(built(), "POST", "/_bespeak/rewrite", body)
    assert (reply.status, error_of(reply)) == (400, "illegal_argument_exception")


def test_a_rewrite_that_fails_is_a_fault_of_ours(built):
    async def rewrite(query, user, session_id):
        raise ModelError("the language model is damaged: run 'bespeak models build'")

    reply = call(built(rewrite=rewrite), "POST", "/_bespeak/rewrite", b'{"query": "cake"}')
    assert (reply.status, error_of(reply)) == (503, "bespeak_exception")
    assert "cake" not in reply.body.decode()


# Health, metrics, share


def test_health(built):
    app = built(token=TOKEN)
    assert (call(app, "GET", "/_bespeak/health/live").status, call(app, "GET", "/_bespeak/health").status) == (200, 200)
    assert call(app, "GET", "/_bespeak/health").json == {"live": True, "ready": True, "missing": []}
    head = call(app, "HEAD", "/_bespeak/health/ready", client=("10.0.0.7", 5), headers={"host": "10.0.0.1"})
    assert (head.status, head.body) == (200, b"")


def test_not_ready_says_what_is_missing(built):
    async def missing():
        return ["no node answers"]

    async def unreachable():
        raise EngineUnreachable("no node answers")

    for ready in (missing, unreachable):
        app = built(ready=ready)
        reply = call(app, "GET", "/_bespeak/health/ready")
        assert (reply.status, reply.json) == (503, {"ready": False, "missing": ["no node answers"]})
        assert call(app, "GET", "/_bespeak/health").status == 503
        assert call(app, "GET", "/_bespeak/health/live").json == {"live": True}


def test_a_check_that_hangs_is_not_ready(built):
    async def hanging():
        await asyncio.Event().wait()

    assert call(built(ready=hanging, ready_s=0.01), "GET", "/_bespeak/health/ready").status == 503


def test_metrics(built, recorder):
    metrics = Metrics()
    metrics.personalised()
    metrics.watch_recorder(lambda: recorder.counts)
    reply = call(built(metrics=metrics), "GET", "/_bespeak/metrics")
    assert reply.headers[b"content-type"].startswith(b"text/plain; version=0.0.4")
    assert b'bespeak_requests_total{outcome="personalised",reason=""} 1.0' in reply.body
    assert b"bespeak_events_dropped_total 0.0" in reply.body


def test_the_share_is_changed_at_once(built):
    share = Share(0.1)
    app = built(share=share)
    assert call(app, "GET", "/_bespeak/share").json == {"share": 0.1}
    assert call(app, "PUT", "/_bespeak/share", b"0%").json == {"share": 0.0}
    assert not share.includes(ADA)
    assert call(app, "PUT", "/_bespeak/share", b'"50%"\n').json == {"share": 0.5}
    for bad in (b"", b"1", b"\xff", b"200%"):
        assert call(app, "PUT", "/_bespeak/share", bad).status == 400
    assert share.value == 0.5


# Paths and methods


def test_unknown_paths_and_methods(built):
    app = built()
    for path in ("/_bespeak", "/_bespeak/", "/_bespeak/nothing", "/_bespeak/health/dead", "/_bespeak/events/",
                 "/elsewhere/_bespeak/share"):  # fmt: skip
        reply = call(app, "GET", path)
        assert (reply.status, error_of(reply)) == (404, "resource_not_found_exception")
    reply = call(app, "POST", "/_bespeak/profile/ada")
    assert (reply.status, error_of(reply)) == (405, "method_not_allowed_exception")
    assert reply.headers[b"allow"] == b"GET, DELETE"


def test_mounted_below_a_path(built):
    assert call(built(), "GET", "/search/_bespeak/share", root_path="/search").status == 200


def test_the_proxy_answers_own_paths_by_these_routes(built):
    app = Proxy(upstream=None, own=built())
    assert call(app, "GET", "/_bespeak/health/live", path="/_bespeak/health/live").json == {"live": True}
    assert call(app, "GET", "/%5Fbespeak/share", path="/_bespeak/share").json == {"share": 1.0}


# Access


@pytest.mark.parametrize(
    "headers",
    [{"authorization": f"Bearer {TOKEN}"}, {"authorization": f"bearer  {TOKEN}"}, {"x-bespeak-token": TOKEN},
     {"authorization": "Basic ZWxhc3RpYzp4", "x-bespeak-token": TOKEN}],
)  # fmt: skip
def test_with_the_token_any_machine_is_served(built, headers):
    elsewhere = {"host": "search.example.org", "origin": "https://example.org"} | headers
    assert call(built(token=TOKEN), "GET", "/_bespeak/share", headers=elsewhere, client=("10.0.0.7", 5)).status == 200


@pytest.mark.parametrize(
    "headers",
    [{}, {"authorization": TOKEN}, {"authorization": f"Basic {TOKEN}"}, {"authorization": f"Bearer {TOKEN}x"},
     {"x-bespeak-token": ""}, {"x-bespeak-token": b"\xff"}, {"authorization": "Bearer"}],
)  # fmt: skip
@pytest.mark.parametrize("path", ["share", "metrics", "profile/ada", "nothing", "%68ealth2"])
def test_without_the_token_nothing_is_answered(built, headers, path):
    reply = call(built(token=TOKEN), "GET", f"/_bespeak/{path}", headers=headers)
    assert (reply.status, error_of(reply)) == (401, "security_exception")
    assert reply.headers[b"www-authenticate"].startswith(b"Bearer")


@pytest.mark.parametrize(
    "host", ["localhost", "LOCALHOST:9200", "127.0.0.1:9200", "127.8.9.1", "[::1]:9200", "[::ffff:127.0.0.1]"]
)
def test_without_a_token_only_this_machine_is_served(built, host):
    for client in (("127.0.0.1", 5), ("::1", 5), ("::ffff:127.0.0.1", 5), None):
        assert call(built(), "GET", "/_bespeak/share", headers={"host": host}, client=client).status == 200
    own = {"host": host, "origin": f"http://{host}", "sec-fetch-site": "same-origin"}
    assert call(built(), "PUT", "/_bespeak/share", b"1%", headers=own).status == 200


@pytest.mark.parametrize(
    "asked",
    [
        {"client": ("10.0.0.7", 5)},
        {"client": ("::ffff:10.0.0.7", 5)},
        {"client": ("testclient", 5)},
        {"headers": {"x-forwarded-for": "10.0.0.7"}},
        {"headers": {"Forwarded": "for=10.0.0.7"}},
        {"headers": {"via": "1.1 gateway"}},
        {"headers": {"host": "evil.example.org"}},
        {"headers": {"host": "localhost.evil.example.org"}},
        {"headers": {"host": "127.0.0.1.evil.example.org:9200"}},
        {"headers": {"host": "[::1].evil.example.org"}},
        {"headers": {"host": "0.0.0.0:9200"}},
        {"headers": {"host": ""}},
        {"headers": {"Host": "localhost"}},  # a second one
        {"headers": {"origin": "https://evil.example.org"}},
        {"headers": {"origin": "http://localhost:3000"}},
        {"headers": {"origin": "null"}},
        {"headers": {"sec-fetch-site": "cross-site"}},
        {"headers": {"sec-fetch-site": "same-site"}},
    ],
)
def test_without_a_token_no_other_machine_is_served(built, asked):
    for method, path in (("PUT", "share"), ("DELETE", "profile/ada"), ("POST", "events"), ("OPTIONS", "share")):
        reply = call(built(), method, f"/_bespeak/{path}", b"0%", **asked)
        assert (reply.status, error_of(reply)) == (403, "security_exception")


def test_binding_elsewhere_needs_a_token():
    for host in ("0.0.0.0", "", "::", "10.0.0.1", "search.example.org"):
        with pytest.raises(UsageError):
            check_binding(host, None)
        check_binding(host, TOKEN)
    for host in ("127.0.0.1", "localhost", "::1"):
        check_binding(host, None)
    for token in ("", "short", "a token with some spaces", "ž" * 20):
        with pytest.raises(UsageError):
            check_binding("127.0.0.1", token)


def test_loopback():
    assert is_loopback("127.255.0.1")
    assert not is_loopback("128.0.0.1")
    assert not is_loopback("2130706433")


def test_a_token_is_read_from_a_file(tmp_path):
    path = tmp_path / "token"
    path.write_text(f"{TOKEN}\n")
    assert read_token(path) == TOKEN
    path.write_bytes(b"\xff")
    for bad in (path, tmp_path / "missing"):
        with pytest.raises(InputError):
            read_token(bad)


def test_logs_hold_no_text_and_no_ids(built, caplog):
    caplog.set_level("DEBUG")
    app = built()
    call(app, "POST", "/_bespeak/events", json.dumps(CLICK | {"user_id": "zebra"}).encode() + b"\n{zebra")
    call(app, "GET", "/_bespeak/profile/zebra")
    call(app, "POST", "/_bespeak/rewrite", b'{"query": "zebra", "user": "zebra"}')
    call(app, "DELETE", "/_bespeak/profile/zebra")
    call(built(store=BrokenStore()), "DELETE", "/_bespeak/profile/zebra")
    assert "zebra" not in caplog.text
