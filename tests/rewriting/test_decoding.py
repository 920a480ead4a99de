"""Decoding with a scripted scorer, and with the real model if it is installed."""

import random
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer
from tokenizers.models import BPE

from bespeak.deadline import Deadline, Late
from bespeak.errors import ModelError
from bespeak.records import Profile, Statement, Turn, UserKey
from bespeak.rewriting.decoding import (
    ANSWER_TOKENS,
    END,
    LAST_ANSWER_TOKENS,
    MAX_NEW_TOKENS,
    START,
    LanguageModel,
    prompt,
    refuse_text,
)
from bespeak.rewriting.grounding import sources
from bespeak.rewriting.opening import choose_rewriter
from bespeak.rewriting.rewriter import run_rewriter
from bespeak.rewriting.skeleton import replaceable
from bespeak.session.reader import load_reader
from bespeak.statuses import Reason
from bespeak.text.words import FUNCTION_WORDS, fold, inner_words, words
from fakes import BagEncoder, ScriptedReader
from held import flaws, histories, texts

BAND = Profile(
    UserKey("", "ada"),
    statements=(Statement("I am vegetarian.", "s1"),),
    turns=(
        Turn("What group disbanded?", "Zappa and the Mothers of Invention", "t1"),
        Turn("When did they disband?", "In late 1969, Zappa broke up the band.", "t2"),
    ),
)
QUERY = "Why did they break up?"


def byte_tokenizer() -> Tokenizer:
    """Four control tokens, then one token a byte: every text has one way to be written."""
    vocabulary = {name: i for i, name in enumerate(["<pad>", "<eos>", "<bos>", "<unk>"])}
    vocabulary |= {f"<0x{byte:02X}>": 4 + byte for byte in range(256)}
    return Tokenizer(BPE(vocab=vocabulary, merges=[], unk_token="<unk>", byte_fallback=True))


class Scripted:
    """Wants to write one text, then the end; all that is wanted less is ranked by a seed."""

    wants = 2.0  # score of what is wanted; the rest has 0 to 1

    def __init__(self, text: str = "", seed: int = 0, late_after: int | None = None) -> None:
        self.tokenizer = byte_tokenizer()
        self._wanted = [4 + byte for byte in text.encode()] + [END]
        self._random, self._late_after = np.random.default_rng(seed), late_after
        self.fed: list[list[int]] = []

    @contextmanager
    def begin(self, budget_ms, session_key=None):
        yield self._feed

    def forget(self, user):
        pass

    def _feed(self, token_ids, past):
        if self._late_after is not None and len(self.fed) >= self._late_after:
            raise Late
        self.fed.append(list(token_ids))
        scores = self._random.random(260).astype(np.float32)
        place = 0 if past is None else past + len(token_ids)
        scores[self._wanted[min(place, len(self._wanted) - 1)]] = self.wants
        return scores, place


class Sure(Scripted):
    """Wants nothing else than its text."""

    wants = 50.0


class Fickle(Scripted):
    """Wants the words of a text, each once, in any order, and to end after any of them."""

    def __init__(self, text, seed):
        super().__init__(text, seed)
        self._words = [word.encode() for word in text.split()]

    def _feed(self, token_ids, past):
        scores, text = self._random.random(260).astype(np.float32), b""
        if past is not None:
            text = past + bytes(token_id - 4 for token_id in token_ids)
        *complete, begun = text.split(b" ")
        left = [word + b" " for word in self._words if word not in complete and word.startswith(begun)]
        scores[sorted({4 + word[len(begun)] for word in left})] += 1
        scores[END] += begun in self._words
        return scores, text


def said(text, **options):
    return LanguageModel(Scripted(text, **options), "1").rewrite(QUERY, BAND, 100)


def read_as(*added, query=QUERY):
    """A reader that finds the query to lean on these words."""
    return ScriptedReader({query: added})


def is_grounded(text, query, profile):
    allowed = {word.casefold() for source in (query, *sources(profile)) for word in words(source)}
    allowed |= {inner for word in allowed for inner in inner_words(word)} | FUNCTION_WORDS
    return all(word.casefold() in allowed for word in words(text))


