"""Extractive summaries: the sentences of a hit that answer the rewritten query best, with the matched words marked."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

from bespeak.engines import VECTOR_FIELD
from bespeak.records import Hit
from bespeak.show.terminal import clean
from bespeak.text.analysis import terms, tokens

TITLE_FIELDS = ("title", "name", "label", "heading", "headline", "subject")
BODY_FIELDS = (
    "text",
    "body",
    "content",
    "contents",
    "description",
    "abstract",
    "summary",
    "passage",
    "snippet",
    "plot",
    "overview",
)
MAX_TEXT_CHARS = 20_000
MAX_SENTENCES = 500
"""How much of a hit's text is read for its summary."""
IDF_CHARS = 4_000
IDF_HITS = 100
"""How much of how many hits is read to see which words of the query tell them apart."""
K1, B = 1.2, 0.75
LEAD = 0.3
"""How much more the first sentence counts than one far below; the second gets half of it, and so on."""
SHORT_TOKENS = 4
"""Sentences with fewer terms tell little by themselves: they count half."""


_QUESTION_TERMS = frozenset(
    terms(
        "how what when where which who whom whose why do does did done can could should would may might must shall i me"
        " my mine myself you your yours we us our he him his she her them"
        " theirs its itself has have had am were been being from about"
        " after before than so some any all more most much many just also only very please want need get tell"
    )
)
"""What a query is asked with rather than about: neither sought nor marked where the query says anything else."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A clean line of text and the spans `text[start:end]` that match the query, in order, none overlapping."""

    text: str
    marks: tuple[tuple[int, int], ...] = ()

    def parts(self) -> list[tuple[str, bool]]:
        """The text cut at its marks: each piece with whether it is marked.

        >>> Summary("a red fox", ((2, 5),)).parts()
        [('a ', False), ('red', True), (' fox', False)]
        """
        found, done = [], 0
        for start, end in self.marks:
            found += [(self.text[done:start], False), (self.text[start:end], True)]
            done = end
        return [(text, marked) for text, marked in [*found, (self.text[done:], False)] if text]


@dataclass(frozen=True, slots=True)
class Sentence:
    """`place` counts from 0; `found` are the query's terms in it."""

    text: str
    place: int
    found: frozenset[str]
    n_terms: int
    is_code: bool


def summarise(hit: Hit, query_text: str, hits: Sequence[Hit] = (), max_chars: int = 280) -> Summary:
    """The sentences of one hit that answer the query best, at most `max_chars` characters; its lead where none does."""
    return summarise_all([hit], query_text, hits, max_chars)[0]


def summarise_all(
    page: Sequence[Hit], query_text: str, hits: Sequence[Hit] = (), max_chars: int = 280
) -> list[Summary]:
    """A summary for each hit of a page; `hits`, the window, is read once to see which words tell its hits apart."""
    asked = set(terms(query_text))
    weights = weigh_terms(asked - _QUESTION_TERMS or asked, hits or page)
    return [extract(body_of(hit.source)[:MAX_TEXT_CHARS], weights, max_chars) for hit in page]


def weigh_terms(query: set[str], hits: Sequence[Hit]) -> dict[str, float]:
    """The idf of each term of the query over the hits: ln(1 + (N - n + 0.5) / (n + 0.5)), above 0.

    Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond (2009), in Lucene's form, which
    adds 1 inside the logarithm. With N = 3 hits of which n = 1 holds the word: ln(1 + 2.5 / 1.5) = 0.98.
    """
    counts: Counter[str] = Counter()
    for hit in hits[:IDF_HITS]:
        counts.update(query.intersection(terms(f"{title_of(hit.source)} {body_of(hit.source)[:IDF_CHARS]}")))
    n_hits = len(hits[:IDF_HITS])
    return {term: math.log(1 + (n_hits - counts[term] + 0.5) / (counts[term] + 0.5)) for term in query}


def extract(text: str, weights: Mapping[str, float], max_chars: int) -> Summary:
    """The best sentences of a text in their order, an ellipsis where something between them is left out."""
    sentences = list(islice(read_sentences(text, weights), MAX_SENTENCES))
    if not sentences:
        return Summary("")
    chosen = choose(sentences, weights, max_chars)
    if len(chosen) == 1 and len(chosen[0].text) > max_chars:
        return mark(cut_around(chosen[0].text, weights, max_chars), weights)
    text = chosen[0].text
    for before, sentence in pairwise(chosen):
        text += join_between(before, sentence) + sentence.text
    return mark(text[:-1] + "…" if text.endswith(":") else text, weights)


def join_between(before: Sentence, after: Sentence) -> str:
    """An ellipsis where something was left out, a dot after a heading or an item of a list, else a space."""
    if after.place != before.place + 1:
        return " … "
    return " " if before.text[-1] in ".!?…:;,。！？" or before.text[-2:-1] in ".!?" else " · "


