"""What a stage returned: checked against the contract, and decoded."""

from __future__ import annotations

from collections.abc import Sequence
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


def checked(
    value: Any,
    stage: str,
    name: str,
    shape: Sequence[int],
    dtype: torch.dtype,
    device: str,
    extents: str = "",
) -> Tensor:
    """Return what a stage returned as a plain tensor, or raise ContractError where it is not what the contract says.

    A plain tensor is one whose numbers are read like any other's: dense, and no subclass.

    Args:
        value: what came back.
        stage: which stage, for the message.
        name: which of its results, "" where it returns one.
        shape: as the contract has it.
        dtype: the same.
        device: that the candidate declares.
        extents: what the extents are called, for the message.
    """
    wanted = f"{tuple(shape)} {str(dtype).removeprefix('torch.')}{extents and f', logical {extents}'}"
    must = f"{stage} must return {name and f'{name} '}{wanted}"
    if type(value) not in {Tensor, torch.nn.Parameter}:
        kind = ", a subclass of torch.Tensor" if issubclass(type(value), Tensor) else ""
        raise ContractError(f"{must}, got {described(value)}{kind}")
    tensor: Tensor = value.detach()
    if tensor.device.type != torch.device(device).type:
        raise ContractError(f"{stage}: {name or 'its output'} lies on {tensor.device}, {device} is declared")
    if tensor.layout is not torch.strided:
        raise ContractError(f"{must}, got one of layout {tensor.layout}, which is not dense")
    if tuple(tensor.shape) != tuple(shape) or tensor.dtype != dtype:
        raise ContractError(f"{must}, got {described(tensor)}")
    return tensor


def checked_list(value: Any, what: str, length: int) -> list[Any]:
    """Return a list or tuple of a length, as a list, or raise ContractError where a stage returned something else."""
    if not isinstance(value, (list, tuple)) or len(value) != length:
        got = f"{len(value)}" if isinstance(value, (list, tuple)) else described(value)
        raise ContractError(f"{what} must be a list of {length}, got {got}")
    return list(value)


def checked_moe_output(out: Any, problem: Problem, device: str) -> Tensor:
    """Return masked_moe's output, or raise ContractError if it is not `(l, m, k)` bfloat16 on the declared device."""
    wanted = (problem.experts, problem.capacity, problem.hidden)
    return checked(out, "masked_moe", "", wanted, torch.bfloat16, device)


def checked_quantized(result: Any, shape: torch.Size, stage: str, device: str) -> Quantized:
    """Return a stage's output decoded, or raise ContractError where shape, dtype or physical layout is another.

    Args:
        result: what the stage returned.
        shape: `(l, m, k)` that was quantized.
        stage: name for the message.
        device: that the candidate declares.
    """
    experts, rows, k = shape
    if not isinstance(result, tuple) or tuple.__len__(result) != 2:
        raise ContractError(f"{stage} must return (packed, block_scale), got {described(result)}")
    packed, scales = tuple.__iter__(result)
    wanted_scales = layouts.expected_scale_shape(experts, rows, k // 16)
    packed = checked(packed, stage, "packed", (rows, k // 2, experts), torch.uint8, device, "(m, k/2, l)")
    bytes_of_any_kind = type(scales) is Tensor and scales.element_size() == 1
    dtype = scales.dtype if bytes_of_any_kind else torch.float8_e4m3fn
    scales = checked(scales, stage, "block_scale", wanted_scales, dtype, device, "(32, 4, rm, 4, rk, l)")
    for kind, tensor in (("rows", packed), ("scales", scales)):
        if not layouts.canonical(tensor, kind):
            raise ContractError(
                f"{stage}: the {'packed codes' if kind == 'rows' else 'block scales'} lie in memory with strides "
                f"{tensor.stride()}; the GEMM reads raw memory, experts outermost, and ignores strides"
            )
    return Quantized.decoded(packed, scales)


def described(value: Any) -> str:
    """Return what a value is, in words, without asking it."""
    if type(value) is Tensor:
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
    return str(type.__dict__["__name__"].__get__(type(value)))