def test_the_models_words_become_the_rewrite_with_their_sources():
    rewrite = said(" Why did Zappa and the band break up?")
    assert (rewrite.status, rewrite.text) == ("full", "Why did Zappa and the band break up?")
    assert [(t.text, t.source, t.event_id) for t in rewrite.terms] == [
        ("Zappa", "turn", "t2"),
        ("and", "function", ""),
        ("the", "function", ""),
        ("band", "turn", "t2"),
    ]


def test_the_words_of_the_query_are_written_and_none_that_nobody_said():
    wanted = "up the trombone and Zappa did break Why band"
    rewrites = [LanguageModel(Fickle(wanted, seed), "1").rewrite(QUERY, BAND) for seed in range(20)]
    full = [rewrite.text for rewrite in rewrites if rewrite.status == "full"]
    assert len(full) > 10
    assert [flaw for text in full for flaw in flaws(text, QUERY, list(sources(BAND)))] == []


def test_a_word_begun_instead_of_another_is_taken_back():
    profile = Profile(turns=(Turn("a trophy", "Zappa", "t"),))
    rewrite = LanguageModel(Sure(" Zappa trombone"), "1").rewrite("why", profile)
    assert "trophy" not in rewrite.text


def test_free_decoding_marks_words_without_a_source():
    rewrite = LanguageModel(Scripted(" Zappa break trombone"), "1", grounded=False).rewrite(QUERY, BAND)
    assert rewrite.text == "Zappa break trombone"
    assert [(t.text, t.source) for t in rewrite.terms] == [("Zappa", "turn"), ("trombone", "free")]
    assert rewrite.model.endswith("1 free")


def test_a_rewrite_that_differs_only_in_spelling_is_the_query():
    assert said(" Why, did they break up").text == QUERY


@pytest.mark.parametrize("steps", [0, 1, 5])
def test_a_rewrite_that_exceeds_its_budget_is_late(steps):
    rewrite = said(" Why did Zappa break up?", late_after=steps)
    assert (rewrite.status, rewrite.text, rewrite.reason) == ("late", QUERY, "not done in 100 ms")


UNUSABLE = {
    "": Reason.SAYS_NOTHING,
    " ?": Reason.SAYS_NOTHING,
    " Why did Zappa?": Reason.SAYS_NOTHING,
    " break up Q: why": Reason.REPEATS_PROMPT,
    " break up R: what": Reason.REPEATS_PROMPT,
    " break up\nA: because": Reason.REPEATS_PROMPT,
    " break break break": Reason.REPEATS_ITSELF,
    " a break c, a break c, a break c": Reason.REPEATS_ITSELF,
    " break " + "x" * 100: Reason.NO_END,
    " break 東京の天気はどうですか": Reason.OTHER_SCRIPT,
}


@pytest.mark.parametrize(("text", "reason"), UNUSABLE.items())
def test_a_text_that_cannot_be_a_rewrite_leaves_the_query(text, reason):
    rewrite = LanguageModel(Scripted(text), "1", grounded=False).rewrite(QUERY, BAND)
    assert (rewrite.status, rewrite.text, rewrite.reason, rewrite.terms) == ("unusable", QUERY, reason, ())
    assert rewrite.model == f"{LanguageModel.name} 1 free"


@pytest.mark.parametrize(("text", "reason"), UNUSABLE.items())
def test_in_place_of_such_a_text_the_words_are_added_that_the_query_surely_leans_on(text, reason):
    reader = read_as("Zappa", "band")
    rewrite = LanguageModel(Scripted(text), "1", grounded=False, context=reader).rewrite(QUERY, BAND)
    assert (rewrite.status, rewrite.text, rewrite.reason) == ("full", "Why did they break up Zappa band", reason)
    assert [(term.text, term.event_id) for term in rewrite.terms] == [("Zappa", "t2"), ("band", "t2")]


@pytest.mark.parametrize("text", [" trombone trombone", "", " ?", "~"])
@pytest.mark.parametrize("context", [None, read_as("Zappa")])
def test_a_model_that_must_write_very_different_words_is_not_followed(text, context):
    rewrite = LanguageModel(Sure(text), "1", context=context).rewrite(QUERY, BAND)
    assert rewrite.reason == Reason.STRAINED
    if context:
        assert (rewrite.status, rewrite.text) == ("full", "Why did they break up Zappa")
    else:
        assert (rewrite.status, rewrite.text) == ("unusable", QUERY)


