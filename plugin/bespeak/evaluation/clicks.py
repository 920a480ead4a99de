"""What logged clicks say of the weights of the three columns, freed of the places that the hits were shown at.

Who clicks has looked, and looks less far down: rank k is looked at with propensity 1 / k^eta, so a click there
stands for k^eta as many (Joachims, Swaminathan and Schnabel, "Unbiased learning-to-rank with biased feedback", 2017).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby, product
from operator import attrgetter
from typing import Any

import numpy as np
import numpy.typing as npt

from bespeak.errors import InputError
from bespeak.evaluation.comparisons import CLICKED, SHOWN
from bespeak.evaluation.tuning import FEWEST, Evidence, Values, numbered
from bespeak.records import Event, UserKey
from bespeak.settings import Weights

ACTIONS = ("query", SHOWN, *CLICKED)
"""What is to be read of a store, one user's events together."""
STEPS = 10
"""The weights tried are tenths that sum to 1."""
ETAS = np.arange(0.0, 3.001, 0.01)

Scores = tuple[float, float, float]


@dataclass(frozen=True, slots=True)
class Impression:
    doc_id: str
    rank: int
    scores: Scores
    clicked: bool


@dataclass(slots=True)
class Page:
    """What one search showed, of hits that were scored."""

    user: UserKey
    query: str = ""
    hits: list[Impression] = field(default_factory=list)


def read_pages(events: Iterable[Event]) -> Iterator[Page]:
    """Those with a scored hit. `events`: ACTIONS, those of one user together."""
    for user, own in groupby(events, key=attrgetter("user")):
        pages: dict[str, Page] = defaultdict(lambda user=user: Page(user))  # type: ignore[misc]
        shown: dict[tuple[str, str], tuple[int, Scores]] = {}
        clicks = set()
        for event in own:
            if event.action in CLICKED:
                clicks.add((event.query_id, event.doc_id))
            elif event.action == "query":
                pages[event.query_id].query = " ".join(event.text.casefold().split())
            elif (noted := noted_by(event)) and event.query_id:
                shown[event.query_id, event.doc_id] = noted
        for (query_id, doc_id), (rank, scores) in shown.items():
            pages[query_id].hits.append(Impression(doc_id, rank, scores, (query_id, doc_id) in clicks))
        yield from (page for page in pages.values() if page.hits)


def noted_by(event: Event) -> tuple[int, Scores] | None:
    """Rank and scores of an impression; None where it was not scored."""
    inner: Any = event.attributes.get("event_attributes")
    noted = inner.get("bespeak") if isinstance(inner, dict) else None
    position = inner.get("position") if isinstance(inner, dict) else None
    if not isinstance(noted, dict) or not isinstance(position, dict):
        return None
    rank, scores = position.get("ordinal"), noted.get("scores")
    if not isinstance(rank, int) or rank < 1 or not isinstance(scores, list) or len(scores) != 3:
        return None
    if not all(isinstance(score, int | float) for score in scores):
        return None
    return rank, (float(scores[0]), float(scores[1]), float(scores[2]))


@dataclass(frozen=True, slots=True)
class Propensity:
    """`clicks` is how many told eta: those on hits that the same query showed at several ranks."""

    eta: float
    clicks: int

    def weight(self, rank: int) -> float:
        """How many clicks one at this rank stands for."""
        return float(rank**self.eta)


def fit_propensity(pages: Iterable[Page]) -> Propensity:
    """Eta by intervention harvesting (Agarwal et al., "Estimating position bias without intrusive interventions",
    2019).

    Of the impressions of one hit for one query its clicks fall on rank k in proportion to k^-eta, whatever its
    relevance: the conditional likelihood of the clicks' ranks, given their number, is maximised. Impressions belong
    together where tenant, query, hit and scores (to a tenth) are the same: a hit that is higher up because it fits
    this user better would else pass for position bias. Raises `InputError` where too few clicks tell.
    """
    ranks, clicks = _harvest(pages)
    told = int(clicks.sum())
    if told < FEWEST:
        raise InputError(
            f"only {told} clicks are on hits that one query showed at several ranks, and position bias is known from "
            f"{FEWEST} on: run `bespeak serve --compare engine:current` for a while, which varies the ranks"
        )
    places = np.arange(1, ranks.shape[1] + 1, dtype=float)
    likelihood = [
        -eta * (clicks @ np.log(places)).sum() - clicks.sum(axis=1) @ np.log(ranks @ places**-eta) for eta in ETAS
    ]
    return Propensity(float(ETAS[int(np.argmax(likelihood))]), told)


def _harvest(pages: Iterable[Page]) -> tuple[Values, Values]:
    """`(n_hits, n_ranks)` twice: how often each hit was shown at each rank, and clicked there."""
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
    """The present weights, then all tenths that sum to 1."""
    tenths = [
        Weights(lexical / STEPS, embedding / STEPS, (STEPS - lexical - embedding) / STEPS)
        for lexical, embedding in product(range(STEPS + 1), repeat=2)
        if lexical + embedding <= STEPS
    ]
    return [present, *(weights for weights in tenths if weights != present)]


def clicked(pages: Sequence[Page], weights: Sequence[Weights], propensity: Propensity) -> Evidence:
    """Of each click 1 / log2(1 + rank) of its hit as each of `weights` puts the page, self-normalised: a click counts
    by its inverse propensity, and means are over these counts (Swaminathan and Joachims 2015). By user."""
    with_clicks = [page for page in pages if any(hit.clicked for hit in page.hits)]
    matrix = np.array([one.as_tuple() for one in weights], float).T  # (3, n_settings)
    matrix /= matrix.sum(axis=0)
    columns = [_discounts(page, matrix) for page in with_clicks]
    users = [page.user for page in with_clicks for hit in page.hits if hit.clicked]
    counts = [propensity.weight(hit.rank) for page in with_clicks for hit in page.hits if hit.clicked]
    values = np.concatenate(columns) if columns else np.zeros((0, len(weights)))
    return Evidence("clicks", values.T, np.array(counts), numbered(users))


def _discounts(page: Page, matrix: npt.NDArray[np.float64]) -> Values:
    """`(n_clicks, n_settings)`; ties by doc_id, as the reranker breaks them."""
    hits = sorted(page.hits, key=attrgetter("doc_id"))
    totals = np.round(np.array([hit.scores for hit in hits]) @ matrix, 6)  # (n_hits, n_settings)
    order = np.argsort(-totals, axis=0, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, len(hits) + 1)[:, None], axis=0)
    by_doc = {hit.doc_id: row for row, hit in enumerate(hits)}
    rows = [by_doc[hit.doc_id] for hit in page.hits if hit.clicked]
    discounts: Values = 1 / np.log2(1 + ranks[rows])
    return discounts
