"""NVFP4 quantization on a CPU: the comparisons of `thresholds`, of blocks that stand as columns.

A CPU compares sixteen 16-bit integers at a time where neighbours are compared with neighbours. The elements of a block share
their seven thresholds, so the blocks are turned: the first elements of all blocks, then the second ones. What is left for each
element is seven comparisons and additions of 16 bits, where the definition takes seven of float64 after a quotient.

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
    of_code = thresholds_of(tuple(scale), x.dtype, x.device)[1].view(-1, 7).t().contiguous()
    left = []
    for start in range(0, len(x), _BLOCKS):
        part = slice(start, start + _BLOCKS)
        turned = x[part].view(torch.int16).t().contiguous()
        bits = turned & ~_SIGN
        largest = bits.amax(0)
        if int(largest.max()) > infinity_bits(x.dtype):
            left.append(part)
            continue
        # One byte for sixteen elements: the definition costs no more than looking for it among the thresholds.
        of_blocks = encode.index_select(0, which[part])
        byte = e4m3.round_to_byte(largest.view(x.dtype).double() * of_blocks / e2m1.MAX)
        block_scale[part] = byte
        reached = (turned & _SIGN) >> 12
        reached &= e2m1.SIGN_BIT
        passed = torch.empty_like(bits)
        for threshold in of_code.index_select(1, byte + which[part] * BYTES):
            reached += torch.ge(
                bits, threshold, out=passed
            )  # of the operands' type: vectorized, which bool is not
        codes[part] = reached.t()
    return left
