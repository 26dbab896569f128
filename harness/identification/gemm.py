"""What a candidate's masked_grouped_gemm computes: how it adds, in what its partial sums are held, and its epilogue."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from harness.candidates.errors import in_words
from harness.candidates.protocol import traits_of
from harness.identification.accumulator import AccumulatorProbe, accumulator_of
from harness.identification.epilogue import STAGE, find_epilogue
from harness.identification.partials import find_partials
from harness.identification.summation import Added, added_of
from harness.judging.context import declared_summation, device_is_lost
from harness.records.finding import Finding
from reference.epilogue import CONTRACT, EACH, Epilogue, held_by
from reference.matrix_units import Summation

_WIDE = "24 bits or more"


@dataclass(frozen=True)
class GemmFound:
    """What was found, for the judgement and for the record.

    Attributes:
        summation: how it adds, or None where that is not known.
        accumulator: as the probe found it.
        epilogue: what it makes of its accumulators; None where no member of the family gives every bit.
        findings: one for each point.
        notes: in words, for the record.
    """

    summation: Summation | None
    accumulator: AccumulatorProbe
    epilogue: Epilogue | None
    findings: tuple[Finding, ...]
    notes: dict[str, str]


def judged_epilogue(found: Epilogue | None, deviations: Collection[str]) -> Epilogue:
    """Return the epilogue to judge by: the contract's, but for what it leaves free, and what is declared otherwise.

    Args:
        found: of the candidate; None where no member of the family gives every bit.
        deviations: as Traits names them.
    """
    if found is None:
        return CONTRACT
    return Epilogue(
        found.cast if f"cast: {found.cast}" in deviations else CONTRACT.cast,
        found.rounding if f"rounding of the output: {found.rounding}" in deviations else CONTRACT.rounding,
        found.fused,
        EACH in deviations,
        held_by(deviations),
    )


def gemm_findings(candidate: Any) -> GemmFound:
    """Return what the probes find of a candidate that has masked_grouped_gemm.

    Raises:
        UsageError: its traits declare a summation that is none.
    """
    epilogue, of_epilogue = _epilogue_of(candidate)
    added = added_of(candidate, epilogue)
    accumulator = accumulator_of(candidate)
    declared = declared_summation(traits_of(candidate))
    findings = (
        _order(added), _partial_sums(candidate, added, declared), _accumulator(accumulator, added, declared), *of_epilogue
    )  # fmt: skip
    return GemmFound(
        added.summation,
        accumulator,
        epilogue,
        findings,
        {"summation": added.words, "accumulator": accumulator.words},
    )


def _epilogue_of(candidate: Any) -> tuple[Epilogue | None, list[Finding]]:
    """Return `find_epilogue`, or the reason where the candidate raises: the rules will say so of a problem."""
    try:
        return find_epilogue(candidate)
    except (Exception, SystemExit) as error:
        if device_is_lost(error):
            raise
        return None, [Finding(STAGE, "cast", "", evidence=f"not measured: it raised {in_words(error)}")]


def _order(added: Added) -> Finding:
    """Return the order along k: free."""
    found = str(added.summation.at(0) or "") if added.summation else ""
    return Finding(STAGE, "order along k", found, added.alike, added.words, "", added.modes)


def _partial_sums(candidate: Any, added: Added, declared: Summation | None) -> Finding:
    """Return the type that parts of k are rounded to before they are added: float32, or what is declared."""
    if added.summation is None and "float32" in traits_of(candidate).out_dtypes:
        try:
            kind, said = find_partials(candidate)
        except (Exception, SystemExit) as error:
            if device_is_lost(error):
                raise
            kind, said = "", f"not measured: it raised {in_words(error)}"
        return Finding(STAGE, "partial sums", kind, (), said, declared.partial if declared else "float32")
    evidence = f"{added.of} outputs at k {', '.join(f'{k:,}' for k in added.widths)}" if added.of else ""
    found = _types(added.summation, added.of)
    wanted = _types(declared, added.of)
    modes = tuple(found[1:])
    return Finding(
        STAGE, "partial sums", found[0] if found else "", (), evidence, wanted[0] if wanted else "float32", modes
    )  # fmt: skip


def _types(summation: Summation | None, of: str) -> list[str]:
    """Return the types of the partial sums of all modes, those other than float32 first."""
    if summation is None:
        return []
    modes = [mode for mode in (summation, *(mode for _, mode in summation.later)) if mode]
    types = dict.fromkeys(of if mode.stream else mode.partial for mode in modes)
    return sorted(types, key=lambda name: name == "float32")


def _accumulator(probe: AccumulatorProbe, added: Added, declared: Summation | None) -> Finding:
    """Return the bits that the running sum keeps: as many as float32, unless the declared unit keeps fewer."""
    found = "" if not probe.bits else _WIDE if probe.bits >= 24 else f"{probe.bits} bits"
    narrow_unit = declared is not None and declared.unit.result == "13 bits" and added.summation is not None
    return Finding(STAGE, "accumulator", found, (), probe.words, found if narrow_unit else _WIDE)
