"""A document's fields as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any


def value_at(source: Mapping[str, Any], path: str) -> Any:
    """The value of a document's field, or None. The path `a.b` is the field b of the object a."""
    if path in source:
        return source[path]
    head, dot, rest = path.partition(".")
    inner = source.get(head)
    return value_at(inner, rest) if dot and isinstance(inner, Mapping) else None


def text_of(value: Any) -> str | None:
    """The text of a field's value: "" for no value, None for an object, which has no text."""
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool | int | float):
        return json.dumps(value)
    if isinstance(value, list | tuple):
        texts = [text_of(item) for item in value]
        return None if None in texts else "\n".join(text for text in texts if text)
    return None


def document_text(source: Mapping[str, Any], fields: Sequence[str]) -> str:
    """The searchable fields of a document as one text, in the order of `fields`."""
    return " ".join(text for field in fields if (text := text_of(value_at(source, field))))


def all_text(source: Mapping[str, Any]) -> str:
    """All texts of a document, for an index whose fields are not known."""
    return " ".join(value for value in source.values() if isinstance(value, str) and value)


def hit_text(source: Mapping[str, Any], fields: Sequence[str] = ()) -> str:
    """What a document is found and embedded by: its searchable fields, or all its texts where these are not known."""
    return document_text(source, fields) or all_text(source)
