"""Tuning on judgments and clicks with a known best answer, and refusals without enough evidence."""

import random
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from test_evaluation import GaussEncoder, random_collection

from bespeak.errors import InputError
from bespeak.evaluation.clicks import Propensity, click_evidence, fit_propensity, read_pages, weight_grid
from bespeak.evaluation.measures import compare
from bespeak.evaluation.memory import make_readings
from bespeak.evaluation.tuning import SettingScores, cross_validate, grid, judged, numbered
from bespeak.parts import Parts
from bespeak.profiles.events import new_event
from bespeak.ranking.interleaving import draft
from bespeak.records import UserKey
from bespeak.rewriting.rewriter import Unchanged
from bespeak.settings import Settings, Weights

NOW = datetime(2026, 1, 1, tzinfo=UTC)
PRESENT = Weights()

# Any evidence


def evidence(*gains, groups=40, engine=0.4, name="set", noise=0.05):
    """Two queries per group. The present settings score about 0.5, the others differ by `gains`."""
    draw = np.random.default_rng(1)
    present = 0.5 + draw.normal(0, noise, 2 * groups)
    rows = [present] + [present + gain + draw.normal(0, noise, 2 * groups) for gain in gains]
    whose = np.repeat(np.arange(groups), 2)
    return SettingScores(name, np.stack(rows), np.ones(2 * groups), whose, np.full(2 * groups, engine))


def test_better_settings_are_found_and_their_gain_is_measured_on_held_out_queries():
    one = evidence(0.0, 0.1, -0.1)
    found = cross_validate([one], "conversations")
    assert (found.choice, found.agreeing, found.refusal) == (2, 5, "")
    expected = compare(*({str(n): v for n, v in enumerate(one.values[row])} for row in (2, 0)),
                       {str(n): f"{g:02}" for n, g in enumerate(one.groups)})  # fmt: skip
    assert found.gain == pytest.approx(expected.difference)
    assert found.sets[0].after - found.sets[0].before == pytest.approx(found.gain.mean)
    assert (found.sets[0].queries, found.sets[0].groups) == (80, 40)


def test_chance_alone_changes_nothing():
    found = cross_validate([evidence(*[0.0] * 30)], "users")
    assert "may be chance" in found.refusal
    assert found.gain.low <= 0
    assert found.gain.mean < 0.02  # the best of thirty looks better than this on the queries it was picked on


def test_few_groups_change_nothing():
    assert cross_validate([evidence(0.2, groups=19)], "users").refusal.startswith("there are 19 users")
    assert cross_validate([evidence(0.2, groups=1)], "users").choice == 1


def test_the_present_settings_stay_if_they_are_the_best():
    assert "no other settings" in cross_validate([evidence(-0.1, 0.0, noise=0)], "users").refusal


def test_settings_that_make_more_queries_worse_than_the_engine_are_not_chosen():
    one = evidence(0.1, 0.05)
    one.values[1, ::4] = 0.2  # a quarter falls by more than 0.1 below the engine's 0.4
    one.values[1, 1::4] = 1.0
    found = cross_validate([one], "conversations")
    assert (found.choice, found.refusal, found.sets[0].worse) == (2, "", (0.0, 0.0))
    assert cross_validate([replace(one, engine=None)], "conversations").choice == 1


def test_the_mean_over_the_sets_counts_whatever_their_sizes():
    large = evidence(0.02, -0.04, groups=200, engine=0.1, name="large")
    small = evidence(-0.01, 0.2, groups=20, engine=0.1, name="small")
    found = cross_validate([large, small], "conversations")
    assert found.choice == 2
    assert found.gain.mean == pytest.approx((found.sets[0].gain.mean + found.sets[1].gain.mean) / 2)


# Judgments


def test_the_grid_begins_with_the_present_settings_and_keeps_the_users_weight():
    present = Settings(Weights(0.3, 0.9, 0.4), window=50, last_turn_weight=0.17)
    found = grid(present)
    assert found[0] == present
    assert len(set(found)) == len(found)
    assert {(round(s.weights.lexical + s.weights.embedding, 3), s.weights.user, s.window) for s in found} == {
        (1.2, 0.4, 50)
    }
    assert {s.rewrite_weight for s in grid(present, rewritten=False)} == {1.0}


