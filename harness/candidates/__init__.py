"""The built-in candidates by name, and how a name or `package.module:attribute` becomes an object. Imports nothing heavy."""

from __future__ import annotations

import importlib.util
import inspect
import sys
import sysconfig
from pathlib import Path
from typing import Any

from harness.candidates.errors import in_words, traits_mistake
from harness.candidates.modes import in_mode, modes_of
from harness.candidates.over_names import OverName
from harness.candidates.protocol import (
    ALL_STAGES,
    LAYER_STAGES,
    STAGES,
    Candidate,
    Traits,
    stages_of,
    traits_of,
)
from harness.candidates.support import Support, supported, unsupported
from harness.processes import look_in_current_folder
from harness.verdict import UsageError, unknown_name

CANDIDATES = {
    "eager": "harness.candidates.eager:Eager",
    "eager-cuda": "harness.candidates.eager:EagerCuda",
    "physical": "harness.candidates.physical:Physical",
    "flashinfer-cutedsl": "harness.candidates.flashinfer_cutedsl:FlashInferCuteDsl",
    "flashinfer-cutedsl-cpu": "harness.candidates.flashinfer_cutedsl_cpu:FlashInferCuteDslCpu",
    "sglang-cutedsl": "harness.candidates.sglang_cutedsl:SglangCuteDsl",
    "humming-masked": "harness.candidates.humming_masked:HummingMasked",
    "humming-routed": "harness.candidates.humming_routed:HummingRouted",
    "marlin": "harness.candidates.marlin:Marlin",
    "vllm-cutedsl": "harness.candidates.vllm_cutedsl:VllmCuteDsl",
    "flashinfer-fused-cutedsl": "harness.candidates.flashinfer_routed:FlashInferFusedCuteDsl",
    "flashinfer-fused-cutedsl-w4a8": "harness.candidates.flashinfer_routed:cutedsl_w4a8",
    "flashinfer-fused-cutedsl-w4a16": "harness.candidates.flashinfer_routed:cutedsl_w4a16",
    "flashinfer-fused-trtllm": "harness.candidates.flashinfer_routed:FlashInferFusedTrtllm",
    "flashinfer-fused-cutlass": "harness.candidates.flashinfer_routed:FlashInferFusedCutlass",
    "flashinfer-mxfp8": "harness.candidates.flashinfer_mxfp8:FlashInferMxfp8",
    "vllm-emulation": "harness.candidates.vllm_emulation:VllmEmulation",
    "sglang-loader": "harness.candidates.engines.sglang_loader:SglangLoader",
    "vllm-loader": "harness.candidates.engines.vllm_loader:VllmLoader",
    "eager-gloo": "harness.candidates.over_ranks:EagerGloo",
    "deepep": "harness.candidates.over_ranks:DeepEp",
    "deepep-elastic": "harness.candidates.over_gpus:DeepEpElastic",
    "nccl-ep": "harness.candidates.over_gpus:NcclEp",
}
OVER_RANKS = ("eager-gloo", "deepep", "deepep-elastic", "nccl-ep")
"""Those whose ranks are processes: `NAME:4` is one over four, see over_names. Nobody who names no candidate means them."""

