"""Humming's calls: weights as they were before they were brought into the kernels' order, and the masked GEMM with them.

Source: humming-kernels 0.1, transform.py (transform_humming_tensors) and forward.py (humming_forward).
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable
from typing import Any

from harness.candidates.taps import TapError

_FORWARD = ("config", "inputs", "weight", "outputs", "expert_layout", "compute_config")
_WEIGHTS = ("weight", "weight_scale", "weight_scale_2")
PREPARED = "prepared"
"""Input of the GEMM: the address of its prepared weights, in whose place the session puts what they were made of."""

Bind = Callable[[Any, Any], dict[str, Any]]


def binding(function: Callable[..., Any], names: tuple[str, ...]) -> Bind:
    """Return what gives a call's arguments by name.

    Raises:
        TapError: the function has no such parameters.
    """
    signature = inspect.signature(function)
    if missing := [name for name in names if name not in signature.parameters]:
        raise TapError(f"expected parameters {', '.join(missing)}, got {signature}")

    def bind(args: Any, kwargs: Any) -> dict[str, Any]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments

    return bind


def canonical(bind: Bind, args: Any, kwargs: Any) -> dict[str, Any]:
    """Return the weights that a preparation is given: packed codes `(l, n, k/2)`, linear block scales, alpha."""
    import torch

    tensors = bind(args, kwargs)["tensors"]
    codes, scale, alpha = (tensors.get(name) for name in _WEIGHTS)
    return {
        "b": None if codes is None else codes.view(torch.uint8),
        "b_scale": scale,
        "alpha": alpha,
    }


def preparation(function: Callable[..., Any]) -> Callable[[Any, Any], dict[str, Any]]:
    """Return what reads a call of transform_humming_tensors."""
    bind = binding(function, ("tensors",))
    return lambda args, kwargs: canonical(bind, args, kwargs)


def address(result: Any) -> int | None:
    """Return by what the weights that a preparation returned are known again."""
    weight = result.get("weight") if hasattr(result, "get") else None
    return None if weight is None else int(weight.data_ptr())


def forward(function: Callable[..., Any]) -> Bind:
    """Return what binds a call of humming_forward."""
    return binding(function, _FORWARD)


def gemm_inputs(bound: dict[str, Any]) -> dict[str, Any] | None:
    """Return the inputs of a masked GEMM by their names in the protocol; None of another kind of GEMM."""
    compute = bound["compute_config"] or {}
    compute = json.loads(compute) if isinstance(compute, str) else compute
    masked_m, config = bound["expert_layout"], bound["config"]
    if compute.get("gemm_type") != "grouped_masked" or bound["outputs"] is None or masked_m is None:
        return None
    scale = bound.get("input_scale")
    return {
        "a": _by_expert(bound["inputs"], len(masked_m)),
        "a_scale": None if scale is None else scale.reshape(len(masked_m), -1, 1),
        "masked_m": masked_m,
        "out": gemm_output(bound),
        PREPARED: int(bound["weight"].data_ptr()),
        "a_dtype": str(config.a_dtype),
        "b_dtype": str(config.b_dtype),
        "bs_dtype": str(config.bs_dtype),
        "one_pass": bool(compute.get("use_batch_invariant")),
    }


def gemm_output(bound: dict[str, Any]) -> Any:
    """Return what a masked GEMM writes into, logical `(m, n, l)`."""
    return _by_expert(bound["outputs"], len(bound["expert_layout"]))


def _by_expert(rows: Any, experts: int) -> Any:
    """Return `(l * m, k)` as logical `(m, k, l)`."""
    return rows.view(experts, -1, rows.shape[-1]).permute(1, 2, 0)
