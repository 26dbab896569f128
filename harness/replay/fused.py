"""Calls of FlashInfer's fused layers as routed_moe: arguments brought back from the kernel's order, and what it may return.

Source: flashinfer-python 0.7.2, fused_moe/core.py (trtllm_fp4_block_scale_moe, trtllm_fp4_block_scale_routed_moe,
cutlass_fused_moe) and fused_moe/cute_dsl/fused_moe.py (cute_dsl_fused_moe). Orders of rows: reference.weight_rows.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.flashinfer_routed import (
    FlashInferFusedCuteDsl,
    FlashInferFusedCutlass,
    FlashInferFusedTrtllm,
)
from harness.candidates.fused_weights import Matrix
from harness.candidates.protocol import ROUTED
from harness.diagnosis.cases.legality import Bounds
from harness.diagnosis.cases.observation import Observed
from harness.replay import marlin, routers
from harness.replay.captured import Captured, NotJudgedError
from harness.replay.fused_layer import Layer, Way, activation_text, require_unasked
from reference.formats import FORMATS
from reference.layout import unswizzle_128x4
from reference.weight_rows import of_turns, unshuffled

_NOT_READ = (
    "per_token_scale", "routing_bias", "gemm1_bias", "gemm2_bias", "gemm1_lora_delta", "fc1_expert_biases",
    "fc2_expert_biases", "situ_beta", "situ_linear_beta", "localized_weights", "num_fused_shared_experts",
    "clamped_relu2_limit", "enable_alltoall", "use_deepseek_fp8_block_scale", "use_w4_group_scaling",
    "use_mxfp8_act_scaling", "min_latency_mode", "use_packed_weights", "use_wfp4afp8_humming", "valid_hidden_size",
    "valid_intermediate_size",
)  # fmt: skip
"""Arguments that change what a layer computes, and that are not read back: a call that has one is not judged."""


def observed_fused(call: Captured, **changed: Any) -> Observed:
    """Return a call of a fused layer as one of routed_moe, of the tokens whose routing is known.

    Args:
        call: itself.
        changed: arguments in place of those that it was given.

    Raises:
        NotJudgedError: it asks for something that is not read back, an argument was not dumped, or weights or scales are none.
    """
    a = {**call.inputs, **changed}
    itself = routers.routes_itself(a)
    require_unasked(call.function, a, [name for name in _NOT_READ if not (itself and name == "routing_bias")])
    try:
        layer = _READ.get(_name(call), _trtllm)(a)
    except KeyError as error:
        raise NotJudgedError(f"{call.function}: {error.args[0]} was not dumped") from None
    except ValueError as error:  # weights or scales that no preparation makes
        raise NotJudgedError(f"{call.function}: {error}") from None
    tokens, weights = FORMATS[layer.traits.activation_format], FORMATS[layer.traits.weight_format]
    arguments = {
        "w1": layer.first.codes, "w1_blockscale": layouts.weight_scales(weights, layer.first.scale),
        "w2": layer.second.codes, "w2_blockscale": layouts.weight_scales(weights, layer.second.scale),
        "activation": layer.activation, "input_global_scale": torch.ones(1) if tokens.plain else None, **layer.given,
    }  # fmt: skip
    result = call.outputs["result"]
    if isinstance(result, tuple) and len(result) == 1:
        (result,) = result
    if not isinstance(result, Tensor):
        raise NotJudgedError(f"{call.function} without its last sum (do_finalize=False)")
    if _name(call) == marlin.BATCHED:
        result = marlin.valid_rows(a, result)
    if itself:
        result = result[routers.chosen(a).known]
    gated = "silu" if layer.activation == "relu2" else layer.activation
    return Observed(
        ROUTED, arguments, result, forms=(tokens, weights), gated=gated, final_sum=layer.traits.final_sum
    )


def _name(call: Captured) -> str:
    return call.function.rpartition(".")[2]


def ways_of(call: Captured, bounds: Bounds, capability: int) -> list[Way]:
    """Return the ways in which a call's kernel may compute, the likeliest first.

    Args:
        call: of a fused layer.
        bounds: of the quantizers, and what else is known.
        capability: major compute capability of the captured device, 0 where there is none.
    """
    if _name(call) in (marlin.NAME, marlin.BATCHED):
        return marlin.ways_of(call, bounds, capability)
    return [Way("", replace(bounds, unrounded=_unrounded(call)))]


def _unrounded(call: Captured) -> tuple[str, ...]:
    """Return which values a call's kernel keeps in float32, as Traits.unrounded names them."""
    if call.line["inputs"].get("quant_mode") == "w4a16":
        return FlashInferFusedCuteDsl(mode="w4a16").unrounded
    kernel = FlashInferFusedCutlass if call.function.endswith("cutlass_fused_moe") else FlashInferFusedTrtllm
    return kernel.unrounded


