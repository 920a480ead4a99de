"""Training the context reader: what is to be learnt from each query, and a whole run on a few of them."""

from __future__ import annotations

import json
from collections import Counter

import numpy as np
import pytest

from bespeak.errors import InputError, ModelError
from bespeak.models.catalogue import asset_folder, default_model, read_record
from bespeak.models.encoder import load_encoder, read_config
from bespeak.records import Profile, Statement, Turn
from bespeak.session.reader import HEADS, OnnxContextReader
from bespeak.training import reader
from bespeak.training.card import reader_card
from bespeak.training.job import CHECKPOINT, read_all
from bespeak.training.options import ReaderScores, TrainingOptions
from bespeak.training.pairs import Conversation, PastTurn, Target
from bespeak.training.reader import (
    UNKNOWN,
    ReaderTokens,
    area_under_curve,
    average_precision,
    examples_of,
    make_example,
    read_examples,
    run_name,
    train,
    training_examples,
)
from bespeak.training.targets import (
    N_NEGATIVES,
    PART_TEXTS,
    STEP_PARTS,
    TEMPERATURE,
    TargetVectors,
    contrastive_loss,
    minibatches,
)
from fakes import BagEncoder

BASE = asset_folder("onnx_models") / default_model("encoder")
NAMES = ("Alba", "Bruno", "Carla", "Dario", "Elena", "Fabio", "Greta", "Hugo", "Irma", "Jonas")


@pytest.fixture(scope="module")
def tokens():
    return ReaderTokens.of(BASE)


@pytest.fixture
def pairs(tmp_path):
    """Conversations about a person who is named in the first query alone; the second query's answer is known."""
    rows = []
    for name in NAMES:
        turns = [
            {"query": f"Do you know {name}?", "response": f"Yes, {name} is a baker here in town."},
            {"query": "Where do they live?", "response": f"{name} lives in a small house near the harbour."},
        ]
        for n_before, query in ((1, "Where do they live?"), (2, "What do people say of them?")):
            rewrite = query.replace("they", name).replace("them", name)
            rows.append({"query": query, "rewrite": rewrite, "history": turns[:n_before]})
    path = tmp_path / "pairs.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)), "utf-8")
    return path


# Labels


def labelled(tokens, query, rewrite, turns=(), statements=()):
    """What is learnt of each word of the session and of the query, and of leaning on the session and a statement."""
    conversation = Conversation("own", tuple(PastTurn(*turn) for turn in turns), (), tuple(statements))
    target = Target(len(turns), query, rewrite)
    made = make_example(target, conversation, "", tokens)
    read = tokens.read(query, reader.profile_of(conversation, len(turns)))
    assert made.token_ids.tolist() == read.token_ids
    assert made.labels.shape == (len(read.token_ids), len(HEADS))
    found = {"added": {}, "dropped": {}}
    for word in read.words:
        rows = made.labels[word.start : word.end]
        assert (rows == rows[0]).all()  # all pieces of a word
        for head in found:
            if rows[0, HEADS.index(head)] != UNKNOWN:
                found[head][word.text] = int(rows[0, HEADS.index(head)])
    outside = np.ones(len(made.labels), bool)
    for word in read.words:
        outside[word.start : word.end] = False
    assert (made.labels[outside, :2] == UNKNOWN).all()
    assert (made.labels[1:, 2:] == UNKNOWN).all()
    return found["added"], found["dropped"], tuple(made.labels[0, 2:].tolist())


TENT = (("two person tent", "The Vango Banshee weighs little."),)


def test_words_of_the_session_are_added_or_not_and_words_of_the_query_dropped_or_not(tokens):
    added, dropped, leaning = labelled(tokens, "what does it cost", "what does the Vango Banshee cost", TENT)
    assert added == {"two": 0, "person": 0, "tent": 0, "Vango": 1, "Banshee": 1, "weighs": 0, "little": 0}
    assert dropped == {"what": 0, "does": 0, "it": 1, "cost": 0}
    assert leaning == (1, 0)


def test_a_query_that_stays_as_typed_leans_on_nothing(tokens):
    added, dropped, leaning = labelled(tokens, "oak table", "oak table", TENT, ["I live in Ghent."])
    assert (set(added.values()), set(dropped.values()), leaning) == ({0}, {0}, (0, 0))


