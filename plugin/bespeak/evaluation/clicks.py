"""Judges weights of the three score columns by recorded clicks, corrected for position bias.

Users look less at lower ranks: rank k is looked at with propensity 1 / k^eta, so a click there counts k^eta times
(Joachims, Swaminathan and Schnabel, "Unbiased learning-to-rank with biased feedback", 2017).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product
from operator import attrgetter

import numpy as np
import numpy.typing as npt

from bespeak.errors import InputError
from bespeak.evaluation.comparisons import CLICKS, IMPRESSION, read_impression
from bespeak.evaluation.tuning import FEWEST, SettingScores, Values, numbered
from bespeak.records import Event, UserKey
from bespeak.settings import Weights

ACTIONS = ("query", IMPRESSION, *CLICKS)
"""Events to read from a store, each user's together."""
STEPS = 10
"""The weights that are tried are tenths that sum to 1."""
ETAS = np.arange(0.0, 3.001, 0.01)

ColumnScores = tuple[float, float, float]
"""Lexical, embedding and user score of a hit."""


@dataclass(frozen=True, slots=True)
class Impression:
    doc_id: str
    rank: int
    scores: ColumnScores
    clicked: bool


@dataclass(slots=True)
class Page:
    """The scored hits that one search showed."""

    user: UserKey
    query: str = ""
    hits: list[Impression] = field(default_factory=list)


def read_pages(events: Iterable[Event]) -> Iterator[Page]:
    """The pages that have a scored hit. `events` are ACTIONS, each user's together."""
    for user, own in groupby(events, key=attrgetter("user")):
        pages: dict[str, Page] = defaultdict(lambda user=user: Page(user))  # type: ignore[misc]
        shown: dict[tuple[str, str], tuple[int, ColumnScores]] = {}
        clicks = set()
        for event in own:
            if event.action in CLICKS:
                clicks.add((event.query_id, event.doc_id))
            elif event.action == "query":
                pages[event.query_id].query = " ".join(event.text.casefold().split())
            elif (scored := read_scores(event)) and event.query_id:
                shown[event.query_id, event.doc_id] = scored
        for (query_id, doc_id), (rank, scores) in shown.items():
            pages[query_id].hits.append(Impression(doc_id, rank, scores, (query_id, doc_id) in clicks))
        yield from (page for page in pages.values() if page.hits)


def read_scores(event: Event) -> tuple[int, ColumnScores] | None:
    """Rank and scores of an impression; None if it was not scored."""
    if not (found := read_impression(event)):
        return None
    rank, recorded = found
    scores = recorded.get("scores")
    if not isinstance(scores, list) or len(scores) != 3 or not all(isinstance(s, int | float) for s in scores):
        return None
    return rank, (float(scores[0]), float(scores[1]), float(scores[2]))


@dataclass(frozen=True, slots=True)
class Propensity:
    """How much less users look at lower ranks. `clicks` counts the clicks that eta was fitted on."""

    eta: float
    clicks: int

    def weight(self, rank: int) -> float:
        """How many times a click at this rank counts."""
        return float(rank**self.eta)


def fit_propensity(pages: Iterable[Page]) -> Propensity:
    """Fits eta by intervention harvesting (Agarwal et al., "Estimating position bias without intrusive interventions",
    2019).

    Whatever the relevance of a hit, its clicks for one query fall on rank k in proportion to k^-eta. So eta maximises
    the likelihood of the clicks' ranks, given their number. Impressions are grouped by tenant, query, hit and scores
    (to a tenth); otherwise a hit that ranks higher because it suits a user better would look like position bias.
    Raises `InputError` if there are too few clicks.
    """
    ranks, clicks = _harvest(pages)
    n_clicks = int(clicks.sum())
    if n_clicks < FEWEST:
        raise InputError(
            f"only {n_clicks} clicks are on hits that one query showed at several ranks, but fitting the position bias "
            f"takes {FEWEST}: run `bespeak serve --compare engine:current` for a while, which varies the ranks"
        )
    places = np.arange(1, ranks.shape[1] + 1, dtype=float)
    likelihood = [
        -eta * (clicks @ np.log(places)).sum() - clicks.sum(axis=1) @ np.log(ranks @ places**-eta) for eta in ETAS
    ]
    return Propensity(float(ETAS[int(np.argmax(likelihood))]), n_clicks)


def _harvest(pages: Iterable[Page]) -> tuple[Values, Values]:
    """How often each hit was shown, and clicked, at each rank: two arrays `(n_hits, n_ranks)`."""
    gathered: dict[tuple[object, ...], list[Impression]] = defaultdict(list)
    for page in pages:
        for hit in page.hits if page.query else ():
            key = (page.user.tenant, page.query, hit.doc_id, *(round(score, 1) for score in hit.scores))
            gathered[key].append(hit)
    moved = [found for found in gathered.values() if len({hit.rank for hit in found}) > 1]
    depth = max((hit.rank for found in moved for hit in found), default=1)
    ranks, clicks = np.zeros((len(moved), depth)), np.zeros((len(moved), depth))
    for row, found in enumerate(moved):
        for hit in found:
            ranks[row, hit.rank - 1] += 1
            clicks[row, hit.rank - 1] += hit.clicked
    return ranks, clicks


def weight_grid(present: Weights) -> list[Weights]:
    """The present weights, then all others whose tenths sum to 1."""
    tenths = [
        Weights(lexical / STEPS, embedding / STEPS, (STEPS - lexical - embedding) / STEPS)
        for lexical, embedding in product(range(STEPS + 1), repeat=2)
        if lexical + embedding <= STEPS
    ]
    return [present, *(weights for weights in tenths if weights != present)]


def click_evidence(pages: Sequence[Page], weights: Sequence[Weights], propensity: Propensity) -> SettingScores:
    """For each click, 1 / log2(1 + rank) of its hit under each of the weights, grouped by user.

    Clicks count by inverse propensity, and means divide by the sum of these counts (Swaminathan and Joachims, "The
    self-normalized estimator for counterfactual learning", 2015).
    """
    with_clicks = [page for page in pages if any(hit.clicked for hit in page.hits)]
    matrix = np.array([one.as_tuple() for one in weights], float).T  # (3, n_settings)
    matrix /= matrix.sum(axis=0)
    columns = [_discounts(page, matrix) for page in with_clicks]
    users = [page.user for page in with_clicks for hit in page.hits if hit.clicked]
    counts = [propensity.weight(hit.rank) for page in with_clicks for hit in page.hits if hit.clicked]
    values = np.concatenate(columns) if columns else np.zeros((0, len(weights)))
    return SettingScores("clicks", values.T, np.array(counts), numbered(users))


def _discounts(page: Page, matrix: npt.NDArray[np.float64]) -> Values:
    """`(n_clicks, n_settings)`. Ties are broken by doc_id, as the reranker does."""
    hits = sorted(page.hits, key=attrgetter("doc_id"))
    totals = np.round(np.array([hit.scores for hit in hits]) @ matrix, 6)  # (n_hits, n_settings)
    order = np.argsort(-totals, axis=0, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, len(hits) + 1)[:, None], axis=0)
    by_doc = {hit.doc_id: row for row, hit in enumerate(hits)}
    rows = [by_doc[hit.doc_id] for hit in page.hits if hit.clicked]
    discounts: Values = 1 / np.log2(1 + ranks[rows])
    return discounts
