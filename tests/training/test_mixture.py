from collections import Counter

import pytest

from bespeak.training import mixture
from bespeak.training.pairs import Conversation, PastTurn, Target

pytestmark = pytest.mark.usefixtures("little_written")

TOPICS = ("whales", "glaciers", "bridges", "violins", "comets", "orchids", "castles", "beetles")

ASKED = ("How old are {}?", "Who first described {}?", "Why do people love {}?")


def conversations(source, n):
    for number in range(n):
        topic = TOPICS[number % len(TOPICS)]
        turns = (PastTurn(f"Where do {topic} come from, number {number}?", f"All over the world, {topic} do."),)
        asked = ASKED[number % len(ASKED)]
        targets = (Target(1, asked.format("they"), asked.format(topic)),)
        yield Conversation(source, turns, targets, (f"My neighbour likes {topic}.", "I whistle."))


def as_bytes(packed):
    return [(sequence.token_ids.tobytes(), sequence.labels.tobytes(), sequence.changes) for sequence in packed]


def test_the_same_seed_gives_the_same_sequences_in_order(tokenizer):
    found = list(conversations("own", 30))
    made = as_bytes(mixture.sequences(found, tokenizer, 1))
    assert made == as_bytes(mixture.sequences(found, tokenizer, 1))
    assert made != as_bytes(mixture.sequences(found, tokenizer, 2))


def test_sources_are_used_in_proportion_to_their_weights(tokenizer):
    found = [*conversations("ikat2024", 20), *conversations("own", 20), *conversations("camrest", 200)]
    made = mixture.sequences(found, tokenizer, 0, passes=2.0)
    people = Counter(s.source for s in made for target in s.targets if target.kind == "person")
    assert people["ikat2024"] == 20 * 2 * 4
    assert people["own"] == 20 * 2
    assert 20 <= people["camrest"] <= 60  # 200 * 2 / 10


def test_every_kind_of_change_is_made_and_counted(tokenizer, monkeypatch):
    monkeypatch.setattr(mixture, "ALONE_SHARE", 1.0)
    made = mixture.sequences(list(conversations("own", 300)), tokenizer, 0)
    counts = mixture.counts(made)
    assert set(counts["kind"]) == {"person", "whole", "switch", "personal", "written", "chat", "nothing"}
    assert set(counts["change"]) >= {"shuffled", "dropped", "crossed", "unanswered", "titled"}
    n_targets = sum(len(sequence.targets) for sequence in made)
    assert sum(counts["source"].values()) == sum(counts["kind"].values()) == n_targets
    assert counts["source"]["made"] == pytest.approx(0.06 * counts["source"]["own"], abs=1)


def test_written_conversations_and_some_queries_that_stand_alone_are_read_too(tokenizer, monkeypatch):
    def asked():
        made = mixture.sequences(list(conversations("own", 3)), tokenizer, 0)
        return Counter(target.query for s in made if s.source == "written" for target in s.targets)

    assert asked()["chili"] == mixture.WRITTEN_TIMES
    monkeypatch.setattr(mixture, "ALONE_SHARE", 1.0)
    alone = {"oak table", "bread knife", "how are you", "how much are they"}
    assert all(asked()[query] == 1 for query in alone)
    monkeypatch.setattr(mixture, "ALONE_SHARE", 0.0)
    assert alone.isdisjoint(asked())


def test_held_out_conversations_are_not_varied(tokenizer):
    found = list(conversations("own", 3))
    made = mixture.unvaried(found, tokenizer)
    assert [target for sequence in made for target in sequence.targets] == [c.targets[0] for c in found]
    assert all(sequence.changes == () for sequence in made)
    assert mixture.counts(made) == {"source": {"own": 3}, "kind": {"person": 3}, "change": {}}
