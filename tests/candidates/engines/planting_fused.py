"""Faults planted into what the engines do for FlashInfer's fused layers, by the loader whose layer they break."""

from __future__ import annotations

from tests.candidates.engines.planting import SGL_METHOD, V_MOE, V_PREPARE, Planted

SGL_SHUFFLE = "sglang.srt.layers.quantization.utils:prepare_static_weights_for_trtllm_fp4_moe"
SGL_RUNNERS = "sglang.srt.layers.moe.moe_runner"
V_TRTLLM = f"{V_MOE}.experts.trtllm_nvfp4_moe:TrtLlmNvFp4ExpertsBase"
V_CUTEDSL = f"{V_MOE}.experts.flashinfer_cutedsl_moe:FlashInferCuteDSLExperts"

OWN_SCALES = Planted(
    f"{SGL_METHOD}.process_weights_after_loading",
    "w2_input_scale = layer.w2_input_scale\n\n        def _slice_scale",
    "w2_input_scale = layer.w2_input_scale.max().repeat(layer.num_experts)\n\n        def _slice_scale",
)
"""Repairs SGLang's CuTe DSL layer: every rank takes the largest intermediate scale of all experts."""

FUSED = {
    "SglangTrtllmLoader": {
        "the block scales' rows are not shuffled": Planted(
            SGL_SHUFFLE, "permute_sf_indices.to(gemm1_scales_linear_fp4.device)", "torch.arange(gemm1_rows)",
            ("its block scales belong in row 136",),
        ),
        "the rows of down are shuffled as those of a gated layer": Planted(
            SGL_SHUFFLE,
            "gemm2_weights_fp4_shuffled[i] = gemm2_weights_fp4[i].view(torch.uint8)[",
            "gemm2_weights_fp4_shuffled[i] = gemm2_weights_fp4[i].view(torch.uint8)[torch.arange(hidden_size).view(2, -1).T.flatten()][",
            ("its codes belong in row 64",),
        ),
        "up's alpha is left out": Planted(
            f"{SGL_RUNNERS}.flashinfer_trtllm:_compute_g1_scale_c", "(w2_input_scale_quant * g1_alphas_up)", "w2_input_scale_quant.expand(len(g1_alphas))",
        ),
        "the kernel is told of the first rank's experts": Planted(
            f"{SGL_METHOD}.apply", "local_expert_offset=layer.moe_ep_rank * layer.num_local_experts", "local_expert_offset=0",
            ("local_expert_offset must be 2 on rank 1, got 0",),
        ),
    },
    "SglangCuteDslLoader": {
        "weights take turns of 32 rows": Planted(
            f"{SGL_METHOD}.process_weights_after_loading",
            "layer.w13_weight.view(torch.uint8), group_size=64, dim=1",
            "layer.w13_weight.view(torch.uint8), group_size=32, dim=1",
            ("its codes belong in row 160",),
        ),
        "gate and up change places": Planted(
            f"{SGL_RUNNERS}.flashinfer_cutedsl:interleave_w13_halves", "zip(first_half_groups, second_half_groups)", "zip(second_half_groups, first_half_groups)",
            ("it is what belongs in row 128",),
        ),
        "the second alpha without the intermediate scale": Planted(
            f"{SGL_RUNNERS}.flashinfer_cutedsl:resolve_cutedsl_standard_scales",
            "return w2_weight_scale_2 / fc2_scalar\n\n        w2_q", "return w2_weight_scale_2\n\n        w2_q",
        ),
    },
    "VllmTrtllmLoader": {
        "only the weights change places": Planted(
            f"{V_PREPARE}:reorder_w1w3_to_w3w1", "for t in (weight, scale):", "for t in (weight,):",
            ("its block scales belong in row 128",),
        ),
        "the scalar of up is that of before the input scale": Planted(
            f"{V_TRTLLM}.process_weights_after_loading", "g1_scale_c = self._compute_g1_scale_c()", "g1_scale_c = self.g1_scale_c",
        ),
        "scales are shuffled and not interleaved": Planted(
            f"{V_PREPARE}:prepare_static_weights_for_trtllm_fp4_moe", "nvfp4_block_scale_interleave(gemm1_scale_scratch)", "gemm1_scale_scratch.flatten()",
        ),
    },
    "VllmCuteDslLoader": {
        "scales take turns of 32 rows": Planted(
            f"{V_MOE}.oracle.nvfp4:prepare_nvfp4_moe_layer_for_flashinfer_cutedsl",
            "interleave_linear_and_gate(w13_scale, group_size=64, dim=1)", "interleave_linear_and_gate(w13_scale, group_size=32, dim=1)",
            ("its block scales belong in row 160",),
        ),
        "gate stays before up": Planted(
            f"{V_PREPARE}:reorder_w13_to_w31_for_flashinfer_cutedsl",
            "torch.cat([w13[:, half:], w13[:, :half]], dim=1).contiguous(),\n        torch.cat([w13_scale[:, half:], w13_scale[:, :half]], dim=1).contiguous(),",
            "w13, w13_scale",
            ("it is what belongs in row 128",),
        ),
        "alpha without the input scale": Planted(
            f"{V_CUTEDSL}.process_weights_after_loading", "layer.w13_weight_scale_2.data.mul_(layer.w13_input_scale)", "pass",
            ("alpha_without_input_scale",),
        ),
    },
}  # fmt: skip
