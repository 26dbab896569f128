"""How a candidate's GEMM adds along k, found through the GEMM itself: the models that give every bit of the probes.

The operands are random numbers, plain ones and ones whose exponents lie far apart, and in half of the rows the second half
of k takes back the first: what is left there is nothing but what the unit lost, and that differs from model to model
also where outputs are bfloat16. Few rows and columns are tried first, with all models; the models that are left then have
to give all outputs at every k.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.errors import in_words
from harness.candidates.protocol import Traits, traits_of
from harness.candidates.traits import VARIES
from harness.judging.context import declared_summation, device_is_lost
from harness.judging.predicted import orders_of
from harness.verdict import UsageError
from reference.e4m3 import decode_e4m3
from reference.matrix_units import Operand, Summation
from reference.nvfp4 import BLOCK, decode_blocks

WIDTHS = (64, 256, 1024, 7168)  # one instruction, which tells units apart, before orders are tried
_NEAR = (64, 256, 512)  # of candidates that are too slow for large ones
_ROWS, _COLUMNS = 32, 64
_FIRST = 8  # rows and columns that are tried first
_UNITS = (
    "sm_100 mxf4nvf4", "sm_90 f16", "exact", "exact 64", "exact 32", "exact 16", "sm_80 f16", "fma",
)  # fmt: skip
_REAL = ("sm_100 mxf4nvf4", "sm_90 f16", "sm_80 f16")  # every order is tried, of the others the simple ones


@dataclass(frozen=True)
class _Probe:
    """Operands of one k and what the candidate made of them, `(rows, columns)`."""

    a: tuple[Tensor, Tensor]  # codes `(rows, k)`, block scales `(rows, k / 16)`
    b: tuple[Tensor, Tensor]
    out: Tensor

    def operands(self, summation: Summation, size: int) -> tuple[Operand, Operand]:
        """Return the operands of some rows, spread over all kinds, and as many columns."""
        step = -(-len(self.out) // size)
        (a, a_scale), (b, b_scale) = ((c[::s], d[::s]) for (c, d), s in ((self.a, step), (self.b, 1)))
        return (
            summation.operand(decode_blocks(a, a_scale, torch.float64), decode_e4m3(a_scale)),
            summation.operand(
                decode_blocks(b[:size], b_scale[:size], torch.float64), decode_e4m3(b_scale[:size])
            ),
        )

    def fits(self, summation: Summation, size: int) -> bool:
        """Return whether a model gives every bit, of `size` rows and columns."""
        out = self.out[:: -(-len(self.out) // size), :size]
        return torch.equal(summation.matmul(*self.operands(summation, size)).to(out.dtype), out)


def summation_of(candidate: Any) -> tuple[Summation | None, str]:
    """Return `find_summation`, or the reason where the candidate raises: the rules will say so of a problem."""
    try:
        return find_summation(candidate)
    except UsageError:
        raise
    except (Exception, SystemExit) as error:
        if device_is_lost(error):
            raise
        return None, f"not measured: masked_grouped_gemm raised {in_words(error)}"


def find_summation(candidate: Any) -> tuple[Summation | None, str]:
    """Return how a candidate's masked_grouped_gemm adds, or None, and how that was found in words."""
    traits = traits_of(candidate)
    if traits.summation == VARIES or not traits.deterministic or not traits.place_invariant:
        return None, "not asked for: the candidate says that it varies; the bound judges"
    declared = declared_summation(traits)
    widths = sorted({_multiple(k, traits.k_multiple) for k in (WIDTHS if traits.far else _NEAR)})
    left = [declared] if declared else _models(widths[-1])
    for k in widths:
        probe = _probe(candidate, traits, k)
        for size in (_FIRST, _ROWS):
            orders = {model: (model.name, model.order(k)) for model in left}
            single = {what: model for model, what in orders.items()}  # many orders are one at a small k
            fitting = {what for what, model in single.items() if probe.fits(model, size)}
            left = [model for model in left if orders[model] in fitting]
        if not left:
            break
    where = "k " + ", ".join(f"{k:,}" for k in widths)
    if left:
        alike = f"; not told apart from {', '.join(map(str, left[1:]))}" if left[1:] else ""
        return left[0], f"{left[0]}: gives every bit of the probes at {where}; one value is legal{alike}"
    if declared:
        return (
            None,
            f"declared as {declared}, but the probes at {where} have other bits: not demanded, the bound judges",
        )
    return None, f"not known: no model gives the bits of the probes at {where}; the bound judges"


@cache
def _models(k: int) -> list[Summation]:
    """Return all models that are tried, the simplest first."""
    one_pass = [Summation(unit) for unit in _UNITS]
    orders = [order for plain in one_pass if plain.name != "exact" for order in orders_of(plain, k)[1:]]
    return one_pass + [
        order for order in orders if order.name in _REAL or not (order.promote or order.pairwise)
    ]


def _probe(candidate: Any, traits: Traits, k: int) -> _Probe:
    """Call the GEMM on the operands of a k, every expert on the same."""
    rows, columns = _multiple(_ROWS, traits.m_multiple), _multiple(_COLUMNS, traits.n_multiple)
    dtype = torch.float32 if "float32" in traits.out_dtypes else getattr(torch, traits.out_dtypes[0])
    a, b = _operands(rows, columns, k)
    out = layouts.empty_out(traits.min_experts, rows, columns, dtype, traits.device, 0.0)
    # Copies: a candidate may write to what it gets.
    (a_codes, a_scale), (b_codes, b_scale) = (
        tuple(t.repeat(traits.min_experts, 1, 1).to(traits.device) for t in pair) for pair in (a, b)
    )
    candidate.masked_grouped_gemm(
        layouts.operand(a_codes),
        layouts.scales(a_scale),
        layouts.operand(b_codes),
        layouts.scales(b_scale),
        out,
        torch.full((traits.min_experts,), rows, dtype=torch.int32, device=traits.device),
        torch.ones(traits.min_experts, device=traits.device),
    )
    return _Probe(a, b, out[:, :, 0].cpu())


@cache
def _operands(rows: int, columns: int, k: int) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Return codes and block scales of both operands, uint8; kinds of rows of A take turns."""
    generator = torch.Generator().manual_seed(k)
    half = k // 2 // BLOCK * BLOCK

    def drawn(count: int) -> tuple[Tensor, Tensor]:
        codes = torch.randint(0, 16, (count, k), generator=generator, dtype=torch.uint8)
        near, far = (
            torch.randint(*ends, (count, k // BLOCK), generator=generator, dtype=torch.uint8)
            for ends in ((48, 64), (1, 0x7F))
        )
        return codes, torch.where(torch.arange(count).unsqueeze(1) % 2 == 0, near, far)

    (a_codes, a_scale), (b_codes, b_scale) = drawn(rows), drawn(columns)
    blocks = half // BLOCK
    b_codes[:, half : 2 * half], b_scale[:, blocks : 2 * blocks] = b_codes[:, :half], b_scale[:, :blocks]
    takes_back = torch.arange(rows) % 4 > 1
    a_codes[takes_back, half : 2 * half] = a_codes[takes_back, :half] ^ 8
    a_scale[takes_back, blocks : 2 * blocks] = a_scale[takes_back, :blocks]
    return (a_codes, a_scale), (b_codes, b_scale)


def _multiple(wanted: int, of: int) -> int:
    return -(-wanted // of) * of
