import json

import pytest

from bespeak.errors import InputError
from bespeak.training.pairs import Conversation, Pair, PastTurn, Target, conversations, read_pairs, split

ZAPPA = (PastTurn("Who disbanded?", "The Mothers"), PastTurn("When did they?", "In 1969"))


def write(tmp_path, *rows):
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_a_line_becomes_a_pair(tmp_path):
    row = {
        "source": "ikat2025",
        "statements": ["I live\nin Ghent.", "I run."],
        "statements_used": ["I run."],
        "history": [{"query": " Which  shoes? ", "response": None}],
        "query": "And socks?",
        "rewrite": "Which socks for running?",
        "title": None,
    }
    (pair,) = read_pairs(write(tmp_path, row, ""))
    statements, used = ("I live in Ghent.", "I run."), ("I run.",)
    history = (PastTurn("Which shoes?", ""),)
    assert pair == Pair("ikat2025", "And socks?", "Which socks for running?", history, statements, used)


def test_query_and_rewrite_are_enough(tmp_path):
    (pair,) = read_pairs(write(tmp_path, {"query": "a", "rewrite": "b"}))
    assert pair == Pair("own", "a", "b")


@pytest.mark.parametrize(
    "line",
    [
        "{", "[]", "3", '{"query": "a"}', '{"query": " ", "rewrite": "b"}', '{"query": 1, "rewrite": "b"}',
        '{"query": "a", "rewrite": "b", "statements": "I run."}',
        '{"query": "a", "rewrite": "b", "history": ["x"]}',
        '{"query": "a", "rewrite": "b", "history": [{"query": null, "response": 3}]}',
    ],
)  # fmt: skip
def test_an_invalid_line_is_named(tmp_path, line):
    path = write(tmp_path, {"query": "a", "rewrite": "b"}, line)
    with pytest.raises(InputError, match=r"line 2 of .*pairs\.jsonl is no pair"):
        list(read_pairs(path))


def test_a_file_that_is_not_text_is_reported(tmp_path):
    path = tmp_path / "pairs.jsonl"
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="give a file of JSON lines"):
        list(read_pairs(path))


def test_pairs_of_one_conversation_are_joined():
    pairs = [Pair("s", turn.query, turn.query.upper(), ZAPPA[:n]) for n, turn in enumerate(ZAPPA)]
    pairs += [Pair("s", "Why?", "WHY?", ZAPPA), Pair("s", "How?", "HOW?", ZAPPA)]
    (found,) = conversations(pairs)
    assert found.turns == ZAPPA
    assert [(target.n_before, target.query) for target in found.targets] == [
        (0, "Who disbanded?"), (1, "When did they?"), (2, "Why?"), (2, "How?"),
    ]  # fmt: skip


@pytest.mark.parametrize(
    "other",
    [
        Pair("s", "Why?", "WHY?", (PastTurn("Who sang?", ""),)),  # another beginning
        Pair("t", "When did they?", "WHEN?", ZAPPA[:1]),  # another source
        Pair("s", "When did they?", "WHEN?", ZAPPA[:1], ("I run.",)),  # another user
        Pair("s", "Who sang?", "WHO SANG?"),  # another first query
    ],
)
def test_a_pair_that_does_not_continue_starts_another_conversation(other):
    assert len(conversations([Pair("s", "Who disbanded?", "WHO?"), other])) == 2


def test_a_pair_is_in_one_part_only():
    found = [Conversation("s", (), (Target(0, f"q{n}", "r"),)) for n in range(400)]
    learnt, scored = split(found * 2, one_in=10)
    assert {c.targets for c in learnt}.isdisjoint(c.targets for c in scored)
    assert len(learnt) + len(scored) == 800
    assert 20 < len(scored) < 160
    assert split(found * 2, one_in=10) == (learnt, scored)
