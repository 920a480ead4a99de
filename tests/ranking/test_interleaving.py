"""Pages drafted from two rankings, and the results of simulated clicks on them."""

import random
from datetime import UTC, datetime

import pytest

from bespeak.evaluation.comparisons import judge_comparisons, sign_test
from bespeak.profiles.events import new_event
from bespeak.ranking.interleaving import Comparison, Side, draft
from bespeak.records import UserKey

NOW = datetime(2026, 1, 1, tzinfo=UTC)
GOOD, BAD = list(range(10)), list(range(9, -1, -1))


def searches(name, orders, users=60, split=False):
    """Events of users who prefer hits with low numbers and look more at the first ranks."""
    first, second = name.split("|" if split else ":")
    comparison, luck = Comparison((Side(first), Side(second)), split), random.Random(7)
    for n in range(users):
        user = UserKey("", f"u{n}")
        for m in range(4):
            order, sides = comparison.draft(orders, user, f"{n}-{m}")
            for rank, (hit, side) in enumerate(zip(order, sides, strict=True), 1):
                noted = {"compared": name, "side": comparison.sides[side].name}
                told = {"event_attributes": {"position": {"ordinal": rank}, "bespeak": noted}}
                yield new_event(user, "impression", NOW, query_id=f"q{m}", doc_id=str(hit), attributes=told)
                if luck.random() < 0.6 / rank * (1 - hit / 10):
                    yield new_event(user, "click", NOW, query_id=f"q{m}", doc_id=str(hit))


def test_each_side_picks_its_best_in_turn():
    order, sides = draft([1, 2, 3, 4], [4, 3, 2, 1], "seed")
    assert sorted(order) == [1, 2, 3, 4]
    assert sorted(sides[:2]) == sorted(sides[2:]) == [0, 1]
    assert set(order[:2]) == {1, 4}
    assert draft([1, 2, 3, 4], [4, 3, 2, 1], "seed") == (order, sides)


@pytest.mark.parametrize(("orders", "better"), [((BAD, GOOD), "b"), ((GOOD, BAD), "a"), ((GOOD, GOOD), "")])
def test_a_better_side_wins_and_equal_sides_do_not(orders, better):
    (found,) = judge_comparisons(searches("a:b", orders))
    assert found.sides == ("a", "b")
    assert found.searches == 240
    assert found.better == better


@pytest.mark.parametrize(("orders", "better"), [((BAD, GOOD), "b"), ((GOOD, GOOD), "")])
def test_a_split_test_compares_users(orders, better):
    (found,) = judge_comparisons(searches("a|b", orders, users=200, split=True))
    assert sum(found.users) == 200
    assert min(found.users) > 60
    assert found.better == better


def test_events_outside_a_comparison_are_left_out():
    assert judge_comparisons([new_event(UserKey("", "u"), "click", NOW, query_id="q", doc_id="d")]) == []


def test_the_sign_test_is_binomial():
    assert sign_test(0, 5) == pytest.approx(2 / 2**5)
    assert sign_test(3, 3) == sign_test(0, 0) == 1
