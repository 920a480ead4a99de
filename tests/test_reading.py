"""Reading a query: the gate, what it leans on, and the rule that a query is never its own history."""

from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest

from bespeak.errors import ModelError
from bespeak.parts import Parts
from bespeak.pipeline import search
from bespeak.ranking.tuned import LAST_TURN_BESIDE_SESSION, PICKED_WEIGHT
from bespeak.reading import clauses, open_reading, query_vector, read, rewrite_query, turn_text
from bespeak.records import Clause, Preference, Profile, Request, Rewrite, Statement, Term, Turn
from bespeak.rewriting.rewriter import LastTurn, Unchanged
from bespeak.settings import Settings
from bespeak.statuses import Reason, RewriteStatus
from fakes import ADA, BagEncoder, MemoryEngine, ScriptedReader, ScriptedRewriter, reading_of

BOATS = Turn("which boat has a sail", "a small boat", "t1")
LIKED = Preference("kite", "a kite", 1.0, "click", "c1", datetime(2026, 1, 1, tzinfo=UTC))
KNOWN = Profile(ADA, "s", (Statement("I sail.", "s1"),), (BOATS,), (LIKED,), version="v")


SAIL = ScriptedRewriter({"and an engine": "boat and an engine"}, [Term("boat", "turn", "t1", BOATS.query)])


def parts(rewriter=None, encoder=None, context=None):
    return Parts(Settings(), rewriter or Unchanged(), encoder, context=context)


class Unasked(Unchanged):
    """A rewriter that must not be asked."""

    def rewrite(self, query, profile, budget_ms=None):
        raise AssertionError(query)


class OutOfMemory(ScriptedReader):
    def read(self, query, profile):
        raise ModelError("the reader is out of memory")


@pytest.mark.parametrize(
    ("query", "profile", "gate", "declined"),
    [
        ("and when?", KNOWN, None, None),
        ("and when?", Profile(ADA), Reason.NO_HISTORY, Reason.STRANGER),
        ("and when?", Profile(ADA, preferences=(LIKED,)), Reason.NO_HISTORY, None),
        ("and when?", Profile(ADA, turns=(BOATS,), consent=False), Reason.REFUSED, Reason.REFUSED),
        ('"late 1969"', KNOWN, Reason.QUOTED, Reason.QUOTED),
        ("いくらですか", KNOWN, Reason.OTHER_LANGUAGE, None),
        ("いくらですか", Profile(ADA, turns=(BOATS,)), Reason.OTHER_LANGUAGE, Reason.OTHER_LANGUAGE),
        ("why " * 61, Profile(ADA, turns=(BOATS,)), Reason.TOO_LONG, Reason.TOO_LONG),
        ("and when?", Profile(ADA, statements=KNOWN.statements), None, None),
    ],
)
def test_the_gate_decides_what_is_left_out(query, profile, gate, declined):
    rewriter, reader = Unasked() if gate else Unchanged(), ScriptedReader({query: ["sail"]})
    reading = read(query, profile, parts(rewriter, BagEncoder(), reader))
    assert (reading.gate, reading.declined) == (gate, declined)
    assert reading.rewrite.reason == (gate or "")
    assert (reading.rewrite.status == RewriteStatus.GATED) == bool(gate)
    assert rewrite_query(query, profile, rewriter, reader).text == query
    if gate:
        assert reader.asked == []
        assert set(reading.vectors) == (set() if declined else {"typed"})


@pytest.mark.parametrize("asked", ["and an engine", "And  an ENGINE", " and an engine "])
@pytest.mark.parametrize("response", ["", "a boat with an engine"])
def test_a_query_is_never_its_own_history(asked, response):
    before = Profile(ADA, "s", turns=(BOATS,), version="v")
    again = Profile(ADA, "s", turns=(Turn(asked, response, "t0"), BOATS, Turn(asked, response, "t2")), version="v")
    reading = open_reading("and an engine", again)
    assert reading.profile.turns == before.turns
    assert reading.profile.version not in ("", "v")
    assert open_reading("and an engine", before).profile is before
    rewritten = [rewrite_query("and an engine", profile, LastTurn(), None) for profile in (before, again)]
    assert rewritten[0] == rewritten[1]


