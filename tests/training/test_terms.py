"""Training the network that picks words, on pairs small enough to see what it learnt."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from bespeak.errors import InputError
from bespeak.records import Profile, Turn
from bespeak.session.terms import load_terms
from bespeak.training.terms import train
from bespeak_cli import cli

NAMES = (
    "Alba",
    "Bruno",
    "Carla",
    "Dario",
    "Elena",
    "Fabio",
    "Greta",
    "Hugo",
    "Irma",
    "Jonas",
    "Karin",
    "Marta",
    "Nils",
)


@pytest.fixture
def pairs(tmp_path):
    """The name is always meant, nothing else of the answer."""
    rows = [
        {
            "query": "Where do they live?",
            "rewrite": f"Where does {name} live?",
            "history": [{"query": f"Do you know {name}?", "response": f"Yes, a {what} told me something."}],
        }
        for name in NAMES
        for what in ("baker", "teacher", "sailor")
    ]
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


def test_words_that_rewrites_use_are_learnt(pairs, tmp_path):
    result = CliRunner().invoke(
        cli, ["models", "train-terms", "--data", str(pairs), "--held-out", str(pairs), "--out", str(tmp_path / "out")]
    )
    assert result.exit_code == 0, result.output
    turn = Turn("Do you know Quentin?", "Yes, a baker told me something.", "t1")
    picker = load_terms(tmp_path / "out")
    picked = picker.pick("Where do they live?", Profile(turns=(turn,)))
    assert picked
    assert "Quentin" in {term.text for term in picked}


def test_the_same_seed_gives_the_same_network(pairs):
    one, other = (train([pairs], None, 7).arrays for _ in range(2))
    assert all((one[name] == other[name]).all() for name in one)


def test_pairs_without_history_are_refused(tmp_path):
    path = tmp_path / "bare.jsonl"
    path.write_text('{"query": "a", "rewrite": "a"}\n', "utf-8")
    with pytest.raises(InputError, match="--data"):
        train([path], None, 0)
