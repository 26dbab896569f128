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
from reference.formats import NVFP4, Coded, Format


class ContractError(Exception):
    """A stage returned something of another shape, dtype or layout than the contract says: a FAIL, with the reason."""


@dataclass(frozen=True)
class Quantized:
    """A stage's quantized output: as it was returned, and decoded.

    Attributes:
        pair: as it came: what is stored, logical `(m, k/2, l)` uint8 or `(m, k, l)`, and its scales.
        coded: `(l, m, k)`, linear.
        form: its format.
    """

    pair: layouts.Pair
    coded: Coded
    form: Format = NVFP4

    @property
    def codes(self) -> Tensor:
        """Elements, `(l, m, k)`."""
        return self.coded.codes

    @property
    def block_scale(self) -> Tensor:
        """Block scales, `(l, m, k/block)`."""
        return self.coded.block_scale

    @classmethod
    def decoded(cls, pair: layouts.Pair, form: Format = NVFP4) -> Quantized:
        """Return what was stored, read in the physical layout."""
        return cls(pair, layouts.loaded(form, pair), form)

    def without_subnormals(self) -> Quantized:
        """Return it with block scales below E4M3's smallest normal number set to zero, as a kernel may read them."""
        packed, scales = self.pair
        if scales is None or self.form.scale != "e4m3":
            return self
        scales = scales.clone(memory_format=torch.preserve_format)
        as_bytes = scales.view(torch.uint8)
        as_bytes.masked_fill_((as_bytes > 0) & (as_bytes < 8), 0)
        return Quantized.decoded((packed, scales), self.form)

    def valid(self, rows: Rows) -> Coded:
        """Return the valid rows, `(rows, k)`."""
        return self.coded.map(rows.take)

    def valid_bytes(self, rows: Rows) -> Tensor:
        """Return codes and scales of the valid rows side by side, `(rows, k + k/block)`."""
        return side_by_side(self.valid(rows))


def side_by_side(coded: Coded) -> Tensor:
    """Return codes and scales side by side, in a type that holds both: `(rows, k + k/block)` uint8 of NVFP4."""
    parts = [coded.codes, coded.block_scale, coded.row_scale]
    return torch.cat([part for part in parts if part is not None and part.shape[-1]], dim=-1)


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


def checked_moe_output(
    out: Any, problem: Problem, device: str, dtype: torch.dtype = torch.bfloat16
) -> Tensor:
    """Return masked_moe's output, or raise ContractError if it is not `(l, m, k)` of the type on the declared device."""
    wanted = (problem.experts, problem.capacity, problem.hidden)
    return checked(out, "masked_moe", "", wanted, dtype, device)


def checked_quantized(
    result: Any, shape: torch.Size, stage: str, device: str, form: Format = NVFP4
) -> Quantized:
    """Return a stage's output decoded, or raise ContractError where shape, dtype or physical layout is another.

    Args:
        result: what the stage returned.
        shape: `(l, m, k)` that was quantized.
        stage: name for the message.
        device: that the candidate declares.
        form: the format that it declares.
    """
    experts, rows, k = shape
    if not isinstance(result, tuple) or tuple.__len__(result) != 2:
        raise ContractError(f"{stage} must return (packed, block_scale), got {described(result)}")
    packed, scales = tuple.__iter__(result)
    width, logical = (k // 2, "(m, k/2, l)") if form.element == "e2m1" else (k, "(m, k, l)")
    packed = checked(packed, stage, "packed", (rows, width, experts), form.dtype, device, logical)
    _check_canonical(stage, packed, "rows")
    if not form.scale and not form.rows:
        if scales is not None:
            raise ContractError(
                f"{stage} must return None for the block scales of {form.name}, got {described(scales)}"
            )
        return Quantized.decoded((packed, None), form)
    if not form.swizzled:
        wanted = experts, rows, 1 if form.rows else k // form.block
        scales = checked(scales, stage, "scales", wanted, torch.float32, device, "(l, m, k/block)")
        return Quantized.decoded((packed, scales.contiguous()), form)
    wanted_scales = layouts.expected_scale_shape(experts, rows, k // form.block)
    bytes_of_any_kind = type(scales) is Tensor and scales.element_size() == 1
    dtype = scales.dtype if bytes_of_any_kind else torch.float8_e4m3fn
    scales = checked(scales, stage, "block_scale", wanted_scales, dtype, device, "(32, 4, rm, 4, rk, l)")
    _check_canonical(stage, scales, "scales")
    return Quantized.decoded((packed, scales), form)


def _check_canonical(stage: str, tensor: Tensor, kind: str) -> None:
    """Raise ContractError where a tensor does not lie in memory as kernels read it."""
    if not layouts.canonical(tensor, kind):
        raise ContractError(
            f"{stage}: the {'packed codes' if kind == 'rows' else 'block scales'} lie in memory with strides "
            f"{tensor.stride()}; the GEMM reads raw memory, experts outermost, and ignores strides"
        )


def described(value: Any) -> str:
    """Return what a value is, in words, without asking it."""
    if type(value) is Tensor:
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
    return str(type.__dict__["__name__"].__get__(type(value)))
