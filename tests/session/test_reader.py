"""Reading a session beside its query: what is read of it, what is found in it, and what that does to the vector."""

from __future__ import annotations

import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bespeak.deadline import Deadline, Late
from bespeak.errors import ModelError
from bespeak.models.catalogue import asset_folder, default_model, manifest, write_record
from bespeak.models.encoder import load_encoder, open_tokenizer, read_config
from bespeak.parts import Parts
from bespeak.reading import encode_reading, query_vector
from bespeak.records import Preference, Profile, Statement, Term, Turn
from bespeak.rewriting.rewriter import Unchanged
from bespeak.session import reader as contextual
from bespeak.session.reader import (
    HEADS,
    IS_ADDED,
    MAX_TERMS,
    MAY_BE_ADDED,
    MODEL,
    Context,
    Leaning,
    OnnxContextReader,
    ReadWord,
    digest_read,
    load_reader,
    make_context,
    reader_input,
)
from bespeak.session.sections import EARLIER_TURNS, LAST_RESPONSE_TOKENS, MAX_CHARS, MAX_TOKENS, sections
from bespeak.settings import Settings
from bespeak.text.words import fold, words
from fakes import ADA, BagEncoder, ScriptedReader, reading_of

ASKED = "How much does it cost?"
TURN = Turn("Is the Alhambra open in winter?", "The Alhambra opens at half past eight all year round.", "t1")
SPARE = Statement("I study law.", "s1")
SESSION = Profile(ADA, statements=(SPARE,), turns=(TURN,))
FOLDER = asset_folder("onnx_models") / MODEL


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.fixture(scope="module")
def shipped():
    return load_reader()


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer(FOLDER, MAX_CHARS)


def input_of(query, profile, tokenizer):
    return reader_input(sections(query, profile, tokenizer), tokenizer, read_config(FOLDER).query_prefix)


# What is read.


def test_the_query_comes_first_then_the_last_turn_then_earlier_queries_and_statements(tokenizer):
    turns = (Turn("first?", "one", "t1"), Turn("second?", "two", "t2"), Turn("third?", "three", "t3"))
    profile = Profile(statements=(SPARE, Statement("", "s"), Statement("I like Spain.", "s2")), turns=turns)
    assert sections(ASKED, profile, tokenizer) == [
        ("query", 0, ASKED),
        ("turn", 2, "third?"),
        ("turn", 2, "three"),
        ("turn", 1, "second?"),
        ("turn", 0, "first?"),
        ("statement", 0, "I study law."),
        ("statement", 2, "I like Spain."),
    ]


def test_a_query_without_a_session_is_read_alone(tokenizer):
    assert sections(ASKED, Profile(), tokenizer) == [("query", 0, ASKED)]
    assert set(input_of(ASKED, Profile(), tokenizer).types) == {0}


def test_only_the_latest_turns_are_read(tokenizer):
    turns = tuple(Turn(f"asked {n}", "", f"t{n}") for n in range(10))
    read = sections(ASKED, Profile(turns=turns), tokenizer)[1:]
    assert [section.place for section in read] == list(range(9, 8 - EARLIER_TURNS, -1))


def test_of_many_statements_those_that_share_words_with_the_query_are_read(tokenizer):
    many = [Statement(f"On day {n} I ate bread number {n} at home with my friends.", f"s{n}") for n in range(200)]
    profile = Profile(statements=(*many, Statement("My cost limit is ten euros.", "s"), *many), turns=(TURN,))
    read = sections(ASKED, profile, tokenizer)
    assert ("statement", 200, "My cost limit is ten euros.") in read
    assert len(read) > 4


def test_a_long_text_is_cut_between_words_and_a_long_word_between_characters(tokenizer):
    def answer_read(response):
        return sections(ASKED, Profile(turns=(Turn("q", response, "t"),)), tokenizer)[2].text

    cut = answer_read("one unfathomably " * 50)
    assert set(cut.split()) == {"one", "unfathomably"}
    assert LAST_RESPONSE_TOKENS - 5 < len(tokenizer.encode(cut, add_special_tokens=False).ids) <= LAST_RESPONSE_TOKENS
    for word in ("한" * 99, "東京" * 99, "a" * 50 + "-" * 99):
        cut = answer_read(word)
        assert cut
        assert word.startswith(cut)
        assert len(tokenizer.encode(cut, add_special_tokens=False).ids) <= LAST_RESPONSE_TOKENS
    assert answer_read(short := "an odd\u0301 \u200bword") == short