@pytest.mark.parametrize(
    ("rewrite", "turns", "statements", "leaning"),
    [
        ("shops in Ghent", TENT, ["I live in Ghent."], (0, 1)),
        ("tent shops", TENT, ["I live in Ghent."], (1, 0)),
        ("tent shops in Ghent", TENT, ["I live in Ghent."], (1, 1)),
        # What both say is taken from the turns.
        ("shops in Ghent", (("hotels in Ghent", ""),), ["I live in Ghent."], (1, 0)),
        # Nobody said it, so it is not known what the query leans on.
        ("shops in Zanzibar", TENT, ["I live in Ghent."], (UNKNOWN, UNKNOWN)),
        ("shops in Zanzibar and Ghent", TENT, ["I live in Ghent."], (0, 1)),
    ],
)
def test_a_query_leans_on_what_gave_its_words(tokens, rewrite, turns, statements, leaning):
    assert labelled(tokens, "shops", rewrite, turns, statements)[2] == leaning


def test_a_word_that_the_query_has_in_any_form_is_neither_added_nor_dropped(tokens):
    added, dropped, _ = labelled(tokens, "cheap tents of cotton", "cheap cotton tent", (("a cotton tent", "Tents!"),))
    assert added == {}
    assert dropped == {"cheap": 0, "tents": 0, "of": 1, "cotton": 0}


def test_function_words_of_the_session_are_not_learnt(tokens):
    added, _, leaning = labelled(tokens, "and why", "and why with it", (("is it with them", ""),))
    assert (added, leaning) == ({}, (0, 0))


def test_written_conversations_give_their_labels(tokens, written):
    found = {one.query: one for conversation in written for one in examples_of(conversation, conversation, tokens)}
    assert {query: tuple(one.labels[0, 2:]) for query, one in found.items()} == {
        "is it waterproof": (1, 0), "garden gnome": (0, 0), "shops near me": (0, 1), "chili": (0, 1),
    }  # fmt: skip
    assert {one.kind for one in found.values()} == {"written", "whole"}
    assert {one.source for one in found.values()} == {"written"}


@pytest.mark.data
def test_shared_pairs_give_labels_that_fit_their_rewrites(shared_data, tokens):
    found = read_all([shared_data / "rewriting" / "dev.jsonl"])
    n_leaning = Counter()
    for conversation in found:
        for one in examples_of(conversation, conversation, tokens):
            assert set(np.unique(one.labels)) <= {UNKNOWN, 0, 1}
            assert (one.labels[one.types == 0, 0] == UNKNOWN).all()  # words of the query
            assert (one.labels[one.types == 1, 1] == UNKNOWN).all()  # words of the session
            says = one.labels[0, 2:]
            assert (says == UNKNOWN).all() or (says != UNKNOWN).all()
            if says.max() == 1:
                assert (one.labels[:, 0] == 1).any()
            if one.query == one.rewrite:
                assert not (one.labels == 1).any()
            n_leaning[int(says.max())] += 1
    assert min(n_leaning[says] for says in (0, 1)) > 10


# Examples


def test_only_queries_with_a_history_or_statements_are_examples(tokens):
    turn = PastTurn("Where do whales live?", "Most of the whales live in the cold seas of the north.")
    targets = (Target(0, turn.query, turn.query), Target(1, "How old are they?", "How old are whales?"))
    asked = Conversation("own", (turn,), targets)
    assert [one.query for one in examples_of(asked, asked, tokens)] == ["How old are they?"]
    told = Conversation("own", (turn,), targets, ("I like whales.",))
    assert len(examples_of(told, told, tokens)) == 2


def test_answers_are_those_of_the_original_conversation(tokens):
    answer = "Most of the whales live in the cold seas of the north."
    turns = (PastTurn("whales", answer), PastTurn("How old are they?", "Old."))
    targets = (
        Target(0, "whales", "whales"),
        Target(0, "whales", "whales", "whole"),
        Target(1, "How old are they?", "How old are whales?"),
    )
    original = Conversation("own", turns, targets, ("I dive.",))
    varied = Conversation("own", (PastTurn("whales"), PastTurn("How old are they?")), targets, ("I dive.",))
    found = [one.answer for one in examples_of(varied, original, tokens)]
    assert found == [answer, "", ""]  # only to people's own queries, and not if it is too short


