"""The built-in candidates by name, and how a name or `package.module:attribute` becomes an object. Imports nothing heavy."""

from __future__ import annotations

import difflib
import importlib
import sys
from pathlib import Path
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
from harness.support import Support, unsupported
from harness.verdict import UsageError

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
    "stages_of",
    "support_of",
    "traits_of",
]


def load_candidate(name: str) -> Any:
    """Return the candidate that a name stands for.

    Args:
        name: a built-in name, or `package.module:attribute` for a class, a function that returns a candidate, or an
            object. Modules are looked up from the current directory too. `NAME+FAULT` is that candidate with a fault
            planted in it (harness.faults), `NAME+FAULT@7` with parameters drawn from seed 7. `control:NAME` is one of
            the right variants that every rule must pass (harness.mutants.controls).

    Raises:
        UsageError: no such candidate; the message says what is there.
    """
    name, plus, faults = name.partition("+")
    if plus:
        from harness.faults import plant

        return plant(load_candidate(name), *faults.split("+"))
    if name.startswith("control:"):
        from harness.mutants.controls import load_control

        return load_control(name.removeprefix("control:"))
    target = CANDIDATES.get(name, name)
    module_name, colon, attribute = target.partition(":")
    if not colon or not module_name or not attribute:
        near = difflib.get_close_matches(name, CANDIDATES, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(
            f"unknown candidate {name!r}: {hint}Known: {', '.join(CANDIDATES)}, or package.module:attribute"
        )
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        raise UsageError(f"candidate {name!r} cannot be imported: {error}") from error
    candidate = found() if isinstance(found, type) or (callable(found) and not stages_of(found)) else found
    if not stages_of(candidate):
        raise UsageError(
            f"candidate {name!r} has none of the stages {', '.join(ALL_STAGES)}: see harness/candidates/protocol.py"
        )
    return candidate


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
