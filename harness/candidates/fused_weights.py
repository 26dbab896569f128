"""Weights of routed_moe in the order of rows that FlashInfer's fused layers read: what an engine does when it loads them.

Each function takes packed codes `(l, rows, k/2)` and block scales in 128x4 order, as harness.candidates.protocol has them, and
returns the kernel's own. Read in flashinfer-python 0.7.2.post1, fused_moe/prepare.py; the orders are those of
reference.weight_rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from reference.activations import Activation

_CODES_OF_BYTE = 2


@dataclass(frozen=True)
class Matrix:
    """Weights of one GEMM.

    Attributes:
        codes: `(l, rows, k/2)` uint8, packed.
        scale: `(l, rows, k/block)` uint8, linear.
    """

    codes: Tensor
    scale: Tensor

    @classmethod
    def of(cls, codes: Tensor, swizzled: Tensor, block: int) -> Matrix:
        """Return weights as routed_moe takes them, their block scales linear."""
        import torch

        from reference.layout import unswizzle_128x4

        columns = codes.shape[2] * _CODES_OF_BYTE // block
        return cls(codes, unswizzle_128x4(swizzled.view(torch.uint8), codes.shape[1], columns))

    @property
    def swizzled(self) -> Tensor:
        """Block scales in 128x4 order, `(l, padded rows, padded columns)` uint8."""
        from reference.layout import swizzle_128x4

        return swizzle_128x4(self.scale)

    def up_and_gate(self, way: Activation, turn: int = 0) -> Matrix:
        """Return rows of up first and then of gate, in turns of so many, or as halves for 0."""
        import torch

        from reference.weight_rows import in_turns

        gate, up = zip(*(_halves(part, way) for part in (self.codes, self.scale)), strict=True)
        if turn:
            return Matrix(*(in_turns(first, second, turn) for first, second in zip(up, gate, strict=True)))
        return Matrix(*(torch.cat(pair, 1).contiguous() for pair in zip(up, gate, strict=True)))

    def shuffled(self) -> Matrix:
        """Return rows as TRT-LLM-gen kernels read them."""
        from reference.weight_rows import shuffled

        return Matrix(shuffled(self.codes).contiguous(), shuffled(self.scale).contiguous())


def _halves(rows: Tensor, way: Activation) -> tuple[Tensor, Tensor]:
    """Return the rows of gate and of up, `(l, rows / 2, columns)` each, as an activation says that they lie."""
    gate, up = way.split(rows.transpose(1, 2))
    return gate.transpose(1, 2).contiguous(), up.transpose(1, 2).contiguous()