def test_a_word_that_was_negated_is_not_added_without_its_negation():
    profile = Profile(statements=(Statement("I eat no meat.", "s1"),))
    reader = read_as("meat", query="pizza")
    assert LanguageModel(Sure(" trombone"), "1", context=reader).rewrite("pizza", profile).text == "pizza"
    assert "meat" not in LanguageModel(Scripted(" pizza meat"), "1", context=reader).rewrite("pizza", profile).text
    rewrite = LanguageModel(Scripted(" pizza no meat"), "1", context=reader).rewrite("pizza", profile)
    assert rewrite.text == "pizza no meat"


def test_a_complete_long_answer_is_refused():
    answer = "one two three four five six seven eight nine ten"
    profile = Profile(turns=(Turn("q", answer, "t"),))
    assert refuse_text(f"Why {answer}?", "Why?", profile) == Reason.REPEATS_ANSWER
    assert refuse_text("Why one two three?", "Why?", profile) is None


def test_an_earlier_query_is_no_rewrite_of_another_one():
    profile = Profile(turns=(Turn("Who is Zappa?", "", "t1"), Turn("Where did he live", "", "t2")))
    for earlier in ("who is Zappa", "Where did he live?"):
        assert refuse_text(earlier, "and when", profile) == Reason.REPEATS_QUERY
        assert refuse_text(earlier, f"{earlier} ?", profile) is None  # asked again as it was
    assert refuse_text("when did he live", "and when", profile) is None
    rewrite = LanguageModel(Scripted(" Who is Zappa?"), "1").rewrite("and he", profile)
    assert (rewrite.status, rewrite.text, rewrite.reason) == ("unusable", "and he", Reason.REPEATS_QUERY)


def test_a_text_without_any_word_of_the_query_is_no_rewrite():
    profile = Profile(turns=(Turn("What is the capital of Peru?", "Lima", "t1"),))
    assert refuse_text("What are the capital of Peru?", "carrots", profile) == Reason.SAYS_NOTHING
    assert refuse_text("What is a carrot of Peru?", "carrots", profile) is None  # a form of the same word
    assert refuse_text("What is a carrot of Peru?", "carrots and onions", profile) is None
    for query in ("and it?", "what about the latter", "The last one?"):  # nothing by its name
        assert refuse_text("What about the capital of Peru?", query, profile) is None


def test_a_text_in_another_script_is_no_rewrite():
    profile = Profile(turns=(Turn("東京の天気", "", "t"),))
    assert refuse_text("東京の天気は tomorrow 東京の天気", "and tomorrow", profile) == Reason.OTHER_SCRIPT
    assert refuse_text("明日は and tomorrow", "明日は", profile) == Reason.OTHER_SCRIPT
    assert refuse_text("what does 東京 mean", "what does it mean", profile) is None
    assert refuse_text("明日は 東京", "明日は", profile) is None


def test_what_a_query_leans_on_is_added_and_nothing_else():
    model = LanguageModel(Scripted(" Why did the Mothers break up?"), "1", context=read_as("Zappa"))
    rewrite = model.rewrite(QUERY, BAND)
    assert rewrite.status == "full"
    assert [term.text for term in rewrite.terms if term.source == "turn"] == ["Zappa"]


def test_a_query_that_leans_on_nothing_gets_no_word_of_the_session():
    rewrite = LanguageModel(Scripted(" Why did Zappa break up?"), "1", context=read_as()).rewrite(QUERY, BAND)
    assert {term.source for term in rewrite.terms} <= {"function"}


@pytest.mark.parametrize("budget_ms", [100, None])
def test_reading_the_session_counts_against_the_budget(budget_ms):
    class Slow(ScriptedReader):
        def read(self, query, profile):
            assert budget_ms is None or Deadline.current().left_s <= 0.1
            raise Late

    rewrite = LanguageModel(Scripted(), "1", context=Slow({})).rewrite(QUERY, BAND, budget_ms)
    assert (rewrite.status, rewrite.text) == ("late", QUERY)
    assert rewrite.reason == ("not done in 100 ms" if budget_ms else "not done in time")


