"""How much an explanation rests on: all of what is illegal or a part, many different values or a few, values at all."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from harness.diagnosis.cases.case import CallCase
from harness.diagnosis.cases.layer_case import LayerCase
from harness.diagnosis.cases.observation import INNER
from harness.diagnosis.cases.views import SCALE
from harness.diagnosis.hypotheses.score import Score

NEARLY_ALL = 0.9  # of the illegal elements of its stages: what one cause must explain
_HALF = 0.5  # of them, below which a story about rows of a layer's output is none
_DISTINCT = 8  # different changes of value below which an explanation is weak
_NOT_A_NUMBER = -1e300  # stands for NaN, which differs from itself
_SAMPLE = 4096  # illegal elements of a call that are looked at for it
_STEPS = 4  # units in the last place of an output that any other rounding may cause

Masks = dict[int, Tensor]


def share(score: Score, masks: Masks) -> float:
    """Return the share that some explained elements are of all illegal elements of a fault's stages."""
    illegal = sum(score.of.values())
    return sum(int(mask.sum()) for mask in masks.values()) / illegal if illegal else 0.0


def weakness(score: Score, masks: Masks, cases: Sequence[CallCase]) -> str:
    """Return why a fault that explains some elements may be none, "" where there is no doubt.

    Args:
        score: of the fault.
        masks: by case, what it explains that no better explanation does.
        cases: what was to be explained.
    """
    changes = distinct_changes(masks, cases)
    if changes < _DISTINCT:
        counted = "1 change" if changes == 1 else f"{changes} different changes"
        return f"only {counted} of value: on these inputs other mistakes look the same"
    if share(score, masks) < NEARLY_ALL:
        return "it explains a part only: this may be two mistakes, or another one that looks like it here"
    coverage = score.shown / score.predicted if score.predicted else 1.0
    if coverage < NEARLY_ALL and not _tells(masks, cases):
        return f"zeros, NaN and infinities do not tell why, and only {coverage:.0%} of what it would change is like that"
    return ""


def coincidental(score: Score, masks: Masks, cases: Sequence[CallCase]) -> bool:
    """Return whether a fault explains a part of what is illegal as any fault may.

    Of a thousand codes that are one too small, some are what truncation does, some what a rounded scale does. A part is
    explained by chance where it is a few values, a factor that was measured on it, or steps that any small error causes.
    """
    explained = share(score, masks)
    if explained >= NEARLY_ALL:
        return False
    if score.hypothesis.fitted:
        return True
    if any(isinstance(cases[n], LayerCase) for n in masks):  # rows are compared, with a tolerance
        rows = sum(int(mask.any(-1).any(-1).sum()) for mask in masks.values())
        return explained < _HALF or rows < _DISTINCT
    return distinct_changes(masks, cases, larger=True) < _DISTINCT


def distinct_changes(masks: Masks, cases: Sequence[CallCase], *, larger: bool = False) -> int:
    """Return how many different (right, observed) values the explained elements have, in a sample of them.

    On coarse data a fault that the catalog lacks does the same as one that it has: three scale bytes, each one code
    higher, do not tell a scale that is too high from bytes whose last bit is set.

    Args:
        masks: by case, the explained elements.
        cases: what was to be explained.
        larger: count those that are more than one step of the format apart.
    """
    changes: set[tuple[float, float]] = set()
    for n, mask in masks.items():
        case = cases[n]
        if larger:
            mask = mask & ~_one_step(case)  # noqa: PLW2901 - the same elements, fewer
        right, seen = (t[mask] for t in (case.healthy.expand_as(mask), case.seen))
        step = max(1, len(seen) // _SAMPLE)
        parts = [t[::step].double().nan_to_num(nan=_NOT_A_NUMBER).tolist() for t in (right, seen)]
        changes |= set(zip(*parts, strict=True))
    return len(changes)


def _one_step(case: CallCase) -> Tensor:
    """Return which elements lie so near to the right ones that any small error may have moved them."""
    if case.view != "output" or case.call.stage not in INNER:
        return torch.zeros_like(case.illegal)
    if not case.call.has_codes:
        right, seen = case.healthy.double(), case.seen.double()
        step = torch.finfo(case.seen.dtype).eps * torch.maximum(right.abs(), seen.abs())
        return (right - seen).abs() <= _STEPS * step
    right, seen = case.healthy.int().expand_as(case.seen), case.seen.int()
    magnitude = ((right & 7) - (seen & 7)).abs()
    near = (magnitude <= 1) & (((right ^ seen) < 8) | ((right & 7) + (seen & 7) <= 1))
    near[..., SCALE] = (right - seen)[..., SCALE].abs() <= 1
    return near


def _tells(masks: Masks, cases: Sequence[CallCase]) -> bool:
    """Return whether the explained elements hold values that tell one mistake from another."""
    for n, mask in masks.items():
        seen = cases[n].seen[mask]
        if (
            not seen.dtype.is_floating_point
            or len(torch.unique(seen[seen.isfinite() & (seen != 0)])) >= _DISTINCT
        ):
            return True
    return False
