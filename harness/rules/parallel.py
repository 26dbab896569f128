"""EP: the whole layer, loaded and run over several ranks, gives what one rank gives."""

from __future__ import annotations

import torch

from harness.candidates.expert_parallel import ExpertParallel
from harness.judging.comparison import Comparison, compare_equal
from harness.judging.context import Context
from harness.judging.contract import ContractError
from harness.rules import NotApplicableError
from reference.routing import TRANSPORTS


def expert_parallel(ctx: Context) -> list[Comparison]:
    """EP: load, route, dispatch, masked_moe and combine over the problem's ranks, and the same over one."""
    if not (ctx.traits.deterministic and ctx.traits.place_invariant):
        raise NotApplicableError(
            "the candidate declares deterministic=False or place_invariant=False: bits may depend on a row's place"
        )
    layer = ctx.layer
    if layer.ranks == 1 or not sum(layer.counts):
        return [Comparison("layer")]
    transports = [t for t in TRANSPORTS if t != "fp8" or layer.hidden % 128 == 0]
    transport = transports[layer.problem.seed % len(transports)]
    checkpoint, x = layer.checkpoint(), layer.tokens(layer.hidden)
    many = ExpertParallel(ctx.calls, checkpoint, ranks=layer.ranks, transport=transport)
    one = ExpertParallel(ctx.calls, checkpoint, ranks=1, transport=transport)
    routed = [many.route(logits, layer.topk, normalize=layer.normalize) for logits in layer.logits]
    together = one.route(torch.cat(layer.logits), layer.topk, normalize=layer.normalize)
    got = torch.cat(many(x, [ids for ids, _ in routed], [weights for _, weights in routed]))
    wanted = one([torch.cat(x)], [together[0]], [together[1]])[0]
    shape = (sum(layer.counts), layer.hidden)
    if tuple(got.shape) != shape or got.dtype != torch.bfloat16:
        raise ContractError(f"the layer must return {shape} bfloat16, got {tuple(got.shape)} {got.dtype}")
    what = f"the layer runs on {layer.ranks} ranks with {transport} dispatch instead of on one"
    return [compare_equal("layer", got, wanted, layer.token_rows(), what)]
