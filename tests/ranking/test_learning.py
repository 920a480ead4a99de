from dataclasses import replace
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest

from bespeak.engines.embedded import EmbeddedEngine
from bespeak.errors import InputError, StoreError
from bespeak.parts import Parts
from bespeak.pipeline import rank, search
from bespeak.profiles.deriving import UserEvents, derive
from bespeak.profiles.events import new_event
from bespeak.ranking.behaviour import gather
from bespeak.ranking.learning import (
    MIN_EVENTS,
    MIN_USERS,
    RIDGE,
    LearntFolder,
    learn,
    learnt_path,
    read_learnt,
    write_learnt,
)
from bespeak.ranking.rerank import LearntScores, Window, holds_all, score_window
from bespeak.ranking.vectors import Addend, add_up
from bespeak.records import Document, Hit, Profile, Request, Turn, UserKey
from bespeak.settings import Settings, Weights
from fakes import BagEncoder, ScriptedRewriter, reading_of, shown_text

START = datetime(2025, 5, 1, tzinfo=UTC)
SCI_FI = ["alien", "runner", "matrix", "dune"]
ROMANCE = ["amelie", "notting", "before"]


def bought(user, *doc_ids, tenant=""):
    return [
        new_event(UserKey(tenant, user), "purchase", START + timedelta(hours=n), doc_id=doc_id, title=doc_id.title())
        for n, doc_id in enumerate(doc_ids)
    ]


def crowd(tenant=""):
    """Two tastes with 20 users each; every user bought all but one document of the taste."""
    events = []
    for n in range(40):
        circle = SCI_FI if n % 2 else ROMANCE
        skipped = n // 2 % len(circle)
        events += bought(f"u{n}", *(d for i, d in enumerate(circle) if i != skipped), tenant=tenant)
    return events


def learnt_of(events, tenant=""):
    return learn(gather(events)[tenant])


def profile(*events):
    return derive(UserEvents(UserKey("", "me"), "", preference_events=events), START + timedelta(days=2))


def window(*doc_ids):
    return [Hit(doc_id, 1.0, n, {}) for n, doc_id in enumerate(doc_ids, 1)]


EAST = np.array([1, 0], np.float32)


def ranked(hits, known, learnt=None, text="q", settings=None, **members):
    """A ranking of hits for a query with this text; the text of a hit is its source's."""
    return rank(reading_of(text, known, **members), Window(hits, {}, shown_text), settings or Settings(), learnt)


def learnt_scores(hits, known, learnt, text="q"):
    return LearntScores.over(hits, known.preferences, learnt, holds_all(text, shown_text))


def test_weights_are_those_of_the_closed_form():
    found = learnt_of(crowd())
    behaviour = gather(crowd())[""]
    x = np.zeros((behaviour.n_users, len(behaviour.doc_ids)))
    x[behaviour.users, behaviour.docs] = behaviour.values
    p = np.linalg.inv(x.T @ x + RIDGE * np.mean(behaviour.values**2) * np.eye(x.shape[1]))
    b = -p / np.diag(p)
    i, j = behaviour.doc_ids.index("alien"), behaviour.doc_ids.index("runner")
    row = found.row["runner"]
    at = found.neighbours[row].tolist().index(found.row["alien"])
    assert found.weights[row, at] == pytest.approx(b[i, j], rel=1e-3)


def test_fewer_users_than_documents_give_the_same_weights():
    doc_ids = [f"d{n}" for n in range(30)]
    events = [e for n in range(12) for e in bought(f"u{n}", *doc_ids[n : n + 15])]
    few = learnt_of(events)
    more = learnt_of([*events, *(e for n in range(40) for e in bought(f"idle{n}", "elsewhere"))])
    here, there = few.shares(["d13"], profile(*bought("me", "d12")).preferences), None
    there = more.shares(["d13"], profile(*bought("me", "d12")).preferences)
    assert few.neighbours.shape[0] < 31
    assert here[0, 0] == pytest.approx(there[0, 0], rel=0.02)


def test_documents_that_others_chose_together_come_first():
    found = learnt_of(crowd())
    ranking = ranked(window("amelie", "notting", "runner"), profile(*bought("me", "alien")), found)
    assert ranking.hits[0].hit.doc_id == "runner"


