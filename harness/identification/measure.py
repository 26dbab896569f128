"""What is found out about a candidate before it is judged."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

from harness.candidates.protocol import stages_of, traits_of
from harness.identification.accumulator import AccumulatorProbe, accumulator_of
from harness.identification.reciprocal import find_reciprocal, quantizes_with
from harness.identification.summation import summation_of
from harness.judging.context import Known
from reference.bounds import Accumulator

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
    accumulator, summation = known.accumulator, known.summation
    if "masked_grouped_gemm" in stages_of(candidate):
        summation, notes["summation"] = summation_of(candidate) if probe else (None, _PROBE_ENDED)
        found = accumulator_of(candidate) if probe else AccumulatorProbe(0, 0, _PROBE_ENDED)
        notes["accumulator"] = found.words
        if found.bits:
            accumulator = Accumulator(
                found.bits, traits.accumulator_chunk, measured=True, window=found.window
            )
    else:
        notes["accumulator"] = (
            "not measured: the candidate has no masked_grouped_gemm; bit equality is not demanded"
        )
    arithmetic = known.arithmetic
    if traits.arithmetic == "fast":
        reciprocal, notes["reciprocals"] = find_reciprocal(candidate)
        if reciprocal is not None and probe and not quantizes_with(candidate, reciprocal):
            reciprocal = None
            notes["reciprocals"] += (
                ", but the candidate's quantizer uses another: next to a rounding boundary two codes are legal"
            )
        arithmetic = replace(arithmetic, reciprocal=reciprocal)
    if warning := getattr(candidate, "warning", ""):
        notes["warning"] = str(warning)
    return Measured(Known(arithmetic, accumulator, summation), notes)
