"""Where FlashInfer 0.7.4 has the fused activation."""

from flashinfer import kernels


def silu_and_mul_scaled_nvfp4_experts_quantize(a, mask, a_global_sf):
    return kernels.KERNELS.silu_mul_quantize_grouped(a, mask, a_global_sf)
