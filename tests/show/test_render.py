import json
import os
import re
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bespeak.errors import InputError, UsageError
from bespeak.records import Evidence, Hit, Hits, Ranked, Request, Result, Rewrite, Term, UserKey
from bespeak.show.reasons import move_of, why
from bespeak.show.render import as_dict, render, render_comparison
from bespeak.show.templating import escape_markdown
from bespeak.show.terminal import cells

TURN = Term("tasks", "turn", "e1", "how do I run several tasks")
SAID = Term("asyncio", "statement", "e2", "I write network services with asyncio.")
CLICKED = Evidence("user", "asyncio.timeout", "e9", 0.2, "click")
WORD = Evidence("lexical", "tasks", "e1", 0.1)


def ranked(rank, engine_rank, title="Title", evidence=(), score=3.0, scores=(0.9, 0.5, 0.4), **source):
    hit = Hit(source.pop("doc_id", f"d{rank}"), score, engine_rank, {"title": title, **source})
    return Ranked(hit, rank, 0.6, scores, tuple(evidence))


def result(*page, query="and after a timeout?", text="cancel tasks after a timeout", terms=(TURN, SAID), **fields):
    hits = fields.pop("hits", None) or Hits(tuple(sorted((r.hit for r in page), key=lambda hit: hit.rank)), len(page))
    rewrite = Rewrite(query, text, tuple(terms), "full", model="m 1")
    request = Request(query, "python", UserKey("acme", "ada"), "s")
    return Result(request, rewrite, page, hits, **{"rerank": "full", "weights": (0.5, 0.25, 0.25), **fields})


PAGE = (
    ranked(1, 9, "asyncio.timeout", [CLICKED, WORD], text="Cancel the task after a timeout. Nothing else."),
    ranked(2, 1, "Task.cancel", text="Request that this task cancel itself."),
    ranked(3, 3, "threading.Timer", text="A timer runs later."),
)


# Why a hit is where it is


@pytest.mark.parametrize(
    ("hit", "expected"),
    [
        (ranked(1, 1), ""),
        (ranked(3, 2, evidence=[CLICKED]), "Down from 2: other hits gained more."),
        (
            ranked(1, 9, evidence=[CLICKED, WORD]),
            "Up from 9 of 20: it is similar to “asyncio.timeout”, which you clicked, and “tasks” comes from earlier in"
            " this session.",
        ),
        (
            ranked(1, 9, evidence=[CLICKED, replace(WORD, share=0.04)]),
            "Up from 9 of 20: it is similar to “asyncio.timeout”, which you clicked.",
        ),
        (ranked(1, 1, "asyncio.timeout", [CLICKED]), "Still 1: you clicked “asyncio.timeout” before."),
        (ranked(1, 4, scores=(0.2, 0.9, 0)), "Up from 4 of 20: it matches the query in meaning more than in words."),
        (ranked(1, 4, scores=(0.9, 0.2, 0.9)), "Up from 4 of 20."),
        (ranked(1, 0, score=0.0), "Found by meaning, not by its words."),
        (
            ranked(1, 0, evidence=[WORD]),
            "Not among the engine's own 20 hits: “tasks” comes from earlier in this session.",
        ),
        (
            ranked(1, 2, evidence=[replace(CLICKED, action="")]),
            "Up from 2 of 20: it is similar to “asyncio.timeout”, from your history.",
        ),
        (
            ranked(1, 2, evidence=[replace(CLICKED, action="dislike")]),
            "Up from 2 of 20: it is unlike “asyncio.timeout”, which you disliked.",
        ),
        (
            ranked(1, 2, evidence=[Evidence("embedding", "an old query", "e7", 0.3)]),
            "Up from 2 of 20: it is close in meaning to your earlier query “an old query”.",
        ),
        (
            ranked(1, 2, evidence=[WORD, replace(WORD, text="several")]),
            "Up from 2 of 20: “tasks” and “several” come from earlier in this session.",
        ),
        (
            ranked(1, 2, evidence=[Evidence("lexical", "asyncio", "e2", 0.3)]),
            "Up from 2 of 20: “asyncio” comes from what you said about yourself.",
        ),
    ],
)
def test_why(hit, expected):
    assert why(hit, 20, (TURN, SAID)) == expected


@pytest.mark.parametrize(
    ("hit", "expected"),
    [(ranked(1, 4), "↑3"), (ranked(4, 3), "↓1"), (ranked(2, 2), "="), (ranked(2, 0), "new")],
)
def test_moves(hit, expected):
    assert move_of(hit) == expected


