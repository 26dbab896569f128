"""One MoE layer over simulated ranks: load, route, dispatch, masked_moe, combine, from a candidate's own stages.

Stages that the candidate lacks are the reference's. Ranks live in one process. Experts are sharded "experts" (whole
experts, tokens dispatched to their owners) or "width" (every rank owns a slice of inter of every expert, sees all tokens,
and the ranks' outputs are added).
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.protocol import stages_of, traits_of
from reference import loading, routing
from reference.e8m0 import decode_e8m0
from reference.formats import FORMATS
from reference.fp8_tokens import dequantize_fp8_tokens
from reference.layout import swizzle_128x4
from reference.nvfp4 import BLOCK
from reference.routing import Dispatched

SHARDINGS = ("experts", "width")
_REFERENCE = {
    "route_topk": routing.route_topk,
    "dispatch": routing.dispatch,
    "combine": routing.combine,
    "load_experts": loading.load_experts,
}


def layer_stage(candidate: Any, name: str) -> Any:
    """Return the candidate's route_topk, dispatch, combine or load_experts, or the reference's where it has none."""
    return getattr(candidate, name) if name in stages_of(candidate) else _REFERENCE[name]


class ExpertParallel:
    """A layer, loaded and ready to be called with tokens.

    Args:
        candidate: has masked_moe; its other stages are used where they are there.
        checkpoint: one layer's ModelOpt tensors, see reference.loading.
        ranks: simulated ranks; a divisor of the experts, or for "width" of inter / 16.
        sharding: "experts" or "width".
        transport: of the tokens, of reference.routing.TRANSPORTS.
        activation: "silu" or "relu2".

    Attributes:
        shards: masked_moe's weight arguments, one dict per rank.
        experts: number of experts over all ranks.

    Raises:
        ValueError: an unknown sharding, ranks that do not divide, a checkpoint that cannot be loaded.
    """

    def __init__(
        self,
        candidate: Any,
        checkpoint: Mapping[str, Tensor],
        *,
        ranks: int = 1,
        sharding: str = "experts",
        transport: str = "bf16",
        activation: str = "silu",
    ) -> None:
        if sharding not in SHARDINGS:
            raise ValueError(
                f"ExpertParallel: sharding must be one of {', '.join(SHARDINGS)}, got {sharding!r}"
            )
        self.candidate, self.transport, self.activation, self.sharding = (
            candidate, transport, activation, sharding,
        )  # fmt: skip
        self.experts, self.ranks = loading.count_experts(checkpoint), ranks
        load = layer_stage(candidate, "load_experts")
        if sharding == "width":
            slices = [slice_of_width(checkpoint, rank, ranks) for rank in range(ranks)]
            self.shards = [self._as_multiplied(load(part, range(self.experts))) for part in slices]
            return
        if self.experts % ranks:
            raise ValueError(f"ExpertParallel: {ranks} ranks do not divide {self.experts} experts")
        local = self.experts // ranks
        self.shards = [
            self._as_multiplied(load(dict(checkpoint), range(r * local, (r + 1) * local)))
            for r in range(ranks)
        ]

    def _as_multiplied(self, loaded: dict[str, Tensor]) -> dict[str, Tensor]:
        """Return loaded arguments for the format that the candidate multiplies tokens in: without encode scales, ones."""
        if FORMATS[traits_of(self.candidate).activation_format].encoded:
            return loaded
        first, second = loaded["input_global_scale"], loaded["a2_global_scale"]
        return loaded | {
            "w1_alpha": loaded["w1_alpha"] * first,
            "w2_alpha": loaded["w2_alpha"] * second,
            "input_global_scale": torch.ones_like(first),
            "a2_global_scale": torch.ones_like(second),
        }

    def route(self, logits: Tensor, topk: int, *, normalize: bool = True) -> tuple[Tensor, Tensor]:
        """Return expert ids and weights of `(tokens, experts)` logits, `(tokens, topk)` each."""
        ids, weights = layer_stage(self.candidate, "route_topk")(logits, topk, normalize=normalize)
        return ids, weights

    def __call__(
        self,
        x: list[Tensor],
        topk_idx: list[Tensor],
        topk_weights: list[Tensor],
        *,
        max_tokens: int | None = None,
    ) -> list[Tensor]:
        """Return the layer's output for every rank's tokens.

        Args:
            x: per rank `(tokens, hidden)` bfloat16.
            topk_idx: per rank `(tokens, topk)` int64, -1 for none.
            topk_weights: per rank `(tokens, topk)` float32.
            max_tokens: capacity per sending rank; None for what the longest list needs.

        Returns:
            Per rank `(tokens, hidden)` bfloat16.
        """
        if len(x) != self.ranks:
            raise ValueError(f"ExpertParallel: expected tokens of {self.ranks} ranks, got {len(x)}")
        if self.sharding == "width":
            return self._over_width(x, topk_idx, topk_weights)
        received = self._dispatch(x, topk_idx, self._room(x, max_tokens))
        y = [self.run_experts(r, got) for r, got in enumerate(received)]
        return self._combine(y, received, topk_idx, topk_weights)

    def _over_width(
        self, x: list[Tensor], topk_idx: list[Tensor], topk_weights: list[Tensor]
    ) -> list[Tensor]:
        """Run every rank's slice on all tokens and add what comes out, in float32 in order of the ranks, rounded once."""
        everything, ids, weights = [torch.cat(x)], [torch.cat(topk_idx)], [torch.cat(topk_weights)]
        received = self._dispatch(everything, ids, self._room(everything, None))
        total = torch.zeros_like(everything[0], dtype=torch.float32)
        for rank in range(self.ranks):
            y = [self.run_experts(rank, received[0])]
            total += self._combine(y, received, ids, weights)[0].float()
        return list(torch.split(total.bfloat16(), [len(tokens) for tokens in x]))

    def run_experts(self, rank: int, received: Dispatched) -> Tensor:
        """Run masked_moe on what one rank received: `(local experts, capacity, hidden)` bfloat16."""
        arguments = dict(self.shards[rank])
        hidden_states, scale = masked_moe_input(received, self.transport, arguments.pop("input_global_scale"))
        out: Tensor = self.candidate.masked_moe(
            hidden_states=hidden_states,
            input_global_scale=scale,
            masked_m=received.masked_m,
            activation=self.activation,
            **arguments,
        )
        return out

    def _room(self, x: list[Tensor], max_tokens: int | None) -> int:
        """Return max_tokens such that an expert's rows are a multiple of what the candidate needs."""
        needed = max(1, *(len(tokens) for tokens in x)) if max_tokens is None else max_tokens
        multiple = traits_of(self.candidate).m_multiple
        step = multiple // math.gcd(multiple, len(x))
        return -(-needed // step) * step

    def _dispatch(self, x: list[Tensor], topk_idx: list[Tensor], max_tokens: int) -> list[Dispatched]:
        scale = self.shards[0]["input_global_scale"][:1] if self.transport == "nvfp4" else None
        received: list[Dispatched] = layer_stage(self.candidate, "dispatch")(
            x, topk_idx, self.experts, max_tokens, transport=self.transport, global_scale_enc=scale
        )
        return received

    def _combine(
        self,
        y: list[Tensor],
        received: list[Dispatched],
        topk_idx: list[Tensor],
        topk_weights: list[Tensor],
    ) -> list[Tensor]:
        out: list[Tensor] = layer_stage(self.candidate, "combine")(y, received, topk_idx, topk_weights)
        return out


def masked_moe_input(
    received: Dispatched, transport: str, input_global_scale: Tensor
) -> tuple[tuple[Tensor, Tensor | None], Tensor | None]:
    """Return masked_moe's `hidden_states` and `input_global_scale` for what a rank received.

    bf16 goes in as it is; fp8 is dequantized to bfloat16 (one rounding); nvfp4 becomes the prequantized pair, its linear
    scales swizzled to 128x4, without an input scale.

    Args:
        received: of one rank.
        transport: of reference.routing.TRANSPORTS.
        input_global_scale: `(l,)` float32.

    Raises:
        ValueError: a quantizing transport without scales.
    """
    if transport == "bf16":
        return (received.x, None), input_global_scale
    if received.scales is None:
        raise ValueError(f"masked_moe_input: transport {transport!r} carries scales, dispatch returned none")
    if transport.startswith("fp8"):
        fp8 = decode_e8m0(received.scales) if transport == "fp8-ue8m0" else received.scales
        return (dequantize_fp8_tokens(received.x, fp8, torch.bfloat16), None), input_global_scale
    scales = layouts.as_mma(swizzle_128x4(received.scales.view(torch.uint8)))
    return (received.x.permute(1, 2, 0), scales), None


def slice_of_width(checkpoint: Mapping[str, Tensor], rank: int, ranks: int) -> dict[str, Tensor]:
    """Return one rank's part of a layer sharded by width: rows of gate and up, columns of down, scales as they are.

    Raises:
        ValueError: inter / 16 is not a multiple of the ranks.
    """
    part: dict[str, Tensor] = {}
    for name, tensor in checkpoint.items():
        if not name.endswith((".weight", ".weight_scale")):
            part[name] = tensor
            continue
        axis = 1 if ".down_proj." in name else 0
        blocks = tensor.shape[1] if name.endswith("scale") else tensor.shape[1] * 2 // BLOCK
        units = blocks if axis else tensor.shape[0] // BLOCK
        if units % ranks:
            raise ValueError(
                f"slice_of_width: {name} has {units} blocks of 16, not a multiple of {ranks} ranks"
            )
        size = tensor.shape[axis] // ranks
        part[name] = tensor.narrow(axis, rank * size, size).contiguous()
    return part
