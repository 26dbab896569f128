"""Values of logits, routing weights and experts' outputs that routing and combining meet seldom: the functions of their traps.

Each takes one rank's tensor and returns another of its shape; every fourth token or so is left as it was, so that an
altered copy of a result still shows.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from torch import Tensor

if TYPE_CHECKING:
    from harness.problems.draws import Source

Change = Callable[[Tensor, "Source"], Tensor]
SPREAD = 80.0
"""Between the largest and the smallest logit of a token: exp(-80) is a normal float32, so that softmax keeps the order."""
SPECIAL = 1 / 32
"""Of the elements of the experts' outputs: most sums over eight slots stay finite."""


def _shifted(*shifts: float) -> Change:
    def change(logits: Tensor, _: Source) -> Tensor:
        shift = torch.tensor(shifts)[torch.arange(len(logits)) % len(shifts)]
        return logits + shift.unsqueeze(-1).to(logits.device)

    return change


def _equal(logits: Tensor, draws: Source) -> Tensor:
    changed = logits.clone()
    changed[0::4] = changed[0::4, :1]
    changed[1::4] = 0.0
    signs = draws.integers(0, 2, *changed[2::4].shape) * 2.0 - 1
    changed[2::4] = torch.zeros_like(signs).copysign(signs)
    return changed


def _spread(logits: Tensor, draws: Source) -> Tensor:
    changed = logits.clone()
    away = draws.uniform(*logits.shape)
    low, high = (extreme(away, -1, keepdim=True) for extreme in (torch.amin, torch.amax))
    far = (away - low) / (high - low).clamp(min=1e-6) * SPREAD - SPREAD / 2
    changed[0::2] = far[0::2]  # evenly, and one expert far above the others
    changed[1::4] = torch.where(far == far.amax(-1, keepdim=True), SPREAD / 2, logits.clamp(-4, 4) - 30)[1::4]
    return changed


def _zero(weights: Tensor, _: Source) -> Tensor:
    changed = weights.clone()
    changed[0::4] = 0.0
    changed[1::4, 1:] = 0.0
    changed[2::4, :1] = 0.0
    return changed


def _tiny(weights: Tensor, draws: Source) -> Tensor:
    powers = torch.tensor([2.0**-power for power in range(91)], device=weights.device)
    changed = (1 + weights) * powers[draws.integers(40, 91, *weights.shape)]
    changed[3::4] = weights[3::4]
    return changed


def _ties(weights: Tensor, _: Source) -> Tensor:
    changed = weights.clone()
    changed[0::4] = 1 / weights.shape[1]
    changed[1::4] = 1.0
    changed[2::4] = 2.5
    return changed


def _specials(outputs: Tensor, draws: Source) -> Tensor:
    specials = torch.tensor([torch.inf, -torch.inf, torch.nan], dtype=outputs.dtype).to(outputs.device)
    drawn = specials[draws.integers(0, len(specials), *outputs.shape)]
    return torch.where(draws.uniform(*outputs.shape) < SPECIAL, drawn, outputs)


IN_LOGITS: Mapping[str, Change] = {
    "logits_large": _shifted(90.0, 200.0, 1000.0, 0.0),
    "logits_low": _shifted(-90.0, -110.0, -200.0, -1000.0),
    "logits_equal": _equal,
    "logits_spread": _spread,
}
"""By the trap: logits `(tokens, experts)` float32."""
IN_TOPK_WEIGHTS: Mapping[str, Change] = {"topk_zero": _zero, "topk_tiny": _tiny, "topk_ties": _ties}
"""By the trap: routing weights `(tokens, topk)` float32."""
IN_OUTPUTS: Mapping[str, Change] = {"output_specials": _specials}
"""By the trap: the outputs of one rank's experts `(local experts, capacity, hidden)`."""
