"""`harness check`: candidates, rules and problems in, a run record out. Imports no torch."""

from __future__ import annotations

import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from harness.canary.verdict import judge_canary
from harness.candidates import ALL_STAGES, CANDIDATES, OVER_RANKS
from harness.candidates.errors import CandidateStartError
from harness.candidates.traits import out_of_contract
from harness.extras import missing
from harness.problems.problem import Problem
from harness.problems.profiles import Profile, find_profile
from harness.problems.reach import in_words, reached_by_all
from harness.problems.shapes import ModelShape
from harness.records.parts.canary import CanaryPart
from harness.records.record import CandidateRun, RuleResult, RunRecord, Skip
from harness.rules import RULES, Rule
from harness.running.known_failures import KnownFailure
from harness.running.outcome import traits_from
from harness.running.rules import judge_rules
from harness.running.session import Session, open_session
from harness.running.settings import RunSettings
from harness.verdict import Verdict, worst

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.problems.traps import Place
    from harness.records.parts.canary import CanaryRun

DECLARED = "DECLARED"  # its reason names what is wrong with the arithmetic
REACHING = {rule.id for rule in RULES if rule.reaches}  # whose extents a PASS may state


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
    try:
        spent = 0.0
        for number, name in enumerate(names):
            left = request.max_seconds - spent if request.max_seconds else float("inf")
            spent += _run_candidate(name, request, record, progress, left / (len(names) - number))
        if request.canary:
            _run_canary(request, record, progress)
    except KeyboardInterrupt:
        record.interrupted = True
        raise
    finally:
        record.seconds = time.monotonic() - started
        # A part of the rules, one problem or a cut run draws what it draws.
        partial = not request.all_rules or request.problem or request.shape or request.max_seconds
        conclude(record, {} if partial else trap_floor(record))
    return record


def trap_floor(record: RunRecord) -> dict[str, int]:
    """Return how often each trap must have been drawn in a full run of the record's profile.

    Traps that no candidate of the run can be given at all, by its declared alignments, are left out.
    """
    from harness.problems.strategies import possible_traps  # loads hypothesis: bad usage is refused without

    possible = {
        trap
        for c in record.candidates
        if c.ran
        for trap in possible_traps(traits_from(c.declared), _places(c.missing_stages))
    }
    return dict.fromkeys(sorted(possible), find_profile(record.profile).trap_floor)


def _places(missing_stages: Sequence[str]) -> set[Place]:
    """Return where the rules that a candidate's stages allow may write traps."""
    return {
        place for rule in RULES if not set(rule.stages) & set(missing_stages) for place in rule.drawn.into
    }


def _run_candidate(
    name: str, request: CheckRequest, record: RunRecord, progress: Progress, seconds: float
) -> float:
    """Run all rules on one candidate, for so long at most from its first problem on; return how long it took from there."""
    run = CandidateRun(name, requested=bool(request.candidates))
    session = open_candidate(
        run, record, threads=request.threads, memory_gib=request.memory_gib, isolate=request.isolate
    )
    progress.candidate(run)
    if session is None:
        return 0
    begun = time.monotonic()
    settings = RunSettings(request.profile, request.seed, begun + seconds, request.shape, name, progress.rule)
    try:
        for found in judge_rules(
            session, request.rules, settings, problem=request.problem, known=request.known
        ):
            found.keep(record)
            if found.result is not None:
                progress.finished(found.result)
    finally:
        run.missing_stages = [s for s in ALL_STAGES if s in run.missing_stages or s in session.left_out]
        session.close()
    return time.monotonic() - begun


def open_candidate(
    run: CandidateRun, record: RunRecord, *, threads: int = 0, memory_gib: float = 0, isolate: bool = True
) -> Session | None:
    """Load the candidate of a run and write into the record what it is, or why it cannot run here (None).

    Raises:
        UsageError: there is no such candidate.
    """
    record.candidates.append(run)
    try:
        session = open_session(run.name, threads=threads, memory_gib=memory_gib, isolate=isolate)
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