def choose(sentences: Sequence[Sentence], weights: Mapping[str, float], max_chars: int) -> list[Sentence]:
    """The best sentence, then what adds most that is new, else its neighbours, while there is room; in text order."""
    mean = sum(sentence.n_terms for sentence in sentences) / len(sentences)
    best = max(sentences, key=lambda s: (worth(s, weights, mean), -s.place))
    chosen, room = [best], max_chars - len(best.text)
    while True:
        seen = frozenset[str]().union(*(s.found for s in chosen))
        places = {s.place for s in chosen}
        fitting = [s for s in sentences if s.place not in places and len(s.text) + len(" … ") <= room]
        fresh = [s for s in fitting if s.found - seen]
        after = [s for s in fitting if s.place - 1 in places and not s.is_code]
        before = [s for s in fitting if s.place + 1 in places and not s.is_code]
        candidates = fresh or after or before
        if not candidates:
            return sorted(chosen, key=lambda s: s.place)
        chosen.append(max(candidates, key=lambda s: (worth(s, weights, mean, seen), -s.place)))
        room -= len(chosen[-1].text) + len(" … ")


def worth(sentence: Sentence, weights: Mapping[str, float], mean: float, seen: frozenset[str] = frozenset()) -> float:
    """BM25 of the sentence among its text's (Robertson and Zaragoza, 2009; each term counts once), times its place.

    That the first sentences tell most is Edmundson's location method (New Methods in Automatic Extracting, 1969).
    Terms in `seen` no longer count.
    """
    length = K1 * (1 - B + B * sentence.n_terms / max(mean, 1.0))
    total = sum(weights[term] for term in sentence.found - seen) * (K1 + 1) / (1 + length)
    lead = 1 + LEAD / (1 + sentence.place)
    return total * lead * (0.5 if sentence.is_code or sentence.n_terms < SHORT_TOKENS else 1.0)


def mark(text: str, weights: Mapping[str, float]) -> Summary:
    """The text with the words of the query marked; words with only a space between them are one mark."""
    spans: list[tuple[int, int]] = []
    for term, start, end in tokens(text):
        if term not in weights:
            continue
        if spans and text[spans[-1][1] : start] == " ":
            start = spans.pop()[0]
        spans.append((start, end))
    return Summary(text, tuple(spans))


