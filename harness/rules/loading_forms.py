"""LOAD on other forms of the layer: cut along its width, with experts twice, without gates, with too much and too little."""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
from torch import Tensor

from harness.candidates.expert_parallel import slice_of_width
from harness.judging.comparison import Comparison, compare
from harness.judging.context import Context
from harness.judging.layer_contract import SCALES, checked_loaded
from harness.problems.layer import LayerProblem
from harness.problems.rows import Rows
from harness.rules.loading_compare import (
    judge_matrix,
    judge_same,
    linear_scales,
    load_checked,
    load_unless_refused,
)
from harness.rules.loading_scales import judge_scales
from reference.e4m3 import take
from reference.layout import swizzle_128x4
from reference.loading import tensor_name


def judge_forms(
    ctx: Context, layer: LayerProblem, checkpoint: Mapping[str, Tensor], whole: Mapping[str, Tensor]
) -> list[Comparison]:
    """Judge the layer cut along its width, with experts twice, without gates, with an extra tensor and without a scale."""
    found = _judge_slices(ctx, layer, checkpoint, whole)
    found += _judge_redundant(ctx, layer, checkpoint, whole)
    if "relu2" in ctx.traits.activations:
        plain = layer.checkpoint(gated=False)
        loaded = load_checked(ctx, layer, plain, range(layer.experts), gated=False)
        found += [
            judge_matrix(f"load.{name} (not gated)", layer, plain, loaded, name) for name in ("w1", "w2")
        ]
        found += judge_scales(layer, plain, loaded, " (not gated)")
    extra = dict(checkpoint) | {tensor_name(0, "down", "output_scale"): torch.ones(())}
    with_extra = load_unless_refused(ctx, layer, extra)
    if with_extra is not None:
        found.append(
            judge_same("load.extra", layer, with_extra, whole, "the checkpoint holds an output_scale")
        )
    if not ctx.traits.complete_only:
        found += _judge_missing(ctx, layer, checkpoint)
    return found


def _judge_slices(
    ctx: Context, layer: LayerProblem, checkpoint: Mapping[str, Tensor], whole: Mapping[str, Tensor]
) -> list[Comparison]:
    """Judge the layer cut in two along inter: by the candidate where it can (`load_slice`), else as slices of tensors."""
    if layer.inter % (2 * ctx.traits.width_multiple):
        return []
    everyone, half = range(layer.experts), layer.inter // 2
    cut = getattr(ctx.calls, "load_slice", None)
    parts = []
    for place in range(2):
        if cut is None:
            loaded = ctx.calls.load_experts(slice_of_width(checkpoint, place, 2), everyone)
        else:
            loaded = cut(dict(checkpoint), everyone, place, 2)
        parts.append(checked_loaded(loaded, layer.experts, layer, inter=half))
    joined = _joined_width(parts, half)
    found = []
    for place, part in enumerate(parts):
        got = joined | {name: part[name] for name in SCALES}
        what = f"inter is cut in two, with the scales of slice {place}"
        found.append(judge_same("load.slices", layer, got, whole, what))
    return found


def _judge_redundant(
    ctx: Context, layer: LayerProblem, checkpoint: Mapping[str, Tensor], whole: Mapping[str, Tensor]
) -> list[Comparison]:
    """Judge a layer in which some experts are there twice, in their usual places and in others, if it can be had."""
    load = getattr(ctx.calls, "load_redundant", None)
    if load is None or layer.ranks == 1:
        return []
    experts, ranks = layer.experts, layer.ranks
    drawn = random.Random(f"redundant {layer.problem.seed}").choices(range(experts), k=ranks)
    found = []
    for twice in ([slot % experts for slot in range(ranks)], drawn):
        places = [*range(experts), *twice]
        local = len(places) // ranks
        try:
            parts = [
                checked_loaded(
                    load(dict(checkpoint), range(r * local, (r + 1) * local), places), local, layer
                )
                for r in range(ranks)
            ]
        except ValueError:  # an engine may have its own places only
            continue
        joined = {name: torch.cat([part[name] for part in parts]) for name in whole}
        wanted = {name: take(value, places) for name, value in whole.items()}
        what = f"slots hold the experts {places[:16]}"
        found.append(judge_same("load.redundant", layer, joined, wanted, what))
    return found


def _joined_width(parts: list[dict[str, Tensor]], half: int) -> dict[str, Tensor]:
    """Return codes and block scales of slices put together: gate rows of all, up rows of all; columns of w2."""
    rows = [torch.split(part["w1"], half, dim=1) for part in parts]
    scales = [torch.split(linear_scales("w1", part), half, dim=1) for part in parts]
    w1, s1 = (torch.cat([each[i] for i in range(2) for each in of], dim=1) for of in (rows, scales))
    w2 = torch.cat([part["w2"] for part in parts], dim=2)
    s2 = torch.cat([linear_scales("w2", part) for part in parts], dim=2)
    swizzled = {"w1_blockscale": swizzle_128x4(s1), "w2_blockscale": swizzle_128x4(s2)}
    return {"w1": w1, "w2": w2, **{n: t.view(torch.float8_e4m3fn) for n, t in swizzled.items()}}


def _judge_missing(ctx: Context, layer: LayerProblem, checkpoint: Mapping[str, Tensor]) -> list[Comparison]:
    """Judge a checkpoint that lacks one scale: refused, or loaded with scales that are numbers, and the others right."""
    rng = random.Random(f"missing {layer.problem.seed}")
    expert, projection = rng.randrange(layer.experts), rng.choice(("gate", "up", "down"))
    gone = tensor_name(expert, projection, rng.choice(("weight_scale_2", "input_scale")))
    loaded = load_unless_refused(ctx, layer, {name: t for name, t in checkpoint.items() if name != gone})
    if loaded is None:
        return []
    scales = torch.stack([loaded[name].double() for name in SCALES])
    rows = Rows.valid([1] * len(SCALES), 1, layer.device)

    def accepts(values: Tensor, part: slice = slice(None)) -> Tensor:
        del part
        return values.isfinite() & (values > 0)

    return [
        compare(
            "load.missing",
            accepts(scales),
            rows,
            judged={"a number above zero": scales.numel()},
            altered={"zeros": lambda: bool(accepts(torch.zeros_like(scales)).all())},
            show=lambda r, c: (
                f"{SCALES[r]} of expert {c} = {float(scales[r, c]):.9g}: the checkpoint has no {gone}, "
                "which must be refused"
            ),
        )
    ]
