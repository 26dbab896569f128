"""A layer as a user would write it: of all stages only masked_moe, made of the user's own code, with a mistake in it."""

from __future__ import annotations

from harness import Support, Traits


class UsersLayer:
    """Right."""

    traits = Traits(device="cpu", arithmetic="real", k_multiple=16, n_multiple=16, cuda_graph=False)

    def support(self) -> Support:
        return Support(ok=True)

    def halves(self, gemm1, expert):
        return gemm1.chunk(2, dim=-1)

    def finished(self, out, expert):
        return out

    def masked_moe(
        self, hidden_states, input_global_scale, w1, w1_blockscale, w1_alpha, w2, a2_global_scale, w2_blockscale,
        w2_alpha, masked_m, activation="silu",
    ):  # fmt: skip
        import torch

        from harness.candidates import layouts
        from reference.e2m1 import unpack_e2m1
        from reference.layout import unswizzle_128x4
        from reference.nvfp4 import decode_blocks, quantize_nvfp4

        def weights(packed, swizzled):
            scale = unswizzle_128x4(swizzled.view(torch.uint8), packed.shape[0], packed.shape[1] // 8)
            return decode_blocks(unpack_e2m1(packed), scale, torch.float32)

        x, x_scale = hidden_states
        experts, rows = masked_m.numel(), x.shape[1] if x_scale is None else x.shape[0]
        out = torch.zeros(experts, rows, w2.shape[1], dtype=torch.bfloat16)
        for e, count in enumerate(masked_m.tolist()):
            if x_scale is None:
                q = quantize_nvfp4(x[e, :count], input_global_scale[e])
                a = decode_blocks(q.codes, q.block_scale, torch.float32)
            else:
                codes = layouts.codes_of(x)
                scale = layouts.block_scales_of(x_scale, rows, codes.shape[2] // 16)
                a = decode_blocks(codes[e, :count], scale[e, :count], torch.float32)
            gemm1 = (a @ weights(w1[e], w1_blockscale[e]).T * w1_alpha[e]).bfloat16().float()
            if activation == "silu":
                gate, up = self.halves(gemm1, e)
                hidden = (torch.nn.functional.silu(gate) * up).bfloat16()
            else:
                hidden = gemm1.relu().square().bfloat16()
            q = quantize_nvfp4(hidden, a2_global_scale[e])
            a2 = decode_blocks(q.codes, q.block_scale, torch.float32)
            y = a2 @ weights(w2[e], w2_blockscale[e]).T * w2_alpha[e]
            out[e, :count] = self.finished(y, e).bfloat16()
        return out


class HalvesSwapped(UsersLayer):
    """The second half of the first GEMM's output is taken for the gate, on all experts but the first."""

    def halves(self, gemm1, expert):
        gate, up = gemm1.chunk(2, dim=-1)
        return (up, gate) if expert else (gate, up)


class OutputScaled(UsersLayer):
    """Every output is 0.3 of what it should be: a strength that no fault of the catalog has."""

    def finished(self, out, expert):
        return out * 0.3
