"""Texts that are read together come out as if each was read alone."""

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from bespeak.errors import ModelError
from bespeak.records import Profile, Statement, Turn
from bespeak.rewriting.batched import Batcher, JointScorer, LatestPrompts, RowRunner
from bespeak.rewriting.decoding import LanguageModel
from bespeak.rewriting.model import CACHES, ROWS, find_model
from bespeak.rewriting.opening import choose_rewriter
from bespeak.rewriting.scorer import BLOCK_TOKENS, EMPTY_MEMORY, NO_PROMPT, ReadPrompt, RunCounts

WIDTH = 5


class Session:
    """A fake session: a scored token's scores are its id, a row's memory is its number; it notes each run's rows."""

    def __init__(self, fails=()):
        self.rows, self._fails = [], set(fails)

    def run(self, wanted, feeds):
        self.rows.append(feeds["row_tokens"].tolist())
        if len(self.rows) in self._fails:
            raise RuntimeError("out of memory")
        scores = np.repeat(feeds["input_ids"][:, feeds["scored"], None], WIDTH, axis=2).astype(np.float32)
        return [scores, *(np.full((1, 1, 1, 1), int(name.split(".")[1])) for name in wanted[1:])]


def together(batcher, asked):
    """Each row runs its lists of tokens one after another; all rows start at once."""
    begun = threading.Barrier(len(asked))

    def write(row):
        found = []
        with batcher.joined():
            begun.wait()
            for token_ids in asked[row]:
                try:
                    scores, memory = RowRunner(row, batcher).run(token_ids, EMPTY_MEMORY, 2)
                    found.append((scores[:, 0].tolist(), int(memory[CACHES[0]].item())))
                except ModelError as error:
                    found.append(str(error))
        return found

    with ThreadPoolExecutor(len(asked)) as threads:
        return dict(zip(asked, threads.map(write, asked), strict=True))


def test_each_text_gets_its_own_scores_from_one_run():
    session = Session()
    asked = {0: [[1, 2, 3], [4, 5]], 3: [[6, 7]], ROWS - 1: [[8, 9], [10, 11], [12, 13, 14, 15]]}
    found = together(Batcher(session, RunCounts()), asked)
    assert found == {
        row: [([float(n) for n in token_ids[-2:]], row) for token_ids in lists] for row, lists in asked.items()
    }
    assert session.rows == [
        [3, 2, 2, 2, 2, 2, 2, 2],
        [2, 2, 2, 2, 2, 2, 2, 2],
        [2, 2, 2, 2, 2, 2, 2, 4],
    ]


def test_a_run_that_fails_fails_its_texts_and_not_the_next_run():
    found = together(Batcher(Session(fails=[1]), RunCounts()), {0: [[1, 2], [3, 4]], 1: [[5, 6], [7, 8]]})
    assert [texts[0] for texts in found.values()] == [
        "the language model failed (out of memory): run 'bespeak models verify'"
    ] * 2
    assert [texts[1] for texts in found.values()] == [([3.0, 4.0], 0), ([7.0, 8.0], 1)]


def memory(n_tokens):
    return {"0.key": np.zeros((1, 1, n_tokens, 256), np.float32)}


def test_the_prompt_with_the_longest_common_start_is_taken_and_the_oldest_go():
    prompts, long = LatestPrompts(limit_bytes=300 * 1024), list(range(200))
    prompts.put(ReadPrompt(long[:100], memory(100)))
    prompts.put(ReadPrompt([*long[:70], *[0] * 30], memory(100)))
    assert len(prompts.take(long)[0]) == 100
    assert prompts.take(long)[0][70:] == [0] * 30
    assert prompts.take(long) is NO_PROMPT
    prompts.put(ReadPrompt(long[: BLOCK_TOKENS - 1], memory(10)))
    assert prompts.take(long) is NO_PROMPT  # too short to be of use
    for n in range(4):
        prompts.put(ReadPrompt([n] * 100, memory(100)))
    assert prompts.take([0] * 100) is NO_PROMPT
    assert [len(prompts.take([n] * 100)[0]) for n in (1, 2, 3)] == [100] * 3
    prompts.put(ReadPrompt(long, memory(200)))
    prompts.clear()
    assert prompts.take(long) is NO_PROMPT


@pytest.mark.model
def test_the_real_model_writes_together_what_it_writes_alone(rewriter_cache):
    said = "I have played the guitar since I was twelve, mostly blues, and I collect records of the sixties " * 3
    bands = (
        "Zappa",
        "The Doors",
        "Love",
        "The Byrds",
        "Buffalo Springfield",
        "The Turtles",
        "Canned Heat",
        "Spirit",
        "Captain Beefheart",
    )
    asked = []
    for n, band in enumerate(bands):
        turns = (Turn(f"Who founded {band}?", f"The band {band} was founded in Los Angeles in 196{n}.", "t"),)
        profile = Profile(None, "s", (Statement(said[: 90 * n], "s"),) if n else (), turns)
        asked += [("When did they disband?", profile), ("and their best record", profile)]
    alone = choose_rewriter("model", rewriter_cache)
    scorer = JointScorer(find_model(rewriter_cache)[0])
    model = LanguageModel(scorer, "1")
    with ThreadPoolExecutor(ROWS + 1) as threads:  # one more than there are rows, so one waits
        made = list(threads.map(lambda pair: model.rewrite(*pair), asked))
    assert [rewrite.text for rewrite in made] == [alone.rewrite(*pair).text for pair in asked]
    assert len({rewrite.text for rewrite in made}) > len(bands)
    assert scorer.counts.runs < alone._scorer.counts.runs / 2
