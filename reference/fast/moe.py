"""The masked MoE of reference.moe by Triton kernels: the same bits, the valid rows of some experts at a time."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from reference.activations import Activation
from reference.e2m1 import check_codes
from reference.fast.launch import Decoded, Tiles, product, quantize_rows

_DECODED = 1 << 29  # bytes of decoded weights at a time


def masked_moe(
    rows: tuple[Tensor, ...],
    input_scale: Tensor | None,
    w1: tuple[Tensor, Tensor, Tensor],
    w2: tuple[Tensor, Tensor, Tensor],
    a2_scale: Tensor,
    counts: Sequence[int],
    activation: str,
) -> Tensor:
    """Return the layer's valid rows, expert after expert.

    Args:
        rows: `(rows, k)` bfloat16 alone, or codes and block scales.
        input_scale: `(experts,)` float32, None with codes.
        w1: codes `(experts, 2n, k)`, block scales and alphas of the first GEMM.
        w2: likewise, `(experts, k, n)`.
        a2_scale: `(experts,)` float32.
        counts: rows of each expert.
        activation: as reference.activations writes it.

    Returns:
        `(rows, k)` bfloat16.

    Raises:
        ValueError: a code above 15.
    """
    way = Activation.of(activation)
    device = w1[0].device
    largest = torch.zeros(1, dtype=torch.int32, device=device)
    done = []
    for experts, of_rows in _groups(counts, w1[0][0].numel() * 2):
        here = counts[experts]
        tiles = Tiles.of(here, device)
        of_row = torch.repeat_interleave(
            torch.arange(len(here), dtype=torch.int32, device=device), torch.tensor(here, device=device),
            output_size=sum(here),
        )  # fmt: skip
        given = [each[of_rows] for each in rows]
        if input_scale is not None:
            given = [*quantize_rows(given[0], input_scale[experts], of_row)]
        a = Decoded.of(given[0], given[1], largest)
        gemm1 = _gemm(a, w1, experts, tiles, largest)
        middle = way.value(gemm1.double()).bfloat16()
        a2 = Decoded.of(*quantize_rows(middle, a2_scale[experts], of_row), largest)
        done.append(_gemm(a2, w2, experts, tiles, largest))
    check_codes(int(largest))
    return torch.cat(done) if done else w2[0].new_empty((0, w2[0].shape[1]), dtype=torch.bfloat16)


def _gemm(
    a: Decoded, weights: tuple[Tensor, Tensor, Tensor], experts: slice, tiles: Tiles, largest: Tensor
) -> Tensor:
    codes, block_scale, alpha = weights
    b = Decoded.of(codes[experts], block_scale[experts], largest)
    return product(a, b, alpha[experts].double(), tiles, torch.float32)[0].bfloat16()


def _groups(counts: Sequence[int], bytes_of_expert: int) -> Iterator[tuple[slice, slice]]:
    """Yield runs of experts whose decoded weights fit, and their rows; experts without rows are left out at both ends."""
    at_once = max(1, _DECODED // max(bytes_of_expert, 1))
    starts = [0, *itertools.accumulate(counts)]
    first = 0
    while first < len(counts):
        if not counts[first]:
            first += 1
            continue
        last = min(first + at_once, len(counts))
        while not counts[last - 1]:
            last -= 1
        yield slice(first, last), slice(starts[first], starts[last])
        first = last
