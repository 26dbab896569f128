"""A masked NVFP4 GEMM in Triton as a candidate: operands are decoded to bfloat16, which is exact, and multiplied there.

Every tensor is addressed by its strides, so views of any layout may come. Needs a GPU from sm_89 on (E4M3) and triton.

    harness check --candidate examples.triton_gemm:TritonGemm
    pytest examples/triton_gemm.py
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from harness import Support, Traits, cases

ROWS, COLUMNS, DEPTH = 64, 64, 64  # of one program's tile


@triton.jit
def _decoded(packed, scale, rows, ks, inside, sr, sk, s0, s1, s2, s3, s4):
    """Return code x block scale at (rows, ks) as bfloat16: E2M1 x E4M3 has 6 significant bits."""
    byte = tl.load(packed + rows * sr + (ks // 2) * sk, mask=inside, other=0).to(tl.int32)
    code = (byte >> (4 * (ks % 2))) & 15
    exponent, mantissa = (code >> 1) & 3, code & 1
    magnitude = tl.where(exponent == 0, 0.5 * mantissa, 0.25 * ((2 + mantissa) << exponent))
    column = ks // 16
    place = (
        (rows % 32) * s0 + (rows // 32 % 4) * s1 + (rows // 128) * s2 + (column % 4) * s3 + (column // 4) * s4
    )
    factor = tl.load(scale + place, mask=inside, other=0.0).to(tl.float32)
    return (tl.where(code > 7, -magnitude, magnitude) * factor).to(tl.bfloat16)


@triton.jit
def _masked_gemm(
    a, a_scale, b, b_scale, out, masked_m, alpha, n, k, has_alpha: tl.constexpr,
    am, ak, al, as0, as1, as2, as3, as4, asl, bn, bk, bl, bs0, bs1, bs2, bs3, bs4, bsl, om, on, ol, masked_l, alpha_l,
    tile_rows: tl.constexpr, tile_columns: tl.constexpr, tile_depth: tl.constexpr,
):  # fmt: skip
    expert = tl.program_id(2).to(tl.int64)
    valid = tl.load(masked_m + expert * masked_l)
    if tl.program_id(0) * tile_rows >= valid:
        return
    rows = tl.program_id(0) * tile_rows + tl.arange(0, tile_rows)[:, None].to(tl.int64)
    columns = tl.program_id(1) * tile_columns + tl.arange(0, tile_columns)[:, None].to(tl.int64)
    sums = tl.zeros((tile_rows, tile_columns), dtype=tl.float32)
    for start in range(0, k, tile_depth):
        ks = start + tl.arange(0, tile_depth)[None, :]
        left = _decoded(
            a + expert * al, a_scale + expert * asl, rows, ks, (rows < valid) & (ks < k), am, ak, as0, as1, as2, as3, as4
        )  # fmt: skip
        right = _decoded(
            b + expert * bl, b_scale + expert * bsl, columns, ks, (columns < n) & (ks < k), bn, bk, bs0, bs1, bs2, bs3, bs4
        )  # fmt: skip
        sums = tl.dot(left, right.T, sums)
    if has_alpha:
        sums *= tl.load(alpha + expert * alpha_l)
    across = columns.T
    to = out + expert * ol + rows * om + across * on
    tl.store(to, sums.to(out.dtype.element_ty), mask=(rows < valid) & (across < n))


class TritonGemm:
    """The stage masked_grouped_gemm; shapes and layouts: harness/candidates/protocol.py."""

    traits = Traits(device="cuda", accumulator_chunk=16, k_multiple=16, n_multiple=1, reads_strides=True)

    def support(self) -> Support:
        if not torch.cuda.is_available():
            return Support(ok=False, reason="needs a CUDA device, torch sees none")
        capability = torch.cuda.get_device_capability()
        return Support(ok=capability >= (8, 9), reason=f"needs sm_89 or newer for E4M3, found {capability}")

    def masked_grouped_gemm(
        self,
        a: Tensor,
        a_scale: Tensor,
        b: Tensor,
        b_scale: Tensor,
        out: Tensor,
        masked_m: Tensor,
        alpha: Tensor | None,
    ) -> None:
        rows, half, experts = a.shape
        grid = (triton.cdiv(rows, ROWS), triton.cdiv(len(b), COLUMNS), experts)
        _masked_gemm[grid](
            a, a_scale, b, b_scale, out, masked_m, alpha, len(b), 2 * half, alpha is not None,
            *a.stride(), *a_scale.stride(), *b.stride(), *b_scale.stride(), *out.stride(),
            masked_m.stride(0), 0 if alpha is None else alpha.stride(0), ROWS, COLUMNS, DEPTH,
        )  # fmt: skip


@cases(TritonGemm)
def test_triton_gemm(case):
    case()
