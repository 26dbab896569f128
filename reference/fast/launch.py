"""Which of the definitions run as Triton kernels here, and their launches. Triton comes with torch for CUDA; it is optional."""

from __future__ import annotations

import importlib.util
import os
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

_TILE = 128  # blocks of one program
# Products that tensor cores add in float32. Those of a block of 16 always fit: codes are at most 12 halves and scales at most
# 15 of their lowest bit, so that their sum is at most 16 * 12 * 12 * 15 * 15 < 2^19 units. Longer chunks need the proof of
# their norms.
_BLOCK = 16
CHUNK = 128
LIMIT = 2.0**24  # units of both grids that float32 holds
_CHUNKS = 16  # that one program decodes
_ROWS, _COLUMNS, _STEP = 64, 128, 64  # of a tile of a product


@cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@cache
def compiles(device: torch.device) -> bool:
    """Return whether Triton can compile for a GPU here, tried once: it needs a C compiler, and leaves old GPUs out."""
    codes = torch.zeros(1, 16, dtype=torch.uint8, device=device)
    try:
        decode_blocks(codes, codes[:, :1], torch.float32)
    except Exception as error:  # noqa: BLE001 - whatever it is, torch alone gives the same bits
        reason = next(iter(str(error).splitlines()), "")
        warnings.warn(
            f"the reference runs in torch alone, several times slower: Triton does not run on {device} "
            f"({type(error).__name__}: {reason})",
            stacklevel=2,
        )
        return False
    return True


_in_torch_alone = ContextVar("in torch alone", default=False)


@contextmanager
def torch_alone() -> Iterator[None]:
    """Let the references run without the kernels, as where there is no Triton: the same bits, to be compared or timed."""
    token = _in_torch_alone.set(True)
    try:
        yield
    finally:
        _in_torch_alone.reset(token)


def has_kernels(x: Tensor) -> bool:
    """Return whether the kernels run on a tensor: Triton and an NVIDIA GPU, or, for tests, Triton's interpreter on a CPU."""
    if _in_torch_alone.get() or not _has_triton():
        return False
    if x.is_cuda:
        return torch.version.hip is None and compiles(x.device)
    return os.environ.get("TRITON_INTERPRET") == "1"


def quantize_blocks(
    x: Tensor, codes: Tensor, block_scale: Tensor, scale: Tensor, group: Tensor | None = None
) -> None:
    """Quantize to NVFP4 in place, any encode scales.

    Args:
        x: `(rows, *)` bfloat16, float16 or float32, contiguous, as all are.
        codes: the same shape, uint8.
        block_scale: `(rows, *)` uint8, one for 16 elements.
        scale: `(groups,)` float32.
        group: `(rows,)` int32, whose scale a row has; None: each has its own, or all have the only one.
    """
    from reference.fast.quantize_kernel import quantize

    blocks = block_scale.numel()
    if not blocks:
        return
    if group is None:
        group = torch.arange(len(scale), dtype=torch.int32, device=x.device)
    given = x.view(torch.int16) if x.dtype == torch.bfloat16 else x
    of_row = blocks // len(group)
    pairs = x.dtype == torch.bfloat16 and x.data_ptr() % 4 == 0 and codes.data_ptr() % 2 == 0
    quantize[(len(group) * -(-of_row // _TILE),)](
        given, codes, block_scale, scale.contiguous(), group, of_row, tile=_TILE, pairs=pairs, num_warps=2
    )


def quantize_rows(x: Tensor, scale: Tensor, group: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes `(rows, k)` and block scales `(rows, k / 16)` of rows that have an encode scale each; as above."""
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    block_scale = torch.empty(*x.shape[:-1], x.shape[-1] // 16, dtype=torch.uint8, device=x.device)
    quantize_blocks(x.contiguous(), codes, block_scale, scale, group)
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
    def of(cls, codes: Tensor, block_scale: Tensor, largest: Tensor) -> Decoded:
        """Return it from codes and block scales.

        Args:
            codes: `(*, k)` uint8.
            block_scale: `(*, k / 16)` uint8 or float8_e4m3fn.
            largest: `(1,)` int32, raised to the largest code where that is above 15.
        """
        from reference.fast.kernels import decode_with_norms

        k = codes.shape[-1]
        rows, chunks = codes.numel() // max(k, 1), -(-k // CHUNK)
        values = torch.empty(codes.shape, dtype=torch.float16, device=codes.device)
        norms = torch.empty(*codes.shape[:-1], chunks, dtype=torch.float32, device=codes.device)
        if codes.numel():
            decode_with_norms[(rows, -(-chunks // _CHUNKS))](
                codes.contiguous(), block_scale.contiguous().view(torch.uint8), values, norms, largest, k, chunks,
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
        table = (
            torch.tensor(found, dtype=torch.int32).view(-1, 3).T.contiguous().to(device, non_blocking=True)
        )
        return cls(table[0], table[1], table[2])


def product(a: Decoded, b: Decoded, alpha: Tensor, tiles: Tiles, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return alpha[e] * a @ b[e].T of every expert's rows, each dot product as exact as float64 has it, rounded once.

    Args:
        a: `(rows, k)`, expert after expert.
        b: `(experts, n, k)`.
        alpha: `(experts,)` float64.
        tiles: of the rows.
        dtype: of the result, float32 or float64.

    Returns:
        `(rows, n)`; and of each tile, `(tiles along n, tiles of rows)` int32, whether chunks were not certain to be exact, so
        that it was done again, block by block.
    """
    from reference.fast import kernels

    _, n, k = b.values.shape
    out = torch.empty(len(a.values), n, dtype=dtype, device=a.values.device)
    across = -(-n // _COLUMNS)
    doubtful = torch.zeros(across, len(tiles.rows), dtype=torch.int32, device=out.device)
    if not out.numel() or not k:
        return out.zero_(), doubtful
    given = (
        a.values,
        a.norms,
        b.values,
        b.norms,
        alpha.contiguous(),
        out,
        doubtful,
        tiles.expert,
        tiles.first,
        tiles.rows,
        n,
        k,
    )
    sizes: dict[str, int] = {"rows": _ROWS, "columns": _COLUMNS, "num_warps": 4}
    grid = len(tiles.rows), across
    kernels.product[grid](
        *given, limit=LIMIT, chunk=CHUNK, step=min(_STEP, CHUNK), again=False, **sizes, num_stages=3
    )
    kernels.product[grid](*given, limit=LIMIT, chunk=_BLOCK, step=_BLOCK, again=True, **sizes, num_stages=3)
    return out, doubtful
