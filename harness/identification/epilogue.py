"""What a candidate's GEMM makes of its accumulators, found on sums that are the same in every order.

Operands of narrow scales have dot products of fewer than 24 bits at k 64: every accumulator is known before the call. Each
expert has an alpha of its own, random ones, and ones for which the product with one accumulator is next to the middle
between two values of the output's type, so that rounding it to float32 first shows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any

import torch
from torch import Tensor

from harness.candidates.protocol import traits_of
from harness.identification.calls import call_gemm, forms_of, multiple
from harness.judging.probe_operands import Forms, in_format
from harness.records.finding import Finding
from reference.epilogue import CASTS, CONTRACT, ROUNDINGS, Epilogue
from reference.formats import Coded, Format
from reference.nvfp4 import BLOCK

_K, _ROWS, _COLUMNS, _EXPERTS = 64, 32, 64, 8
_FIRST = (slice(2), slice(8))  # experts and rows that are compared first
_MEMBERS = [
    Epilogue(cast, rounding, fused) for cast in CASTS for rounding in ROUNDINGS for fused in (False, True)
]
STAGE = "masked_grouped_gemm"


def find_epilogue(candidate: Any) -> tuple[Epilogue | None, list[Finding]]:
    """Return a candidate's epilogue, or None where no member of the family gives every bit, and the findings."""
    traits = traits_of(candidate)
    narrow = [getattr(torch, name) for name in traits.out_dtypes if name != "float32"]
    dtypes = narrow or [torch.float32]
    rows, columns, k = (
        multiple(_ROWS, traits.m_multiple), multiple(_COLUMNS, traits.n_multiple), multiple(_K, traits.k_multiple),
    )  # fmt: skip
    experts = max(traits.min_experts, traits.at_most_experts(_EXPERTS if traits.far else 2))
    asked = _asked(rows, columns, k, forms_of(traits), experts, dtypes[0])
    left = _MEMBERS
    for dtype in dtypes if traits.far else dtypes[:1]:
        out = call_gemm(candidate, asked.a, asked.b, dtype, asked.alpha)
        both = [member for member in left if asked.gives(member, out)]
        fitting = both or [member for member in _MEMBERS if asked.gives(member, out)]
        # Where the types differ, the one that deviates is what has to be said.
        left = both or [member for member in (*fitting, *left) if member not in _OF_CONTRACT]
        if not fitting:
            left = []
            break
    evidence = (
        f"{experts * rows * columns:,} outputs of known sums under {experts} alphas at k {k}, "
        f"{', '.join(str(dtype).removeprefix('torch.') for dtype in dtypes)}"
    )
    return (left[0] if left else None), _findings(left, evidence, rounds=bool(narrow))


def _findings(left: list[Epilogue], evidence: str, *, rounds: bool) -> list[Finding]:
    """Return what is said of the members that give every bit; with float32 outputs nothing is rounded a second time."""
    casts = list(dict.fromkeys(member.cast for member in left))
    found = [Finding(STAGE, "cast", *_first(casts), evidence, CASTS[0])]
    if rounds:
        roundings = list(dict.fromkeys(member.rounding for member in left))
        found.append(Finding(STAGE, "rounding of the output", *_first(roundings), evidence, ROUNDINGS[0]))
        fused = list(dict.fromkeys(_PRODUCT[member.fused] for member in left))
        found.append(Finding(STAGE, "product with alpha", *_first(fused), evidence))
    return found


_OF_CONTRACT = (CONTRACT, Epilogue(fused=True))
_PRODUCT = {False: "rounded to float32", True: "not rounded before the cast"}


def _first(texts: list[str]) -> tuple[str, tuple[str, ...]]:
    return (texts[0], tuple(texts[1:])) if texts else ("", ())


@dataclass(frozen=True)
class _Asked:
    """Operands, and what they must come to, which is the same for all candidates.

    Attributes:
        a: `(rows, k)`.
        b: `(columns, k)`.
        sums: `(rows, columns)` float64, their product.
        alpha: `(experts,)` float32.
    """

    a: Coded
    b: Coded
    sums: Tensor
    alpha: Tensor

    def gives(self, member: Epilogue, out: Tensor) -> bool:
        """Return whether a member gives every bit of `(experts, rows, columns)`; most fail on a random alpha and a made one."""
        first = torch.equal(self._stored(member, out.dtype, few=True), out[_FIRST])
        return first and torch.equal(self._stored(member, out.dtype, few=False), out)

    def _stored(self, member: Epilogue, dtype: torch.dtype, *, few: bool) -> Tensor:
        key = member, dtype, few
        if key not in self._known:
            alpha = self.alpha.view(-1, 1, 1)
            sums = self.sums.expand(len(alpha), -1, -1)
            if few:
                sums, alpha = sums[_FIRST], alpha[_FIRST[0]]
            self._known[key] = member(sums, alpha, dtype)
        return self._known[key]

    @cached_property
    def _known(self) -> dict[tuple[Epilogue, torch.dtype, bool], Tensor]:
        return {}


@cache
def _asked(rows: int, columns: int, k: int, forms: Forms, experts: int, dtype: torch.dtype) -> _Asked:
    """Return operands whose sums have fewer than 24 bits: block scales from 1 to 3.75, 64 products of each row.

    The alphas are made for outputs of a type.
    """
    generator = torch.Generator().manual_seed(5)

    def drawn(count: int, form: Format) -> Coded:
        codes = torch.zeros(count, k, dtype=torch.uint8)
        codes[:, :_K] = torch.randint(0, 16, (count, _K), generator=generator, dtype=torch.uint8)
        scales = torch.randint(56, 64, (count, k // BLOCK), generator=generator, dtype=torch.uint8)
        return in_format(form, codes, scales)

    a, b = drawn(rows, forms[0]), drawn(columns, forms[1])
    sums = forms[0].values(a, torch.float64) @ forms[1].values(b, torch.float64).T
    return _Asked(a, b, sums, _alphas(sums, experts, dtype))


def _alphas(sums: Tensor, experts: int, dtype: torch.dtype) -> Tensor:
    """Return `(experts,)` float32: random ones, and as many that tell a fused product from one that is rounded first."""
    generator = torch.Generator().manual_seed(6)
    alpha = torch.exp2(torch.rand(experts, generator=generator) * 2 - 1)
    if dtype == torch.float32:
        return alpha
    accumulators = torch.unique(sums[sums != 0])
    fused = Epilogue(fused=True)
    for expert in range(1, experts, 2):
        # Alphas next to (the middle of two outputs) / (an accumulator).
        stored = (accumulators.float() * alpha[expert]).to(dtype)
        middle = (stored.double() + (stored.view(torch.int16) + 1).view(dtype).double()) / 2
        tried = (middle / accumulators).float()
        apart = fused(accumulators, tried, dtype) != CONTRACT(accumulators, tried, dtype)
        if bool(apart.any()):
            alpha[expert] = tried[apart.nonzero()[0]]
    return alpha
