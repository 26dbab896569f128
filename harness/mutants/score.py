"""The mutation score: what the results of all plantings add up to."""

from __future__ import annotations

from statistics import median

from harness.faults.bugs import threads_of
from harness.faults.fault import Fault
from harness.mutants.places import Place
from harness.records.parts.mutants import (
    KILLED,
    NOT_JUDGED,
    NOT_PLANTED,
    SURVIVED,
    MutantFault,
    MutantScore,
    PlantingResult,
)

_ORDER = (SURVIVED, NOT_JUDGED, KILLED, NOT_PLANTED)


def fault_rows(
    faults: list[Fault], places: dict[str, Place], results: dict[str, list[PlantingResult]]
) -> list[MutantFault]:
    """Return one entry a fault, survivors first."""
    rows = [_row(fault, places[fault.name], results[fault.name]) for fault in faults]
    return sorted(rows, key=lambda row: _ORDER.index(row.status))


def score(rows: list[MutantFault]) -> MutantScore:
    """Return what the plantings of all faults add up to."""
    judged = [r for row in rows for r in row.plantings if r.status in {KILLED, SURVIVED}]
    killed = [r for r in judged if r.status == KILLED]
    count = {status: sum(row.status == status for row in rows) for status in _ORDER}
    return MutantScore(
        faults=len(rows),
        killed=count[KILLED],
        survived=count[SURVIVED],
        not_judged=count[NOT_JUDGED],
        not_planted=count[NOT_PLANTED],
        plantings=len(judged),
        plantings_killed=len(killed),
        share=len(killed) / len(judged) if judged else None,
        median_examples=median(r.examples for r in killed) if killed else None,
        most_examples=max((r.examples for r in killed), default=None),
        median_seconds=median(r.seconds for r in killed) if killed else None,
        judging_seconds=sum(r.seconds for r in judged),
    )


def _row(fault: Fault, place: Place, results: list[PlantingResult]) -> MutantFault:
    """Return one fault with its plantings; its status is the worst of theirs."""
    statuses = {r.status for r in results}
    status = next(s for s in (SURVIVED, NOT_JUDGED, NOT_PLANTED, KILLED) if s in statuses)
    killed = [r for r in results if r.status == KILLED]
    return MutantFault(
        name=fault.name,
        title=fault.title,
        category=fault.category,
        stages=list(fault.stages),
        bugs=list(fault.bugs),
        threads=threads_of(fault.bugs),
        killed_by=fault.killed_by,
        effect=fault.effect,
        random_data=fault.random_data,
        simulated=fault.simulated,
        same_as=list(fault.same_as),
        planted_in=place.candidate,
        judged_by=place.rule,
        status=status,
        reason=next((r.message for r in results if r.status == status), "") if status != KILLED else "",
        examples=median(r.examples for r in killed) if killed else None,
        seconds=median(r.seconds for r in killed) if killed else None,
        plantings=results,
    )
