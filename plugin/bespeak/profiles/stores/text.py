"""What every store keeps as JSON text."""

from __future__ import annotations

import json
from dataclasses import asdict

from bespeak.records import Rewrite, Term
from bespeak.statuses import RewriteStatus

COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def json_text(value: object) -> str:
    return COMPACT.encode(value)


def rewrite_text(rewrite: Rewrite) -> str:
    return json_text(asdict(rewrite))


def read_rewrite(text: str) -> Rewrite:
    found = json.loads(text)
    terms = tuple(Term(**term) for term in found["terms"])
    status = next(status for status in RewriteStatus if status == found["status"])
    return Rewrite(**{**found, "terms": terms, "status": status})
