"""DECLARED: what the contract fixes about the arithmetic holds, or is declared otherwise (harness.identification)."""

from __future__ import annotations

from harness.identification.measure import measured
from harness.judging.comparison import Comparison
from harness.judging.context import Context
from harness.records.finding import Finding
from harness.rules import NotApplicableError


def declared(ctx: Context) -> list[Comparison]:
    """DECLARED: every fixed point that could be asked has the contract's answer, or the one that Traits.deviations names."""
    asked = [finding for finding in measured(ctx.candidate).findings if finding.fixed and finding.found]
    if not asked:
        raise NotApplicableError("no point of its arithmetic that the contract fixes could be asked")
    return [
        _judged(stage, [f for f in asked if f.stage == stage], ctx)
        for stage in dict.fromkeys(f.stage for f in asked)
    ]


def _judged(stage: str, findings: list[Finding], ctx: Context) -> Comparison:
    """Return the comparison of one stage: each point is compared with the contract, bit for bit."""
    meant = ctx.traits.deviations
    wrong = [f for f in findings if f.deviates and f.named not in meant]
    as_declared = sum(f.deviates for f in findings) - len(wrong)
    judged = {
        "as the contract fixes it": len(findings) - as_declared,
        "as declared, otherwise than the contract": as_declared,
    }
    return Comparison(
        stage,
        compared=len(findings),
        illegal=len(wrong),
        judged={word: count for word, count in judged.items() if count},
        message="\n".join(map(_words, wrong)),
    )


_BY_ANOTHER_TRAIT = {"hidden: float32": 'unrounded=("hidden",)'}  # which is judged; the others are named


def _words(finding: Finding) -> str:
    """Return what deviates and under what it would be legal."""
    trait = _BY_ANOTHER_TRAIT.get(finding.named, f'deviations=("{finding.named}",)')
    return (
        f"{finding.stage}, {finding.point}: {finding.found}, by {finding.evidence}; the contract has {finding.fixed}\n"
        f"  legal for a candidate that declares Traits({trait})"
    )
