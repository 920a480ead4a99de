"""Reading a query: the gate, and the rule that a query is never its own history."""

from datetime import UTC, datetime

import numpy as np
import pytest

from bespeak.errors import ModelError
from bespeak.parts import Parts
from bespeak.reading import clauses, open_reading, query_vector, read, rewrite_query
from bespeak.records import Clause, Preference, Profile, Statement, Term, Turn
from bespeak.rewriting.rewriter import LastTurn, Unchanged
from bespeak.settings import Settings
from bespeak.statuses import Reason, RewriteStatus
from fakes import ADA, BagEncoder, ScriptedRewriter

BOATS = Turn("which boat has a sail", "a small boat", "t1")
LIKED = Preference("kite", "a kite", 1.0, "click", "c1", datetime(2026, 1, 1, tzinfo=UTC))
KNOWN = Profile(ADA, "s", (Statement("I sail.", "s1"),), (BOATS,), (LIKED,), version="v")


def parts(rewriter=None, encoder=None):
    return Parts(Settings(), rewriter or Unchanged(), encoder)


@pytest.mark.parametrize(
    ("query", "profile", "gate", "declined"),
    [
        ("and when?", KNOWN, None, None),
        ("and when?", Profile(ADA), Reason.NO_HISTORY, Reason.STRANGER),
        ("and when?", Profile(ADA, preferences=(LIKED,)), Reason.NO_HISTORY, None),
        ("and when?", Profile(ADA, turns=(BOATS,), consent=False), Reason.REFUSED, Reason.REFUSED),
        ('"late 1969"', KNOWN, Reason.QUOTED, Reason.QUOTED),
        ("いくらですか", KNOWN, Reason.OTHER_LANGUAGE, None),
    ],
)
def test_the_gate_decides_what_is_left_out(query, profile, gate, declined):
    class Unasked(Unchanged):
        def rewrite(self, query, profile, budget_ms=None):
            assert not gate
            return super().rewrite(query, profile, budget_ms)

    reading = read(query, profile, parts(Unasked()))
    assert (reading.gate, reading.declined) == (gate, declined)
    assert reading.rewrite.reason == (gate or "")
    assert (reading.rewrite.status == RewriteStatus.GATED) == bool(gate)
    assert rewrite_query(query, profile, Unasked()).text == query


@pytest.mark.parametrize("asked", ["and an engine", "And  an ENGINE", " and an engine "])
@pytest.mark.parametrize("response", ["", "a boat with an engine"])
def test_a_query_is_never_its_own_history(asked, response):
    before = Profile(ADA, "s", turns=(BOATS,), version="v")
    again = Profile(ADA, "s", turns=(Turn(asked, response, "t0"), BOATS, Turn(asked, response, "t2")), version="v")
    reading = open_reading("and an engine", again)
    assert reading.profile.turns == before.turns
    assert reading.profile.version not in ("", "v")
    assert open_reading("and an engine", before).profile is before
    rewritten = [rewrite_query("and an engine", profile, LastTurn()) for profile in (before, again)]
    assert rewritten[0] == rewritten[1]


def test_a_user_who_repeats_a_first_query_is_still_a_stranger():
    profile = Profile(ADA, "s", turns=(Turn("boats", "", "t1"),))
    assert open_reading("boats", profile).declined == Reason.STRANGER


def test_the_rewrite_is_searched_beside_the_query_with_the_last_turn():
    sail = ScriptedRewriter({"and an engine": "boat and an engine"}, [Term("boat", "turn", "t1", BOATS.query)])
    reading = read("and an engine", KNOWN, parts(sail))
    assert clauses(reading, Settings(last_turn_weight=0.1, rewrite_weight=2.0)) == (
        Clause("boat and an engine", 2.0),
        Clause("which boat has a sail a small boat", 0.1),
    )
    assert clauses(reading, Settings(last_turn_weight=0)) == (Clause("boat and an engine", 1.0),)


def test_vectors_are_kept_by_name_and_mixed_by_the_settings():
    sail = ScriptedRewriter({"and an engine": "boat and an engine"}, [Term("boat", "turn", "t1", BOATS.query)])
    encoder = BagEncoder()
    reading = read("and an engine", KNOWN, parts(sail, encoder))
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
