"""vLLM's DeepEP low-latency dispatcher over a stand-in of DeepEP's buffer: its Python side as installed, all ranks in one process.

Read in vllm 0.33: DeepEPLLPrepareAndFinalize (fused_moe/prepare_finalize/deepep_ll.py).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.candidates.engines.deepep_buffer import Ranks
from harness.candidates.engines.engine import Engine

if TYPE_CHECKING:
    from torch import Tensor

MOE = "vllm.model_executor.layers.fused_moe"
DEEPEP = f"{MOE}.prepare_finalize.deepep_ll"
DISPATCHER = f"{DEEPEP}:DeepEPLLPrepareAndFinalize"
REDUCE = f"{MOE}.topk_weight_and_reduce:TopKWeightAndReduceDelegate"
_CONFIG = f"{MOE}.config"


class World(Ranks):
    """The buffers of all ranks, and the dispatchers over them.

    Args:
        engine: vLLM, running.
        transport: what is sent: "bf16", "fp8" or "nvfp4".
        ranks, experts, max_tokens: of the layer.
    """

    operands = True

    def __init__(self, engine: Engine, transport: str, *, ranks: int, experts: int, max_tokens: int) -> None:
        super().__init__("vLLM", ranks=ranks, experts=experts, max_tokens=max_tokens)
        self.engine, self.transport = engine, transport
        self.dispatchers = [
            engine.made(
                DISPATCHER, buffer, max_tokens_per_rank=max_tokens, num_dispatchers=ranks, use_fp8_dispatch=transport == "fp8"
            )
            for buffer in self.buffers
        ]  # fmt: skip

    def dispatch(
        self, x: list[Tensor], topk_idx: list[Tensor], topk_weights: list[Tensor], scale: Tensor | None = None
    ) -> list[tuple[Any, ...]]:
        """Send every rank's tokens; return tokens, counts and scales as the dispatchers give them to the experts."""
        config = self._quantization(scale)
        waiting = [
            dispatcher.prepare_async(tokens, weights, ids, self.experts, None, False, config)
            for dispatcher, tokens, ids, weights in zip(
                self.dispatchers, x, topk_idx, topk_weights, strict=True
            )
        ]
        for hook, _ in waiting:
            hook()
        got = [receive() for _, receive in waiting]
        return [
            (tokens, self.engine.of(meta, "expert_num_tokens"), scales) for tokens, scales, meta, *_ in got
        ]

    def combine(
        self, y: list[Tensor], topk_idx: list[Tensor], topk_weights: list[Tensor], received: list[Any]
    ) -> list[Tensor]:
        """Bring every rank's rows back through its dispatcher."""
        self.received, self.sent = received, {}
        reduce = self.engine.made(REDUCE)
        outs = [rows.new_zeros(len(ids), rows.shape[-1]) for rows, ids in zip(y, topk_idx, strict=True)]
        each = zip(self.dispatchers, outs, y, topk_weights, topk_idx, strict=True)
        hooks = [dispatcher.finalize_async(*given, False, reduce)[0] for dispatcher, *given in each]
        for hook in hooks:
            hook()
        return outs

    def _quantization(self, scale: Tensor | None) -> Any:
        """Return vLLM's configuration of experts that take what is sent."""
        import torch

        one = torch.ones(1)
        if self.transport == "fp8":  # of blocks of 128, as DeepEP quantizes
            return self.engine.made(f"{_CONFIG}:fp8_w8a8_moe_quant_config", one, one, block_shape=[128, 128])
        encode = one if scale is None else scale
        return self.engine.made(f"{_CONFIG}:nvfp4_moe_quant_config", one, one, encode, one, one, one)
