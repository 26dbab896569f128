"""A captured call run again, through another implementation of its stage."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from harness.candidates.protocol import traits_of
from harness.diagnosis.cases.observation import MASKED_GEMM, Observed, copied


def run_again(call: Observed, candidate: Any) -> Observed:
    """Return a call with the output that a candidate gives for its inputs. Raises what the candidate raises."""
    device = traits_of(candidate).device
    a = {name: _moved(value, device) for name, value in copied(call.arguments).items()}
    if call.stage == MASKED_GEMM:
        candidate.masked_grouped_gemm(
            a["a"], a["a_scale"], a["b"], a["b_scale"], a["out"], a["masked_m"], a.get("alpha")
        )
        return replace(call, output=_moved(a["out"], "cpu"))
    if call.stage == "silu_mul_quantize_grouped":
        a["gate_up"] = a.pop("x")
    return replace(call, output=_moved(getattr(candidate, call.stage)(**a), "cpu"), changed={})


def _moved(value: Any, device: str) -> Any:
    if isinstance(value, Tensor):
        return value.to(device)
    return tuple(_moved(one, device) for one in value) if isinstance(value, tuple) else value