__all__ = [
    "ALL_STAGES",
    "CANDIDATES",
    "LAYER_STAGES",
    "OVER_RANKS",
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
            that every rule must pass (harness.candidates.controls.catalog); `NAME:MODE` is one in one of its modes;
            `eager-gloo:4` is one whose ranks are processes, over four of them (harness.candidates.over_names). Names with
            faults are harness.faults.named's.

    Raises:
        UsageError: no such candidate; the message says what is there.
    """
    if name.startswith("control:"):
        from harness.candidates.controls.catalog import load_control

        return load_control(name.removeprefix("control:"))
    if name.partition(":")[0] in OVER_RANKS:
        return OverName.of(name).made(CANDIDATES, load_candidate)
    name, mode = _without_mode(name)
    target = CANDIDATES.get(name, name)
    module_name, colon, attribute = target.partition(":")
    if dotted := _dotted(name):
        raise UsageError(
            f"candidate {name!r} is the path of a file; write it with dots, as for import: {dotted}"
        )
    if not colon or not module_name or not attribute:
        raise unknown_name("candidate", name, CANDIDATES, also="package.module:attribute")
    if not all(part.isidentifier() for part in module_name.split(".")):
        raise UsageError(
            f"candidate {name!r}: {module_name!r} is no name of a module, such as package.module"
        )
    if _is_pythons(module_name.partition(".")[0]):
        raise UsageError(f"candidate {name!r} is a part of Python and no candidate; nothing of it is called")
    try:
        candidate = _loaded(name, module_name, attribute, mode)
        traits_of(candidate)
    except Exception as error:
        if mistake := traits_mistake(error):
            raise UsageError(f"candidate {name!r}: {mistake}") from error
        raise
    return candidate


def _without_mode(name: str) -> tuple[str, str]:
    """Return a name without the mode behind it, and the mode: `humming-masked:mxfp4-fp8`, `package.module:attribute:mode`."""
    parts = name.split(":")
    of_name = 1 if parts[0] in CANDIDATES else 2
    return ":".join(parts[:of_name]), ":".join(parts[of_name:])


def candidate_modes(name: str) -> tuple[str, ...]:
    """Return the modes of a candidate, () of one that has none, and of a name that has a mode behind it already.

    Raises:
        UsageError: there is no such candidate.
    """
    base = name.partition("+")[0]
    if base.startswith("control:") or base.partition(":")[0] in OVER_RANKS or _without_mode(base)[1]:
        return ()
    return modes_of(load_candidate(base))


def _dotted(name: str) -> str:
    """Return how a candidate that was given by its file is written, "" where none was."""
    path, colon, attribute = name.partition(":")
    if "/" not in path and not path.endswith(".py"):
        return ""
    words = [word for word in path.removesuffix(".py").split("/") if word not in {"", ".", ".."}]
    return f"{'.'.join(words) or 'package.module'}:{attribute if colon and attribute else 'CLASS'}"


def _is_pythons(module: str) -> bool:
    """Return whether a module is of Python's standard library, and not one of the same name in the current folder."""
    look_in_current_folder()
    spec = importlib.util.find_spec(module) if module in sys.stdlib_module_names else None
    if spec is None:
        return False
    return not spec.has_location or Path(str(spec.origin)).is_relative_to(sysconfig.get_path("stdlib"))


def _loaded(name: str, module_name: str, attribute: str, mode: str) -> Any:
    """Import what a name stands for and make it. Raises UsageError where there is none, and what its own code raises."""
    try:
        found: Any = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
    except (ImportError, AttributeError) as error:
        where = getattr(sys.modules.get(module_name), "__file__", None)
        found_in = f" (found in {where})" if where else ""
        raise UsageError(f"candidate {name!r} cannot be imported: {error}{found_in}") from error
    if callable(found) and not stages_of(found) and not _makes(found):
        raise UsageError(
            f"candidate {name!r} is {type(found).__name__}, neither a class, a function that returns a candidate, nor an "
            "object with stages; it is not called to find out"
        )
    candidate = in_mode(found, name, mode) if mode else made(found)
    if not stages_of(candidate):
        raise UsageError(
            f"candidate {name!r} has none of the stages {', '.join(ALL_STAGES)}: see harness/candidates/protocol.py"
        )
    return candidate


def _makes(found: Any) -> bool:
    """Return whether something callable is a class or a function of Python, which may be called for a candidate."""
    return isinstance(found, type) or inspect.isfunction(inspect.unwrap(found)) or inspect.ismethod(found)


def made(found: Any) -> Any:
    """Return the candidate that a class or a function makes, or the candidate itself."""
    return found() if isinstance(found, type) or (callable(found) and not stages_of(found)) else found


def support_of(candidate: Any) -> Support:
    """Return whether the candidate can run here: what its `support()` says, and whether its device is there.

    Raises TypeError where its traits are none.
    """
    probe = getattr(candidate, "support", supported)
    try:
        result = probe()
    except Exception as error:  # noqa: BLE001 - a probe that crashes is a reason, not a crash of the run
        return unsupported(f"support() raised {in_words(error)}")
    if not isinstance(result, Support):
        return unsupported(f"support() must return harness.Support, got {type(result).__name__}")
    if not result.ok:
        return unsupported(str(result.reason))
    return _device_support(traits_of(candidate).device)


def _device_support(device: str) -> Support:
    """Return whether tensors can be held on the device that a candidate declares."""
    if device == "cpu":
        return supported()
    import torch

    if device.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        return unsupported(
            'it needs a CUDA device, and torch sees none; declare device="cpu" in its traits if it runs without'
        )
    try:
        torch.empty(1, device=device).cpu()
    except Exception as error:  # noqa: BLE001 - of an unknown device, a broken driver, a device that holds no data
        return unsupported(
            f"it declares device {device!r}, on which torch cannot hold data: {in_words(error)}"
        )
    return supported()
