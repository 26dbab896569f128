"""How values become text: visible, clipped and readable, whatever a candidate or a model has put into the record."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from markupsafe import Markup, escape

DEFAULT_LIMIT = 2_000
"""Characters of one string that a page shows where the template asks for no other limit."""

# Controls (tab and newline stay), soft hyphen, zero-width and bidirectional marks, line separators, lone surrogates,
# noncharacters, byte order mark, tag characters: each one hides text, reorders it, or cannot be written as UTF-8.
_HIDDEN = re.compile(
    "[\\x00-\\x08\\x0b-\\x1f\\x7f-\\x9f\\xad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180e\\u200b-\\u200f\\u2028-\\u202e"
    "\\u2060-\\u206f\\u3164\\ud800-\\udfff\\ufdd0-\\ufdef\\ufeff\\uffa0\\ufff9-\\ufffb\\ufffe\\uffff"
    "\\U000e0000-\\U000e0fff]"
)

# Printable ASCII without quotes, brackets and backslash: such an address cannot leave an attribute or deceive by look-alikes.
_ADDRESS = re.compile(r"https://[A-Za-z0-9.-]+(?:[/?#][A-Za-z0-9._~:/?#\[\]@!$&()*+,;=%-]*)?")

# Between a separator and what follows it inside of a long word: there a name may be broken, and not between its letters.
_SEPARATED = re.compile(r"(?<=[_+@:/=,])(?=[A-Za-z0-9])")

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
_SHORT_INTEGER = 1_000_000_000_000_000
"""Integers up to here are written in full; Python itself refuses to print those with thousands of digits."""


def visible(text: str) -> str:
    r"""Return the text with every hidden, reordering or unwritable character as an escape such as `\x1b` or `\u202e`."""
    return _HIDDEN.sub(_escape, text)


def _escape(match: re.Match[str]) -> str:
    if match[0] == "\r":
        return "\\r"
    code = ord(match[0])
    if code < 0x100:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code < 0x10000 else f"\\U{code:08x}"


def clip(text: object, limit: int = DEFAULT_LIMIT) -> Markup:
    """Return the text escaped for HTML, cut after `limit` characters with a note of how many were cut."""
    words = str(text)
    return escape(visible(words[:limit])) + _cut(len(words) - limit)


def name(text: object, limit: int = DEFAULT_LIMIT) -> Markup:
    """Return a candidate's name or a problem string like `clip`, with places to break a line after its separators."""
    words = str(text)
    parts = (escape(visible(part)) for part in _SEPARATED.split(words[:limit]))
    return Markup("<wbr>").join(parts) + _cut(len(words) - limit)


def _cut(left: int) -> Markup:
    if left <= 0:
        return Markup()
    return Markup(' <span class="cut">[{} more characters cut]</span>').format(count(left))


def clip_plain(text: object, limit: int) -> str:
    """Return the text cut after `limit` characters, for places that hold no markup (titles, labels of charts)."""
    words = str(text)
    return visible(words if len(words) <= limit else words[: limit - 1] + "…")


def shown(value: Any) -> Any:
    """Make any value that a template prints safe: Jinja calls this for every expression that is not markup already."""
    return clip(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def count(number: int) -> str:
    """Return an integer with its thousands separated: 51,200."""
    return (
        f"{number:,}"
        if abs(number) < _SHORT_INTEGER
        else f"{number:.3e}"
        if abs(number) < 10**300
        else "over 10^300"
    )


def duration(seconds: float) -> str:
    """Return a time for people: 0.04 s, 12.3 s, 3 min 05 s, 2 h 10 min."""
    if not math.isfinite(seconds):
        return "not known"
    if seconds < 60:
        return f"{seconds:.2f} s" if seconds < 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02d} s"
    return f"{count(minutes // 60)} h {minutes % 60:02d} min"


def ratio(value: float | None) -> str:
    """Return error divided by bound with three significant digits; None means that no bound judged anything."""
    if value is None:
        return "no bound"
    if not math.isfinite(value):
        return "not a number" if math.isnan(value) else "infinite"
    if value == 0:
        return "0 (exact)"
    if 0.9995 <= value < 1.005 and value != 1:  # three digits would print 1, and 1 is the bound itself
        return f"1 {'-' if value < 1 else '+'} {abs(value - 1):.1e}"
    if 100 <= abs(value) < _SHORT_INTEGER:
        return f"{value:,.0f}"
    return f"{value:.3g}"


def power_of_two(exponent: float) -> str:
    """Return a ratio given as its log2: 0 is 1, -3 is 2⁻³, 0.5 is 1.41."""
    if exponent == 0:
        return "1"
    if exponent == int(exponent):
        return "2" + str(int(exponent)).translate(_SUPERSCRIPTS)
    return f"{2.0**exponent:.3g}" if abs(exponent) < 50 else f"2^{exponent:g}"


def plain(value: Any) -> str:  # noqa: PLR0911 - one return a JSON type
    """Return any JSON value as text for people; lists of simple values without brackets, the rest as JSON."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return count(value)
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)) and all(isinstance(v, (str, int, float)) for v in value):
        return ", ".join(plain(v) for v in value) or "none"
    if isinstance(value, dict) and value and all(isinstance(v, (str, int, float)) for v in value.values()):
        return ", ".join(f"{name} {plain(v)}" for name, v in value.items())
    return json.dumps(value, ensure_ascii=False, default=str)


def linked(value: Any) -> Markup:
    """Return the text, as a link if all of it is a plain https address. A link is followed on a click, never loaded."""
    text = plain(value)
    if len(text) <= 300 and _ADDRESS.fullmatch(text):
        return Markup('<a href="{0}" rel="noreferrer noopener">{0}</a>').format(text)
    return clip(text)