def conclude(record: RunRecord, floor: dict[str, int]) -> None:
    """Set the run's verdict and its reason from what the rules found.

    Args:
        record: with candidates, rules and traps filled in.
        floor: how often each trap must have been drawn; missing ones fail the run.
    """
    record.traps = dict(sorted(record.traps.items()))
    record.missing_traps = [trap for trap, least in floor.items() if record.traps.get(trap, 0) < least]
    judged = [r for r in record.rules if not r.skipped]
    verdict = worst(r.verdict for r in judged)
    canary = judge_canary(record.canary_part)
    if canary is not None:
        verdict = worst([verdict, canary[0]])
    could_not_run = [c for c in record.candidates if c.requested and not c.ran]
    if record.missing_traps and verdict is not Verdict.FAIL and not record.interrupted:
        verdict = Verdict.FAIL
    if could_not_run and verdict is Verdict.PASS:
        verdict = Verdict.UNKNOWN
    if (record.interrupted or record.errors) and verdict is Verdict.PASS:
        verdict = Verdict.UNKNOWN
    record.verdict = verdict
    record.reason = _reason(record, judged, could_not_run)


def _left_out(record: RunRecord) -> list[str]:
    """Return what a PASS does not say: what candidates leave out, do otherwise on purpose, and what could not be judged."""
    ran = [c for c in record.candidates if c.ran]
    said = []
    for candidate in ran:
        whose = f" of {candidate.name}" if len(ran) > 1 else ""
        if missing := out_of_contract(traits_from(candidate.declared)):
            said.append(f"declared out of the contract{whose}, not tested: {', '.join(missing)}")
        if meant := sorted({f.named for f in candidate.findings if f.deviates}):
            said.append(f"declared otherwise than the contract{whose}: {', '.join(meant)}")
        unknown = {f"{f.point} {f.evidence}" for f in candidate.findings if f.fixed and not f.found}
        said += [f"{words}{whose and f' ({candidate.name})'}" for words in sorted(unknown)]
    return said


def _reason(record: RunRecord, judged: list[RuleResult], could_not_run: list[CandidateRun]) -> str:  # noqa: PLR0911
    """Return the one sentence that explains the run's verdict."""
    failed = [r for r in judged if r.verdict is Verdict.FAIL]
    unknown = [r for r in judged if r.verdict is Verdict.UNKNOWN]
    if failed:
        first = failed[0]
        why = f": {first.reason}" if first.rule == DECLARED else ""
        return f"{len(failed)} of {len(judged)} rules failed; first: {first.rule} on {first.candidate}{why}"
    canary = judge_canary(record.canary_part)
    if canary is not None and canary[0] is Verdict.FAIL:
        return canary[1]
    if record.verdict is Verdict.FAIL:
        return f"traps drawn too seldom to count as tested: {', '.join(record.missing_traps)}"
    if could_not_run:
        return f"{could_not_run[0].name} cannot run here: {could_not_run[0].reason}"
    if record.interrupted:
        return "interrupted"
    if record.errors:
        return f"internal error: {record.errors[0].splitlines()[0]}"
    if unknown:
        return f"{unknown[0].rule} on {unknown[0].candidate}: {unknown[0].reason}"
    if canary is not None and canary[0] is Verdict.UNKNOWN:
        return canary[1]
    if not judged:
        return "no rule was judged"
    ran = ", ".join(c.name for c in record.candidates if c.ran)
    compared = sum(r.compared for r in judged)
    words = f"{len(judged)} results on {ran}: {compared:,} elements compared, all of them legal"
    known = sum(k["matched"] for k in record.known_failures)
    words += f" but for {known} known failure{'s' * (known != 1)}" if known else ""
    reached = in_words(reached_by_all(r.extents for r in judged if r.rule in REACHING))
    words += f"; {reached}" if reached else ""
    words += "".join(f"; {sentence}" for sentence in _left_out(record))
    return f"{words}; {canary[1]}" if canary else words
