"""Guesses and kept prompts make a text faster to write; they do not change it."""

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from bespeak.records import Profile, Statement, Turn, UserKey
from bespeak.rewriting.decoding import LanguageModel
from bespeak.rewriting.model import find_model
from bespeak.rewriting.opening import choose_rewriter
from bespeak.rewriting.scorer import DRAFT_TOKENS, OnnxScorer, PromptLookup, ReadPrompt, SessionPrompt, n_common

CONTROL = ["<pad>", "<eos>", "<bos>", "<unk>"]
WORDS = [
    *CONTROL,
    "\n",
    *["Q", ":", "R", "▁", "Why", "▁Why", "▁did", "▁they", "▁Zappa", "▁zappa", "▁break", "▁up", "▁?"],
]
ID = {word: i for i, word in enumerate(WORDS)}
ADA, BOB = UserKey("", "ada"), UserKey("", "bob")
BRIEF = "I am vegetarian."
LONG = (
    "I have played the guitar since I was twelve, mostly blues and some jazz, and I collect records of the sixties "
    "and early seventies, those of bands from Los Angeles most of all, though my sister says that I should move on."
)  # of more tokens than onnxruntime attends over at once


class Words:
    """A tokenizer of the words above, each given as it is."""

    def __init__(self):
        self._tokenizer = Tokenizer(WordLevel(ID, unk_token="<unk>"))

    def encode(self, text, add_special_tokens=True):
        return type("Encoding", (), {"ids": [ID[piece] for piece in ([text] if text in ID else list(text))]})

    def __getattr__(self, name):
        return getattr(self._tokenizer, name)


def ids(*words):
    return [ID[word] for word in words]


EARLIER = ids("Q", ":", "▁", "Why", "▁Zappa", "\n")
QUERY = ids("Q", ":", "▁", "Why", "▁did", "▁they", "▁break", "▁up", "\n")
PROMPT = [*ids("<bos>"), *EARLIER, *QUERY, *ids("R", ":")]


def guess(*made):
    return PromptLookup(Words()).guess([*PROMPT, *ids(*made)], len(PROMPT))


def test_the_first_guess_is_the_query():
    assert guess() == ids("▁Why", "▁did", "▁they", "▁break", "▁up")


def test_the_text_after_the_latest_words_in_the_prompt_is_guessed_up_to_its_line_end():
    assert guess("▁Why", "▁did") == ids("▁they", "▁break", "▁up")
    assert guess("▁did", "▁zappa", "▁break") == ids("▁up")
    assert guess("▁up") == []


def test_a_capital_letter_makes_no_difference():
    assert guess("▁zappa") == guess("▁Zappa") == []
    assert guess("▁Why")[:1] == ids("▁did")


def test_nothing_is_guessed_without_a_match():
    assert guess("▁?") == []


def test_guesses_are_bounded():
    long = ids("<bos>", "Q", ":", "▁", *["▁they"] * 30, "\n", "R", ":")
    assert len(PromptLookup(Words()).guess(long, len(long))) == DRAFT_TOKENS


def scorer_with(tmp_path, prompts, kept_bytes=1 << 20):
    """A scorer that has read these prompts, by session, each token 1 KB."""
    scorer = OnnxScorer(tmp_path, kept_bytes=kept_bytes)
    for session_key, token_ids in prompts.items():
        read(scorer, session_key).put(ReadPrompt(token_ids, memory(len(token_ids))))
    return scorer


def memory(n_tokens):
    return {"past.0.key": np.zeros((1, 1, n_tokens, 256), np.float32)}


def read(scorer, session_key):
    return SessionPrompt(scorer._prompts, session_key, scorer._prompts.n_forgotten)


def known(scorer, *session_keys):
    return [read(scorer, session_key).take([]).token_ids for session_key in session_keys]


def test_prompts_are_kept_by_user_and_session_within_bounds(tmp_path):
    prompts = {(ADA, "s"): [1, 2, 3], (ADA, "t"): [1, 2], (BOB, "s"): [4]}
    scorer = scorer_with(tmp_path, prompts, 10 * 1024)
    assert known(scorer, *prompts) == [[1, 2, 3], [1, 2], [4]]
    read(scorer, (BOB, "t")).put(ReadPrompt([5] * 5, memory(5)))
    assert known(scorer, (ADA, "s"), (ADA, "t"), (BOB, "t")) == [[], [1, 2], [5] * 5]
    read(scorer, (BOB, "u")).put(ReadPrompt([5] * 50, memory(50)))
    assert known(scorer, (BOB, "u")) == [[]]


def test_nothing_of_a_forgotten_user_is_kept_even_if_a_text_was_in_progress(tmp_path):
    scorer = scorer_with(tmp_path, {(ADA, "s"): [1], (BOB, "s"): [1]})
    in_progress = read(scorer, (ADA, "t"))
    scorer.forget(ADA)
    in_progress.put(ReadPrompt([1], memory(1)))
    assert known(scorer, (ADA, "s"), (ADA, "t"), (BOB, "s"), (UserKey("shop", "bob"), "s")) == [[], [], [1], []]


@pytest.mark.parametrize(
    ("one", "other", "n"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2], [1, 3], 1), ([1], [1], 1)]
)
def test_the_common_start_of_two_texts(one, other, n):
    assert n_common(one, other) == n_common(other, one) == n


@pytest.mark.model
@pytest.mark.parametrize("text", [BRIEF, LONG])
def test_the_real_model_writes_the_same_text_whatever_was_guessed_and_kept(rewriter_cache, text):
    said = (Statement(text, "s1"),)
    turns = [
        Turn("What group disbanded?", "Zappa and the Mothers of Invention", "t1"),
        Turn("When did they disband?", "In late 1969, Zappa broke up the band.", "t2"),
        Turn("Who played the drums?", "", "t3"),
    ]
    queries = ["Why did they break up?", "what did he do then?", "and the keyboards"]
    anew, going_on = [], []
    session = choose_rewriter("model", rewriter_cache)
    for n, query in enumerate(queries, start=1):
        for user, made, rewriter in ((BOB, anew, choose_rewriter("model", rewriter_cache)), (ADA, going_on, session)):
            profile = Profile(user, "s", said, tuple(turns[:n]))
            made.append(rewriter.rewrite(query, profile).text)
    again = session.rewrite(queries[0], Profile(ADA, "other", said, tuple(turns[:1])))
    assert going_on == anew
    assert again.text == anew[0]


@pytest.mark.model
def test_after_warming_the_next_rewrite_reads_only_the_query_and_is_the_same(rewriter_cache):
    turns = (Turn("What group disbanded?", "Zappa and the Mothers of Invention broke up in 1969", "t1"),)
    scorers, made = [], []
    for warm in (False, True):
        scorer = OnnxScorer(find_model(rewriter_cache)[0])
        model, profile = LanguageModel(scorer, "1"), Profile(ADA, "s", (Statement(LONG, "s1"),), turns)
        if warm:
            model.warm(profile)
        read_before = scorer.counts.tokens
        made.append(model.rewrite("Why did they break up?", profile).text)
        scorers.append(scorer.counts.tokens - read_before)
    assert made[0] == made[1]
    assert scorers[1] < scorers[0] - 20
