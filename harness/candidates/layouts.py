"""Between logical tensors (experts, rows, k) and the physical layouts that FlashInfer's kernels take and return.

Packed operands are uint8, logical (m, k/2, l) over contiguous (l, m, k/2) memory. Block scales are float8_e4m3fn,
logical (32, 4, rm, 4, rk, l) over contiguous (l, rm, rk, 32, 4, 4) memory, which is 128x4 order per expert.
Source: FlashInfer gemm/kernels/grouped_gemm_masked_wrapper.py and cute_dsl/utils.py, convert_sf_to_mma_layout.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from harness.emulation import memory
from reference.e2m1 import pack_e2m1, unpack_e2m1
from reference.formats import Coded, Format
from reference.layout import padded_extents, swizzle_128x4, unswizzle_128x4
from reference.nvfp4 import BLOCK, decode_packed

_PHYSICAL_TO_LOGICAL = (3, 4, 1, 5, 2, 0)
_LOGICAL_TO_PHYSICAL = (5, 2, 4, 0, 1, 3)


Pair = tuple[Tensor, Any]
"""An operand as a stage takes and returns it: what is stored, and its scales, a tensor or None of a format that has none."""


def stored(form: Format, coded: Coded, fill: int = 0) -> Pair:
    """Return an operand `(l, m, k)` of any format as a kernel takes it; padding bytes of its block scales hold `fill`.

    E2M1 codes are packed. Others are logical `(m, k, l)` over contiguous `(l, m, k)` memory. E8M0 scales are uint8.
    Float32 scales are contiguous: `(l, m, k/block)`, or `(l, m, 1)` of rows.
    """
    codes = elements(form, coded.codes)
    if form.swizzled:
        block_scale = scales(coded.block_scale, fill)
        return codes, block_scale if form.scale == "e4m3" else block_scale.view(torch.uint8)
    floats = coded.row_scale if form.rows else coded.block_scale if form.scale else None
    return codes, floats if floats is None else floats.contiguous()


def elements(form: Format, codes: Tensor) -> Tensor:
    """Return elements `(l, m, k)` as a kernel takes them, logical `(m, k, l)`, or `(m, k/2, l)` of packed codes."""
    return (pack_e2m1(codes) if form.element == "e2m1" else codes.contiguous()).permute(1, 2, 0)


def weight_scales(form: Format, block_scale: Tensor) -> Tensor:
    """Return block scales `(l, n, k/block)` as masked_moe takes those of weights: swizzled, E8M0 as uint8."""
    swizzled = swizzle_128x4(block_scale)
    return swizzled.view(torch.float8_e4m3fn) if form.scale == "e4m3" else swizzled


def loaded(form: Format, pair: Pair) -> Coded:
    """Return an operand that lies as `stored` gives it, linear."""
    memory, given = pair[0].permute(2, 0, 1), pair[1]
    codes = unpack_e2m1(memory) if form.element == "e2m1" else memory
    if form.swizzled:
        return Coded(codes, block_scales_of(given, codes.shape[1], codes.shape[2] // form.block))
    none = codes.new_zeros((*codes.shape[:2], 0), dtype=torch.uint8)
    return Coded(codes, none, given) if form.rows else Coded(codes, none if given is None else given)


def values(form: Format, pair: Pair, dtype: torch.dtype) -> Tensor:
    """Return what an operand that lies as `stored` gives it stands for, `(l, m, k)`, without factors of rows."""
    if form.block != BLOCK:
        return form.values(loaded(form, pair), dtype)
    packed = pair[0].permute(2, 0, 1)
    block_scale = block_scales_of(pair[1], packed.shape[1], packed.shape[2] * 2 // BLOCK)
    return decode_packed(packed, block_scale, dtype)


def operand(codes: Tensor) -> Tensor:
    """Return codes `(l, m, k)` uint8 as a packed operand, logical `(m, k/2, l)`."""
    return pack_e2m1(codes).permute(1, 2, 0)


def codes_of(packed: Tensor) -> Tensor:
    """Return the codes `(l, m, k)` of a packed operand, logical `(m, k/2, l)`."""
    return unpack_e2m1(packed.permute(2, 0, 1))


def scales(block_scale: Tensor, fill: int = 0) -> Tensor:
    """Return linear block scales `(l, m, k/16)` uint8 as a kernel takes them; padding bytes hold `fill`."""
    return as_mma(swizzle_128x4(block_scale, fill))


def as_mma(swizzled: Tensor) -> Tensor:
    """Return swizzled bytes `(l, padded rows, padded columns)` as the logical 6-D float8_e4m3fn view of them."""
    experts, rows, columns = swizzled.shape
    physical = swizzled.view(torch.float8_e4m3fn).view(experts, rows // 128, columns // 4, 32, 4, 4)
    return physical.permute(_PHYSICAL_TO_LOGICAL)


def swizzled_bytes(mma: Tensor) -> Tensor:
    """Return the bytes `(l, padded rows, padded columns)` uint8 of a logical 6-D scale tensor, whatever its strides."""
    physical = mma.view(torch.uint8).permute(_LOGICAL_TO_PHYSICAL).contiguous()
    experts, row_tiles, column_tiles = physical.shape[:3]
    return physical.view(experts, row_tiles * 128, column_tiles * 4)


def block_scales_of(mma: Tensor, rows: int, columns: int) -> Tensor:
    """Return linear block scales `(l, rows, columns)` uint8 of a logical 6-D scale tensor."""
    return unswizzle_128x4(swizzled_bytes(mma), rows, columns)


def empty_out(experts: int, rows: int, n: int, dtype: torch.dtype, device: str, fill: float) -> Tensor:
    """Return an output tensor, logical `(m, n, l)` over contiguous `(l, m, n)` memory, filled with one value."""
    return torch.full((experts, rows, n), fill, dtype=dtype, device=device).permute(1, 2, 0)


def canonical(tensor: Tensor, kind: str) -> bool:
    """Return whether a tensor lies in memory the way kernels that ignore strides read it.

    Args:
        tensor: a packed operand or output ("rows": logical (m, k, l)), or block scales ("scales": 6-D, float32 ones 3-D).
        kind: "rows" or "scales".
    """
    if kind == "scales" and tensor.ndim == 3:
        return tensor.is_contiguous()
    order = (2, 0, 1) if kind == "rows" else _LOGICAL_TO_PHYSICAL
    return tensor.permute(order).is_contiguous()


def expected_scale_shape(experts: int, rows: int, columns: int) -> tuple[int, ...]:
    """Return the logical 6-D shape of the block scales of `(experts, rows, columns)`."""
    padded_rows, padded_columns = padded_extents(rows, columns, "128x4")
    return (32, 4, padded_rows // 128, 4, padded_columns // 4, experts)


def with_block_scale(scales: Tensor, block_scale: Tensor) -> Tensor:
    """Return a copy of a logical 6-D scale tensor that holds these linear scales `(l, rows, columns)`; padding kept."""
    inside = swizzle_128x4(torch.ones_like(block_scale), 0).bool()
    old = swizzled_bytes(scales)
    changed = as_mma(torch.where(inside, swizzle_128x4(block_scale, 0), old))
    return changed.view(scales.dtype)


def unwritten(form: Format, shape: tuple[int, int, int], device: torch.device) -> Pair:
    """Return an operand `(l, m, k)` that no kernel has written: NaN, or bytes of ones."""
    codes = memory.unwritten(shape, form.dtype, device)
    codes = codes & 15 if form.element == "e2m1" else codes
    of_scale = torch.float32 if form.scale == "float32" else torch.uint8
    blocks = shape[2] // form.block if form.block else 0
    row_scale = memory.unwritten((*shape[:2], 1), torch.float32, device) if form.rows else None
    return stored(
        form, Coded(codes, memory.unwritten((*shape[:2], blocks), of_scale, device), row_scale), 0x7F
    )
