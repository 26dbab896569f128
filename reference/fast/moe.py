"""The masked MoE of reference.moe, the valid rows of some experts at a time: by Triton kernels, or in torch alone; the same bits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from reference.activations import Activation
from reference.e2m1 import check_codes
from reference.fast import pairs
from reference.fast.launch import Decoded, Tiles, has_kernels, product, quantize_rows
from reference.nvfp4 import quantize_nvfp4

_ELEMENTS = 1 << 28  # of weights that are decoded at a time
_Weights = tuple[Tensor, Tensor, Tensor]


def masked_moe(
    rows: tuple[Tensor, ...],
    input_scale: Tensor | None,
    w1: _Weights,
    w2: _Weights,
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
    with_kernels = has_kernels(w1[0])
    largest = torch.zeros(1, dtype=torch.int32 if with_kernels else torch.uint8, device=device)
    gemm, elements = (_gemm_by_kernels, _ELEMENTS) if with_kernels else (_gemm_in_torch, _ELEMENTS // 2)
    done = []
    for experts, of_rows in _groups(counts, elements // max(w1[0][0].numel(), 1)):
        here = counts[experts]
        of_row = torch.repeat_interleave(
            torch.arange(len(here), dtype=torch.int32, device=device), torch.tensor(here, device=device),
            output_size=sum(here),
        )  # fmt: skip
        if input_scale is None:
            codes, block_scale = (each[of_rows] for each in rows)
        else:
            codes, block_scale = _quantized(rows[0][of_rows], input_scale[experts], of_row)
        gemm1 = gemm(codes, block_scale, w1, experts, here, largest)
        middle = way.value(gemm1.double()).bfloat16()
        done.append(gemm(*_quantized(middle, a2_scale[experts], of_row), w2, experts, here, largest))
    check_codes(int(largest))
    return torch.cat(done) if done else w2[0].new_empty((0, w2[0].shape[1]), dtype=torch.bfloat16)


def _quantized(x: Tensor, scale: Tensor, of_row: Tensor) -> tuple[Tensor, Tensor]:
    if has_kernels(x):
        return quantize_rows(x, scale, of_row)
    of = quantize_nvfp4(x, scale[of_row])
    return of.codes, of.block_scale


def _gemm_by_kernels(
    codes: Tensor,
    block_scale: Tensor,
    weights: _Weights,
    experts: slice,
    counts: Sequence[int],
    largest: Tensor,
) -> Tensor:
    a = Decoded.of(codes, block_scale, largest)
    b = Decoded.of(weights[0][experts], weights[1][experts], largest)
    tiles = Tiles.of(counts, codes.device)
    return product(a, b, weights[2][experts].double(), tiles, torch.float32)[0].bfloat16()


def _gemm_in_torch(
    codes: Tensor,
    block_scale: Tensor,
    weights: _Weights,
    experts: slice,
    counts: Sequence[int],
    largest: Tensor,
) -> Tensor:
    a = torch.split(pairs.decode_blocks(codes, block_scale, torch.float64, largest), [*counts])
    b = pairs.decode_blocks(weights[0][experts], weights[1][experts], torch.float64, largest)
    alpha = weights[2][experts].double()
    out = torch.empty(len(codes), b.shape[1], dtype=torch.bfloat16, device=codes.device)
    for expert, part in enumerate(torch.split(out, [*counts])):
        part.copy_(torch.mm(a[expert], b[expert].T) * alpha[expert])
    return out


def _groups(counts: Sequence[int], at_once: int) -> Iterator[tuple[slice, slice]]:
    """Yield runs of so many experts, and their rows; experts without rows are left out at both ends."""
    starts = [0, *itertools.accumulate(counts)]
    first, at_once = 0, max(at_once, 1)
    while first < len(counts):
        if not counts[first]:
            first += 1
            continue
        last = min(first + at_once, len(counts))
        while not counts[last - 1]:
            last -= 1
        yield slice(first, last), slice(starts[first], starts[last])
        first = last
