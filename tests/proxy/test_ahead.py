"""Reading a session's next prompt ahead, between two searches, and what stops it."""

import asyncio
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime

import pytest

from bespeak.deadline import Deadline, Late
from bespeak.proxy.ahead import ReadAhead, with_turn
from bespeak.proxy.bounds import Bounds
from bespeak.proxy.chains import Chains
from bespeak.records import Profile, Turn
from bespeak.session import reader as session_reader
from bespeak.session.reader import load_reader, run_reader
from bespeak.settings import Settings
from fakes import ADA, ScriptedRewriter
from personal_proxy import call, coats, personal_proxy
from proxy_server import PATIENCE_S, serving

KNOWN = Profile(ADA, "s", turns=(Turn("silk scarf", "silk is light", "t"),))
AS_ADA = {"X_Bespeak_User": "ada", "X_Bespeak_Session": "s"}


class Warming(ScriptedRewriter):
    """Notes what it reads ahead and rewrites; a slow one reads until its deadline, or until it is released."""

    def __init__(self, slow=False, fault=None):
        super().__init__({"coat": "silk coat", "shoe": "silk shoe"})
        self.warmed, self.read, self.slow, self.fault = [], [], slow, fault
        self.began, self.ended, self.released = threading.Event(), threading.Event(), threading.Event()

    def rewrite(self, query, profile, budget_ms=None):
        self.read.append(profile)
        return super().rewrite(query, profile, budget_ms)

    def warm(self, profile):
        self.warmed.append(profile)
        self.began.set()
        if self.fault:
            raise self.fault
        if self.slow:
            with Deadline.current().ending(self.released.set):
                assert self.released.wait(PATIENCE_S)
        self.ended.set()
        Deadline.current().check()


def searched(url, text, **headers):
    return call(url, "/i/_search", {"query": {"match": {"text": text}}}, **(AS_ADA | headers))


def turns(profile):
    return [(turn.query, turn.response) for turn in profile.turns]


@pytest.fixture
def proxied(tmp_path):
    """A proxy with this rewriter, for one block."""

    def make(rewriter, **parts):
        settings = Settings(window=4, profile_ms=5000, rewrite_ms=5000, rerank_ms=5000)
        return personal_proxy(engine_url, tmp_path / "p", rewriter=rewriter, settings=settings, **parts)

    with serving(coats) as engine_url:
        yield make


def eventually(true):
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_the_next_prompt_is_read_as_the_next_search_will_find_it(proxied):
    rewriter = Warming()
    with proxied(rewriter) as (url, store):
        assert searched(url, "coat").outcome["rewrite"] == "full"
        eventually(lambda: rewriter.ended.is_set() and b"coat" in b"".join(map(repr_of, store.export(ADA))))
        searched(url, "shoe")
    (ahead, *_), (_, then) = rewriter.warmed, rewriter.read
    assert turns(ahead) == turns(then) == [("silk scarf", "silk is light"), ("coat", "")]
    assert (ahead.user, ahead.session_id, ahead.statements) == (then.user, then.session_id, then.statements)


def repr_of(event):
    return repr(event).encode()


ANSWER = {"action_name": "answer", "user_id": "ada", "session_id": "s", "query_id": "q1", "message": "silk is cool"}


def test_answers_are_read_ahead_too(proxied):
    rewriter = Warming()
    with proxied(rewriter) as (url, store):
        at = datetime.now(UTC).isoformat()
        for other in ({"action_name": "impression"}, {"session_id": ""}):  # say nothing of a query, or of no session
            call(url, "/_bespeak/events", ANSWER | {"timestamp": at} | other)
        assert call(url, "/_bespeak/events", ANSWER | {"timestamp": at}).json["taken"] == 1
        assert rewriter.ended.wait(PATIENCE_S)
        known = store.profile(ADA, "s", datetime.now(UTC))
    assert turns(known) == [("silk scarf", "silk is cool")]
    (ahead,) = rewriter.warmed
    assert (ahead.user, ahead.session_id, ahead.version) == (ADA, "s", known.version)


def test_nothing_is_read_ahead_without_consent(proxied):
    rewriter = Warming()
    with proxied(rewriter) as (url, store):
        store.set_consent(ADA, False)
        call(url, "/_bespeak/events", ANSWER | {"timestamp": datetime.now(UTC).isoformat()})
    assert rewriter.warmed == []


def test_the_last_search_of_many_in_one_request_is_the_latest_turn(proxied):
    rewriter = Warming()
    with proxied(rewriter) as (url, _):
        lines = "".join(f'{{"index": "i"}}\n{{"query": {{"match": {{"text": "{t}"}}}}}}\n' for t in ("coat", "shoe"))
        call(url, "/_msearch", lines.encode(), Content_Type="application/x-ndjson", **AS_ADA)
        assert rewriter.began.wait(PATIENCE_S)
    assert [turns(profile)[-1] for profile in rewriter.warmed] == [("shoe", "")]


def test_a_later_page_a_stranger_and_a_search_that_is_left_alone_read_nothing(proxied):
    rewriter = Warming()
    with proxied(rewriter) as (url, _):
        searched(url, "coat", X_Bespeak_User="stranger")
        searched(url, '"coat"')
        searched(url, "coat")
        assert rewriter.began.wait(PATIENCE_S)
        call(url, "/i/_search", {"query": {"match": {"text": "coat"}}, "from": 2, "size": 2}, **AS_ADA)
    assert len(rewriter.warmed) == 1