texts = st.text(max_size=400) | st.text("ab \ud800\udc00é東,.한국\u200b", max_size=3_000) | st.just("word " * 2_000)


@settings(max_examples=60)
@given(query=texts, turns=st.lists(st.tuples(texts, texts), max_size=8), said=st.lists(texts, max_size=30))
def test_never_more_tokens_are_read_than_the_model_takes(query, turns, said):
    tokenizer = open_tokenizer(FOLDER, MAX_CHARS)
    profile = Profile(
        statements=tuple(Statement(text, "") for text in said),
        turns=tuple(Turn(asked, answer, "") for asked, answer in turns),
    )
    read = input_of(query, profile, tokenizer)
    assert len(read.token_ids) <= MAX_TOKENS
    assert len(read.types) == len(read.token_ids)
    assert read.types == sorted(read.types)  # the query's, then the session's
    types = [(set(read.types[word.start : word.end]), word.section.source != "query") for word in read.words]
    assert all(found <= {of_session} for found, of_session in types)
    ends = [0, *(word.end for word in read.words)]
    assert all(end <= word.start <= word.end for end, word in zip(ends, read.words, strict=False))


@settings(max_examples=60)
@given(st.lists(st.text("abcz '.,-()%", max_size=60), min_size=1, max_size=3))
def test_each_word_has_the_tokens_that_it_was_read_as(said):
    tokenizer = open_tokenizer(FOLDER, MAX_CHARS)
    query, *rest = said
    read = input_of(query, Profile(turns=tuple(Turn(text, "", "") for text in rest)), tokenizer)
    for word in read.words:
        pieces = [tokenizer.id_to_token(token_id) for token_id in read.token_ids[word.start : word.end]]
        assert "".join(piece.removeprefix("##") for piece in pieces) == word.text
    for section in {word.section for word in read.words}:
        assert [word.text for word in read.words if word.section is section] == words(section.text)


# What is found.


def context_of(query, profile, tokenizer, likely=(), leans=0.0):
    """A context in which the tokens of these words have the probability 0.9, as if a model had said so."""
    read = input_of(query, profile, tokenizer)
    heads = np.full((len(read.token_ids), len(HEADS)), np.log(1 / 99), np.float32)
    heads[0, 2:] = np.log(leans / (1 - leans)) if leans else -9
    for word in read.words:
        if word.text in likely:
            heads[word.start : word.end, :2] = np.log(9)
    return make_context(query, read, heads)


def test_words_of_the_session_are_added_and_words_of_the_query_dropped(tokenizer):
    found = context_of(ASKED, SESSION, tokenizer, {"Alhambra", "it", "study"}, leans=0.75)
    likely = [word for word in (*found.added, *found.dropped) if word.probability > 0.5]
    assert [(word.text, word.source, word.place) for word in likely] == [
        ("Alhambra", "turn", 0),
        ("Alhambra", "turn", 0),
        ("study", "statement", 0),
        ("it", "query", 3),
    ]
    assert [word.probability for word in likely] == pytest.approx([0.9] * 4)
    assert found.leaning == pytest.approx((0.75, 0.75))


def test_words_that_the_query_has_in_any_form_and_function_words_are_not_added(tokenizer):
    found = context_of("when does the alhambra's opening end", SESSION, tokenizer)
    assert [word.text for word in found.added] == ["winter", "half", "past", "eight", "year", "round", "study", "law"]


def test_places_of_the_querys_words_count_words_that_have_no_token(tokenizer):
    found = context_of("… \u200b is ? \ud800 the \u0301 museum", Profile(), tokenizer, {"museum"})
    assert [(word.text, word.place) for word in found.dropped if word.probability > 0.5] == [("museum", 5)]
    assert found.dropped[0].probability == 0


@pytest.mark.parametrize(
    ("leaning", "alone"), [((0.3, 0.3), True), ((0.6, 0.1), False), ((0.1, 0.6), False), ((0.4, 0.0), False)]
)
def test_a_query_that_leans_on_neither_session_nor_statements_stands_alone(leaning, alone):
    assert Context(Leaning(*leaning), (), ()).stands_alone == alone


read_words = st.builds(
    ReadWord,
    st.sampled_from(["jazz", "Jazz", "band", "Zappa", "year", "été", "Été", *(f"w{n}" for n in range(9))]),
    st.sampled_from(["turn", "statement"]),
    st.integers(0, 2),
    st.sampled_from([0.0, 0.05, 0.1, 0.5, 0.7, 0.9]) | st.floats(0, 1),
)


