"""Faults planted into the engines' own functions, a line each, and the lines that repair SGLang.

Nothing of an engine is kept here but the line that is changed: the function is read where it is installed.
"""

from __future__ import annotations

import inspect
import textwrap
from dataclasses import dataclass
from typing import Any

from harness.candidates.engines.engine import Engine

SGL_LAYER = "sglang.srt.layers.moe.fused_moe_triton.layer:FusedMoE"
SGL_QUANT = "sglang.srt.layers.quantization.modelopt_quant"
SGL_METHOD = f"{SGL_QUANT}:ModelOptNvFp4FusedMoEMethod"
SGL_DEEPEP = "sglang.srt.layers.moe.token_dispatcher.deepep:_DeepEPDispatcherImplLowLatency"
V_MOE = "vllm.model_executor.layers.fused_moe"
V_QUANT = "vllm.model_executor.layers.quantization"
V_EXPERTS = f"{V_MOE}.routed_experts:RoutedExperts"
V_METHOD = f"{V_QUANT}.modelopt:ModelOptNvFp4FusedMoE"
V_PREPARE = f"{V_QUANT}.utils.flashinfer_fp4_moe"
V_DEEPEP = f"{V_MOE}.prepare_finalize.deepep_ll:DeepEPLLPrepareAndFinalize"
V_BATCHED = f"{V_MOE}.experts.flashinfer_cutedsl_batched_moe:FlashInferCuteDSLBatchedExperts"


@dataclass(frozen=True)
class Planted:
    """One changed line.

    Attributes:
        target: "module:function" or "module:class.function".
        line: a piece of the function, there once.
        instead: what stands there.
        names: of faults, any of which the diagnosis may give; a text that the message must hold where it is one of LOAD's
            own readings; () where the fault is caught and not named.
        rule: that catches it.
    """

    target: str
    line: str
    instead: str
    names: tuple[str, ...] = ()
    rule: str = "LOAD"


def planted(engine: Engine, *changes: Planted) -> dict[str, Any]:
    """Return the engine's functions with their lines changed, several of one function too, by target."""
    lines: dict[str, list[Planted]] = {}
    for change in changes:
        lines.setdefault(change.target, []).append(change)
    found = {}
    for target, here in lines.items():
        original = engine.get(target)
        source = textwrap.dedent(inspect.getsource(original))
        for change in here:
            times = source.count(change.line)
            assert times == 1, f"{target} has {times} times {change.line!r}"
            source = source.replace(change.line, change.instead)
        namespace: dict[str, Any] = {}
        code = compile(source, f"<{target}, planted>", "exec")
        exec(code, inspect.unwrap(original).__globals__, namespace)  # noqa: S102 - the engine's own source
        found[target] = namespace[original.__name__]
    return found


REPAIRS = (
    Planted(f"{SGL_LAYER}._weight_loader_impl", 'if "input_scale" in weight_name:', "if False:"),
    Planted(
        f"{SGL_QUANT}:_compute_gemm1_alphas",
        "up_scale = w13_weight_scale_2[:, 1]",
        "up_scale = w13_weight_scale_2[:, 1]; assert torch.equal(gate_scale, up_scale)",
    ),
    Planted(
        "sglang.srt.eplb.expert_location:ExpertLocationMetadata.logical_to_all_physical",
        "if require_global_experts:\n        num_physical_experts = cpu_map[layer_id]",
        "if False:\n        num_physical_experts = cpu_map[layer_id]",
    ),
)

