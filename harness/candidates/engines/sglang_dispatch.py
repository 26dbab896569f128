"""SGLang's DeepEP dispatcher over a stand-in of DeepEP's buffer: its Python side as installed, all ranks in one process.

The stand-in moves tokens as the reference does. What SGLang asks it for (which type is sent, with which scale, for how many
experts, which ids and weights are combined by which handle) is what is judged.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.candidates.engines.engine import Engine, EngineChangedError

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch import Tensor

    from reference.routing import Dispatched

DEEPEP = "sglang.srt.layers.moe.token_dispatcher.deepep"
_LEFT_OUT = {"async_finish", "return_recv_hook", "round_scale", "use_ue8m0"}
MOST_TOKENS = 1024
"""That a rank sends: SGLang asserts it (FINISHED_SUM_TAG of DeepEP)."""


class World:
    """The buffers of all ranks, and the dispatchers over them.

    Args:
        engine: SGLang, running, its configuration stated.
        ranks, experts, hidden, max_tokens: of the layer.
    """

    def __init__(self, engine: Engine, *, ranks: int, experts: int, hidden: int, max_tokens: int) -> None:
        import torch

        self.engine, self.ranks, self.experts, self.max_tokens = engine, ranks, experts, max_tokens
        self.sent: dict[int, tuple[Any, ...]] = {}
        self.received: list[Dispatched] = []
        self.buffers = [_Buffer(self, rank) for rank in range(ranks)]
        mode = engine.get("sglang.srt.layers.moe.utils:DeepEPMode.LOW_LATENCY")
        self.dispatchers = [
            engine.made(
                f"{DEEPEP}:DeepEPDispatcher",
                group=buffer,
                router_topk=1,
                num_experts=experts,
                num_local_experts=experts // ranks,
                hidden_size=hidden,
                params_dtype=torch.bfloat16,
                deepep_mode=mode,
                return_recv_hook=True,
            )
            for buffer in self.buffers
        ]

    def dispatch(
        self, x: list[Tensor], topk_idx: list[Tensor], topk_weights: list[Tensor], scale: Tensor | None = None
    ) -> list[Any]:
        """Send every rank's tokens through its dispatcher; return what the dispatchers give to the experts."""
        topk = self.engine.get("sglang.srt.layers.moe.topk:StandardTopKOutput")
        for dispatcher, tokens, ids, weights in zip(self.dispatchers, x, topk_idx, topk_weights, strict=True):
            if scale is not None:
                dispatcher.set_quant_config({"input_global_scale": scale})
            impl = self.engine.of(dispatcher, "_low_latency_dispatcher")
            impl.num_max_dispatch_tokens_per_rank = self.max_tokens
            dispatcher.dispatch_a(tokens, topk(topk_weights=weights, topk_ids=ids, router_logits=None))
        return [dispatcher.dispatch_b() for dispatcher in self.dispatchers]

    def combine(
        self, y: list[Tensor], topk_idx: list[Tensor], topk_weights: list[Tensor], received: list[Dispatched]
    ) -> list[Tensor]:
        """Bring every rank's rows back through its dispatcher."""
        self.received, self.sent = received, {}
        for dispatcher, rows, ids, weights in zip(self.dispatchers, y, topk_idx, topk_weights, strict=True):
            dispatcher.combine_a((rows, ids, weights))
        return [dispatcher.combine_b() for dispatcher in self.dispatchers]

    def exchange(self, transport: str, scale: Tensor | None) -> None:
        """Dispatch what all ranks sent, once they have."""
        from reference import routing

        if not self.received:
            each = [self.sent[rank] for rank in range(self.ranks)]
            x, ids = [one[0] for one in each], [one[1] for one in each]
            self.received = routing.dispatch(
                x, ids, self.experts, self.max_tokens, transport=transport, global_scale_enc=scale
            )

    def summed(self) -> list[Tensor]:
        """Combine what all ranks returned."""
        from reference import routing

        y, ids, weights = ([self.sent[rank][part] for rank in range(self.ranks)] for part in range(3))
        return routing.combine(y, self.received, ids, weights)


class _Buffer:
    """One rank's deep_ep.Buffer, and its process group."""

    def __init__(self, world: World, rank: int) -> None:
        self._world, self._rank = world, rank
        self.group_size = world.ranks

    def size(self) -> int:
        """Return the number of ranks."""
        return self.group_size

    def low_latency_dispatch(
        self,
        x: Tensor,
        topk_idx: Tensor,
        num_max_dispatch_tokens_per_rank: int,
        num_experts: int,
        *,
        use_fp8: bool = True,
        use_nvfp4: bool = False,
        x_global_scale: Tensor | None = None,
        **named: Any,
    ) -> tuple[Any, ...]:
        """Take a rank's tokens; the tensors that are returned are filled by the hook."""
        import torch

        _known(named)
        world = self._world
        if (num_max_dispatch_tokens_per_rank, num_experts) != (world.max_tokens, world.experts):
            raise ValueError(
                f"low_latency_dispatch: SGLang asks for {num_max_dispatch_tokens_per_rank} tokens and {num_experts} "
                f"experts, the layer has {world.max_tokens} and {world.experts}"
            )
        world.sent[self._rank] = x, topk_idx
        transport = "nvfp4" if use_nvfp4 else "fp8" if use_fp8 else "bf16"
        shape = (num_experts // world.ranks, world.ranks * world.max_tokens)
        hidden = x.shape[1]
        widths: tuple[tuple[int, torch.dtype], ...] = {
            "bf16": ((hidden, torch.bfloat16),),
            "fp8": ((hidden, torch.float8_e4m3fn), (hidden // 128, torch.float32)),
            "nvfp4": ((hidden // 2, torch.uint8), (hidden // 16, torch.uint8)),
        }[transport]
        buffers = [torch.empty((*shape, width), dtype=dtype) for width, dtype in widths]
        counts = torch.empty(shape[0], dtype=torch.int32)

        def hook() -> None:
            world.exchange(transport, x_global_scale)
            got = world.received[self._rank]
            for buffer, value in zip((*buffers, counts), (got.x, got.scales, got.masked_m), strict=False):
                if value is not None:
                    buffer.view(value.dtype).copy_(value)
            counts.copy_(got.masked_m)

        rows: Any = buffers[0] if len(buffers) == 1 else tuple(buffers)
        return rows, counts, (self._rank, counts), None, hook

    def low_latency_combine(
        self, x: Tensor, topk_idx: Tensor, topk_weights: Tensor, handle: tuple[int, Tensor], **named: Any
    ) -> tuple[Tensor, None, Callable[[], None]]:
        """Take a rank's rows; the tensor that is returned is filled by the hook."""
        import torch

        _known(named)
        if handle[0] != self._rank:
            raise ValueError(
                f"low_latency_combine: rank {self._rank} combines with the handle of {handle[0]}"
            )
        self._world.sent[self._rank] = x, topk_idx, topk_weights
        out = torch.empty(len(topk_idx), x.shape[-1], dtype=torch.bfloat16)

        def hook() -> None:
            out.copy_(self._world.summed()[self._rank])

        return out, None, hook


def _known(named: dict[str, Any]) -> None:
    """Raise EngineChangedError for an argument that the stand-in does not know, unless it asks for nothing."""
    unknown = [name for name, value in named.items() if name not in _LEFT_OUT and value]
    if unknown:
        raise EngineChangedError(f"sglang asks DeepEP for {', '.join(unknown)}")