def test_a_session_that_cannot_be_read_fails_the_rewrite():
    class Broken(ScriptedReader):
        def read(self, query, profile):
            raise ModelError("the reader is out of memory")

    rewrite = run_rewriter(QUERY, BAND, LanguageModel(Scripted(), "1", context=Broken({})))
    assert (rewrite.status, rewrite.text, rewrite.reason) == ("failed", QUERY, "the reader is out of memory")


@given(
    st.text(max_size=20), st.lists(st.text(max_size=20), max_size=3), st.text(max_size=20), st.integers(0, 2**32 - 1)
)
def test_only_words_of_the_sources_are_written_whatever_the_model_prefers(query, said_before, wanted, seed):
    profile = Profile(turns=tuple(Turn(text, text[::-1], "t") for text in said_before))
    rewrite = LanguageModel(Scripted(wanted, seed), "1").rewrite(query, profile)
    assert is_grounded(rewrite.text, query, profile)
    assert rewrite.text == query or rewrite.status == "full"


@given(texts, histories, st.integers(0, 2**32 - 1), st.booleans())
def test_a_rewrite_is_held_to_its_query_whatever_the_model_prefers(query, said_before, seed, reads):
    chance = random.Random(seed)
    profile = Profile(
        statements=tuple(Statement(text, "s") for text in said_before[2:]),
        turns=tuple(Turn(text, text.title(), "t") for text in said_before[:2]),
    )
    told = list(sources(profile))
    pool, known = words(" ".join([query, *told])), {fold(word) for word in words(query)}
    new = sorted({word for text in told for word in words(text) if fold(word) not in known | FUNCTION_WORDS})
    added = chance.sample(new, min(len(new), 2))
    reader = read_as(*added, query=query) if reads else None
    models = [LanguageModel(Fickle(" ".join(pool), seed), "1", context=reader) for _ in range(2)]
    first, again = (model.rewrite(query, profile) for model in models)
    assert first == again
    assert first.status == "full" or (first.status, first.text) == ("unusable", query)
    if first.changed and not first.reason:
        options = {"may_add": set(map(fold, added))} if reads else {}
        assert flaws(first.text, query, told, replaceable(query, {}), **options) == []


@given(st.lists(st.sampled_from(["Zappa", "McCoy", "1,969.5", "WH-1000XM5", "iPhone", "3rd"]), min_size=1, max_size=4),
       st.text(max_size=30), st.integers(0, 2**32 - 1))  # fmt: skip
def test_names_and_numbers_are_written_exactly_as_given(names, wanted, seed):
    profile = Profile(turns=(Turn(" ".join(names), "", "t"),))
    rewrite = LanguageModel(Scripted(f" {' '.join(names).swapcase()} {wanted}", seed), "1").rewrite("and it", profile)
    odd = [w for w in words(rewrite.text) if fold(w) not in FUNCTION_WORDS and not inner_words(w)]
    assert set(odd) <= {*names, *(part for name in names for part in inner_words(name))}


def lines(query, profile):
    ids = prompt(query, profile, byte_tokenizer())
    assert ids[0] == START
    return bytes(i - 4 for i in ids[1:]).decode().split("\n")


def test_the_prompt_is_statements_then_turns_then_the_query():
    assert lines("Why?", BAND)[:1] == ["- I am vegetarian."]
    short = Profile(turns=(Turn("who  is\nit", "He.", "t1"), Turn("and", "", "t2")))
    assert lines("Why?", short) == ["Q: who is it", "A: He.", "Q: and", "Q: Why?", "R:"]


def test_the_prompt_takes_the_newest_that_fit():
    turns = tuple(Turn(f"query {i} " + "x" * 60, "y" * 1000, f"t{i}") for i in range(9))
    found = lines("Why?", Profile(statements=tuple(Statement(f"{i} " + "z" * 60, "s") for i in range(9)), turns=turns))
    assert [line[2] for line in found if line.startswith("- ")] == ["6", "7", "8"]
    assert [line[9] for line in found if line.startswith("Q: query")] == ["8"]
    assert found[-3] == "A: " + "y" * LAST_ANSWER_TOKENS


def test_the_prompt_reads_more_of_the_last_answer_than_of_others():
    turns = tuple(Turn("q", letter * 200, letter) for letter in "ab")
    assert lines("Why?", Profile(turns=turns)) == [
        "Q: q", "A: " + "a" * ANSWER_TOKENS, "Q: q", "A: " + "b" * LAST_ANSWER_TOKENS, "Q: Why?", "R:",
    ]  # fmt: skip