SGLANG = {
    "gate and up change places": Planted(
        f"{SGL_LAYER}._load_w13",
        '(switch_w13 and shard_id == "w1") or (not switch_w13 and shard_id == "w3")',
        'shard_id == "w1"',
        ("gate_up_swapped", "gate_and_up_swapped"),
    ),
    "experts are rolled": Planted(
        f"{SGL_LAYER}._map_global_expert_id_to_local_expert_id",
        "return expert_id - start_idx",
        "return (expert_id - start_idx + 1) % self._num_local_routed",
        ("experts_rolled",),
    ),
    "alpha without the input scale": Planted(
        f"{SGL_QUANT}:_compute_gemm1_alphas",
        "g1_alphas = (w13_input_scale * gate_scale)",
        "g1_alphas = (gate_scale)",
        ("alpha_without_input_scale",),
    ),
    "the token scale is not inverted": Planted(
        f"{SGL_METHOD}.process_weights_after_loading",
        "(1 / w13_input_scale)",
        "(w13_input_scale)",
        ("input_scale_inverted", "it is not inverted"),
    ),
    "the intermediate scale is not inverted": Planted(
        f"{SGL_METHOD}.process_weights_after_loading", "(1 / w2_input_scale)", "(w2_input_scale)",
        ("it is not inverted",),
    ),
    "the smallest input scale": Planted(
        f"{SGL_METHOD}.process_weights_after_loading",
        ".repeat(layer.w13_input_scale.shape[0])",
        ".repeat(layer.w13_input_scale.shape[0]) * 0 + layer.w13_input_scale.min()",
        ("it is that of the smallest input scale",),
    ),
    "the largest of the rank's own experts": Planted(
        f"{SGL_METHOD}.process_weights_after_loading",
        ".repeat(layer.w13_input_scale.shape[0])",
        ".repeat(len(layer.w13_input_scale)) * 0"
        " + layer.w13_input_scale[layer.moe_ep_rank * layer.num_local_experts :][: layer.num_local_experts].max()",
        ("local_input_scale",),
    ),
    "every rank has the first rank's scales": Planted(
        f"{SGL_METHOD}.process_weights_after_loading",
        "assert w.shape == (layer.num_experts,)",
        "return w[: layer.num_local_experts]",
    ),
    "scales are not swizzled": Planted(
        f"{SGL_QUANT}:swizzle_blockscale", "permute((0, 1, 4, 3, 2, 5))", "permute((0, 1, 2, 3, 4, 5))",
        ("scales_not_swizzled",),
    ),
    "down's scale goes to the first slot": Planted(
        f"{SGL_LAYER}._load_per_tensor_weight_scale",
        'elif shard_id == "w2":\n        param_data[expert_id]',
        'elif shard_id == "w2":\n        param_data[0]',
    ),
    "slices of w2 all start at 0": Planted(
        f"{SGL_LAYER}._load_w2",
        "shard_dim, loaded_shard_size * self.moe_tp_rank, loaded_shard_size",
        "shard_dim, 0, loaded_shard_size",
    ),
    "the second alpha for the first GEMM": Planted(
        f"{SGL_METHOD}.apply",
        "w1_alpha=layer.g1_alphas",
        "w1_alpha=layer.g2_alphas",
    ),
    "the token scale for the intermediate": Planted(
        f"{SGL_METHOD}.apply", "a2_scale=layer.w2_input_scale_quant,\n                use_nvfp4", "a2_scale=layer.w13_input_scale_quant,\n                use_nvfp4",
        ("it is that of the other GEMM's input",),
    ),
}  # fmt: skip

SGLANG |= {
    "tokens are encoded with twice the scale": Planted(
        f"{SGL_DEEPEP}._dispatch_core", "x_global_scale=input_global_scale", "x_global_scale=input_global_scale * 2",
        rule="DISPATCH",
    ),
    "tokens go to the next expert": Planted(
        f"{SGL_DEEPEP}.dispatch_a", "topk_ids = topk_ids.to(torch.int64)", "topk_ids = (topk_ids + 1) % self.num_experts",
        rule="DISPATCH",
    ),
    "the routing weights are left out": Planted(
        f"{SGL_DEEPEP}._combine_core", "topk_weights=topk_weights", "topk_weights=torch.ones_like(topk_weights)",
        rule="COMBINE",
    ),
}  # fmt: skip

SGLANG |= {
    "tokens go to slots that are none": Planted(
        "sglang.srt.eplb.expert_location_dispatch:_topk_ids_logical_to_physical_dynamic",
        "dtype=torch.int32, device=device)\n            % num_valid", "dtype=torch.int32, device=device)\n            % (num_valid + 1)",
        rule="ROUTE",
    ),
    "logical ids where slots belong": Planted(
        "sglang.srt.eplb.expert_location_dispatch:_topk_ids_logical_to_physical_static",
        "physical_topk_ids = info.partial_logical_to_rank_dispatch_physical_map[topk_ids]", "physical_topk_ids = topk_ids + 1",
        rule="ROUTE",
    ),
}  # fmt: skip

