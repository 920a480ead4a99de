"""The header and the recorded events of one search."""

from datetime import UTC, datetime

import pytest

from bespeak.proxy.body.search import read_search
from bespeak.proxy.exchanges import MAX_PERSONAL_SEARCHES, Exchange, events_of, header
from bespeak.proxy.identity import Identity
from bespeak.proxy.outcome import Declined, Fault, Outcome
from bespeak.records import UserKey
from bespeak.statuses import RerankStatus, RewriteStatus, Stage

NOW = datetime(2025, 6, 1, tzinfo=UTC)
ADA = Identity(UserKey("", "ada"), "s")
ANSWER = '{"hits": {"hits": [{"_index": "i", "_id": "d1", "_score": 1.0, "_source": {"title": "Coat"}}]}}'


def test_the_header_of_many_searches_is_short():
    told = [Outcome(RewriteStatus.FULL, RerankStatus.FULL, query_id="q" * 100)] * MAX_PERSONAL_SEARCHES + [
        Outcome(reason="too_many_searches")
    ] * 500
    _, value = header(*told)
    assert value.count(b", ") == MAX_PERSONAL_SEARCHES
    assert value.endswith(b"reason=too_many_searches")
    assert len(value) < 4096


@pytest.mark.parametrize(("offset", "actions"), [(0, ["query", "impression"]), (10, ["impression"])])
def test_a_query_is_recorded_once_and_the_hits_of_every_page(offset, actions):
    search = read_search("i", (), f'{{"from": {offset}}}')
    exchange = Exchange(search, ADA).prepared(Declined(Outcome(query_id="q"), "coat")).answered_by_engine(ANSWER)
    events = events_of(exchange, NOW)
    assert [event.action for event in events] == actions
    assert events[-1].attributes["event_attributes"]["position"]["ordinal"] == offset + 1
    assert events[-1].title == "Coat"


def test_nothing_is_recorded_after_a_fault_or_without_consent():
    exchange = Exchange(read_search("i", (), "{}"), ADA).prepared(Declined(Outcome(query_id="q"), "coat"))
    assert not events_of(exchange.failed(Fault(Stage.EMBED)).answered_by_engine(ANSWER), NOW)
    without_consent = exchange.prepared(Declined(Outcome(reason="refused", query_id="q"), ""))
    assert not events_of(without_consent.answered_by_engine(ANSWER), NOW)


def test_a_search_that_is_not_personal_is_asked_as_it_came():
    exchange = Exchange(read_search("i", (), '{"size": 3}'), ADA, head='{"index": "i"}')
    assert exchange.lines == exchange.engine_lines == '{"index": "i"}\n{"size": 3}\n'
