"""What every store keeps as JSON text."""

from __future__ import annotations

import json
from dataclasses import asdict

from bespeak.records import Rewrite, Term

COMPACT = json.JSONEncoder(ensure_ascii=False, separators=(",", ":"))


def json_text(value: object) -> str:
    return COMPACT.encode(value)


def rewrite_text(rewrite: Rewrite) -> str:
    return json_text(asdict(rewrite))


def read_rewrite(text: str) -> Rewrite:
    found = json.loads(text)
    return Rewrite(**{**found, "terms": tuple(Term(**term) for term in found["terms"])})
