"""A candidate with planted faults: every stage call goes through the faults that are planted in that stage."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

from torch import Tensor

from harness.candidates.composition import compose_masked_moe, compose_tapped
from harness.candidates.prepared import PreparedRouted, multiply
from harness.candidates.protocol import ALL_STAGES, stages_of, traits_of
from harness.faults.calls import Call, GemmCall, MoeCall, QuantizeCall
from harness.faults.fault import Fault, Parameters, Planting
from harness.faults.layer_calls import CombineCall, DispatchCall, LoadCall, LoadedMoeCall, RouteCall
from harness.faults.merging import merge
from harness.faults.prepare_call import PrepareCall
from harness.faults.routed_call import RoutedCall
from harness.verdict import UsageError

CALLS: dict[str, type[Call]] = {
    "quantize_grouped": QuantizeCall,
    "silu_mul_quantize_grouped": QuantizeCall,
    "masked_grouped_gemm": GemmCall,
    "masked_moe": MoeCall,
    "routed_moe": RoutedCall,
    "route_topk": RouteCall,
    "dispatch": DispatchCall,
    "combine": CombineCall,
    "load_experts": LoadCall,
    "prepare": PrepareCall,
}
_INNER = ("quantize_grouped", "silu_mul_quantize_grouped", "masked_grouped_gemm")
_INSIDE = {
    "masked_grouped_gemm": ("prepare",),
    "masked_moe": (*_INNER, "prepare"),
    "routed_moe": ("prepare",),
}
Function = Callable[..., Any]


class Mutant:
    """A candidate around another one, with faults in some of its stages.

    Args:
        base: the candidate that is right.
        plantings: the faults, outermost last.

    Raises:
        UsageError: a fault belongs to a stage that the candidate does not have.
    """

    def __init__(self, base: Any, plantings: Sequence[Planting]) -> None:
        self.base = base
        self.plantings = tuple(plantings)
        self.traits = traits_of(base)
        self.name = "+".join([getattr(base, "name", type(base).__name__), *map(str, plantings)])
        self.parameters = [planting.parameters() for planting in plantings]
        stages = stages_of(base)
        for planting in plantings:
            if not set(planting.fault.stages) & set(stages):
                raise UsageError(
                    f"fault {planting.fault.name} is planted in {' or '.join(planting.fault.stages)}, "
                    f"which {self.name} does not have"
                )
            if why := planting.fault.unfit(self.traits):
                raise UsageError(f"fault {planting.fault.name} cannot be planted in {self.name}: {why}")

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.base, name)  # AttributeError where the base has no such stage
        if name == "masked_moe_tapped" and self._planted_inside("masked_moe"):
            return functools.partial(compose_tapped, self)
        if name == "routed_moe_tapped":
            if any("routed_moe" in planting.fault.stages for planting in self.plantings):
                raise AttributeError(name)  # what is wrong around the layer is in none of its GEMMs
            return functools.partial(type(self.base).routed_moe_tapped, self)
        if name not in ALL_STAGES:
            return value
        return self._stage(name, value)

    def _stage(self, stage: str, function: Function) -> Function:
        """Return the stage with every fault that is planted in it around it."""
        planted = self._planted_inside(stage)
        if stage == "masked_moe" and planted:
            function = functools.partial(compose_masked_moe, self, unrounded=self.traits.unrounded)
        if stage == "masked_grouped_gemm" and planted:
            function = functools.partial(multiply, self)
        if stage == "routed_moe" and planted:
            function = functools.partial(PreparedRouted.routed_moe, self)
        names = [
            name for name in inspect.signature(function).parameters if name not in {"hints", "unrounded"}
        ]
        for planting, parameters in zip(self.plantings, self.parameters, strict=True):
            if self._belongs(planting.fault, stage):
                function = _around(stage, function, self.base, planting, parameters, names)
        return function

    def _planted_inside(self, stage: str) -> bool:
        """Return whether a fault is planted in stages that this one is composed of, of a candidate that has those."""
        inside, stages = _INSIDE.get(stage, ()), set(stages_of(self.base))
        needed = set(_INNER) if stage == "masked_moe" else {"prepare"}
        if stage == "routed_moe" and not isinstance(self.base, PreparedRouted):
            return False
        return needed <= stages and any(set(p.fault.stages) & set(inside) for p in self.plantings)

    def _belongs(self, fault: Fault, stage: str) -> bool:
        """Return whether a fault is planted in a stage of this candidate: in one place only, the innermost that it has."""
        if stage not in fault.stages:
            return False
        if stage == "masked_grouped_gemm" and "prepare" in fault.stages:
            return "prepare" not in stages_of(self.base)
        if stage != "masked_moe":
            return True
        stages = set(stages_of(self.base))
        inner = bool(set(fault.stages) & set(_INNER)) and set(_INNER) <= stages
        return not inner and not ("load_experts" in fault.stages and "load_experts" in stages)


def _around(
    stage: str,
    function: Function,
    candidate: Any,
    planting: Planting,
    parameters: Parameters,
    names: list[str],
) -> Function:
    """Return a stage's function with one fault around it."""
    kind = CALLS[stage]
    if stage == "masked_moe" and "load_experts" in planting.fault.stages:
        kind = LoadedMoeCall

    def call(*positional: Any, **named: Any) -> Any:
        arguments = dict(zip(names, positional, strict=False)) | named
        if stage == "silu_mul_quantize_grouped" and "gate_up" in arguments:
            arguments["x"] = arguments.pop("gate_up")
        faulty = kind(stage, function, candidate, arguments)
        if planting.everywhere:
            planting.fault.apply(faulty, parameters)
            return faulty.result()
        healthy = kind(stage, function, candidate, arguments)
        if isinstance(faulty, GemmCall):
            faulty.out = _copy(faulty.out)
        healthy.run()
        planting.fault.apply(faulty, parameters)
        merge(healthy, faulty, planting.fault.unit, parameters)
        return healthy.result()

    return call


def _copy(out: Tensor) -> Tensor:
    """Return a copy of an output in the same physical layout."""
    return out.permute(2, 0, 1).clone().permute(1, 2, 0)
