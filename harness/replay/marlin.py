"""Marlin's fused layers as routed_moe: weights read back from the kernel's order, and the ways in which it rounds.

Their kernels multiply bfloat16 tokens with FP4 weights and sum in float32. The second GEMM's epilogue rounds a sum to bfloat16
and multiplies it in bfloat16 by one factor, made of the expert's and the routing weight:

| | the factor of the second GEMM | the epilogue of the first |
|---|---|---|
| SGLang | bf16(bf16(weight) * factor), factors being bfloat16 | bf16(bf16(sum) * factor) |
| vLLM | bf16(weight * factor), factors and their product being float32 | bf16(sum * factor) |

NVFP4's factors are held times 2^119 and the sums times 2^-119, so bf16(sum) is one of bfloat16's subnormals below 2^-7.

vLLM rounds silu(gate) before it multiplies with up, SGLang where there is a limit.

Source: sglang 0.5.23, kernels/jit/csrc/gemm/marlin_moe/marlin_template.h (sh_block_topk_weights, global_scale, write_result) and
srt/layers/quantization/marlin_utils_fp4.py (factors in params_dtype); vllm 0.33 (its kernels at commit 00da71c),
csrc/libtorch_stable/moe/marlin_moe_wna16/marlin_template.h (topk_weight_tmp *= global_scale_f32, write_result) and
moe_align_sum_kernels.cu (moe_sum_kernel), model_executor/layers/quantization/utils/marlin_utils_fp4.py
(prepare_nvfp4_moe_layer_for_marlin: factors in float32).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from harness.candidates.fused_weights import Matrix
from harness.candidates.traits import Traits
from harness.capture.marlin import BATCHED, NAME
from harness.diagnosis.cases.legality import Bounds
from harness.replay.captured import Captured, NotJudgedError
from harness.replay.fused_layer import Layer, Way, gated_text, require_unasked
from reference.bounds import Accumulator
from reference.epilogue import HELD, Epilogue, held_by
from reference.marlin_layout import BIAS, from_marlin, scales_from_marlin
from reference.matrix_units import Summation

__all__ = ["BATCHED", "NAME", "batched", "routed", "ways_of"]

_NOT_READ = (
    "bias1", "bias2", "w1_bias", "w2_bias", "w1_zeros", "w2_zeros", "g_idx1", "g_idx2", "sort_indices1", "sort_indices2",
    "input_dtype", "input_global_scale1", "input_global_scale2", "apply_router_weight_on_input", "no_combine",
    "activation_config.activation_situ_beta", "activation_config.activation_situ_linear_beta",
)  # fmt: skip
"""Arguments that change what a layer computes, and that no rule judges."""
_VLLM = {
    "gelu": "gelu",
    "gelu_tanh": "gelu_tanh",
    "relu2_no_mul": "relu2",
    "swigluoai": "swigluoai; interleave 1",
}
_OF_VLLM = Epilogue("before alpha, alpha rounded to bfloat16")
_OF_SGLANG = replace(_OF_VLLM, each=True)
_CHUNK = 8
"""A matrix instruction adds 16 products; half of that leaves room for the sums of warps and of blocks along k, k / 64 at most."""
_ROWS = "slots; weight on rows"


def routed(a: Mapping[str, Any]) -> Layer:
    """Return a call of fused_marlin_moe.

    Raises:
        NotJudgedError: it asks for what no rule judges.
    """
    ids, local = a["topk_ids"], len(a["w1"])
    if (there := a.get("expert_map")) is not None:  # global number -> place on this rank, -1 for none
        ids = torch.where(ids < 0, -1, there.long()[ids.long().clamp(min=0)])
    if not a.get("mul_topk_weights_in_gemm2", True):
        raise NotJudgedError(
            "fused_marlin_moe whose rows are weighted by a hook of the engine: not judged yet"
        )
    given = {
        "topk_idx": ids, "topk_weights": a["topk_weights"].float(), "num_experts": local, "local_expert_offset": 0,
    }  # fmt: skip
    return _layer(a, a["hidden_states"], given)


def batched(a: Mapping[str, Any]) -> Layer:
    """Return a call of batched_fused_marlin_moe: every valid row is a token of one expert, with a weight of one."""
    expert = _valid(a).nonzero()[:, :1].int()
    given = {
        "topk_idx": expert, "topk_weights": torch.ones(expert.shape), "num_experts": len(a["w1"]), "local_expert_offset": 0,
    }  # fmt: skip
    return _layer(a, valid_rows(a, a["hidden_states"]), given)


def valid_rows(a: Mapping[str, Any], rows: Tensor) -> Tensor:
    """Return of rows by expert, `(l, m, hidden)`, those that count, `(tokens, hidden)`."""
    return rows[_valid(a)]


def _valid(a: Mapping[str, Any]) -> Tensor:
    counts: Tensor = a["expert_num_tokens"]
    return torch.arange(a["hidden_states"].shape[1]) < counts.reshape(-1, 1)


def _layer(a: Mapping[str, Any], x: Tensor, routed: dict[str, Any]) -> Layer:
    require_unasked(NAME, a, _NOT_READ)
    if "lora" in str(a.get("activation_func")):
        raise NotJudgedError("fused_marlin_moe with LoRA: not judged yet")
    if x.dtype != torch.bfloat16:
        raise NotJudgedError(f"fused_marlin_moe with {x.dtype} tokens: not judged yet")
    factors = [a.get(name, a.get(other)) for name, other in _FACTORS]
    form = _weight_format(a, factors[0])
    alphas = [
        torch.ones(len(a["w1"])) if factor is None else factor.reshape(-1).float() / BIAS
        for factor in factors
    ]
    first, second = (
        Matrix(
            from_marlin(a[f"w{number}"]),
            scales_from_marlin(a[f"w{number}_scale"], "e4m3" if form == "nvfp4" else "e8m0"),
        )
        for number in (1, 2)
    )
    given = {
        "hidden_states": (x, None), "w1_alpha": alphas[0], "w2_alpha": alphas[1],
        "a2_global_scale": torch.ones(len(a["w1"])), **routed,
    }  # fmt: skip
    traits = Traits(activation_format="bf16", weight_format=form, accumulator_chunk=_CHUNK, final_sum=_ROWS)
    return Layer(traits, first, second, _activation(a), given)


_FACTORS = (("w1_global_scale", "global_scale1"), ("w2_global_scale", "global_scale2"))


def _weight_format(a: Mapping[str, Any], factor: Tensor | None) -> str:
    scale, four_bits = a["w1_scale"].dtype, a["w2"].shape[2] == 2 * a["hidden_states"].shape[-1]
    if four_bits and scale == torch.float8_e8m0fnu:
        return "mxfp4"
    if four_bits and scale == torch.float8_e4m3fn and factor is not None:
        return "nvfp4"
    raise NotJudgedError(f"fused_marlin_moe of another format than NVFP4 and MXFP4: scales of {scale}")


def _activation(a: Mapping[str, Any]) -> str:
    """Return the text of an activation as SGLang or vLLM asks for it, gate rows first."""
    kind, limit = a["activation"], a.get("clamp_limit", a.get("activation_config.clamp_limit"))
    if "is_gated" in a:  # SGLang's
        text = {("silu", True): "silu", ("relu2", False): "relu2"}.get((kind, a["is_gated"]))
        if text == "silu" and a["gemm1_alpha"] is not None:
            return gated_text(a["gemm1_alpha"], 1.0, limit)
        gated = gated_text(limit=limit)
        return _known(text and (gated if text == "silu" else text), kind)
    if kind == "silu":
        return gated_text(limit=limit)
    if kind == "swigluoai_uninterleave":
        return gated_text(a.get("activation_config.alpha"), a.get("activation_config.beta"), limit)
    return _known(_VLLM.get(kind), kind)


def _known(text: str | None, kind: str) -> str:
    if text is None:
        raise NotJudgedError(f"fused_marlin_moe with the activation {kind}: not judged yet")
    return text


def ways_of(call: Captured, bounds: Bounds, capability: int) -> list[Way]:
    """Return the ways in which a call may add and round, the likeliest first.

    Args:
        call: of either function.
        bounds: what is known of the capture.
        capability: major compute capability of the captured device, 0 where there is none.
    """
    given = call.line["inputs"]
    nvfp4 = any(given.get(name) is not None for name in _FACTORS[0])
    held = held_by([HELD] if nvfp4 else [])
    plain = Accumulator(chunk=_CHUNK)
    of_vllm, of_sglang = (replace(plain, epilogue=replace(way, held=held)) for way in (_OF_VLLM, _OF_SGLANG))
    gate = replace(bounds, accumulator=plain, second=of_vllm, rounded=("gate",))
    if "is_gated" not in given:  # vLLM: its own kernel, torch's sum, or its own in bfloat16
        sums = (_ROWS, "any; weight on rows", f"{_ROWS}; rounded each step")
        return [Way(text, gate) for text in sums]
    gate = replace(gate, accumulator=of_sglang, second=of_sglang)
    times = given["routed_scaling_factor"]
    text = f"{_ROWS}; times {times:g}" if nvfp4 and times not in (None, 1) else _ROWS
    ways = [Way(text, replace(gate, rounded=())), Way(text, gate)]
    if nvfp4 and capability >= 9:  # blocks along k add their parts with atomics in bfloat16
        ways.append(Way(text, replace(gate, summation=Summation.of("sm_90 f16; stream"))))
    return ways
