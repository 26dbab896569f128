"""`harness check`: candidates, rules and problems in, a run record out. Imports no torch."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from harness.candidates import ALL_STAGES, CANDIDATES, OVER_RANKS
from harness.candidates.errors import CandidateStartError
from harness.extras import missing
from harness.problems.problem import Problem
from harness.problems.profiles import Profile
from harness.problems.shapes import ModelShape
from harness.records.parts.canary import CanaryPart
from harness.records.record import CandidateRun, RuleResult, RunRecord, Skip
from harness.rules import Rule
from harness.running.conclusion import conclude, trap_floor
from harness.running.known_failures import KnownFailure
from harness.running.rules import judge_rules
from harness.running.session import Session, open_session
from harness.running.settings import RunSettings
from harness.running.shared.asked import AskedSharing
from harness.running.shared.crew import WorkerLostError
from harness.running.shared.opening import SharedRun, open_shared

if TYPE_CHECKING:
    from collections.abc import Callable

    from harness.records.parts.canary import CanaryRun


@dataclass
class CheckRequest:
    """What `harness check` was asked for.

    Attributes:
        candidates: names; empty for every built-in one that can run here.
        rules: which rules.
        profile: how much.
        seed: of the draws.
        problem: judge only this problem.
        shape: a real model's shape.
        max_seconds: for all problems, whatever the candidates take to start; 0 for no limit.
        memory_gib: limit of a candidate's process; 0 for none.
        threads: of torch in each process; 0 for its own choice.
        isolate: run candidates in child processes.
        known: list of known failures.
        all_rules: no rule was selected, so the drawn traps can be counted against their floor.
        canary: questions of the canary, 0 for none.
        canary_named: it was asked for by name, so that a run without its extra is UNKNOWN and not only a skip.
        canary_control: fault that is planted in the first candidate to show that the stage sees it, "" for none.
        sharing: who judges the problems.
    """

    candidates: list[str]
    rules: list[Rule]
    profile: Profile
    seed: int = 0
    problem: Problem | None = None
    shape: ModelShape | None = None
    max_seconds: float = 0
    memory_gib: float = 0
    threads: int = 0
    isolate: bool = True
    known: list[KnownFailure] = field(default_factory=list)
    all_rules: bool = True
    canary: int = 0
    canary_named: bool = False
    canary_control: str = ""
    sharing: AskedSharing = field(default_factory=AskedSharing)


class Progress:
    """What a run tells while it runs; the command line overrides it."""

    def start(self, request: CheckRequest, candidates: list[str]) -> None:
        """The run starts, on candidates of which some may not run here."""

    def candidate(self, run: CandidateRun) -> None:
        """A candidate starts, or does not run."""

    def rule(self, rule: Rule, done: int, wanted: int) -> None:
        """`done` of `wanted` problems of a rule were judged."""

    def finished(self, result: RuleResult) -> None:
        """A rule is through."""

    def canary(self, run: CanaryRun) -> None:
        """The canary ran through a candidate, or a control with a planted fault."""

    def skipped(self, skip: Skip) -> None:
        """Something beside the rules does not run here; it has no part in the verdict."""


def run_check(request: CheckRequest, record: RunRecord, progress: Progress) -> RunRecord:
    """Run the request and fill in the record; on an interrupt the record holds what was found until then.

    Raises:
        KeyboardInterrupt: after the record was concluded with `interrupted` set.
    """
    started = time.monotonic()
    names = request.candidates or [name for name in CANDIDATES if name not in OVER_RANKS]
    progress.start(request, names)
    shared = SharedRun(
        request.sharing, request.candidates, request.rules, all_rules=request.all_rules, known=request.known
    )
    try:
        spent = 0.0
        for number, name in enumerate(names):
            left = request.max_seconds - spent if request.max_seconds else float("inf")
            spent += _run_candidate(name, request, record, progress, shared, left / (len(names) - number))
        if request.canary and request.sharing.asks_the_canary:
            _run_canary(request, record, progress)
    except KeyboardInterrupt:
        record.interrupted = True
        raise
    finally:
        record.seconds = time.monotonic() - started
        shared.keep(record)
        # A part of the rules, one problem or a cut run draws what it draws.
        a_part = not request.all_rules or request.problem or request.shape or request.max_seconds
        conclude(record, {} if a_part or request.sharing.shard else trap_floor(record))
    return record


def _run_candidate(
    name: str,
    request: CheckRequest,
    record: RunRecord,
    progress: Progress,
    shared: SharedRun,
    seconds: float,
) -> float:
    """Run all rules on one candidate, for so long at most from its first problem on; return how long it took from there."""
    run = CandidateRun(name, requested=bool(request.candidates))
    threads, memory = request.threads, request.memory_gib
    several = partial(open_shared, name, request.sharing, threads=threads, memory_gib=memory)
    opened = several if request.sharing.several else None
    session = open_candidate(
        run, record, threads=threads, memory_gib=memory, isolate=request.isolate, opened=opened
    )
    progress.candidate(run)
    if session is None:
        return 0
    settings = RunSettings(
        request.profile, request.seed, shape=request.shape, candidate=name, progress=progress.rule
    )
    judged = shared.prepared(session, settings, limited=bool(request.max_seconds))
    begun = time.monotonic()
    settings = replace(settings, deadline=begun + seconds)
    try:
        for found in judge_rules(
            judged, request.rules, settings, problem=request.problem, known=request.known
        ):
            found.keep(record)
            if found.result is not None:
                progress.finished(found.result)
    except (
        CandidateStartError,
        WorkerLostError,
    ) as error:  # of several workers; it had started at all of them
        shared.broken(f"{name} was not judged to the end: {error}")
    finally:
        run.missing_stages = [s for s in ALL_STAGES if s in run.missing_stages or s in session.left_out]
        session.close()
        shared.through(session, judged, name)
    return time.monotonic() - begun


def open_candidate(
    run: CandidateRun,
    record: RunRecord,
    *,
    threads: int = 0,
    memory_gib: float = 0,
    isolate: bool = True,
    opened: Callable[[], Session] | None = None,
) -> Session | None:
    """Load the candidate of a run and write into the record what it is, or why it cannot run here (None).

    `opened` loads it in another way than `open_session`, with what that raises.

    Raises:
        UsageError: there is no such candidate.
    """
    record.candidates.append(run)
    try:
        session = (
            opened()
            if opened
            else open_session(run.name, threads=threads, memory_gib=memory_gib, isolate=isolate)
        )
    except CandidateStartError as error:
        run.reason = str(error)
        return None
    described = session.describe()
    run.ran, run.declared, run.measured = True, described.traits, described.measured
    run.findings, run.fingerprint = described.findings, described.fingerprint
    run.missing_stages = [stage for stage in ALL_STAGES if stage not in described.stages]
    record.environment.device = described.traits["device"]
    return session


def _run_canary(request: CheckRequest, record: RunRecord, progress: Progress) -> None:
    """Ask the canary its questions through every candidate that ran, then through one with a planted fault.

    Without its extra it is a skip, and UNKNOWN on each of them where it was asked for by name.
    """
    from harness.canary.part import run_part
    from harness.records.parts.canary import CanaryRun

    lacking = missing("the canary", "canary")
    if lacking and not request.canary_named:
        skip = Skip("canary", lacking)
        record.skips.append(skip)
        progress.skipped(skip)
        return
    able = _able_to_run_the_canary(record)
    if not able:
        return
    if lacking:
        runs = [CanaryRun("UNKNOWN", "infra", lacking, candidate=name) for name in able]
        record.canary_part = CanaryPart(request.canary, runs)
        for run in runs:
            progress.canary(run)
        return
    canary = CanaryPart(request.canary)
    record.canary_part = canary
    plans = [(name, canary.runs) for name in able]
    if request.canary_control:
        plans.append((f"{able[0]}+{request.canary_control}", canary.controls))
    with tempfile.TemporaryDirectory(prefix="harness-canary-") as folder:
        for number, (name, runs) in enumerate(plans):
            run = run_part(
                name, questions=request.canary, folder=Path(folder) / str(number), seed=request.seed
            )
            runs.append(run)
            record.canary_part = canary
            progress.canary(run)


def _able_to_run_the_canary(record: RunRecord) -> list[str]:
    """Return the names of the candidates that the canary can run through; why the others cannot is kept as a skip."""
    able = []
    for candidate in record.candidates:
        if not candidate.ran:
            continue
        if "masked_moe" in candidate.missing_stages:
            record.skips.append(Skip(f"canary on {candidate.name}", "the candidate has no masked_moe"))
        elif not candidate.declared.get("canary", True):
            record.skips.append(Skip(f"canary on {candidate.name}", "it declares that it is too slow for it"))
        else:
            able.append(candidate.name)
    return able
