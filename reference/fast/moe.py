"""The masked MoE of reference.moe, the valid rows of some experts at a time: by Triton kernels, or in torch alone; the same bits."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from reference.activations import Activation
from reference.e2m1 import check_codes
from reference.fast import pairs, parts, thresholds
from reference.fast.launch import Decoded, Tiles, has_kernels, product, quantize_rows
from reference.nvfp4 import BLOCK, quantize_nvfp4

_ELEMENTS = 1 << 28  # of weights that are decoded at a time
_ROWS = 1 << 13  # that are multiplied at a time, if they are not all of one expert
_Weights = tuple[Tensor, Tensor, Tensor]


@dataclass(frozen=True)
class _Group:
    """Experts that are worked on at a time.

    Attributes:
        experts: which.
        counts: rows of each.
        of_row: `(rows,)` int32, the expert of each row.
    """

    experts: slice
    counts: Sequence[int]
    of_row: Tensor

    @classmethod
    def of(cls, experts: slice, counts: Sequence[int], device: torch.device) -> _Group:
        number = torch.arange(experts.start, experts.stop, dtype=torch.int32)
        of_row = torch.repeat_interleave(number, torch.tensor(counts))
        return cls(experts, counts, of_row.to(device, non_blocking=True))


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
    quantized = quantize_rows if with_kernels else _quantized_in_torch
    gemm = _gemm_by_kernels if with_kernels else _gemm_in_torch
    if not with_kernels:
        input_scale, a2_scale = input_scale if input_scale is None else input_scale.cpu(), a2_scale.cpu()

    def layer(group: _Group, of_rows: slice, unasked: list[Tensor] | None) -> Tensor:
        if input_scale is None:
            codes, block_scale = (each[of_rows] for each in rows)
        else:
            codes, block_scale = quantized(rows[0][of_rows], input_scale, group.of_row)
        gemm1 = gemm(codes, block_scale, w1, group, largest, unasked)
        middle = way.value(gemm1.double()).bfloat16()
        return gemm(*quantized(middle, a2_scale, group.of_row), w2, group, largest, unasked)

    groups, done, open_ = [], [], []
    for experts, of_rows in _groups(counts, _ELEMENTS // max(w1[0][0].numel(), 1)):
        unasked: list[Tensor] = []
        groups.append((_Group.of(experts, counts[experts], device), of_rows))
        done.append(layer(*groups[-1], unasked))
        open_.append(torch.stack(unasked).any() if unasked else largest.new_zeros((), dtype=torch.bool))
    # Asked once, of all of them: a device that waits for a question is idle until its host has caught up.
    for number, again in enumerate(torch.stack(open_).tolist() if done else []):
        if again:
            done[number] = layer(*groups[number], None)
    check_codes(int(largest))
    return torch.cat(done) if done else w2[0].new_empty((0, w2[0].shape[1]), dtype=torch.bfloat16)


def _quantized_in_torch(x: Tensor, scale: Tensor, of_row: Tensor) -> tuple[Tensor, Tensor]:
    """Return codes and block scales of rows; scales lie on the host, where their thresholds are kept by their values."""
    if not thresholds.has_thresholds(encode := scale.tolist()):
        of = quantize_nvfp4(x, scale.to(x.device)[of_row])
        return of.codes, of.block_scale
    codes = torch.empty(x.shape, dtype=torch.uint8, device=x.device)
    block_scale = torch.empty(len(x), x.shape[1] // BLOCK, dtype=torch.uint8, device=x.device)
    of_block = of_row.long().repeat_interleave(block_scale.shape[1], output_size=block_scale.numel())
    flat = x.view(-1, BLOCK), codes.view(-1, BLOCK), block_scale.view(-1)
    thresholds.quantize_blocks(*flat, encode, of_block)
    return codes, block_scale


def _gemm_by_kernels(
    codes: Tensor,
    block_scale: Tensor,
    weights: _Weights,
    group: _Group,
    largest: Tensor,
    _: list[Tensor] | None,
) -> Tensor:
    b_codes, b_scale, alpha = (each[group.experts] for each in weights)
    a, b = Decoded.of(codes, block_scale, largest), Decoded.of(b_codes, b_scale, largest)
    return product(a, b, alpha.double(), Tiles.of(group.counts, codes.device), torch.float32)[0].bfloat16()


def _gemm_in_torch(
    codes: Tensor,
    block_scale: Tensor,
    weights: _Weights,
    group: _Group,
    largest: Tensor,
    unasked: list[Tensor] | None,
) -> Tensor:
    b_codes, b_scale, alpha = (each[group.experts] for each in weights)
    a = pairs.decode_blocks(codes, block_scale, torch.bfloat16, largest)
    b = pairs.decode_blocks(b_codes, b_scale, torch.bfloat16, largest)
    of_row = group.of_row - group.experts.start
    exact = parts.products((a, block_scale), (b, b_scale), group.counts, of_row, unasked)
    out = torch.empty(exact.shape, dtype=torch.bfloat16, device=exact.device)
    return torch.mul(exact, alpha.double()[of_row].unsqueeze(-1), out=out)


def _groups(counts: Sequence[int], at_once: int) -> Iterator[tuple[slice, slice]]:
    """Yield runs of so many experts, or of `_ROWS` rows, and their rows; none of the first and the last is without rows."""
    starts = [0, *itertools.accumulate(counts)]
    first = 0
    while first < len(counts):
        if not counts[first]:
            first += 1
            continue
        last = first + 1
        while last < min(first + at_once, len(counts)) and starts[last + 1] - starts[first] <= _ROWS:
            last += 1
        while not counts[last - 1]:
            last -= 1
        yield slice(first, last), slice(starts[first], starts[last])
        first = last
