"""Faults that the catalog does not have: a diagnosis must not claim to explain them in full."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from harness.candidates import layouts
from harness.candidates.physical import Physical


class _Gemm(Physical):
    """`physical` whose product passes through `change`, `(l, m, n)` float32."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha) -> None:
        super().masked_grouped_gemm(a, a_scale, b, b_scale, out, masked_m, alpha)
        product = out.permute(2, 0, 1)
        out.copy_(self.change(product.float().clone()).to(out.dtype).permute(1, 2, 0))

    def change(self, product):
        raise NotImplementedError


class ColumnsMirrored(_Gemm):
    def change(self, product):
        return product.flip(-1)


class EveryFifthColumnNegated(_Gemm):
    def change(self, product):
        product[..., ::5] *= -1
        return product


class RampOverColumns(_Gemm):
    def change(self, product):
        return product * torch.linspace(0.9, 1.1, product.shape[-1])


class MeanAdded(_Gemm):
    def change(self, product):
        return product + 0.05 * product.nan_to_num(0).mean(-1, keepdim=True) + 0.01


class Saturated(_Gemm):
    def change(self, product):
        return product.clamp(-0.7, 0.7)


class SmallestBitsOfOddRowsCut(_Gemm):
    def change(self, product):
        bits = product[:, 1::2].contiguous().view(torch.int32) & ~0x3FFFFF
        product[:, 1::2] = bits.view(torch.float32)
        return product


class ColumnPairsAveraged(_Gemm):
    def change(self, product):
        pairs = product.unflatten(-1, (-1, 2)).mean(-1)
        return pairs.repeat_interleave(2, -1)


class _Quantizer(Physical):
    """`physical` whose codes and scales pass through `change`."""

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        packed, scales = super().quantize_grouped(x, masked_m, global_scale_enc)
        rows, columns = x.shape[1], x.shape[2] // 16
        codes, scale = self.change(layouts.codes_of(packed), layouts.block_scales_of(scales, rows, columns))
        return layouts.operand(codes), layouts.scales(scale, 0x7F)

    def change(self, codes, scale):
        raise NotImplementedError


class BlocksMirrored(_Quantizer):
    def change(self, codes, scale):
        return codes.unflatten(-1, (-1, 16)).flip(-1).flatten(-2), scale


class SignOfEveryThirdElementFlipped(_Quantizer):
    def change(self, codes, scale):
        codes = codes.clone()
        codes[..., ::3] ^= 8
        return codes, scale


class OneAndAHalfStoredAsTwo(_Quantizer):
    def change(self, codes, scale):
        return torch.where((codes & 7) == 3, codes + 1, codes), scale


class OddScalesOfEvenBlocks(_Quantizer):
    def change(self, codes, scale):
        scale = scale.clone()
        scale[..., ::2] |= 1
        return codes, scale


class QuartersOfBlocksRotated(_Quantizer):
    def change(self, codes, scale):
        return codes.unflatten(-1, (-1, 4, 4)).roll(1, -2).flatten(-3), scale


OUTSIDE: dict[str, tuple[Callable[[], Any], str]] = {
    kind.__name__: (kind, rule)
    for rule, kinds in {
        "GEMM": (
            ColumnsMirrored, EveryFifthColumnNegated, RampOverColumns, MeanAdded, Saturated, SmallestBitsOfOddRowsCut,
            ColumnPairsAveraged,
        ),
        "QUANT": (
            BlocksMirrored, SignOfEveryThirdElementFlipped, OneAndAHalfStoredAsTwo, OddScalesOfEvenBlocks,
            QuartersOfBlocksRotated,
        ),
    }.items()
    for kind in kinds
}  # fmt: skip
