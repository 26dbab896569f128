"""LOAD: masked_moe's weight arguments mean what the checkpoint means, on one rank and on many."""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
from torch import Tensor

from harness.judging.comparison import Comparison, compare
from harness.judging.context import Context
from harness.problems.layer import LayerProblem
from harness.problems.rows import Rows
from harness.rules.loading_compare import judge_matrix, judge_same, load_checked, load_unless_refused
from harness.rules.loading_forms import judge_forms
from harness.rules.loading_scales import judge_scales
from reference.e4m3 import take
from reference.loading import tensor_name


def load(ctx: Context) -> list[Comparison]:
    """LOAD: load_experts on a drawn checkpoint: on one rank, on several, with experts in another order."""
    layer = ctx.layer
    checkpoint = layer.checkpoint()
    everyone = range(layer.experts)
    whole = load_checked(ctx, layer, checkpoint, everyone)
    found = [judge_matrix(f"load.{name}", layer, checkpoint, whole, name) for name in ("w1", "w2")]
    found += judge_scales(layer, checkpoint, whole)
    if layer.ranks > 1:
        local = layer.experts // layer.ranks
        parts = [
            load_checked(ctx, layer, checkpoint, range(r * local, (r + 1) * local))
            for r in range(layer.ranks)
        ]
        joined = {name: torch.cat([part[name] for part in parts]) for name in whole}
        found.append(
            judge_same("load.ranks", layer, joined, whole, f"loaded on {layer.ranks} ranks instead of one")
        )
    if layer.experts > 1:
        order = layer.draws("experts").order(layer.experts).tolist()
        moved = load_checked(ctx, layer, _shuffled(_permuted(checkpoint, order), layer), everyone)
        expected = {name: take(value, order) for name, value in whole.items()}
        found.append(
            judge_same("load.permuted", layer, moved, expected, f"experts are in the order {order[:16]}")
        )
    found += _judge_unequal_scales(ctx, layer)
    if "whole_layer" not in ctx.problem.extras:  # as many loads again, which say nothing of extents
        found += judge_forms(ctx, layer, checkpoint, whole)
    return found


def _judge_unequal_scales(ctx: Context, layer: LayerProblem) -> list[Comparison]:
    """Judge a checkpoint whose gate and up have different scales: loaded right, or refused."""
    form = " (gate and up scales differ)"
    checkpoint, stage = layer.checkpoint(same_scales=False), f"load.w1{form}"
    loaded = load_unless_refused(ctx, layer, checkpoint)
    if loaded is None:
        rows, one = Rows.valid([1], 1, layer.device), torch.ones(1, 1, dtype=torch.bool)
        said = {"refused: gate and up must have one weight_scale_2": 1}
        return [compare(stage, one, rows, judged=said, altered={}, show=lambda *_: "")]
    of_gate = dict(checkpoint)
    for expert in range(layer.experts):
        of_gate[tensor_name(expert, "up", "weight_scale_2")] = checkpoint[
            tensor_name(expert, "gate", "weight_scale_2")
        ]
    readings = {"gate_proj's weight_scale_2 is used for up_proj too": of_gate}
    found = judge_scales(layer, checkpoint, loaded, form)
    return [*found, judge_matrix(stage, layer, checkpoint, loaded, "w1", readings)]


def _permuted(checkpoint: Mapping[str, Tensor], order: list[int]) -> dict[str, Tensor]:
    """Return the checkpoint with expert order[i] in place i."""
    moved = {}
    for place, expert in enumerate(order):
        prefix = tensor_name(expert, "", "").partition("_")[0]
        for name, tensor in checkpoint.items():
            if name.startswith(prefix):
                moved[f"experts.{place}.{name.removeprefix(prefix)}"] = tensor
    return moved


def _shuffled(checkpoint: Mapping[str, Tensor], layer: LayerProblem) -> dict[str, Tensor]:
    """Return the checkpoint with its tensors in another order, as files hold them."""
    names = list(checkpoint)
    random.Random(f"order {layer.problem.seed}").shuffle(names)
    return {name: checkpoint[name] for name in names}
