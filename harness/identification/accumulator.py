"""How many bits a candidate's accumulator keeps, found through its own GEMM.

A dot product L + s - L, everything else zero, with s a power of two further and further below L: as long as s comes back
exactly, the running sum held all bits from L down to s. The three terms stand in the same instruction, in neighbouring
ones and far apart, in several orders; the fewest bits count.

A fault of the GEMM can look like a narrow accumulator and must not be judged by a bound as wide as itself. So s alone has
to come back too, what was lost once has to stay lost as s gets smaller, and no fewer bits count than any known unit keeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Any

import torch

from harness.candidates import layouts
from harness.candidates.errors import in_words
from harness.candidates.protocol import traits_of
from harness.identification.calls import forms_of, widest_type
from harness.judging.context import device_is_lost
from harness.judging.probe_operands import Forms, in_format
from reference.formats import NVFP4, Coded
from reference.nvfp4 import BLOCK

_K = 512
_GAPS = range(6, 27)  # log2(L / s): all that one operand's range of 2^-10 to 2^10 can express
_WIDE = max(_GAPS) + 1  # significant bits, where nothing was lost over all gaps
# No tensor core is known to keep less (Hopper's FP8 path: about 13 bits) of terms that differ in nothing but magnitude.
_FEWEST = 13


@dataclass(frozen=True)
class _Arrangement:
    """Where the terms of one probe stand: blocks of L, s and -L. 64 products, one FP4 instruction, are four blocks.

    `times` L's stand side by side. L has code 4 or, for units that align terms by their block scales before they look at
    the codes, 0.5 under the same scale; `decoy` is a block of zeros under the largest scale, which such a unit counts too.
    """

    large: int
    small: int
    negative: int
    times: int = 1
    code: int = 6  # of 4.0; 1 is 0.5
    decoy: int | None = None

    @property
    def scale(self) -> int:
        """Exponent of L's block scales: 8, the largest, but for the decoy to be larger."""
        return 0 if self.decoy is not None else 8

    @property
    def exponent(self) -> int:
        """Exponent of the product L."""
        return 2 * (self.scale + {6: 2, 1: -1}[self.code])

    @property
    def plain(self) -> bool:
        """Whether a unit that aligns terms by their block scales has no reason to lose more bits here than elsewhere."""
        return self.code == 6 and self.decoy is None

    @property
    def one_instruction(self) -> bool:
        """Whether all terms stand in one instruction."""
        return max(self.large, self.small, self.negative) < 4


_ARRANGEMENTS = (
    _Arrangement(0, 1, 2),
    _Arrangement(0, 1, 2, code=1),
    _Arrangement(0, 1, 2, decoy=3),
    _Arrangement(0, 1, 2, times=15),
    _Arrangement(0, 4, 8),
    _Arrangement(4, 0, 8),
    _Arrangement(8, 4, 0),
    _Arrangement(0, 4, 8, code=1),
    _Arrangement(0, 31, 16),
    _Arrangement(16, 0, 31),
    _Arrangement(0, 16, 31),
    _Arrangement(0, 4, 8, times=15),
    _Arrangement(16, 31, 0, times=15),
)
_PROBES = len(_ARRANGEMENTS) * len(_GAPS)


@dataclass(frozen=True)
class AccumulatorProbe:
    """What the probe of an accumulator found.

    Attributes:
        bits: significant bits of the running sum that every arrangement kept, at most 24; 0 for no clear answer.
        window: significant bits that terms of one instruction keep when they are aligned, at most 27.
        words: the finding, or why there is none.
    """

    bits: int
    window: int
    words: str


def accumulator_of(candidate: Any) -> AccumulatorProbe:
    """Return `probe_accumulator`, or the reason where the candidate raises: the rules will say so of a problem."""
    try:
        return probe_accumulator(candidate)
    except (Exception, SystemExit) as error:
        if device_is_lost(error):
            raise
        return AccumulatorProbe(0, 0, f"not measured: masked_grouped_gemm raised {in_words(error)}")


