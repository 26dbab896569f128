"""Accumulation in any order: chains, trees, split k, truncating, rounding or aligning accumulators of any width.

`harness.emulation.accumulate` holds the two plain chains; here is everything that other kernels do between the products
and the sum. An instruction adds `chunk` products to a running sum, which then keeps `bits` bits.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from harness.emulation.accumulate import truncate


@dataclass(frozen=True)
class Order:
    """How one GEMM adds.

    Attributes:
        products: order along k: "forward", "reversed", "shuffled", or "interleaved" (even elements, then odd ones).
        splits: parts of k, each a whole number of instructions, summed on their own and then added.
        tree: instructions, and parts, are added pairwise instead of one after the other.
        chunk: products of one instruction.
        bits: significant bits that a sum keeps.
        rounding: what happens to the rest: "truncate", or "nearest" (24 bits only).
        window: significant bits of the largest term of an instruction that the others are aligned to; None: no loss.
        seed: of "shuffled".
    """

    products: str = "forward"
    splits: int = 1
    tree: bool = False
    chunk: int = 64
    bits: int = 24
    rounding: str = "truncate"
    window: int | None = None
    seed: int = 0


def accumulate(a: Tensor, b: Tensor, order: Order) -> Tensor:
    """Return a @ b.T added in an order.

    Args:
        a: `(m, k)` floating point, decoded NVFP4 values.
        b: `(n, k)` likewise.
        order: of the additions.

    Returns:
        `(m, n)` float32.
    """
    a, b = (_permuted(x.double(), order) for x in (a, b))
    instructions = [slice(at, at + order.chunk) for at in range(0, a.shape[1], order.chunk)]
    parts = [
        instructions[i * len(instructions) // order.splits : (i + 1) * len(instructions) // order.splits]
        for i in range(order.splits)
    ]
    sums = [_part(a, b, part, order) for part in parts if part]
    if not sums:
        return torch.zeros(a.shape[0], b.shape[0])
    return (_tree(sums, order) if order.tree else _chain(sums, order)).float()


def _permuted(x: Tensor, order: Order) -> Tensor:
    """Return `(*, k)` in the order in which the products are added."""
    k = x.shape[1]
    if order.products == "reversed":
        return x.flip(1)
    if order.products == "shuffled":
        return x[:, torch.randperm(k, generator=torch.Generator().manual_seed(order.seed + k)).to(x.device)]
    if order.products == "interleaved":
        return torch.cat((x[:, ::2], x[:, 1::2]), dim=1)
    return x


def _part(a: Tensor, b: Tensor, part: list[slice], order: Order) -> Tensor:
    """Return the sum of some instructions, `(m, n)` float64."""
    zero = torch.zeros(a.shape[0], b.shape[0], dtype=torch.float64, device=a.device)
    if order.tree:
        return _tree([_instruction(zero, a[:, i], b[:, i], order) for i in part], order)
    total = zero
    for i in part:
        total = _instruction(total, a[:, i], b[:, i], order)
    return total


def _instruction(total: Tensor, a: Tensor, b: Tensor, order: Order) -> Tensor:
    """Return the running sum after one instruction.

    Up to 64 products of NVFP4 values are added exactly in float64, and so is a running sum of at most 24 bits within
    2^53 of them; further apart float64 rounds far below what the sum keeps.
    """
    if order.window is None:
        return _kept(total + torch.mm(a, b.T), order)
    terms = torch.cat((a.unsqueeze(1) * b.unsqueeze(0), total.unsqueeze(-1)), dim=-1)
    largest = torch.frexp(terms.abs().amax(-1, keepdim=True))[1]
    step = torch.ldexp(torch.ones_like(terms[..., :1]), largest - order.window)
    return _kept((torch.trunc(terms / step) * step).sum(-1), order)


def _kept(x: Tensor, order: Order) -> Tensor:
    return x.float().double() if order.rounding == "nearest" else truncate(x, order.bits)


def _chain(sums: list[Tensor], order: Order) -> Tensor:
    total = sums[0]
    for more in sums[1:]:
        total = _kept(total + more, order)
    return total


def _tree(sums: list[Tensor], order: Order) -> Tensor:
    while len(sums) > 1:
        pairs = [_kept(x + y, order) for x, y in zip(sums[::2], sums[1::2], strict=False)]
        sums = pairs + sums[len(pairs) * 2 :]
    return sums[0]
