"""Where FlashInfer 0.7.4 has the grouped quantizer."""

from flashinfer import kernels


def scaled_fp4_grouped_quantize(a, mask, a_global_sf):
    return kernels.KERNELS.quantize_grouped(a, mask, a_global_sf)
