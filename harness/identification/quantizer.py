"""What a quantizer computes, found through its own calls: formulas, roundings, and what it does with special values.

A formula is found where it gives every stored byte, or every code under the bytes that were stored. Which formula is
free (reference.quantizer_formulas); how a scale and a code are rounded, which elements amax is of, NaN, infinities and
the sign of zero are fixed by the contract, and another answer is a deviation.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from harness.candidates.protocol import Traits, traits_of
from harness.identification.quantizer_probe import Quantize, Questions, near_boundaries, quantized
from harness.identification.quantizer_seen import ALL_16, AMAX, Seen
from harness.identification.quantizer_values import special_findings
from harness.judging.contract import checked_quantized
from harness.records.finding import Finding
from reference import e4m3
from reference.legal import Arithmetic, legal_codes, legal_scales
from reference.nvfp4 import BLOCK
from reference.quantizer_formulas import CODES, REAL, SCALES, Reciprocal, needs_rcp
from reference.rounding import CODE_ROUNDINGS, SCALE_ROUNDINGS, TO_EVEN

ENCODE_SCALES = 1024
_FEW_SCALES = 48  # of candidates that are too slow for many
_CALLS, _AT_ONCE, _FIRST = 8, 256, 8  # the last: one encode scale in so many is compared first
_ANY = 255  # no code and no byte that is asked for
STORED = "the stored block scale"
_UNSCALED = "x * (6 / amax)"
_KINDS = {"real": (REAL, REAL), "exact": ("amax * (gs * (1/6))", "x * (1/(scale * (1/gs)))")}
_FAST = ("gs * (amax * rcp(6))", "x * rcp(scale * rcp(gs))")


@dataclass(frozen=True)
class QuantizerFound:
    """What was found.

    Attributes:
        arithmetic: to judge by: the declared one, with the formulas that were found.
        findings: an answer a point.
    """

    arithmetic: Arithmetic
    findings: list[Finding]

    @property
    def words(self) -> str:
        """Both formulas, for a line of a record."""
        said = {f.point: f.found or f.evidence for f in self.findings}
        return f"block scale {said['block scale']}; codes {said['codes']}"


@dataclass(frozen=True, order=True)
class _Nearest:
    """A formula that gives most of what was stored, and how much of it."""

    share: float
    name: str

    def __str__(self) -> str:
        return f"nearest: {self.name}, {min(self.share, 0.9999):.2%}" if self.name else "none is near"


def as_quantizer(candidate: Any) -> Quantize:
    """Return a candidate's quantize_grouped as what `find_quantizer` asks."""
    device = traits_of(candidate).device

    def quantize(x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> tuple[Tensor, Tensor]:
        stored = candidate.quantize_grouped(x.clone(), masked_m.clone(), global_scale_enc.clone())
        got = checked_quantized(stored, x.shape, "quantize_grouped", device)
        return got.codes, got.block_scale

    return quantize


def find_quantizer(
    stage: str,
    quantize: Quantize,
    traits: Traits,
    arithmetic: Arithmetic,
    *,
    special: bool = True,
    encode_scales: int = ENCODE_SCALES,
) -> QuantizerFound:
    """Return what a quantizer computes.

    Args:
        stage: name for the findings.
        quantize: the quantizer.
        traits: of its candidate: how many experts, rows and columns it takes, and what is out of its contract.
        arithmetic: as declared, with the device's reciprocal where it is known.
        special: False where NaN, infinities, zeros and subnormal scales cannot be given or seen.
        encode_scales: how many it is asked under, where it is fast enough.

    Returns:
        Findings; and the declared arithmetic where it gives every bit or nothing does, else with what was found.
    """
    seen = _ask(quantize, traits, encode_scales)
    scales, of_scales = _find_scales(stage, seen, arithmetic)
    codes, of_codes = _find_codes(stage, seen, arithmetic)
    findings = [*of_scales, *of_codes, *(special_findings(stage, quantize, traits) if special else ())]
    return QuantizerFound(_judged_by(arithmetic, scales, codes, findings, traits, seen), findings)


def _ask(quantize: Quantize, traits: Traits, encode_scales: int) -> Seen:
    """Quantize the questions, in as few calls as the number of experts allows."""
    total = encode_scales if traits.far else _FEW_SCALES
    experts = traits.at_most_experts(max(min(total, _AT_ONCE), traits.min_experts))
    calls = min(-(-total // experts), _CALLS)
    asked = near_boundaries(experts * calls)
    answers = [
        quantized(quantize, traits, Questions(x, gs))
        for x, gs in zip(
            torch.split(asked.x, experts), torch.split(asked.global_scale_enc, experts), strict=True
        )
    ]
    codes, block_scale = (torch.cat(parts) for parts in zip(*answers, strict=True))
    return Seen(asked, codes.reshape(*block_scale.shape, BLOCK), block_scale)


def _fitting(
    names: list[str], gives: Callable[[str, int], Tensor], stored: Tensor
) -> tuple[list[str], _Nearest]:
    """Return the formulas that give everything that was stored, and the nearest one.

    Args:
        names: of the formulas.
        gives: what a formula stores under every so manieth encode scale, `(experts, ...)` uint8.
        stored: under all of them; 255 where anything is right.
    """
    fits, nearest = [], _Nearest(0.0, "")
    for name in names:
        for step in (_FIRST, 1):  # most formulas fail on a few
            some = stored[::step]
            share = float(((gives(name, step) == some) | (some == _ANY)).float().mean())
            if share < 1:
                nearest = max(nearest, _Nearest(share, name))
                break
        else:
            fits.append(name)
    return fits, nearest


def _find_scales(stage: str, seen: Seen, arithmetic: Arithmetic) -> tuple[list[str], list[Finding]]:
    """Return the formulas that give every block scale, and what was found about them."""
    rcp, names = arithmetic.reciprocal or torch.reciprocal, list(filter(arithmetic.computes, SCALES))
    every = f"all {seen.block_scale.numel():,} block scales under {len(seen.gs):,} encode scales"
    nearest = _Nearest(0.0, "")
    for amax, rounding in _one_by_one(AMAX, SCALE_ROUNDINGS):

        def gives(name: str, step: int, amax: str = amax, rounding: str = rounding) -> Tensor:
            return seen.scale_formula(amax, name, rounding, rcp, step)

        fits, near = _fitting(names, gives, seen.block_scale)
        if fits:
            return fits, [
                Finding(stage, "block scale", fits[0], tuple(fits[1:]), every),
                Finding(stage, "amax", amax, (), every, ALL_16),
                Finding(stage, "rounding of the block scale", rounding, (), every, TO_EVEN),
            ]
        nearest = max(nearest, near)
    return [], [Finding(stage, "block scale", "", (), f"no formula gives {every}; {nearest}")]


def _one_by_one(first: Iterable[str], second: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield the right pair, then those with one mistake; the right member of each stands first."""
    first, second = list(first), list(second)
    yield first[0], second[0]
    yield from ((first[0], other) for other in second[1:])
    yield from ((other, second[0]) for other in first[1:])


def _find_codes(stage: str, seen: Seen, arithmetic: Arithmetic) -> tuple[list[str], list[Finding]]:
    """Return the formulas that give every code under the stored block scale, and what was found about them."""
    rcp, names = arithmetic.reciprocal or torch.reciprocal, list(filter(arithmetic.computes, CODES))
    free = (seen.block_scale == 0) | (seen.block_scale == e4m3.NAN_BYTE)
    stored = (seen.codes & 7).masked_fill(free.unsqueeze(-1), _ANY)
    every = f"all {stored.numel():,} codes under {len(seen.gs):,} encode scales"
    nearest = _Nearest(0.0, "")
    for rounding in CODE_ROUNDINGS:

        def gives(name: str, step: int, rounding: str = rounding) -> Tensor:
            if name == _UNSCALED:
                return seen.unscaled_codes(rounding, step)
            return seen.code_formula(name, rounding, rcp, step)

        fits, near = _fitting([*names, _UNSCALED], gives, stored)
        if fits:
            found = [
                Finding(stage, "codes", fits[0], tuple(fits[1:]), every),
                Finding(stage, "ties", rounding, (), every, TO_EVEN),
            ]
            if fits == [_UNSCALED]:
                return [], [*found, Finding(stage, "scale of the codes", "6 / amax", (), every, STORED)]
            return [name for name in fits if name != _UNSCALED], found
        nearest = max(nearest, near)
    fits, ties = _but_for_ties(seen, names, stored, rcp)
    if fits:
        return fits, [
            Finding(stage, "codes", fits[0], tuple(fits[1:]), f"{every} but exact ties"),
            Finding(stage, "ties", ties, (), "all exact ties", TO_EVEN),
        ]
    unknown = arithmetic.kind == "fast" and arithmetic.reciprocal is None
    said = f"no formula gives {every}; {nearest}"
    tied = Finding(stage, "ties", "", (), "not judged: reciprocals unknown" if unknown else said, TO_EVEN)
    return [], [Finding(stage, "codes", "", (), said), tied]


def _but_for_ties(seen: Seen, names: list[str], stored: Tensor, rcp: Reciprocal) -> tuple[list[str], str]:
    """Return the formulas that give every code but those of exact ties, and where all of these go.

    A kernel that looks for ties itself finds those of real numbers, and not those that rounding makes.
    """
    tied = seen.exact_ties()
    there = tied & (stored != _ANY)
    ways = [
        way for way in CODE_ROUNDINGS if torch.equal(seen.code_formula(REAL, way, rcp)[there], stored[there])
    ]
    if not ways or not bool(there.any()):
        return [], ""

    def gives(name: str, step: int) -> Tensor:
        return seen.code_formula(name, TO_EVEN, rcp, step)

    fits, _ = _fitting(names, gives, stored.masked_fill(tied, _ANY))
    return fits, ways[0]


def of_both(one: QuantizerFound, other: QuantizerFound) -> Arithmetic:
    """Return an arithmetic by which what either of two quantizers of a candidate stores is legal."""
    if one.arithmetic == other.arithmetic:
        return one.arithmetic
    scales, codes = (
        _either(_formulas(one, point), _formulas(other, point)) for point in ("block scale", "codes")
    )
    reciprocal = one.arithmetic.reciprocal if other.arithmetic.reciprocal is not None else None
    known = replace(one.arithmetic, reciprocal=reciprocal, scales=(), codes=())
    return replace(
        known, scales=tuple(filter(known.computes, scales)), codes=tuple(filter(known.computes, codes))
    )


def _formulas(found: QuantizerFound, point: str) -> tuple[str, ...]:
    names = [name for f in found.findings if f.point == point and f.found for name in (f.found, *f.alike)]
    return tuple(name for name in names if name in SCALES or name in CODES)


def _either(one: tuple[str, ...], other: tuple[str, ...]) -> tuple[str, ...]:
    """Return the formulas of both; none, so that the declared kind judges, where those of one are not known."""
    return tuple(dict.fromkeys(one + other)) if one and other else ()


def _judged_by(
    arithmetic: Arithmetic,
    scales: list[str],
    codes: list[str],
    findings: list[Finding],
    traits: Traits,
    seen: Seen,
) -> Arithmetic:
    """Return what to judge by: the declared arithmetic where it gives every bit or no formula does, else what was found."""
    said = {f"{f.point}: {f.found}": f.found for f in findings if f.deviates}
    meant = {text: found for text, found in said.items() if text in traits.deviations}
    point = {f.point: f.found for f in findings}
    if f"rounding of the block scale: {point.get('rounding of the block scale')}" in meant:
        arithmetic = replace(arithmetic, scale_rounding=point["rounding of the block scale"])
    if f"ties: {point.get('ties')}" in meant:
        arithmetic = replace(arithmetic, ties=point["ties"])
    declared = _FAST if arithmetic.kind == "fast" else _KINDS[arithmetic.kind]
    if arithmetic.kind == "fast" and arithmetic.reciprocal is None:
        return replace(arithmetic, scales=tuple(scales), codes=tuple(codes))
    if not codes and arithmetic.kind == "fast" and _uses_another_reciprocal(seen, arithmetic):
        arithmetic = replace(arithmetic, reciprocal=None)  # its own is another one
        return replace(arithmetic, scales=tuple(name for name in scales if not needs_rcp(name)))
    return replace(
        arithmetic,
        scales=() if declared[0] in scales else tuple(scales),
        codes=() if declared[1] in codes else tuple(codes),
    )


def _uses_another_reciprocal(seen: Seen, arithmetic: Arithmetic) -> bool:
    """Return whether everything that was stored is legal where reciprocals are free by one unit, but not under the known one.

    Where nothing but exact ties is not as the known one has it, the ties are what is wrong.
    """
    free, magnitude = replace(arithmetic, reciprocal=None), seen.blocks.abs()
    amax, stored = magnitude.amax(-1), seen.codes & 7
    if not bool(legal_scales(amax, amax, seen.gs, free).accepts(seen.block_scale).all()):
        return False

    def legal(arithmetic: Arithmetic) -> Tensor:
        return legal_codes(magnitude, magnitude, seen.block_scale, seen.gs, arithmetic).accepts(stored)

    return bool(legal(free).all()) and not bool((legal(arithmetic) | seen.exact_ties()).all())