@given(st.lists(read_words, max_size=30), st.sampled_from([0.0, MAY_BE_ADDED, IS_ADDED, 1.0]))
def test_the_likeliest_words_are_chosen_each_once_in_the_order_they_were_read(added, least):
    context = Context(Leaning(1, 1), tuple(added), ())
    best = {fold(word.text): 0.0 for word in added if word.probability >= least}
    for word in added:
        if word.probability >= least:
            best[fold(word.text)] = max(best[fold(word.text)], word.probability)
    chosen = context.likely(least)
    assert len(chosen) == min(len(best), MAX_TERMS)
    assert [word.probability for word in chosen] == [best[fold(word.text)] for word in chosen]
    assert sorted(word.probability for word in chosen) == sorted(best.values())[-MAX_TERMS:]
    rest = iter(added)
    assert all(any(word is other for other in rest) for word in chosen)
    assert context.may_add() == {fold(word.text) for word in added if word.probability >= MAY_BE_ADDED}


def test_words_to_search_for_name_what_was_said(tokenizer):
    found = context_of(ASKED, SESSION, tokenizer, {"Alhambra", "law"})
    assert found.terms(SESSION) == (
        Term("Alhambra", "turn", "t1", TURN.query),
        Term("law", "statement", "s1", "I study law."),
    )


# Every reader.


@pytest.fixture(params=["scripted", "onnx"])
def reader(request):
    if request.param == "onnx":
        return request.getfixturevalue("shipped")
    return ScriptedReader({ASKED: ["Alhambra", "law"], "and where?": ["winter"]})


SESSIONS = [
    (ASKED, SESSION),
    ("How much?", Profile()),
    ("and where?", SESSION),
    ("sourdough bread", Profile(ADA, turns=(TURN,), statements=(SPARE, Statement("I bake.", "s2")))),
    ("🎉 \ud800 한국어", Profile(statements=(Statement("\udfff " * 99, "s"),))),
    ("", Profile(turns=(Turn("", "", "t"),))),
]


def content(context):
    return context.leaning, context.added, context.dropped


def test_the_same_session_is_read_the_same(reader):
    first = [content(reader.read(*session)) for session in SESSIONS]
    with ThreadPoolExecutor(4) as pool:
        again = list(pool.map(lambda session: content(reader.read(*session)), SESSIONS * 4))
    assert again == first * 4
    reader.forget(ADA)
    assert [content(reader.read(*session)) for session in reversed(SESSIONS)] == first[::-1]


def test_what_is_forgotten_is_no_longer_known(reader):
    reader.forget(ADA)
    for session in SESSIONS:
        assert not reader.knows(*session)
        reader.read(*session)
    reader.forget(ADA)
    assert not any(reader.knows(*session) for session in SESSIONS)


def test_found_words_are_words_of_what_they_name(reader):
    for query in (ASKED, "and where?"):
        found = reader.read(query, SESSION)
        assert found.added
        for word in found.added:
            assert (word.source, word.place) in (("turn", 0), ("statement", 0))
            assert word.text in words(f"{TURN.query} {TURN.response}" if word.source == "turn" else SPARE.text)
            assert fold(word.text) not in map(fold, words(query))
        assert [word.text for word in found.dropped] == words(query)
        assert [word.place for word in found.dropped] == list(range(len(words(query))))
        assert {word.source for word in found.dropped} == {"query"}
        assert all(0 <= probability <= 1 for probability in found.leaning)
        vector = reader.encode(found)
        assert np.linalg.norm(vector) == pytest.approx(1, abs=1e-5)
        assert (reader.encode(found) == vector).all()


# The shipped model, and any other that takes its place.


@pytest.mark.parametrize(
    ("query", "named"),
    [(ASKED, "Alhambra"), ("When does it close?", "Alhambra"), ("and in summer?", "Alhambra")],
)
def test_a_follow_up_leans_on_the_session_and_names_its_words(shipped, query, named):
    found = shipped.read(query, Profile(turns=(TURN,)))
    assert not found.stands_alone
    assert found.leaning.session > found.leaning.statement
    assert named in {term.text for term in found.terms(Profile(turns=(TURN,)))}
    assert fold(named) in found.may_add()


@pytest.mark.parametrize(
    "query", ["sourdough bread recipe whole wheat", "usb c charger 65w", "how to change a car tyre"]
)
def test_a_query_about_something_else_stands_alone(shipped, query):
    profile = Profile(turns=(TURN,), statements=(SPARE,))
    found = shipped.read(query, profile)
    assert found.stands_alone
    assert found.likely(IS_ADDED) == []


