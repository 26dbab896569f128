"""A stand-in for DeepEP: one rank's side of low-latency calls whose results are known, since all ranks' inputs are."""

import torch

from reference.layout import swizzle_128x4


class World:
    """What all ranks send, and what a candidate makes of it."""

    def __init__(self, kernels, x, topk_idx, topk_weights, experts, max_tokens):
        self.kernels, self.x, self.topk_idx, self.topk_weights = kernels, x, topk_idx, topk_weights
        self.experts, self.max_tokens, self.y = experts, max_tokens, None
        self.received = {}

    def dispatched(self, transport, scale):
        if transport not in self.received:
            self.received[transport] = self.kernels.dispatch(
                self.x,
                self.topk_idx,
                self.experts,
                self.max_tokens,
                transport=transport,
                global_scale_enc=scale,
            )
        return self.received[transport]


class Buffer:
    def __init__(self, world, rank):
        self.world, self.rank = world, rank

    def low_latency_dispatch(
        self, x, topk_idx, num_max_dispatch_tokens_per_rank, num_experts, use_fp8=True, round_scale=False, use_ue8m0=False,
        use_nvfp4=False, x_global_scale=None, async_finish=False, return_recv_hook=False,
    ):  # fmt: skip
        fp8 = "fp8-ue8m0" if use_ue8m0 else "fp8-rounded" if round_scale else "fp8"
        transport = "nvfp4" if use_nvfp4 else fp8 if use_fp8 else "bf16"
        got = self.world.dispatched(transport, x_global_scale)[self.rank]
        values, scales = got.x, got.scales
        recv = values
        if transport == "nvfp4":
            tiles = swizzle_128x4(scales)
            local, rows, columns = tiles.shape
            tiles = tiles.view(torch.float8_e4m3fn).view(local, rows // 128, columns // 4, 32, 4, 4)
            recv = values.permute(1, 2, 0), tiles.permute(3, 4, 1, 5, 2, 0)
        elif use_fp8:
            scales = scales.view(torch.int32) if use_ue8m0 else scales
            recv = values, scales.transpose(1, 2).contiguous().transpose(1, 2)  # column by column
        count, handle = (
            torch.zeros_like(got.masked_m),
            (*self._rows(got), self.world.max_tokens, x.shape[1], num_experts),
        )
        if not return_recv_hook:
            count.copy_(got.masked_m)
        return recv, count, handle, None, (lambda: count.copy_(got.masked_m)) if return_recv_hook else None

    def low_latency_combine(
        self, x, topk_idx, topk_weights, handle, use_logfmt=False, zero_copy=False, async_finish=False,
        return_recv_hook=False, out=None,
    ):  # fmt: skip
        world = self.world
        transport = {"transport": "logfmt"} if use_logfmt else {}
        combined = world.kernels.combine(
            world.y, world.received["bf16"], world.topk_idx, world.topk_weights, **transport
        )
        return combined[self.rank], None, None

    def _rows(self, got):
        ranks = len(self.world.x)
        layout = torch.zeros((len(got.x), ranks), dtype=torch.int64)
        for expert in range(len(got.x)):
            sender = got.source[expert, : got.masked_m[expert], 0]
            for rank in range(ranks):
                rows = (sender == rank).nonzero().flatten()
                layout[expert, rank] = (int(rows[0]) if len(rows) else 0) << 32 | len(rows)
        return got.source[..., 1].int(), layout
