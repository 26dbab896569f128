"""What may have gone wrong: every fault of the catalog in each of its strengths, planted everywhere in a right model.

A hypothesis predicts the output of a recorded call: the fault is applied to the same arguments. Nothing here knows a
fault by its name.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, is_dataclass
from random import Random
from typing import Any

from torch import Tensor

from harness.diagnosis.cases.observation import MASKED_GEMM, MASKED_MOE, Observed, with_memory
from harness.diagnosis.cases.views import elements, input_bytes, memory_of
from harness.faults.fault import Fault, Parameters, all_faults
from harness.faults.layer_calls import LoadedMoeCall
from harness.faults.mutant import CALLS


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

    @property
    def name(self) -> str:
        """Name for reports, with the strength where there is one."""
        return self.fault.name if self.strength is None else f"{self.fault.name}({self.strength})"

    def parameters(self) -> Parameters:
        """Return fresh parameters: everywhere, random choices from a seed of their own."""
        return Parameters(self.strength, Random(self.fault.name), f"{self.fault.name} diagnosis")


def hypotheses(
    stages: Iterable[str], units: tuple[str, ...] = ("block", "row", "expert")
) -> list[Hypothesis]:
    """Return every fault that is planted in one of the stages, in each of its strengths."""
    wanted = set(stages)
    return [
        Hypothesis(fault, strength)
        for fault in all_faults().values()
        if fault.unit in units and wanted & set(fault.stages)
        for strength in fault.strengths
    ]


class Failed(Exception):  # noqa: N818 - not an error: the fault cannot be planted in this call
    """A hypothesis says nothing about a call: planting it there raised."""


def predict(
    model: Any,
    call: Observed,
    hypothesis: Hypothesis | None,
    parameters: Parameters | None = None,
    views: Iterable[str] = ("output",),
) -> dict[str, Tensor]:
    """Return what a call does under a hypothesis, as elements of each view; under None what a right model does.

    Args:
        model: what is right apart from the fault.
        call: with the arguments.
        hypothesis: the fault, everywhere.
        parameters: kept from call to call for faults about earlier calls; fresh ones otherwise.
        views: what of the call, see harness.diagnosis.cases.views.seen.

    Raises:
        Failed: the fault raises on this call.
    """
    arguments = dict(call.arguments)
    if call.stage == MASKED_GEMM:
        arguments["out"] = with_memory(arguments["out"])
    function = getattr(model, call.stage)
    kind = CALLS[call.stage]
    if call.stage == MASKED_MOE and hypothesis is not None and "load_experts" in hypothesis.fault.stages:
        kind = LoadedMoeCall  # what was loaded wrong is seen in the weights that the layer gets
    planted = kind(call.stage, function, model, arguments)
    with unharmed(call):
        if hypothesis is None:
            planted.run()
        else:
            hypothesis.fault.apply(planted, parameters or hypothesis.parameters())
        result = arguments["out"] if call.stage == MASKED_GEMM else planted.result()
        found = {}
        for view in views:
            if view == "output":
                found[view] = elements(call.stage, arguments, result)
            else:
                found[view] = memory_of(arguments["out"]) if view == "memory" else input_bytes(call.arguments)
    return found


@contextlib.contextmanager
def unharmed(call: Observed) -> Iterator[None]:
    """Put back what a planted fault writes into a call's arguments: the next hypothesis needs them as they were.

    Raises:
        Failed: in place of whatever the fault raised.
    """
    call.keep()
    before = {name: _version(value) for name, value in call.arguments.items()}
    try:
        yield
    except Exception as error:
        raise Failed(f"{type(error).__name__}: {error}") from error
    finally:
        call.restore([n for n, v in call.arguments.items() if n != "out" and _version(v) != before[n]])


def _version(value: Any) -> Any:
    if isinstance(value, Tensor):
        return value._version  # noqa: SLF001 - no public name for it
    if isinstance(value, (tuple, list)):
        return tuple(_version(v) for v in value)
    if isinstance(value, dict):
        return tuple(_version(v) for v in value.values())
    return tuple(_version(v) for v in vars(value).values()) if is_dataclass(value) else None
