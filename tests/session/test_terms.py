"""Which words of a session are picked, and what they do to the query's vector."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bespeak.errors import ModelError
from bespeak.parts import Parts
from bespeak.ranking.tuned import LAST_TURN_BESIDE_SESSION, PICKED_WEIGHT
from bespeak.reading import clauses, encode_reading, query_vector, turn_text
from bespeak.records import Profile, Rewrite, Statement, Turn
from bespeak.rewriting.rewriter import Unchanged
from bespeak.session.candidates import Candidate, Rarity, find_candidates
from bespeak.session.features import FEATURES, N_FEATURES, WordFeatures
from bespeak.session.terms import MAX_TERMS, load_terms
from bespeak.settings import Settings
from bespeak.text import analysis
from bespeak.text.words import FUNCTION_WORDS, fold, words
from fakes import ADA, BagEncoder, reading_of

ASKED = "When did they disband?"
TURN = Turn("Who were the Mothers of Invention?", "The band of Frank Zappa, from California.", "t1")


@pytest.fixture(scope="module")
def terms():
    return load_terms()


def test_names_of_the_last_turn_are_picked_with_their_event(terms):
    picked = terms.pick(ASKED, Profile(turns=(TURN,)))
    assert {"Mothers", "Zappa"} <= {term.text for term in picked}
    assert {term.event_id for term in picked} == {"t1"}
    assert len(picked) <= MAX_TERMS


def test_nothing_is_picked_from_an_empty_session(terms):
    assert terms.pick(ASKED, Profile()) == ()
    assert terms.pick("?", Profile(turns=(Turn("", "", "t1"),), statements=(Statement("", "s1"),))) == ()


def test_words_of_the_query_are_not_picked_again(terms):
    picked = terms.pick("When did the Mothers of Invention disband?", Profile(turns=(TURN,)))
    assert {"mothers", "invention"}.isdisjoint(term.text.casefold() for term in picked)


def test_a_query_that_stands_alone_takes_fewer_words(terms):
    leaning, alone = ("Why did they do it?", "How do I bake sourdough bread at home with whole wheat flour?")
    n_leaning, n_alone = (len(terms.pick(query, Profile(turns=(TURN,)))) for query in (leaning, alone))
    assert n_alone < n_leaning


def read_by_definition(statements, given, meant):
    """`stem → count, words shared with the query, word, statement`, computed word by word."""
    found = {}
    for place, text in enumerate(statements):
        shares = len(set(analysis.terms(text)) & meant)
        for word in words(text):
            stem = next(iter(analysis.terms(word)), "")
            if len(stem) > 1 and stem not in given and fold(word) not in FUNCTION_WORDS:
                n, best, _, _ = found.get(stem, (0, 0, "", 0))
                found[stem] = (n + 1, shares, word, place) if shares >= best else (n + 1, *found[stem][1:])
    return found


WORDS = st.sampled_from(["jazz", "Jazz", "band", "bands", "Zappa", "the", "I", "disband", "1969", "NASA", "child's"])
TEXTS = st.lists(WORDS, max_size=7).map(" ".join)


@settings(max_examples=200)
@given(TEXTS, st.lists(TEXTS, max_size=6), st.lists(TEXTS, max_size=2))
def test_words_of_statements_are_counted_as_defined(terms, query, statements, turns):
    profile = Profile(
        statements=tuple(Statement(text, f"s{n}") for n, text in enumerate(statements)),
        turns=tuple(Turn(text, "Zappa left", f"t{n}") for n, text in enumerate(turns)),
    )
    found, features = find_candidates(query, profile, Rarity({"band": 0.5}, 1.0))
    meant = {s for w in words(query) if fold(w) not in FUNCTION_WORDS for s in analysis.terms(w)}
    seen = {one.stem for one in found if one.source == "turn"}
    expected = read_by_definition(statements, set(analysis.terms(query)), meant)
    said = [(one, row) for one, row in zip(found, features, strict=True) if one.source == "statement"]
    assert [one for one, _ in said] == [
        Candidate(stem, word, "statement", place)
        for stem, (_, _, word, place) in expected.items() if stem not in seen
    ]  # fmt: skip
    for one, row in said:
        n, shares, _, _ = expected[one.stem]
        features_of_word = WordFeatures(*row[: len(WordFeatures._fields)])
        assert features_of_word.log_count == pytest.approx(np.log1p(n))
        assert features_of_word.rarity == (0.5 if one.stem == "band" else 1.0)
        assert features_of_word.beside_query_word == (shares > 0)
        assert features_of_word.shared_with_query == min(shares, 3) / 2


def test_kept_statements_give_the_same_picks_and_are_dropped_with_a_user(terms):
    statements = tuple(Statement(f"I heard Zappa play number {n} with the Mothers", f"s{n}") for n in range(30))
    profiles = [Profile(statements=statements[:n], turns=(TURN,)) for n in (30, 3, 29)]
    anew = []
    for profile in profiles:
        terms.forget(ADA)
        anew.append([terms.pick(query, profile) for query in (ASKED, "Which number did Zappa play?")])
    kept = [[terms.pick(query, profile) for query in (ASKED, "Which number did Zappa play?")] for profile in profiles]
    assert kept == anew
    assert any(term.source == "statement" for picks in anew for picked in picks for term in picked)
    assert len(terms._statements)
    terms.forget(ADA)
    assert not len(terms._statements)


def test_the_shipped_network_reads_the_named_features_in_their_order(terms):
    """The columns that the shipped network was trained with, for one word of a turn and one of a statement."""
    assert terms._layers[0][0].shape[0] == N_FEATURES == len(set(FEATURES))
    profile = Profile(turns=(TURN,), statements=(Statement("I sing in a band, and I compose.", "s1"),))
    found, features = find_candidates(ASKED, profile, Rarity({"zappa": 0.5}, 1.0))
    rows = {one.stem: row.tolist() for one, row in zip(found, features, strict=True)}
    query = [0, 1, *[0] * 8, 1, 0, 1 / 6, 0.4, 1, 0, 0.25, len(TURN.response) / 300, 0, 0, 0]
    zappa = [0, 1, *[0] * 7, np.log(2), 1 / 3, 0, 1, 1, 1, 0, 0, 0.5, 0.5, 1, 4 / 30, 0, 0.01, 1, 0, 1, 1, 0, 0, 0]
    compose = [*[0] * 9, np.log(2), *[0] * 7, 0.7, 1, 1, 3, *[0] * 7, 1, 0]
    assert rows["zappa"] == pytest.approx(zappa + query)
    assert rows["compos"] == pytest.approx(compose + query)


def test_a_damaged_network_is_reported(tmp_path):
    (tmp_path / "terms.npz").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="models verify"):
        load_terms(tmp_path)


def test_the_addends_add_up_and_without_the_event_the_query_is_left(terms):
    profile, encoder, mixing = Profile(turns=(TURN,)), BagEncoder(), Settings(last_turn_share=0.0)
    reading = reading_of(ASKED, profile, picked=terms.pick(ASKED, profile))
    asked = query_vector(encode_reading(reading, Parts(mixing, Unchanged(), encoder)), mixing).mixed
    total = np.sum([addend.vector for addend in asked.addends], axis=0)
    assert asked.vector == pytest.approx(total / np.linalg.norm(total), abs=1e-6)
    rest = np.sum([addend.vector for addend in asked.addends if not addend.event_id], axis=0)
    typed = encoder.encode([ASKED], kind="query")[0]
    assert rest / np.linalg.norm(rest) == pytest.approx(typed, abs=1e-6)
    assert any(addend.event_id == "t1" and np.linalg.norm(addend.vector) > 0 for addend in asked.addends)


def test_picked_words_are_searched_beside_the_query_and_take_room_from_the_last_turn(terms):
    profile, mixing = Profile(turns=(TURN,)), Settings(last_turn_weight=0.1)
    picked = terms.pick(ASKED, profile)
    added = clauses(reading_of(ASKED, profile, picked=picked), mixing)
    assert [clause.text for clause in added] == [" ".join(t.text for t in picked), turn_text(TURN)]
    assert [clause.weight for clause in added] == [PICKED_WEIGHT, pytest.approx(0.1 * LAST_TURN_BESIDE_SESSION)]


def test_the_last_turn_alone_is_not_searched():
    assert clauses(reading_of(ASKED, Profile(turns=(TURN,))), Settings(last_turn_weight=0.1)) == ()
    assert clauses(reading_of(ASKED, Profile(turns=(TURN,)), picked=()), Settings(last_turn_weight=0.1)) == ()


def test_picked_words_explain_a_hit_too(terms):
    picked = terms.pick(ASKED, Profile(turns=(TURN,)))
    rewrite = Rewrite(ASKED, f"{ASKED} {picked[0].text}", (picked[0],))
    said = reading_of(ASKED, Profile(turns=(TURN,)), rewrite=rewrite, picked=picked).explained
    assert said.terms == picked
