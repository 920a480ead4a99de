"""Jinja templates that hostile documents cannot break out of, for text, Markdown, HTML and JSON."""

from __future__ import annotations

import json
import math
import re
import traceback
from collections.abc import Callable, Mapping, Sequence
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

from bespeak.errors import BespeakError, InputError, UsageError
from bespeak.models.catalogue import asset_folder
from bespeak.show.summary import Summary
from bespeak.show.terminal import beside, cells, clean, emphasise, fit, wrap

Kind: TypeAlias = Literal["txt", "md", "html", "json"]

NARROWEST = 40
"""The least width that a template sees, in cells."""

_SURROGATE = re.compile(r"[\ud800-\udfff]")
_OBEYED = re.compile(r"[\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")


def json_value(value: Any) -> Any:
    """The value as JSON can hold it: NaN and infinity become null, lone surrogates U+FFFD, unknown types strings."""
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, str):
        return _SURROGATE.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {json_value(str(name)): json_value(inner) for name, inner in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [json_value(inner) for inner in value]
    if hasattr(value, "tolist"):  # numpy's arrays and scalars
        return json_value(value.tolist())
    return json_value(str(value))


def dumps(value: Any, indent: int | None = None) -> str:
    """The value as JSON with every control and bidirectional character escaped."""
    text = json.dumps(json_value(value), ensure_ascii=False, allow_nan=False, indent=indent)
    return _OBEYED.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def fill(name: str, context: Mapping[str, Any], templates: Path | None, width: int, colour: bool) -> str:
    """The output of a template for this context. Each string of the context becomes one clean line, but not for JSON.

    Raises UsageError for a template or folder that does not exist, and InputError, with file and line, for a faulty
    template.
    """
    kind = kind_of(name)
    values = json_value(context) if kind == "json" else cleaned(json_value(context))
    text = run_template(name, {**values, "width": max(width, NARROWEST), "colour": colour}, kind, templates)
    if kind == "json":
        return checked_json(text, name)
    return "\n".join(line.rstrip() for line in text.strip("\n").splitlines())


def kind_of(name: str) -> Kind:
    """The kind of file that a template makes, by its name."""
    kinds: dict[str, Kind] = {".md": "md", ".html": "html", ".json": "json"}
    return kinds.get(Path(name.removesuffix(".j2")).suffix, "txt")


def cleaned(value: Any) -> Any:
    """The value with every string as one line without control characters."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, dict):
        return {clean(name): cleaned(inner) for name, inner in value.items()}
    return [cleaned(inner) for inner in value] if isinstance(value, list) else value


def checked_json(text: str, name: str) -> str:
    """The text, if it is JSON. Raises InputError otherwise."""
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
    except Exception as error:  # a template can raise anything, and the fault is the template's
        raise InputError(f"{error_location(error, name)}: {type(error).__name__}: {error}") from error


def error_location(error: Exception, name: str) -> str:
    """File and line of the template that raised the error."""
    frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename.endswith(".j2")]
    return f"{frames[-1].filename}, line {frames[-1].lineno}" if frames else name


@lru_cache(maxsize=16)
def environment(kind: Kind, templates: Path | None) -> ImmutableSandboxedEnvironment:
    """A sandbox that escapes whatever is printed, as the kind of file needs it."""
    folders = [templates, asset_folder("templates")] if templates else [asset_folder("templates")]
    made = ImmutableSandboxedEnvironment(
        loader=ChoiceLoader([FileSystemLoader(folder) for folder in folders]),
        undefined=StrictUndefined,
        autoescape=kind != "txt",  # for Markdown and JSON it only marks what is already escaped
        finalize=FINALIZE.get(kind),
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.policies["json.dumps_function"] = dumps
    made.policies["json.dumps_kwargs"] = {}
    made.filters.update(marked=MARKED[kind], style=style, block=block, columns=columns, cells=cells)
    made.globals.update(beside=beside_blocks)
    return made


def unless_escaped(encode: Callable[[Any], str]) -> Callable[[Any], Any]:
    """A function that encodes a value, unless it is already escaped."""
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
    "@": "&#64;&#8288;",  # GitHub links addresses after it decodes entities: a word joiner prevents that
}


def escape_markdown(value: Any) -> str:
    """The text escaped so that Markdown, also GitHub's, shows it as it is: without emphasis, links, HTML or mentions.

    >>> escape_markdown("[a](b) <i> wait_for http://c")
    '\\\\[a\\\\](b) &lt;i&gt; wait_for http&#58;//c'
    """
    text = _MARKDOWN.sub(r"\\\g<0>", clean(str(value)))
    return re.sub(r"[<>&@]|:(?=\S)", lambda found: _ENTITIES[found[0]], text)


FINALIZE: dict[Kind, Callable[[Any], Any]] = {"md": unless_escaped(escape_markdown), "json": unless_escaped(dumps)}


def pieces_of(summary: Mapping[str, Any]) -> list[tuple[str, bool]]:
    return Summary(summary["text"], tuple((start, end) for start, end in summary["marks"])).parts()


@pass_context
def mark_text(context: Context, summary: Mapping[str, Any]) -> str:
    """The summary with its matches bold and coloured on a terminal, *between asterisks* elsewhere."""
    colour = context["colour"]
    return "".join(
        (emphasise(text, "match") if colour else f"*{text}*") if found else text for text, found in pieces_of(summary)
    )


def mark_markdown(summary: Mapping[str, Any]) -> Markup:
    pieces = [(escape_markdown_piece(text), found) for text, found in pieces_of(summary)]
    return Markup("".join(f"**{text}**" if found else text for text, found in pieces))


def escape_markdown_piece(text: str) -> str:
    """The text escaped, with the spaces at its ends, which `clean` would remove."""
    inner = text.strip()
    start = text.index(inner)
    return text[:start] + escape_markdown(inner) + text[start + len(inner) :]


def mark_html(summary: Mapping[str, Any]) -> Markup:
    marked = Markup("<mark>{}</mark>")
    return Markup("").join(marked.format(text) if found else escape(text) for text, found in pieces_of(summary))


MARKED: dict[Kind, Callable[..., str]] = {
    "txt": mark_text,
    "md": mark_markdown,
    "html": mark_html,
    "json": lambda summary: "".join(text for text, _ in pieces_of(summary)),
}


@pass_context
def style(context: Context, text: str, name: str) -> str:
    return emphasise(str(text), name) if context["colour"] else str(text)


@pass_context
def block(context: Context, text: str, indent: int = 0, first: str = "", width: int | None = None) -> str:
    """The text wrapped to the width, each line indented. `first` stands in the indent of the first line."""
    indent = max(indent, cells(first) + 1) if first else indent
    room = max((width or context["width"]) - indent, 8)
    head = first + " " * (indent - cells(first))
    return "\n".join((head if i == 0 else " " * indent) + line for i, line in enumerate(wrap(str(text), room) or [""]))


def columns(values: Sequence[Any], width: int, indent: int = 0) -> str:
    """A table row: each value in a column of `width` cells."""
    return " " * indent + "".join(fit(str(value), width - 1) + " " for value in values)


def beside_blocks(left: str, right: str, width: int) -> str:
    """Two blocks of lines side by side, the right one `width` cells from the left edge."""
    return "\n".join(beside(left.splitlines(), right.splitlines(), width))
