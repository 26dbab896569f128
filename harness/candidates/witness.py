"""Which kernel ran: what a candidate asked its package for, and what the package says that it ran.

A candidate may have `asked`, a dict of short texts, and `ran()`, which returns one such dict for each kernel that ran since
it was called last. A name in both that has another value is a failure: an option that was lost on the way, a fallback. What
has a value in `ran` alone is what the package chose by itself.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any


def asked_of(candidate: Any) -> dict[str, str]:
    """Return what the candidate asked its package for, {} where it does not say."""
    asked = getattr(candidate, "asked", None)
    return {str(name): str(value) for name, value in asked.items()} if isinstance(asked, Mapping) else {}


def ran_of(candidate: Any) -> list[dict[str, str]]:
    """Return the kernels that ran since the last call, [] where the candidate does not say."""
    tell = getattr(candidate, "ran", None)
    told: Iterable[Mapping[str, object]] = tell() if callable(tell) else ()
    return [{str(name): str(value) for name, value in each.items()} for each in told]


def in_words(kernel: Mapping[str, str]) -> str:
    """Return a dict of short texts as one: "weights float4e2m1, tile 64 x 128 x 64"."""
    return ", ".join(f"{name} {value}" for name, value in kernel.items())


def contradiction(asked: Mapping[str, str], ran: Iterable[Mapping[str, str]]) -> str:
    """Return the first thing that was asked for and ran otherwise, in words, or ""."""
    for kernel in ran:
        for name, value in kernel.items():
            if asked.get(name, value) != value:
                return f"asked for {name} {asked[name]}, {value} ran: {in_words(kernel)}"
    return ""
