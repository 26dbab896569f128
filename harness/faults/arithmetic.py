"""Arithmetic of faults that is the same on every device: where one is planted, and where a diagnosis predicts it."""

from __future__ import annotations

import torch
from torch import Tensor


def over(x: Tensor, divisor: float) -> Tensor:
    """Return x / divisor, rounded once: CUDA multiplies by the rounded reciprocal of a number."""
    return x / torch.full_like(x, divisor)


def overflowing(factor: Tensor, limit: float) -> Tensor:
    """Return factors of which those of `limit` and more, and of -limit and less, became infinite."""
    infinite = torch.copysign(torch.full_like(factor, torch.inf), factor)
    return torch.where(factor.abs() >= limit, infinite, factor)
