"""What a quantizer was asked and what it stored, and what any formula would have stored instead."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import torch
from torch import Tensor

from harness.identification.quantizer_probe import Questions
from reference import e2m1, e4m3
from reference.nvfp4 import BLOCK
from reference.quantizer_formulas import CODES, REAL, SCALES, Reciprocal, needs_rcp
from reference.rounding import CODE_ROUNDINGS, SCALE_ROUNDINGS

_KEPT = 512  # answers of formulas, of 64 KB at most each
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
    """What was asked, and what was stored.

    What a formula stores depends on no candidate but for the block scales that it stored, so it is worked out once for all
    candidates of a process that store the same.

    Attributes:
        asked: the questions.
        codes: `(experts, rows, blocks, 16)` uint8.
        block_scale: `(experts, rows, blocks)` uint8.
    """

    asked: Questions
    codes: Tensor
    block_scale: Tensor

    @property
    def blocks(self) -> Tensor:
        """What was quantized, `(experts, rows, blocks, 16)` float32."""
        return _blocks(self.asked)

    @property
    def gs(self) -> Tensor:
        """Encode scales, `(experts, 1, 1)`."""
        return self.asked.global_scale_enc.view(-1, 1, 1)

    @cached_property
    def _under(self) -> _Under:
        return _under(self.asked, bytes(self.block_scale.flatten().tolist()))

    def scale_formula(self, amax: str, name: str, rounding: str, rcp: Reciprocal, step: int = 1) -> Tensor:
        """Return what a formula stores under every so manieth encode scale, `(experts, rows, blocks)` uint8."""
        return _scales(self.asked, amax, name, rounding, _taken(name, rcp), step)

    def code_formula(self, name: str, rounding: str, rcp: Reciprocal, step: int = 1) -> Tensor:
        """Return the magnitudes that a formula stores under the stored scales, `(experts, rows, blocks, 16)` uint8."""
        return _codes(self._under, name, rounding, _taken(name, rcp), step)

    def unscaled_codes(self, rounding: str, step: int = 1) -> Tensor:
        """Return the magnitudes of x * (6 / amax), under no stored scale."""
        return _unscaled(self.asked, rounding, step)

    def exact_ties(self) -> Tensor:
        """Return where the real number is a middle of two codes, `(experts, rows, blocks, 16)` bool."""
        real = CODES[REAL](self.blocks.abs(), self._under.scale, self.gs.unsqueeze(-1), torch.reciprocal)
        return (real.unsqueeze(-1) == torch.tensor(e2m1.MIDPOINTS, dtype=real.dtype)).any(-1)


@dataclass(frozen=True, eq=False)
class _Under:
    """Questions, and the block scales under which codes were stored, `(experts, rows, blocks, 1)` float32."""

    asked: Questions
    scale: Tensor


def _taken(name: str, rcp: Reciprocal) -> Reciprocal:
    """Return the reciprocal by which the answers of a formula are kept: those that take none are one for all candidates."""
    return rcp if needs_rcp(name) else torch.reciprocal


@lru_cache(maxsize=8)
def _under(asked: Questions, block_scale: bytes) -> _Under:
    stored = torch.tensor(list(block_scale), dtype=torch.uint8).view(_blocks(asked).shape[:-1])
    return _Under(asked, e4m3.decode_e4m3(stored).unsqueeze(-1))


@lru_cache(maxsize=8)
def _blocks(asked: Questions) -> Tensor:
    return asked.x.float().unfold(-1, BLOCK, BLOCK)


@lru_cache(maxsize=_KEPT)
def _scales(asked: Questions, amax: str, name: str, rounding: str, rcp: Reciprocal, step: int) -> Tensor:
    gs = asked.global_scale_enc[::step].view(-1, 1, 1)
    return SCALE_ROUNDINGS[rounding](SCALES[name](AMAX[amax](_blocks(asked)[::step]), gs, rcp))


@lru_cache(maxsize=_KEPT)
def _codes(under: _Under, name: str, rounding: str, rcp: Reciprocal, step: int) -> Tensor:
    gs = under.asked.global_scale_enc[::step].view(-1, 1, 1, 1)
    real = CODES[name](_blocks(under.asked)[::step].abs(), under.scale[::step], gs, rcp)
    return CODE_ROUNDINGS[rounding](real)


@lru_cache(maxsize=_KEPT)
def _unscaled(asked: Questions, rounding: str, step: int) -> Tensor:
    magnitude = _blocks(asked)[::step].abs()
    return CODE_ROUNDINGS[rounding](magnitude * (6 / magnitude.amax(-1, keepdim=True)))