def probe_accumulator(candidate: Any) -> AccumulatorProbe:
    """Measure a candidate's accumulator through its masked_grouped_gemm."""
    traits = traits_of(candidate)
    rows = -(-2 * _PROBES // traits.m_multiple) * traits.m_multiple  # the second half: s alone
    columns = -(-len(_ARRANGEMENTS) // traits.n_multiple) * traits.n_multiple
    k = -(-_K // traits.k_multiple) * traits.k_multiple
    dtype = widest_type(traits)
    experts = traits.min_experts
    out = layouts.empty_out(experts, rows, columns, dtype, traits.device, 0.0)
    # Copies: a candidate may write to what it gets.
    a_codes, a_scale, b_codes, b_scale = (
        t.repeat(experts, 1, 1).to(traits.device) for t in _operands(rows, columns, k)
    )
    a, b = _in_formats(forms_of(traits), (a_codes, a_scale), (b_codes, b_scale))
    candidate.masked_grouped_gemm(
        *a,
        *b,
        out,
        torch.full((experts,), rows, dtype=torch.int32, device=traits.device),
        torch.ones(experts, device=traits.device),
    )
    seen = out[:, :, 0].double().cpu()
    return _read(seen[:_PROBES], seen[_PROBES:])


def _in_formats(
    forms: Forms, a: tuple[torch.Tensor, torch.Tensor], b: tuple[torch.Tensor, torch.Tensor]
) -> tuple[layouts.Pair, layouts.Pair]:
    """Return NVFP4 operands in the formats of a GEMM, as it takes them.

    Blocks of 32 cannot hold the powers of two of the second one side by side: it then is ones, and activations that need no
    scale hold the products, of the row's own column.
    """
    of_a, of_b = forms
    if of_b.block == BLOCK or not of_a.plain:
        return layouts.stored(of_a, in_format(of_a, *a)), layouts.stored(of_b, in_format(of_b, *b))
    column = torch.arange(2 * _PROBES, device=a[0].device) % _PROBES // len(_GAPS)
    left, right = (NVFP4.values(Coded(*side)) for side in (a, b))
    left[:, : len(column)] *= right[:, column]
    ones = Coded(
        torch.full_like(b[0], 2), torch.full_like(b[1][..., ::2], of_b.one_scale)
    )  # code 2 stands for 1
    return layouts.stored(of_a, of_a.quantize(left)), layouts.stored(of_b, ones)


@cache
def _operands(rows: int, columns: int, k: int) -> tuple[torch.Tensor, ...]:
    """Return codes and block scales of A, `(rows, k)` and `(rows, k / 16)` uint8, and of B: a column an arrangement.

    A has a row for each arrangement and gap with L, s and -L, and as many in its second half with s alone.
    """
    a_codes, b_codes = (torch.zeros(r, k // 16, 16, dtype=torch.uint8) for r in (rows, columns))
    a_scale, b_scale = (torch.full((r, k // 16), _byte(0), dtype=torch.uint8) for r in (rows, columns))
    for column, at in enumerate(_ARRANGEMENTS):
        for block in (at.large, at.negative):
            b_codes[column, block, : at.times], b_scale[column, block] = at.code, _byte(at.scale)
        small = _small_exponent(at)
        b_codes[column, at.small, 0], b_scale[column, at.small] = _power(small)
        if at.decoy is not None:
            b_scale[column, at.decoy] = _byte(8)
        first, count = column * len(_GAPS), _gaps(at)
        row = slice(first, first + count)
        a_codes[row, at.large, : at.times], a_scale[row, at.large] = at.code, _byte(at.scale)
        a_codes[row, at.negative, : at.times], a_scale[row, at.negative] = at.code | 8, _byte(at.scale)
        of_gaps = torch.tensor(
            [_power(at.exponent - gap - small) for gap in _GAPS[:count]], dtype=torch.uint8
        )
        for place in (row, slice(first + _PROBES, first + _PROBES + count)):
            a_codes[place, at.small, 0], a_scale[place, at.small] = of_gaps.unbind(1)
        if at.decoy is not None:
            a_scale[row, at.decoy] = _byte(8)
    return a_codes.flatten(1), a_scale, b_codes.flatten(1), b_scale


def _small_exponent(at: _Arrangement) -> int:
    """Return the exponent of s in B, such that A can hold the rest for every gap."""
    return max(at.exponent - 16, -10)


def _gaps(at: _Arrangement) -> int:
    """Return how many of the gaps the operands can express: s is at least 2^-20."""
    return min(len(_GAPS), at.exponent + 20 - _GAPS[0] + 1)


def _read(out: torch.Tensor, alone: torch.Tensor) -> AccumulatorProbe:
    """Read the sums L + s - L and the values of s alone, each `(arrangements * gaps, columns)`."""
    bits, window = [], _WIDE
    for column, at in enumerate(_ARRANGEMENTS):
        rows = slice(column * len(_GAPS), column * len(_GAPS) + _gaps(at))
        wanted = torch.tensor([2.0 ** (at.exponent - gap) for gap in _GAPS[: _gaps(at)]], dtype=torch.float64)
        returned = (out[rows, column] == wanted).tolist()
        kept = _GAPS[returned.index(False) - 1 if False in returned else -1]
        if not returned[0]:
            words = f"the probe L + s - L did not return s at L/s = 2^{_GAPS[0]} in arrangement {column}"
            return AccumulatorProbe(0, 0, f"not measured: {words}")
        if any(returned[returned.index(False) :] if False in returned else ()):
            words = (
                f"L + s - L lost s at L/s = 2^{kept + 1} and returned a smaller one, in arrangement {column}"
            )
            return AccumulatorProbe(0, 0, f"not measured: {words}: no accumulator does that")
        if bool((alone[rows, column] != wanted).any()):
            words = f"s alone was not returned in arrangement {column}: lost before anything was added"
            return AccumulatorProbe(0, 0, f"not measured: {words}")
        bits.append(kept + (1 if at.times == 1 else 4))  # 15 L's are four bits wide
        if at.plain and bits[-1] < _FEWEST:
            words = f"{bits[-1]} bits came back in arrangement {column}, no known accumulator keeps under {_FEWEST}"
            return AccumulatorProbe(0, 0, f"not measured: {words}: taken for a fault")
        if at.one_instruction and at.times == 1 and kept < _GAPS[_gaps(at) - 1]:
            window = min(window, kept + 1)
    fewest = min(bits)
    aligned = f"terms of one instruction keep {'at least ' * (window == _WIDE)}{window} bits"
    if fewest >= 24:
        words = (
            "24 bits or more, measured through masked_grouped_gemm: sums of 24 bits are exact in every order"
        )
        return AccumulatorProbe(24, window, f"{words}; {aligned}")
    words = f"{fewest} bits, measured through masked_grouped_gemm (per arrangement: {bits}); {aligned}"
    return AccumulatorProbe(fewest, window, words)


def _byte(exponent: int) -> int:
    """Return the E4M3 byte of a power of two, 2^-9 to 2^8."""
    return (exponent + 7) * 8 if exponent >= -6 else 1 << (exponent + 9)


def _power(exponent: int) -> tuple[int, int]:
    """Return code and scale byte whose product is 2^exponent, -10 to 10."""
    scale = min(max(exponent, -9), 8)
    code = {-1: 1, 0: 2, 1: 4, 2: 6}[exponent - scale]  # 0.5, 1, 2, 4
    return code, _byte(scale)
