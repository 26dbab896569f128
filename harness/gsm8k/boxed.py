r"""The last `\boxed{...}` of an answer as a plain number: a filter for lm-eval (`function: custom`), used by gsm8k_boxed.

Written so that exact_match on the result agrees with the grader of SGLang's sgl-eval 0.1.3 (NeMo-Skills' math_equal on
math-verify) wherever the content is a number, a fraction, plain arithmetic, or one of these with a currency, a unit in
`\text{}` or a unit word. What it does not do: roots, powers, sets, words. tests/gsm8k/test_boxed.py compares the two.
"""

from __future__ import annotations

import re
from fractions import Fraction
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

INVALID = "[invalid]"
_BOXED = "\\boxed"

# Words behind a number that math-verify takes for units; others ("18 dollars") make an answer wrong there, and so here.
_UNIT_WORDS = (
    "acre|apple|cent|cm|coin|day|degree|feet|ft|gallon|gm|g|hour|hr|inches|inch|kg|km|lb|liter|litre|mark|meal|men|meter"
    "|metre|mile|minute|min|mm|month|mph|m|number|pie|pound|second|sec|soldier|student|tile|toy|unit|way|women|woman|yard|year"
)
_UNITS = re.compile(rf"(?<=[\d}}\s])\s*(?:{_UNIT_WORDS})(?:s|es)?\s*$")
_TEXT = r"\\(?:text|mathrm|mathbf|mathit|textbf|textit|textrm|mbox)\s*\{([^{}]*)\}"
_TEXT_BEHIND = re.compile(rf"(?<=[\d}}\s,!%])\s*{_TEXT}(?:\^\{{?\d\}}?)?\s*$")
_FRACTION = re.compile(r"\\[dtc]?frac\s*\{([^{}]*)\}\s*\{([^{}]*)\}")
_BRACKETED_COMMA = re.compile(r"[{(\[][^{}()\[\]]*\d(?:,|\{,\})\d")
"""`{1,080}` is a pair for math-verify, `1,080` a number."""
_SPACE = re.compile(r"\\!|\\[; ]|\\,(?!\d)|\\quad|\\+$")
_PLAIN = (
    (re.compile(r"\\boxed\s*\{([^{}]*)\}"), r"\1"),
    (re.compile(r"\\[$%()]|[$%]|\\left|\\right|\^\{?\\circ\}?|\\\\$"), ""),
    (re.compile(r"\s*\{,\}\s*"), ","),
    (re.compile(r"\\times|\\cdot|\\ast"), "*"),
    (re.compile(r"\\div"), "/"),
    (re.compile(_TEXT), r"\1"),
    (re.compile(r"\\[{}]|[{}\[\]]"), ""),
    (re.compile(r"(?<![\d,])(\d{1,3})((?:,\d{3})+)(?![\d,])"), lambda m: m[1] + m[2].replace(",", "")),
)
_NUMBER = re.compile(r"\d+(?:\.\d*)?|\.\d+")


def last_boxed(answers: Iterable[Sequence[str]], docs: Any) -> list[list[str]]:  # noqa: ARG001 - lm-eval's signature
    r"""Return for each answer what its last `\boxed{...}` holds, as a plain number where it is one."""
    return [[boxed_number(text) for text in texts] for texts in answers]


def boxed_number(text: str) -> str:
    """Return the number in the last box in canonical form (`-1234.5`, `1/3`), else its text; "[invalid]" without a box."""
    content = boxed_content(text)
    if content is None:
        return INVALID
    value = _value(content)
    return content.strip() if value is None else _written(value)


def boxed_content(text: str) -> str | None:
    """Return what stands between the braces of the last box; None where there is none, or it is never closed."""
    start = text.rfind(_BOXED)
    if start < 0 or not text.startswith(_BOXED + "{", start):
        return None
    depth = 0
    for place in range(start + len(_BOXED), len(text)):
        depth += (text[place] == "{") - (text[place] == "}")
        if depth == 0:
            return text[start + len(_BOXED) + 1 : place]
    return None


def _value(content: str) -> Fraction | None:
    """Return the value of a number, a fraction or plain arithmetic as LaTeX writes them; None for anything else."""
    text = _SPACE.sub(" ", content.rpartition("=")[2].replace("\u2212", "-")).strip().rstrip(".")
    for _ in range(3):  # `18 \text{ miles} per \text{hour}` has two
        text = _UNITS.sub("", _TEXT_BEHIND.sub("", text))
    if _BRACKETED_COMMA.search(text):
        return None
    while (simpler := _FRACTION.sub(r"((\1)/(\2))", text)) != text:
        text = simpler
    for pattern, plain in _PLAIN:
        text = pattern.sub(plain, text)
    try:
        return _evaluate("".join(text.split()))
    except (ValueError, ZeroDivisionError):
        return None


def _evaluate(text: str) -> Fraction:
    """Evaluate sums of products of decimal numbers, with parentheses. Raises ValueError for anything else."""
    if len(text) > 200:
        raise ValueError("too long for a final answer")
    while inner := re.search(r"\(([^()]*)\)", text):
        value = _evaluate(inner[1])
        before, after = text[: inner.start()], text[inner.end() :]
        if (before and before[-1] not in "(+-*/") or (after and after[0] not in ")+-*/"):
            raise ValueError("a product without a sign")
        number = f"N{value.numerator}D{value.denominator}".replace("-", "M")
        text = before + number + after
    return _sum(text)


def _sum(text: str) -> Fraction:
    terms = re.findall(r"([+-]*)([^+-]+)", text)
    if not terms or "".join(sign + term for sign, term in terms) != text:
        raise ValueError(f"no sum: {text}")
    return sum(((-1) ** sign.count("-") * _product(term) for sign, term in terms), start=Fraction(0))


def _product(text: str) -> Fraction:
    first, *rest = re.split(r"([*/])", text)
    value = _number(first)
    for operator, factor in zip(rest[::2], rest[1::2], strict=True):
        value = value * _number(factor) if operator == "*" else value / _number(factor)
    return value


def _number(text: str) -> Fraction:
    if made := re.fullmatch(r"N(M?\d+)D(\d+)", text):  # the value of a parenthesis
        return Fraction(int(made[1].replace("M", "-")), int(made[2]))
    if not _NUMBER.fullmatch(text):
        raise ValueError(f"no number: {text}")
    return Fraction(text)


def _written(value: Fraction) -> str:
    """Return a value as a decimal number where it has one, else as a fraction."""
    bottom = value.denominator
    for prime in (2, 5):
        while bottom % prime == 0:
            bottom //= prime
    if bottom != 1 or value.denominator.bit_length() > 64:
        return f"{value.numerator}/{value.denominator}"
    places = 0
    while (value * 10**places).denominator != 1:
        places += 1
    digits = f"{abs(int(value * 10**places)):0{places + 1}d}"
    whole = f"{digits[:-places]}.{digits[-places:]}" if places else digits
    return f"-{whole}" if value < 0 else whole
