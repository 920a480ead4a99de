"""Reading a session beside the query: what is read of it, and what it does to the query's vector."""

from __future__ import annotations

import shutil
from dataclasses import replace
from datetime import UTC, datetime

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bespeak.errors import ModelError
from bespeak.models.catalogue import asset_folder, default_model, manifest, write_record
from bespeak.models.encoder import load_encoder, open_tokenizer, read_config
from bespeak.parts import Parts
from bespeak.reading import encode_reading, open_reading, query_vector, read, session_reader
from bespeak.records import Preference, Profile, Statement, Term, Turn
from bespeak.rewriting.rewriter import Unchanged
from bespeak.session import context as contextual
from bespeak.session.context import MAX_TOKENS, MODEL, ContextEncoder, load_context, session_text
from bespeak.settings import Settings
from fakes import ADA, BagEncoder, reading_of

ASKED = "How much does it cost?"
TURN = Turn("Is the Alhambra open in winter?", "The Alhambra opens at half past eight all year round.", "t1")
SPARE = Statement("I study law.", "s1")
LIKED = Preference("d1", "a fan", 1.0, "click", "c1", datetime(2026, 1, 1, tzinfo=UTC))


@pytest.fixture(scope="module")
def encoder():
    return load_encoder()


@pytest.fixture(scope="module")
def shipped(encoder):
    return load_context(encoder)


@pytest.fixture(scope="module")
def tokenizer():
    return open_tokenizer(asset_folder("onnx_models") / MODEL, 10_000)


@pytest.fixture
def reading(tokenizer):
    """Parts that read sessions by a bag of words."""
    encoder = BagEncoder()
    return Parts(Settings(), Unchanged(), encoder, context=ContextEncoder(encoder, tokenizer))


def n_tokens(text, tokenizer):
    prefix = read_config(asset_folder("onnx_models") / MODEL).query_prefix
    return len(tokenizer.encode(prefix + text).ids)


def test_the_query_comes_first_then_the_last_turn_then_earlier_queries_and_statements(tokenizer):
    turns = (Turn("first?", "one", "t1"), Turn("second?", "two", "t2"), Turn("third?", "three", "t3"))
    profile = Profile(statements=(SPARE, Statement("I like Spain.", "s2")), turns=turns)
    read = session_text(ASKED, profile, tokenizer).split(contextual.BETWEEN)
    assert read == [ASKED, "third?", "three", "second?", "first?", "I study law.", "I like Spain."]


def test_a_query_without_a_session_is_read_unchanged(tokenizer):
    assert session_text(ASKED, Profile(), tokenizer) == ASKED


def test_of_many_statements_those_that_share_words_with_the_query_are_read(tokenizer):
    many = [Statement(f"On day {n} I ate bread number {n} at home with my friends.", f"s{n}") for n in range(200)]
    profile = Profile(statements=(Statement("My cost limit is ten euros.", "s"), *many), turns=(TURN,))
    text = session_text(ASKED, profile, tokenizer)
    assert "My cost limit is ten euros." in text
    assert n_tokens(text, tokenizer) <= MAX_TOKENS


texts = st.text(max_size=400) | st.text("ab \ud800\udc00é東,.", max_size=3_000) | st.just("word " * 2_000)


@settings(max_examples=60)
@given(query=texts, turns=st.lists(st.tuples(texts, texts), max_size=8), statements=st.lists(texts, max_size=30))
def test_never_more_tokens_are_read_than_the_encoder_takes(query, turns, statements):
    tokenizer = open_tokenizer(asset_folder("onnx_models") / MODEL, 10_000)
    profile = Profile(
        statements=tuple(Statement(text, "") for text in statements),
        turns=tuple(Turn(asked, answer, "") for asked, answer in turns),
    )
    # a typed "[SEP]" counts as one of ours, and a word that was cut may be read differently
    assert n_tokens(session_text(query, profile, tokenizer), tokenizer) <= MAX_TOKENS + 4


def test_the_vector_is_near_the_meaning(encoder, shipped):
    documents = encoder.encode(["Tickets for the Alhambra are 19 euros.", "The bus to the airport is 3 euros."])
    alone = encoder.encode([ASKED], "query")[0]
    read = shipped.encode(ASKED, Profile(turns=(TURN,)))
    assert np.linalg.norm(read) == pytest.approx(1, abs=1e-5)
    (meant, other), (before, _) = documents @ read, documents @ alone
    assert meant > other
    assert meant > before


