"""Right candidates that add in a known order, and the same with a fault that no bound sees."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.physical import Physical
from reference.e4m3 import decode_e4m3
from reference.matrix_units import Summation
from reference.nvfp4 import decode_blocks


class Summing(Physical):
    """`physical` with a GEMM that adds as it is told.

    Args:
        text: of a Summation.
        declares: whether the traits say so.
    """

    def __init__(self, text: str, *, declares: bool = False) -> None:
        self.summation = Summation.of(text)
        self.traits = replace(Physical.traits, summation=text if declares else "", store_rows=1)

    def sums(self, expert: int, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """Return what the accumulators of an expert hold; operands are values and decoded block scales."""
        return self.summation.matmul(self.summation.operand(*a), self.summation.operand(*b))

    def masked_grouped_gemm(
        self,
        a: Tensor,
        a_scale: Tensor,
        b: Tensor,
        b_scale: Tensor,
        out: Tensor,
        masked_m: Tensor,
        alpha: Any,
    ) -> None:
        """Write alpha * a @ b.T into the valid rows of out."""
        sides = []
        for packed, scales in ((a, a_scale), (b, b_scale)):
            codes = layouts.codes_of(packed)
            block_scale = layouts.block_scales_of(scales, codes.shape[1], codes.shape[2] // 16)
            sides.append((decode_blocks(codes, block_scale), decode_e4m3(block_scale).double()))
        for expert, rows in enumerate(masked_m.tolist()):
            if not rows:
                continue
            (a_values, a_scales), (b_values, b_scales) = sides
            left, right = (
                (a_values[expert, :rows], a_scales[expert, :rows]),
                (b_values[expert], b_scales[expert]),
            )
            factor = None if alpha is None else alpha.reshape(-1)[expert]
            out[:rows, :, expert] = self.outputs(expert, left, right, factor, out.dtype)

    def outputs(
        self, expert: int, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor], alpha: Tensor | None, dtype: torch.dtype
    ) -> Tensor:  # fmt: skip
        """Return what an expert stores."""
        total = self.sums(expert, a, b)
        return (total if alpha is None else total * alpha).to(dtype)


class SplitsLongRows(Summing):
    """Two parts of k from k 512 on, and of those rows that are in the second store tile of 64 in any case."""

    def sums(self, expert: int, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sums, by place and k."""
        plain, split = super().sums(expert, a, b), replace(self.summation, parts=2)
        parts = split.matmul(split.operand(*a), split.operand(*b))
        return parts if a[0].shape[1] >= 512 else torch.cat((plain[:64], parts[64:]))


class DropsAProduct(Summing):
    """Leaves one product out of every sum of the last row of an expert with two rows or more."""

    def sums(self, expert: int, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sums without that product."""
        values = a[0].clone()
        if len(values) > 1 and values.shape[1] > 64:
            last = values[-1].nonzero()[-1:].flatten()
            values[-1, last] = 0
        return super().sums(expert, (values, a[1]), b)


class HalfPartial(Summing):
    """Rounds one of two partial sums to bfloat16, from k 512 on."""

    def sums(self, expert: int, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sum of both parts."""
        k = a[0].shape[1]
        if k < 2048:
            return super().sums(expert, a, b)
        half = k // 128 * 64
        first, second = (
            super(HalfPartial, self).sums(
                expert, *((v[:, part], s[:, part.start // 16 : part.stop // 16]) for v, s in (a, b))
            )
            for part in (slice(0, half), slice(half, k))
        )
        return first.bfloat16().float() + second


class CutsEarlier(Summing):
    """Keeps one bit less of the terms of its last instruction, at k 2,048 and more."""

    def sums(self, expert: int, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sums, the last instruction's terms cut a bit earlier."""
        from reference.matrix_units import add_terms, all_pairs

        unit, k = self.summation.unit, a[0].shape[1]
        if k < 2048:
            return super().sums(expert, a, b)
        left, right = self.summation.operand(*a), self.summation.operand(*b)
        total = self.summation.matmul(left.along_k(0, k - unit.k), right.along_k(0, k - unit.k))
        terms = all_pairs(unit, left.along_k(k - unit.k, k), right.along_k(k - unit.k, k))
        return add_terms(replace(unit, fraction=(unit.fraction or 0) - 1), terms, total)