def test_the_next_request_stops_reading_ahead_and_is_answered_as_usual(proxied):
    rewriter = Warming(slow=True)
    with proxied(rewriter) as (url, _):
        searched(url, "coat")
        assert rewriter.began.wait(PATIENCE_S)
        assert not rewriter.ended.is_set()
        assert searched(url, "shoe").outcome["rewrite"] == "full"
        assert rewriter.ended.wait(PATIENCE_S)


def test_forgetting_stops_reading_ahead(proxied):
    rewriter = Warming(slow=True)
    with proxied(rewriter) as (url, _):
        searched(url, "coat")
        assert rewriter.began.wait(PATIENCE_S)
        assert call(url, "/_bespeak/profile/ada", method="DELETE").status == 200
        assert rewriter.ended.wait(PATIENCE_S)
        searched(url, "shoe")  # nothing is known, so nothing is read
    assert len(rewriter.warmed) == 1


def test_closing_the_proxy_stops_reading_ahead(proxied):
    rewriter = Warming(slow=True)
    with proxied(rewriter) as (url, _):
        searched(url, "coat")
        assert rewriter.began.wait(PATIENCE_S)
    assert rewriter.ended.is_set()


@pytest.mark.parametrize("fault", [ValueError("coat of ada"), Late()])
def test_a_fault_in_reading_ahead_is_logged_without_the_user(proxied, caplog, fault):
    rewriter = Warming(fault=fault)
    with proxied(rewriter) as (url, _):
        eventually(lambda: searched(url, "coat").outcome["rewrite"] == "full" and len(rewriter.warmed) >= 2)
    assert "coat" not in caplog.text
    assert ("ValueError" in caplog.text) == isinstance(fault, ValueError)


# The parts by themselves


def made(rewriter, n_bounds=1):
    chains, bounds = Chains(), [Bounds(1) for _ in range(n_bounds)]
    return ReadAhead(rewriter, Known(), chains, bounds), chains, bounds


class Known:
    """A store that gives every user the same profile."""

    def profile(self, user, session_id, now):
        return replace(KNOWN, user=user, session_id=session_id)


def test_a_user_forgotten_while_the_profile_is_read_is_not_warmed():
    rewriter, chains = Warming(), Chains()

    class Forgetting(Known):
        def profile(self, user, session_id, now):
            ahead.forget(user)
            return super().profile(user, session_id, now)

    ahead = ReadAhead(rewriter, Forgetting(), chains, [])
    ahead.read_session(ADA, "s")
    ahead.close()
    assert rewriter.warmed == []


def test_one_prompt_is_read_at_a_time():
    rewriter = Warming(slow=True)
    ahead, chains, _ = made(rewriter)
    for _ in range(3):
        ahead.read(KNOWN, chains.clock())
    rewriter.released.set()
    ahead.close()
    assert len(rewriter.warmed) == 1
    ahead.read(KNOWN, chains.clock())  # closed
    assert len(rewriter.warmed) == 1


def test_nothing_is_read_for_forgotten_users_or_for_nobody():
    rewriter = Warming()
    ahead, chains, _ = made(rewriter)
    begun = chains.clock()
    chains.forget(ADA)
    ahead.read(KNOWN, begun)
    ahead.read(Profile(), chains.clock())
    eventually(lambda: chains.clock() > begun + 0.001)
    ahead.read(KNOWN, chains.clock())
    eventually(lambda: len(rewriter.warmed) == 1)
    ahead.close()
    assert len(rewriter.warmed) == 1


def test_forgetting_another_user_stops_nothing():
    rewriter = Warming(slow=True)
    ahead, chains, _ = made(rewriter)
    ahead.read(KNOWN, chains.clock())
    assert rewriter.began.wait(PATIENCE_S)
    ahead.forget(ADA._replace(tenant="other"))
    assert not rewriter.released.is_set()
    ahead.forget(ADA)
    assert rewriter.released.is_set()


@pytest.mark.parametrize("at", [0, 1])
def test_nothing_starts_while_a_request_runs_a_model(at):
    rewriter = Warming()
    ahead, chains, bounds = made(rewriter, n_bounds=2)

    async def drive():
        release = threading.Event()
        run = asyncio.create_task(bounds[at].run(lambda _: release.wait(PATIENCE_S), 60_000))
        await asyncio.sleep(0)
        ahead.read(KNOWN, chains.clock())
        release.set()
        await run
        assert not rewriter.began.is_set()
        ahead.read(KNOWN, chains.clock())

    asyncio.run(drive())
    assert rewriter.began.wait(PATIENCE_S)
    ahead.close()
    assert len(rewriter.warmed) == 1


def test_reading_ahead_ignores_the_requests_deadline():
    rewriter = Warming()
    ahead, chains, _ = made(rewriter)
    request = Deadline()
    request.cancel()
    with request.held():
        ahead.read(KNOWN, chains.clock())
    eventually(lambda: rewriter.began.is_set())


def test_the_query_becomes_the_latest_turn():
    assert turns(with_turn(KNOWN, "coat")) == [("silk scarf", "silk is light"), ("coat", "")]


def test_a_session_that_was_read_is_remembered_until_a_user_is_forgotten(proxied, monkeypatch):
    runs = []
    monkeypatch.setattr(session_reader, "run_reader", lambda *given: runs.append(given) or run_reader(*given))
    with proxied(Warming(), context=load_reader()) as (url, _):
        for _ in range(2):
            searched(url, "is it warm")
        assert len(runs) == 1
        call(url, "/_bespeak/profile/bob", method="DELETE")
        searched(url, "is it warm")
        assert len(runs) == 2
