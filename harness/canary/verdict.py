"""What the canary's runs say about a run as a whole. Standard library only."""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.verdict import Verdict, worst

if TYPE_CHECKING:
    from harness.records.parts.canary import CanaryPart


def judge_canary(canary: CanaryPart | None) -> tuple[Verdict, str] | None:
    """Return the canary's verdict with its reason, or None where it did not run.

    A canary whose control (a planted fault that collapses real models) does not FAIL proves nothing: UNKNOWN. A candidate
    that FAILs stays a FAIL whatever its control did.
    """
    if canary is None or not canary.runs:
        return None
    verdict = worst(Verdict(run.verdict) for run in canary.runs)
    if verdict is not Verdict.PASS:
        first = next(run for run in canary.runs if run.verdict == verdict)
        return verdict, f"canary on {first.candidate}: {first.reason}"
    blind = [run for run in canary.controls if run.verdict != Verdict.FAIL]
    if blind:
        control = blind[0]
        return (
            Verdict.UNKNOWN,
            f"canary without power: {control.candidate} must FAIL, got {control.verdict}: {control.reason}",
        )
    return verdict, "; ".join(f"canary on {run.candidate}: {run.reason}" for run in canary.runs)