def test_judgments_are_scored_by_conversation_beside_the_engines_order():
    readings = make_readings(random_collection(), Parts(Settings(), Unchanged(), GaussEncoder()))
    found = judged(readings, [Settings(), Settings(Weights(1, 0, 0), last_turn_weight=0.0)])
    assert found.values.shape == (2, 12)
    assert found.groups.tolist() == [n // 3 for n in range(12)]
    assert found.values[1] == pytest.approx(found.engine)  # the engine's words alone, no turn, no vector


# Clicks


def log(relevance, users=60, searches=8, eta=1.0, moved=True, seed=5):
    """Events of users who see ten hits of one of twelve queries, ordered by embedding or by user score.

    They look at rank k with probability 1 / k^eta, and click a hit with probability `relevance(scores)`."""
    luck = random.Random(seed)
    hits = {n: [(f"{n}-{m}", [round(luck.random(), 4) for _ in range(3)]) for m in range(10)] for n in range(12)}
    for u in range(users):
        user = UserKey("", f"u{u}")
        for s in range(searches):
            query, query_id = luck.randrange(12), f"q{s}"
            found = hits[query]
            orders = [sorted(range(10), key=lambda m: -found[m][1][column]) for column in (1, 2 if moved else 1)]
            yield new_event(user, "query", NOW, query_id=query_id, text=f"Query  {query}")
            for rank, m in enumerate(draft(*orders, f"{u} {s}")[0], 1):
                doc_id, scores = found[m]
                told = {"event_attributes": {"position": {"ordinal": rank}, "bespeak": {"scores": scores}}}
                yield new_event(user, "impression", NOW, query_id=query_id, doc_id=doc_id, attributes=told)
                if luck.random() < relevance(scores) / rank**eta:
                    yield new_event(user, "click", NOW, query_id=query_id, doc_id=doc_id)


def by_words(scores):
    return 0.2 + 0.4 * scores[0]


def tuned(pages, propensity):
    weights = weight_grid(PRESENT)
    found = cross_validate([click_evidence(pages, weights, propensity)], "users")
    return weights[found.choice], found


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0, 1.5])
def test_the_position_bias_is_found_whatever_is_relevant(eta):
    pages = list(read_pages(log(by_words, users=300, eta=eta)))
    assert fit_propensity(pages).eta == pytest.approx(eta, abs=0.12)


def test_known_better_weights_are_found_although_plain_clicks_favour_others():
    pages = list(read_pages(log(by_words, users=300)))
    weights, found = tuned(pages, fit_propensity(pages))
    assert weights.lexical >= 0.7
    assert found.refusal == ""
    assert found.gain.low > 0
    naive, _ = tuned(pages, Propensity(0.0, 0))
    assert naive.lexical < naive.embedding


def test_clicks_without_signal_are_refused():
    pages = list(read_pages(log(lambda scores: 0.4)))
    assert tuned(pages, fit_propensity(pages))[1].refusal


def test_a_log_whose_ranks_never_vary_shows_no_position_bias():
    with pytest.raises(InputError, match="only 0 clicks are on hits that one query showed at several ranks"):
        fit_propensity(read_pages(log(by_words, moved=False)))


def test_a_click_counts_by_its_inverse_propensity_at_the_rank_of_the_weights():
    user = UserKey("", "u")
    events = [new_event(user, "query", NOW, query_id="q", text="x")]
    for rank, (doc_id, scores) in enumerate({"a": [0, 1, 0], "b": [0.5, 0.5, 0], "c": [1, 0, 0]}.items(), 1):
        told = {"event_attributes": {"position": {"ordinal": rank}, "bespeak": {"scores": scores}}}
        events.append(new_event(user, "impression", NOW, query_id="q", doc_id=doc_id, attributes=told))
    events += [new_event(user, "click", NOW, query_id="q", doc_id=doc_id) for doc_id in "ac"]
    events.append(new_event(user, "click", NOW, query_id="another", doc_id="b"))
    found = click_evidence(list(read_pages(events)), [Weights(0, 1, 0), Weights(1, 0, 0)], Propensity(2.0, 50))
    assert found.counts.tolist() == [1, 9]
    assert found.values.tolist() == [[1, 0.5], [0.5, 1]]  # 1 / log2(1 + 1), 1 / log2(1 + 3)
    assert found.groups.tolist() == [0, 0]


def test_impressions_without_scores_are_left_out():
    told = {"event_attributes": {"position": {"ordinal": 1}, "bespeak": {"compared": "engine:x", "side": "engine"}}}
    user = UserKey("", "u")
    events = [
        new_event(user, "query", NOW, query_id="q", text="x"),
        new_event(user, "impression", NOW, query_id="q", doc_id="d", attributes=told),
        new_event(user, "impression", NOW, query_id="q", doc_id="e"),
        new_event(user, "click", NOW, query_id="q", doc_id="d"),
    ]
    assert list(read_pages(events)) == []


def test_names_are_numbered_in_order_of_appearance():
    assert numbered(["b", "a", "b"]).tolist() == [0, 1, 0]
