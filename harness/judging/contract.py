"""What a stage returned: checked against the contract, and decoded."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.problems.problem import Problem
from harness.problems.rows import Rows


class ContractError(Exception):
    """A stage returned something of another shape, dtype or layout than the contract says: a FAIL, with the reason."""


@dataclass(frozen=True)
class Quantized:
    """A stage's quantized output: as it was returned, and decoded.

    Attributes:
        packed: logical `(m, k/2, l)` uint8.
        scales: logical 6-D float8_e4m3fn.
        codes: `(l, m, k)` uint8.
        block_scale: `(l, m, k/16)` uint8.
    """

    packed: Tensor
    scales: Tensor
    codes: Tensor
    block_scale: Tensor

    @classmethod
    def decoded(cls, packed: Tensor, scales: Tensor) -> Quantized:
        """Return what was stored, read in the physical layout."""
        codes = layouts.codes_of(packed)
        return cls(
            packed, scales, codes, layouts.block_scales_of(scales, codes.shape[1], codes.shape[2] // 16)
        )

    def without_subnormals(self) -> Quantized:
        """Return it with block scales below E4M3's smallest normal number set to zero, as a kernel may read them."""
        scales = self.scales.clone(memory_format=torch.preserve_format)
        as_bytes = scales.view(torch.uint8)
        as_bytes.masked_fill_((as_bytes > 0) & (as_bytes < 8), 0)
        return Quantized.decoded(self.packed, scales)

    def valid(self, rows: Rows) -> tuple[Tensor, Tensor]:
        """Return codes and scales of the valid rows, `(rows, k)` and `(rows, k/16)` uint8."""
        return rows.take(self.codes), rows.take(self.block_scale)

    def valid_bytes(self, rows: Rows) -> Tensor:
        """Return codes and scales of the valid rows side by side, `(rows, k + k/16)` uint8."""
        return torch.cat(self.valid(rows), dim=-1)


def checked_moe_output(out: Any, problem: Problem) -> Tensor:
    """Return masked_moe's output, or raise ContractError if it is not `(l, m, k)` bfloat16."""
    wanted = (problem.experts, problem.capacity, problem.hidden)
    if not isinstance(out, Tensor) or tuple(out.shape) != wanted or out.dtype != torch.bfloat16:
        raise ContractError(f"masked_moe must return {wanted} bfloat16, got {_described(out)}")
    return out


def checked_quantized(result: Any, shape: torch.Size, stage: str) -> Quantized:
    """Return a stage's output decoded, or raise ContractError where shape, dtype or physical layout is another.

    Args:
        result: what the stage returned.
        shape: `(l, m, k)` that was quantized.
        stage: name for the message.
    """
    experts, rows, k = shape
    if not isinstance(result, tuple) or len(result) != 2:
        raise ContractError(f"{stage} must return (packed, block_scale), got {_described(result)}")
    packed, scales = result
    wanted, wanted_scales = (rows, k // 2, experts), layouts.expected_scale_shape(experts, rows, k // 16)
    if not isinstance(packed, Tensor) or tuple(packed.shape) != wanted or packed.dtype != torch.uint8:
        raise ContractError(
            f"{stage} must return packed codes {wanted} uint8, logical (m, k/2, l), got {_described(packed)}"
        )
    if not isinstance(scales, Tensor) or tuple(scales.shape) != wanted_scales or scales.element_size() != 1:
        raise ContractError(
            f"{stage} must return block scales {wanted_scales} float8_e4m3fn, logical (32, 4, rm, 4, rk, l), "
            f"got {_described(scales)}"
        )
    for kind, tensor in (("rows", packed), ("scales", scales)):
        if not layouts.canonical(tensor, kind):
            raise ContractError(
                f"{stage}: the {'packed codes' if kind == 'rows' else 'block scales'} lie in memory with strides "
                f"{tensor.stride()}; the GEMM reads raw memory, experts outermost, and ignores strides"
            )
    return Quantized.decoded(packed, scales)


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
    return type(value).__name__
