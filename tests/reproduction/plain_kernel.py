"""A candidate that does not need the harness, with the bug that the environment variable BUG names: copied beside a script."""

from __future__ import annotations

import os
import time

import torch

from reference.e2m1 import pack_e2m1, unpack_e2m1
from reference.layout import swizzle_128x4, unswizzle_128x4
from reference.moe import activate, valid_rows
from reference.nvfp4 import decode_blocks, quantize_nvfp4

BUG = os.environ.get("BUG", "")


class Kernel:
    """All four stages on a CPU."""

    def __init__(self) -> None:
        self.calls = 0
        try:
            from harness import Traits
        except ImportError:
            return  # only the harness asks for them
        self.traits = Traits(
            device="cpu", arithmetic="real", accumulator_chunk=1, k_multiple=16, n_multiple=1, store_rows=1
        )

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        if BUG == "raises":
            raise ValueError("no tile for it")
        if BUG == "aborts":
            os.abort()
        if BUG == "hangs":
            time.sleep(600)
        return self._quantized(x, masked_m, global_scale_enc, "codes" if BUG == "quantize" else BUG)

    def _quantized(self, x, masked_m, global_scale_enc, bug=""):
        valid = valid_rows(masked_m, x.shape[1])
        codes = torch.zeros(x.shape, dtype=torch.uint8)
        scale = torch.zeros((*x.shape[:2], x.shape[2] // 16), dtype=torch.uint8)
        for expert, rows in enumerate(masked_m.tolist()):
            found = quantize_nvfp4(x[expert, :rows], global_scale_enc[expert])
            codes[expert, :rows], scale[expert, :rows] = found.codes, found.block_scale
        self.calls += 1
        if bug == "codes" or (bug == "now and then" and self.calls % 2 == 0):
            codes[..., 0][valid] ^= 8
        if bug == "scale":
            scale[..., 0][valid] += 8
        if bug == "free":  # any code is legal where its scale is zero
            codes[(scale == 0).repeat_interleave(16, -1) & valid.unsqueeze(-1)] = self.calls % 2
        if bug == "type":
            return pack_e2m1(codes), scale
        tiles = swizzle_128x4(scale)
        tiles = tiles.view(len(x), tiles.shape[1] // 128, tiles.shape[2] // 4, 32, 4, 4).view(
            torch.float8_e4m3fn
        )
        return pack_e2m1(codes).permute(1, 2, 0), tiles.permute(3, 4, 1, 5, 2, 0)

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        if BUG == "silu":
            gate_up = torch.cat(gate_up.chunk(2, -1)[::-1], -1)
        return self._quantized(activate(gate_up, "silu").bfloat16(), masked_m, global_scale_enc)

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha):
        values = [self._values(*operand) for operand in ((a, a_scale), (b, b_scale))]
        for expert, rows in enumerate(masked_m.tolist()):
            product = values[0][expert, :rows] @ values[1][expert].T * (1 if alpha is None else alpha[expert])
            if BUG == "gemm":
                product[:, -1] *= 1.5
            out[:rows, :, expert] = product.to(out.dtype)
            if BUG == "writes" and rows < out.shape[0]:
                out[rows, 0, expert] = 0
        if BUG == "inputs" and alpha is not None:
            alpha.mul_(2)

    def _values(self, packed, scale):
        codes = unpack_e2m1(packed.permute(2, 0, 1))
        tiles = scale.view(torch.uint8).permute(5, 2, 4, 0, 1, 3).contiguous()
        tiles = tiles.view(len(codes), tiles.shape[1] * 128, tiles.shape[2] * 4)
        return decode_blocks(
            codes, unswizzle_128x4(tiles, codes.shape[1], codes.shape[2] // 16), torch.float32
        )

    def masked_moe(
        self, hidden_states, input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale,
        w2_alpha, masked_m, activation="silu",
    ):  # fmt: skip
        x, x_scale = hidden_states
        a = (x, x_scale) if x_scale is not None else self._quantized(x, masked_m, input_global_scale)
        experts, rows = len(w1), a[0].shape[0]
        gemm1 = torch.zeros(experts, rows, w1.shape[1], dtype=torch.bfloat16)
        self.masked_grouped_gemm(
            *a, *self._weights(w1, w1_blockscale), gemm1.permute(1, 2, 0), masked_m, w1_alpha
        )
        a2 = self._quantized(activate(gemm1, activation).bfloat16(), masked_m, a2_global_scale)
        out = torch.zeros(experts, rows, w2.shape[1], dtype=torch.bfloat16)
        self.masked_grouped_gemm(
            *a2, *self._weights(w2, w2_blockscale), out.permute(1, 2, 0), masked_m, w2_alpha
        )
        return out * 1.5 if BUG == "moe" else out

    def _weights(self, packed, swizzled):
        tiles = swizzled.view(len(packed), swizzled.shape[1] // 128, swizzled.shape[2] // 4, 32, 4, 4)
        return packed.permute(1, 2, 0), tiles.permute(3, 4, 1, 5, 2, 0)