def cut_around(text: str, weights: Mapping[str, float], max_chars: int) -> str:
    """At most `max_chars` of a long text, where the words of the query are worth most, cut between words."""
    room = max_chars - 2  # for the ellipses
    begin = max(0, min(densest(text, weights, room), len(text) - room))
    end = begin + room
    if begin and (space := text.find(" ", begin, begin + room // 4)) >= 0:
        begin = space + 1
    if end < len(text) and (space := text.rfind(" ", end - room // 4, end + 1)) >= 0:
        end = space
    return f"{'…' if begin else ''}{text[begin:end].strip()}{'…' if end < len(text) else ''}"


def densest(text: str, weights: Mapping[str, float], room: int) -> int:
    """Where to begin, a little before a match, so that the next `room` characters hold the most, each term once."""
    spots = [(start, term) for term, start, _ in tokens(text) if term in weights]
    inside: Counter[str] = Counter()
    best, best_begin, right = 0.0, 0, 0
    for start, term in spots:
        begin = max(0, start - room // 4)
        while right < len(spots) and spots[right][0] < begin + room:
            inside[spots[right][1]] += 1
            right += 1
        total = sum(weights[t] for t, n in inside.items() if n)
        if total > best:
            best, best_begin = total, begin
        inside[term] -= 1
    return best_begin


def title_of(source: Mapping[str, Any]) -> str:
    """The first title-like field, in the order of `TITLE_FIELDS`; "" where there is none."""
    return _first(_leaves(source), TITLE_FIELDS)


def body_of(source: Mapping[str, Any]) -> str:
    """The first body-like field, in the order of `BODY_FIELDS`; else all other texts, in the document's order."""
    leaves = list(_leaves(source))
    return _first(leaves, BODY_FIELDS) or "\n\n".join(text for name, text in leaves if name not in TITLE_FIELDS)


def _first(leaves: Iterator[tuple[str, str]] | Sequence[tuple[str, str]], names: Sequence[str]) -> str:
    texts: dict[str, str] = {}
    for name, text in leaves:
        texts.setdefault(name, text)
    return next((texts[name] for name in names if name in texts), "")


def _leaves(source: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The texts of a document, each with its field's name in lower case; outer fields before inner ones."""
    inner = []
    for name, value in source.items():
        if name == VECTOR_FIELD:
            continue
        if isinstance(value, Mapping):
            inner.append(value)
        elif isinstance(value, str) and value.strip():
            yield name.rsplit(".", 1)[-1].lower(), value
        elif isinstance(value, list | tuple) and (texts := [v for v in value if isinstance(v, str) and v.strip()]):
            yield name.rsplit(".", 1)[-1].lower(), "\n\n".join(texts)
    for value in inner:
        yield from _leaves(value)


def read_sentences(text: str, query: Mapping[str, float]) -> Iterator[Sentence]:
    """The sentences of a text, with the query's terms that each holds."""
    place = 0
    for block, is_code in read_blocks(text):
        for part in split_sentences(block) if not is_code else [block]:
            if not (line := clean(part)):
                continue
            words = terms(line)
            yield Sentence(line, place, frozenset(word for word in words if word in query), len(words), is_code)
            place += 1


_DIRECTIVE = re.compile(r"\s*\.\. +(?:[\w:-]+::.*|_[^:]+:.*|\[.+)?$")
_UNDERLINE = re.compile(r"\s*([=\-~^\"'*+#_`.:])\1{2,}\s*$")
_CODE = re.compile(r"\s*(?:>>>|\.\.\.(?=\s|$)|\$ |In \[\d+\]:)")
_ITEM = re.compile(r"\s*(?:[-*+•‣◦·–]|\(?\d{1,3}[.)]|\(?[a-zA-Z]\)|#\.)\s+(?=\S)|\s*[:@](?=\w[^:\n]*: )|\s*#{1,6} ")


def read_blocks(text: str) -> Iterator[tuple[str, bool]]:
    """The paragraphs, list items and headings of a text, and each run of code, with whether it is code.

    Knows reStructuredText as docstrings have it: fields and items start a block, directives and the lines under
    headings show nothing, what is indented after `::` is code.
    """
    block: list[str] = []
    code_indent = -1  # of the line that announced code; -1 outside of code
    was_code = False
    for line in [*text.expandtabs(4).splitlines(), ""]:
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent <= code_indent:
            code_indent = -1
        is_code = bool(line.strip()) and (code_indent >= 0 or bool(_CODE.match(line)))
        heading = bool(_UNDERLINE.match(line))
        starts = not line.strip() or heading or bool(_ITEM.match(line)) or bool(_DIRECTIVE.match(line))
        if block and (starts or is_code != was_code):
            yield " ".join(block) if was_code else plain(" ".join(block)), was_code
            block = []
        if line.strip() and not heading and (is_code or not _DIRECTIVE.match(line)):
            item = None if is_code else _ITEM.match(line)
            block.append(line[item.end() if item else 0 :].strip())
        if not is_code and line.rstrip().endswith("::"):
            code_indent = indent
        was_code = is_code


_ROLE = re.compile(r"(?<![\w:]):(?:[\w+-]+:)+`~?([^`<]+?)(?:\s*<[^`>]*>)?`")
_LITERAL = re.compile(r"``([^`]+)``|`([^`]+)`_{0,2}")
_EMPHASIS = re.compile(r"(?<![\w*])\*{1,2}(\w(?:[^*\n]*[\w.!?])?)\*{1,2}(?![\w*])")


def plain(text: str) -> str:
    """Without the markup of reStructuredText and Markdown that would only disturb a summary.

    >>> plain("Run :meth:`~asyncio.Task.cancel` with ``msg`` *set*, not *args or **kwargs::")
    'Run asyncio.Task.cancel with msg set, not *args or **kwargs:'
    """
    text = _EMPHASIS.sub(r"\1", _LITERAL.sub(lambda m: m[1] or m[2], _ROLE.sub(r"\1", text)))
    return text[:-1] if text.endswith("::") else text


_ABBREVIATIONS = re.compile(
    r"e\.g|i\.e|etc|mr|mrs|ms|dr|prof|st|vs|cf|al|eds?|approx|inc|ltd|corp|jr|sr|dept|est|a\.m|p\.m|u\.s|u\.k|ca|resp"
    r"|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec|gen|gov|sen|rep|rev|hon|bzw|z\.b|d\.h"
)
_BEFORE_NUMBER = re.compile(r"figs?|nos?|vol|sec|ch|pp?|eqs?|art")
_END = re.compile(
    r"(?<![.!?…])[.!?…]+[\"'”’»)\]*]*\s+(?=[^\sa-z])"  # before a capital, a digit, a quote, other scripts
    r"|(?<![。！？｡])[。！？｡]+[”’」』）]*\s*"
    r"|(?<!\s)\s+(?:[|·»•¦]\s+|(?:--|[–—])\s+(?=[A-Z]))"  # titles and menus that were run together
)


def split_sentences(text: str) -> list[str]:
    """The sentences of one paragraph; abbreviations, initials, numbers and dotted names end none.

    >>> split_sentences("Dr. J. Smith ran v3.11 today. Did it work? Yes.")
    ['Dr. J. Smith ran v3.11 today.', 'Did it work?', 'Yes.']
    """
    found, start = [], 0
    for end in _END.finditer(text):
        if end[0][0] == "." and _is_abbreviated(text[start : end.start()], text[end.end() : end.end() + 1]):
            continue
        stops = 0 if end[0][0].isspace() else len(end[0].rstrip())
        found.append(text[start : end.start() + stops])
        start = end.end()
    return [*found, text[start:]]


def _is_abbreviated(before: str, after: str) -> bool:
    """Whether the full stop between the two belongs to the word before it."""
    words = before.rsplit(None, 1)
    word = words[-1].lstrip("(\"'“‘[") if words else ""
    if len(word) == 1 and word.isupper():  # an initial
        return True
    if after.isdigit() and _BEFORE_NUMBER.fullmatch(word.lower()):
        return True
    return bool(_ABBREVIATIONS.fullmatch(word.lower()))
