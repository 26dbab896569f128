"""A third reading of the final answer, by value: lm-eval's two compare text, where `18.00` is not `18`."""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

_NUMBER = r"[-\u2212]?\s?\$?\s?(?:\d{1,3}(?:,\d{3})+(?!\d)(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)"
_ANY_NUMBER = re.compile(rf"(?<![\w.,]){_NUMBER}|(?<=[A-Za-z(*_=]){_NUMBER}")
_AFTER_MARKER = re.compile(
    r"(?:####|\\boxed\s*\{|\b(?:final\s+)?answer\s*(?:is|:|=)|^\s*\**A(?:nswer)?\**\s*:)"
    # Between marker and number: markup, currency and a few words, on the same line ("is: **$18**", "is about 18").
    rf"[^\n\d.\-\u2212]{{0,40}}?({_NUMBER})",
    re.IGNORECASE | re.MULTILINE,
)
_LATEX = (("{,}", ","), ("\\,", ""), ("\\!", ""), ("\\$", "$"))


def extract_number(text: str) -> str | None:
    r"""Return the final number that the text states, in canonical form (`-1234.5`), or None if it states none.

    The last explicit statement counts (`#### 18`, `\boxed{18}`, "the answer is 18", "A: 18"); without one, the last
    number of the text.
    """
    for written, plain in _LATEX:
        text = text.replace(written, plain)
    stated = _AFTER_MARKER.findall(text)
    found = stated[-1:] or _ANY_NUMBER.findall(text)[-1:]
    return canonical(found[0]) if found else None


def canonical(number: str) -> str | None:
    """Return a number as written by people in one form: no commas, no currency, no trailing zeros; None if it is none."""
    cleaned = re.sub(r"[\s$,]", "", number).replace("\u2212", "-").rstrip(".")
    try:
        value = Decimal(cleaned)
    except InvalidOperation:
        return None
    if not value.is_finite() or len(cleaned) > 1000:
        return None
    return f"{value:f}".rstrip("0").rstrip(".") if "." in cleaned else f"{value:f}"


def same_number(left: str | None, right: str | None) -> bool:
    """Return whether both are numbers, and the same one (18, 18.0 and $18 are)."""
    a, b = (None if side is None else canonical(side) for side in (left, right))
    return a is not None and b is not None and Decimal(a) == Decimal(b)
