"""What is guessed and kept changes how soon a text is done, and not the text."""

import numpy as np
import pytest
from tokenizers import Tokenizer
from tokenizers.models import WordLevel

from bespeak.records import Profile, Statement, Turn, UserKey
from bespeak.rewriting.decoding import LanguageModel
from bespeak.rewriting.model import find_model
from bespeak.rewriting.opening import choose_rewriter
from bespeak.rewriting.scorer import DRAFTED, Kept, Lookup, OnnxScorer, common

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
    return Lookup(Words()).guess([*PROMPT, *ids(*made)], len(PROMPT))


def test_a_rewrite_is_first_guessed_to_be_the_query():
    assert guess() == ids("▁Why", "▁did", "▁they", "▁break", "▁up")


def test_what_follows_the_latest_words_in_the_prompt_is_guessed_up_to_the_end_of_its_line():
    assert guess("▁Why", "▁did") == ids("▁they", "▁break", "▁up")
    assert guess("▁did", "▁zappa", "▁break") == ids("▁up")
    assert guess("▁up") == []


def test_the_same_word_with_a_capital_is_the_same():
    assert guess("▁zappa") == guess("▁Zappa") == []
    assert guess("▁Why")[:1] == ids("▁did")


def test_nothing_is_guessed_where_nothing_is_alike():
    assert guess("▁?") == []


def test_no_more_is_guessed_than_is_worth_it():
    long = ids("<bos>", "Q", ":", "▁", *["▁they"] * 30, "\n", "R", ":")
    assert len(Lookup(Words()).guess(long, len(long))) == DRAFTED


def memory(n_tokens):
    return {"past.0.key": np.zeros((1, 1, n_tokens, 256), np.float32)}


def test_what_was_read_is_kept_by_user_and_session_within_its_bounds():
    kept = Kept(limit_bytes=10 * 1024)
    kept.put((ADA, "s"), [1, 2, 3], memory(3), kept.n_forgotten)
    kept.put((ADA, "t"), [1, 2], memory(2), kept.n_forgotten)
    kept.put((BOB, "s"), [4], memory(1), kept.n_forgotten)
    assert [kept.get(whose)[0] for whose in ((ADA, "s"), (ADA, "t"), (BOB, "s"))] == [[1, 2, 3], [1, 2], [4]]
    kept.put((BOB, "t"), [5] * 5, memory(5), kept.n_forgotten)
    assert [kept.get(whose)[0] for whose in ((ADA, "s"), (ADA, "t"), (BOB, "t"))] == [[], [1, 2], [5] * 5]
    kept.put((BOB, "u"), [5] * 50, memory(50), kept.n_forgotten)
    assert kept.get((BOB, "u"))[0] == []


def test_who_is_forgotten_leaves_nothing_and_what_was_under_way_brings_nothing_back():
    kept = Kept(limit_bytes=1 << 20)
    kept.put((ADA, "s"), [1], memory(1), kept.n_forgotten)
    kept.put((BOB, "s"), [1], memory(1), kept.n_forgotten)
    begun = kept.n_forgotten
    kept.forget(ADA)
    kept.put((ADA, "t"), [1], memory(1), begun)
    assert [kept.get(whose)[0] for whose in ((ADA, "s"), (ADA, "t"), (BOB, "s"))] == [[], [], [1]]
    assert kept.get((UserKey("shop", "bob"), "s"))[0] == []


@pytest.mark.parametrize(
    ("one", "other", "n"), [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, 2], [1, 3], 1), ([1], [1], 1)]
)
def test_the_common_beginning_of_two_texts(one, other, n):
    assert common(one, other) == common(other, one) == n


@pytest.mark.model
@pytest.mark.parametrize("text", [BRIEF, LONG])
def test_the_real_model_writes_the_same_whatever_was_guessed_and_kept(rewriter_cache, text):
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
def test_after_warming_the_next_rewrite_reads_the_query_alone_and_is_the_same(rewriter_cache):
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
