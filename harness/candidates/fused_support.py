"""Whether FlashInfer's fused layers and MXFP8 quantizers can run here, and the functions of the package that they are called through."""

from __future__ import annotations

import importlib.util
import inspect
import os
from typing import TYPE_CHECKING, Any

from harness.candidates.cutedsl_support import (
    PACKAGES,
    capability_support,
    import_quietly,
    installed_version,
)
from harness.candidates.support import Support, supported, unsupported
from harness.candidates.taps import missing_parameters, unfilled_parameters
from harness.extras import install_hint

if TYPE_CHECKING:
    from collections.abc import Sequence

_ROUTING = ("num_experts", "top_k", "local_expert_offset")
FUNCTIONS: dict[str, tuple[str, tuple[str, ...], tuple[str, ...]]] = {
    "cute_dsl_fused_moe": (
        "flashinfer.fused_moe.cute_dsl.fused_moe",
        (),
        (
            "x", "x_sf", "token_selected_experts", "token_final_scales", "w1_weight", "w1_weight_sf", "w1_alpha",
            "fc2_input_scale", "w2_weight", "w2_weight_sf", "w2_alpha", *_ROUTING, "num_local_experts", "output_dtype",
            "use_fused_finalize", "moe_output", "activation_type", "quant_mode", "swiglu_alpha", "swiglu_beta",
            "swiglu_limit",
        ),
    ),
    "trtllm_fp4_block_scale_routed_moe": (
        "flashinfer.fused_moe",
        (),
        (
            "topk_ids", "routing_bias", "hidden_states", "hidden_states_scale", "gemm1_weights", "gemm1_weights_scale",
            "gemm1_bias", "gemm1_alpha", "gemm1_beta", "gemm1_clamp_limit", "gemm2_weights", "gemm2_weights_scale",
            "gemm2_bias", "output1_scale_scalar", "output1_scale_gate_scalar", "output2_scale_scalar", *_ROUTING,
            "n_group", "topk_group", "intermediate_size", "local_num_experts", "routed_scaling_factor",
            "routing_method_type", "do_finalize", "activation_type", "output",
        ),
    ),
    "cutlass_fused_moe": (
        "flashinfer.fused_moe",
        (),
        (
            "input", "token_selected_experts", "token_final_scales", "fc1_expert_weights", "fc2_expert_weights",
            "output_dtype", "quant_scales", "input_sf", "ep_size", "ep_rank", "output", "activation_type",
            "swizzled_input_sf", "use_fused_finalize", "swiglu_alpha", "swiglu_beta", "swiglu_limit",
        ),
    ),
    "fp4_quantize": (
        "flashinfer",
        ("input", "global_scale", "sf_vec_size", "sf_use_ue8m0", "is_sf_swizzled_layout"),
        (),
    ),
    "mxfp8_quantize": ("flashinfer", ("input", "is_sf_swizzled_layout"), ()),
    "mxfp8_grouped_quantize": ("flashinfer", ("a", "mask"), ("backend",)),
    "silu_and_mul_mxfp8_experts_quantize": ("flashinfer", ("a", "mask"), ()),
}  # fmt: skip
"""By function: module, parameters passed by position, parameters passed by keyword."""
_VALUES = {"ActivationType": "flashinfer.tllm_enums", "RoutingMethodType": "flashinfer.tllm_enums"}


def fused_support(name: str, functions: Sequence[str]) -> Support:
    """Return whether a fused layer can run here, on the current CUDA device.

    Args:
        name: the candidate's name, for the reason.
        functions: names of FUNCTIONS that it calls.
    """
    for distribution, (module, _) in PACKAGES.items():
        if importlib.util.find_spec(module) is None:
            return unsupported(
                f"{name} needs {distribution}, which is not installed; run: {install_hint('cutedsl')}"
            )
    device = capability_support(name)
    if not device:
        return device
    if os.environ.get("FLASHINFER_NVFP4_4OVER6") == "1":
        return unsupported(f"{name} cannot be judged with FLASHINFER_NVFP4_4OVER6=1; unset it")
    reasons = (changed(function) for function in functions)
    return next((unsupported(f"{name}: {reason}") for reason in reasons if reason), supported())


def load_fused(name: str) -> Any:
    """Return a function of FUNCTIONS after checking that it can be called as this harness calls it, or an enumeration.

    Raises:
        RuntimeError: the package or the function is missing or has changed; the message is that of `support()`.
    """
    if name in _VALUES:
        return getattr(import_quietly(_VALUES[name]), name)
    if reason := changed(name):
        raise RuntimeError(reason)
    return getattr(import_quietly(FUNCTIONS[name][0]), name)


def changed(name: str) -> str:
    """Return why a function of FUNCTIONS cannot be called with the parameters that are passed to it, or ""."""
    module, positional, by_keyword = FUNCTIONS[name]
    try:
        function = getattr(import_quietly(module), name, None)
    except Exception as error:  # noqa: BLE001 - a broken installation may raise anything, and that is the reason
        return f"import {module} failed with {type(error).__name__}: {error}"
    version = installed_version("flashinfer-python")
    if function is None:
        return f"{module} {version} has no function {name}"
    order = tuple(inspect.signature(function).parameters)[: len(positional)]
    missing = missing_parameters(function, by_keyword)
    unfilled = unfilled_parameters(function, (*positional, *by_keyword))
    if order == positional and not missing and not unfilled:
        return ""
    return (
        f"{module}.{name} of flashinfer-python {version} is not called as this harness calls it: "
        f"unknown {', '.join(missing) or 'none'}, not given {', '.join(unfilled) or 'none'}, "
        f"first parameters {', '.join(order) or 'any'} instead of {', '.join(positional) or 'any'}"
    )
