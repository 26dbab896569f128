"""What is tapped: functions by the package that defines them, and how a call of one is read. Imports no torch.

A function is found wherever in its package it is defined, since packages move them from version to version; its parameters
are bound by name, and a signature that cannot be read is left alone, with a warning.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from harness.candidates.protocol import ROUTED, traits_of
from harness.candidates.taps import TapError, binder
from harness.capture import humming, marlin

MASKED_MOE, GEMM, DISPATCH, COMBINE = "masked_moe", "masked_grouped_gemm", "dispatch", "combine"
PREPARE = "prepare"
"""No call of its own: weights before they are brought into a kernel's order, which a later call is given."""
MASKED_MOE_NAMES = (
    "hidden_states", "input_global_scale", "w1", "w1_blockscale", "w1_alpha", "w2", "a2_global_scale",
    "w2_blockscale", "w2_alpha", "masked_m",
)  # fmt: skip
FUSED_WEIGHTS = (
    "w1_weight", "w1_weight_sf", "w2_weight", "w2_weight_sf", "gemm1_weights", "gemm1_weights_scale", "gemm2_weights",
    "gemm2_weights_scale", "fc1_expert_weights", "fc2_expert_weights", "w1", "w1_scale", "w2", "w2_scale",
)  # fmt: skip
WEIGHTS = {
    MASKED_MOE: ("w1", "w1_blockscale", "w2", "w2_blockscale"),
    GEMM: ("b", "b_scale"),
    ROUTED: FUSED_WEIGHTS,
}
"""Tensors of a stage that are the same in every call: stored once."""


@dataclass(frozen=True)
class Target:
    """A function that is tapped.

    Attributes:
        package: that defines it, in any of its modules.
        name: of the function, or "Class.method".
        stage: of the candidate protocol, or PREPARE.
    """

    package: str
    name: str
    stage: str


TARGETS = (
    Target("flashinfer", "scaled_fp4_grouped_quantize", "quantize_grouped"),
    Target("flashinfer", "silu_and_mul_scaled_nvfp4_experts_quantize", "silu_mul_quantize_grouped"),
    Target("flashinfer", "grouped_gemm_nt_masked", GEMM),
    Target("sgl_kernel", "scaled_fp4_grouped_quant", "quantize_grouped"),
    Target("sgl_kernel", "silu_and_mul_scaled_fp4_grouped_quant", "silu_mul_quantize_grouped"),
    Target("sglang", "flashinfer_cutedsl_moe_masked", MASKED_MOE),
    Target("vllm", "flashinfer_cutedsl_moe_masked", MASKED_MOE),
    Target("flashinfer", "cute_dsl_fused_moe", ROUTED),
    Target("flashinfer", "trtllm_fp4_block_scale_moe", ROUTED),
    Target("flashinfer", "trtllm_fp4_block_scale_routed_moe", ROUTED),
    Target("flashinfer", "cutlass_fused_moe", ROUTED),
    Target("sglang", marlin.NAME, ROUTED),
    Target("vllm", marlin.NAME, ROUTED),
    Target("vllm", marlin.BATCHED, ROUTED),
    Target("humming", "transform_humming_tensors", PREPARE),
    Target("humming", "humming_forward", GEMM),
    Target("harness", "ComposedMoe.masked_moe", MASKED_MOE),
    Target("deep_ep", "Buffer.low_latency_dispatch", DISPATCH),
    Target("deep_ep", "Buffer.low_latency_combine", COMBINE),
)
PACKAGES = frozenset(target.package for target in TARGETS)


@dataclass(frozen=True)
class Read:
    """How a call of a function is read.

    Attributes:
        inputs: from the arguments to the stage's inputs, by their names in the protocol (gate_up is `x`); None for a call
            that is none of the stage.
        outputs: from the arguments and the result to what the stage returned or wrote, by name.
        weights: from the arguments to the tensor by which its layer is known, None where it has none; as fast as can be,
            since it is asked in calls that are not captured too.
        late: whether a result may be complete only once its event is over, or its last element, a hook, was called.
    """

    inputs: Callable[[Any, Any], dict[str, Any] | None]
    outputs: Callable[[Any, Any, Any], dict[str, Any]]
    weights: Callable[[Any, Any], Any] = lambda _args, _kwargs: None
    late: bool = False


def reading_of(target: Target, function: Callable[..., Any], where: str) -> Read:
    """Return how calls of a function are read.

    Args:
        target: what it is.
        function: itself.
        where: its module and name, for messages.

    Raises:
        TapError: its parameters are not those of the stage.
    """
    if target.package == "humming":
        return _humming(target.stage, function)
    if target.stage == MASKED_MOE:
        return _masked_moe(function, own=target.package == "harness")
    if target.stage in (DISPATCH, COMBINE):
        return _collective(target.stage, function)
    if target.name in (marlin.NAME, marlin.BATCHED):
        return _by_layer(function, *marlin.reading(function))
    if target.stage == ROUTED:
        return _fused(function)
    bind = binder(where, target.stage, function)
    return _gemm(bind) if target.stage == GEMM else _quantizer(bind)


