"""Quantizers written as people write them, each with the names of what it computes; and some that nobody's formula gives."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.protocol import Traits
from reference.e2m1 import encode_e2m1
from reference.e4m3 import decode_e4m3, encode_e4m3, round_to_byte

SIX = torch.tensor(6.0)


@dataclass(frozen=True)
class Written:
    """One quantizer: its scale and its codes before they are rounded, and what they are called."""

    scale_name: str
    codes_name: str
    scale: Callable[[Tensor, Tensor], Tensor]
    codes: Callable[[Tensor, Tensor, Tensor], Tensor]


RIGHT = (
    Written("amax / 6 * gs", "x * (gs / scale)", lambda amax, gs: amax / 6 * gs, lambda x, s, gs: x * (gs / s)),
    Written("amax * gs / 6", "x * gs / scale", lambda amax, gs: amax * gs / 6, lambda x, s, gs: x * gs / s),
    Written("amax * (gs / 6)", "x / (scale / gs)", lambda amax, gs: amax * (gs / 6), lambda x, s, gs: x / (s / gs)),
    Written(
        "amax * (gs * (1/6))", "x * (1/(scale * (1/gs)))",
        lambda amax, gs: amax * (gs * (1 / SIX)), lambda x, s, gs: x * (1 / (s * (1 / gs))),
    ),
    Written(
        "gs * (amax * (1/6))", "x / (scale * (1/gs))",
        lambda amax, gs: amax * (1 / SIX) * gs, lambda x, s, gs: x / (s * (1 / gs)),
    ),
    Written(
        "amax * gs * (1/6)", "x * (gs * (1/scale))",
        lambda amax, gs: amax * gs * (1 / SIX), lambda x, s, gs: x * (gs * (1 / s)),
    ),
    Written("amax / (6 / gs)", "x / scale * gs", lambda amax, gs: amax / (6 / gs), lambda x, s, gs: x / s * gs),
    Written(
        "amax / 6 / (1/gs)", "x * gs * (1/scale)",
        lambda amax, gs: amax / 6 / (1 / gs), lambda x, s, gs: x * gs * (1 / s),
    ),
    Written(
        "amax * (1/6) / (1/gs)", "x * (1/scale) * gs",
        lambda amax, gs: amax * (1 / SIX) / (1 / gs), lambda x, s, gs: x * (1 / s) * gs,
    ),
    Written(
        "amax / 6 * gs", "x * (1/(scale / gs))", lambda amax, gs: amax / 6 * gs, lambda x, s, gs: x * (1 / (s / gs))
    ),
    Written(
        "real", "real",
        lambda amax, gs: amax.double() * gs.double() / 6, lambda x, s, gs: x.double() * gs.double() / s.double(),
    ),
    Written(
        "amax / 6 * gs", "x * (gs / scale), not rounded",
        lambda amax, gs: amax / 6 * gs, lambda x, s, gs: x.double() * (gs / s).double(),
    ),
)  # fmt: skip
NOBODYS = (
    Written("", "", lambda amax, gs: (amax / 6).bfloat16().float() * gs, lambda x, s, gs: x * (gs / s).bfloat16().float()),
    Written("", "", lambda amax, gs: amax / 6.02 * gs, lambda x, s, gs: x * (gs / s) * 1.0001),
    Written("", "", lambda amax, gs: (amax * gs).half().float() / 6, lambda x, s, gs: (x * gs).half().float() / s),
    Written("", "", lambda amax, gs: amax / 4 * gs, lambda x, s, gs: (x + 0.01) * (gs / s)),
    Written("", "", lambda amax, gs: amax / 6 * gs.sqrt(), lambda x, s, gs: x * (gs / s).bfloat16().float()),
)  # fmt: skip


class Newcomer:
    """A quantizer in plain torch, without any traits but the device; every step can be replaced."""

    traits = Traits(device="cpu", k_multiple=16, cuda_graph=False)

    def __init__(self, written: Written = RIGHT[0]) -> None:
        self.written = written

    def amax(self, blocks: Tensor) -> Tensor:
        """Return the largest magnitude of each block, NaN only where there is nothing else."""
        finite = blocks.abs().masked_fill(blocks.isnan(), 0).amax(-1)
        return torch.where(blocks.isnan().all(-1), torch.nan, finite)

    def to_byte(self, scale: Tensor) -> Tensor:
        """Round scales to E4M3."""
        return encode_e4m3(scale) if scale.dtype == torch.float32 else round_to_byte(scale)

    def to_code(self, y: Tensor) -> Tensor:
        """Round elements to E2M1."""
        return encode_e2m1(y, nan="as_max")

    def quantize_grouped(
        self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize every row, padding too."""
        gs = global_scale_enc.view(-1, 1, 1)
        blocks = x.float().unflatten(-1, (-1, 16))
        amax = self.amax(blocks)
        block_scale = self.to_byte(self.written.scale(amax, gs))
        scale = decode_e4m3(block_scale).unsqueeze(-1)
        y = self.written.codes(blocks, torch.where(scale == 0, 1, scale), gs.unsqueeze(-1))
        codes = torch.where(
            (amax == 0).unsqueeze(-1) & ~blocks.isnan(),
            blocks.signbit().to(torch.uint8) << 3,
            self.to_code(y),
        )
        return layouts.operand(codes.flatten(-2)), layouts.scales(block_scale)


