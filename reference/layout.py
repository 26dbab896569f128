"""Where a block scale lies in memory: linear, 128x4 (tensor-core order) and 8x4.

A tile of 128 rows x 4 scale columns fills 512 consecutive bytes; row r and column c of a tile lie at
`(r % 32) * 16 + (r // 32) * 4 + c`. A tile of 8 x 4 fills 32 bytes in row-major order. Tiles follow each other row by
row. Extents are padded up to whole tiles.

Rules: LAYOUT-1 (128x4), LAYOUT-2 (8x4), LAYOUT-3 (padding).
Source: NVIDIA cuBLAS documentation, "1D block scaling factors layout"; FlashInfer csrc/nv_internal/tensorrt_llm/
kernels/quantization_utils.cuh, get_sf_out_offset_128x4 and get_sf_out_offset_8x4.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

TILE_ROWS = {"linear": 1, "128x4": 128, "8x4": 8}
TILE_COLUMNS = {"linear": 1, "128x4": 4, "8x4": 4}


def padded_extents(rows: int, columns: int, layout: str) -> tuple[int, int]:
    """Return rows and scale columns rounded up to whole tiles of the layout.

    Raises:
        ValueError: unknown layout.
    """
    if layout not in TILE_ROWS:
        raise ValueError(f"padded_extents: layout must be one of {', '.join(TILE_ROWS)}, got {layout!r}")
    tile_rows, tile_columns = TILE_ROWS[layout], TILE_COLUMNS[layout]
    return math.ceil(rows / tile_rows) * tile_rows, math.ceil(columns / tile_columns) * tile_columns


def pad_scales(scales: Tensor, layout: str, fill: int = 0) -> Tensor:
    """Return the scales padded with `fill` to whole tiles.

    Args:
        scales: `(*, rows, columns)` of a one-byte dtype.
        layout: "linear", "128x4" or "8x4".
        fill: byte value of the padding.

    Returns:
        `(*, padded rows, padded columns)` of the same dtype.
    """
    rows, columns = scales.shape[-2:]
    padded_rows, padded_columns = padded_extents(rows, columns, layout)
    out = torch.full(
        (*scales.shape[:-2], padded_rows, padded_columns), fill, dtype=torch.uint8, device=scales.device
    )
    out[..., :rows, :columns] = scales.view(torch.uint8)
    return out.view(scales.dtype)


def swizzle_128x4(scales: Tensor, fill: int = 0) -> Tensor:
    """Return the scales in 128x4 order, padded.

    Args:
        scales: `(*, rows, columns)` of a one-byte dtype, linear.
        fill: byte value of the padding.

    Returns:
        `(*, padded rows, padded columns)` of the same dtype, contiguous. The bytes in memory are in 128x4 order; the
        shape only says how many there are (FlashInfer's and SGLang's convention).

    Rules: LAYOUT-1, LAYOUT-3.
    """
    padded = pad_scales(scales, "128x4", fill)
    rows, columns = padded.shape[-2:]
    tiles = _quads(padded).reshape(-1, rows // 128, 4, 32, columns // 4)
    return tiles.permute(0, 1, 4, 3, 2).flatten().view(scales.dtype).view(padded.shape)


def unswizzle_128x4(swizzled: Tensor, rows: int, columns: int) -> Tensor:
    """Return the scales in linear order, without their padding.

    Args:
        swizzled: `(*, padded rows, padded columns)` of a one-byte dtype, contiguous.
        rows: rows without padding.
        columns: scale columns without padding.

    Returns:
        `(*, rows, columns)` of the same dtype, contiguous.

    Raises:
        ValueError: the extents are not those of `rows` x `columns` padded to whole tiles.

    Rules: LAYOUT-1, LAYOUT-3.
    """
    padded = _checked_extents("unswizzle_128x4", swizzled, rows, columns, "128x4")
    tiles = _quads(swizzled).reshape(-1, padded[0] // 128, padded[1] // 4, 32, 4)
    linear = tiles.permute(0, 1, 4, 3, 2).flatten().view(swizzled.dtype).view(swizzled.shape)
    return linear[..., :rows, :columns].contiguous()


def swizzle_8x4(scales: Tensor, fill: int = 0) -> Tensor:
    """Return the scales in 8x4 order, padded; see `swizzle_128x4`. Rules: LAYOUT-2, LAYOUT-3."""
    padded = pad_scales(scales, "8x4", fill)
    rows, columns = padded.shape[-2:]
    tiles = _quads(padded).reshape(-1, rows // 8, 8, columns // 4)
    return tiles.permute(0, 1, 3, 2).flatten().view(scales.dtype).view(padded.shape)


def unswizzle_8x4(swizzled: Tensor, rows: int, columns: int) -> Tensor:
    """Return the scales in linear order, without their padding; see `unswizzle_128x4`. Rules: LAYOUT-2, LAYOUT-3."""
    padded = _checked_extents("unswizzle_8x4", swizzled, rows, columns, "8x4")
    tiles = _quads(swizzled).reshape(-1, padded[0] // 8, padded[1] // 4, 8)
    linear = tiles.permute(0, 1, 3, 2).flatten().view(swizzled.dtype).view(swizzled.shape)
    return linear[..., :rows, :columns].contiguous()


def offset_128x4(row: int, column: int, columns: int) -> int:
    """Return the byte offset of one scale in a 128x4 matrix of `columns` scale columns: the formula itself.

    Source: FlashInfer quantization_utils.cuh, get_sf_out_offset_128x4. Rule: LAYOUT-1.
    """
    tile = row // 128 * math.ceil(columns / 4) + column // 4
    return tile * 512 + row % 32 * 16 + row % 128 // 32 * 4 + column % 4


def offset_8x4(row: int, column: int, columns: int) -> int:
    """Return the byte offset of one scale in an 8x4 matrix of `columns` scale columns. Rule: LAYOUT-2."""
    return (row // 8 * math.ceil(columns / 4) + column // 4) * 32 + row % 8 * 4 + column % 4


def _quads(scales: Tensor) -> Tensor:
    """Return one-byte elements `(*, columns)` four at a time, `(*, columns / 4)` int32: those of a tile's row stay together.

    Moved so they cost a fifth of what single bytes do.
    """
    scales = scales.view(torch.uint8).contiguous()
    if scales.storage_offset() % 4:  # a part of other memory
        scales = scales.clone()
    return scales.view(torch.int32)


def _checked_extents(name: str, swizzled: Tensor, rows: int, columns: int, layout: str) -> tuple[int, int]:
    padded = padded_extents(rows, columns, layout)
    if swizzled.element_size() != 1:
        raise ValueError(f"{name}: swizzled must have a one-byte dtype, got {swizzled.dtype}")
    if tuple(swizzled.shape[-2:]) != padded:
        raise ValueError(
            f"{name}: {rows} x {columns} scales fill {padded[0]} x {padded[1]} bytes in layout {layout}, "
            f"got {tuple(swizzled.shape)}"
        )
    return padded
