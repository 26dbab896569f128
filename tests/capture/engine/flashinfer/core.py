"""Where FlashInfer has TRT-LLM-gen's layer that routes itself, over `eager` with the kernel's float32 intermediates."""

import torch

from harness.candidates import layouts
from harness.candidates.eager import EagerKernels
from harness.candidates.flashinfer_routed import FlashInferFusedTrtllm
from reference.formats import NVFP4
from reference.layout import unswizzle_128x4
from reference.weight_rows import of_turns, unshuffled
from tests.capture.real.routing_kernels import route

MISTAKEN = {}


def trtllm_fp4_block_scale_moe(
    routing_logits, routing_bias, hidden_states, hidden_states_scale, gemm1_weights, gemm1_weights_scale, gemm1_bias,
    gemm1_alpha, gemm1_beta, gemm1_clamp_limit, gemm2_weights, gemm2_weights_scale, gemm2_bias, output1_scale_scalar,
    output1_scale_gate_scalar, output2_scale_scalar, num_experts, top_k, n_group, topk_group, intermediate_size,
    local_expert_offset, local_num_experts, routed_scaling_factor, routing_method_type=0, do_finalize=True,
    activation_type=3, per_token_scale=None, norm_topk_prob=True,
):  # fmt: skip
    given = {
        "top_k": top_k, "n_group": n_group, "topk_group": topk_group, "routed_scaling_factor": routed_scaling_factor,
        "routing_method_type": routing_method_type, **MISTAKEN,
    }  # fmt: skip
    ids, weights = route(routing_logits, routing_bias, given)

    def matrix(codes, scale):
        linear = unswizzle_128x4(scale.view(torch.uint8), *scale.shape[1:])
        return unshuffled(codes), unshuffled(linear)

    first, second = matrix(gemm1_weights, gemm1_weights_scale), matrix(gemm2_weights, gemm2_weights_scale)
    first = [torch.cat(of_turns(rows, 1)[::-1], 1).contiguous() for rows in first]
    kernel = EagerKernels(unrounded=FlashInferFusedTrtllm.unrounded, k_multiple=128)
    out = kernel.routed_moe(
        (hidden_states, hidden_states_scale), ids, weights.bfloat16().float(), None, first[0],
        layouts.weight_scales(NVFP4, first[1]), output1_scale_gate_scalar, second[0],
        output1_scale_scalar / output1_scale_gate_scalar, layouts.weight_scales(NVFP4, second[1]), output2_scale_scalar,
        num_experts, local_expert_offset,
    )  # fmt: skip
    return [out]
