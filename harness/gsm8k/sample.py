"""A sample of a run as the judging half reads it: a dict with the fields that README.md names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

Sample = Mapping[str, Any]

LENGTH = "length"
"""The `finish_reason` of an answer that the token limit ended."""


def answered(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples that have an answer."""
    return [s for s in samples if s.get("error") is None]


def in_order(samples: Sequence[Sample]) -> list[Sample]:
    """Return the answered samples in the order in which they were sent; those of old records have none."""
    return sorted((s for s in answered(samples) if s.get("order") is not None), key=lambda s: s["order"])


def ends_by_length(sample: Sample) -> bool:
    """Return whether the token limit ended an answer."""
    return sample.get("finish_reason") == LENGTH


def tokens(sample: Sample) -> int | None:
    """Return the length of an answer in tokens; None where the server does not count them."""
    found = (sample.get("usage") or {}).get("completion_tokens")
    return found if isinstance(found, int) else None


def length(sample: Sample) -> float:
    """Return the length of an answer in tokens, in characters where the server does not count them."""
    found = tokens(sample)
    return float(len(sample.get("answer") or "") if found is None else found)
