"""Prints the rewrites that `bespeak evaluate --examples` shows."""

from __future__ import annotations

import textwrap
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bespeak.evaluation.examples import Example, Examples, Origin, RewriteTraits

KINDS = ("best", "worst", "all")


def as_examples(found: Examples) -> str:
    """At most 80 columns, unless a word is longer."""
    common = found.common
    heading = (
        f"{common['best'].n_rewrites} best and {common['worst'].n_rewrites} worst of {common['all'].n_rewrites} "
        f"rewrites ({found.n_queries} queries), by nDCG@10 of {found.system} against raw, {found.stage}"
    )
    lines = textwrap.wrap(heading, 80)
    for kind, examples in (("best", found.best), ("worst", found.worst)):
        for one in examples:
            lines += ["", *_example_lines(kind, one)]
    return "\n".join([*lines, "", *_common(common)])


def _example_lines(kind: str, example: Example) -> list[str]:
    added = ", ".join(f"{word} ({place})" for word, place in example.added)
    rows = (("last turn", example.last_query), ("query", example.query), ("rewrite", example.rewrite), ("added", added))
    return [
        f"{kind:6}{example.typed:.3f} -> {example.rewritten:.3f}  {example.query_id}",
        *(line for row in rows for line in _row(*row)),
    ]


def _row(name: str, text: str) -> list[str]:
    if not text.strip():
        return []
    return textwrap.wrap(text, 80, initial_indent=f"  {name:11}", subsequent_indent=" " * 13, break_long_words=False)


def _common(common: dict[str, RewriteTraits]) -> list[str]:
    """A row for each trait, a column for each group of rewrites."""

    def row(name: str, value: Callable[[RewriteTraits], str]) -> str:
        return f"{name:34}" + "".join(f"{value(common[kind]):>8}" for kind in KINDS)

    def share(place: Origin) -> Callable[[RewriteTraits], str]:
        return lambda one: f"{one.origins[place]:.0%}"

    lines = [
        f"{'in common':34}" + "".join(f"{kind:>8}" for kind in KINDS),
        row("rewrites", lambda one: str(one.n_rewrites)),
        row("words added, on average", lambda one: f"{one.words_added:.1f}"),
    ]
    return [
        *lines,
        *(row(f"  of these from {place}", share(place)) for place in common["all"].origins),
        row("a name or number added", lambda one: f"{one.name_added:.0%}"),
        row("a name or number of the query kept", lambda one: f"{one.name_typed:.0%}"),
        row("a word of the query lost", lambda one: f"{one.word_lost:.0%}"),
    ]


def examples_data(found: Examples) -> dict[str, Any]:
    from dataclasses import asdict

    data = asdict(found)
    for kind in ("best", "worst"):
        for one in data[kind]:
            one["added"] = [{"text": word, "origin": place} for word, place in one["added"]]
    return data
