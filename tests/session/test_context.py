"""Reading a session beside the query: what is read of it, and what it does to the query's vector."""

from __future__ import annotations

import shutil
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bespeak.errors import ModelError
from bespeak.models.catalogue import asset_folder, default_model, manifest, write_record
from bespeak.models.encoder import load_encoder, open_tokenizer, read_config
from bespeak.parts import Parts
from bespeak.pipeline import contextualise
from bespeak.records import Profile, Rewrite, Statement, Term, Turn
from bespeak.rewriting.rewriter import Unchanged
from bespeak.session import context as contextual
from bespeak.session.context import MAX_TOKENS, MODEL, ContextEncoder, load_context, session_text
from bespeak.settings import Settings
from fakes import ADA, BagEncoder

ASKED = "How much does it cost?"
TURN = Turn("Is the Alhambra open in winter?", "The Alhambra opens at half past eight all year round.", "t1")
SPARE = Statement("I study law.", "s1")


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


@settings(deadline=None, max_examples=60)
@given(query=texts, turns=st.lists(st.tuples(texts, texts), max_size=8), statements=st.lists(texts, max_size=30))
def test_never_more_tokens_are_read_than_the_encoder_takes(query, turns, statements):
    tokenizer = open_tokenizer(asset_folder("onnx_models") / MODEL, 10_000)
    profile = Profile(
        statements=tuple(Statement(text, "") for text in statements),
        turns=tuple(Turn(asked, answer, "") for asked, answer in turns),
    )
    # a "[SEP]" that somebody types counts as one of ours, and what is cut within a word may be read otherwise
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


def test_the_parts_add_up_and_without_the_event_the_query_is_left(reading):
    settings = Settings(last_turn_share=0.0)
    parts = Parts(settings, reading.rewriter, reading.encoder, context=reading.context)
    context = contextualise(Rewrite(ASKED, ASKED), Profile(turns=(TURN,)), parts).query
    assert context is not None
    whole = np.sum([part.vector for part in context.parts], axis=0)
    assert context.vector == pytest.approx(whole / np.linalg.norm(whole), abs=1e-6)
    rest = np.sum([part.vector for part in context.parts if not part.event_id], axis=0)
    typed = reading.encoder.encode([ASKED], kind="query")[0]
    assert rest / np.linalg.norm(rest) == pytest.approx(typed, abs=1e-6)
    assert any(part.event_id == "t1" and np.linalg.norm(part.vector) > 0 for part in context.parts)


@pytest.mark.parametrize(
    ("profile", "named"),
    [
        (Profile(statements=(SPARE,)), {"s1": 1.0}),
        (Profile(statements=(SPARE, Statement("I like Spain.", "s2"))), {"s1": 0.5, "s2": 0.5}),
        (Profile(statements=(SPARE,), turns=(TURN,)), {"t1": 1.0}),
    ],
    ids=["statement", "statements", "turn"],
)
def test_the_sessions_part_is_shared_among_its_events(reading, profile, named):
    parts = Parts(Settings(last_turn_share=0.0), reading.rewriter, reading.encoder, context=reading.context)
    context = contextualise(Rewrite(ASKED, ASKED), profile, parts).query
    added = reading.context.encode(ASKED, profile) - reading.encoder.encode([ASKED], "query")[0]
    shares = {part.event_id: part.vector for part in context.parts if part.event_id and part.vector.any()}
    assert shares.keys() == named.keys()
    for event_id, share in named.items():
        assert shares[event_id] == pytest.approx(added * share, abs=1e-6)


def test_picked_words_name_the_event(reading):
    profile = Profile(statements=(SPARE,), turns=(TURN,))
    picked = [Term("law", "statement", "s1"), Term("Alhambra", "turn", "t1"), Term("winter", "turn", "t1")]
    context = contextualise(Rewrite(ASKED, ASKED), profile, reading, picked).query
    named = [part for part in context.parts if part.event_id][:2]
    assert [(part.event_id, part.text, part.action) for part in named] == [
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
def test_declined_queries_are_not_read_with_their_session(reading, query, profile):
    assert reading.reader(query, profile) is None
    unread = Parts(reading.settings, reading.rewriter, reading.encoder)
    rewrite = Rewrite(query, query)
    assert (
        contextualise(rewrite, profile, reading).query.vector.tolist()
        == contextualise(rewrite, profile, unread).query.vector.tolist()
    )
