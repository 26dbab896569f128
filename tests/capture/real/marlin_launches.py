"""What SGLang's and vLLM's Marlin layers launch, on a CPU: each rounds where the kernel does, with a fault planted in it."""

from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.traits import Traits
from harness.faults.calls import Call, GemmCall, QuantizeCall
from harness.faults.fault import Planting, all_faults
from reference.e2m1 import unpack_e2m1
from reference.formats import FORMATS, Coded
from reference.marlin_layout import BIAS, from_marlin, scales_from_marlin

BF16 = FORMATS["bf16"]


class _Formats:
    """What a fault of the catalog asks of a candidate."""

    def __init__(self, weights: str) -> None:
        self.traits = Traits(
            activation_format="bf16", weight_format=weights, activations=("silu",), k_multiple=128
        )

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, global_scale_enc: Tensor) -> layouts.Pair:
        return layouts.stored(BF16, Coded(x, x[..., :0].byte()))


class Launches:
    """The launches of one engine.

    Args:
        name: "sglang" or "vllm".

    Attributes:
        fault: planted in the next ones, "" for none: one of a routed layer, by hand, or one of a stage, as the catalog has
            it, in both GEMMs or, "NAME.1" and "NAME.2", in one; "NAME.last" in both for the last expert alone.
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
        form = FORMATS["nvfp4" if scales.dtype == torch.float8_e4m3fn else "mxfp4"]
        codes, linear = from_marlin(b), scales_from_marlin(scales, "e4m3" if form.name == "nvfp4" else "e8m0")
        slots = order.long().view(len(experts), -1)
        slots = [slots[experts == expert].flatten() for expert in range(len(b))]
        slots = [each[each < named["size_m"] * named["top_k"]] for each in slots]
        counts = [len(each) for each in slots]
        rows = torch.full((len(b), max(counts), a.shape[1]), torch.nan, dtype=a.dtype)
        factors = torch.full((len(b), max(counts), 1), torch.nan)
        for expert, each in enumerate(slots):
            rows[expert, : len(each)] = a[each // named["top_k"]]
            factors[expert, : len(each)] = self._weights(weights).flatten()[each].unsqueeze(-1)
        out = torch.full((len(b), max(counts), c.shape[1]), torch.nan, dtype=c.dtype).permute(1, 2, 0)
        alpha = None if factor is None else factor.flatten().float() / BIAS
        pairs = (
            layouts.stored(BF16, Coded(rows, rows[..., :0].byte())),
            layouts.stored(form, Coded(unpack_e2m1(codes), linear)),
        )
        given = (*pairs[0], *pairs[1], out, torch.tensor(counts, dtype=torch.int32), alpha)
        arguments = dict(zip(GemmCall.names, given, strict=True)) | (
            {"factors": factors} if self._second else {}
        )
        self._planted(GemmCall("masked_grouped_gemm", self._multiplied, _Formats(form.name), arguments))
        for expert, each in enumerate(slots):
            c[each] = out[: len(each), :, expert]
        return c

    def _multiplied(
        self, a: Tensor, _: Any, b: Tensor, b_scale: Any, out: Tensor, masked_m: Tensor, alpha: Tensor | None,
        factors: Tensor | None = None,
    ) -> None:  # fmt: skip
        """Multiply as the kernel does, once its operands are in canonical order: 16 products a step, summed in float32."""
        form = FORMATS["nvfp4" if b_scale.dtype == torch.float8_e4m3fn else "mxfp4"]
        matrices = form.values(layouts.loaded(form, (b, b_scale)))
        for expert, count in enumerate(masked_m.tolist()):
            steps = zip(
                a[:count, :, expert].float().split(16, -1), matrices[expert].split(16, -1), strict=True
            )
            sums = sum((part @ weights.T for part, weights in steps), torch.zeros(()))
            out[:count, :, expert] = self._stored(
                sums,
                None if alpha is None else alpha[expert],
                None if factors is None else factors[expert, :count],
            )

    def _planted(self, call: Call) -> None:
        """Run a stage call, with the fault where it is one of the catalog's, in its stage and launch."""
        name, _, where = self.fault.partition(".")
        found = all_faults().get(name)
        here = (
            found is not None
            and call.stage in found.stages
            and where in {"", "last", "2" if self._second else "1"}
        )
        if found is None or not here:
            call.run()
            return
        right = None
        if where == "last" and isinstance(call, GemmCall):
            call.run()
            right = call.out.clone()
        found.apply(call, Planting(found).parameters())
        if right is not None:
            call.out[..., :-1] = right[..., :-1]

    def _weights(self, weights: Tensor) -> Tensor:
        first = self._there & (self._there.cumsum(-1) == 1)
        other = {
            "routed_weights_dropped": lambda: torch.ones_like(weights),
            "routed_weights_twice": lambda: weights * weights,
            "routed_weights_of_next_slot": lambda: weights.roll(-1, -1),
            "routed_slot_twice": lambda: torch.where(first, weights * 2, weights),
        }
        return other.get(self.fault, lambda: weights)()

    def _stored(self, sums: Tensor, alpha: Tensor | None, weight: Tensor | None) -> Tensor:
        """Return what an epilogue stores; where factors are held times BIAS, sums are held the other way round."""
        held = 1.0 if alpha is None else 1 / BIAS
        cast = (sums * held).bfloat16().float() / held
        if weight is None:
            if self.name == "vllm":
                return (sums if alpha is None else sums * alpha).bfloat16()
            return (cast * (1 if alpha is None else alpha.bfloat16().float())).bfloat16()
        if self.name == "sglang":
            weight = weight.bfloat16().float()
            alpha = None if alpha is None else alpha.bfloat16().float()
        both = (weight if alpha is None else weight * alpha).bfloat16().float()
        return (cast * both).bfloat16()

    def activated(self, x: Tensor, *, twice: bool) -> Tensor:
        """Return silu(gate) * up; `twice`: silu is rounded first."""

        def function(gate_up: Tensor, *_: Tensor) -> Any:
            gate, up = gate_up[0].float().chunk(2, -1)
            gated = gate / (1 + torch.exp(-gate))
            hidden = ((gated.bfloat16().float() if twice else gated) * up).bfloat16()
            return layouts.stored(BF16, Coded(hidden.unsqueeze(0), hidden[None, :, :0].byte()))

        if self.fault == "routed_up_for_gate":
            x = torch.cat(x.chunk(2, -1)[::-1], -1)
        counts = torch.tensor([len(x)], dtype=torch.int32)
        arguments = {"x": x.unsqueeze(0), "masked_m": counts, "global_scale_enc": torch.ones(1)}
        call = QuantizeCall("silu_mul_quantize_grouped", function, _Formats("nvfp4"), arguments)
        self._planted(call)
        return layouts.loaded(BF16, call.result()).codes[0]

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