# What is shown


def test_text_shows_query_rewrite_sources_and_each_hit():
    assert render(result(*PAGE), "text", width=80).splitlines() == [
        "and after a timeout?",
        "→ cancel tasks after a timeout",
        "  + tasks    earlier in this session: “how do I run several tasks”",
        "  + asyncio  you said “I write network services with asyncio.”",
        "1–3 shown · 3 keyword matches · reranked for this user",
        "",
        " 1 ↑8   asyncio.timeout",
        "        *Cancel* the *task* after a *timeout*. Nothing else.",
        "        › Up from 9 of 3: you clicked “asyncio.timeout” before, and “tasks”",
        "          comes from earlier in this session.",
        "        id d1",
        "",
        " 2 ↓1   Task.cancel",
        "        Request that this *task cancel* itself.",
        "        › Down from 1: other hits gained more.",
        "        id d2",
        "",
        " 3 =    threading.Timer",
        "        A timer runs later.",
        "        id d3",
    ]


def test_words_of_one_origin_stand_together():
    terms = (TURN, SAID, replace(TURN, text="concurrently"))
    lines = render(result(*PAGE, terms=terms), "text", width=80).splitlines()
    assert "  + tasks, concurrently  earlier in this session: “how do I run several tasks”" in lines
    narrow = render(result(*PAGE, terms=terms), "text", width=40).splitlines()
    assert narrow[2:5] == [
        "  + tasks, concurrently – earlier in",
        "    this session: “how do I run several",
        "    tasks”",
    ]


@pytest.mark.parametrize(
    ("status", "reason", "expected"),
    [
        ("gated", "quoted", "= searched as typed: the whole query is quoted"),
        ("gated", "something new", "= searched as typed: something new"),
        ("gated", "stands_alone", "= searched as typed: the query does not depend on anything the user said before"),
        ("unusable", "no_end",
         "= searched as typed: the rewriter wrote no usable rewrite (it did not end within 64 tokens)"),
        ("late", "", "= searched as typed: the rewriter took too long"),
        ("failed", "out of memory", "= searched as typed: the rewriter failed (out of memory)"),
        ("off", "", "= searched as typed: no rewriter"),
        ("full", "", "= searched as typed: nothing to add"),
    ],
)  # fmt: skip
def test_an_unchanged_query_says_why(status, reason, expected):
    shown = replace(result(*PAGE), rewrite=Rewrite("q", "q", (), status, reason))
    assert expected in render(shown, "text", width=120).splitlines()


@pytest.mark.parametrize("format_", ["text", "explain", "md", "html", "json"])
def test_notes_and_a_failed_rerank_are_shown_everywhere(format_):
    shown = render(result(*PAGE, rerank="failed", notes=("the model is missing",)), format_, width=200)
    assert "the model is missing" in shown
    assert ("reranking failed" in shown) != (format_ == "json")


@pytest.mark.parametrize("format_", ["text", "explain", "md", "html"])
def test_nothing_found(format_):
    assert "Nothing matches." in render(result(), format_)
    assert "No hits on this page." in render(replace(result(), hits=Hits((), 7)), format_)


def test_explain_shows_addends_that_add_up_and_the_evidence():
    shown = render(result(*PAGE), "explain", width=80)
    assert re.search(r"× 0\.50 +× 0\.25 +× 0\.25", shown)
    assert re.search(r"0\.90 → 0\.450 +0\.50 → 0\.125 +0\.40 → 0\.100 +0\.600", shown)
    assert "+0.200 user: “asyncio.timeout” (click)" in shown
    weighted = as_dict(result(*PAGE))["hits"][0]["weighted"]
    assert weighted == {"lexical": 0.9 * 0.5, "embedding": 0.5 * 0.25, "user": 0.4 * 0.25}


def test_explain_without_weights_shows_the_scores_alone():
    shown = render(result(*PAGE, weights=None), "explain", width=80)
    assert re.search(r"0\.900 +0\.500 +0\.400 +0\.600", shown)
    assert "→ 0." not in shown


def test_a_hit_without_title_is_called_by_its_id_once():
    page = (Ranked(Hit("id-7", 1.0, 1, {"text": "A timeout."}), 1, 0.5, (1, 0, 0)),)
    assert render(result(*page), "text").count("id-7") == 1


