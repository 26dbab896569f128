"""A reciprocal that a candidate gives is believed as far as it is one: 1 / x up to one unit, wherever it is used."""

from __future__ import annotations

import torch
from torch import Tensor

from harness.judging.contract import ContractError
from reference.quantizer_formulas import Reciprocal

_SMALLEST = 2.0**-126
_MOST_ELEMENTS, _MOST_ANSWERS = 4096, 512  # of an answer that is kept, and of kept answers: 8 MiB


def verified(reciprocal: Reciprocal) -> Reciprocal:
    """Return a candidate's reciprocal with every value that it gives compared with 1 / x.

    Legal are the correctly rounded value and its neighbours, as where no reciprocal is known (docs/bounds.md, "rcp").
    Answers are kept on a CPU: a diagnosis takes the reciprocals of the same few numbers thousands of times.

    Args:
        reciprocal: float32 to float32.

    Returns:
        The same function. It raises ContractError for a value further off, or another shape or dtype.
    """
    kept: dict[tuple[torch.Size, bytes], Tensor] = {}

    def remembered(x: Tensor) -> Tensor:
        if x.device.type != "cpu" or x.numel() > _MOST_ELEMENTS:
            return checked(x)
        key = x.shape, x.numpy().tobytes()
        if key not in kept:
            if len(kept) >= _MOST_ANSWERS:
                del kept[next(iter(kept))]
            kept[key] = checked(x).clone()
        return kept[key].clone()

    def checked(x: Tensor) -> Tensor:
        got = reciprocal(x)
        if not isinstance(got, Tensor) or got.shape != x.shape or got.dtype != torch.float32:
            raise ContractError(f"reciprocal must return float32 of its argument's shape {tuple(x.shape)}")
        wrong = ~_is_reciprocal(got, x)
        if bool(wrong.any()):
            given, value = float(x[wrong].flatten()[0]), float(got[wrong].flatten()[0])
            raise ContractError(
                f"reciprocal({given:.9g}) = {value:.9g}, but 1 / x is {1 / given if given else float('inf'):.9g}: "
                "what the candidate gives must be that up to one unit in the last place (a candidate that gives none may "
                "be off by one unit anywhere)"
            )
        return got

    return remembered


def _is_reciprocal(got: Tensor, x: Tensor) -> Tensor:
    """Return which values, `(*)` float32, are the correctly rounded 1 / x or one of its neighbours, flushed or not."""
    rounded = x.reciprocal()
    away = torch.full_like(x, torch.inf).copysign(x)
    one_more, one_less = torch.nextafter(rounded, away), torch.nextafter(rounded, torch.zeros_like(x))
    near = (got == rounded) | (got == one_more) | (got == one_less)
    flushed_argument = (x.abs() < _SMALLEST) & (got == away)
    flushed_result = (one_less.abs() < _SMALLEST) & (got == 0)
    return torch.where(x.isnan(), got.isnan(), near | flushed_argument | flushed_result)
