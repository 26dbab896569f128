"""What may be declared in `Traits`: each value is checked where it is made, so that a slip of the pen is no verdict."""

from __future__ import annotations

from dataclasses import fields
from typing import TYPE_CHECKING, Any

from harness.verdict import UsageError

if TYPE_CHECKING:
    from harness.candidates.protocol import Traits

MOST = 8192
"""Largest multiple, chunk or number of rows that means anything: problems reach no further in any extent."""
MOST_EXPERTS = 256  # likewise
_LEAST = {
    "accumulator_chunk": 1,
    "k_multiple": 1,
    "n_multiple": 1,
    "m_multiple": 1,
    "store_rows": 1,
    "min_experts": 1,
    "max_experts": 0,
}
_KNOWN = {
    "arithmetic": ("fast", "exact", "real"),
    "out_dtypes": ("bfloat16", "float16", "float32"),
    "activations": ("silu", "relu2"),
    "unrounded": ("gemm1", "hidden"),
}
_MAY_BE_EMPTY = {"unrounded"}


def check_traits(traits: Traits) -> None:
    """Refuse what cannot be declared.

    Raises:
        UsageError: the first such trait, what it must be and what it is.
    """
    for name in (field.name for field in fields(traits)):
        if wanted := _wanted(name, getattr(traits, name)):
            raise UsageError(f"Traits: {name} must be {wanted}, got {_shown(getattr(traits, name))}")
    if 0 < traits.max_experts < traits.min_experts:
        raise UsageError(
            f"Traits: max_experts must be 0, for no limit, or at least min_experts, which is {traits.min_experts}, "
            f"got {traits.max_experts}"
        )


def _wanted(name: str, value: Any) -> str:
    """Return what a trait must be, or "" where it is that."""
    if name in _LEAST:
        return _wanted_number(name, value)
    if name == "hints":
        sets = isinstance(value, tuple | list) and all(
            isinstance(hint, dict) and all(isinstance(key, str) for key in hint) for hint in value
        )
        return "" if sets else "a tuple of dicts of keyword arguments"
    if name == "device":
        return "" if isinstance(value, str) and value else 'a torch device type such as "cuda"'
    if name == "arithmetic":
        return "" if value in _KNOWN[name] else f"one of {', '.join(_KNOWN[name])}"
    if name in _KNOWN:
        return _wanted_names(name, value)
    return "" if isinstance(value, bool) else "True or False"


def _wanted_number(name: str, value: Any) -> str:
    if isinstance(value, bool) or not isinstance(value, int):
        return "a whole number"
    if value < _LEAST[name]:
        return f"at least {_LEAST[name]}"
    most = MOST_EXPERTS if name.endswith("experts") else MOST
    return f"at most {most:,}" if value > most else ""


def _wanted_names(name: str, value: Any) -> str:
    known = ", ".join(_KNOWN[name])
    if not isinstance(value, tuple | list) or any(each not in _KNOWN[name] for each in value):
        return f"a tuple of some of {known}"
    return "" if value or name in _MAY_BE_EMPTY else f"one or more of {known}"


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."
