"""FlashInfer's CuTe DSL quantizer (`nvfp4_quantize(backend="cute-dsl")`), interpreted, one expert at a time.

The kernel class is the package's own, compiled and launched by the DSL's ordinary call: the package's wrapper compiles it for
TVM-FFI, which refuses CPU tensors. It quantizes a matrix with one global scale; a grouped call is one call per expert here.
"""

from __future__ import annotations

import functools
import warnings
from typing import TYPE_CHECKING, Any

from harness.candidates.cutedsl_on_cpu import on_cpu
from harness.candidates.cutedsl_support import import_quietly

if TYPE_CHECKING:
    from torch import Tensor


def quantize(x: Tensor, global_scale_enc: Tensor, *, silu_mul: bool) -> tuple[Tensor, Tensor]:
    """Quantize a matrix to NVFP4.

    Args:
        x: `(m, k)` bfloat16 or float16, contiguous; `(m, 2k)` with `silu_mul`, gate half first.
        global_scale_enc: `(1,)` float32.
        silu_mul: quantize silu(gate) * up.

    Returns:
        packed `(m, k/2)` uint8 and block scales `(round_up(m, 128), round_up(k/16, 4))` uint8 in 128x4 order.

    Raises:
        InterpreterError: the kernel did something wrong, or something that is not modelled.
    """
    import torch
    from cuda.bindings.driver import CUstream
    from cutlass import Int32
    from cutlass.cute.runtime import from_dlpack

    from harness.emulation.memory import unwritten

    rows, width = x.shape
    k = width // 2 if silu_mul else width
    padded_rows, padded_columns = -(-rows // 128) * 128, -(-k // 64) * 4
    packed = unwritten((rows, k // 2), torch.uint8)
    block_scale = unwritten((padded_rows * padded_columns,), torch.uint8)
    smooth = torch.zeros(k, dtype=x.dtype)  # an argument of another variant; not read
    inputs = {"x": x, "global_scale_enc": global_scale_enc, "pre_quant_scale": smooth}
    with (
        on_cpu(inputs, {"packed": packed, "block_scale": block_scale}),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")  # of the package about itself, while it compiles
        kernel = _kernel(str(x.dtype).removeprefix("torch."), k, silu_mul)
        blocks = -(-padded_rows // kernel.rows_per_block)
        arguments = (
            *(from_dlpack(t, assumed_align=16) for t in (x, packed, block_scale)),
            Int32(rows),
            Int32(padded_rows),
            Int32(blocks),
            from_dlpack(global_scale_enc, assumed_align=4),
            from_dlpack(smooth, assumed_align=16),
            CUstream(0),
        )
        key = (str(x.dtype), rows, k, silu_mul)
        if key not in _COMPILED:
            _COMPILED[key] = import_quietly("cutlass.cute").compile(kernel, *arguments)
        _COMPILED[key](*arguments)
    return packed, block_scale.view(padded_rows, padded_columns)


_COMPILED: dict[tuple[str, int, int, bool], Any] = {}


@functools.cache
def _kernel(dtype: str, k: int, silu_mul: bool) -> Any:
    import cutlass

    module = import_quietly("flashinfer.quantization.kernels.nvfp4_quantize")
    element = {"bfloat16": cutlass.BFloat16, "float16": cutlass.Float16}[dtype]
    return module.NVFP4QuantizeSwizzledKernel(
        element,
        k,
        sf_layout=module.SF_LAYOUT_128x4,
        enable_pdl=False,
        disable_fp4_quant_fast_math=False,
        nvfp4_4over6_config=None,
        silu_and_mul=silu_mul,
    )


def grouped_quantize(
    x: Tensor, masked_m: Tensor, global_scale_enc: Tensor, *, silu_mul: bool
) -> tuple[Tensor, Tensor]:
    """Quantize the valid rows of each expert; arguments and results as harness.candidates.cuda_quantizers."""
    import torch

    from harness.candidates import layouts
    from harness.emulation.memory import unwritten
    from reference.layout import padded_extents

    experts, rows, width = x.shape
    k = width // 2 if silu_mul else width
    packed = unwritten((experts, rows, k // 2), torch.uint8)
    swizzled = unwritten((experts, *padded_extents(rows, k // 16, "128x4")), torch.uint8)
    for expert, count in enumerate(masked_m.tolist()):
        if not count:
            continue
        given = x[expert, :count].clone(), global_scale_enc[expert : expert + 1].clone()
        packed[expert, :count], block_scale = quantize(*given, silu_mul=silu_mul)
        swizzled[expert, : block_scale.shape[0]] = block_scale
    return packed.permute(1, 2, 0), layouts.as_mma(swizzled)
