"""Which of the definitions run as Triton kernels here, and their launches. Triton comes with torch for CUDA; it is optional."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from reference.fast.thresholds import infinity_bits

_FORM = {torch.bfloat16: 0, torch.float16: 1, torch.float32: 2}
_TILE = 128  # blocks of one program
CHUNK = 256  # products that tensor cores add: normal data is then certain to be exact
_CHUNKS = 8  # that one program decodes
LIMIT = 2.0**24  # units of both grids that float32 holds
_ROWS, _COLUMNS, _STEP, _WARPS = 128, 128, 64, 8  # of a tile of a product
_PARTS = 4  # of a tile's rows in float64


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


def has_kernels(x: Tensor) -> bool:
    """Return whether the kernels run on a tensor: Triton and an NVIDIA GPU, or, for tests, Triton's interpreter on a CPU."""
    on_gpu = x.is_cuda and torch.version.hip is None
    return _has_triton() and (on_gpu or (not x.is_cuda and os.environ.get("TRITON_INTERPRET") == "1"))


def thresholds(scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return what `reference.fast.thresholds` finds, `(groups, 128)` and `(groups, 128, 8)` int32; the last column is unset.

    Args:
        scale: `(groups,)` float64, encode scales as `has_thresholds` wants them.
        dtype: of the elements.
    """
    from reference.fast.kernels import find_thresholds

    of_byte = torch.empty(len(scale), 128, dtype=torch.int32, device=scale.device)
    of_code = torch.empty(len(scale), 128, 8, dtype=torch.int32, device=scale.device)
    find_thresholds[(len(scale),)](scale, of_byte, of_code, infinity=infinity_bits(dtype), form=_FORM[dtype])
    return of_byte, of_code


def quantize_blocks(x: Tensor, codes: Tensor, block_scale: Tensor, scale: Tensor) -> None:
    """Quantize to NVFP4 in place; arguments as those of `reference.fast.thresholds.quantize_blocks`, all contiguous."""
    _quantize(x, codes, block_scale, scale, torch.arange(len(x), dtype=torch.int32, device=x.device))


def _quantize(x: Tensor, codes: Tensor, block_scale: Tensor, scale: Tensor, group: Tensor) -> None:
    """Quantize contiguous `(len(group), *)`, whose first axis has scales of the groups."""
    from reference.fast.kernels import quantize

    if not x.numel():
        return
    blocks, wide = block_scale.numel(), x.element_size() == 4
    quantize[(-(-blocks // _TILE),)](
        x.view(torch.int32 if wide else torch.int16), codes, block_scale, *thresholds(scale, x.dtype),
        group, blocks, blocks // len(group), infinity=infinity_bits(x.dtype), sign=31 if wide else 15,
        wide=wide, tile=_TILE,
    )  # fmt: skip


def quantize_rows(x: Tensor, scale: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes `(rows, k)` and block scales `(rows, k / 16)` of rows that have an encode scale each.

    Args:
        x: `(rows, k)` bfloat16, float16 or float32.
        scale: `(groups,)` float32, encode scales as `has_thresholds` wants them.
        group: `(rows,)` int32, whose scale a row has.
    """
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    block_scale = torch.empty(*x.shape[:-1], x.shape[-1] // 16, dtype=torch.uint8, device=x.device)
    _quantize(x.contiguous(), codes, block_scale, scale.double(), group)
    return codes, block_scale


def decode_blocks(codes: Tensor, block_scale: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return codes times block scales, `(*, k)`, and the largest code where it is above 15, `(1,)` int32, else 0.

    Args:
        codes: `(*, k)` uint8.
        block_scale: `(*, k / 16)` uint8 or float8_e4m3fn.
        dtype: of the result.
    """
    from reference.fast.kernels import decode

    out = torch.empty(codes.shape, dtype=dtype, device=codes.device)
    largest = torch.zeros(1, dtype=torch.int32, device=codes.device)
    blocks = block_scale.numel()
    if blocks:
        decode[(-(-blocks // _TILE),)](
            codes.contiguous(), block_scale.contiguous().view(torch.uint8), out, largest, blocks, tile=_TILE
        )
    return out, largest


@dataclass(frozen=True)
class Decoded:
    """An operand of `product`: rows decoded to float16, which is exact for E2M1 times E4M3, and how large their chunks are.

    Attributes:
        values: `(*, k)` float16.
        norms: `(*, chunks)` float32: a bound on the Euclidean norm of each chunk over the step of its grid.
    """

    values: Tensor
    norms: Tensor

    @classmethod
    def of(cls, codes: Tensor, block_scale: Tensor) -> Decoded:
        """Return it from codes `(*, k)` and block scales `(*, k / 16)`, uint8."""
        from reference.fast.kernels import decode_with_norms

        k = codes.shape[-1]
        rows, chunks = codes.numel() // max(k, 1), -(-k // CHUNK)
        values = torch.empty(codes.shape, dtype=torch.float16, device=codes.device)
        norms = torch.empty(*codes.shape[:-1], chunks, dtype=torch.float32, device=codes.device)
        if codes.numel():
            decode_with_norms[(rows, -(-chunks // _CHUNKS))](
                codes.contiguous(), block_scale.contiguous().view(torch.uint8), values, norms, k, chunks,
                chunk=CHUNK, at_once=_CHUNKS,
            )  # fmt: skip
        return cls(values, norms)


@dataclass(frozen=True)
class Tiles:
    """Which rows each tile of a product has, and of which expert; on the device.

    Attributes:
        expert: `(tiles,)` int32.
        first: `(tiles,)` int32.
        rows: `(tiles,)` int32.
    """

    expert: Tensor
    first: Tensor
    rows: Tensor

    @classmethod
    def of(cls, counts: Sequence[int], device: torch.device) -> Tiles:
        """Return them for rows that lie expert after expert.

        Args:
            counts: rows of each expert.
            device: where the product runs.
        """
        found, start = [], 0
        for expert, count in enumerate(counts):
            found += [(expert, start + at, min(_ROWS, count - at)) for at in range(0, count, _ROWS)]
            start += count
        table = torch.tensor(found, dtype=torch.int32).view(-1, 3).T.contiguous().to(device, non_blocking=True)
        return cls(table[0], table[1], table[2])


def product(a: Decoded, b: Decoded, alpha: Tensor, tiles: Tiles, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return alpha[e] * a @ b[e].T of every expert's rows, each dot product as exact as float64 has it, rounded once.

    Args:
        a: `(rows, k)`, expert after expert.
        b: `(experts, n, k)`.
        alpha: `(experts,)` float64.
        tiles: of the rows.
        dtype: of the result: float64, or a type to which float32 is rounded.

    Returns:
        `(rows, n)`; and of each tile, `(tiles along n, tiles of rows)` int32, whether tensor cores were not certain to be
        exact, so that float64 did it.
    """
    from reference.fast import kernels

    (_, n, k), chunks = b.values.shape, b.norms.shape[-1]
    out = torch.empty(len(a.values), n, dtype=dtype, device=a.values.device)
    across = -(-n // _COLUMNS)
    doubtful = torch.zeros(across, len(tiles.rows), dtype=torch.int32, device=out.device)
    if not out.numel() or not k:
        return out.zero_(), doubtful
    of_tile = tiles.expert, tiles.first, tiles.rows
    kernels.product[(len(tiles.rows), across)](
        a.values, a.norms, b.values, b.norms, alpha, out, doubtful, *of_tile, n, k, chunks,
        limit=LIMIT, chunk=CHUNK, step=_STEP, rows=_ROWS, columns=_COLUMNS, num_warps=_WARPS, num_stages=3,
    )  # fmt: skip
    kernels.product_in_float64[(len(tiles.rows), across, _PARTS)](
        a.values, b.values, alpha, out, doubtful, *of_tile, n, k,
        step=16, rows=_ROWS, columns=_COLUMNS, parts=_PARTS, num_warps=4,
    )  # fmt: skip
    return out, doubtful
