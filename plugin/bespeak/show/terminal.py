"""Text for a terminal: cleaned of control characters, measured in cells, wrapped and emphasised."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

import regex
from wcwidth import wcwidth

_ESCAPES = regex.compile(  # whole sequences, so that no "[31m" is left behind
    r"(?:\x1b\[|\x9b)[0-?]*[ -/]*[@-~]"
    r"|(?:\x1b[\]PX^_]|[\x90\x98\x9d-\x9f])[^\x07\x1b\x80-\x9f]*(?:\x07|\x1b\\|\x9c)"
    r"|\x1b[ -/]*[0-~]"
)
_INVISIBLE = regex.compile(  # control, bidirectional, tag and other invisible characters
    r"[\p{Cc}\u00ad\u061c\u180e\u200b\u200e\u200f\u202a-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb\U000e0000-\U000e007f]"
)
_MARK_RUN = regex.compile(r"(\p{M}{8})\p{M}+")
_SURROGATE = regex.compile(r"[\ud800-\udfff]")
_STYLE = r"\x1b\[[\d;]*m"
_CLUSTER = regex.compile(rf"{_STYLE}|\X")
_STYLES = regex.compile(_STYLE)
_RESET = "\x1b[0m"
STYLES = {"bold": "1", "dim": "2", "match": "1;33", "up": "32", "down": "31", "added": "36"}
"""Style -> parameters of ECMA-48 SGR. The eight base colours suit dark and light terminals."""


def clean(text: str) -> str:
    """The text as one line without control characters, escape sequences, bidirectional overrides or lone surrogates.

    Cleaning a clean text changes nothing.

    >>> clean(" red \\x1b[31malert\\x07\\n twice ")
    'red alert twice'
    """
    if text.isascii() and text.isprintable():
        return " ".join(text.split())
    text = _ESCAPES.sub("", _SURROGATE.sub("\ufffd", text))
    text = _INVISIBLE.sub("", " ".join(text.split()))
    return " ".join(_MARK_RUN.sub(r"\1", text).split())


def cells(text: str) -> int:
    """How many columns the text takes on a terminal: wide characters and emoji two, control and style codes none."""
    if text.isascii() and text.isprintable():
        return len(text)
    return sum(map(_cells_of, _CLUSTER.findall(text)))


def _cells_of(cluster: str) -> int:
    """The cells of its first character, which the others only modify. U+FE0F makes an emoji of it."""
    return 2 if "\ufe0f" in cluster else max(wcwidth(cluster[0]), 0)


def emphasise(text: str, style: str) -> str:
    """The text in a style of `STYLES`. Each word is styled by itself, so that the text can be wrapped."""
    return re.sub(r"\S+", lambda word: f"\x1b[{STYLES[style]}m{word[0]}{_RESET}", text)


def wrap(text: str, width: int) -> list[str]:
    """Lines of at most `width` cells, broken at spaces, before wide characters or, if need be, within a word.

    >>> wrap("one three fourteen", 8)
    ['one', 'three', 'fourteen']
    """
    lines: list[str] = []
    line, used = "", 0
    for word, spaced in _words(text):
        size = cells(word)
        gap = 1 if spaced and line else 0
        if line and used + gap + size > width:
            lines.append(line)
            line, used, gap = "", 0, 0
        for piece in _pieces(word, width) if size > width else [word]:
            if line and used + gap + cells(piece) > width:
                lines.append(line)
                line, used, gap = "", 0, 0
            line, used = line + " " * gap + piece, used + gap + cells(piece)
            gap = 0
    return [*lines, line] if line else lines


def _words(text: str) -> Iterator[tuple[str, bool]]:
    """The parts of a text between line breaks, each with its own style codes and whether a space precedes it."""
    for word in text.split():
        spaced, part, style = True, "", ""
        for cluster in [word] if word.isascii() else _CLUSTER.findall(word):
            if _cells_of(cluster) == 2 and _STYLES.sub("", part):
                yield part + (_RESET if style else ""), spaced
                spaced, part = False, style
            if cluster[0] == "\x1b":
                style = "" if cluster == _RESET else cluster
            part += cluster
        yield part, spaced


def _pieces(word: str, width: int) -> list[str]:
    """A word that is too long for a line, cut into lines, if possible after a `.`, `_`, `/` or `-`.

    Each piece has its own style codes.
    """
    found, piece, style = [], "", ""
    for cluster in _CLUSTER.findall(word):
        if cluster[0] == "\x1b":
            style = "" if cluster == _RESET else cluster
        elif piece and cells(piece) + _cells_of(cluster) > width:
            joint = max(piece.rfind(character) for character in "._/-") + 1
            cut = joint if cells(piece[:joint]) > width // 2 else len(piece)
            found.append(piece[:cut] + (_RESET if style else ""))
            piece = style + piece[cut:]
        piece += cluster
    return [*found, piece]


def fit(text: str, width: int) -> str:
    """The text in exactly `width` cells, at least 1: padded, or cut with an ellipsis.

    >>> fit("Ada", 4) + "|" + fit("Lovelace", 4) + "|"
    'Ada |Lov…|'
    """
    if cells(text) > width:
        kept = ""
        for cluster in _CLUSTER.findall(text):
            if cells(kept + cluster) >= width:
                break
            kept += cluster
        text = kept + "…"
    return text + " " * (width - cells(text))


def beside(left: Sequence[str], right: Sequence[str], width: int) -> list[str]:
    """Two blocks of lines side by side, the left one padded to `width` cells."""
    rows = max(len(left), len(right))
    padded = [*left, *[""] * (rows - len(left))]
    return [
        f"{cell}{' ' * (width - cells(cell))}{other}".rstrip()
        for cell, other in zip(padded, [*right, *[""] * (rows - len(right))], strict=True)
    ]