def test_a_title_without_end_is_cut():
    shown = as_dict(result(ranked(1, 1, "t" * 5000)))["hits"][0]
    assert shown["title"] == "t" * 199 + "…"
    assert shown["source"]["title"] == "t" * 5000


def test_a_fragment_shows_what_the_page_shows():
    page, fragment = render(result(*PAGE), "html"), render(result(*PAGE), "fragment")
    assert between(page, "<main>", "</main>") == between(fragment, "<main>", "</main>")


def test_a_fragment_is_one_element_that_styles_nothing_outside():
    fragment = render(result(*PAGE), "fragment")
    tags = [tag for tag, _ in Tags(fragment).found]
    assert tags[:2] == ["div", "style"]
    assert not {"html", "head", "body", "script", "link", "meta", "title"} & set(tags)
    assert fragment.startswith('<div class="bespeak">')
    assert fragment.endswith("</div>")
    style = between(fragment, "<style>", "</style>")
    selectors = re.findall(r"([^{}]+)\{", re.sub(r"@media[^{]*\{", "", style))
    assert selectors
    assert all(one.strip().startswith(".bespeak") for names in selectors for one in names.split(","))


def between(text, start, end):
    return text.partition(start)[2].partition(end)[0]


# The terminal


WIDE = (
    ranked(1, 2, "漢字のとても長いタイトルがここにあります " * 3, [CLICKED], text="語" * 400, doc_id="x" * 90),
    ranked(2, 1, "a.very.long.dotted." * 9, text="word " * 90),
    ranked(100, 9999, "👩\u200d👩\u200d👧 e\u0301" * 40),
)


@pytest.mark.parametrize("template", ["text", "explain", "comparison.txt.j2"])
@pytest.mark.parametrize("width", [40, 59, 60, 72, 80, 120])
@pytest.mark.parametrize("colour", [False, True])
def test_no_line_is_wider_than_the_terminal(template, width, colour):
    shown = result(*WIDE, query="q" * 300, terms=(TURN, replace(SAID, text="t" * 50)), notes=("n" * 99,))
    if template == "comparison.txt.j2":
        text = render_comparison(shown, width=width, colour=colour)
    else:
        text = render(shown, template, width=width, colour=colour)
    assert max(cells(line) for line in text.splitlines()) <= width


@pytest.mark.parametrize("template", ["text", "explain"])
def test_colour_only_adds_to_what_is_shown(template):
    plain = render(result(*PAGE), template, width=80)
    coloured = render(result(*PAGE), template, width=80, colour=True)
    assert "\x1b" not in plain
    assert "\x1b[1;33mtask\x1b[0m" in coloured or template == "explain"
    words = re.sub(r"\x1b\[[\d;]*m", "", coloured).split()
    assert words == plain.replace("*", "").split()


def test_comparison_side_by_side():
    assert render_comparison(result(*PAGE), n=2, width=72).splitlines() == [
        "The engine's own order              For this user",
        " 1  Task.cancel                      1 ↑8   asyncio.timeout",
        " 3  threading.Timer                  2 ↓1   Task.cancel",
    ]


def test_a_narrow_comparison_is_stacked():
    lines = render_comparison(result(*PAGE), n=2, width=60).splitlines()
    assert lines.index("For this user") > lines.index("The engine's own order")
    assert " 1 ↑8   asyncio.timeout" in lines


def test_comparison_with_an_answer_that_lacks_a_hit():
    own = Hits((Hit("d3", 2.0, 1, {"title": "threading.Timer"}), Hit("d2", 1.0, 2, {"title": "Task.cancel"})), 2)
    page = (ranked(1, 0, "asyncio.timeout"), ranked(2, 2, "Task.cancel"), ranked(3, 1, "threading.Timer"))
    lines = render_comparison(result(*page, hits=own), n=3, width=60).splitlines()
    assert lines[1:3] == [" 1  threading.Timer", " 2  Task.cancel"]
    assert lines[-3:] == [" 1 new  asyncio.timeout", " 2 =    Task.cancel", " 3 ↓2   threading.Timer"]


# Hostile text

