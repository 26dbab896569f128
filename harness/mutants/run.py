"""`harness mutants` without its command line: a request in, the record's `mutants` out. Structure: README.md here."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from harness.candidates import load_candidate, stages_of
from harness.faults import Fault, all_faults, find_fault
from harness.faults.fault import CATEGORIES
from harness.mutants.bench import KILLED, NOT_JUDGED, NOT_PLANTED, SURVIVED, Batch, Bench, Result
from harness.mutants.matrix import kill_matrix, matrix_jobs
from harness.mutants.minimal import minimal_jobs
from harness.mutants.pool import Died, Job, Settings, run_jobs
from harness.mutants.score import summarize
from harness.mutants.upstream_run import upstream_jobs, upstream_table
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
    request: MutantsRequest, found: dict[str, Any], progress: Progress = lambda _what, _done, _of: None
) -> Verdict:
    """Run a request.

    Args:
        request: what to do.
        found: is filled in as results arrive, so that an interrupted run keeps what it has.
        progress: called with what is being done, how much of it is done, and of how much.

    Returns:
        FAIL with a survivor, UNKNOWN where a planted fault could not be judged or none could be planted, else PASS.

    Raises:
        UsageError: bad usage, an unknown candidate.
        CandidateStartError: the candidate cannot run here.
    """
    started = time.time()
    run = _Run(request, found, progress, started + request.max_seconds if request.max_seconds else 0.0)
    faults = chosen_faults(request)
    found.update(
        {
            "candidate": request.candidate, "profile": request.profile, "seeds": request.seeds, "seed": request.seed,
            "complete": False, "seconds": 0.0, "score": {}, "survivors": [], "faults": [], "candidate_failures": [],
            "matrix": None, "upstream": None, "controls": None, "self_test": None,
        }
    )  # fmt: skip
    try:
        run.score(faults)
        if request.upstream:
            run.upstream()
        if request.matrix:
            run.matrix()
        found["complete"] = True
    finally:
        found["seconds"] = time.time() - started
    return verdict_of(found)


def verdict_of(found: dict[str, Any]) -> Verdict:
    """Return the verdict on a finished score."""
    statuses = {fault["status"] for fault in found["faults"]}
    if SURVIVED in statuses:
        return Verdict.FAIL
    if KILLED not in statuses or NOT_JUDGED in statuses:
        return Verdict.UNKNOWN
    return Verdict.PASS


@dataclass
class _Run:
    request: MutantsRequest
    found: dict[str, Any]
    progress: Progress
    deadline: float
    results: dict[str, list[Result]] = field(default_factory=dict)

    def score(self, faults: list[Fault]) -> None:
        """Judge every planting by the rule that its fault names."""
        stages = stages_of(load_candidate(self.request.candidate))
        planted = [fault for fault in faults if set(fault.stages) & set(stages)]
        for fault in faults:
            texts = plantings(fault, self.request.seeds)
            missing = f"the candidate has no {' or '.join(fault.stages)}"
            self.results[fault.name] = [
                Result(text, fault.killed_by, NOT_JUDGED if fault in planted else NOT_PLANTED,
                       message="the time was over" if fault in planted else missing)
                for text in texts
            ]  # fmt: skip
        by_name = {fault.name: fault for fault in faults}
        jobs = list(_score_jobs(planted, self.request.seeds, self.deadline))
        try:
            for job, batch in self._run(jobs, "plantings judged"):
                if isinstance(batch, Died):
                    for text in job.arguments["plantings"]:
                        self._note(Result(text, job.arguments["rule_id"], NOT_JUDGED, message=batch.message))
                    continue
                for result in batch.results:
                    self._note(result)
                self.found["candidate_failures"] += [
                    f for f in batch.candidate_failures if f not in self.found["candidate_failures"]
                ]
        finally:
            self.found.update(summarize(by_name, self.results))

    def upstream(self) -> None:
        """Judge the layer's final output by the criteria of other projects."""
        jobs = upstream_jobs(self._planted())
        if jobs:
            parts = [answer for _, answer in self._run(jobs, "faults seen by upstream criteria")]
            self.found["upstream"] = upstream_table([p for p in parts if not isinstance(p, Died)])

    def matrix(self) -> None:
        """Judge every fault by every rule, and shrink one problem a fault."""
        names = self._planted()
        answers = self._run(matrix_jobs(names, self.deadline), "cells of the kill matrix")
        batches = [(job, batch) for job, batch in answers if isinstance(batch, Batch)]
        self.found["matrix"] = kill_matrix(names, self.results, batches)
        killed = {f["name"]: f["killed_by"] for f in self.found["faults"] if f["status"] == KILLED}
        for job, answer in self._run(minimal_jobs(killed), "problems shrunk"):
            for fault in self.found["faults"]:
                if fault["name"] == job.arguments["fault"] and not isinstance(answer, Died):
                    fault["minimal"] = answer

    def _planted(self) -> list[str]:
        return [f["name"] for f in self.found["faults"] if f["status"] != NOT_PLANTED]

    def _note(self, result: Result) -> None:
        name = result.planting.partition("@")[0]
        mine = self.results[name]
        mine[[r.planting for r in mine].index(result.planting)] = result

    def _run(self, jobs: list[Job], what: str) -> Iterator[tuple[Job, Any]]:
        r = self.request
        total = sum(len(job.arguments.get("plantings", [0])) for job in jobs)
        done = 0
        self.progress(what, 0, total)
        for job, answer in run_jobs(
            Settings(r.candidate, r.profile, r.seed), jobs, min(r.processes, len(jobs))
        ):
            done += len(job.arguments.get("plantings", [0]))
            self.progress(what, done, total)
            yield job, answer


def _score_jobs(faults: list[Fault], seeds: int, deadline: float) -> Iterator[Job]:
    by_rule: dict[str, list[Fault]] = {}
    for fault in faults:
        by_rule.setdefault(fault.killed_by, []).append(fault)
    for rule, members in by_rule.items():
        for start in range(0, len(members), FAULTS_PER_JOB):
            some = members[start : start + FAULTS_PER_JOB]
            texts = [text for fault in some for text in plantings(fault, seeds)]
            names = ", ".join(fault.name for fault in some)
            arguments = {"rule_id": rule, "plantings": texts, "deadline": deadline}
            yield Job("run:judge", arguments, f"{names} under {rule}")


def judge(bench: Bench, **arguments: Any) -> Batch:
    """Judge a batch in the process that holds the bench."""
    return bench.judge(**arguments)
