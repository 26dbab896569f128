"""LOAD: masked_moe's weight arguments mean what the checkpoint means, on one rank and on many."""

from __future__ import annotations

import random
from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.candidates.expert_parallel import slice_of_width
from harness.judging.comparison import Comparison, altered_copies, compare, compare_equal
from harness.judging.context import Context
from harness.judging.contract import ContractError
from harness.judging.layer_contract import SCALES, checked_loaded
from harness.problems.layer import LayerProblem
from harness.problems.rows import Rows
from harness.rules.loading_scales import judge_scales
from reference.e2m1 import unpack_e2m1
from reference.e4m3 import take
from reference.layout import swizzle_128x4, unswizzle_128x4
from reference.loading import tensor_name
from reference.nvfp4 import decode_blocks

# Of alpha * encode scale against weight_scale_2: a reciprocal, a product and the scale they share, 2^-24 each.
ROUNDINGS = 2.0**-22


def load(ctx: Context) -> list[Comparison]:
    """LOAD: load_experts on a drawn checkpoint: on one rank, on several, with experts in another order."""
    layer = ctx.layer
    checkpoint = layer.checkpoint()
    everyone = range(layer.experts)
    whole = _load(ctx, layer, checkpoint, everyone)
    found = [_judge_matrix(f"load.{name}", layer, checkpoint, whole, name) for name in ("w1", "w2")]
    found += judge_scales(layer, checkpoint, whole)
    if layer.ranks > 1:
        local = layer.experts // layer.ranks
        parts = [_load(ctx, layer, checkpoint, range(r * local, (r + 1) * local)) for r in range(layer.ranks)]
        joined = {name: torch.cat([part[name] for part in parts]) for name in whole}
        found.append(
            _same("load.ranks", layer, joined, whole, f"loaded on {layer.ranks} ranks instead of one")
        )
    if layer.experts > 1:
        order = torch.randperm(
            layer.experts, generator=torch.Generator().manual_seed(layer.problem.seed)
        ).tolist()
        moved = _load(ctx, layer, _shuffled(_permuted(checkpoint, order), layer), everyone)
        expected = {name: take(value, order) for name, value in whole.items()}
        found.append(_same("load.permuted", layer, moved, expected, f"experts are in the order {order[:16]}"))
    found += _judge_unequal_scales(ctx, layer)
    if "whole_layer" not in ctx.problem.extras:  # as many loads again, which say nothing of extents
        found += _judge_forms(ctx, layer, checkpoint, whole)
    return found


def _judge_forms(
    ctx: Context, layer: LayerProblem, checkpoint: Mapping[str, Tensor], whole: Mapping[str, Tensor]
) -> list[Comparison]:
    """Judge the layer cut along its width, without gates, with a tensor too many, and with one that is missing."""
    found = _judge_slices(ctx, layer, checkpoint, whole)
    if "relu2" in ctx.traits.activations:
        plain = layer.checkpoint(gated=False)
        loaded = _load(ctx, layer, plain, range(layer.experts), gated=False)
        found += [
            _judge_matrix(f"load.{name} (not gated)", layer, plain, loaded, name) for name in ("w1", "w2")
        ]
        found += judge_scales(layer, plain, loaded, " (not gated)")
    extra = dict(checkpoint) | {tensor_name(0, "down", "output_scale"): torch.ones(())}
    with_extra = _unless_refused(ctx, layer, extra)
    if with_extra is not None:
        found.append(_same("load.extra", layer, with_extra, whole, "the checkpoint holds an output_scale"))
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
        found.append(_same("load.slices", layer, got, whole, what))
    return found


def _joined_width(parts: list[dict[str, Tensor]], half: int) -> dict[str, Tensor]:
    """Return codes and block scales of slices put together: gate rows of all, up rows of all; columns of w2."""
    rows = [torch.split(part["w1"], half, dim=1) for part in parts]
    scales = [torch.split(_linear_scales("w1", part), half, dim=1) for part in parts]
    w1, s1 = (torch.cat([each[i] for i in range(2) for each in of], dim=1) for of in (rows, scales))
    w2 = torch.cat([part["w2"] for part in parts], dim=2)
    s2 = torch.cat([_linear_scales("w2", part) for part in parts], dim=2)
    swizzled = {"w1_blockscale": swizzle_128x4(s1), "w2_blockscale": swizzle_128x4(s2)}
    return {"w1": w1, "w2": w2, **{n: t.view(torch.float8_e4m3fn) for n, t in swizzled.items()}}


def _judge_missing(ctx: Context, layer: LayerProblem, checkpoint: Mapping[str, Tensor]) -> list[Comparison]:
    """Judge a checkpoint that lacks one scale: refused, or loaded with scales that are numbers, and the others right."""
    rng = random.Random(f"missing {layer.problem.seed}")
    expert, projection = rng.randrange(layer.experts), rng.choice(("gate", "up", "down"))
    gone = tensor_name(expert, projection, rng.choice(("weight_scale_2", "input_scale")))
    loaded = _unless_refused(ctx, layer, {name: t for name, t in checkpoint.items() if name != gone})
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


