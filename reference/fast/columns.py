"""NVFP4 quantization on a CPU: the comparisons of `thresholds`, of blocks that stand as columns.

A CPU compares many 16-bit integers at a time where neighbours are compared with neighbours. The elements of a block share
their seven thresholds, so the blocks are turned, four elements at a time: the first four of all blocks, then the second ones.
What is left for each element is seven comparisons and additions of 16 bits, where the definition takes seven of float64 after a
quotient.

Rules: NVFP4-1, NVFP4-2, NVFP4-3, NVFP4-4. The definition: reference.nvfp4.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from reference import e2m1, e4m3
from reference.fast.thresholds import BYTES, infinity_bits, thresholds_of

_BLOCKS = 1 << 13  # at a time, so that they stay in a core's cache
_SIGN = -(1 << 15)
_EXPONENT, _BIAS = 0x7FF << 52, 1023  # of float64


def quantize_blocks(
    x: Tensor, codes: Tensor, block_scale: Tensor, scale: Sequence[float], which: Tensor
) -> list[slice]:
    """Quantize blocks into codes and scales, in place.

    Args:
        x: `(blocks, 16)` bfloat16 or float16.
        codes: `(blocks, 16)` uint8.
        block_scale: `(blocks,)` uint8.
        scale: encode scales as `has_thresholds` wants them.
        which: `(blocks,)` int32, which of them a block has.

    Returns:
        Stretches of blocks that hold NaN: nothing is done there.
    """
    encode = torch.tensor(scale, dtype=torch.float64)
    of_code = _four_times(thresholds_of(tuple(scale), x.dtype, x.device)[1].view(-1, 7).t())
    if x.storage_offset() % 4:  # four elements are read as one number
        x = x.clone()
    left = []
    for start in range(0, len(x), _BLOCKS):
        part = slice(start, start + _BLOCKS)
        # (4, blocks * 4); stacking copies columns several times sooner than a transposed copy does.
        turned = torch.stack(x[part].view(torch.int64).unbind(1)).view(torch.int16)
        bits = turned & ~_SIGN
        largest = bits.amax(0).view(-1, 4).amax(1)
        if int(largest.max()) > infinity_bits(x.dtype):
            left.append(part)
            continue
        # One byte for sixteen elements: the definition costs no more than looking for it among the thresholds.
        of_blocks = encode.index_select(0, which[part])
        byte = _rounded_to_byte(largest.view(x.dtype).double() * of_blocks / e2m1.MAX)
        block_scale[part] = byte
        row = byte + which[part] * BYTES
        reached = (turned & _SIGN) >> 12
        reached &= e2m1.SIGN_BIT
        passed = torch.empty_like(bits)
        # One after the other: torch picks from several rows at once in a slower way.
        for thresholds in of_code:
            threshold = thresholds.index_select(0, row).view(torch.int16)
            # The result has the operands' type: vectorized, which bool is not.
            reached += torch.ge(bits, threshold, out=passed)
        torch.stack(reached.to(torch.uint8).view(torch.int32).unbind(), 1, out=codes[part].view(torch.int32))
    return left


def _four_times(thresholds: Tensor) -> tuple[Tensor, ...]:
    """Return each row of int16 as int64, every number four times in one."""
    return thresholds.unsqueeze(-1).repeat(1, 1, 4).view(torch.int64).squeeze(-1).unbind()


def _rounded_to_byte(x: Tensor) -> Tensor:
    """Return `e4m3.round_to_byte` of float64 values that are no NaN, as int32.

    The power of two below is read from the bits: frexp and ldexp take several times longer.
    """
    below = x.clamp(e4m3.MIN_NORMAL, e4m3.MAX).view(torch.int64) & _EXPONENT
    steps = (x.clamp(max=e4m3.MAX) / below.view(torch.float64)).mul_(8).round_()
    # 8 steps a binade, the smallest of which begins with the byte 8.
    return (steps + ((below >> 52) - (_BIAS - 6)) * 8).int()
