"""`harness mutants` without its command line: a request in, the record's mutants out. Structure: README.md here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

from harness.candidates import stages_of, traits_of
from harness.candidates.errors import CandidateStartError
from harness.candidates.traits import Traits
from harness.faults.fault import CATEGORIES, Fault, all_faults, find_fault
from harness.faults.named import load_named
from harness.mutants.bench import Batch, Bench
from harness.mutants.matrix import kill_matrix, matrix_jobs
from harness.mutants.minimal import minimal_jobs
from harness.mutants.places import ELSEWHERE, Place, place_of
from harness.mutants.pool import BenchSettings, Died, Job, run_jobs
from harness.mutants.score import fault_rows, score
from harness.mutants.upstream_run import upstream_jobs, upstream_table
from harness.records.parts.mutants import (
    KILLED,
    NOT_JUDGED,
    NOT_PLANTED,
    SURVIVED,
    MinimalProblem,
    MutantsRun,
    PlantingResult,
)
from harness.records.record import RunRecord
from harness.verdict import UsageError, Verdict

FAULTS_PER_JOB = 4  # their mutants share the problems' numbers


@dataclass(frozen=True)
class MutantsRequest:
    """What was asked for.

    Attributes:
        candidate: name of the candidate that faults are planted in.
        faults: names; empty for the whole catalog.
        categories: only these; empty for all.
        seeds: random parameterisations of each fault, besides everywhere and weakest.
        profile: name of the profile that problems are drawn with.
        seed: of the problems.
        matrix: judge every fault by every rule as well, and shrink one problem a fault.
        upstream: judge by the criteria of other projects as well.
        max_seconds: no problem is judged after that time; 0 for no limit.
        processes: how many judge at once.
    """

    candidate: str = "physical"
    faults: tuple[str, ...] = ()
    categories: tuple[str, ...] = ()
    seeds: int = 5
    profile: str = "standard"
    seed: int = 0
    matrix: bool = False
    upstream: bool = True
    max_seconds: float = 0
    processes: int = 2


Progress = Callable[[str, int, int], None]


def chosen_faults(request: MutantsRequest) -> list[Fault]:
    """Return the faults that were asked for.

    Raises:
        UsageError: an unknown fault or category.
    """
    for category in request.categories:
        if category not in CATEGORIES:
            raise UsageError(f"unknown category {category!r}; known: {', '.join(CATEGORIES)}")
    faults = [find_fault(name) for name in request.faults] or list(all_faults().values())
    return [f for f in faults if not request.categories or f.category in request.categories]


def plantings(fault: Fault, seeds: int) -> list[str]:
    """Return how a fault is planted: everywhere, at its weakest, and with drawn parameters."""
    return [fault.name, f"{fault.name}@weakest", *(f"{fault.name}@{seed}" for seed in range(seeds))]


def run_mutants(
    request: MutantsRequest, record: RunRecord, progress: Progress = lambda _what, _done, _of: None
) -> Verdict:
    """Run a request.

    Args:
        request: what to do.
        record: gets the mutants; an interrupted run keeps what it has.
        progress: called with what is being done, how much of it is done, and of how much.

    Returns:
        FAIL with a survivor, UNKNOWN where a planted fault could not be judged or none could be planted, else PASS.

    Raises:
        UsageError: bad usage, an unknown candidate.
        CandidateStartError: the candidate cannot run here.
    """
    started = time.time()
    faults = chosen_faults(request)
    found = MutantsRun(request.candidate, request.profile, request.seeds, request.seed)
    run = _Run(request, found, progress, started + request.max_seconds if request.max_seconds else 0.0)
    try:
        run.score(faults)
        if request.upstream:
            run.upstream()
        if request.matrix:
            run.matrix()
        run.found = replace(run.found, complete=True)
    finally:
        record.mutants_run = replace(run.found, seconds=time.time() - started)
    return verdict_of(run.found)


def verdict_of(found: MutantsRun) -> Verdict:
    """Return the verdict on a finished score."""
    statuses = {fault.status for fault in found.faults}
    if SURVIVED in statuses:
        return Verdict.FAIL
    if KILLED not in statuses or NOT_JUDGED in statuses:
        return Verdict.UNKNOWN
    return Verdict.PASS


@dataclass
class _Run:
    request: MutantsRequest
    found: MutantsRun
    progress: Progress
    deadline: float
    faults: list[Fault] = field(default_factory=list)
    places: dict[str, Place] = field(default_factory=dict)
    results: dict[str, list[PlantingResult]] = field(default_factory=dict)

    def score(self, faults: list[Fault]) -> None:
        """Judge every planting by the rule that its fault names."""
        self.faults = faults
        stages, traits = self._declared()
        self.places = {
            fault.name: place_of(fault, self.request.candidate, stages, traits) for fault in faults
        }
        for fault in faults:
            place = self.places[fault.name]
            status, message = (
                (NOT_JUDGED, "the time was over") if place.candidate else (NOT_PLANTED, place.reason)
            )
            self.results[fault.name] = [
                PlantingResult(text, place.rule, status, message=message)
                for text in plantings(fault, self.request.seeds)
            ]
        jobs = [job for settings, some in self._by_place(faults) for job in self._score_jobs(settings, some)]
        try:
            for job, batch in self._run(jobs, "plantings judged"):
                self._note(job, batch)
        finally:
            rows = fault_rows(faults, self.places, self.results)
            survivors = [r for row in rows for r in row.plantings if r.status == SURVIVED]
            self.found = replace(self.found, faults=rows, survivors=survivors, score=score(rows))

    def upstream(self) -> None:
        """Judge the layer's final output by the criteria of other projects."""
        jobs = []
        for settings, some in self._by_place(self.faults):
            if settings.candidate in ELSEWHERE:
                continue  # upstream's references know NVFP4 and silu only
            names = [fault.name for fault in some]
            healthy = [""] if settings.candidate == self.request.candidate else []
            jobs += upstream_jobs(settings, healthy + names)
        parts = [answer for _, answer in self._run(jobs, "faults under upstream criteria")]
        table = upstream_table([p for p in parts if not isinstance(p, Died)])
        self.found = replace(self.found, upstream=table)

    def matrix(self) -> None:
        """Judge every fault by every rule, and shrink one problem a fault."""
        status = {fault.name: fault.status for fault in self.found.faults if fault.planted_in}
        jobs, shrinking = [], []
        for settings, some in self._by_place(self.faults):
            jobs += matrix_jobs(settings, [fault.name for fault in some], self.deadline)
            killed = {f.name: self.places[f.name].rule for f in some if status[f.name] == KILLED}
            shrinking += minimal_jobs(settings, killed)
        answers = list(self._run(jobs, "cells of the kill matrix"))
        batches = [batch for _, batch in answers if isinstance(batch, Batch)]
        self.found = replace(self.found, matrix=kill_matrix(list(status), self.results, batches))
        for job, answer in self._run(shrinking, "problems shrunk"):
            if not isinstance(answer, Died):
                self._note_minimal(job.arguments["fault"], answer)

    def _note_minimal(self, name: str, minimal: MinimalProblem | None) -> None:
        faults = [replace(f, minimal=minimal) if f.name == name else f for f in self.found.faults]
        self.found = replace(self.found, faults=faults)

    def _declared(self) -> tuple[list[str], Traits]:
        """Return the candidate's stages and traits; somebody else's code is loaded in a child, which it may end."""
        r = self.request
        if ":" not in r.candidate:
            return declared_by(load_named(r.candidate))
        job = Job(
            BenchSettings(r.candidate, r.profile, r.seed), "run:declared", label="loading and probing it"
        )
        found: tuple[list[str], Traits] = [], Traits()
        for _, found in run_jobs([job], 1, in_child=r.processes > 1):
            if isinstance(found, Died):
                raise CandidateStartError(found.message)
        return found

    def _by_place(self, faults: list[Fault]) -> Iterator[tuple[BenchSettings, list[Fault]]]:
        """Yield the faults that are planted in the same candidate, with the settings of its bench."""
        for candidate in dict.fromkeys(self.places[fault.name].candidate for fault in faults):
            if candidate:
                some = [fault for fault in faults if self.places[fault.name].candidate == candidate]
                yield BenchSettings(candidate, self.request.profile, self.request.seed), some

    def _score_jobs(self, settings: BenchSettings, faults: list[Fault]) -> Iterator[Job]:
        by_rule: dict[str, list[Fault]] = {}
        for fault in faults:
            by_rule.setdefault(self.places[fault.name].rule, []).append(fault)
        for rule, members in by_rule.items():
            for start in range(0, len(members), FAULTS_PER_JOB):
                some = members[start : start + FAULTS_PER_JOB]
                texts = [text for fault in some for text in plantings(fault, self.request.seeds)]
                names = ", ".join(fault.name for fault in some)
                arguments = {"rule_id": rule, "plantings": texts, "deadline": self.deadline}
                yield Job(settings, "run:judge", arguments, f"{names} under {rule}")

    def _note(self, job: Job, batch: Batch | Died) -> None:
        if isinstance(batch, Died):
            rule = job.arguments["rule_id"]
            texts = job.arguments["plantings"]
            batch = Batch([PlantingResult(t, rule, NOT_JUDGED, message=batch.message) for t in texts], [])
        for result in batch.results:
            mine = self.results[result.planting.partition("@")[0]]
            mine[[r.planting for r in mine].index(result.planting)] = result
        known = self.found.candidate_failures
        known += [f for f in batch.candidate_failures if f not in known]

    def _run(self, jobs: list[Job], what: str) -> Iterator[tuple[Job, Any]]:
        total = sum(len(job.arguments.get("plantings", [0])) for job in jobs)
        done = 0
        self.progress(what, 0, total)
        for job, answer in run_jobs(jobs, self.request.processes, in_child=self.request.processes > 1):
            done += len(job.arguments.get("plantings", [0]))
            self.progress(what, done, total)
            yield job, answer


def declared_by(candidate: Any) -> tuple[list[str], Traits]:
    """Return the names of a candidate's stages, and its traits."""
    return stages_of(candidate), traits_of(candidate)


def declared(bench: Bench) -> tuple[list[str], Traits]:
    """Return the same of the candidate on the bench."""
    return declared_by(bench.base)


def judge(bench: Bench, **arguments: Any) -> Batch:
    """Judge a batch in the process that holds the bench."""
    return bench.judge(**arguments)
