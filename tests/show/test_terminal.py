import re
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.show.terminal import STYLES, beside, cells, clean, emphasise, fit, wrap

ANY_TEXT = st.text(st.characters(), max_size=60)  # lone surrogates too


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;https://evil.example\x07link\x1b]8;;\x07", "link"),
        ("\x1b]0;title\x1b\\text", "text"),
        ("\x9b2Jgone", "gone"),
        ("a\r\nb\tc\u2028d\x85e", "a b c d e"),
        ("abc\u202edef\u2066ghi\u2069", "abcdefghi"),
        ("bell\x07 back\x08 null\x00 del\x7f", "bell back null del"),
        ("half \ud800 pair", "half \ufffd pair"),
        ("👩\u200d👩\u200d👧 stays", "👩\u200d👩\u200d👧 stays"),
        ("می\u200cخواهم", "می\u200cخواهم"),
        ("hidden\U000e0068\U000e0069", "hidden"),
        ("Z" + "\u0335" * 50, "Z" + "\u0335" * 8),
    ],
)
def test_clean(text, expected):
    assert clean(text) == expected


@given(ANY_TEXT)
def test_nothing_that_a_terminal_obeys_is_left(text):
    line = clean(text)
    assert clean(line) == line
    assert not [c for c in line if unicodedata.category(c) in ("Cc", "Cs", "Zl", "Zp")]
    assert not set(line) & set("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")
    line.encode("utf-8")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("abc", 3),
        ("漢字", 4),
        ("e\u0301", 1),
        ("👍", 2),
        ("👩\u200d👩\u200d👧", 2),
        ("🇩🇪", 2),
        ("❤\ufe0f", 2),
        ("ﾊ", 1),
        ("☎", 1),
        ("क\u093f", 1),
        ("", 0),
    ],
)
def test_cells(text, expected):
    assert cells(text) == expected
    assert cells(emphasise(text, "bold")) == expected


@pytest.mark.parametrize("style", ["", "match"])
@given(text=ANY_TEXT.map(clean), width=st.integers(2, 30))
def test_no_line_is_wider_than_asked_and_no_character_is_lost(style, text, width):
    lines = wrap(emphasise(text, style) if style else text, width)
    assert all(cells(line) <= width for line in lines)
    assert without_style("".join(lines)).replace(" ", "") == text.replace(" ", "")


@given(text=ANY_TEXT.map(clean), width=st.integers(2, 10))
def test_no_emphasis_runs_over_the_end_of_a_line(text, width):
    for line in wrap(emphasise(text, "bold"), width):
        assert line.count(f"\x1b[{STYLES['bold']}m") == line.count("\x1b[0m")


def test_a_dotted_name_is_broken_after_a_joint():
    assert wrap("concurrent.futures.ThreadPoolExecutor", 20) == ["concurrent.futures.", "ThreadPoolExecutor"]


def test_wide_text_is_broken_between_its_characters():
    assert wrap("検索エンジン", 8) == ["検索エン", "ジン"]


@given(text=ANY_TEXT.map(clean), width=st.integers(2, 30))
def test_fit_fills_its_cells_exactly(text, width):
    assert cells(fit(text, width)) == width


def test_beside_pads_by_cells():
    assert beside(["漢字", "b"], ["x", "y", "z"], 6) == ["漢字  x", "b     y", "      z"]


def without_style(text):
    return re.sub(r"\x1b\[[\d;]*m", "", text)