def test_a_user_who_repeats_a_first_query_is_still_a_stranger():
    profile = Profile(ADA, "s", turns=(Turn("boats", "", "t1"),))
    assert open_reading("boats", profile).declined == Reason.STRANGER


def test_the_rewrite_is_searched_beside_the_query_with_the_last_turn():
    reading = read("and an engine", KNOWN, parts(SAIL))
    assert clauses(reading, Settings(last_turn_weight=0.1, rewrite_weight=2.0)) == (
        Clause("boat and an engine", 2.0),
        Clause("which boat has a sail a small boat", 0.1),
    )
    assert clauses(reading, Settings(last_turn_weight=0)) == (Clause("boat and an engine", 1.0),)


def test_vectors_are_kept_by_name_and_mixed_by_the_settings():
    encoder = BagEncoder()
    reading = read("and an engine", KNOWN, parts(SAIL, encoder))
    assert set(reading.vectors) == {"typed", "rewrite", "last_turn"}
    found = query_vector(reading, Settings(last_turn_share=0.25))
    typed, rewrite, turn = encoder.encode(["and an engine", "boat and an engine", "which boat has a sail a small boat"])
    expected = typed + rewrite + 0.25 * turn
    assert found.mixed.vector == pytest.approx(expected / np.linalg.norm(expected), abs=1e-6)
    assert [(addend.event_id, addend.text) for addend in found.mixed.addends] == [
        ("", ""), ("t1", "boat"), ("t1", BOATS.query),
    ]  # fmt: skip
    assert found.last_turn.vector == pytest.approx(turn)


def test_without_an_encoder_there_is_no_vector_and_its_error_is_kept():
    class Broken(BagEncoder):
        def encode(self, texts, kind="document"):
            raise ModelError("the encoder is out of memory")

    assert query_vector(read("and when?", KNOWN, parts()), Settings()) is None
    reading = read("and when?", KNOWN, parts(encoder=Broken()))
    assert (dict(reading.vectors), reading.fault) == ({}, "the encoder is out of memory")


NOTHING = ScriptedReader({})
"""Every query stands alone."""


def test_a_query_that_leans_on_nothing_is_read_as_typed():
    reading = read("red kites", KNOWN, parts(Unasked(), BagEncoder(), NOTHING))
    assert (reading.gate, reading.declined) == (Reason.STANDS_ALONE, None)
    assert reading.rewrite == Rewrite(
        "red kites", "red kites", status=RewriteStatus.GATED, reason="stands_alone", model="none 1"
    )
    assert (reading.context, reading.picked, reading.last_turn, reading.has_clauses) == (None, None, None, False)
    assert set(reading.vectors) == {"typed"}
    assert clauses(reading, Settings(last_turn_weight=5.0)) == ()
    found = query_vector(reading, Settings(last_turn_share=5.0))
    assert found.mixed.vector == pytest.approx(BagEncoder().encode(["red kites"])[0], abs=1e-6)
    assert found.last_turn is None


@pytest.mark.parametrize("liked", [(), (LIKED,)])
def test_what_stands_alone_is_ranked_only_by_what_the_user_liked(liked):
    reading = read("red kites", replace(KNOWN, preferences=liked), parts(encoder=BagEncoder(), context=NOTHING))
    assert reading.declined == (None if liked else Reason.STANDS_ALONE)
    assert bool(reading.vectors) == bool(liked)


class Known:
    """A store with one fixed profile."""

    def __init__(self, profile):
        self.known = profile

    def profile(self, user, session_id, now):
        return self.known


@pytest.mark.parametrize("mode", ["boost", "recall"])
@pytest.mark.parametrize("liked", [(), (LIKED,)])
def test_what_stands_alone_gets_the_same_answer_as_without_a_session(mode, liked):
    things = {"kite": "a red kite", "boat": "a red boat with a sail", "car": "a red car"}
    settings = Settings(mode=mode, rewrite_weight=5.0, last_turn_weight=5.0)
    given = Parts(settings, LastTurn(), BagEncoder(), context=NOTHING)
    session, none = (
        search(MemoryEngine(BagEncoder(), things), Known(profile), Request("red", "things", ADA, "s"), given)
        for profile in (replace(KNOWN, preferences=liked), Profile(ADA, "s", preferences=liked))
    )
    assert [(one.hit, one.score, one.scores, one.evidence) for one in session.page] == [
        (one.hit, one.score, one.scores, one.evidence) for one in none.page
    ]
    assert (session.rerank, session.weights) == (none.rerank, none.weights)
    assert session.rewrite.reason == "stands_alone"