def test_a_statement_counts_where_it_concerns_the_query(shipped):
    profile = Profile(statements=(Statement("I am vegetarian.", "s1"),))
    meant, other = (shipped.read(query, profile) for query in ("recipes for the weekend", "usb c charger 65w"))
    assert meant.leaning.statement > other.leaning.statement
    assert meant.added[0].text == "vegetarian"
    assert meant.added[0].probability > other.added[0].probability


def test_a_word_that_points_is_left_out_before_one_that_means_something(shipped):
    dropped = {word.text: word.probability for word in shipped.read(ASKED, Profile(turns=(TURN,))).dropped}
    assert max(dropped, key=dropped.get) == "it"


def test_the_vector_is_near_the_meaning(encoder, shipped):
    documents = encoder.encode(["Tickets for the Alhambra are 19 euros.", "The bus to the airport is 3 euros."])
    alone = encoder.encode([ASKED], "query")[0]
    read = shipped.encode(shipped.read(ASKED, Profile(turns=(TURN,))))
    (meant, other), (before, _) = documents @ read, documents @ alone
    assert meant > other
    assert meant > before


def test_a_statement_that_concerns_the_query_moves_the_vector(encoder, shipped):
    documents = encoder.encode(["A vegetarian curry for the weekend.", "A steak for the weekend."])
    profile = Profile(statements=(Statement("I am vegetarian.", "s1"),))
    vegetarian, steak = documents @ shipped.encode(shipped.read("recipes for the weekend", profile))
    typed = documents @ encoder.encode(["recipes for the weekend"], "query")[0]
    assert vegetarian - steak > typed[0] - typed[1]


def test_it_belongs_to_the_shipped_encoder(encoder, shipped):
    assert shipped.of == read_config(FOLDER).of == encoder.name
    assert encoder.name.startswith(f"{default_model('encoder')}@")
    assert shipped.name.startswith(f"{MODEL}@")


# Remembering.


def test_what_was_read_is_remembered_until_it_is_forgotten(shipped, monkeypatch):
    shipped.forget(ADA)
    first = shipped.read(ASKED, SESSION)
    assert shipped.knows(ASKED, SESSION)
    with Deadline.after_ms(0).held():
        assert shipped.read(ASKED, SESSION) is first
        with pytest.raises(Late):
            shipped.read("and where?", SESSION)
    shipped.forget(ADA)
    assert not shipped.knows(ASKED, SESSION)
    run = contextual.run_reader

    def forgotten_meanwhile(*given):
        shipped.forget(ADA)
        return run(*given)

    monkeypatch.setattr(contextual, "run_reader", forgotten_meanwhile)
    assert content(shipped.read(ASKED, SESSION)) == content(first)
    assert not shipped.knows(ASKED, SESSION)


TURNS = tuple(Turn(f"asked {n}", f"answered {n}", f"t{n}") for n in range(EARLIER_TURNS + 2))


@pytest.mark.parametrize(
    "other",
    [
        {"statements": ()},
        {"statements": (replace(SPARE, text="I study"),)},
        {"statements": (replace(SPARE, event_id="s2"),)},
        {"turns": TURNS[:-1]},
        {"turns": TURNS[1:]},
        {"turns": (*TURNS[:-1], replace(TURNS[-1], response="\ud800"))},
        {"turns": (*TURNS[:-1], replace(TURNS[-1], event_id="t"))},
        {"turns": (*TURNS[:-2], replace(TURNS[-2], query="asked"), TURNS[-1])},
    ],
)
def test_another_session_is_read_anew(other):
    profile = Profile(ADA, statements=(SPARE,), turns=TURNS)
    assert digest_read(ASKED, profile) != digest_read(ASKED, replace(profile, **other))


def test_what_is_not_read_makes_no_difference():
    profile = Profile(ADA, statements=(SPARE,), turns=TURNS)
    liked = Preference("d1", "a fan", 1.0, "click", "c1", datetime(2026, 1, 1, tzinfo=UTC))
    long_ago = replace(TURNS[0], response="said long ago")
    same = replace(profile, user=None, preferences=(liked,), version="v", turns=(long_ago, *TURNS[1:]))
    assert digest_read(ASKED, profile) == digest_read(ASKED, same)
    assert digest_read(ASKED, profile) != digest_read(f"{ASKED} ", profile)


# Opening a model.