def _unless_refused(
    ctx: Context, layer: LayerProblem, checkpoint: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Load a checkpoint that may be refused; None where it is, in whatever way."""
    try:
        return _load(ctx, layer, checkpoint, range(layer.experts))
    except ContractError:
        raise
    except Exception:  # noqa: BLE001 - refusing, in whatever way, is right
        return None


def _judge_unequal_scales(ctx: Context, layer: LayerProblem) -> list[Comparison]:
    """Judge a checkpoint whose gate and up have different scales: loaded right, or refused."""
    form = " (gate and up scales differ)"
    checkpoint, stage = layer.checkpoint(same_scales=False), f"load.w1{form}"
    loaded = _unless_refused(ctx, layer, checkpoint)
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
    return [*found, _judge_matrix(stage, layer, checkpoint, loaded, "w1", readings)]


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


def _load(
    ctx: Context, layer: LayerProblem, checkpoint: Mapping[str, Tensor], experts: range, *, gated: bool = True
) -> dict[str, Tensor]:
    """Call load_experts and check shapes and dtypes of what comes back."""
    loaded = ctx.calls.load_experts(dict(checkpoint), experts)
    return checked_loaded(loaded, len(experts), layer, gated=gated)


def _linear_scales(name: str, loaded: Mapping[str, Tensor]) -> Tensor:
    """Return the block scale bytes that belong to the codes of "w1" or "w2", `(l, rows, columns / 16)`."""
    _, rows, half = loaded[name].shape
    return unswizzle_128x4(loaded[f"{name}_blockscale"].view(torch.uint8), rows, half // 8)


def _judge_matrix(
    stage: str,
    layer: LayerProblem,
    checkpoint: Mapping[str, Tensor],
    loaded: Mapping[str, Tensor],
    name: str,
    readings: Mapping[str, Mapping[str, Tensor]] | None = None,
) -> Comparison:
    """Compare what the loaded codes, block scales, alphas and encode scales decode to with the checkpoint's values.

    Args:
        stage: name of the comparison.
        layer: whose experts they are.
        checkpoint: what was loaded.
        loaded: masked_moe's weight arguments.
        name: "w1" or "w2".
        readings: what may be wrong -> the checkpoint whose values it would give, for the message.
    """
    scale, alpha = ("input_global_scale", "w1_alpha") if name == "w1" else ("a2_global_scale", "w2_alpha")
    _, count, half = loaded[name].shape
    wanted = _matrices(layer, checkpoint, name, (count, half * 2))
    blocks = decode_blocks(unpack_e2m1(loaded[name]), _linear_scales(name, loaded), torch.float64)
    # alpha = 1 / (input encode scale * weight encode scale): times the input's, it is the weights' decode scale
    gain = loaded[alpha].double() * loaded[scale].double()
    values = (blocks * gain.view(-1, 1, 1)).flatten(0, 1)
    rows = Rows.valid([count] * layer.experts, count, layer.device)

    def accepts(values: Tensor, part: slice = slice(None)) -> Tensor:
        return (values - wanted[part]).abs() <= wanted[part].abs() * ROUNDINGS

    def reading() -> str:
        for what, other in (readings or {}).items():
            given = _matrices(layer, other, name, (count, half * 2))
            if bool(((values - given).abs() <= given.abs() * ROUNDINGS).all()):
                return f"; {what}"
        return ""

    return compare(
        stage,
        accepts(values),
        rows,
        judged={"the checkpoint's value within the scales' roundings": values.numel()},
        altered=altered_copies(values, accepts),
        show=lambda r, c: (
            f"decodes to {float(values[r, c]):.9g}, the checkpoint's is {float(wanted[r, c]):.9g} "
            f"(alpha {float(loaded[alpha][r // count]):.6g} * encode scale {float(loaded[scale][r // count]):.6g})"
            f"{reading()}"
        ),
    )


def _matrices(
    layer: LayerProblem, checkpoint: Mapping[str, Tensor], name: str, room: tuple[int, int]
) -> Tensor:
    """Return the checkpoint's values of "w1" or "w2" of all experts, `(l * rows, columns)` float64.

    Args:
        layer: whose experts they are.
        checkpoint: their tensors.
        name: "w1" or "w2".
        room: rows and columns of what was loaded: engines pad a layer without gates to whole tiles, with zeros.
    """
    gated = tensor_name(0, "gate", "weight") in checkpoint
    projections = (("gate", "up") if gated else ("up",)) if name == "w1" else ("down",)
    each = [
        torch.cat([_checkpoint_values(checkpoint, expert, p) for p in projections])
        for expert in range(layer.experts)
    ]
    short = (0, room[1] - each[0].shape[1], 0, room[0] - each[0].shape[0])
    return torch.stack([pad(values, short) for values in each]).flatten(0, 1)


def _checkpoint_values(checkpoint: Mapping[str, Tensor], expert: int, projection: str) -> Tensor:
    packed, scale, second = (
        checkpoint[tensor_name(expert, projection, kind)]
        for kind in ("weight", "weight_scale", "weight_scale_2")
    )
    return decode_blocks(unpack_e2m1(packed), scale, torch.float64) * second.double()


def _same(
    stage: str, layer: LayerProblem, got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str
) -> Comparison:
    """Compare every byte of two loads, padding of the scales left out."""
    rows = Rows.valid([1] * layer.experts, 1, layer.device, "byte")
    parts, right = _parts(got), _parts(wanted)
    different = [name for name, part in parts.items() if not torch.equal(part, right[name])]
    given, expected = (torch.cat(list(each.values()), dim=1) for each in (parts, right))
    what = f"{what}; not the same: {', '.join(different)}"
    return compare_equal(stage, given, expected, rows, what)


def _parts(loaded: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the bytes of every argument, `(l, bytes)`: of block scales without their padding."""
    parts = {
        # contiguous() leaves a tensor of one expert the stride that it was cut with
        name: loaded[name]
        .clone(memory_format=torch.contiguous_format)
        .view(torch.uint8)
        .view(len(loaded["w1"]), -1)
        for name in (*SCALES, "w1", "w2")
    }
    return parts | {f"{name}_blockscale": _linear_scales(name, loaded).flatten(1) for name in ("w1", "w2")}