def test_a_user_without_preferences_is_ranked_as_if_nothing_was_learnt():
    hits = window("amelie", "runner")
    assert learnt_scores(hits, Profile(), learnt_of(crowd())) is None
    assert ranked(hits, Profile(), learnt_of(crowd())).hits == ranked(hits, Profile()).hits


def test_a_user_with_only_unknown_preferences_gets_popular_documents():
    found = learnt_of([*crowd(), *(e for n in range(5) for e in bought(f"more{n}", "notting"))])
    known = profile(*bought("me", "new document"))
    ranking = ranked(window("amelie", "notting", "other"), known, found)
    assert [r.hit.doc_id for r in ranking.hits] == ["notting", "amelie", "other"]


def test_popularity_counts_less_the_more_preferences_there_are():
    found = learnt_of(crowd())
    few, many = (found.priors(["alien"], n) for n in (0, 10))
    assert few[0] > 0
    assert many[0] == pytest.approx(few[0] / 2)


def test_a_middling_rating_still_shows_interest():
    rated = new_event(UserKey("", "me"), "rating", START, doc_id="alien", title="Alien", value=3)
    hits = window("amelie", "notting", "runner")
    ranking = ranked(hits, profile(rated), learnt_of(crowd()))
    (first,) = ranking.explain(ranking.hits[:1])
    assert first.hit.doc_id == "runner"
    (found,) = first.evidence
    assert (found.event_id, found.action) == (rated.event_id, "rating")


def films(n_others):
    """Hits of a search for "film", each worse by words and by vector than the one before."""
    doc_ids = [*ROMANCE, *SCI_FI, *(f"other{n}" for n in range(n_others))]
    angles = np.linspace(0, 1, len(doc_ids))
    return [
        Hit(doc_id, 2.0 - angle, n, {"text": f"film {doc_id}"}, np.array([np.cos(angle), np.sin(angle)], np.float32))
        for n, (doc_id, angle) in enumerate(zip(doc_ids, angles, strict=True), 1)
    ]


def test_other_users_decide_if_the_query_distinguishes_no_hits():
    found, known, hits = learnt_of(crowd()), profile(*bought("me", "alien", "dune")), films(20)
    assert learnt_scores(hits, known, found, "films").broad == 1
    ranking = ranked(hits, known, found, "films", vectors={"typed": EAST})
    assert {r.hit.doc_id for r in ranking.hits[:4]} == set(SCI_FI)
    without = ranked(hits, known, None, "films", vectors={"typed": EAST})
    assert [r.hit.doc_id for r in without.hits] == [hit.doc_id for hit in hits]


@pytest.mark.parametrize("text", ["film amelie", "amelie and notting", "unheard", "the"])
def test_a_query_that_few_hits_answer_whole_is_not_levelled(text):
    found, known, hits = learnt_of(crowd()), profile(*bought("me", "alien", "dune")), films(20)
    assert learnt_scores(hits, known, found, text).broad == 0
    ranking = ranked(hits, known, found, text, vectors={"typed": EAST})
    plain = score_window(hits, add_up([Addend(EAST)]), None)
    assert np.allclose([r.scores[:2] for r in ranking.hits], [plain[r.hit.rank - 1][:2] for r in ranking.hits])


class Fan:
    """A store that knows a single user."""

    def profile(self, _user, _session_id, _now):
        return replace(profile(*bought("me", "alien", "dune")), user=UserKey("", "me"))


def test_a_title_is_found_first_and_a_broad_search_finds_what_the_user_likes(tmp_path):
    write_learnt(learnt_path(tmp_path, ""), learnt_of(crowd()))
    engine, encoder = EmbeddedEngine(tmp_path / "indices"), BagEncoder()
    names = [*ROMANCE, *SCI_FI, *(f"other{n}" for n in range(20))]
    texts = [f"film {name}" for name in names]
    engine.create("films", ("text",), encoder.dim, encoder.name)
    documents = [Document(n, {"text": t}, v) for n, t, v in zip(names, texts, encoder.encode(texts), strict=True)]
    engine.load("films", documents)
    engine.refresh("films")
    parts = Parts(Settings(), ScriptedRewriter({}), encoder, learnt=LearntFolder(tmp_path))

    def first(query, n):
        result = search(engine, Fan(), Request(query, "films", UserKey("", "me")), parts)
        return {ranked.hit.doc_id for ranked in result.page[:n]}

    assert first("film", 4) == set(SCI_FI)
    for title in (*ROMANCE, "other7"):
        assert first(title, 1) == {title}
        assert first(f"film {title}", 1) == {title}