def as_bytes(made):
    return [(one.query, one.source, one.token_ids.tobytes(), one.labels.tobytes(), one.answer) for one in made]


def test_the_examples_are_of_all_kinds(pairs, tokens, little_written):
    made = list(training_examples(read_all([pairs]), TrainingOptions((pairs,), passes=20), tokens))
    assert {one.source for one in made} == {"own", "written", "made", "plain"}
    assert {one.kind for one in made} >= {"person", "whole", "switch", "written", "personal", "chat", "nothing"}
    people = [one for one in made if one.kind == "person" and one.source == "own"]
    assert len(people) == 20 * 20  # as often as the source is used
    assert {tuple(one.labels[0, 2:]) for one in people} == {(1, 0)}
    for one in made:
        if one.kind in ("switch", "chat", "nothing"):
            assert one.query == one.rewrite
            assert (one.labels[0, 2:] == 0).all()
    plain = [one for one in made if one.source == "plain" and one.kind == "person"]
    assert plain
    assert all(one.types.max() == 0 for one in plain)  # nothing of a session


def test_the_same_seed_gives_the_same_examples(pairs, tokens, little_written):
    made = [as_bytes(read_examples(TrainingOptions((pairs,), pairs, seed=seed), tokens)[0]) for seed in (1, 1, 2)]
    assert made[0] == made[1] != made[2]


def test_what_is_held_out_is_not_varied_and_without_a_file_not_learnt(pairs, tokens, little_written):
    _, scored = read_examples(TrainingOptions((pairs,), pairs), tokens)
    assert Counter(one.kind for one in scored) == {"person": 20}
    learnt, scored = read_examples(TrainingOptions((pairs,), seed=3), tokens)
    asked = {one.rewrite for one in learnt if one.source == "own"}
    assert asked.isdisjoint(one.rewrite for one in scored)


def test_pairs_without_a_session_are_refused(tmp_path, tokens):
    path = tmp_path / "pairs.jsonl"
    path.write_text(json.dumps({"query": "a b", "rewrite": "a b"}), "utf-8")
    with pytest.raises(InputError, match="no pair has a history or statements: give --data"):
        read_examples(TrainingOptions((path,), path), tokens)


def test_rewrites_that_all_point_somewhere_are_asked_in_no_other_session(tmp_path, tokens, little_written):
    path = tmp_path / "pairs.jsonl"
    row = {"query": "why", "rewrite": "why is it so", "history": [{"query": "whales"}]}
    path.write_text("\n".join(json.dumps(row | {"query": f"why {n}"}) for n in range(20)), "utf-8")
    learnt, _ = read_examples(TrainingOptions((path,), path), tokens)
    assert sum(one.source == "own" for one in learnt) >= 20


def test_a_runs_name_depends_on_all_its_inputs(pairs, tokens, little_written):
    encoder, options = BagEncoder(), TrainingOptions((pairs,), pairs)
    learnt, _ = read_examples(options, tokens)
    name = run_name(learnt, options, encoder)
    assert name == run_name(learnt, TrainingOptions((pairs,), threads=7), encoder)
    others = [
        run_name(learnt[1:], options, encoder),
        run_name([learnt[0]._replace(rewrite="other"), *learnt[1:]], options, encoder),
        run_name([learnt[0]._replace(labels=1 - learnt[0].labels), *learnt[1:]], options, encoder),
        run_name(learnt, TrainingOptions((pairs,), seed=1), encoder),
        run_name(learnt, TrainingOptions((pairs,), steps=7), encoder),
        run_name(learnt, options, BagEncoder(name="other")),
    ]
    assert len({name, *others}) == 7


# Steps and scores