def _collective(stage: str, function: Callable[..., Any]) -> Read:
    """Read DeepEP's method: its arguments by its own names, and what it returns, without event and hook."""
    signature = inspect.signature(function)
    names = ("recv", "count", "handle") if stage == DISPATCH else ("combined",)
    if "self" not in signature.parameters:
        raise TapError(f"expected a method of Buffer, got {signature}")

    def inputs(args: Any, kwargs: Any) -> dict[str, Any]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return {name: value for name, value in bound.arguments.items() if name not in ("self", "out")}

    def outputs(_: Any, __: Any, result: Any) -> dict[str, Any]:
        return dict(zip(names, result, strict=False))

    return Read(inputs, outputs, late=True)


def _fused(function: Callable[..., Any]) -> Read:
    """Read a fused layer: its arguments by its own names."""
    signature = inspect.signature(function)

    def inputs(args: Any, kwargs: Any) -> dict[str, Any]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return dict(bound.arguments)

    return _by_layer(function, inputs, _as_returned)


def _by_layer(
    function: Callable[..., Any],
    inputs: Callable[[Any, Any], dict[str, Any] | None],
    outputs: Callable[[Any, Any, Any], dict[str, Any]],
) -> Read:
    """Return how a fused layer is read, which is known by the first of its weights."""
    parameters = enumerate(inspect.signature(function).parameters)
    first, at = next(((name, place) for place, name in parameters if name in FUSED_WEIGHTS), ("", 0))

    def weights(args: Any, kwargs: Any) -> Any:
        return args[at] if first and len(args) > at else kwargs.get(first)

    return Read(inputs, outputs, weights)


def _as_returned(_: Any, __: Any, result: Any) -> dict[str, Any]:
    return {"result": result}


def _humming(stage: str, function: Callable[..., Any]) -> Read:
    if stage == PREPARE:
        return Read(humming.preparation(function), _as_returned)
    bind = humming.forward(function)

    def weights(args: Any, kwargs: Any) -> Any:
        return args[2] if len(args) > 2 else kwargs["weight"]

    return Read(
        lambda args, kwargs: humming.gemm_inputs(bind(args, kwargs)),
        lambda args, kwargs, _: {"out": humming.gemm_output(bind(args, kwargs))},
        weights,
    )


def _masked_moe(function: Callable[..., Any], *, own: bool = False) -> Read:
    signature = inspect.signature(function)

    def inputs(args: Any, kwargs: Any) -> dict[str, Any]:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        given = {name: bound.arguments.get(name) for name in MASKED_MOE_NAMES}
        hidden = given["hidden_states"]
        given["hidden_states"] = tuple(hidden) if isinstance(hidden, (tuple, list)) else (hidden, None)
        given["activation"] = bound.arguments.get("activation", "silu")
        if own:  # a candidate of the harness says what it multiplies
            traits = traits_of(bound.arguments["self"])
            given["formats"] = traits.activation_format, traits.weight_format
        return given

    def outputs(args: Any, kwargs: Any, result: Any) -> dict[str, Any]:
        written = signature.bind(*args, **kwargs).arguments.get("out")  # vLLM's writes into it
        return {"out": result if written is None else written}

    place = list(signature.parameters).index("w1")

    def weights(args: Any, kwargs: Any) -> Any:
        return args[place] if len(args) > place else kwargs.get("w1")

    return Read(inputs, outputs, weights)


def _gemm(bind: Callable[[Any, Any], dict[str, Any]]) -> Read:
    def inputs(args: Any, kwargs: Any) -> dict[str, Any]:
        bound = bind(args, kwargs)
        (a, a_scale), (b, b_scale) = bound["lhs"], bound["rhs"]
        return {
            "a": a, "a_scale": a_scale, "b": b, "b_scale": b_scale, "masked_m": bound["masked_m"],
            "alpha": bound.get("alpha"), "out": bound["out"],
        }  # fmt: skip

    def weights(args: Any, kwargs: Any) -> Any:
        return (args[1] if len(args) > 1 else kwargs["rhs"])[0]

    return Read(inputs, lambda args, kwargs, _: {"out": bind(args, kwargs)["out"]}, weights)


def _quantizer(bind: Callable[[Any, Any], dict[str, Any]]) -> Read:
    def inputs(args: Any, kwargs: Any) -> dict[str, Any]:
        bound = bind(args, kwargs)
        return {"x" if name == "gate_up" else name: value for name, value in bound.items() if name != "alpha"}

    def outputs(_: Any, __: Any, result: Any) -> dict[str, Any]:
        return {"packed": result[0], "block_scale": result[1]}

    return Read(inputs, outputs)