@pytest.fixture
def crowded(tmp_path):
    """An index whose first twenty films hold nothing that the user likes, and the parts to search it."""
    write_learnt(learnt_path(tmp_path, ""), learnt_of(crowd()))
    engine, encoder = EmbeddedEngine(tmp_path / "indices"), BagEncoder()
    names = [*(f"a{n:03}" for n in range(60)), *ROMANCE, *SCI_FI]
    texts = ["film"] * 60 + [f"a film named {name}" for name in (*ROMANCE, *SCI_FI[:-1])] + ["a book"]
    engine.create("films", ("text",), encoder.dim, encoder.name)
    documents = [Document(n, {"text": t}, v) for n, t, v in zip(names, texts, encoder.encode(texts), strict=True)]
    engine.load("films", documents)
    engine.refresh("films")
    return engine, Parts(Settings(window=20), ScriptedRewriter({}), encoder, learnt=LearntFolder(tmp_path))


def shown(crowded, mode="recall", **request):
    engine, parts = crowded
    parts = replace(parts, settings=replace(parts.settings, mode=mode))
    return search(engine, Fan(), Request("film", "films", UserKey("", "me"), **request), parts).page


def test_documents_that_the_user_likes_are_added_to_a_broad_search(crowded):
    found = {ranked.hit.doc_id for ranked in shown(crowded, size=3)}
    assert found == set(SCI_FI[:-1])  # the last one is not a film
    assert all(ranked.hit.rank == 0 for ranked in shown(crowded, size=3))
    assert any(one.column == "user" and one.event_id for ranked in shown(crowded, size=3) for one in ranked.evidence)
    assert not found & {ranked.hit.doc_id for ranked in shown(crowded, mode="boost", size=20)}


def test_pages_with_added_hits_neither_repeat_nor_lose_hits(crowded):
    whole = [ranked.hit.doc_id for ranked in shown(crowded, size=60)]
    pages = [ranked.hit.doc_id for offset in range(0, 60, 10) for ranked in shown(crowded, size=10, offset=offset)]
    assert pages == whole
    assert len(set(whole)) == len(whole)


def test_the_best_are_those_with_the_highest_shares_and_priors():
    found, known = learnt_of(crowd()), profile(*bought("me", "alien", "dune", "amelie")).preferences
    scores = found.shares(found.doc_ids, known).sum(axis=1) + found.priors(found.doc_ids, len(known))
    order = [found.doc_ids[row] for row in np.argsort(-scores, kind="stable")]
    assert found.best(known, 4) == order[:4]


def test_hits_that_lack_a_word_of_a_broad_query_stay_behind():
    found, known = learnt_of(crowd()), profile(*bought("me", "alien", "dune"))
    hits = [replace(hit, source={"text": "show"}) if hit.doc_id in SCI_FI else hit for hit in films(0)]
    ranking = ranked(hits, known, found, "film", vectors={"typed": EAST})
    assert {r.hit.doc_id for r in ranking.hits[:3]} == set(ROMANCE)


@pytest.mark.parametrize("n_others", [0, 20, 53])
def test_evidence_of_the_querys_vector_is_levelled_as_its_column_is(n_others):
    found, hits, turn = learnt_of(crowd()), films(n_others), Turn("a turn", "", "turn")
    known = replace(profile(*bought("me", "alien")), turns=(turn,))
    assert (learnt_scores(hits, known, found, "film").broad == 1) == (n_others < 53)
    vectors = {"typed": np.zeros(2, np.float32), "last_turn": EAST}
    ranking = ranked(hits, known, found, "film", Settings(weights=Weights(0, 1, 0)), vectors=vectors)
    (best,) = ranking.explain([r for r in ranking.hits if r.hit.doc_id == "amelie"])
    shares = sum(e.share for e in best.evidence)
    assert shares == pytest.approx(best.score - np.mean([r.score for r in ranking.hits]), abs=1e-5)


