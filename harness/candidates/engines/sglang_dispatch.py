"""SGLang's DeepEP dispatcher over a stand-in of DeepEP's buffer: its Python side as installed, all ranks in one process."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harness.candidates.engines.deepep_buffer import Ranks
from harness.candidates.engines.engine import Engine

if TYPE_CHECKING:
    from torch import Tensor

    from harness.candidates.engines.loader import Shard
    from reference.routing import Dispatched

DEEPEP = "sglang.srt.layers.moe.token_dispatcher.deepep"
LOCATION = "sglang.srt.eplb.expert_location"
PLACING = "sglang.srt.eplb.expert_location_dispatch"
MOST_TOKENS = 1024
"""That a rank sends: SGLang asserts it (FINISHED_SUM_TAG of DeepEP)."""


def location_of(engine: Engine, shard: Shard) -> Any:
    """Return SGLang's table of which slots hold which expert."""
    import torch

    held = [[slot for slot, e in enumerate(shard.places) if e == n] for n in range(shard.logical)]
    most = max(map(len, held))
    slots = [[*each, *[-1] * (most - len(each))] for each in held]
    return engine.made(
        f"{LOCATION}:ExpertLocationMetadata._init_raw",
        shard.ranks, torch.tensor([shard.places]), torch.tensor([slots]), shard.rank,
    )  # fmt: skip


def chosen_slots(engine: Engine, topk_idx: Tensor) -> Tensor:
    """Return the slots that tokens with these experts go to, `(tokens, topk)`, as SGLang is configured."""
    info = engine.made(f"{PLACING}:ExpertLocationDispatchInfo.init_new", 0)
    slots: Tensor = engine.made(f"{PLACING}:topk_ids_logical_to_physical", topk_idx, info)
    return slots


class World(Ranks):
    """The buffers of all ranks, and the dispatchers over them.

    Args:
        engine: SGLang, running, its configuration stated.
        ranks, experts, hidden, max_tokens: of the layer.
    """

    def __init__(self, engine: Engine, *, ranks: int, experts: int, hidden: int, max_tokens: int) -> None:
        import torch

        super().__init__("SGLang", ranks=ranks, experts=experts, max_tokens=max_tokens)
        self.engine = engine
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
    ) -> list[tuple[Any, ...]]:
        """Send every rank's tokens; return tokens, counts and scales as the dispatchers give them to the experts."""
        topk = self.engine.get("sglang.srt.layers.moe.topk:StandardTopKOutput")
        for dispatcher, tokens, ids, weights in zip(self.dispatchers, x, topk_idx, topk_weights, strict=True):
            if scale is not None:
                dispatcher.set_quant_config({"input_global_scale": scale})
            impl = self.engine.of(dispatcher, "_low_latency_dispatcher")
            impl.num_max_dispatch_tokens_per_rank = self.max_tokens
            dispatcher.dispatch_a(tokens, topk(topk_weights=weights, topk_ids=ids, router_logits=None))
        got = [dispatcher.dispatch_b() for dispatcher in self.dispatchers]
        names = ("hidden_states", "masked_m", "hidden_states_scale")
        return [tuple(self.engine.of(each, name) for name in names) for each in got]

    def combine(
        self, y: list[Tensor], topk_idx: list[Tensor], topk_weights: list[Tensor], received: list[Dispatched]
    ) -> list[Tensor]:
        """Bring every rank's rows back through its dispatcher."""
        self.received, self.sent = received, {}
        for dispatcher, rows, ids, weights in zip(self.dispatchers, y, topk_idx, topk_weights, strict=True):
            dispatcher.combine_a((rows, ids, weights))
        return [dispatcher.combine_b() for dispatcher in self.dispatchers]