VLLM = {
    "up is written over gate": Planted(
        f"{V_EXPERTS}._load_w13", "narrow(shard_dim, shard_size, shard_size)", "narrow(shard_dim, 0, shard_size)",
    ),
    "up's input scale is written over gate's": Planted(
        f"{V_EXPERTS}.weight_loader", 'scale_shard_id = 0 if shard_id == "w1" else 1', "scale_shard_id = slice(None)",
        ("it is that of up_proj alone",),
    ),
    "alpha without the input scale": Planted(
        f"{V_BATCHED}.process_weights_after_loading", "layer.w13_weight_scale_2.data.mul_(layer.w13_input_scale)", "pass",
        ("alpha_without_input_scale",),
    ),
    "the token scale is not inverted": Planted(
        f"{V_QUANT}.modelopt:make_nvfp4_moe_quant_config", "a1_gscale=(1.0 / a13_scale)", "a1_gscale=a13_scale",
        ("input_scale_inverted", "it is not inverted"),
    ),
    "scales are not swizzled": Planted(
        f"{V_PREPARE}:swizzle_blockscale", "permute(0, 1, 4, 3, 2, 5)", "permute(0, 1, 2, 3, 4, 5)",
        ("scales_not_swizzled",),
    ),
    "gate's scale for both, without a word": Planted(
        f"{V_METHOD}.process_weights_after_loading",
        "if self.moe.is_act_and_mul and not torch.allclose(",
        "if False and not torch.allclose(",
        ("gate_proj's weight_scale_2 is used for up_proj too",),
    ),
    "every rank has the first experts": Planted(
        f"{V_MOE}.expert_map_manager:determine_expert_map",
        "start_idx = ep_rank * base_experts + min(ep_rank, remainder)",
        "start_idx = 0",
    ),
    "the last columns of w2 are missing": Planted(
        f"{V_EXPERTS}._load_w2", "return\n    expert_data.copy_(loaded_weight)", "return\n    expert_data[..., :-8].copy_(loaded_weight[..., :-8])",
    ),
    "the smallest intermediate scale": Planted(
        f"{V_MOE}.oracle.nvfp4:prepare_nvfp4_moe_layer_for_fi_or_cutlass",
        "a2_scale = amax_for_moe_activation_quant(a2_scale, enable_eplb).repeat(",
        "a2_scale = a2_scale.min().repeat(",
        ("it is that of the smallest input scale",),
    ),
    "the first alpha for the second GEMM": Planted(
        f"{V_BATCHED}.apply", "w2_alpha=self.g2_alphas", "w2_alpha=self.g1_alphas",
    ),
    "the token scale for the intermediate": Planted(
        f"{V_METHOD}.process_weights_after_loading", 'replace_parameter(layer, "w2_input_scale", a2_scale)', 'replace_parameter(layer, "w2_input_scale", a13_scale)',
        ("it is that of the other GEMM's input",),
    ),
}  # fmt: skip

VLLM |= {
    "tokens go to the next expert": Planted(
        f"{V_DEEPEP}._map_global_to_physical_ids", "return topk_ids", "return (topk_ids + 1) % 4 if len(topk_ids) else topk_ids",
        rule="DISPATCH",
    ),
    "tokens are encoded with twice the scale": Planted(
        f"{V_DEEPEP}.prepare_async", "dict(x_global_scale=qc_a1_gscale_or_scale)", "dict(x_global_scale=qc_a1_gscale_or_scale * 2)",
        rule="DISPATCH",
    ),
    "the routing weights are applied twice": Planted(
        f"{V_DEEPEP}._finalize", "combine_topk_weights = topk_weights", "combine_topk_weights = topk_weights * topk_weights",
        rule="COMBINE",
    ),
}  # fmt: skip
