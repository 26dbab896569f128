"""Every stage of a layer over ranks judged on what it received: dispatch, each rank's experts, combine."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from harness.judging.comparison import Comparison
from harness.judging.context import Context
from harness.problems.layer import LayerProblem
from harness.problems.problem import Problem
from harness.problems.weights import Weights
from harness.rules.dispatch import Exchange, judge_received, judge_sent
from harness.rules.layer import judge_opaque, judge_taps
from harness.rules.routing import judge_combined
from reference.e2m1 import unpack_e2m1
from reference.formats import NVFP4, Coded
from reference.layout import unswizzle_128x4
from reference.routing import Dispatched


@dataclass
class RankCalls:
    """The calls of one layer over ranks.

    Attributes:
        sent: arguments of dispatch by name; received: what it returned.
        layers: of every rank, masked_moe's arguments, its output, and its recorded stage calls, None where it has no taps.
        summed: arguments of combine by name, and its outputs.
    """

    sent: dict[str, Any]
    received: list[Dispatched]
    layers: list[tuple[dict[str, Any], Tensor, list[Any] | None]]
    summed: tuple[dict[str, Any], list[Tensor]]


def judge_stages(ctx: Context, calls: RankCalls) -> list[Comparison]:
    """Judge dispatch, every rank's experts and combine, each on what it was given.

    Args:
        ctx: whose candidate made the calls.
        calls: of a layer over several ranks, each checked against the contract.
    """
    layer, sent = ctx.layer, calls.sent
    exchange = Exchange(layer.ranks, layer.experts, sent["max_tokens"], layer.counts, layer.device)
    found = judge_received(
        sent["transport"], exchange, sent["x"], sent["topk_idx"], calls.received,
        lambda given, stored, rows: judge_sent(ctx, given, stored, sent["global_scale_enc"], rows),
    )  # fmt: skip
    for rank, (arguments, out, taps) in enumerate(calls.layers):
        here = OnReceived(ctx, layer, arguments, sent["transport"])
        if not sum(here.masked_m):
            continue
        judged = [judge_opaque(here, out)] if taps is None else judge_taps(here, out, taps)
        found += [replace(one, stage=f"experts of rank {rank}: {one.stage}") for one in judged]
    given, outputs = calls.summed
    names = ("y", "dispatched", "topk_idx", "topk_weights")
    return [*found, judge_combined(torch.cat(outputs), layer.token_rows(), *(given[name] for name in names))]


class OnReceived(Context):
    """A context whose problem is what one rank received: its rows, and the weights that it loaded.

    Args:
        ctx: of the layer over all ranks.
        layer: that layer.
        arguments: masked_moe's, by name.
        transport: that carried the tokens.
    """

    def __init__(self, ctx: Context, layer: LayerProblem, arguments: dict[str, Any], transport: str) -> None:
        counts = tuple(arguments["masked_m"].tolist())
        rows = arguments["hidden_states"][0]
        capacity = rows.shape[0] if transport == "nvfp4" else rows.shape[1]
        given = "prequantized" if transport == "nvfp4" else ""
        problem = Problem(
            len(counts), capacity, layer.hidden, layer.inter, counts, seed=layer.problem.seed,
            extras=frozenset({given} - {""}),
        )  # fmt: skip
        super().__init__(ctx.candidate, problem, ctx.known)
        self._arguments = arguments

    @cached_property
    def tensors(self) -> Any:
        """What the rank received and loaded, as the numbers of a problem are handed over."""
        return Received(self._arguments, self.form.layer_dtype)

    def reference_quantized(self) -> Coded:
        """Return the tokens in the experts' format: as they arrived, or quantized by the reference."""
        packed, scales = self._arguments["hidden_states"]
        if scales is None:
            return self.form.quantize(self.tensors.x, self.encode(self.tensors.input_scale))
        linear = scales.permute(5, 2, 4, 0, 1, 3).contiguous().view(torch.uint8)
        experts, high, wide = linear.shape[:3]
        codes = unpack_e2m1(packed.permute(2, 0, 1).contiguous())
        tiles = linear.view(experts, high * 128, wide * 4)
        return Coded(codes, unswizzle_128x4(tiles, codes.shape[1], codes.shape[2] // NVFP4.block))


@dataclass(frozen=True)
class Received:
    """masked_moe's arguments under the names that a problem's tensors have.

    Attributes:
        arguments: by name.
        layer_dtype: type of the layer's output.
    """

    arguments: dict[str, Any]
    layer_dtype: torch.dtype

    @property
    def x(self) -> Tensor:
        """`(l, m, k)`, the tokens."""
        tokens: Tensor = self.arguments["hidden_states"][0]
        return tokens

    @cached_property
    def w1(self) -> Weights:
        """Weights of the first GEMM."""
        return self._weights("w1")

    @cached_property
    def w2(self) -> Weights:
        """Weights of the second GEMM."""
        return self._weights("w2")

    def _weights(self, name: str) -> Weights:
        codes = unpack_e2m1(self.arguments[name])
        scale = self.arguments[f"{name}_blockscale"].view(torch.uint8)
        return Weights(codes, unswizzle_128x4(scale, codes.shape[1], codes.shape[2] // NVFP4.block))

    def __getattr__(self, name: str) -> Any:
        of_argument = {"input_scale": "input_global_scale", "a2_scale": "a2_global_scale"}
        try:
            return self.arguments[of_argument.get(name, name)]  # the alphas, masked_m
        except KeyError:
            raise AttributeError(name) from None
