"""Reads the conversations and queries that were written for training, in `made/`.

A file of conversations has a block for each, with a blank line between them:

    S I live in Ghent.                            a statement
    Q two person tent                             a query that was answered
    A The Vango Banshee is a two person tent.     its answer
    > is {it=the Vango Banshee} waterproof        a query and its rewrite: `{typed=rewritten}` marks what changes
    = garden gnome                                a query that must stay as typed

`alone.txt` has queries, one a line, under the heading that says what kind they are.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

from bespeak.errors import InputError
from bespeak.training.pairs import Conversation, PastTurn, Target

FOLDER = Path(__file__).parent / "made"
ALONE = "alone.txt"
SOURCE = "written"
_CHANGE = re.compile(r"\{([^{}=]*)=([^{}]*)\}")


def written_conversations() -> list[Conversation]:
    """All conversations of the folder, in order."""
    paths = sorted(path for path in FOLDER.glob("*.txt") if path.name != ALONE)
    return [conversation for path in paths for conversation in read_conversations(path.read_text("utf-8"), path.name)]


def read_conversations(text: str, name: str) -> Iterator[Conversation]:
    """Raises InputError."""
    number = 1
    for block in re.split(r"\n[ \t]*\n", text):
        yield _conversation(block.splitlines(), name, number)
        number += block.count("\n") + 2


def _conversation(lines: list[str], name: str, number: int) -> Conversation:
    turns: list[PastTurn] = []
    targets: list[Target] = []
    statements: list[str] = []
    for place, line in enumerate(lines):
        mark, _, rest = line.strip().partition(" ")
        match mark:
            case "" | "#":
                continue
            case "S":
                statements.append(rest)
            case "Q":
                turns.append(PastTurn(rest))
            case "A" if turns:
                turns[-1] = PastTurn(turns[-1].query, rest)
            case ">":
                query, rewrite = both_sides(rest)
                targets.append(Target(len(turns), query, rewrite, "written"))
            case "=":
                targets.append(Target(len(turns), rest, rest, "whole"))
            case _:
                raise InputError(f"line {number + place} of {name} begins with none of S, Q, A, > and =")
    return Conversation(SOURCE, tuple(turns), tuple(targets), tuple(statements), tuple(statements))


def both_sides(line: str) -> tuple[str, str]:
    """The query as typed, and its rewrite.

    >>> both_sides("is {it=the Banshee} {=tent }waterproof")
    ('is it waterproof', 'is the Banshee tent waterproof')
    """
    typed, rewritten = (" ".join(_CHANGE.sub(side, line).split()) for side in (r"\1", r"\2"))
    return typed, rewritten


def written_queries() -> dict[str, list[str]]:
    """The queries of `alone.txt`, by heading."""
    found: dict[str, list[str]] = {}
    for line in (FOLDER / ALONE).read_text("utf-8").splitlines():
        if heading := re.fullmatch(r"\[(\w+)\]", line.strip()):
            queries = found.setdefault(heading[1], [])
        elif line.strip():
            queries.append(line.strip())
    return found
