"""Which statements of a long history are read."""

from bespeak.records import Profile, Statement, Turn
from bespeak.session.statements import CANDIDATES, all_fit, candidates, choose_statements
from fakes import BagEncoder


def said(*texts):
    return Profile(statements=tuple(Statement(text, f"s{n}") for n, text in enumerate(texts)))


def n_words(text):
    return len(text.split())


def chosen(query, profile, limit, encoder=None):
    return [s.text for s in choose_statements(query, profile, n_words, limit, encoder)]


class Counting(BagEncoder):
    def __init__(self):
        super().__init__(dim=256)
        self.texts = []

    def encode(self, texts, kind="document"):
        self.texts += texts
        return super().encode(texts, kind)


def test_statements_that_fit_stay_as_they_are_and_cost_no_vectors():
    encoder = Counting()
    profile = said("I live in Ghent.", "I am vegetarian.")
    assert choose_statements("flats", profile, n_words, 7, encoder) is profile.statements
    assert encoder.texts == []


def test_the_nearest_statements_that_fit_keep_their_order():
    profile = said("I cook vegetarian recipes", "I like jazz", "My sister plays chess", "My recipes are quick")
    for encoder in (None, BagEncoder(dim=256)):
        assert chosen("quick vegetarian recipes", profile, 8, encoder) == [
            "I cook vegetarian recipes", "My recipes are quick",
        ]  # fmt: skip


def test_the_last_turn_counts_too():
    profile = said("I am allergic to nuts", "I like jazz", "My sister plays chess")
    asked = Profile(statements=profile.statements, turns=(Turn("cake with nuts", "", "t"),))
    assert chosen("and without", asked, 5, BagEncoder(dim=256)) == ["I am allergic to nuts"]


def test_one_statement_of_ten_thousand_is_found_and_few_are_encoded():
    texts = [f"I own thing number {n}" for n in range(10_000)]
    texts[17] = "I am allergic to peanuts"
    encoder = Counting()
    found = chosen("snacks without peanuts", said(*texts), 20, encoder)
    assert "I am allergic to peanuts" in found
    assert sum(map(n_words, found)) <= 20
    assert len(encoder.texts) <= CANDIDATES + 2
    assert len(candidates("snacks without peanuts", said(*texts))) == CANDIDATES


def test_no_more_is_measured_than_is_needed():
    measured = []

    def size(text):
        measured.append(text)
        return 1

    assert not all_fit(said(*map(str, range(1000))).statements, size, 9)
    assert len(measured) == 10