def test_each_example_is_learnt_once_beside_others_of_its_length(pairs, tokens, little_written, tmp_path):
    learnt, _ = read_examples(TrainingOptions((pairs,), pairs, passes=2), tokens)
    vectors = TargetVectors.of(learnt, BagEncoder(), tmp_path / "vectors.db")
    plan = minibatches(learnt, vectors, 0)
    parts = [part for step in plan for part in step]
    assert sorted(map(id, (one for part in parts for one in part.examples))) == sorted(map(id, learnt))
    assert max(len(step) for step in plan) == STEP_PARTS
    assert max(len(part.examples) for part in parts) == PART_TEXTS
    for step in plan:
        lengths = [len(one.token_ids) for part in step for one in part.examples]
        assert lengths == sorted(lengths)
        assert all(len(part.negative_rewrites) == N_NEGATIVES for part in step)
    for part in parts:
        for one, rewrite, answer in zip(part.examples, part.rewrites, part.answers, strict=True):
            assert vectors.rewrites[rewrite] == pytest.approx(BagEncoder().encode([one.rewrite])[0])
            assert (answer == -1) == (one.answer == "")
            if one.answer:
                assert vectors.answers[answer] == pytest.approx(BagEncoder().encode([one.answer])[0], abs=1e-3)
    assert any(one.answer for one in learnt)


def test_without_answers_there_are_no_negatives_of_them(tokens, tmp_path):
    asked = Conversation("own", (PastTurn("whales"),), (Target(1, "why", "why whales"),))
    learnt = examples_of(asked, asked, tokens)
    vectors = TargetVectors.of(learnt, BagEncoder(), tmp_path / "vectors.db")
    ((part,),) = minibatches(learnt, vectors, 0)
    assert (part.answers.tolist(), len(part.negative_answers)) == ([-1], 0)


@pytest.mark.parametrize(
    ("true", "precision", "area"),
    [([1, 1, 0, 0], 1.0, 1.0), ([0, 1, 1, 0], (1 / 2 + 2 / 3) / 2, 0.5), ([0, 0, 0, 1], 0.25, 0.0)],
)
def test_scores_of_a_ranking(true, precision, area):
    said = np.array([4.0, 3.0, 2.0, 1.0], np.float32)
    assert average_precision(said, np.array(true)) == pytest.approx(precision)
    assert area_under_curve(said, np.array(true)) == pytest.approx(area)


def test_scores_where_there_is_nothing_to_tell_apart():
    said = np.array([1.0, 1.0], np.float32)
    assert average_precision(said, np.array([0, 0])) == 0
    assert area_under_curve(said, np.array([1, 1])) == area_under_curve(said, np.array([0, 0])) == 0
    assert area_under_curve(said, np.array([0, 1])) == 0.5


def test_the_card_names_the_data_the_command_and_the_scores(tmp_path):
    options = TrainingOptions((tmp_path / "a.jsonl", tmp_path / "b.jsonl"), tmp_path / "c.jsonl", 0.5, 7)
    recipe = {"n_layers": 6, "n_negatives": 256, "temperature": 0.05}
    text = reader_card(options, {"canard": 20, "mine": 3}, ReaderScores(0.8, 0.9, 0.7, 0.95, 95), recipe)
    assert (
        "bespeak models train-reader --data a.jsonl --data b.jsonl --held-out c.jsonl --passes 0.5 --seed 7\n" in text
    )
    assert "On 23 examples." in text
    assert "a student of 6 of its 12 layers" in text
    assert "against 256\nnegatives (InfoNCE, temperature 0.05)" in text
    assert "| canard | 20 | CC BY-SA 4.0 (aagohary/canard, dev split) |" in text
    assert "| mine | 3 | as its owner says |" in text
    assert "under CC BY-SA 4.0" in text
    assert "under CC BY-SA 4.0" not in reader_card(options, {"mine": 3}, ReaderScores(0, 0, 0, 0, 0), recipe)
    assert f"logits of {', '.join(HEADS)}." in text
    assert "95 held-out queries" in text
    assert str(tmp_path) not in text


# A whole run, with torch


@pytest.mark.train
def test_duplicates_of_the_target_are_no_negatives():
    torch = pytest.importorskip("torch", reason="torch is not installed (extra `train`)")
    own = torch.tensor([[1.0, 0.0]])
    alone = contrastive_loss(own, own, own)
    assert float(alone) == pytest.approx(0, abs=1e-6)
    other = contrastive_loss(own, own, torch.tensor([[0.8, 0.6]]))
    assert float(other) == pytest.approx(np.log1p(np.exp((0.8 - 1) / TEMPERATURE)), rel=1e-4)


