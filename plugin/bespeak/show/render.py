"""A result shown: as text, Markdown, HTML or JSON, by templates that hostile documents cannot break out of."""

from __future__ import annotations

import json
import math
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal, TypeAlias

from jinja2 import (
    ChoiceLoader,
    FileSystemLoader,
    StrictUndefined,
    TemplateNotFound,
    TemplateSyntaxError,
    pass_context,
)
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment
from markupsafe import Markup, escape

from bespeak.engines import VECTOR_FIELD
from bespeak.errors import BespeakError, InputError, UsageError
from bespeak.models.catalogue import asset_folder
from bespeak.records import Evidence, Hit, Ranked, Result, Rewrite, Term
from bespeak.show.summary import Summary, summarise_all, title_of
from bespeak.show.terminal import beside, cells, clean, emphasise, fit, wrap

Kind: TypeAlias = Literal["txt", "md", "html", "json"]

TEMPLATES = {
    "text": "hits.txt.j2",
    "md": "hits.md.j2",
    "html": "hits.html.j2",
    "json": "hits.json.j2",
    "explain": "explain.txt.j2",
}
"""Format -> template. There is no JSON template but a user's own: without one the structure itself is written."""

NARROWEST = 40
TITLE_CHARS = 200
QUOTE_CHARS = 70
"""Longer quotes of queries, statements and titles are cut in the sentences about a hit."""


def render(result: Result, template: str, templates: Path | None = None, width: int = 80, colour: bool = False) -> str:
    """The result by one of the formats of `TEMPLATES` or a template's file name; the user's folder is looked in first.

    `width` is in cells and matters to text alone. Raises UsageError for a template or folder that is not there and
    InputError, with file and line, for one that cannot be read or run.
    """
    name = TEMPLATES.get(template, template)
    shown = as_dict(result)
    if template == "json" and not (templates and (templates / name).is_file()):
        return dumps(shown, indent=2)
    notes = {"rewrite_note": describe_rewrite(result.rewrite), "order_note": describe_order(result)}
    return fill(name, {**shown, **notes}, templates, width, colour)


def render_comparison(
    result: Result, n: int = 5, width: int = 80, colour: bool = False, templates: Path | None = None
) -> str:
    """The engine's own first `n` hits beside the first `n` of the page, with their moves; stacked where narrow."""
    own = sorted(result.hits.hits, key=lambda hit: hit.rank)[:n]
    rows = {
        "engine": [{"rank": hit.rank, "title": title(hit), "doc_id": hit.doc_id} for hit in own],
        "personal": [
            {"rank": r.rank, "title": title(r.hit), "doc_id": r.hit.doc_id, "moved": moved(r)} for r in result.page[:n]
        ],
    }
    return fill("comparison.txt.j2", rows, templates, width, colour)


def as_dict(result: Result) -> dict[str, Any]:
    """The result as lists, dicts, strings and finite numbers, for JSON and for templates; without who asked."""
    summaries = summarise_all([r.hit for r in result.page], result.rewrite.text, result.hits.hits)
    return {
        "query": result.request.query,
        "index": result.request.index,
        "offset": result.request.offset,
        "size": result.request.size,
        "rewrite": rewrite_dict(result.rewrite),
        "rerank": result.rerank,
        "weights": list(result.weights) if result.weights else None,
        "notes": [in_words(note) for note in result.notes],
        "total": result.hits.total,
        "took_ms": plain(result.hits.took_ms),
        "hits": [hit_dict(r, s, result) for r, s in zip(result.page, summaries, strict=True)],
    }


def rewrite_dict(rewrite: Rewrite) -> dict[str, Any]:
    """`sources` are the terms by where they come from, in their order."""
    sources: dict[str, list[str]] = {}
    for term in rewrite.terms:
        sources.setdefault(describe_term(term), []).append(term.text)
    return {
        "text": rewrite.text,
        "changed": rewrite.changed,
        "status": rewrite.status,
        "reason": rewrite.reason,
        "model": rewrite.model,
        "terms": [plain(asdict(term)) for term in rewrite.terms],
        "sources": [{"terms": terms, "why": origin} for origin, terms in sources.items()],
    }


def hit_dict(ranked: Ranked, summary: Summary, result: Result) -> dict[str, Any]:
    """`weighted` are the addends of the score, None where the weights are not known."""
    columns = ("lexical", "embedding", "user")
    weights = result.weights
    total = sum(weights) if weights else 0
    weighted = [w * s / total for w, s in zip(weights, ranked.scores, strict=True)] if weights and total else None
    return {
        "rank": ranked.rank,
        "doc_id": ranked.hit.doc_id,
        "title": title(ranked.hit),
        "summary": {"text": summary.text, "marks": [list(span) for span in summary.marks]},
        "why": why(ranked, len(result.hits.hits), result.rewrite.terms),
        "moved": moved(ranked),
        "engine": {"rank": ranked.hit.rank or None, "score": plain(ranked.hit.score)},
        "score": plain(ranked.score),
        "scores": dict(zip(columns, plain(ranked.scores), strict=True)),
        "weighted": dict(zip(columns, plain(weighted), strict=True)) if weighted else None,
        "evidence": [plain(asdict(evidence)) for evidence in ranked.evidence],
        "source": plain({name: value for name, value in ranked.hit.source.items() if name != VECTOR_FIELD}),
    }