HOSTILE = [
    "<script>alert(1)</script>",
    '"><img src=x onerror=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "</title></style></main><b>",
    "{{7*7}}{% include 'x' %}{# c #}",
    "[click](javascript:alert(1)) ![i](http://evil.example/i.png) <http://evil.example>",
    "https://evil.example www.evil.example me@evil.example @someone #12",
    "`code` **bold** _em_ ~~gone~~ | a | b | $x$ \\",
    "&lt;b&gt; &#60;b&#62;",
    "\x1b[31mred\x1b[0m \x1b]0;title\x07 \x9b2J",
    "abc\u202edef\u2066ghi",
    "line\n# heading\n\n- item\r\n\x00\x08",
    "lone \ud800 surrogate",
]


def everywhere(text):
    """A result with the text in every place that a stranger's data may fill."""
    page = ranked(1, 2, text, [Evidence("user", text, text, 0.2, text)], text=f"{text} timeout {text}", doc_id=text)
    terms = [Term(text, source, text, text) for source in ("turn", "statement", "free")]
    return result(page, query=text, text=f"{text} timeout", terms=terms, notes=(text,))


class Tags(HTMLParser):
    def __init__(self, page):
        super().__init__()
        self.found, self.text = [], ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.found.append((tag, tuple(attrs)))

    def handle_data(self, data):
        self.text += data


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("format_", ["html", "fragment"])
def test_html_keeps_its_tags_whatever_the_text(format_, text):
    harmless = Tags(render(everywhere("harmless words"), format_))
    found = Tags(render(everywhere(text), format_))
    without_marks = [tag for tag in found.found if tag[0] != "mark"]
    assert without_marks == [tag for tag in harmless.found if tag[0] != "mark"]
    assert "49" not in found.text


@pytest.mark.parametrize("text", HOSTILE)
@pytest.mark.parametrize("template", ["text", "explain", "comparison"])
def test_a_terminal_gets_no_control_characters(template, text):
    shown = everywhere(text)
    plain = render_comparison(shown) if template == "comparison" else render(shown, template)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069\ud800-\udfff]", plain)
    assert "49" not in plain
    heads = [line for line in plain.splitlines() if line.startswith(("#", "-"))]
    assert heads == [line for line in heads if text.startswith("#")]


@pytest.mark.parametrize("text", HOSTILE)
def test_markdown_holds_no_html_links_or_new_lines_of_the_text(text):
    shown = render(everywhere(text), "md")
    assert len(shown.splitlines()) == len(render(everywhere("harmless words"), "md").splitlines())
    assert "<" not in shown
    assert ">" not in shown
    assert not re.search(r"(?<!\\)[\[\]`|~$]", shown)
    assert "://" not in shown
    assert not re.search(r"(?i)www\.", shown)
    assert "@" not in shown


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("wait_for a-b 3.5 (x)!", "wait_for a-b 3.5 (x)!"),
        ("1. one", "1\\. one"),
        ("- item", "\\- item"),
        ("snake_ _case", "snake\\_ \\_case"),
        ("a & b", "a &amp; b"),
        ("at 10:30", "at 10&#58;30"),
    ],
)
def test_markdown_escapes_what_must_be_and_leaves_the_rest_readable(text, expected):
    assert escape_markdown(text) == expected


# JSON


class Odd:
    def __str__(self):
        return "odd"


def test_json_is_valid_for_any_values():
    source = {
        "nan": float("nan"),
        "inf": [float("inf"), -1.5],
        "array": np.array([1.5, np.nan], np.float32),
        "count": np.int64(3),
        "lone": "\ud800",
        "odd": Odd(),
        7: (1, None, True),
        "bespeak_vector": [1.0],
    }
    page = (Ranked(Hit("d", float("nan"), 1, source), 1, float("inf"), (float("nan"), 0.0, 1.0)),)
    found = json.loads(render(result(*page), "json"), parse_constant=lambda name: pytest.fail(name))
    assert found["hits"][0]["source"] == {
        "nan": None,
        "inf": [None, -1.5],
        "array": [1.5, None],
        "count": 3,
        "lone": "\ufffd",
        "odd": "odd",
        "7": [1, None, True],
    }
    assert found["hits"][0]["score"] is None


@given(st.text(st.characters(), max_size=40))
def test_json_gives_the_text_back_and_holds_nothing_a_terminal_obeys(text):
    shown = render(everywhere(text), "json")
    assert json.loads(shown)["query"] == re.sub(r"[\ud800-\udfff]", "\ufffd", text)
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]", shown)
    shown.encode("utf-8")


def test_json_does_not_name_the_user():
    shown = render(result(*PAGE), "json")
    assert "ada" not in shown
    assert "acme" not in shown


# The user's own templates