@pytest.fixture
def short_runs(little_written, monkeypatch):
    """A run of a few steps, saved after each."""
    monkeypatch.setattr(reader, "CHECKPOINT_STEPS", 1)


@pytest.mark.train
def test_a_few_steps_lower_the_loss(pairs, tokens, little_written, tmp_path):
    pytest.importorskip("torch", reason="torch is not installed (extra `train`)")
    from bespeak.training.bert import read_bert
    from bespeak.training.fit import Fit

    network, start = read_bert(BASE / "model.onnx", reader.LAYERS, 0)
    conversation = read_all([pairs])[:12]
    learnt = [example for one in conversation for example in examples_of(one, one, tokens)]
    vectors = TargetVectors.of(learnt, load_encoder(), tmp_path / "vectors.db")
    objective, plan = reader.reader_objective(network, vectors), minibatches(learnt, vectors, 0)
    losses = [progress.loss for progress in Fit(objective, plan * 12, tmp_path / "c.pt", "a run", start, 2).run()]
    assert losses[-1] < 0.8 * losses[0]


@pytest.mark.train
def test_a_run_may_stop_after_some_steps(pairs, tmp_path, short_runs):
    pytest.importorskip("torch", reason="torch is not installed (extra `train`)")
    seen = []
    train(TrainingOptions((pairs,), pairs, passes=0.5, steps=1), tmp_path, seen.append)
    assert [(progress.step, progress.n_steps) for progress in seen] == [(1, 1)]
    kept = json.loads((tmp_path / "scores.json").read_text())
    assert sum(kept["examples"].values()) == STEP_PARTS * PART_TEXTS  # those that it read
    assert "--passes 0.5 --steps 1 --seed 0\n" in (tmp_path / "CARD.md").read_text("utf-8")


@pytest.mark.train
def test_a_run_writes_a_model_and_resumes_to_the_same_bits(pairs, tmp_path, short_runs):
    pytest.importorskip("torch", reason="torch is not installed (extra `train`)")
    options, out, seen = TrainingOptions((pairs,), pairs, passes=0.5), tmp_path / "whole", []
    scores = train(options, out, seen.append)
    assert [progress.step for progress in seen] == list(range(1, seen[0].n_steps + 1))
    assert len(seen) >= 2

    assert scores.n_held_out == 20
    assert all(0 <= score <= 1 for score in (scores.query, scores.context, scores.words, scores.leaning))
    kept = json.loads((out / "scores.json").read_text())
    assert {name: kept[name] for name in ("query", "context", "words", "leaning")} == {
        "query": scores.query, "context": scores.context, "words": scores.words, "leaning": scores.leaning,
    }  # fmt: skip
    assert set(kept["examples"]) >= {"own", "written", "plain"}
    card = (out / "CARD.md").read_text("utf-8")
    assert "| own |" in card
    assert f"On {sum(kept['examples'].values())} examples." in card

    record = read_record(out)
    assert (record.name, record.kind) == ("whole", "context-reader")
    assert set(record.files) == {"CARD.md", "config.json", "model.onnx", "tokenizer.json"}
    assert record.made == f"bespeak models train-reader; towards {load_encoder().name}"
    assert read_config(out).of == load_encoder().name

    class Killed(Exception):
        pass

    def kill(progress):
        raise Killed

    with pytest.raises(Killed):
        train(options, tmp_path / "cut", kill)
    rest = []
    assert train(options, tmp_path / "cut", rest.append) == scores
    assert [progress.step for progress in rest] == [progress.step for progress in seen[1:]]
    assert (tmp_path / "cut" / "model.onnx").read_bytes() == (out / "model.onnx").read_bytes()
    again = []
    assert train(options, out, again.append) == scores
    assert again == []  # it was at its end

    with pytest.raises(ModelError, match="another --out"):
        train(TrainingOptions((pairs,), pairs, passes=0.5, seed=1), out)

    made = OnnxContextReader(out, load_encoder(), load_encoder().name)
    profile = Profile(statements=(Statement("I am vegan.", "s"),), turns=(Turn("two person tent", "", "t"),))
    context = made.read("is it waterproof", profile)
    assert [word.text for word in context.dropped] == ["is", "it", "waterproof"]
    assert made.of == load_encoder().name
    assert (out / CHECKPOINT).exists()
