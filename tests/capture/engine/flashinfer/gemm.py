"""Where the masked GEMM is."""

import torch

from flashinfer import kernels
from harness.candidates import layouts


def grouped_gemm_nt_masked(
    lhs, rhs, out, masked_m, *, ab_dtype, sf_dtype, c_dtype, sf_vec_size, alpha=None, **kwargs
):
    assert (ab_dtype, sf_dtype, c_dtype, sf_vec_size) == ("float4_e2m1fn", "float8_e4m3fn", "bfloat16", 16)
    b, b_scale = rhs
    if b_scale.ndim == 3:  # as it lies in memory; the kernel takes its address
        b_scale = layouts.as_mma(b_scale.view(torch.uint8))
    kernels.KERNELS.masked_grouped_gemm(
        *lhs, b, b_scale, out, masked_m, None if alpha is None else alpha.reshape(-1)
    )
    return out