def test_a_pair_of_fewer_than_three_people_has_no_weight():
    secret = [e for n in range(MIN_USERS - 1) for e in bought(f"s{n}", "rare", "alien")]
    alone = [e for n in range(MIN_USERS) for e in bought(f"r{n}", "rare")]
    found = learnt_of([*crowd(), *secret, *alone])
    assert "rare" in found.row
    assert found.shares(["alien"], profile(*bought("me", "rare")).preferences)[0, 0] == 0


def test_a_document_of_fewer_than_three_people_is_not_learnt():
    assert "rare" not in learnt_of([*crowd(), *bought("s", "rare", "alien")]).doc_ids


def test_tenants_are_never_mixed():
    tenants = gather([*crowd("a"), *bought("u", "only b", tenant="b")])
    assert "only b" not in tenants["a"].doc_ids
    assert tenants["b"].n_users == 1


def test_too_few_events_are_refused():
    with pytest.raises(InputError, match=f"at least {MIN_EVENTS}"):
        learnt_of(bought("u", "alien", "runner"))


def test_taking_the_named_event_away_lowers_the_score():
    found, hits = learnt_of(crowd()), window("runner", "notting", "before")
    events = bought("me", "amelie", "alien")
    known = profile(*events)
    ranking = ranked(hits, known, found)
    (runner,) = ranking.explain([r for r in ranking.hits if r.hit.doc_id == "runner"])
    assert [(e.column, e.text) for e in runner.evidence] == [("user", "Alien")]
    left = profile(*(e for e in events if e.event_id != runner.evidence[0].event_id))
    without = ranked(hits, left, found)
    assert next(r for r in without.hits if r.hit.doc_id == "runner").score < runner.score


def test_shares_and_prior_add_up_to_the_user_column():
    found, hits = learnt_of(crowd()), window("runner", "amelie", "matrix")
    weights = Weights(0, 0, 1)
    known = profile(*bought("me", "alien", "dune"))
    ranking, learnt = ranked(hits, known, found, settings=Settings(weights=weights)), learnt_scores(hits, known, found)
    raw = learnt.column(np.zeros(3, np.float32))
    mean = np.mean([one.score for one in ranking.hits])
    for one in ranking.explain(ranking.hits):
        prior = (learnt.prior[one.hit.rank - 1] - learnt.prior.mean()) / np.ptp(raw)
        above = learnt.shares[one.hit.rank - 1] - learnt.shares.mean(axis=0)
        assert above.sum() / np.ptp(raw) + prior == pytest.approx(one.score - mean, abs=1e-5)
        shares = {e.event_id: e.share for e in one.evidence}
        given = {p.event_id: share / np.ptp(raw) for p, share in zip(known.preferences, above, strict=True)}
        assert shares == pytest.approx({event_id: share for event_id, share in given.items() if share > 0.005})


def test_a_file_is_read_as_it_was_written(tmp_path):
    found = learnt_of(crowd())
    path = learnt_path(tmp_path, "")
    digest = write_learnt(path, found)
    read = read_learnt(path)
    assert (list(read.doc_ids), read.digest, read.unknown) == (list(found.doc_ids), digest, found.unknown)
    for name in ("neighbours", "weights", "prior"):
        assert np.array_equal(getattr(read, name), getattr(found, name))
    assert [p.name for p in tmp_path.glob("learnt*")] == [path.name]


DAMAGES = {
    "cut short": lambda b: b[:-5],
    "cut in its head": lambda b: b[:40],
    "empty": lambda b: b"",
    "another kind of file": lambda b: b"SQLite format 3\0" + b[16:],
    "another digest": lambda b: b[:20] + bytes([b[20] ^ 1]) + b[21:],
    "another byte": lambda b: b[:90] + b"x" + b[91:],
}


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_file_is_reported_and_read_again_once_it_is_intact(tmp_path, damage):
    path, found = learnt_path(tmp_path, ""), learnt_of(crowd())
    write_learnt(path, found)
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(StoreError, match="bespeak learn"):
        read_learnt(path)
    folder = LearntFolder(tmp_path)
    assert folder.of("")[0] is None
    assert "damaged" in folder.of("")[1]
    write_learnt(path, replace(found))
    assert folder.of("")[0].doc_ids == list(found.doc_ids)


def test_having_learnt_nothing_is_no_error(tmp_path):
    assert LearntFolder(tmp_path).of("") == (None, "")
