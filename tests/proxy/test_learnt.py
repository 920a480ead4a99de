"""What was learnt from other users moves hits in the proxy and is named as the reason; damage is reported."""

import numpy as np
import pytest

from bespeak.ranking.learning import Learnt, LearntFolder, learnt_path, write_learnt
from bespeak.settings import Settings, Weights
from personal_proxy import call, coats, personal_proxy
from proxy_server import serving

AS_ADA = {"X_Bespeak_User": "ada", "X_Bespeak_Session": "s"}
EXPLAINED = {"ext": {"bespeak": {"explain": True}}}
WHO_LIKES_D4_LIKES_D3 = Learnt(
    ["d3", "d4"], np.array([[1], [0]], np.int32), np.array([[5], [5]], np.float32), np.zeros(2, np.float32), 0.0
)


@pytest.fixture
def ask(tmp_path):
    """Ada's search for coats, of a proxy that is running: she clicked d4, which is not among the hits."""
    settings = Settings(window=4, profile_ms=5000, rewrite_ms=5000, rerank_ms=5000, weights=Weights(0.2, 0.1, 1.0))
    with (
        serving(coats) as engine,
        personal_proxy(engine, tmp_path / "p", settings=settings, learnt=LearntFolder(tmp_path)) as (proxy, _),
    ):

        def asked(text="coat", **headers):
            return call(proxy, "/i/_search", {"query": {"match": {"text": text}}} | EXPLAINED, **(AS_ADA | headers))

        asked.url = proxy
        yield asked


def test_what_others_did_moves_a_hit_and_the_users_own_event_is_named(ask, tmp_path):
    assert ask().ids[0] == "d0"
    write_learnt(learnt_path(tmp_path, ""), WHO_LIKES_D4_LIKES_D3)
    reply = ask()
    assert reply.ids[0] == "d3"
    assert "reason" not in reply.outcome
    because = reply.json["bespeak"]["hits"][0]["because"]
    assert ("linen", "user", "click") in [(one["text"], one["column"], one["action"]) for one in because]


@pytest.mark.parametrize("damage", [lambda b: b[:-5], lambda b: b"x" + b[1:], lambda b: b[:-1] + b"x"])
def test_a_damaged_file_is_reported_and_nothing_else_is_lost(ask, tmp_path, damage):
    without = ask()
    path = learnt_path(tmp_path, "")
    write_learnt(path, WHO_LIKES_D4_LIKES_D3)
    path.write_bytes(damage(path.read_bytes()))
    reply = ask()
    assert reply.ids == without.ids
    assert (reply.outcome["rewrite"], reply.outcome["rerank"], reply.outcome["reason"]) == (
        "full",
        "full",
        "learnt_unreadable",
    )
    assert reply.json["bespeak"]["reason"] == "learnt_unreadable"
    write_learnt(path, WHO_LIKES_D4_LIKES_D3)
    assert "reason" not in ask().outcome


def test_a_damaged_file_is_reported_beside_the_reason_for_the_rewrite(ask, tmp_path):
    learnt_path(tmp_path, "").write_bytes(b"no file of ours")
    told = ask("coat " * 61).outcome
    assert (told["rewrite"], told["rerank"], told["reason"]) == ("gated", "full", "too_long,learnt_unreadable")


def test_the_log_names_the_damaged_file_once(ask, tmp_path, caplog):
    learnt_path(tmp_path, "").write_bytes(b"no file of ours")
    ask(), ask()
    assert [learnt_path(tmp_path, "").name in message for message in caplog.messages].count(True) == 1


def test_after_forget_the_answer_equals_a_strangers_and_learning_is_due(ask, tmp_path):
    write_learnt(learnt_path(tmp_path, ""), WHO_LIKES_D4_LIKES_D3)
    assert ask().ids[0] == "d3"
    assert call(ask.url, "/_bespeak/profile/ada", method="DELETE").json["learn_again"] is True
    assert ask().same() == ask(X_Bespeak_User="nobody").same()


@pytest.mark.parametrize(("given", "due"), [(b"false", True), (b"true", False)])
def test_a_pause_says_that_learning_is_due(ask, tmp_path, given, due):
    place = "/_bespeak/profile/ada/consent"
    assert "learn_again" not in call(ask.url, place, given, "PUT").json
    write_learnt(learnt_path(tmp_path, ""), WHO_LIKES_D4_LIKES_D3)
    assert call(ask.url, place, given, "PUT").json.get("learn_again", False) is due


def test_nothing_is_due_for_a_stranger(ask, tmp_path):
    learnt_path(tmp_path, "").write_bytes(b"no file of ours")
    assert ask(X_Bespeak_User="nobody").outcome["reason"] == "stranger"
