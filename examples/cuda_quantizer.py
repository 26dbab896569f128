"""An NVFP4 quantizer in CUDA C++ as a candidate, compiled by torch.utils.cpp_extension when it is first asked for.

The arithmetic is that of FlashInfer without fast math: correctly rounded reciprocals, one multiplication a value.
Needs a CUDA GPU, nvcc and ninja; the first compilation takes most of a minute.

    harness check --candidate examples.cuda_quantizer:CudaQuantizer
    pytest examples/cuda_quantizer.py
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from harness import Support, Traits, cases

SOURCE = r"""
#include <ATen/cuda/CUDAContext.h>
#include <cuda_bf16.h>
#include <cuda_fp8.h>
#include <torch/extension.h>

__device__ unsigned encode_e2m1(float y) {  // ties to even; NaN becomes 6, as the hardware's conversion does
  float m = fabsf(y);
  unsigned code = (m > 0.25f) + (m >= 0.75f) + (m > 1.25f) + (m >= 1.75f) + (m > 2.5f) + (m >= 3.5f) + (m > 5.0f);
  return isnan(y) ? 7u : code | (signbit(y) ? 8u : 0u);
}

// One thread a block of 16 elements; rows at or past masked_m[expert] stay unwritten.
__global__ void quantize(const __nv_bfloat16* x, const int* masked_m, const float* global_scale_enc,
                         unsigned char* packed, unsigned char* scales, long rows, long blocks, long padded_blocks) {
  long expert = blockIdx.z, row = blockIdx.y, block = blockIdx.x * (long)blockDim.x + threadIdx.x;
  if (row >= masked_m[expert] || block >= blocks) return;
  const __nv_bfloat16* in = x + ((expert * rows + row) * blocks + block) * 16;
  float amax = fabsf(__bfloat162float(in[0]));
  for (int i = 1; i < 16; ++i) amax = fmaxf(amax, fabsf(__bfloat162float(in[i])));  // of those that are no NaN
  float gs = global_scale_enc[expert];
  __nv_fp8_storage_t scale =
      __nv_cvt_float_to_fp8(__fmul_rn(amax, __fmul_rn(gs, __frcp_rn(6.0f))), __NV_SATFINITE, __NV_E4M3);
  float decoded = __half2float(__half(__nv_cvt_fp8_to_halfraw(scale, __NV_E4M3)));
  float factor = fminf(__frcp_rn(__fmul_rn(decoded, __frcp_rn(gs))), 3.402823466e38f);
  if (isnan(decoded)) factor = decoded;  // fminf would drop it
  if (amax == 0.0f) factor = 0.0f;
  unsigned char* out = packed + ((expert * rows + row) * blocks + block) * 8;
  for (int i = 0; i < 8; ++i)
    out[i] = encode_e2m1(__fmul_rn(__bfloat162float(in[2 * i]), factor)) |
             encode_e2m1(__fmul_rn(__bfloat162float(in[2 * i + 1]), factor)) << 4;
  long tile = (expert * ((rows + 127) / 128) + row / 128) * (padded_blocks / 4) + block / 4;  // 128x4 order
  scales[tile * 512 + row % 32 * 16 + row / 32 % 4 * 4 + block % 4] = scale;
}

void quantize_grouped(torch::Tensor x, torch::Tensor masked_m, torch::Tensor global_scale_enc, torch::Tensor packed,
                      torch::Tensor scales) {
  long experts = x.size(0), rows = x.size(1), blocks = x.size(2) / 16;
  dim3 grid((blocks + 63) / 64, rows, experts);
  quantize<<<grid, 64, 0, at::cuda::getCurrentCUDAStream()>>>(
      (const __nv_bfloat16*)x.data_ptr(), masked_m.data_ptr<int>(), global_scale_enc.data_ptr<float>(),
      packed.data_ptr<unsigned char>(), scales.data_ptr<unsigned char>(), rows, blocks, (blocks + 3) / 4 * 4);
}
"""
DECLARATION = (
    "void quantize_grouped(torch::Tensor, torch::Tensor, torch::Tensor, torch::Tensor, torch::Tensor);"
)


@functools.cache
def _compiled() -> Any:
    from torch.utils.cpp_extension import load_inline

    return load_inline("fp4_moe_example_quantizer", DECLARATION, SOURCE, functions=["quantize_grouped"])


class CudaQuantizer:
    """The stage quantize_grouped; shapes and layouts: harness/candidates/protocol.py."""

    traits = Traits(device="cuda", arithmetic="exact", k_multiple=16)

    def support(self) -> Support:
        if not torch.cuda.is_available():
            return Support(ok=False, reason="needs a CUDA device, torch sees none")
        try:
            _compiled()  # here, and not within the time limit of the first problem
        except (OSError, RuntimeError) as error:
            return Support(ok=False, reason=f"the extension does not compile: {error}")
        return Support(ok=True)

    def quantize_grouped(
        self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor
    ) -> tuple[Tensor, Tensor]:
        experts, rows, k = x.shape
        packed = torch.empty((experts, rows, k // 2), dtype=torch.uint8, device=x.device)
        tiles = (experts, -(-rows // 128), -(-k // 64), 32, 4, 4)
        scales = torch.zeros(
            tiles, dtype=torch.uint8, device=x.device
        )  # columns past k / 16 are read by a GEMM
        inputs = (x.contiguous(), masked_m.contiguous(), global_scale_enc.contiguous())
        _compiled().quantize_grouped(*inputs, packed, scales)
        return packed.permute(1, 2, 0), scales.view(torch.float8_e4m3fn).permute(3, 4, 1, 5, 2, 0)


@cases(CudaQuantizer)
def test_cuda_quantizer(case):
    case()