def title(hit: Hit) -> str:
    """The hit's title, else its doc_id; a very long one is cut."""
    found = title_of(hit.source) or hit.doc_id
    return found if len(found) <= TITLE_CHARS else found[: TITLE_CHARS - 1] + "…"


def moved(ranked: Ranked) -> str:
    """From the engine's place to this one: ↑3, ↓1, =, or new for what the engine had not for the query as typed."""
    before = ranked.hit.rank
    if not before:
        return "new"
    if before == ranked.rank:
        return "="
    return f"↑{before - ranked.rank}" if before > ranked.rank else f"↓{ranked.rank - before}"


def why(ranked: Ranked, n_hits: int, terms: Sequence[Term] = ()) -> str:
    """One sentence: from where the hit came to its place, and by what; "" where the engine's place needs no reason.

    `n_hits` is how many the engine gave for the query as typed. At most the two strongest pieces of evidence are told,
    the second only if it gave a quarter of the first or more.
    """
    place, before = ranked.rank, ranked.hit.rank
    if before and place > before:
        return f"Down from {before}: other hits gained more."
    reason = ", and ".join(dict.fromkeys(tell_evidence(ranked, terms)))
    if place == before:
        return f"Still {place}: {reason}." if reason else ""
    if not before:
        found = f"Not among the engine's own {n_hits}" if ranked.hit.score > 0 else "Found by meaning, not by its words"
        return f"{found}{': ' + reason if reason else ''}."
    if not reason and ranked.scores[1] > ranked.scores[0]:
        reason = "it is closer to the query in meaning than in words"
    return f"Up from {before} of {n_hits}{': ' + reason if reason else ''}."


def tell_evidence(ranked: Ranked, terms: Sequence[Term]) -> Iterable[str]:
    """A clause for each piece of evidence worth telling; the words of one event are told together."""
    strongest = sorted(ranked.evidence, key=lambda e: -e.share)
    told: set[str] = set()
    for evidence in strongest:
        key = evidence.event_id or evidence.text
        if key in told or evidence.share < strongest[0].share / 4:
            continue
        told.add(key)
        if len(told) > 2:
            return
        yield tell(evidence, ranked, terms)


def tell(evidence: Evidence, ranked: Ranked, terms: Sequence[Term]) -> str:
    source = next((t.source for t in terms if t.event_id and t.event_id == evidence.event_id), "")
    action = evidence.action or source
    if evidence.column == "lexical":
        words = [e.text for e in ranked.evidence if e.column == "lexical" and e.event_id == evidence.event_id]
        return f"{listed(words)} {'come' if len(words) > 1 else 'comes'} from {ORIGINS.get(action, 'your history')}"
    if evidence.column == "embedding":
        if source:
            return f"it is close in meaning to {quote(evidence.text)} from {ORIGINS.get(source, 'your history')}"
        return f"it is close in meaning to your earlier query {quote(evidence.text)}"
    if action == "turn":
        return f"it is like your earlier query {quote(evidence.text)}"
    if action == "dislike":
        return f"it is unlike {quote(evidence.text)}, which you disliked"
    if action == "statement":
        return f"you said {quote(evidence.text)}"
    verb = DONE.get(action, "")
    if verb and evidence.text in (title_of(ranked.hit.source), ranked.hit.doc_id):
        return f"you {verb} {quote(evidence.text)} before"
    return f"it is like {quote(evidence.text)}, {'which you ' + verb if verb else 'from your history'}"


ORIGINS = {"turn": "earlier in this session", "statement": "what you said of yourself", "query": "the query"}
DONE = {
    "click": "clicked",
    "view": "viewed",
    "watch": "watched",
    "add_to_cart": "put in the cart",
    "purchase": "bought",
    "rating": "rated well",
}
"""UBI `action_name` -> what the user did."""

REASONS = {
    "stranger": "nothing is known of this user",
    "refused": "this user paused personalisation",
    "no_history": "nothing known concerns the query",
    "quoted": "the query is quoted",
    "identifier": "the query is an identifier or code",
    "operators": "the query uses operators",
    "too_long": "the query is too long to be rewritten",
    "other_language": "the query is in a language the rewriter does not know",
    "certain": "the engine's answer is certain already",
}
"""Why a query was left alone, by the gate's names."""