@pytest.fixture
def made(tmp_path):
    """The shipped one once more, as if it had been made in the cache folder."""
    folder = tmp_path / "models" / "context"
    shutil.copytree(FOLDER, folder)
    write_record(folder, replace(manifest()[MODEL], name="context"))
    return folder


def test_a_model_in_the_cache_is_used_before_the_shipped_one(made, tmp_path):
    own = load_reader(tmp_path)
    assert own.name.startswith("context@")
    assert own.read(ASKED, SESSION).added


@pytest.mark.parametrize(("file", "damage"), [("model.onnx", "cut short"), ("tokenizer.json", "cut short")])
def test_a_damaged_model_is_reported(made, tmp_path, file, damage):
    (made / file).write_bytes(b"nothing")
    with pytest.raises(ModelError, match=damage):
        load_reader(tmp_path)


def test_an_installation_without_a_reader_says_so(monkeypatch):
    monkeypatch.setattr(contextual, "known_models", lambda cache: iter(()))
    with pytest.raises(ModelError, match="install bespeak again"):
        load_reader()


def test_a_model_that_fails_is_reported():
    class Broken:
        def run(self, *given):
            raise RuntimeError("out of memory")

    reader = OnnxContextReader(FOLDER, BagEncoder(), "bag", threads=1)
    reader._session = Broken()
    with pytest.raises(ModelError, match=r"out of memory.*bespeak models verify"):
        reader.read(ASKED, SESSION)
    assert not reader.knows(ASKED, SESSION)


# What it does to the query's vector.


def vector_of(profile, said=(), of="bag"):
    """The vector of a query that leans on these words, read by a reader made for the encoder `of`."""
    encoder, mixing = BagEncoder(), Settings(last_turn_share=0.0)
    reader = ScriptedReader({ASKED: said}, BagEncoder(name=of))
    reading = reading_of(ASKED, profile, context=reader.read(ASKED, profile))
    parts = Parts(mixing, Unchanged(), encoder, context=reader)
    return query_vector(encode_reading(reading, parts), mixing).mixed


@pytest.mark.parametrize("of", ["bag", "another"])
@pytest.mark.parametrize("said", [("Alhambra",), ("Alhambra", "winter"), ("law", "Alhambra")])
def test_the_addends_add_up_and_without_the_events_the_query_is_left(said, of):
    asked = vector_of(SESSION, said, of)
    total = np.sum([addend.vector for addend in asked.addends], axis=0)
    assert asked.vector == pytest.approx(total / np.linalg.norm(total), abs=1e-6)
    rest = np.sum([addend.vector for addend in asked.addends if not addend.event_id], axis=0)
    assert rest / np.linalg.norm(rest) == pytest.approx(BagEncoder().encode([ASKED])[0], abs=1e-6)
    assert any(addend.event_id == "t1" and np.linalg.norm(addend.vector) > 0 for addend in asked.addends)


@pytest.mark.parametrize(
    ("profile", "named"),
    [
        (Profile(statements=(SPARE,)), {"s1": 1.0}),
        (Profile(statements=(SPARE, Statement("I like Spain.", "s2"))), {"s1": 0.5, "s2": 0.5}),
        (SESSION, {"t1": 1.0}),
    ],
    ids=["statement", "statements", "turn"],
)
def test_without_picked_words_the_sessions_share_goes_to_what_was_said(profile, named):
    encoder, mixing = BagEncoder(), Settings(last_turn_share=0.0)
    reader = ScriptedReader({ASKED: ("Alhambra",)})
    context = Context(Leaning(0.9, 0.9), (), (), f"{ASKED} Alhambra")
    vector = reader.encode(context)
    reading = reading_of(ASKED, profile, context=context)
    asked = query_vector(encode_reading(reading, Parts(mixing, Unchanged(), encoder, context=reader)), mixing).mixed
    added = vector - encoder.encode([ASKED])[0]
    shares = {one.event_id: one.vector for one in asked.addends if one.event_id and one.vector.any()}
    assert shares.keys() == named.keys()
    for event_id, share in named.items():
        assert shares[event_id] == pytest.approx(added * share, abs=1e-6)


def test_picked_words_name_the_event():
    asked = vector_of(SESSION, ("law", "Alhambra", "winter"))
    named = [addend for addend in asked.addends if addend.event_id][:2]
    assert [(addend.event_id, addend.text, addend.action) for addend in named] == [
        ("s1", "law", "statement"),
        ("t1", "Alhambra winter", "turn"),
    ]
    assert named[1].vector == pytest.approx(2 * named[0].vector, abs=1e-6)
