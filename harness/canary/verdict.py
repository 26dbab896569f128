"""What the canary's runs say about a run as a whole. Standard library only."""

from __future__ import annotations

from typing import Any

from harness.verdict import Verdict, worst


def judge_canary(canary: dict[str, Any] | None) -> tuple[Verdict, str] | None:
    """Return the verdict of the canary stage with its reason, or None where it did not run.

    A stage whose control (a planted fault that collapses real models) does not FAIL proves nothing: UNKNOWN. A candidate
    that FAILs stays a FAIL whatever its control did.
    """
    runs = (canary or {}).get("runs") or []
    if not canary or not runs:
        return None
    verdict = worst(Verdict(run["verdict"]) for run in runs)
    if verdict is not Verdict.PASS:
        first = next(run for run in runs if run["verdict"] == verdict)
        return verdict, f"canary on {first['candidate']}: {first['reason']}"
    blind = [run for run in canary.get("controls") or [] if run["verdict"] != Verdict.FAIL]
    if blind:
        control = blind[0]
        return (
            Verdict.UNKNOWN,
            f"canary without power: {control['candidate']} must FAIL, got {control['verdict']}: {control['reason']}",
        )
    return verdict, "; ".join(f"canary on {run['candidate']}: {run['reason']}" for run in runs)
