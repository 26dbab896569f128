"""What SGLang's and vLLM's Marlin layers launch, on a CPU: each rounds where the kernel does, with a fault planted in it."""

from typing import Any

import torch
from torch import Tensor

from reference.e2m1 import unpack_e2m1
from reference.formats import FORMATS, Coded
from reference.marlin_layout import BIAS, from_marlin, scales_from_marlin


class Launches:
    """The launches of one engine.

    Args:
        name: "sglang" or "vllm".

    Attributes:
        fault: planted in the next ones, "" for none.
    """

    def __init__(self, name: str) -> None:
        self.name, self.fault = name, ""
        self._second = False
        self._there = torch.ones(0)

    def replace(self, module: Any) -> None:
        """Put them in the place of the engine's."""
        if self.name == "sglang":
            import sglang.kernels.ops.moe.moe_topk_sum as topk_sum
            import sglang.srt.layers.moe.fused_moe_triton as fused

            module.moe_wna16_marlin_gemm = self.sglang_gemm
            fused.moe_align_block_size = self.aligned
            module.silu_and_mul = lambda x, out: out.copy_(self.activated(x, twice=False))
            module.moe_sum_reduce = lambda rows, out, times: out.copy_(
                (self.summed(rows) * times).to(out.dtype)
            )
            topk_sum.moe_topk_sum = lambda rows, out: out.copy_(self.summed(rows).to(out.dtype))
            torch.library.impl("sglang::fused_marlin_moe", "CPU", module.fused_marlin_moe.__wrapped__)
            torch.cuda.get_device_capability = lambda *_: (9, 0)
            return
        module.ops.moe_wna16_marlin_gemm = self.vllm_gemm
        module.moe_align_block_size = self.aligned
        module.batched_moe_align_block_size = self.aligned_batch
        module.apply_moe_activation = lambda _, out, x, **__: out.copy_(self.activated(x, twice=True))
        module.ops.moe_sum = self.vllm_sum

    def aligned(
        self, topk_ids: Tensor, block: int, experts: int, expert_map: Tensor | None = None, **_: Any
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return slots expert by expert in whole blocks, the experts of these, and how many places they take."""
        ids = topk_ids.flatten().long()
        if expert_map is not None:
            ids = torch.where(ids < 0, -1, expert_map.long()[ids.clamp(min=0)])
        elif self.fault == "routed_ids_off_by_one":
            ids = torch.where(ids < 0, ids, (ids + 1) % experts)
        if self.fault == "routed_ids_off_by_one" and expert_map is not None:
            ids = torch.where(ids < 0, ids, (ids + 1) % int(expert_map.max() + 1))
        self._there = (ids >= 0).view(topk_ids.shape)
        order, of_blocks = [], []
        for expert in ids[ids >= 0].unique().tolist():
            slots = (ids == expert).nonzero().flatten().tolist()
            slots = slots[:-1] if self.fault == "routed_last_token_dropped" else slots
            slots += [len(ids)] * (-len(slots) % block)
            order += slots
            of_blocks += [expert] * (len(slots) // block)
        return (
            torch.tensor(order, dtype=torch.int32),
            torch.tensor(of_blocks, dtype=torch.int32),
            torch.tensor([len(order)], dtype=torch.int32),
        )

    def aligned_batch(
        self, max_tokens_per_batch: int, block_size: int, expert_num_tokens: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The same for rows that lie by expert."""
        rows = torch.arange(max_tokens_per_batch) < expert_num_tokens.unsqueeze(-1)
        ids = torch.where(rows, torch.arange(len(rows)).unsqueeze(-1), -1)
        return self.aligned(ids.reshape(-1, 1), block_size, len(rows))

    def sglang_gemm(self, a: Tensor, c: Tensor, *given: Any, **named: Any) -> Tensor:
        """Stand in for SGLang's moe_wna16_marlin_gemm."""
        b, _, scales, factor, _, _, _, _, order, experts, _, weights = given
        return self._gemm(a, c, b, scales, factor, order, experts, weights, named)

    def vllm_gemm(self, a: Tensor, c: Tensor, *given: Any, **named: Any) -> Tensor:
        """Stand in for vLLM's."""
        b, _, scales, _, factor, _, _, order, experts, _, weights = given
        return self._gemm(a, c, b, scales, factor, order, experts, weights, named)

    def _gemm(
        self, a: Tensor, c: Tensor, b: Tensor, scales: Tensor, factor: Tensor | None, order: Tensor, experts: Tensor,
        weights: Tensor, named: dict[str, Any],
    ) -> Tensor:  # fmt: skip
        self._second = bool(named["mul_topk_weights"])
        if self._second:
            c.zero_()  # slots that nobody computes
        weights = self._weights(weights)
        matrices = self._decoded(b, scales)
        if self.fault == "k_tail_missing":
            matrices[..., -16:] = 0
        slot = order.long().view(len(experts), -1)
        for block, expert in zip(slot, experts.tolist(), strict=True):
            rows = block[block < named["size_m"] * named["top_k"]]
            token = rows // named["top_k"]
            sums = (a[token].double() @ matrices[expert].double().T).float()
            c[rows] = self._stored(sums, expert, factor, weights.flatten()[rows].unsqueeze(-1))
        return c

    def _weights(self, weights: Tensor) -> Tensor:
        first = self._there & (self._there.cumsum(-1) == 1)
        other = {
            "routed_weights_dropped": lambda: torch.ones_like(weights),
            "routed_weights_twice": lambda: weights * weights,
            "routed_weights_of_next_slot": lambda: weights.roll(-1, -1),
            "routed_slot_twice": lambda: torch.where(first, weights * 2, weights),
        }
        return other.get(self.fault, lambda: weights)()

    def _decoded(self, b: Tensor, scales: Tensor) -> Tensor:
        form = FORMATS["nvfp4" if scales.dtype == torch.float8_e4m3fn else "mxfp4"]
        codes = unpack_e2m1(from_marlin(b))
        if self.fault == "weight_nibbles_swapped":
            codes = codes.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)
        linear = scales_from_marlin(scales, "e4m3" if form.name == "nvfp4" else "e8m0")
        if self.fault == "weights_of_neighbour_expert":
            codes = codes.roll(1, 0)
        return form.values(Coded(codes, linear))

    def _stored(self, sums: Tensor, expert: int, factor: Tensor | None, weight: Tensor) -> Tensor:
        """Return what an epilogue stores."""
        place = (
            (expert + 1) % (1 if factor is None else len(factor))
            if self.fault == "alpha_of_neighbour"
            else expert
        )
        alpha = None if factor is None else factor.flatten()[place].float() / BIAS
        if self.fault == "alpha_dropped" and alpha is not None:
            alpha = torch.ones_like(alpha)
        if not self._second:
            if self.name == "vllm":
                return (sums if alpha is None else sums * alpha).bfloat16()
            return (sums.bfloat16().float() * (1 if alpha is None else alpha)).bfloat16()
        if self.name == "sglang":
            weight = weight.bfloat16().float()
        both = (weight if alpha is None else weight * alpha).bfloat16().float()
        return (sums.bfloat16().float() * both).bfloat16()

    def activated(self, x: Tensor, *, twice: bool) -> Tensor:
        """Return silu(gate) * up; `twice`: silu is rounded first."""
        gate, up = x.float().chunk(2, -1)
        if self.fault == "routed_up_for_gate":
            gate, up = up, gate
        gated = gate / (1 + torch.exp(-gate))
        return ((gated.bfloat16().float() if twice else gated) * up).bfloat16()

    def summed(self, rows: Tensor) -> Tensor:
        """Return float32 sums over the slots of `(tokens, topk, hidden)`."""
        total = torch.zeros_like(rows[:, 0], dtype=torch.float32)
        slots = rows.shape[1] - (self.fault == "routed_last_slot_left_out")
        for slot in range(slots):
            total += rows[:, slot].float()
        return total.roll(-1, 0) if self.fault == "routed_row_of_next_token" else total

    def vllm_sum(self, rows: Tensor, out: Tensor, topk_ids: Tensor, expert_map: Tensor) -> None:
        """Stand in for vLLM's moe_sum, whose running sum is bfloat16."""
        there = (topk_ids >= 0) & (expert_map.long()[topk_ids.long().clamp(min=0)] >= 0)
        out.zero_()
        for slot in range(rows.shape[1] - (self.fault == "routed_last_slot_left_out")):
            out.copy_(torch.where(there[:, slot, None], out + rows[:, slot], out))
        if self.fault == "routed_row_of_next_token":
            out.copy_(out.roll(-1, 0))
