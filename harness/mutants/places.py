"""Which candidate a fault is planted in, under which rule, or why it cannot be."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from harness.candidates import stages_of, traits_of
from harness.candidates.traits import Traits
from harness.faults.fault import Fault
from harness.faults.named import load_named
from harness.rules import RULE_IDS, find_rules
from harness.running.known_failures import default_path, load_known_failures

MODEL, CONTROL = "physical", "eager"
ELSEWHERE = (
    "control:physical_bf16_with_mxfp4", "control:physical_fp8_token", "control:physical_fp8_128", "control:physical_fp8",
    "control:physical_mxfp8", "control:physical_swigluoai", "control:physical_gelu",
    "control:physical_bf16_swigluoai", "control:physical_prepared", "control:rows_in_logfmt",
)  # fmt: skip
"""Where faults of other formats, activations and transports are planted: each in the first that has what it needs."""
OF_THE_LAYER = "MOE"  # the rule that judges a kernel that is one call


@dataclass(frozen=True)
class Place:
    """Where a fault goes and which rule judges it: candidate is a name, or "" with the reason."""

    candidate: str = ""
    rule: str = ""
    reason: str = ""


def place_of(fault: Fault, candidate: str, stages: list[str], traits: Traits | None = None) -> Place:
    """Return where a fault is planted.

    `physical` has some mistakes of the kernels that it models; a fault that would add nothing to one of those is planted
    in `eager` instead, and one of another format, activation or transport in a control that has it. Around a user's kernel
    it is reported as not planted, but for faults that show through the whole layer: where their own rule asks for stages
    that the kernel does not have, MOE judges them.

    Args:
        fault: what is planted.
        candidate: the name that was asked for.
        stages: of that candidate.
        traits: what it declares.
    """
    if why := fault.unfit(traits or Traits()):
        base = elsewhere(fault) if candidate == MODEL else ""
        return Place(base, fault.killed_by) if base else Place(rule=fault.killed_by, reason=why)
    place = _in(fault, candidate, stages, fault.killed_by)
    if not place.candidate and candidate == MODEL:
        for other in (CONTROL, *filter(None, [elsewhere(fault)])):
            control = _in(fault, other, stages_of(load_named(other)), fault.killed_by)
            if control.candidate:
                return control
        return place
    if not place.candidate and "masked_moe" in fault.stages:
        whole = _in(fault, candidate, stages, OF_THE_LAYER)
        return whole if whole.candidate else place
    return place


def elsewhere(fault: Fault) -> str:
    """Return the control that a fault of another format, activation, transport or stage is planted in, "" where there is none."""

    def fits(candidate: Any) -> bool:
        return not fault.unfit(traits_of(candidate)) and bool(set(fault.stages) & set(stages_of(candidate)))

    return next((name for name in ELSEWHERE if fits(load_named(name))), "")


def _in(fault: Fault, candidate: str, stages: list[str], rule: str) -> Place:
    """Return the place of a fault in this candidate, judged by this rule, or why there is none."""
    if not set(fault.stages) & set(stages):
        return Place(rule=rule, reason=f"the candidate has no {' or '.join(fault.stages)}")
    if rule not in RULE_IDS:
        return Place(rule=rule, reason=f"there is no rule {rule}")
    if missing := [stage for stage in find_rules([rule])[0].stages if stage not in stages]:
        return Place(rule=rule, reason=f"{rule} needs {', '.join(missing)}")
    for known in load_known_failures(default_path()):
        if (known.rule, known.candidate) == (rule, candidate) and known.applies():
            return Place(rule=rule, reason=f"the candidate itself fails {rule}, as known: {known.issue}")
    return Place(candidate, rule)