LEANS = ScriptedReader({"and an engine": ["boat", "sail"]})


def test_a_query_that_leans_on_the_session_is_read_with_it():
    encoder = BagEncoder()
    reading = read("and an engine", KNOWN, parts(SAIL, encoder, LEANS))
    assert (reading.gate, reading.rewrite.text) == (None, "boat and an engine")
    assert reading.picked == (
        Term("boat", "turn", "t1", BOATS.query),
        Term("sail", "turn", "t1", BOATS.query),
    )
    assert reading.explained.text == "boat and an engine sail"
    assert set(reading.vectors) == {"typed", "rewrite", "session", "last_turn"}
    assert reading.vectors["session"] == pytest.approx(encoder.encode(["and an engine boat sail"])[0])


def test_a_reader_of_another_encoder_gives_its_words_and_not_its_vector():
    encoder = BagEncoder(name="another")
    reading = read("and an engine", KNOWN, parts(encoder=encoder, context=LEANS))
    assert set(reading.vectors) == {"typed", "picked", "last_turn"}
    assert reading.vectors["picked"] == pytest.approx(encoder.encode(["and an engine boat sail"])[0])


def test_picked_words_are_searched_beside_the_query_and_take_room_from_the_last_turn():
    reading = read("and an engine", KNOWN, parts(context=LEANS))
    added = clauses(reading, Settings(last_turn_weight=0.1))
    assert [clause.text for clause in added] == ["boat sail", turn_text(BOATS)]
    assert [clause.weight for clause in added] == [PICKED_WEIGHT, pytest.approx(0.1 * LAST_TURN_BESIDE_SESSION)]


def test_the_last_turn_alone_is_not_searched():
    unread = reading_of("and an engine", KNOWN)
    context = replace(LEANS.read("and an engine", KNOWN), added=())
    nothing_picked = reading_of("and an engine", KNOWN, context=context)
    for reading in (unread, nothing_picked):
        assert clauses(reading, Settings(last_turn_weight=0.1)) == ()
    assert (unread.picked, nothing_picked.picked) == (None, ())


def test_a_picked_word_that_the_rewrite_has_is_explained_once():
    reading = read("and an engine", KNOWN, parts(SAIL, context=LEANS))
    assert [term.text for term in reading.explained.terms] == ["boat", "sail"]


def test_a_query_is_read_once_and_without_its_own_turns():
    class Noting(ScriptedReader):
        def read(self, query, profile):
            assert profile.turns == (BOATS,)
            return super().read(query, profile)

    reader = Noting(LEANS.table)
    again = replace(KNOWN, turns=(BOATS, Turn("And an engine", "", "t2")))
    assert read("and an engine", again, parts(SAIL, BagEncoder(), reader)).picked
    assert reader.asked == ["and an engine"]


def test_a_reader_that_fails_leaves_the_query_and_its_error_is_kept():
    reading = read("and an engine", KNOWN, parts(Unasked(), BagEncoder(), OutOfMemory({})))
    assert reading.fault == "the reader is out of memory"
    assert (reading.gate, reading.declined, reading.context, dict(reading.vectors)) == (None, None, None, {})
    assert reading.rewrite == Rewrite("and an engine", "and an engine", status=RewriteStatus.OFF)
    with pytest.raises(ModelError, match="out of memory"):
        rewrite_query("and an engine", KNOWN, Unasked(), OutOfMemory({}))


def test_a_rewrite_alone_is_that_of_a_search():
    class Timed(ScriptedRewriter):
        def rewrite(self, query, profile, budget_ms=None):
            assert budget_ms == 70
            return super().rewrite(query, profile, budget_ms)

    timed = Timed(SAIL.table, SAIL.terms)
    found = rewrite_query("and an engine", KNOWN, timed, LEANS, 70)
    assert found == read("and an engine", KNOWN, parts(SAIL, BagEncoder(), LEANS)).rewrite
    alone = rewrite_query("and an engine", KNOWN, Unasked(), NOTHING)
    assert (alone.status, alone.reason, alone.text) == ("gated", "stands_alone", "and an engine")
