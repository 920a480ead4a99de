import random

import numpy as np
import pytest

from bespeak.records import Profile, Statement, Turn
from bespeak.rewriting.decoding import ANSWER_TOKENS, END, HISTORY_TOKENS, LAST_ANSWER_TOKENS, prompt
from bespeak.training.packing import UNLABELLED, Layout, Lexicon, alternatives, pack, unsaid_share
from bespeak.training.pairs import Conversation, PastTurn, Target

TURNS = (
    PastTurn("What group disbanded?", "Zappa and the Mothers of Invention"),
    PastTurn("When did they disband?", "In late 1969, Zappa broke up the band."),
    PastTurn("What kind of music did they play?", ""),
)
ZAPPA = Conversation(
    "canard",
    TURNS,
    (
        Target(0, TURNS[0].query, TURNS[0].query),
        Target(1, TURNS[1].query, "When did Zappa and the Mothers of Invention disband?"),
        Target(2, "Who wrote Middlemarch?", "Who wrote Middlemarch?", "switch"),
        Target(2, TURNS[2].query, "What kind of music did Zappa and the Mothers of Invention play?"),
        Target(3, "Why?", "Why did Zappa disband the Mothers of Invention?"),
    ),
    ("I live in Ghent.", "I like jazz."),
)


@pytest.fixture(scope="module")
def layout(tokenizer):
    return Layout(tokenizer)


def said_before(conversation, target, first_turn=0):
    """The rewriter's own prompt for a target."""
    turns = conversation.turns[first_turn : target.n_before]
    profile = Profile(
        statements=tuple(Statement(text, "") for text in conversation.statements),
        turns=tuple(Turn(turn.query, turn.response, "") for turn in turns),
    )
    return target.query, profile


def branches(packed):
    """For each branch: the ids that it sees up to its first label, those labels, and all of its positions."""
    for branch in range(1, packed.branches.max() + 1):
        own = packed.branches == branch
        last = np.flatnonzero(own)[-1]
        seen = packed.mask()[last]
        labelled = np.flatnonzero(own)[-1 - (packed.labels[own] != UNLABELLED).sum() + 1 :]
        before = [i for i in np.flatnonzero(seen) if i <= labelled[0]]
        yield packed.token_ids[before].tolist(), packed.labels[labelled].tolist(), packed.positions[seen].tolist()


def test_each_branch_sees_exactly_the_rewriters_prompt(layout):
    (packed,) = pack(ZAPPA, layout, None)
    assert packed.targets == ZAPPA.targets
    for target, (seen, labels, positions) in zip(packed.targets, branches(packed), strict=True):
        assert seen == prompt(*said_before(ZAPPA, target), layout.tokenizer)
        assert layout.tokenizer.decode(labels[:-1]) == " " + target.rewrite
        assert labels[-1] == END
        assert positions == list(range(len(positions)))


def test_a_branch_sees_more_of_the_last_answer_than_of_others(layout):
    turns = tuple(PastTurn(f"Which {what} are there?", f"One {what}, " * 30 + "the end") for what in ("tree", "bird"))
    asked = Conversation("s", turns, tuple(Target(n, "And which?", "And which?") for n in range(3)))
    asked = Conversation("s", turns, (*asked.targets[:2], Target(1, turns[1].query, turns[1].query), asked.targets[2]))
    (packed,) = pack(asked, layout, None)
    for target, (seen, _, positions) in zip(packed.targets, branches(packed), strict=True):
        assert seen == prompt(*said_before(asked, target), layout.tokenizer)
        assert positions == list(range(len(positions)))


def test_no_branch_sees_another(layout):
    (packed,) = pack(ZAPPA, layout, None)
    mask = packed.mask()
    other = (packed.branches[:, None] != packed.branches[None]) & (packed.branches[None] != 0)
    assert not (mask & other).any()
    assert not np.triu(mask, 1).any()


def test_the_history_is_read_once(layout):
    (packed,) = pack(ZAPPA, layout, None)
    alone = sum(len(prompt(*said_before(ZAPPA, target), layout.tokenizer)) for target in ZAPPA.targets)
    assert len(packed.token_ids) < 0.7 * alone


