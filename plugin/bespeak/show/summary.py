"""Extractive summaries: the sentences of a hit that answer the rewritten query best, with the matches marked."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice, pairwise
from typing import Any

from bespeak.engines import VECTOR_FIELD
from bespeak.records import Hit
from bespeak.show.sentences import read_blocks, split_sentences
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
"""How much of each hit is read, and of how many hits, to find which words of the query distinguish them."""
K1, B = 1.2, 0.75
LEAD = 0.3
"""The bonus of the first sentence; the second gets half of it, the third a third, and so on."""
SHORT_TERMS = 4
"""Sentences with fewer terms say little by themselves, so they count half."""


_QUESTION_TERMS = frozenset(
    terms(
        "how what when where which who whom whose why do does did done can could should would may might must shall i me"
        " my mine myself you your yours we us our he him his she her them"
        " theirs its itself has have had am were been being from about"
        " after before than so some any all more most much many just also only very please want need get tell"
    )
)
"""Words that a query asks with, not about. They are neither sought nor marked unless the query has no others."""


@dataclass(frozen=True, slots=True)
class Summary:
    """A clean line of text and the spans `text[start:end]` that match the query, in order and without overlap."""

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
    """A sentence of a text with the terms of the query that it holds."""

    text: str
    position: int  # in the text, from 0
    found: frozenset[str]  # terms of the query
    n_terms: int
    is_code: bool


def summarise_all(
    page: Sequence[Hit], query_text: str, hits: Sequence[Hit] = (), max_chars: int = 280
) -> list[Summary]:
    """A summary for each hit of a page: at most `max_chars` of the best sentences for the query, or else its lead.

    Words that are rare in `hits`, by default the page, count more.
    """
    asked = set(terms(query_text))
    weights = weigh_terms(asked - _QUESTION_TERMS or asked, hits or page)
    return [extract(body_of(hit.source)[:MAX_TEXT_CHARS], weights, max_chars) for hit in page]


def weigh_terms(query: set[str], hits: Sequence[Hit]) -> dict[str, float]:
    """The idf of each term of the query among the hits: ln(1 + (N - n + 0.5) / (n + 0.5)), above 0.

    Robertson and Zaragoza, The Probabilistic Relevance Framework: BM25 and Beyond (2009), in Lucene's form, which
    adds 1 inside the logarithm. With N = 3 hits of which n = 1 holds the word: ln(1 + 2.5 / 1.5) = 0.98.
    """
    counts: Counter[str] = Counter()
    for hit in hits[:IDF_HITS]:
        counts.update(query.intersection(terms(f"{title_of(hit.source)} {body_of(hit.source)[:IDF_CHARS]}")))
    n_hits = len(hits[:IDF_HITS])
    return {term: math.log(1 + (n_hits - counts[term] + 0.5) / (counts[term] + 0.5)) for term in query}


def extract(text: str, weights: Mapping[str, float], max_chars: int) -> Summary:
    """The best sentences of a text in their order, with an ellipsis for what is left out between them."""
    sentences = list(islice(read_sentences(text, weights), MAX_SENTENCES))
    if not sentences:
        return Summary("")
    chosen = choose_sentences(sentences, weights, max_chars)
    if len(chosen) == 1 and len(chosen[0].text) > max_chars:
        return mark(cut_around(chosen[0].text, weights, max_chars), weights)
    text = chosen[0].text
    for before, sentence in pairwise(chosen):
        text += join_between(before, sentence) + sentence.text
    return mark(text[:-1] + "…" if text.endswith(":") else text, weights)


def join_between(before: Sentence, after: Sentence) -> str:
    """An ellipsis if something is left out between the two, a dot after a heading or list item, otherwise a space."""
    if after.position != before.position + 1:
        return " … "
    return " " if before.text[-1] in ".!?…:;,。！？" or before.text[-2:-1] in ".!?" else " · "


def choose_sentences(sentences: Sequence[Sentence], weights: Mapping[str, float], max_chars: int) -> list[Sentence]:
    """The best sentence, then those with new terms or else its neighbours, as long as there is room; in text order."""
    mean = sum(sentence.n_terms for sentence in sentences) / len(sentences)
    best = max(sentences, key=lambda s: (worth(s, weights, mean), -s.position))
    chosen, room = [best], max_chars - len(best.text)
    while True:
        seen = frozenset[str]().union(*(s.found for s in chosen))
        positions = {s.position for s in chosen}
        fitting = [s for s in sentences if s.position not in positions and len(s.text) + len(" … ") <= room]
        fresh = [s for s in fitting if s.found - seen]
        after = [s for s in fitting if s.position - 1 in positions and not s.is_code]
        before = [s for s in fitting if s.position + 1 in positions and not s.is_code]
        candidates = fresh or after or before
        if not candidates:
            return sorted(chosen, key=lambda s: s.position)
        chosen.append(max(candidates, key=lambda s: (worth(s, weights, mean, seen), -s.position)))
        room -= len(chosen[-1].text) + len(" … ")


def worth(sentence: Sentence, weights: Mapping[str, float], mean: float, seen: frozenset[str] = frozenset()) -> float:
    """BM25 of the sentence within its text (Robertson and Zaragoza, 2009; each term counts once), times its lead.

    The lead favours the first sentences: Edmundson's location method (New Methods in Automatic Extracting, 1969). Terms
    in `seen` do not count. `mean` is the average number of terms in a sentence of the text.
    """
    length = K1 * (1 - B + B * sentence.n_terms / max(mean, 1.0))
    total = sum(weights[term] for term in sentence.found - seen) * (K1 + 1) / (1 + length)
    lead = 1 + LEAD / (1 + sentence.position)
    return total * lead * (0.5 if sentence.is_code or sentence.n_terms < SHORT_TERMS else 1.0)


def mark(text: str, weights: Mapping[str, float]) -> Summary:
    """The text with the words of the query marked. Words with only a space between them share a mark."""
    spans: list[tuple[int, int]] = []
    for term, start, end in tokens(text):
        if term not in weights:
            continue
        if spans and text[spans[-1][1] : start] == " ":
            start = spans.pop()[0]
        spans.append((start, end))
    return Summary(text, tuple(spans))


def cut_around(text: str, weights: Mapping[str, float], max_chars: int) -> str:
    """At most `max_chars` of a long text, cut between words around the best matches of the query."""
    room = max_chars - 2  # for the ellipses
    begin = max(0, min(densest(text, weights, room), len(text) - room))
    end = begin + room
    if begin and (space := text.find(" ", begin, begin + room // 4)) >= 0:
        begin = space + 1
    if end < len(text) and (space := text.rfind(" ", end - room // 4, end + 1)) >= 0:
        end = space
    return f"{'…' if begin else ''}{text[begin:end].strip()}{'…' if end < len(text) else ''}"


def densest(text: str, weights: Mapping[str, float], room: int) -> int:
    """Where the best `room` characters begin: a little before a match, with the greatest weight of distinct terms."""
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
    """The first title-like field, in the order of `TITLE_FIELDS`; "" if there is none."""
    return _first(_leaves(source), TITLE_FIELDS)


def body_of(source: Mapping[str, Any]) -> str:
    """The first body-like field, in the order of `BODY_FIELDS`, or else all other texts in the document's order."""
    leaves = list(_leaves(source))
    return _first(leaves, BODY_FIELDS) or "\n\n".join(text for name, text in leaves if name not in TITLE_FIELDS)


def _first(leaves: Iterator[tuple[str, str]] | Sequence[tuple[str, str]], names: Sequence[str]) -> str:
    texts: dict[str, str] = {}
    for name, text in leaves:
        texts.setdefault(name, text)
    return next((texts[name] for name in names if name in texts), "")


def _leaves(source: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The texts of a document, each with its field's name in lower case, outer fields before inner ones."""
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
    """The sentences of a text, each with the terms of the query that it holds."""
    position = 0
    for block, is_code in read_blocks(text):
        for part in split_sentences(block) if not is_code else [block]:
            if not (line := clean(part)):
                continue
            words = terms(line)
            yield Sentence(line, position, frozenset(word for word in words if word in query), len(words), is_code)
            position += 1
