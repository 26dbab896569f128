"""Measuring a candidate before judging it: how many bits its accumulator keeps, and what its reciprocal returns.

The accumulator is probed through the candidate's own GEMM: a dot product L + s - L, everything else zero, with s a power
of two further and further below L. As long as s comes back exactly, the running sum held all bits from L down to s. The
three terms stand in the same instruction, in neighbouring ones and far apart, in several orders; the fewest bits count.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from harness import physical
from harness.candidates.protocol import stages_of, traits_of
from harness.context import Known, device_is_lost
from reference.bounds import Accumulator
from reference.legal import Arithmetic, Reciprocal

_K, _BLOCKS = 512, 32
_GAPS = range(10, 31)  # log2(L / s)
_LARGE, _TOP = 10, 8  # a block of 2^10: code 4 with scale 2^8
# (block of L, block of s, block of -L, number of L's). 64 products (one FP4 instruction) are four blocks.
_ARRANGEMENTS = (
    (0, 1, 2, 1),
    (0, 4, 8, 1),
    (4, 0, 8, 1),
    (8, 4, 0, 1),
    (0, 31, 16, 1),
    (16, 0, 31, 1),
    (0, 16, 31, 1),
    (0, 1, 2, 15),
    (0, 4, 8, 15),
    (16, 31, 0, 15),
)

_PROBE_ENDED = "not measured: the probe of masked_grouped_gemm ended or stopped the candidate's process"


@dataclass(frozen=True)
class Measured:
    """What probing found: what to judge with, and the words for the record."""

    known: Known
    notes: dict[str, str]


def measure(candidate: Any, *, probe: bool = True) -> Measured:
    """Probe a candidate.

    Args:
        candidate: an object of the candidate protocol that can run here.
        probe: False to call none of its stages, because that has ended the process before.

    Returns:
        What is known now. Whatever could not be measured stays as declared, and the notes say why.
    """
    traits = traits_of(candidate)
    known = Known.declared(traits)
    notes = {}
    accumulator = known.accumulator
    if "masked_grouped_gemm" in stages_of(candidate):
        bits, notes["accumulator"] = _probed_bits(candidate) if probe else (0, _PROBE_ENDED)
        if bits:
            accumulator = Accumulator(bits, traits.accumulator_chunk, measured=True)
    else:
        notes["accumulator"] = (
            "not measured: the candidate has no masked_grouped_gemm; bit equality is not demanded"
        )
    arithmetic = known.arithmetic
    if traits.arithmetic == "fast":
        reciprocal, notes["reciprocals"] = find_reciprocal(candidate)
        arithmetic = Arithmetic("fast", reciprocal)
    return Measured(Known(arithmetic, accumulator), notes)


def _probed_bits(candidate: Any) -> tuple[int, str]:
    """Return `accumulator_bits`, or 0 and the reason where the candidate raises: the rules will say so of a problem."""
    try:
        return accumulator_bits(candidate)
    except (Exception, SystemExit) as error:
        if device_is_lost(error):
            raise
        return 0, f"not measured: masked_grouped_gemm raised {type(error).__name__}: {error}"


def accumulator_bits(candidate: Any) -> tuple[int, str]:
    """Return the significant bits that every arrangement of the probe kept (at most 24), and the finding in words.

    0 bits means that the probe did not give a clear answer; the words say why.
    """
    traits = traits_of(candidate)
    rows = -(-len(_ARRANGEMENTS) * len(_GAPS) // traits.m_multiple) * traits.m_multiple
    columns = -(-max(len(_ARRANGEMENTS), 64) // traits.n_multiple) * traits.n_multiple
    k = -(-_K // traits.k_multiple) * traits.k_multiple
    a_codes, b_codes = (torch.zeros(1, r, k // 16, 16, dtype=torch.uint8) for r in (rows, columns))
    a_scale, b_scale = (torch.full((1, r, k // 16), _byte(0), dtype=torch.uint8) for r in (rows, columns))
    for column, (large, small, negative, times) in enumerate(_ARRANGEMENTS):
        for block, count in ((large, times), (small, 1), (negative, times)):
            b_codes[0, column, block, :count] = 2 if block == small else 6  # 1 or 4
            b_scale[0, column, block] = _byte(0 if block == small else _TOP)
        for step, gap in enumerate(_GAPS):
            row = column * len(_GAPS) + step
            a_codes[0, row, large, :times], a_scale[0, row, large] = 6, _byte(_TOP)
            a_codes[0, row, negative, :times], a_scale[0, row, negative] = 6 | 8, _byte(_TOP)
            a_codes[0, row, small, 0], a_scale[0, row, small] = _power(2 * _LARGE - gap)
    dtype = torch.float32 if "float32" in traits.out_dtypes else torch.bfloat16
    experts = traits.min_experts
    out = physical.empty_out(experts, rows, columns, dtype, traits.device, 0.0)
    operands = [t.to(traits.device) for t in (a_codes, a_scale, b_codes, b_scale)]
    codes_a, bytes_a, codes_b, bytes_b = (t.expand(experts, *t.shape[1:]).contiguous() for t in operands)
    candidate.masked_grouped_gemm(
        physical.operand(codes_a.flatten(2)),
        physical.scales(bytes_a),
        physical.operand(codes_b.flatten(2)),
        physical.scales(bytes_b),
        out,
        torch.full((experts,), rows, dtype=torch.int32, device=traits.device),
        torch.ones(experts, device=traits.device),
    )
    return _read_bits(out[:, :, 0].double().cpu())


def _read_bits(out: torch.Tensor) -> tuple[int, str]:
    bits = []
    for column, (_, _, _, times) in enumerate(_ARRANGEMENTS):
        kept = 0
        for step, gap in enumerate(_GAPS):
            if float(out[column * len(_GAPS) + step, column]) != 2.0 ** (2 * _LARGE - gap):
                break
            kept = gap
        if not kept:
            return (
                0,
                f"not measured: the probe 2^20 + 2^10 - 2^20 did not return 2^10 in arrangement {column}",
            )
        bits.append(kept + (1 if times == 1 else 4))
    fewest = min(bits)
    if fewest >= 24:
        return (
            24,
            "24 bits or more, measured through masked_grouped_gemm: sums of 24 bits are exact in every order",
        )
    return fewest, f"{fewest} bits, measured through masked_grouped_gemm (per arrangement: {bits})"


def _byte(exponent: int) -> int:
    """Return the E4M3 byte of a power of two, 2^-9 to 2^8."""
    return (exponent + 7) * 8 if exponent >= -6 else 1 << (exponent + 9)


def _power(exponent: int) -> tuple[int, int]:
    """Return code and scale byte whose product is 2^exponent, -10 to 10."""
    scale = min(max(exponent, -9), 8)
    code = {-1: 1, 0: 2, 1: 4, 2: 6}[exponent - scale]  # 0.5, 1, 2, 4
    return code, _byte(scale)


def find_reciprocal(candidate: Any) -> tuple[Reciprocal | None, str]:
    """Return the device's rcp.approx.ftz as a function, or None, and how it was found in words."""
    own = getattr(candidate, "reciprocal", None)
    if own is not None:
        return own, "known: the candidate gives its reciprocal; one scale and one code are legal"
    if traits_of(candidate).device != "cuda":
        return None, "not probed: no CUDA device; next to a rounding boundary two codes are legal"
    try:
        from harness.probe_rcp import device_reciprocal

        device_reciprocal(torch.tensor([6.0], device="cuda"))
    except Exception as error:  # noqa: BLE001 - triton missing or failing leaves the range of one unit, nothing worse
        return (
            None,
            f"not probed: {type(error).__name__}: {error}; next to a rounding boundary two codes are legal",
        )
    return device_reciprocal, "probed: rcp.approx.ftz of the GPU under test; one scale and one code are legal"
