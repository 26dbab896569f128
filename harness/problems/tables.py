"""Tables of 2^16 entries, each as likely as any other: what sixteen drawn bits stand for.

Every table is made in Python's floats and integers, on the host, and is then a constant: no device takes a logarithm.
"""

from __future__ import annotations

import math
from functools import cache, lru_cache
from statistics import NormalDist

import torch
from torch import Tensor

ENTRIES = 1 << 16
GRID = 2.0**18
"""Quantiles are multiples of its reciprocal, so that the last bit of a library's logarithm decides none of them."""


@cache
def quantiles() -> Tensor:
    """Return the quantiles (i + 0.5) / 2^16 of the normal distribution, `(2^16,)` float64, -4.33 to 4.33, symmetric."""
    upper = [NormalDist().inv_cdf(0.5 + (i + 0.5) / ENTRIES) for i in range(ENTRIES // 2)]
    half = torch.tensor([round(value * GRID) / GRID for value in upper], dtype=torch.float64)
    return torch.cat((-half.flip(0), half))


@lru_cache(maxsize=64)
def normal(dtype: torch.dtype, device: str) -> Tensor:
    """Return the quantiles, `(2^16,)` of that type, each rounded once."""
    return quantiles().to(dtype).to(device)


@lru_cache(maxsize=64)
def uniform(device: str) -> Tensor:
    """Return (i + 0.5) / 2^16, `(2^16,)` float32, exact."""
    return ((torch.arange(ENTRIES, dtype=torch.float32) + 0.5) / ENTRIES).to(device)


@lru_cache(maxsize=256)
def evenly(values: tuple[float, ...] | range, dtype: torch.dtype, device: str) -> Tensor:
    """Return values, each as often as any other to one entry, `(2^16,)` of that type."""
    index = torch.arange(ENTRIES, dtype=torch.int64) * len(values) >> 16
    return torch.tensor(list(values), dtype=dtype)[index].to(device)


def in_shares(shares: list[float]) -> list[int]:
    """Return how many of 2^16 entries each of several outcomes has: probabilities that add up to 1, to one entry each."""
    ends = [round(ENTRIES * math.fsum(shares[: number + 1])) for number in range(len(shares))]
    return [end - start for start, end in zip([0, *ends], ends, strict=False)]
