"""The paragraphs and sentences of a text, such as a document or a docstring."""

from __future__ import annotations

import re
from collections.abc import Iterator

_DIRECTIVE = re.compile(r"\s*\.\. +(?:[\w:-]+::.*|_[^:]+:.*|\[.+)?$")
_UNDERLINE = re.compile(r"\s*([=\-~^\"'*+#_`.:])\1{2,}\s*$")
_CODE = re.compile(r"\s*(?:>>>|\.\.\.(?=\s|$)|\$ |In \[\d+\]:)")
_ITEM = re.compile(r"\s*(?:[-*+•‣◦·–]|\(?\d{1,3}[.)]|\(?[a-zA-Z]\)|#\.)\s+(?=\S)|\s*[:@](?=\w[^:\n]*: )|\s*#{1,6} ")


def read_blocks(text: str) -> Iterator[tuple[str, bool]]:
    """The paragraphs, list items, headings and runs of code of a text, each with whether it is code.

    Understands the reStructuredText of docstrings: fields and items start a block, directives and the lines under
    headings are left out, and indented lines after `::` are code.
    """
    block: list[str] = []
    code_indent = -1  # of the line that announced the code; -1 outside code
    was_code = False
    for line in [*text.expandtabs(4).splitlines(), ""]:
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent <= code_indent:
            code_indent = -1
        is_code = bool(line.strip()) and (code_indent >= 0 or bool(_CODE.match(line)))
        heading = bool(_UNDERLINE.match(line))
        starts = not line.strip() or heading or bool(_ITEM.match(line)) or bool(_DIRECTIVE.match(line))
        if block and (starts or is_code != was_code):
            yield " ".join(block) if was_code else without_markup(" ".join(block)), was_code
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


def without_markup(text: str) -> str:
    """The text without the markup of reStructuredText and Markdown.

    >>> without_markup("Run :meth:`~asyncio.Task.cancel` with ``msg`` *set*, not *args or **kwargs::")
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
    r"(?<![.!?…])[.!?…]+[\"'”’»)\]*]*\s+(?=[^\sa-z])"  # before a capital, a digit, a quote or another script
    r"|(?<![。！？｡])[。！？｡]+[”’」』）]*\s*"
    r"|(?<!\s)\s+(?:[|·»•¦]\s+|(?:--|[–—])\s+(?=[A-Z]))"  # titles and menus joined into one line
)


def split_sentences(text: str) -> list[str]:
    """The sentences of a paragraph. Abbreviations, initials, numbers and dotted names do not end a sentence.

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
    """Whether the full stop between `before` and `after` belongs to the last word before it."""
    words = before.rsplit(None, 1)
    word = words[-1].lstrip("(\"'“‘[") if words else ""
    if len(word) == 1 and word.isupper():  # an initial
        return True
    if after.isdigit() and _BEFORE_NUMBER.fullmatch(word.lower()):
        return True
    return bool(_ABBREVIATIONS.fullmatch(word.lower()))
