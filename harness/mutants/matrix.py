"""The kill matrix: every fault judged by every rule."""

from __future__ import annotations

from harness.mutants.bench import Batch
from harness.mutants.pool import BenchSettings, Job
from harness.records.parts.mutants import KILLED, NOT_PLANTED, SURVIVED, KillMatrix, PlantingResult
from harness.rules import RULE_IDS

EXAMPLES = (
    10  # problems of each cell: most kills need one or two, and a cell that is never killed costs them all
)
FAULTS_PER_JOB = 8
FORMS = ("", "@weakest", "@0")


def matrix_jobs(settings: BenchSettings, faults: list[str], deadline: float) -> list[Job]:
    """Return the batches that fill the matrix: for each rule, each fault everywhere, at its weakest and with seed 0."""
    jobs = []
    for rule in RULE_IDS:
        for start in range(0, len(faults), FAULTS_PER_JOB):
            some = faults[start : start + FAULTS_PER_JOB]
            texts = [name + form for name in some for form in FORMS]
            arguments = {"rule_id": rule, "plantings": texts, "most": EXAMPLES, "deadline": deadline}
            jobs.append(Job(settings, "run:judge", arguments, f"{', '.join(some)} under {rule}"))
    return jobs


def kill_matrix(
    faults: list[str], scored: dict[str, list[PlantingResult]], batches: list[Batch]
) -> KillMatrix:
    """Return the matrix that the results add up to.

    Args:
        faults: rows.
        scored: results of the score, by fault: they count where the rule is the one that the fault names.
        batches: what the matrix's own jobs found.
    """
    cells: dict[tuple[str, str], set[str]] = {}
    judged: set[tuple[str, str]] = set()
    reasons: dict[str, str] = {}
    forms = {name + form for name in faults for form in FORMS}
    results = [r for batch in batches for r in batch.results]
    results += [r for name in faults for r in scored[name] if r.planting in forms]
    for result in results:
        key = (result.planting.partition("@")[0], result.rule)
        if result.status in {KILLED, SURVIVED}:
            judged.add(key)
        elif result.status == NOT_PLANTED:
            reasons[result.rule] = result.message
        if result.status == KILLED:
            cells.setdefault(key, set()).add(result.planting)
    columns = [rule for rule in RULE_IDS if any((name, rule) in judged for name in faults)]
    return KillMatrix(
        rows=faults,
        columns=columns,
        cells=[
            [len(cells.get((name, rule), ())) if (name, rule) in judged else None for rule in columns]
            for name in faults
        ],
        forms=["everywhere", "weakest", "seed 0"],
        examples=EXAMPLES,
        powerless=[rule for rule in columns if not any((name, rule) in cells for name in faults)],
        not_applicable={rule: why for rule, why in reasons.items() if rule not in columns},
    )
