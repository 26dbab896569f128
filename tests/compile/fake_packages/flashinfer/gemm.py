"""The masked GEMM: its number of rows says how it behaves."""

import os
import time

import torch
from cutlass import cute

ABORTS, HANGS, FAILS = 101, 102, 103


def grouped_gemm_nt_masked(lhs, rhs, out, masked_m, *, ab_dtype, sf_dtype, c_dtype, sf_vec_size, is_swap_ab, mma_tiler_mn, cluster_shape_mn, alpha=None, alpha_dtype=None):  # fmt: skip
    a = lhs[0]
    m, half_k, _experts = a.shape
    if a.device.type != "cuda" or not a.is_cuda or a.data_ptr() % 16:
        raise AssertionError("the operands must be on the GPU")
    properties = torch.cuda.get_device_properties(a.device)
    want = {"sm_100a": (10, 0), "sm_103a": (10, 3)}[os.environ["CUTE_DSL_ARCH"]]
    assert (properties.major, properties.minor) == want
    assert torch.cuda.current_stream().cuda_stream == 0
    if 2 * half_k % 32 and not os.environ.get("FAKE_NO_CHECKS"):
        raise TypeError(
            "unsupported: rows of A and B must be multiples of 16 bytes",
        )
    if m == HANGS:
        time.sleep(60)
    kernel = {"shared": int(os.environ.get("FAKE_SHARED", "226304"))}
    if m == ABORTS:
        kernel["abort"] = True
    if m == FAILS:
        kernel["error"] = "NVVM: no such intrinsic"
    function = cute.compile(kernel, a, options="--opt")
    raise SystemExit(f"{function} was returned: it would be launched next")
