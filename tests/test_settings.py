"""What an operator may set is checked at construction."""

import math

import pytest

from bespeak.errors import UsageError
from bespeak.settings import Settings, Weights

NAN = math.nan


@pytest.mark.parametrize(
    ("weights", "sentence"),
    [
        ((0, 0, 0), "the weights are all 0"),
        ((-1, 0, 2), "the lexical weight must be at least 0, but is -1"),
        ((0.2, NAN, 2), "the embedding weight must be at least 0, but is nan"),
        ((0.2, 0.8, math.inf), "the user weight must be at least 0, but is inf"),
        (("1", 0, 0), "the lexical weight must be a number, but is of type str"),
        ((None, 0, 1), "the lexical weight must be a number"),
    ],
)
def test_weights_are_finite_numbers_and_not_all_0(weights, sentence):
    with pytest.raises(UsageError, match=sentence):
        Weights(*weights)


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"weights": (1, 2, 3)}, "weights must be Weights"),
        ({"window": 0}, "between 1 and 10000"),
        ({"window": 10_001}, "between 1 and 10000"),
        ({"window": 5.5}, "window must be a whole number"),
        ({"window": True}, "window must be a whole number"),
        ({"mode": "bost"}, "mode must be boost or recall"),
        ({"rewrite_ms": NAN}, "rewrite_ms must be above 0, but is nan"),
        ({"profile_ms": 0}, "profile_ms must be above 0, but is 0"),
        ({"rerank_ms": math.inf}, "rerank_ms must be above 0"),
        ({"rewrite_weight": -1}, "rewrite_weight must be at least 0, but is -1"),
        ({"last_turn_weight": "1"}, "last_turn_weight must be a number"),
        ({"last_turn_share": NAN}, "last_turn_share must be at least 0, but is nan"),
    ],
)
def test_a_setting_out_of_range_or_of_another_type_is_refused(given, sentence):
    with pytest.raises(UsageError, match=sentence):
        Settings(**given)
