"""EP: the whole layer, loaded and run over several ranks, gives what one rank gives.

Where the ranks are processes, each stage of it is judged on what it received as well, whichever candidate's the experts are.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.candidates.expert_parallel import ExpertParallel, layer_stage
from harness.judging.comparison import Comparison, compare_equal
from harness.judging.context import Context
from harness.judging.contract import checked
from harness.judging.layer_contract import (
    checked_buffers,
    checked_combined,
    checked_loaded,
    checked_routes,
    checked_sources,
)
from harness.problems.layer import LayerProblem
from harness.rules import NotApplicableError
from harness.rules.received import RankCalls, judge_stages
from reference.routing import TRANSPORTS, Dispatched


def expert_parallel(ctx: Context) -> list[Comparison]:
    """EP: load, route, dispatch, masked_moe and combine over the problem's ranks, and the same over one."""
    same_bits = ctx.traits.deterministic and ctx.traits.place_invariant
    if not (same_bits or ctx.traits.ranks):
        raise NotApplicableError(
            "the candidate declares deterministic=False or place_invariant=False: bits may depend on a row's place"
        )
    most, least = ctx.traits.max_experts, ctx.traits.min_experts
    if most and 2 * least > most:
        raise NotApplicableError(
            f"two ranks of at least {least} experts each have more than the candidate's max_experts, {most}"
        )
    layer = ctx.layer
    if layer.ranks == 1 or not sum(layer.counts):
        return [Comparison("layer")]
    declared = ctx.traits.transports
    transports = [
        t for t in TRANSPORTS if t in declared and (not t.startswith("fp8") or layer.hidden % 128 == 0)
    ]
    if (
        ctx.traits.ranks and ctx.traits.without_scales
    ):  # the experts take no tokens that are quantized already
        transports = [t for t in transports if t != "nvfp4"]
    if not transports:
        raise NotApplicableError("the experts take no NVFP4 tokens, and no other transport is judged")
    transport = transports[layer.problem.seed % len(transports)]
    checkpoint, x = layer.checkpoint(), layer.tokens(layer.hidden)
    of_many, of_one = (_Checked(ctx.calls, layer, ranks) for ranks in (layer.ranks, 1))
    many = ExpertParallel(of_many, checkpoint, ranks=layer.ranks, transport=transport)
    routed = [many.route(logits, layer.topk, normalize=layer.normalize) for logits in layer.logits]
    got = torch.cat(many(x, [ids for ids, _ in routed], [weights for _, weights in routed]))
    found = judge_stages(ctx, of_many.calls) if ctx.traits.ranks else []
    if not same_bits:
        return found
    one = ExpertParallel(of_one, checkpoint, ranks=1, transport=transport)
    together = one.route(torch.cat(layer.logits), layer.topk, normalize=layer.normalize)
    wanted = one([torch.cat(x)], [together[0]], [together[1]])[0]
    what = f"the layer runs on {layer.ranks} ranks with {transport} dispatch instead of on one"
    return [*found, compare_equal("layer", got, wanted, layer.token_rows(), what)]


class _Checked:
    """A candidate whose stages' results are checked one by one, so that the next one is not given what cannot be.

    Attributes:
        calls: of the layer that ran last.
    """

    def __init__(self, candidate: Any, layer: LayerProblem, ranks: int) -> None:
        self._candidate, self._layer, self._ranks, self._capacity = candidate, layer, ranks, 0
        self.traits = candidate.traits
        self.calls = RankCalls({}, [], [], ({}, []))

    def route_topk(self, logits: Tensor, topk: int, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
        result = layer_stage(self._candidate, "route_topk")(logits, topk, normalize=normalize)
        return checked_routes(result, (len(logits), topk), self._layer.device)

    def load_experts(self, checkpoint: Mapping[str, Tensor], experts: range) -> dict[str, Tensor]:
        loaded = layer_stage(self._candidate, "load_experts")(checkpoint, experts)
        return checked_loaded(loaded, len(experts), self._layer)

    def dispatch(
        self,
        x: list[Tensor],
        topk_idx: list[Tensor],
        experts: int,
        max_tokens: int,
        *,
        transport: str,
        **named: Any,
    ) -> list[Dispatched]:
        received = layer_stage(self._candidate, "dispatch")(
            x, topk_idx, experts, max_tokens, transport=transport, **named
        )
        self._capacity = self._ranks * max_tokens
        found = checked_buffers(
            received,
            self._layer,
            transport,
            ranks=self._ranks,
            capacity=self._capacity,
            hidden=self._layer.hidden,
        )
        checked_sources(found, [len(tokens) for tokens in x])
        self.calls.sent = {
            "x": x, "topk_idx": topk_idx, "max_tokens": max_tokens, "transport": transport, **named,
        }  # fmt: skip
        self.calls.received, self.calls.layers = found, []
        return found

    def masked_moe(self, **arguments: Any) -> Tensor:
        shape = (len(arguments["masked_m"]), self._capacity, self._layer.hidden)
        taps: list[Any] | None = None
        if self.traits.ranks and hasattr(self._candidate, "masked_moe_tapped"):
            out, taps = self._candidate.masked_moe_tapped(**arguments)
        else:
            out = self._candidate.masked_moe(**arguments)
        found = checked(out, "masked_moe", "", shape, torch.bfloat16, self._layer.device)
        self.calls.layers.append((arguments, found, taps))
        return found

    def combine(
        self, y: list[Tensor], received: list[Dispatched], topk_idx: list[Tensor], topk_weights: list[Tensor]
    ) -> list[Tensor]:
        got = layer_stage(self._candidate, "combine")(y, received, topk_idx, topk_weights)
        found = checked_combined(
            got, [(len(ids), self._layer.hidden) for ids in topk_idx], self._layer.device
        )
        given = {"y": y, "dispatched": received, "topk_idx": topk_idx, "topk_weights": topk_weights}
        self.calls.summed = given, found
        return found
