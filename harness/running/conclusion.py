"""The end of a run of rules: its verdict, and the one sentence that explains it. Imports no torch."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from harness.canary.verdict import judge_canary
from harness.candidates.left_out import out_of_contract
from harness.problems.profiles import find_profile
from harness.problems.reach import in_words, reached_by_all
from harness.records.record import CandidateRun, RuleResult, RunRecord
from harness.rules import RULES
from harness.running.outcome import traits_from
from harness.verdict import Verdict, worst

if TYPE_CHECKING:
    from collections.abc import Sequence

    from harness.problems.traps import Place

_MOST_KERNELS = 12  # that are named
DECLARED = "DECLARED"  # its reason names what is wrong with the arithmetic
REACHING = {rule.id for rule in RULES if rule.reaches}  # whose extents a PASS may state


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


def conclude(record: RunRecord, floor: dict[str, int]) -> None:
    """Set the run's verdict and its reason from what the rules found.

    Args:
        record: with candidates, rules and traps filled in.
        floor: how often each trap must have been drawn; missing ones fail the run.
    """
    record.traps = dict(sorted(record.traps.items()))
    _note_kernels(record)
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
    incomplete = record.interrupted or record.errors or _missing(record)
    if incomplete and verdict is Verdict.PASS:
        verdict = Verdict.UNKNOWN
    record.verdict = verdict
    record.reason = _reason(record, judged, could_not_run)


def _note_kernels(record: RunRecord) -> None:
    """Say of each candidate which kernels ran, and on how many problems, where its package tells."""
    for candidate in record.candidates:
        ran: Counter[str] = Counter()
        for result in record.rules:
            if result.candidate == candidate.name:
                ran.update(result.kernels)
        if ran:
            said = "; ".join(f"{kernel}: {count:,}" for kernel, count in ran.most_common(_MOST_KERNELS))
            others = len(ran) - _MOST_KERNELS
            candidate.measured["kernels that ran"] = (
                f"{len(ran)}, by problems: {said}{f'; and {others} others' if others > 0 else ''}"
            )


def _missing(record: RunRecord) -> list[str]:
    """Return why the record is not of a whole run."""
    sharing = record.sharing_part
    return sharing.missing if sharing else []


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


def _reason(record: RunRecord, judged: list[RuleResult], could_not_run: list[CandidateRun]) -> str:  # noqa: PLR0911, C901 - one for each reason
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
    if missing := _missing(record):
        return missing[0]
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