def _ties(magnitude: Tensor, limits: tuple[float, ...], at: bool) -> Tensor:
    return sum((magnitude >= m if at else magnitude > m).to(torch.uint8) for m in limits)  # type: ignore[return-value]


_MIDDLES = (0.25, 0.75, 1.25, 1.75, 2.5, 3.5, 5.0)


class TiesDown(Newcomer):
    """Ties go to the smaller magnitude."""

    def to_code(self, y: Tensor) -> Tensor:
        return (_ties(y.abs(), _MIDDLES, at=False) | (y.signbit().to(torch.uint8) << 3)).masked_fill(
            y.isnan(), 7
        )


class TiesAway(Newcomer):
    """Ties go to the larger magnitude."""

    def to_code(self, y: Tensor) -> Tensor:
        return (_ties(y.abs(), _MIDDLES, at=True) | (y.signbit().to(torch.uint8) << 3)).masked_fill(
            y.isnan(), 7
        )


class FifteenElements(Newcomer):
    """The largest magnitude is sought among the first 15 elements."""

    def amax(self, blocks: Tensor) -> Tensor:
        return super().amax(blocks[..., :-1])


class ScaleTruncated(Newcomer):
    """A block scale is rounded toward zero."""

    def to_byte(self, scale: Tensor) -> Tensor:
        nearest = encode_e4m3(scale.float())
        return torch.where(decode_e4m3(nearest) > scale, nearest - 1, nearest)


class UnscaledCodes(Newcomer):
    """Codes are x * (6 / amax), whatever scale was stored."""

    def quantize_grouped(
        self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Quantize every row, padding too."""
        _, scales = super().quantize_grouped(x, masked_m, global_scale_enc)
        blocks = x.float().unflatten(-1, (-1, 16))
        codes = self.to_code(blocks * (6 / self.amax(blocks)).unsqueeze(-1)).flatten(-2)
        return layouts.operand(codes), scales


class CountsNaN(Newcomer):
    """One NaN makes its block's scale NaN."""

    def amax(self, blocks: Tensor) -> Tensor:
        return blocks.abs().amax(-1)


class DropsTheSign(Newcomer):
    """-0 becomes 0."""

    def to_code(self, y: Tensor) -> Tensor:
        code = super().to_code(y)
        return code.masked_fill(code == 8, 0)


PLANTED = {
    TiesDown: "ties: toward zero",
    TiesAway: "ties: away from zero",
    FifteenElements: "amax: of the first 15 elements",
    ScaleTruncated: "rounding of the block scale: everything toward zero",
    UnscaledCodes: "scale of the codes: 6 / amax",
    CountsNaN: "NaN: counted in amax: block scale NaN",
    DropsTheSign: "sign of zero: dropped",
}
