"""Mutants judged by the criteria of other projects, on the data and on the layer output that their tests look at."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from harness.candidates import stages_of, traits_of
from harness.candidates.eager import Eager
from harness.faults.fault import parse_planting
from harness.faults.mutant import Mutant
from harness.mutants.bench import Bench
from harness.mutants.pool import BenchSettings, Job
from harness.mutants.upstream import CRITERIA
from harness.mutants.upstream_data import DATA, outputs
from harness.records.parts.mutants import UpstreamCriterion, UpstreamData, UpstreamTable

CASES = (("upstream", "everywhere"), ("upstream", "weakest"), ("calibrated", "everywhere"))
_FORMS = {"everywhere": "", "weakest": "@weakest"}
FAULTS_PER_JOB = 8
_TRANSPORTS = ("bf16", "fp8", "nvfp4")


def upstream_jobs(settings: BenchSettings, plantings: list[str]) -> list[Job]:
    """Return the batches for some faults, "" being the healthy candidate."""
    parts = [plantings[i : i + FAULTS_PER_JOB] for i in range(0, len(plantings), FAULTS_PER_JOB)]
    return [
        Job(settings, "upstream_run:judge_upstream", {"plantings": some}, f"{', '.join(some)} upstream")
        for some in parts
    ]


def judge_upstream(bench: Bench, plantings: list[str]) -> dict[str, dict[str, list[bool]]]:
    """Judge faults, "" for the candidate itself.

    Returns:
        Of each fault, of each "DATA FORM", which criteria accept every output: one bool each, in the order of CRITERIA.
    """
    if "masked_moe" not in stages_of(bench.base):
        return {}
    found: dict[str, dict[str, list[bool]]] = {}
    for fault in plantings:
        found[fault] = {
            f"{data} {form}": _accepted(bench, fault and fault + _FORMS[form], data)
            for data, form in CASES
            if fault or form == "everywhere"
        }
    return found


def _accepted(bench: Bench, planting: str, data: str) -> list[bool]:
    """Return which criteria accept a mutant; one that raises is noticed by every test."""
    parsed = parse_planting(planting) if planting else None
    # Only faults of the dispatch care how tokens travel.
    transports = _TRANSPORTS if parsed is None or "dispatch" in parsed.fault.stages else _TRANSPORTS[:1]
    device = traits_of(bench.base).device
    verdicts = [True] * len(CRITERIA)
    for transport in transports:
        candidate = bench.base if parsed is None else Mutant(bench.base, [parsed])
        try:
            got = outputs(candidate, data, transport, device)
        except Exception:  # noqa: BLE001 - whatever the mutant raises ends the upstream test as well
            return [False] * len(CRITERIA)
        for mine, reference in zip(got, _reference(bench, data, transport), strict=True):
            verdicts = [
                ok and criterion.accepts(mine, reference)
                for ok, criterion in zip(verdicts, CRITERIA, strict=True)
            ]
    return verdicts


class _Dequantized(Eager):
    """What upstream tests compare with: the candidate's own healthy quantizers, and plain torch on dequantized operands.

    Their references quantize with the library under test as well (where that is broken, so is the reference; here it is
    the healthy one).
    """

    def __init__(self, base: Any) -> None:
        super().__init__(traits_of(base).device)
        for stage in ("quantize_grouped", "silu_mul_quantize_grouped", "dispatch"):
            if stage in stages_of(base):
                setattr(self, stage, getattr(base, stage))


def _reference(bench: Bench, data: str, transport: str) -> list[Tensor]:
    known: dict[tuple[str, str], list[Tensor]] = bench.__dict__.setdefault("upstream_references", {})
    if (data, transport) not in known:
        known[data, transport] = outputs(
            _Dequantized(bench.base), data, transport, traits_of(bench.base).device
        )
    return known[data, transport]


def upstream_table(parts: list[dict[str, dict[str, list[bool]]]]) -> UpstreamTable | None:
    """Return the table from the answers of all jobs; None where no layer could be run."""
    seen = {fault: forms for part in parts for fault, forms in part.items()}
    healthy = seen.pop("", None)
    if healthy is None:
        return None
    cases = [f"{data} {form}" for data, form in CASES]
    sound = {data: healthy[f"{data} everywhere"] for data in DATA}
    criteria = [
        UpstreamCriterion(
            criterion.name,
            criterion.title,
            criterion.source,
            accepts_candidate={data: sound[data][i] for data in DATA},
            missed={case: [fault for fault, ok in seen.items() if ok[case][i]] for case in cases},
        )
        for i, criterion in enumerate(CRITERIA)
    ]
    return UpstreamTable(
        data=[UpstreamData(name, title) for name, title in DATA.items()],
        cases=cases,
        faults=list(seen),
        criteria=criteria,
        missed_by_all={
            f"{data} {form}": [
                fault
                for fault, ok in seen.items()
                if all(mine for mine, fair in zip(ok[f"{data} {form}"], sound[data], strict=True) if fair)
            ]
            for data, form in CASES
        },
    )
