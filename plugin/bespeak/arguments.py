"""Checks of what a caller passes; each raises UsageError with a sentence that names the argument."""

from __future__ import annotations

import math
from numbers import Integral, Real

from bespeak.errors import UsageError


def require(name: str, value: object, kinds: type | tuple[type, ...], wanted: str) -> None:
    """Raises UsageError unless `value` is of one of `kinds`, which `wanted` describes. A bool is not a number.

    >>> require("size", "10", Integral, "a whole number")
    Traceback (most recent call last):
    bespeak.errors.UsageError: size must be a whole number, but is of type str
    """
    allowed = kinds if isinstance(kinds, tuple) else (kinds,)
    if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
        raise UsageError(f"{name} must be {wanted}, but is of type {type(value).__name__}")


def require_text(name: str, value: object) -> None:
    require(name, value, str, "text")


def require_whole_number(name: str, value: object) -> None:
    require(name, value, Integral, "a whole number")


def require_number(name: str, value: object, above: float, or_equal: bool = True) -> None:
    """Raises UsageError for what is not a finite number above `above`, or equal to it if `or_equal`."""
    require(name, value, Real, "a number")
    assert isinstance(value, Real)
    if not math.isfinite(value) or value < above or (value == above and not or_equal):
        raise UsageError(f"{name} must be {'at least' if or_equal else 'above'} {above:g}, but is {value}")