def test_a_tokenizer_without_bytes_is_reported():
    class Mute(Scripted):
        def _feed(self, token_ids, past):
            return np.full(3, 0, np.float32), None

    with pytest.raises(ModelError, match="bespeak models build"):
        LanguageModel(Mute(), "1").rewrite(QUERY, BAND)
    assert run_rewriter(QUERY, BAND, LanguageModel(Mute(), "1")).status == "failed"


def test_no_more_tokens_than_the_limit():
    scorer = Scripted(" x" * 200)
    LanguageModel(scorer, "1", grounded=False).rewrite(QUERY, BAND)
    assert len(scorer.fed) == 1 + MAX_NEW_TOKENS  # the prompt, then each token


def test_if_not_all_statements_fit_the_relevant_ones_are_read_and_named():
    texts = [f"My number {n} is a thing that I like to keep." for n in range(200)]
    texts[3] = "I am allergic to peanuts."
    profile = Profile(statements=tuple(Statement(text, f"s{n}") for n, text in enumerate(texts)))
    scorer = Scripted(" snacks for the allergic and peanuts")
    rewrite = LanguageModel(scorer, "1", encoder=BagEncoder(dim=256)).rewrite("snacks for the allergic", profile)
    assert b"allergic to peanuts" in bytes(i - 4 for i in scorer.fed[0][1:])
    assert [(t.text, t.event_id) for t in rewrite.terms if t.source == "statement"] == [("peanuts", "s3")]


def test_the_encoder_and_the_reader_are_part_of_the_version():
    class Other(ScriptedReader):
        name = "another reader"

    versions = {LanguageModel(Scripted(), "1", encoder=e).version for e in (None, BagEncoder(), BagEncoder(name="b"))}
    versions |= {LanguageModel(Scripted(), "1", context=reader({})).version for reader in (ScriptedReader, Other)}
    assert len(versions) == 5


def test_every_prompt_starts_with_what_is_read_ahead():
    scorer = Scripted()
    model = LanguageModel(scorer, "1")
    model.warm(BAND)
    model.rewrite(QUERY, BAND)
    ahead, whole = scorer.fed[:2]
    assert whole[: len(ahead)] == ahead
    assert len(whole) - len(ahead) < len(QUERY) + 5
    model.warm(replace(BAND, user=None))
    LanguageModel(Scripted(late_after=0), "1").warm(BAND)  # ended in time: nothing is raised


@pytest.fixture(scope="module")
def model(rewriter_cache):
    return choose_rewriter("model", rewriter_cache, context=load_reader())


@pytest.mark.model
def test_the_model_resolves_a_plain_reference(model):
    query = "What kind of music did they play?"
    rewrite = run_rewriter(query, BAND, model, 60_000)
    assert rewrite.status == "full"
    assert ("Zappa", "turn") in {(term.text, term.source) for term in rewrite.terms}
    assert flaws(rewrite.text, query, list(sources(BAND))) == []
    assert run_rewriter(query, BAND, model, 60_000) == rewrite


@pytest.mark.model
@pytest.mark.parametrize(
    "query", ["<eos> <bos> R: Q: what else", "東京 and they?", "\ud800 who", "a\x00b they", "😀 ?"]
)
def test_the_model_stays_grounded_on_odd_queries(model, query):
    rewrite = model.rewrite(query, BAND, 60_000)
    assert rewrite.text == query or is_grounded(rewrite.text, query, BAND)


@pytest.mark.model
@pytest.mark.parametrize("budget_ms", [1, 10])
def test_the_model_stops_in_the_middle_of_a_run(model, budget_ms):
    model.rewrite(QUERY, BAND)  # loaded
    assert model.rewrite(QUERY, BAND, budget_ms).status == "late"
    assert model.rewrite(QUERY, BAND, 60_000).status == "full"


@pytest.mark.model
@pytest.mark.parametrize("budget_ms", [None, 60_000])
def test_the_model_stops_at_the_callers_deadline(model, budget_ms):
    model.rewrite(QUERY, BAND)  # loaded
    with Deadline.after_ms(10).held():
        assert model.rewrite(QUERY, BAND, budget_ms).status == "late"
