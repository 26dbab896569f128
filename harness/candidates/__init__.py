"""The built-in candidates by name, and how a name or `package.module:attribute` becomes an object. Imports nothing heavy."""

from __future__ import annotations

import importlib
import sys
from typing import Any

from harness.candidates.protocol import (
    ALL_STAGES,
    LAYER_STAGES,
    STAGES,
    Candidate,
    Traits,
    stages_of,
    traits_of,
)
from harness.candidates.support import Support, unsupported
from harness.processes import look_in_current_folder
from harness.verdict import UsageError, unknown_name

CANDIDATES = {
    "eager": "harness.candidates.eager:Eager",
    "eager-cuda": "harness.candidates.eager:EagerCuda",
    "physical": "harness.candidates.physical:Physical",
    "flashinfer-cutedsl": "harness.candidates.flashinfer_cutedsl:FlashInferCuteDsl",
    "flashinfer-cutedsl-cpu": "harness.candidates.flashinfer_cutedsl_cpu:FlashInferCuteDslCpu",
    "sglang-cutedsl": "harness.candidates.sglang_cutedsl:SglangCuteDsl",
    "vllm-cutedsl": "harness.candidates.vllm_cutedsl:VllmCuteDsl",
}

__all__ = [
    "ALL_STAGES",
    "CANDIDATES",
    "LAYER_STAGES",
    "STAGES",
    "Candidate",
    "Support",
    "Traits",
    "load_candidate",
    "made",
    "stages_of",
    "support_of",
    "traits_of",
]


def load_candidate(name: str) -> Any:
    """Return the candidate that a name stands for.

    Args:
        name: a built-in name, or `package.module:attribute` for a class, a function that returns a candidate, or an
            object. Modules are looked up from the current directory too. `control:NAME` is one of the right variants
            that every rule must pass (harness.candidates.controls.catalog). Names with faults are
            harness.faults.named's.

    Raises:
        UsageError: no such candidate; the message says what is there.
    """
    if name.startswith("control:"):
        from harness.candidates.controls.catalog import load_control

        return load_control(name.removeprefix("control:"))
    target = CANDIDATES.get(name, name)
    module_name, colon, attribute = target.partition(":")
    if not colon or not module_name or not attribute:
        raise unknown_name("candidate", name, CANDIDATES, also="package.module:attribute")
    look_in_current_folder()
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        where = getattr(sys.modules.get(module_name), "__file__", None)
        found_in = f" (found in {where})" if where else ""
        raise UsageError(f"candidate {name!r} cannot be imported: {error}{found_in}") from error
    candidate = made(found)
    if not stages_of(candidate):
        raise UsageError(
            f"candidate {name!r} has none of the stages {', '.join(ALL_STAGES)}: see harness/candidates/protocol.py"
        )
    return candidate


def made(found: Any) -> Any:
    """Return the candidate that a class or a function makes, or the candidate itself."""
    return found() if isinstance(found, type) or (callable(found) and not stages_of(found)) else found


def support_of(candidate: Any) -> Support:
    """Return whether the candidate can run here; a candidate without `support()` is taken at its word."""
    probe = getattr(candidate, "support", None)
    if probe is None:
        return Support(ok=True)
    try:
        result = probe()
    except Exception as error:  # noqa: BLE001 - a probe that crashes is a reason, not a crash of the run
        return unsupported(f"support() raised {type(error).__name__}: {error}")
    if not isinstance(result, Support):
        return unsupported(f"support() must return harness.Support, got {type(result).__name__}")
    return result
