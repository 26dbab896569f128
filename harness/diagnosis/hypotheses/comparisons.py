"""Faults of a stage whose output nobody but the kernel can read: told by which comparisons of the rule they fail.

What `prepare` returns is in an order of the kernel's own. A rule about it compares calls with each other, so a fault is
planted in a preparation that is right, the same rule judges that on the same problem, and what fails is compared.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from torch import Tensor

from harness.candidates import layouts
from harness.candidates.protocol import traits_of
from harness.candidates.traits import Traits
from harness.diagnosis.hypotheses.hypothesis import hypotheses_in
from harness.faults.fault import Fault, Planting
from harness.faults.mutant import Mutant
from harness.judging.comparison import Comparison
from harness.judging.context import Context, Known
from harness.problems.problem import parse_problem
from harness.rules import find_rules
from reference.formats import FORMATS

PREPARE = "prepare"
Failing = frozenset[tuple[str, tuple[int, ...], int | None]]
"""Of each comparison that fails: its name, the experts with anything illegal, and, of inputs, the first that changed."""


@dataclass(frozen=True)
class RightPreparation:
    """A preparation that is right: canonical weights, copied.

    Attributes:
        traits: of the candidate that it stands for, on a CPU.
    """

    traits: Traits

    def prepare(self, b: Tensor, b_scale: Tensor, alpha: Tensor | None) -> dict[str, Any]:
        """Return the weights as they are. Shapes: harness.candidates.protocol."""
        coded = layouts.loaded(FORMATS[self.traits.weight_format], (b, b_scale))
        made = {"weight": coded.codes.clone(), "weight_scale": coded.block_scale.clone()}
        return made if alpha is None else made | {"alpha": alpha.reshape(-1).clone()}


def failing(candidate: Any, known: Known, rule_id: str, problem: str) -> tuple[Failing, list[Comparison]]:
    """Run a rule and return which of its comparisons fail, as `Failing` and as they are."""
    found = find_rules([rule_id])[0].function()(Context(candidate, parse_problem(problem), known))
    bad = [c for c in found if c.illegal]
    return frozenset((c.stage, tuple(c.extent["experts"]), c.place.get("input")) for c in bad), bad


def faults_that_fail_alike(
    candidate: Any, known: Known, rule_id: str, problem: str, seconds: float
) -> tuple[list[Fault], list[Comparison]]:
    """Return the faults of `prepare` that fail the same comparisons of a rule as a candidate does, and those comparisons.

    Those that only a preparation can have come first: what is wrong with weights or alphas fails the rules of the GEMM too.

    Args:
        candidate: that failed.
        known: its arithmetic, as it was judged.
        rule_id: the rule, about `prepare` alone.
        problem: the problem's string.
        seconds: after which no further fault is planted.
    """
    wanted, bad = failing(candidate, known, rule_id, problem)
    traits = replace(traits_of(candidate), device="cpu")
    end = time.thread_time() + seconds
    faults = dict.fromkeys(
        h.fault for h in hypotheses_in([PREPARE], ("block", "row", "expert", "call"), traits)
    )
    right = RightPreparation(traits)
    alike = [
        f
        for f in faults
        if wanted and time.thread_time() < end and _fails(f, right, known, rule_id, problem) == wanted
    ]
    return sorted(alike, key=lambda fault: len(fault.stages)), bad


def _fails(fault: Fault, right: RightPreparation, known: Known, rule_id: str, problem: str) -> Failing:
    return failing(Mutant(right, [Planting(fault)]), known, rule_id, problem)[0]


def is_about_preparation(stages: Sequence[str]) -> bool:
    """Return whether a rule that needs these stages is about `prepare` alone."""
    return tuple(stages) == (PREPARE,)
