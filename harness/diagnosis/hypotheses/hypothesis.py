"""What may have gone wrong: every fault of the catalog in each of its strengths, planted everywhere in a right model.

A hypothesis predicts the output of a recorded call: the fault is applied to the same arguments. Nothing here knows a
fault by its name.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from random import Random
from typing import Any

from torch import Tensor

from harness.candidates.traits import Traits
from harness.diagnosis.cases.observation import MASKED_MOE, Observed
from harness.diagnosis.cases.replay import replayed
from harness.faults.fault import Fault, Parameters, all_faults
from harness.faults.layer_calls import LoadedMoeCall


@dataclass(frozen=True)
class Hypothesis:
    """One fault in one strength.

    Attributes:
        fault: which.
        strength: one of its strengths, or a measured one.
        fitted: whether the strength was measured on the output itself and is none of the catalog's.
    """

    fault: Fault
    strength: Any = None
    fitted: bool = False

    def parameters(self) -> Parameters:
        """Return fresh parameters: everywhere, random choices from a seed of their own."""
        return Parameters(self.strength, Random(self.fault.name), f"{self.fault.name} diagnosis")


def hypotheses_in(stages: Iterable[str], units: tuple[str, ...], *traits: Traits) -> list[Hypothesis]:
    """Return every fault of some units that is planted in one of the stages, in each of its strengths.

    Args:
        stages: names.
        units: of harness.faults.fault.UNITS.
        traits: formats, activation and transports, of calls that it can be a mistake of; none for the usual ones.
    """
    different = list(dict.fromkeys(map(repr, traits)))
    of_calls = [next(t for t in traits if repr(t) == text) for text in different] or [Traits()]
    wanted = set(stages)
    return [
        Hypothesis(fault, strength)
        for fault in all_faults().values()
        if fault.unit in units and wanted & set(fault.stages) and not all(fault.unfit(t) for t in of_calls)
        for strength in fault.strengths
    ]


def predict(
    model: Any,
    call: Observed,
    hypothesis: Hypothesis,
    parameters: Parameters | None = None,
    views: Iterable[str] = ("output",),
) -> dict[str, Tensor]:
    """Return what a call does under a hypothesis, as elements of each view.

    Args:
        model: what is right apart from the fault.
        call: with the arguments.
        hypothesis: the fault, everywhere.
        parameters: kept from call to call for faults about earlier calls; None for fresh ones.
        views: what of the call, see harness.diagnosis.cases.views.elements.

    Raises:
        ReplayError: the fault raises on this call.
    """
    used = parameters or hypothesis.parameters()
    # What was loaded wrong is seen in the weights that the layer gets.
    loaded = call.stage == MASKED_MOE and "load_experts" in hypothesis.fault.stages
    kind = LoadedMoeCall if loaded else None
    return replayed(model, call, views, kind=kind, run=lambda planted: hypothesis.fault.apply(planted, used))