def _gate_first(first: Matrix, turn: int) -> Matrix:
    """Return gate rows first, of rows in which up comes first, in turns of so many or, for 0, as halves."""
    parts = []
    for rows in (first.codes, first.scale):
        up, gate = of_turns(rows, turn or rows.shape[1] // 2)
        parts.append(torch.cat((gate, up), 1).contiguous())
    return Matrix(*parts)


def _cutedsl(a: Mapping[str, Any]) -> Layer:
    traits = FlashInferFusedCuteDsl(mode=a["quant_mode"], fused_finalize=bool(a["use_fused_finalize"])).traits
    form = FORMATS[traits.weight_format]

    def matrix(name: str) -> Matrix:
        codes = a[name].view(torch.uint8)
        return Matrix(
            codes, layouts.block_scales_of(a[f"{name}_sf"], codes.shape[1], codes.shape[2] * 2 // form.block)
        )

    activation = activation_text(a["activation_type"], a["swiglu_limit"], a["swiglu_alpha"], a["swiglu_beta"])
    first, local = matrix("w1_weight"), len(a["w1_weight"])
    scale, a2 = a["x_sf"], a["fc2_input_scale"]
    given = {
        "hidden_states": (a["x"].view(torch.uint8) if scale is not None else a["x"], scale),
        "topk_idx": a["token_selected_experts"], "topk_weights": a["token_final_scales"].float(),
        "w1_alpha": a["w1_alpha"], "w2_alpha": a["w2_alpha"],
        "a2_global_scale": torch.ones(local) if a2 is None else a2.reshape(-1).expand(local).contiguous(),
        "num_experts": a["num_experts"], "local_expert_offset": a["local_expert_offset"],
    }  # fmt: skip
    return Layer(
        traits,
        first if activation == "relu2" else _gate_first(first, 64),
        matrix("w2_weight"),
        activation,
        given,
    )


def _trtllm(a: Mapping[str, Any]) -> Layer:
    alpha, joint = a["output1_scale_gate_scalar"], a["output1_scale_scalar"]
    tokens, final_sum = (
        (a["hidden_states"], a["hidden_states_scale"]),
        FlashInferFusedTrtllm().traits.final_sum,
    )
    if routers.routes_itself(a):
        routed = routers.chosen(a)
        ids, weights = routed.topk_idx[routed.known], routed.topk_weights[routed.known]
        tokens, final_sum = (
            (tokens[0][routed.known], tokens[1][routed.known]),
            "any",
        )  # equal scores in any order
    elif isinstance(a["topk_ids"], tuple):
        ids, weights = a["topk_ids"]
    else:  # the id above the bits of a bfloat16 weight
        packed = a["topk_ids"]
        ids, weights = packed >> 16, (packed & 0xFFFF).to(torch.uint16).view(torch.bfloat16)

    def matrix(number: int) -> Matrix:
        codes = a[f"gemm{number}_weights"].view(torch.uint8)
        scale = a[f"gemm{number}_weights_scale"].view(torch.uint8).reshape(len(codes), codes.shape[1], -1)
        return Matrix(unshuffled(codes), unshuffled(unswizzle_128x4(scale, *scale.shape[1:])))

    folded = [None if a[name] is None else a[name] * alpha for name in ("gemm1_clamp_limit", "gemm1_beta")]
    activation = activation_text(a["activation_type"], folded[0], a["gemm1_alpha"], folded[1])
    relu2, first = activation == "relu2", matrix(1)
    given = {
        "hidden_states": (tokens[0].view(torch.uint8), tokens[1].view(torch.uint8)),
        "topk_idx": ids, "topk_weights": weights.float(), "w1_alpha": alpha,
        "a2_global_scale": joint if relu2 else joint / alpha, "w2_alpha": a["output2_scale_scalar"],
        "num_experts": a["num_experts"], "local_expert_offset": a["local_expert_offset"],
    }  # fmt: skip
    return Layer(
        replace(FlashInferFusedTrtllm().traits, final_sum=final_sum),
        first if relu2 else _gate_first(first, 1),
        matrix(2),
        activation,
        given,
    )


def _cutlass(a: Mapping[str, Any]) -> Layer:
    if a["swizzled_input_sf"] and a["input_sf"] is not None:
        raise NotJudgedError("cutlass_fused_moe with swizzled scales of the tokens: not judged yet")
    if a["fc1_expert_weights"].dtype != torch.int64 or len(a["quant_scales"]) != 6:
        raise NotJudgedError("cutlass_fused_moe of another format than NVFP4: not judged yet")
    of_tokens, w1_scale, w1_alpha, a2, w2_scale, w2_alpha = a["quant_scales"]

    def matrix(name: str, scale: Tensor) -> Matrix:
        codes = a[name].view(torch.uint8)
        return Matrix(codes, unswizzle_128x4(scale.view(torch.uint8), codes.shape[1], codes.shape[2] // 8))

    activation = activation_text(a["activation_type"], a["swiglu_limit"], a["swiglu_alpha"], a["swiglu_beta"])
    first, local = matrix("fc1_expert_weights", w1_scale), len(a["fc1_expert_weights"])
    quantized = a["input_sf"] is not None
    given = {
        "hidden_states": (a["input"].view(torch.uint8), a["input_sf"]) if quantized else (a["input"], None),
        "topk_idx": a["token_selected_experts"], "topk_weights": a["token_final_scales"].float(), "w1_alpha": w1_alpha,
        "a2_global_scale": a2.reshape(-1).expand(local).contiguous(), "w2_alpha": w2_alpha,
        "num_experts": a["ep_size"] * local, "local_expert_offset": a["ep_rank"] * local,
    }  # fmt: skip
    given |= {} if quantized else {"input_global_scale": of_tokens}
    traits = FlashInferFusedCutlass(fused_finalize=bool(a["use_fused_finalize"])).traits
    return Layer(
        traits,
        first if activation == "relu2" else _gate_first(first, 0),
        matrix("fc2_expert_weights", w2_scale),
        activation,
        given,
    )


_READ = {
    "cute_dsl_fused_moe": _cutedsl,
    "cutlass_fused_moe": _cutlass,
    marlin.NAME: marlin.routed,
    marlin.BATCHED: marlin.batched,
}