def test_histories_are_cut_only_before_the_targets_words(layout):
    topics = ("whales", "glaciers", "volcanoes", "bridges", "violins", "comets", "orchids", "castles")
    turns = tuple(PastTurn(f"Tell me about {topic}.", f"All about {topic}, at length. " * 5) for topic in topics)
    near = Target(8, "How old are they?", "How old are castles?")
    far = Target(8, "And the second topic?", "Tell me about glaciers?")
    cuts = set()
    for seed in range(40):
        (packed,) = pack(Conversation("s", turns, (near,)), layout, random.Random(seed))
        shown = layout.tokenizer.decode(packed.token_ids.tolist())
        assert "castles" in shown
        cuts.add(sum(topic in shown for topic in topics))
        assert ("cut" in packed.changes) == ("whales" not in shown)
    assert len(cuts) > 2
    kept = [pack(Conversation("s", turns, (far,)), layout, random.Random(seed)) for seed in range(40)]
    assert all(packed == [] or "glaciers" in layout.tokenizer.decode(packed[0].token_ids.tolist()) for packed in kept)


def test_no_window_is_longer_than_what_the_rewriter_reads(layout):
    turns = tuple(PastTurn(f"Question {n} about trees?", "Trees and more trees. " * 9) for n in range(12))
    targets = tuple(Target(n, "And trees?", "And trees?") for n in range(13))
    for seed in (*range(10), None):
        packed = pack(Conversation("s", turns, targets), layout, None if seed is None else random.Random(seed))
        found = [pair for one in packed for pair in zip(one.targets, branches(one), strict=True)]
        assert sorted(target.n_before for target, _ in found) == list(range(13))
        for target, (seen, _, _) in found:
            longest = prompt(*said_before(Conversation("s", turns, targets), target), layout.tokenizer)
            assert seen[1:] == longest[len(longest) - len(seen) + 1 :]
            assert len(seen) <= HISTORY_TOKENS + LAST_ANSWER_TOKENS - ANSWER_TOKENS + 20


def test_a_word_without_a_source_is_not_learnt(layout):
    target = Target(0, "Why do wolves howl?", "Why do grey wolves howl?")
    assert pack(Conversation("s", (), (target,)), layout, None) == []  # its only added word
    known = Target(0, target.query, target.rewrite.replace("howl?", "howl in packs at night?"))
    (packed,) = pack(Conversation("s", (), (known,), ("I run in packs at night.",)), layout, None)
    learnt = packed.labels[packed.labels != UNLABELLED].tolist()
    assert layout.tokenizer.decode(learnt[:-1]) == " Why do wolves howl in packs at night?"


def test_the_unread_end_of_an_answer_gives_no_words(layout):
    turn = PastTurn("What is it?", "word " * (LAST_ANSWER_TOKENS + 5) + "Zanzibar")
    asked = Conversation("s", (turn,), (Target(1, "Where?", "Where is Zanzibar?"),))
    assert pack(asked, layout, None) == []


def test_rewrites_without_end_are_left_out(layout):
    asked = Conversation("s", (), (Target(0, "why " * 70, "why " * 70),))
    assert pack(asked, layout, None) == []


def test_the_share_of_words_without_a_source():
    target = Target(0, "Why?", "Why did they disband at Dawn?")
    assert unsaid_share(target, Lexicon("Why?", ["Why?"])) == 2 / 5  # disband, Dawn; the others are function words
    assert unsaid_share(Target(0, "Why?", "why"), Lexicon("Why?", [])) == 0


def test_each_of_several_rewrites_reads_only_the_prompt_and_itself(tokenizer):
    read = prompt("Why?", Profile(turns=(Turn(TURNS[0].query, TURNS[0].response, ""),)), tokenizer)
    texts = ["Why?", "Why did Zappa disband?", "Why did the group disband?"]
    packed = alternatives(read, texts, tokenizer)
    mask = packed.mask()
    for branch, text in enumerate(texts, 1):
        ids = [*tokenizer.encode(f" {text}", add_special_tokens=False).ids, END]
        last = int(np.flatnonzero(packed.branches == branch)[-1])
        assert packed.token_ids[mask[last]].tolist() == [*read, *ids[:-1]]
        assert packed.positions[mask[last]].tolist() == list(range(len(read) + len(ids) - 1))
        assert packed.labels[packed.branches == branch].tolist() == ids
    assert (packed.labels[packed.branches == 0] == UNLABELLED).all()
