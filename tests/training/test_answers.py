"""The gains of candidates, with word-count vectors."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from bespeak.training.answers import Answers, Gains, encode_all, gain, texts_of
from bespeak.training.candidates import AnsweredTurn
from bespeak.training.pairs import Conversation, PastTurn
from fakes import BagEncoder

WHALES = "Whales eat krill and small fish, tons of it."
LIVE = "Whales live in the cold waters of the north."
OTHERS = (
    "Horses eat grass.",
    "Violins are made of maple and of spruce.",
    "A comet is made of ice, dust and some rock.",
)
TEXTS = [LIVE, WHALES, *OTHERS]


def asked(*before):
    return AnsweredTurn(0, "own", "What do they eat?", "What do whales eat?", WHALES, tuple(before), ())


@pytest.fixture
def answers():
    encoder = BagEncoder(dim=512)
    return Answers(TEXTS, encoder.encode(TEXTS), encoder)


@given(arrays(np.float32, 8, elements=st.floats(-1, 1, width=32)), st.integers(0, 7))
def test_a_gain_is_that_of_the_rank(scores, own):
    others = np.ones(8, bool)
    others[own] = False
    rank = 1 + sum(score > scores[own] for score in scores)
    assert gain(scores, own, others) == pytest.approx(1 / np.log2(1 + rank))


def test_what_is_left_out_is_not_ranked():
    scores = np.array([0.9, 0.8, 0.1], np.float32)
    assert gain(scores, 2, np.array([True, True, False])) == 0.5
    assert gain(scores, 2, np.array([False, False, False])) == 1


def test_the_rewrite_that_names_what_is_meant_finds_the_answer(answers):
    turn = asked(PastTurn("Where do they live?"))
    query, person, wrong = answers.gains(turn, [turn.query, turn.rewrite, "What do horses eat?"])
    assert person == Gains(1, 1, 1)
    assert wrong.alone < 1
    assert wrong.mean < person.mean
    assert query.mean < person.mean


def test_an_answer_that_was_given_before_is_not_in_the_way(answers):
    said, unsaid = asked(PastTurn("Where do whales live?", LIVE)), asked(PastTurn("Where do whales live?"))
    text = "whales live in cold waters of the north"
    assert answers.gains(unsaid, [text])[0].alone < answers.gains(said, [text])[0].alone


def test_an_answer_that_was_given_twice_is_still_to_be_found(answers):
    turn = asked(PastTurn("What do whales eat?", WHALES))
    assert answers.gains(turn, [turn.rewrite]) == [Gains(1, 1, 1)]


def test_the_collection_holds_each_answer_once_and_no_short_one():
    turns = (PastTurn("a", LIVE), PastTurn("b", "Yes."), PastTurn("c", LIVE), PastTurn("d", WHALES), PastTurn("e"))
    assert texts_of([Conversation("own", turns, ()), Conversation("own", turns, ())]) == [LIVE, WHALES]


def test_vectors_are_computed_once_and_come_back_bit_for_bit(tmp_path):
    class Counting(BagEncoder):
        read = 0

        def encode(self, texts, kind="document"):
            self.read += len(texts)
            return super().encode(texts, kind)

    texts = [f"{text} {number}" for number in range(30) for text in TEXTS]
    encoder, told = Counting(), []
    first = encode_all(texts[:100], encoder, tmp_path / "vectors.db", told.append)
    assert encoder.read == 100
    assert told == [64, 100]
    again = encode_all(texts, encoder, tmp_path / "vectors.db", told.append)
    assert encoder.read == 150
    assert np.array_equal(again[:100], first)
    assert np.array_equal(again, encoder.encode(texts))
