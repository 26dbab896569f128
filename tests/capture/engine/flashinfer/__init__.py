"""A stand-in for FlashInfer: the names and signatures that engines use, computed by `physical`, with FAULT planted below them."""

from flashinfer.activation import (
    silu_and_mul_scaled_nvfp4_experts_quantize as silu_and_mul_scaled_nvfp4_experts_quantize,
)
from flashinfer.quantization import scaled_fp4_grouped_quantize as scaled_fp4_grouped_quantize


def cute_dsl_fused_moe(x, w1_weight, w1_weight_sf, moe_output=None, quant_mode="w4a4"):
    moe_output.copy_(x)
    return moe_output
