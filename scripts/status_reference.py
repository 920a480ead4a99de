"""Writes docs/statuses.md: every status and reason that Bespeak reports, from plugin/bespeak/statuses.py."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from bespeak.statuses import (
    ORDER_REASONS,
    PART_REASONS,
    REWRITE_REASONS,
    UNUSABLE_REASONS,
    DescribedValue,
    Ending,
    RerankStatus,
    RewriteStatus,
    Stage,
)

PAGE = Path(__file__).parents[1] / "docs" / "statuses.md"

TEMPLATE = """\
# Statuses and reasons

A status or reason means the same on the command line, in the proxy's header `X-Bespeak`, in batch runs and in Python.
`python scripts/status_reference.py` writes this page, and a test compares it with the code.

## The rewrite

{rewrite}

## The ranking

{rerank}

## Reasons for the engine's own order

{order}

## Reasons for the query as typed

The session is not used. If the user liked something before, the hits are still ranked for them; otherwise the order is
the engine's own.

{only_rewrite}

With `rewrite=unusable`, only the rewrite is left out:

{unusable}

## Reasons for a partial ranking

{part}

## Stages that failed

With `rerank=failed` the reason is the stage, mostly with an ending, as in `encode_late`.

{stages}

The endings:

{endings}
"""


def reference() -> str:
    """The whole page."""
    return TEMPLATE.format(
        rewrite=table("status", RewriteStatus),
        rerank=table("status", RerankStatus),
        order=table("reason", ORDER_REASONS),
        only_rewrite=table("reason", REWRITE_REASONS),
        unusable=table("reason", UNUSABLE_REASONS),
        part=table("reason", PART_REASONS),
        stages=table("stage", Stage),
        endings=table("ending", Ending),
    )


def table(name: str, values: Iterable[DescribedValue]) -> str:
    rows = [f"| `{value}` | {value.meaning} |" for value in values]
    return "\n".join([f"| {name} | meaning |", "| --- | --- |", *rows])


if __name__ == "__main__":
    PAGE.write_text(reference(), "utf-8")
    print(f"wrote {PAGE}")
