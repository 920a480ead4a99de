"""The queries that are sampled, their candidates, and resuming after a kill; without torch."""

import json
import time
from contextlib import contextmanager
from itertools import count

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE

from bespeak.errors import ModelError
from bespeak.rewriting.decoding import END
from bespeak.training.candidates import (
    AnsweredTurn,
    SampledRewrites,
    SampleFile,
    answered_turns,
    choose_turns,
    sample,
    sample_all,
)
from bespeak.training.pairs import Conversation, PastTurn, Target

TOPICS = ("whales", "glaciers", "bridges", "violins", "comets")
LIVE = "They live in the cold waters of the north."
EAT = "Small fish and krill, many tons of it a day."


def conversation(topic="whales", source="own"):
    turns = (PastTurn(f"Where do {topic} live?", LIVE), PastTurn("What do they eat?", EAT), PastTurn("Why?", "Yes."))
    targets = (
        Target(0, turns[0].query, turns[0].query),
        Target(1, turns[1].query, f"What do {topic} eat?"),
        Target(1, "Who hunts them?", f"Who hunts {topic}?"),
        Target(2, "Why?", f"Why do {topic} eat krill?"),
        Target(3, "Since when?", f"Since when do {topic} eat krill?"),
    )
    return Conversation(source, turns, targets, ("I dive.",))


class Undecided:
    """Likes several texts, the first ones a little more; some of its runs take longer than others."""

    texts = (
        "What do they eat in the cold waters?",
        "What do they eat in the north?",
        "What do they live in?",
        "Where do they eat?",
    )

    def __init__(self, slow=False):
        vocabulary = {name: i for i, name in enumerate(["<pad>", "<eos>", "<bos>", "<unk>"])}
        vocabulary |= {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
        self.tokenizer = Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))
        self._runs, self._slow = count(), slow

    @contextmanager
    def begin(self, budget_ms, session_key=None):
        yield self._feed

    def forget(self, user):
        pass

    def _feed(self, token_ids, past):
        if self._slow and next(self._runs) % 7 == 0:
            time.sleep(0.0005)
        written = [] if past is None else past + list(token_ids)
        scores = np.zeros(260, np.float32)
        for number, text in enumerate(self.texts):
            ids = [*(4 + byte for byte in f" {text}".encode()), END]
            if ids[: len(written)] == written and len(written) < len(ids):
                scores[ids[len(written)]] = max(scores[ids[len(written)]], 30 - 0.3 * number)
        return scores, written


@pytest.fixture
def turns():
    return answered_turns(conversation(topic) for topic in TOPICS)


def test_an_answer_is_known_from_a_later_querys_history():
    (asked,) = answered_turns([conversation()])
    assert (asked.query, asked.rewrite, asked.answer) == ("What do they eat?", "What do whales eat?", EAT)
    assert [turn.query for turn in asked.history] == ["Where do whales live?"]
    assert asked.profile.turns[0].response == LIVE
    assert [statement.text for statement in asked.profile.statements] == ["I dive."]


def test_first_queries_short_answers_and_last_queries_are_left_out():
    assert {asked.n_before for asked in conversation().targets} == {0, 1, 2, 3}
    assert len(answered_turns([conversation()])) == 1


@given(st.integers(0, 30), st.integers(0, 5))
def test_conversations_are_chosen_whole_and_reproducibly(n, seed):
    turns = [
        AnsweredTurn(number // 3, "own", f"q{number}", "r", "a", (PastTurn("x"),), ()) for number in range(21)
    ]  # seven conversations of three
    chosen = choose_turns(turns, n, seed)
    assert chosen == choose_turns(turns, n, seed)
    assert len(chosen) == min(n, len(turns))
    assert len({turn.query for turn in chosen}) == len(chosen)
    whole = [turn.conversation for turn in chosen[: n // 3 * 3]]
    assert all(whole.count(number) == 3 for number in whole)


def test_sources_with_larger_weights_are_chosen_more_often():
    sources = ["ikat2024"] * 100 + ["camrest"] * 100
    turns = [AnsweredTurn(n, source, "q", "r", "a", (PastTurn("x"),), ()) for n, source in enumerate(sources)]
    assert sum(turn.source == "ikat2024" for turn in choose_turns(turns, 50, 0)) > 40


def test_candidates_are_distinct_and_on_one_line(turns):
    sampled = SampledRewrites("What do whales eat?", ("What  do\u00a0they eat", None, "What do they eat"))
    assert sampled.candidates(turns[0]) == ["What do they eat?", "What do whales eat?", "What do they eat"]
    assert SampledRewrites(None).candidates(turns[0]) == ["What do they eat?", "What do whales eat?"]


def test_samples_differ_from_one_another_and_the_greedy_one_is_without_noise(turns):
    sampled = sample(turns[0], Undecided(), 6, (0, 0))
    assert len(sampled.samples) == 6
    assert len({text for text in sampled.samples if text}) > 1
    assert sampled == sample(turns[0], Undecided(), 6, (0, 0))
    assert sampled.greedy == sample(turns[0], Undecided(), 0, (5, 5)).greedy
    assert sampled.samples != sample(turns[0], Undecided(), 6, (1, 0)).samples


def test_the_number_of_threads_changes_no_text(turns, tmp_path):
    kept = SampleFile(tmp_path / "kept.jsonl", "a run")
    done = []
    sample_all(turns, Undecided(slow=True), kept, 3, 7, done.append)
    assert done == [1, 2, 3, 4, 5]
    assert kept.found == {place: sample(turn, Undecided(), 3, (7, place)) for place, turn in enumerate(turns)}


@settings(max_examples=30)
@given(cut=st.integers(0, 600))
def test_a_run_killed_at_any_byte_resumes_to_the_same_file(cut, tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "kept.jsonl"
    turns = answered_turns(conversation(topic) for topic in TOPICS[:3])
    sample_all(turns, Undecided(), SampleFile(path, "a run"), 1, 0, lambda _: None)
    whole = path.read_bytes()
    path.write_bytes(whole[: min(cut, len(whole))])
    kept = SampleFile(path, "a run")
    n_left = len(kept.found)
    assert n_left == max(0, whole[: min(cut, len(whole))].count(b"\n") - 1)
    done = []
    sample_all(turns, Undecided(), kept, 1, 0, done.append)
    assert done == list(range(n_left + 1, 4))
    assert sorted(path.read_bytes().splitlines()) == sorted(whole.splitlines())
    assert SampleFile(path, "a run").found == kept.found


def test_a_fault_of_the_model_ends_the_run(turns, tmp_path):
    class Broken(Undecided):
        def _feed(self, token_ids, past):
            raise ModelError("the model is damaged")

    with pytest.raises(ModelError, match="is damaged"):
        sample_all(turns, Broken(), SampleFile(tmp_path / "kept.jsonl", "a run"), 1, 0, lambda _: None)


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (
            [{"run": "another"}],
            "belongs to a run with other data, options or versions: give another --out",
        ),
        (["nothing"], "delete it to start again"),
        ([{"run": "a run"}, {"turn": 0}], "delete it to start again"),
        ([{"run": "a run"}, ["x"]], "delete it to start again"),
    ],
)
def test_other_runs_files_and_damaged_files_are_reported(lines, said, tmp_path):
    path = tmp_path / "kept.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    with pytest.raises(ModelError, match=said):
        SampleFile(path, "a run")