def in_words(reason: str) -> str:
    return REASONS.get(reason, reason)


def describe_rewrite(rewrite: Rewrite) -> str:
    """What became of the query, where it is asked as typed; "" where it was rewritten."""
    if rewrite.changed:
        return ""
    reason = in_words(rewrite.reason)
    said = {
        "gated": reason or "the query needs nothing",
        "late": "the rewriter took too long",
        "failed": f"the rewriter failed{f' ({reason})' if reason else ''}",
        "dropped": "the rewrite finds nothing of use",
        "off": "no rewriter",
    }
    return f"asked as typed: {said.get(rewrite.status, 'nothing to add')}"


def describe_order(result: Result) -> str:
    return {
        "full": "reranked for this user",
        "partial": "reranked in part",
        "late": "the engine's order: reranking took too long",
        "failed": "the engine's order: reranking failed",
        "off": "the engine's order",
    }[result.rerank]


def describe_term(term: Term) -> str:
    """Where a word of the rewrite comes from."""
    quoted = quote(term.evidence) if term.evidence else ""
    return {
        "turn": f"earlier in this session: {quoted}" if quoted else "earlier in this session",
        "statement": f"you said {quoted}" if quoted else "what you said of yourself",
        "query": "a word of the query",
        "function": "a joining word",
        "free": "the model's own word",
    }[term.source]


def quote(text: str) -> str:
    line = clean(text)
    if len(line) > QUOTE_CHARS:
        line = line[: QUOTE_CHARS - 1].rsplit(" ", 1)[0] + "…"
    return f"“{line}”"


def listed(words: Sequence[str]) -> str:
    """“a”, “b” and “c”."""
    quoted = [quote(word) for word in dict.fromkeys(words)]
    return " and ".join([", ".join(quoted[:-1]), quoted[-1]] if len(quoted) > 1 else quoted)


# JSON: valid for every reader and harmless on a terminal, whatever the documents hold.

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_OBEYED = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def plain(value: Any) -> Any:
    """As JSON can hold it: not a number and infinity become null, lone surrogates U+FFFD, anything strange a string."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {plain(str(name)): plain(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [plain(inner) for inner in value]
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        return plain(value.tolist())
    return plain(str(value))


def dumps(value: Any, indent: int | None = None) -> str:
    """JSON with every control and bidirectional character escaped."""
    text = json.dumps(plain(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


# Templates


def fill(name: str, context: Mapping[str, Any], templates: Path | None, width: int, colour: bool) -> str:
    """The template's output for this context; each string of it is one clean line, except for JSON."""
    kind = kind_of(name)
    values = plain(context) if kind == "json" else cleaned(plain(context))
    text = run_template(name, {**values, "width": max(width, NARROWEST), "colour": colour}, kind, templates)
    if kind == "json":
        return checked(text, name)
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def kind_of(name: str) -> Kind:
    kinds: dict[str, Kind] = {".md": "md", ".html": "html", ".json": "json"}
    return kinds.get(Path(name.removesuffix(".j2")).suffix, "txt")


def cleaned(value: Any) -> Any:
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(name): cleaned(inner) for name, inner in value.items()}
    return [cleaned(inner) for inner in value] if isinstance(value, list) else value


def checked(text: str, name: str) -> str:
    try:
        json.loads(text)
    except ValueError as error:
        raise InputError(f"the template {name} does not make JSON ({error}): correct it") from error
    return text.strip()


def run_template(name: str, values: Mapping[str, Any], kind: Kind, templates: Path | None) -> str:
    if templates and not templates.is_dir():
        raise UsageError(f"{templates} is not a folder of templates: give one that exists")
    try:
        return environment(kind, templates).get_template(name).render(values)
    except TemplateNotFound as error:
        where = f"neither in {templates} nor among the shipped ones" if templates else "not among the shipped ones"
        raise UsageError(f"the template {error.name} is {where}: name one that exists") from error
    except TemplateSyntaxError as error:
        raise InputError(f"{error.filename or name}, line {error.lineno}: {error.message}") from error
    except UnicodeDecodeError as error:
        raise InputError(f"the template {name}, or one that it includes, is not UTF-8: save it as UTF-8") from error
    except OSError as error:
        raise InputError(f"the template {error.filename or name} cannot be read: {error.strerror}") from error
    except BespeakError:
        raise
    except Exception as error:  # a template may run into anything; it is the template's fault and is said to be
        raise InputError(f"{place_of(error, name)}: {type(error).__name__}: {error}") from error