@pytest.fixture
def folder(tmp_path):
    def write(**files):
        for name, text in files.items():
            (tmp_path / name.replace("__", ".")).write_text(text, "utf-8")
        return tmp_path

    return write


def test_own_templates_go_before_the_shipped_ones_and_fall_back_to_them(folder):
    own = folder(_hit__txt__j2="{{ hit.rank }}/{{ hit.title }}\n")
    shown = render(result(*PAGE), "text", own).splitlines()
    assert "1/asyncio.timeout" in shown
    assert "→ cancel tasks after a timeout" in shown


def test_own_template_by_file_name_is_escaped_by_its_kind(folder):
    own = folder(
        mine__html__j2="<p>{{ query }}</p>",
        mine__md__j2="{{ query }}",
        mine__json__j2='{"q": {{ query }}, "titles": {{ hits|map(attribute="title")|list|tojson }}}',
    )
    shown = everywhere("<b>[x](y)\"'")
    assert render(shown, "mine.html.j2", own) == "<p>&lt;b&gt;[x](y)&#34;&#39;</p>"
    assert render(shown, "mine.md.j2", own) == "&lt;b&gt;\\[x\\](y)\"'"
    assert json.loads(render(shown, "mine.json.j2", own)) == {"q": "<b>[x](y)\"'", "titles": ["<b>[x](y)\"'"]}


def test_own_json_template_stands_for_the_format(folder):
    own = folder(hits__json__j2='{"n": {{ hits|length }}, "why": {{ hits[0].why }}}')
    assert json.loads(render(result(*PAGE), "json", own))["n"] == 3


def test_markdown_macros_are_not_escaped_twice(folder):
    own = folder(mine__md__j2="{% macro m(x) %}**{{ x }}**{% endmacro %}{{ m(query) }}")
    assert render(everywhere("[x]"), "mine.md.j2", own) == "**\\[x\\]**"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one\n{% if %}\n", r"mine\.txt\.j2, line 2: Expected an expression"),
        ("one\ntwo\n{{ nothing_of_the_kind }}", r"mine\.txt\.j2, line 3: UndefinedError: .*nothing_of_the_kind"),
        ("{{ hits[0].rank / 0 }}", r"mine\.txt\.j2, line 1: ZeroDivisionError"),
        ("\n{{ ''.__class__.__mro__ }}", r"mine\.txt\.j2, line 2: SecurityError"),
        ("{% set x = hits.append(1) %}", r"mine\.txt\.j2, line 1: SecurityError"),
        ("{% include 'mine.txt.j2' %}", r"RecursionError"),
    ],
)
def test_a_broken_template_is_named_with_its_line(folder, text, expected):
    with pytest.raises(InputError, match=expected):
        render(result(*PAGE), "mine.txt.j2", folder(mine__txt__j2=text))


def test_a_template_that_makes_no_json_is_refused(folder):
    with pytest.raises(InputError, match=r"hits\.json\.j2 does not make JSON"):
        render(result(*PAGE), "json", folder(hits__json__j2="{{ query }}, {{ query }}"))


def test_a_template_that_is_not_utf8_is_refused(tmp_path):
    (tmp_path / "hits.txt.j2").write_bytes(b"\xff\xfe\xfa")
    with pytest.raises(InputError, match="is not UTF-8"):
        render(result(*PAGE), "text", tmp_path)


@pytest.mark.parametrize("name", ["nowhere.txt.j2", "../secret.txt.j2", "/etc/passwd"])
def test_a_missing_template_is_wrong_usage(tmp_path, name):
    with pytest.raises(UsageError, match="among the shipped ones"):
        render(result(*PAGE), name, tmp_path)


def test_a_missing_include_is_wrong_usage(folder):
    with pytest.raises(UsageError, match=r"the template gone\.j2 is neither in"):
        render(result(*PAGE), "text", folder(hits__txt__j2="{% include 'gone.j2' %}"))


def test_a_missing_folder_is_wrong_usage(tmp_path):
    with pytest.raises(UsageError, match="not a folder of templates"):
        render(result(*PAGE), "text", tmp_path / "gone")


def test_a_changed_template_is_read_again(folder):
    own = folder(mine__txt__j2="first")
    assert render(result(*PAGE), "mine.txt.j2", own) == "first"
    folder(mine__txt__j2="second, longer")
    os.utime(own / "mine.txt.j2", (1, 1))
    assert render(result(*PAGE), "mine.txt.j2", own) == "second, longer"
