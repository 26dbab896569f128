"""What a quantizer was asked and what it stored, and what any formula would have stored instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor

from reference import e2m1, e4m3
from reference.quantizer_formulas import CODES, REAL, SCALES, Reciprocal
from reference.rounding import CODE_ROUNDINGS, SCALE_ROUNDINGS

ALL_16 = "of all 16 elements"
AMAX: dict[str, Callable[[Tensor], Tensor]] = {
    ALL_16: lambda blocks: blocks.abs().amax(-1),
    "of the first 15 elements": lambda blocks: blocks[..., :-1].abs().amax(-1),
    "of the last 15 elements": lambda blocks: blocks[..., 1:].abs().amax(-1),
    "of the first 8 elements": lambda blocks: blocks[..., :8].abs().amax(-1),
    "of the last 8 elements": lambda blocks: blocks[..., 8:].abs().amax(-1),
    "of the even elements": lambda blocks: blocks[..., ::2].abs().amax(-1),
    "of the odd elements": lambda blocks: blocks[..., 1::2].abs().amax(-1),
    "without absolute values": lambda blocks: blocks.amax(-1).clamp(min=0),
    "of 32 elements": lambda blocks: (
        blocks.abs().amax(-1).view(*blocks.shape[:-2], -1, 2).amax(-1).repeat_interleave(2, -1)
    ),
}


@dataclass(frozen=True)
class Seen:
    """Questions in blocks, and what was stored: `(experts, rows, blocks, 16)` float32 and uint8, `(experts, rows, blocks)` uint8."""

    blocks: Tensor
    gs: Tensor  # (experts, 1, 1)
    codes: Tensor
    block_scale: Tensor

    def some(self, step: int) -> Seen:
        """Return the answers under every so manieth encode scale."""
        return Seen(*(getattr(self, field.name)[::step] for field in fields(self)))

    def scale_formula(self, amax: str, name: str, rounding: str, rcp: Reciprocal) -> Tensor:
        """Return what a formula stores, `(experts, rows, blocks)` uint8."""
        return SCALE_ROUNDINGS[rounding](SCALES[name](AMAX[amax](self.blocks), self.gs, rcp))

    def code_formula(self, name: str, rounding: str, rcp: Reciprocal) -> Tensor:
        """Return the magnitudes that a formula stores under the stored scales, `(experts, rows, blocks, 16)` uint8."""
        scale = e4m3.decode_e4m3(self.block_scale).unsqueeze(-1)
        return CODE_ROUNDINGS[rounding](CODES[name](self.blocks.abs(), scale, self.gs.unsqueeze(-1), rcp))

    def unscaled_codes(self, rounding: str) -> Tensor:
        """Return the magnitudes of x * (6 / amax), under no stored scale."""
        amax = self.blocks.abs().amax(-1, keepdim=True)
        return CODE_ROUNDINGS[rounding](self.blocks.abs() * (6 / amax))

    def exact_ties(self) -> Tensor:
        """Return where the real number is a middle of two codes, `(experts, rows, blocks, 16)` bool."""
        scale = e4m3.decode_e4m3(self.block_scale).unsqueeze(-1)
        real = CODES[REAL](self.blocks.abs(), scale, self.gs.unsqueeze(-1), torch.reciprocal)
        return (real.unsqueeze(-1) == torch.tensor(e2m1.MIDPOINTS, dtype=real.dtype)).any(-1)