def place_of(error: Exception, name: str) -> str:
    """File and line of the template that the error came from."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(".j2")]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else name


@lru_cache(maxsize=16)
def environment(kind: Kind, templates: Path | None) -> ImmutableSandboxedEnvironment:
    """A sandbox in which whatever is printed is escaped as the kind of file needs it."""
    folders = [templates, asset_folder("templates")] if templates else [asset_folder("templates")]
    made = ImmutableSandboxedEnvironment(
        loader=ChoiceLoader([FileSystemLoader(folder) for folder in folders]),
        undefined=StrictUndefined,
        autoescape=kind != "txt",  # in Markdown and JSON it only keeps apart what is escaped already
        finalize=FINALIZE.get(kind),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_function"] = dumps
    made.policies["json.dumps_kwargs"] = {}
    made.filters.update(marked=MARKED[kind], style=style, block=block, columns=columns, cells=cells)
    made.globals.update(beside=beside_blocks)
    return made


def ready(encode: Callable[[Any], str]) -> Callable[[Any], Any]:
    """What is escaped already stays; all else is encoded."""
    return lambda value: value if isinstance(value, Markup) else Markup(encode(value))


_MARKDOWN = re.compile(
    r"[\\`*\[\]#|~^$]"
    r"|(?<!\w)_|_(?!\w)"
    r"|(?i:(?<=www)\.)"
    r"|(?<=^\d)[.)]|(?<=^\d\d)[.)]|(?<=^\d\d\d)[.)]|^[-+=]"  # a list or an underline, at the start of a line
)
_ENTITIES = {
    "<": "&lt;",
    ">": "&gt;",
    "&": "&amp;",
    ":": "&#58;",
    "@": "&#64;&#8288;",  # GitHub makes links of addresses after entities are read: a word joiner parts them
}


def escape_markdown(value: Any) -> str:
    """Text that Markdown, GitHub's too, shows as it is: no emphasis, links, images, HTML, mentions or headings.

    >>> escape_markdown("[a](b) <i> wait_for http://c")
    '\\\\[a\\\\](b) &lt;i&gt; wait_for http&#58;//c'
    """
    text = _MARKDOWN.sub(r"\\\g<0>", clean(str(value)))
    return re.sub(r"[<>&@]|:(?=\S)", lambda found: _ENTITIES[found[0]], text)


FINALIZE: dict[Kind, Callable[[Any], Any]] = {"md": ready(escape_markdown), "json": ready(dumps)}


def parts_of(summary: Mapping[str, Any]) -> list[tuple[str, bool]]:
    return Summary(summary["text"], tuple((start, end) for start, end in summary["marks"])).parts()


@pass_context
def mark_text(context: Context, summary: Mapping[str, Any]) -> str:
    """Bold and coloured on a terminal, *between asterisks* elsewhere."""
    colour = context["colour"]
    return "".join(
        (emphasise(text, "match") if colour else f"*{text}*") if found else text for text, found in parts_of(summary)
    )


def mark_markdown(summary: Mapping[str, Any]) -> Markup:
    pieces = [(escape_markdown_part(text), found) for text, found in parts_of(summary)]
    return Markup("".join(f"**{text}**" if found else text for text, found in pieces))


def escape_markdown_part(text: str) -> str:
    """Keeps the spaces at the ends, which `clean` would take."""
    inner = text.strip()
    start = text.index(inner)
    return text[:start] + escape_markdown(inner) + text[start + len(inner) :]


def mark_html(summary: Mapping[str, Any]) -> Markup:
    marked = Markup("<mark>{}</mark>")
    return Markup("").join(marked.format(text) if found else escape(text) for text, found in parts_of(summary))


MARKED: dict[Kind, Callable[..., str]] = {
    "txt": mark_text,
    "md": mark_markdown,
    "html": mark_html,
    "json": lambda summary: "".join(text for text, _ in parts_of(summary)),
}


@pass_context
def style(context: Context, text: str, name: str) -> str:
    return emphasise(str(text), name) if context["colour"] else str(text)


@pass_context
def block(context: Context, text: str, indent: int = 0, first: str = "", width: int | None = None) -> str:
    """The text wrapped to the width, each line indented; `first` stands in the indent of the first line."""
    indent = max(indent, cells(first) + 1) if first else indent
    room = max((width or context["width"]) - indent, 8)
    head = first + " " * (indent - cells(first))
    return "\n".join((head if i == 0 else " " * indent) + line for i, line in enumerate(wrap(str(text), room) or [""]))


def columns(values: Sequence[Any], width: int, indent: int = 0) -> str:
    """One line of a table: each value in a column of `width` cells."""
    return " " * indent + "".join(fit(str(value), width - 1) + " " for value in values)


def beside_blocks(left: str, right: str, width: int) -> str:
    """Two blocks of lines in columns, the right one `width` cells from the left edge."""
    return "\n".join(beside(left.splitlines(), right.splitlines(), width))
