"""FP4 weights as Marlin's kernels take them: tiles of 16 k by 64 rows, scales of eight bits, a factor that holds the bias.

Thread t of a warp reads eight codes of each 16 of a tile's 64 rows at once: k = 2 (t mod 4) + {0, 1, 8, 9} of row t / 4 and
of the eighth row behind it. In one 32-bit word the even ones of these eight stand below the odd ones.

Block scales lie along k, `(l, k / block, n)`; of each 64 rows, row 8 j + i stands at 8 i + j, and then the middle two of each
four change places. Those of NVFP4 are stored as S0E5M3, the upper bits of the float16 of 128 times the scale; E8M0 scales as
they are. The factor of an expert holds what a bfloat16 made of a code's and a scale's bits lacks, 2^119.

Rule: LAYOUT-6.
Source: vLLM marlin_utils_fp4.py, marlin_utils_test.py (get_weight_perm); SGLang kernels/jit/csrc/gemm/marlin,
gptq_marlin_repack.cuh and dequant.h.
"""

from __future__ import annotations

import torch
from torch import Tensor

from reference.e2m1 import pack_e2m1, unpack_e2m1
from reference.e4m3 import decode_e4m3, encode_e4m3

TILE_K, TILE_N = 16, 64
BIAS = 2.0**119
"""How much larger a factor is than the one that codes times scales are multiplied with, for bfloat16 tokens."""
_OF_THREAD = (0, 1, 8, 9)
_IN_WORD = (0, 2, 4, 6, 1, 3, 5, 7)
_SCALE_BIAS = 128.0


def _places() -> Tensor:
    """Return where each code of a tile lies in it, k * 64 + row, `(1024,)` int64."""
    found = []
    for thread in range(32):
        for sixteen in range(TILE_N // 16):
            for value in _IN_WORD:
                k = 2 * (thread % 4) + _OF_THREAD[value % 4]
                row = 16 * sixteen + thread // 4 + 8 * (value // 4)
                found.append(k * TILE_N + row)
    return torch.tensor(found)


def to_marlin(packed: Tensor) -> Tensor:
    """Return packed codes `(l, n, k/2)` uint8 as Marlin takes them, `(l, k/16, 2n)` int32. Raises ValueError as from_marlin.

    Rule: LAYOUT-6.
    """
    experts, rows, half = packed.shape
    _require_tiles(2 * half, rows)
    codes = unpack_e2m1(packed).view(experts, rows // TILE_N, TILE_N, 2 * half // TILE_K, TILE_K)
    tiles = codes.permute(0, 3, 1, 4, 2).flatten(-2)[..., _places().to(packed.device)]
    return pack_e2m1(tiles).view(torch.int32).reshape(experts, 2 * half // TILE_K, 2 * rows)


def from_marlin(words: Tensor) -> Tensor:
    """Return packed codes `(l, n, k/2)` uint8, the even element in the low nibble.

    Args:
        words: `(l, k/16, 2n)` int32.

    Raises:
        ValueError: k is no multiple of 16, or n none of 64.

    Rule: LAYOUT-6.
    """
    experts, tiles_k, width = words.shape
    _require_tiles(tiles_k * TILE_K, width // 2)
    raw = unpack_e2m1(words.contiguous().view(torch.uint8)).view(experts, tiles_k, -1, TILE_K * TILE_N)
    tiles = torch.empty_like(raw)
    tiles[..., _places().to(words.device)] = raw
    codes = tiles.view(experts, tiles_k, -1, TILE_K, TILE_N).permute(0, 2, 4, 1, 3)
    return pack_e2m1(codes.reshape(experts, width // 2, tiles_k * TILE_K))


def scales_to_marlin(scales: Tensor, kind: str) -> Tensor:
    """Return block scales `(l, n, k / block)` uint8 as Marlin takes them, `(l, k / block, n)` uint8.

    Args:
        scales: E4M3 or E8M0 bytes.
        kind: "e4m3" or "e8m0".

    Raises:
        ValueError: n is no multiple of 64; an E4M3 scale is negative or NaN.

    Rule: LAYOUT-6.
    """
    _require_tiles(TILE_K, scales.shape[1])
    stored = _s0e5m3(scales) if kind == "e4m3" else scales
    turned = stored.transpose(1, 2).unflatten(-1, (-1, 8, 8)).transpose(-1, -2).flatten(-3)  # type: ignore[no-untyped-call]
    return _middle_swapped(turned)


def scales_from_marlin(stored: Tensor, kind: str) -> Tensor:
    """Return block scales `(l, n, k / block)` uint8, linear.

    Args:
        stored: `(l, k / block, n)`, one byte an element.
        kind: "e4m3" or "e8m0".

    Raises:
        ValueError: n is no multiple of 64; a byte stands for no scale of E4M3.

    Rule: LAYOUT-6.
    """
    _require_tiles(TILE_K, stored.shape[2])
    turned = _middle_swapped(stored.view(torch.uint8))
    linear = turned.unflatten(-1, (-1, 8, 8)).transpose(-1, -2).flatten(-3).transpose(1, 2).contiguous()  # type: ignore[no-untyped-call]
    return _e4m3(linear) if kind == "e4m3" else linear


def _require_tiles(k: int, rows: int) -> None:
    if k % TILE_K or rows % TILE_N:
        raise ValueError(f"marlin: k must be a multiple of {TILE_K} and rows of {TILE_N}, got {k} and {rows}")


def _middle_swapped(scales: Tensor) -> Tensor:
    fours = scales.unflatten(-1, (-1, 4))  # type: ignore[no-untyped-call]
    swapped: Tensor = fours[..., [0, 2, 1, 3]].flatten(-2).contiguous()
    return swapped


def _s0e5m3(scales: Tensor) -> Tensor:
    values = decode_e4m3(scales) * _SCALE_BIAS
    if bool((values.isnan() | (values < 0)).any()):
        raise ValueError("marlin: block scales have no sign and are numbers, got a negative one or NaN")
    return (values.half().view(torch.int16) >> 7).to(torch.uint8)


def _e4m3(stored: Tensor) -> Tensor:
    values = (stored.to(torch.int16) << 7).view(torch.half).float() / _SCALE_BIAS
    scales = encode_e4m3(values)
    if bool((other := decode_e4m3(scales) != values).any()):
        raise ValueError(f"marlin: block scales must be numbers of E4M3, got {float(values[other][0]):g}")
    return scales
