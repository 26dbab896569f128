"""Marlin's fused layer as SGLang and vLLM call it: weights in the kernel's own order, which a replay reads back.

Source: sglang 0.5.23, srt/layers/moe/fused_moe_triton/fused_marlin_moe.py; vllm 0.33.0,
model_executor/layers/fused_moe/experts/marlin_moe.py.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
from collections.abc import Callable
from typing import Any

from harness.candidates.taps import TapError

NAME, BATCHED = "fused_marlin_moe", "batched_fused_marlin_moe"
_NEEDED = ("hidden_states", "w1", "w2", "w1_scale", "w2_scale")
_SCRATCH = ("gating_output", "workspace", "intermediate_cache13", "intermediate_cache2", "moe_sum", "output")
"""Buffers, the output among them, and what decides nothing of what is computed."""


def reading(
    function: Callable[..., Any],
) -> tuple[Callable[[Any, Any], dict[str, Any]], Callable[[Any, Any, Any], dict[str, Any]]]:
    """Return what reads a call's arguments by name, and what it returned or wrote.

    Raises:
        TapError: it has no such parameters.
    """
    signature = inspect.signature(function)
    if missing := [name for name in _NEEDED if name not in signature.parameters]:
        raise TapError(f"expected parameters {', '.join(missing)}, got {signature}")

    def inputs(args: Any, kwargs: Any) -> dict[str, Any]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given: dict[str, Any] = {}
        for name, value in bound.arguments.items():
            if dataclasses.is_dataclass(value):  # vLLM's numbers of an activation
                given |= {f"{name}.{one.name}": getattr(value, one.name) for one in dataclasses.fields(value)}
            elif name not in _SCRATCH:
                given[name] = _plain(value)
        return given

    def outputs(args: Any, kwargs: Any, result: Any) -> dict[str, Any]:
        written = signature.bind(*args, **kwargs).arguments.get("output")
        return {"result": result if written is None else written}

    return inputs, outputs


def _plain(value: Any) -> Any:
    """Return an enumeration's value, or the name of a function."""
    if isinstance(value, enum.Enum):
        return value.value
    return getattr(value, "__qualname__", "") if callable(value) else value
