import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.records import Hit
from bespeak.show.sentences import read_blocks, split_sentences, without_markup
from bespeak.show.summary import Summary, body_of, summarise_all, title_of, weigh_terms


def hit(text, **fields):
    return Hit("d", 1.0, 1, {"text": text, **fields})


def summarise(one, query, hits=(), max_chars=280):
    return summarise_all([one], query, hits, max_chars)[0]


def shown(summary):
    return "".join(f"*{text}*" if marked else text for text, marked in summary.parts())


def test_the_sentence_that_answers_is_taken_and_its_words_are_marked():
    text = "Cats sleep all day long. A dog barks at the postman every morning. Fish swim in the dark sea."
    assert shown(summarise(hit(text), "barking dogs", max_chars=50)) == "A *dog barks* at the postman every morning."


def test_without_a_match_the_lead_is_shown_unmarked():
    text = "The first sentence stands here. The second one follows it. The third one is far away."
    assert summarise(hit(text), "zebra", max_chars=62) == Summary(
        "The first sentence stands here. The second one follows it."
    )


def test_a_second_sentence_adds_the_words_that_the_first_lacks():
    text = "Red wine goes well with beef. Nothing of note is said here. Nor is it here. White wine goes well with fish."
    summary = summarise(hit(text), "beef fish", max_chars=70)
    assert shown(summary) == "Red wine goes well with *beef*. … White wine goes well with *fish*."


def test_rare_words_of_the_window_count_more():
    window = [hit("python everywhere in this text"), hit("python again, nothing else"), hit("python and asyncio")]
    weights = weigh_terms({"python", "asyncio"}, window)
    # 3 hits: python in all three, asyncio in one
    assert weights["python"] == pytest.approx(0.133531, abs=1e-6)  # ln(1 + 0.5 / 3.5)
    assert weights["asyncio"] == pytest.approx(0.980829, abs=1e-6)  # ln(1 + 2.5 / 1.5)


def test_words_that_only_ask_are_neither_sought_nor_marked():
    text = "How I do what you do when I can. The server restarts itself at night."
    assert shown(summarise(hit(text), "how do I restart the server", max_chars=40)) == (
        "The *server restarts* itself at night."
    )


def test_a_query_of_nothing_but_asking_words_still_finds_them():
    assert shown(summarise(hit("They ask who we are."), "who")) == "They ask *who* we are."


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("One. Two! Three? Four", ["One.", "Two!", "Three?", "Four"]),
        ("See e.g. Smith et al. and J. R. Tolkien. Next.", ["See e.g. Smith et al. and J. R. Tolkien.", "Next."]),
        ("He said no. Then he left.", ["He said no.", "Then he left."]),
        ("As in Fig. 3 and No. 7. Done.", ["As in Fig. 3 and No. 7.", "Done."]),
        ("Use asyncio.timeout or 3.11 now. Yes.", ["Use asyncio.timeout or 3.11 now.", "Yes."]),
        ("“It works.” She smiled.", ["“It works.”", "She smiled."]),
        ("最初の文です。二番目です。", ["最初の文です。", "二番目です。", ""]),
        ("Home | Products · About us", ["Home", "Products", "About us"]),
        ("no punctuation at all", ["no punctuation at all"]),
        ("", [""]),
    ],
)
def test_sentences(text, expected):
    assert split_sentences(text) == expected


DOCSTRING = """Cancel a task.

Heading
=======

The *msg* is passed on
to :class:`~asyncio.CancelledError`::

    task.cancel(msg)
    more()

After it. Example:

>>> cancel()
True

- first item
- second item

:param msg: the message

.. versionadded:: 3.9
"""


def test_a_docstring_is_read_by_its_parts():
    assert list(read_blocks(DOCSTRING)) == [
        ("Cancel a task.", False),
        ("Heading", False),
        ("The msg is passed on to asyncio.CancelledError:", False),
        ("task.cancel(msg) more()", True),
        ("After it. Example:", False),
        (">>> cancel()", True),
        ("True", False),
        ("first item", False),
        ("second item", False),
        ("param msg: the message", False),
    ]


def test_arguments_with_stars_are_no_emphasis():
    assert without_markup("f(*args, **kwargs) takes *any* or **all** of a*b*c") == (
        "f(*args, **kwargs) takes any or all of a*b*c"
    )


def test_a_long_text_without_punctuation_is_cut_around_the_match():
    text = " ".join(["filler"] * 300 + ["the needle lies here"] + ["filler"] * 300)
    summary = summarise(hit(text), "needle", max_chars=100)
    assert len(summary.text) <= 100
    assert "*needle*" in shown(summary)
    assert summary.text.startswith("…filler ")
    assert summary.text.endswith(" filler…")


def test_one_endless_word_is_cut():
    assert len(summarise(hit("x" * 5000), "x", max_chars=60).text) <= 60


@given(st.text(max_size=600), st.text(max_size=30), st.integers(20, 200))
def test_any_text_gives_a_clean_line_of_the_asked_length_with_marks_inside(text, query, max_chars):
    summary = summarise(hit(text), query, max_chars=max_chars)
    assert len(summary.text) <= max_chars
    assert "".join(part for part, _ in summary.parts()) == summary.text
    assert summary.text == " ".join(summary.text.split())
    ends = [0, *(place for span in summary.marks for place in span)]
    assert ends == sorted(ends)
    assert not summary.marks or ends[-1] <= len(summary.text)


def test_a_page_reads_the_window_once_and_gives_what_single_hits_give():
    page = [hit("An apple a day. The doctor is away."), hit("Pears are green. Apples are red.")]
    assert summarise_all(page, "apples", page) == [summarise(one, "apples", page) for one in page]


@pytest.mark.parametrize(
    ("source", "title", "body"),
    [
        ({"name": "N", "title": "T", "body": "B", "text": "X"}, "T", "X"),
        ({"Title": "T", "Description": "D"}, "T", "D"),
        ({"article": {"headline": "H", "content": ["one", "two"]}}, "H", "one\n\ntwo"),
        ({"genre": "drama", "year": 1999, "tags": ["a", "b"]}, "", "drama\n\na\n\nb"),
        ({"title": "T", "text": " ", "plot": "P"}, "T", "P"),
        ({"title": "T", "bespeak_vector": "no"}, "T", ""),
        ({}, "", ""),
    ],
)
def test_fields(source, title, body):
    assert title_of(source) == title
    assert body_of(source) == body


def test_a_document_without_text_has_an_empty_summary():
    assert summarise(Hit("d", 1.0, 1, {"year": 1999}), "anything") == Summary("")
