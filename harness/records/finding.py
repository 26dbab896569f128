"""What was found about one point of a candidate's arithmetic: one line of `harness identify`, and what DECLARED judges.

A point is free where the contract is silent (order along k, association of a scale) and fixed where it is not (ties to
even, cast after alpha). A fixed point that deviates fails DECLARED unless `Traits.deviations` names it.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One question about one stage, and its answer.

    Attributes:
        stage: which stage was asked, such as "masked_grouped_gemm"; "masked_moe" where it was asked through the layer.
        point: what was asked: "block scale", "codes", "ties", "order along k", "partial sums", "cast", ...
        found: the answer as text, the member of its family that gives every bit of the probes; "" where none does.
        alike: other members that give the same bits there: not told apart.
        evidence: what was compared, in words with counts: "all 4,096 block scales under 64 encode scales".
        fixed: what the contract fixes here, in the words of `found`; "" where the point is free.
        modes: answers that hold elsewhere, each with where: "parts 4 at k 7,168".
    """

    stage: str
    point: str
    found: str
    alike: tuple[str, ...] = ()
    evidence: str = ""
    fixed: str = ""
    modes: tuple[str, ...] = ()

    @property
    def deviates(self) -> bool:
        """Whether something was found that the contract excludes."""
        return bool(self.fixed and self.found) and self.fixed not in (self.found, *self.alike)

    @property
    def named(self) -> str:
        """What Traits.deviations calls it."""
        return f"{self.point}: {self.found}"

    def __str__(self) -> str:
        answer = self.found or "not known"
        alike = f" (not told apart from {', '.join(self.alike)})" if self.alike else ""
        modes = "".join(f"; {mode}" for mode in self.modes)
        deviates = f"; the contract has {self.fixed}" if self.deviates else ""
        return f"{self.stage}, {self.point}: {answer}{alike}{modes}{deviates}"