def test_a_statement_that_concerns_the_query_moves_it(encoder, shipped):
    documents = encoder.encode(["A vegetarian curry for the weekend.", "A steak for the weekend."])
    profile = Profile(statements=(Statement("I am vegetarian.", "s1"),))
    vegetarian, steak = documents @ shipped.encode("recipes for the weekend", profile)
    typed = documents @ encoder.encode(["recipes for the weekend"], "query")[0]
    assert vegetarian - steak > typed[0] - typed[1]


def test_none_is_shipped_for_another_encoder():
    assert load_context(BagEncoder()) is None


@pytest.fixture
def made(tmp_path):
    """The shipped one once more, as if it had been made in the cache folder."""
    folder = tmp_path / "models" / "context"
    shutil.copytree(asset_folder("onnx_models") / MODEL, folder)
    record = manifest()[MODEL]
    write_record(folder, replace(record, name="context"))
    return folder


def test_a_model_in_the_cache_is_used_before_the_shipped_one(made, tmp_path, encoder):
    assert load_context(encoder, tmp_path).encoder.name.startswith("context@")


def test_a_damaged_model_is_reported(made, tmp_path, encoder):
    (made / "model.onnx").write_bytes(b"nothing")
    with pytest.raises(ModelError, match="cut short"):
        load_context(encoder, tmp_path)


def test_it_belongs_to_the_shipped_encoder(encoder):
    assert read_config(asset_folder("onnx_models") / MODEL).of == encoder.name
    assert encoder.name.startswith(f"{default_model('encoder')}@")


def vector_of(parts, profile, query=ASKED, **members):
    return query_vector(encode_reading(reading_of(query, profile, **members), parts), parts.settings).mixed


def test_the_addends_add_up_and_without_the_event_the_query_is_left(reading):
    parts = replace(reading, settings=Settings(last_turn_share=0.0))
    asked = vector_of(parts, Profile(turns=(TURN,)))
    total = np.sum([addend.vector for addend in asked.addends], axis=0)
    assert asked.vector == pytest.approx(total / np.linalg.norm(total), abs=1e-6)
    rest = np.sum([addend.vector for addend in asked.addends if not addend.event_id], axis=0)
    typed = reading.encoder.encode([ASKED], kind="query")[0]
    assert rest / np.linalg.norm(rest) == pytest.approx(typed, abs=1e-6)
    assert any(addend.event_id == "t1" and np.linalg.norm(addend.vector) > 0 for addend in asked.addends)


@pytest.mark.parametrize(
    ("profile", "named"),
    [
        (Profile(statements=(SPARE,)), {"s1": 1.0}),
        (Profile(statements=(SPARE, Statement("I like Spain.", "s2"))), {"s1": 0.5, "s2": 0.5}),
        (Profile(statements=(SPARE,), turns=(TURN,)), {"t1": 1.0}),
    ],
    ids=["statement", "statements", "turn"],
)
def test_what_the_session_adds_is_shared_among_what_was_said(reading, profile, named):
    asked = vector_of(replace(reading, settings=Settings(last_turn_share=0.0)), profile)
    added = reading.context.encode(ASKED, profile) - reading.encoder.encode([ASKED], "query")[0]
    shares = {one.event_id: one.vector for one in asked.addends if one.event_id and one.vector.any()}
    assert shares.keys() == named.keys()
    for event_id, share in named.items():
        assert shares[event_id] == pytest.approx(added * share, abs=1e-6)


def test_picked_words_name_the_event(reading):
    profile = Profile(statements=(SPARE,), turns=(TURN,))
    picked = [Term("law", "statement", "s1"), Term("Alhambra", "turn", "t1"), Term("winter", "turn", "t1")]
    asked = vector_of(reading, profile, picked=tuple(picked))
    named = [addend for addend in asked.addends if addend.event_id][:2]
    assert [(addend.event_id, addend.text, addend.action) for addend in named] == [
        ("s1", "law", "statement"),
        ("t1", "Alhambra winter", "turn"),
    ]
    assert named[1].vector == pytest.approx(2 * named[0].vector, abs=1e-6)


@pytest.mark.parametrize(
    ("query", "profile"),
    [
        (ASKED, Profile(ADA)),
        ('"how much does it cost"', Profile(ADA, turns=(TURN,))),
        ("word " * 70, Profile(ADA, turns=(TURN,))),
        ("いくらですか", Profile(ADA, turns=(TURN,))),
    ],
    ids=["no session", "quoted", "long", "another script"],
)
def test_what_the_gate_stops_is_not_read_with_its_session(reading, query, profile):
    assert session_reader(open_reading(query, profile), reading) is None
    unread = replace(reading, context=None)
    known = replace(profile, preferences=(LIKED,))
    with_reader, without = (read(query, known, parts).vectors for parts in (reading, unread))
    assert {name: row.tolist() for name, row in with_reader.items()} == {n: row.tolist() for n, row in without.items()}
