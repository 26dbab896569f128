"""A diagnosis from a file: stage calls that someone saved with torch.save. The format is in README.md here."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from harness.candidates.protocol import STAGES
from harness.diagnosis.cases.legality import Bounds
from harness.diagnosis.cases.observation import MASKED_GEMM, MASKED_MOE, Observed, name_calls
from harness.diagnosis.diagnose import diagnose_calls
from harness.faults.mutant import CALLS
from harness.verdict import UsageError
from reference.bounds import Accumulator
from reference.legal import KINDS, Arithmetic

SECONDS = 60.0  # nobody waits for a test to end here
_OPTIONAL = {"alpha": None, "activation": "silu", "input_global_scale": None}


def diagnose_file(path: Path) -> list[dict[str, Any]]:
    """Return what explains the calls in a file, the best explanation first; nothing where every element is legal.

    Raises:
        UsageError: the file cannot be read, or does not hold stage calls; the message says what is missing.
    """
    try:
        data = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise UsageError(f"{path}: cannot be read as a file of torch.save ({error})") from error
    calls, arithmetic = _observed_calls(data, str(path))
    bounds = Bounds(Arithmetic(arithmetic), Accumulator())
    return diagnose_calls(calls, bounds, SECONDS, f"harness diagnose {shlex.quote(str(path))}")


def _observed_calls(data: Any, where: str) -> tuple[list[Observed], str]:
    """Return the calls that a file describes, and the arithmetic of its quantizers."""
    if not isinstance(data, dict):
        raise UsageError(f"{where}: must hold a dict, got {type(data).__name__}")
    arithmetic = data.get("arithmetic", "fast")
    if arithmetic not in KINDS:
        raise UsageError(f"{where}: arithmetic must be one of {', '.join(KINDS)}, got {arithmetic!r}")
    entries = data.get("calls", [data])
    return name_calls([_observed(entry, where) for entry in entries]), arithmetic


def _observed(entry: Any, where: str) -> Observed:
    if not isinstance(entry, dict) or entry.get("stage") not in STAGES:
        stage = entry.get("stage") if isinstance(entry, dict) else entry
        raise UsageError(f"{where}: 'stage' must be one of {', '.join(STAGES)}, got {stage!r}")
    stage, arguments = entry["stage"], dict(entry.get("arguments", {}))
    if "gate_up" in arguments:
        arguments["x"] = arguments.pop("gate_up")
    output = entry.get("output")
    if output is None:
        raise UsageError(f"{where}: {stage}: 'output' is missing")
    if stage == MASKED_GEMM and isinstance(output, Tensor):
        arguments.setdefault("out", torch.full_like(output, torch.nan))
    arguments = {name: value for name, value in _OPTIONAL.items() if name in CALLS[stage].names} | arguments
    if missing := [name for name in CALLS[stage].names if name not in arguments]:
        raise UsageError(f"{where}: {stage}: 'arguments' lacks {', '.join(missing)}")
    if stage == MASKED_MOE and isinstance(arguments["hidden_states"], Tensor):
        arguments["hidden_states"] = (arguments["hidden_states"], None)
    return Observed(stage, arguments, tuple(output) if isinstance(output, list) else output)
