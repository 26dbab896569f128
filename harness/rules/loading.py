"""LOAD: masked_moe's weight arguments mean what the checkpoint means, on one rank and on many."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.judging.comparison import Comparison, altered_copies, compare, compare_equal
from harness.judging.context import Context
from harness.judging.contract import ContractError
from harness.judging.layer_contract import SCALES, checked_loaded
from harness.problems.layer import LayerProblem
from harness.problems.rows import Rows
from reference.e2m1 import unpack_e2m1
from reference.e4m3 import take
from reference.layout import unswizzle_128x4
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
    found += _judge_scales(layer, checkpoint, whole)
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
        moved = _load(ctx, layer, _permuted(checkpoint, order), everyone)
        expected = {name: take(value, order) for name, value in whole.items()}
        found.append(_same("load.permuted", layer, moved, expected, f"experts are in the order {order[:16]}"))
    found += _judge_unequal_scales(ctx, layer)
    return found


def _judge_unequal_scales(ctx: Context, layer: LayerProblem) -> list[Comparison]:
    """Judge a checkpoint whose gate and up have different weight_scale_2: loaded right, or refused."""
    checkpoint = layer.checkpoint(same_scales=False)
    try:
        loaded = _load(ctx, layer, checkpoint, range(layer.experts))
    except ContractError:
        raise
    except Exception:  # noqa: BLE001 - refusing, in whatever way, is right
        return []
    return [_judge_matrix("load.w1 (gate and up scales differ)", layer, checkpoint, loaded, "w1")]


def _permuted(checkpoint: Mapping[str, Tensor], order: list[int]) -> dict[str, Tensor]:
    """Return the checkpoint with expert order[i] in place i."""
    moved = {}
    for place, expert in enumerate(order):
        prefix = tensor_name(expert, "", "").partition("_")[0]
        for name, tensor in checkpoint.items():
            if name.startswith(prefix):
                moved[f"experts.{place}.{name.removeprefix(prefix)}"] = tensor
    return moved


def _load(
    ctx: Context, layer: LayerProblem, checkpoint: Mapping[str, Tensor], experts: range
) -> dict[str, Tensor]:
    """Call load_experts and check shapes and dtypes of what comes back."""
    return checked_loaded(ctx.calls.load_experts(dict(checkpoint), experts), len(experts), layer)


def _linear_scales(name: str, loaded: Mapping[str, Tensor]) -> Tensor:
    """Return the block scale bytes that belong to the codes of "w1" or "w2", `(l, rows, columns / 16)`."""
    _, rows, half = loaded[name].shape
    return unswizzle_128x4(loaded[f"{name}_blockscale"].view(torch.uint8), rows, half // 8)


def _judge_matrix(
    stage: str, layer: LayerProblem, checkpoint: Mapping[str, Tensor], loaded: Mapping[str, Tensor], name: str
) -> Comparison:
    """Compare what the loaded codes, block scales, alphas and encode scales decode to with the checkpoint's values."""
    projections = ("gate", "up") if name == "w1" else ("down",)
    scale, alpha = ("input_global_scale", "w1_alpha") if name == "w1" else ("a2_global_scale", "w2_alpha")
    wanted = torch.stack(
        [
            torch.cat([_checkpoint_values(checkpoint, expert, p) for p in projections])
            for expert in range(layer.experts)
        ]
    ).flatten(0, 1)
    blocks = decode_blocks(unpack_e2m1(loaded[name]), _linear_scales(name, loaded), torch.float64)
    # alpha = 1 / (input encode scale * weight encode scale): times the input's, it is the weights' decode scale
    gain = loaded[alpha].double() * loaded[scale].double()
    values = (blocks * gain.view(-1, 1, 1)).flatten(0, 1)
    count = loaded[name].shape[1]
    rows = Rows.valid([count] * layer.experts, count, layer.device)

    def accepts(values: Tensor, part: slice = slice(None)) -> Tensor:
        return (values - wanted[part]).abs() <= wanted[part].abs() * ROUNDINGS

    return compare(
        stage,
        accepts(values),
        rows,
        judged={"the checkpoint's value within the scales' roundings": values.numel()},
        altered=altered_copies(values, accepts),
        show=lambda r, c: (
            f"decodes to {float(values[r, c]):.9g}, the checkpoint's is {float(wanted[r, c]):.9g} "
            f"(alpha {float(loaded[alpha][r // count]):.6g} * encode scale {float(loaded[scale][r // count]):.6g})"
        ),
    )


def _checkpoint_values(checkpoint: Mapping[str, Tensor], expert: int, projection: str) -> Tensor:
    packed, scale, second = (
        checkpoint[tensor_name(expert, projection, kind)]
        for kind in ("weight", "weight_scale", "weight_scale_2")
    )
    return decode_blocks(unpack_e2m1(packed), scale, torch.float64) * second.double()


def _judge_scales(
    layer: LayerProblem, checkpoint: Mapping[str, Tensor], loaded: Mapping[str, Tensor]
) -> list[Comparison]:
    """Judge the encode scales: of the tokens, the same for all experts; of the intermediate, per expert."""

    def inputs(expert: int, projection: str) -> float:
        return float(checkpoint[tensor_name(expert, projection, "input_scale")].double())

    experts = range(layer.experts)
    largest = max(inputs(e, p) for e in experts for p in ("gate", "up"))
    wanted = {
        "input_global_scale": [1 / largest for _ in experts],
        "a2_global_scale": [1 / inputs(e, "down") for e in experts],
    }
    rows = Rows.valid([1] * layer.experts, 1, layer.device)
    found = []
    for name, values in wanted.items():
        got = loaded[name].double().unsqueeze(-1)
        right = torch.tensor(values, dtype=torch.float64, device=layer.device).unsqueeze(-1)

        def accepts(values: Tensor, right: Tensor = right) -> Tensor:
            return (values - right).abs() <= right * 2.0**-23

        def show(r: int, _: int, got: Tensor = got, right: Tensor = right) -> str:
            return f"= {float(got[r, 0]):.9g}, the checkpoint's input scales make it {float(right[r, 0]):.9g}"

        found.append(
            compare(
                f"load.{name}",
                accepts(got),
                rows,
                judged={"the reciprocal within one unit": got.numel()},
                altered={
                    "zeros": lambda got=got, accepts=accepts: bool(accepts(torch.zeros_like(got)).all()),  # type: ignore[misc]
                    "x0.5": lambda got=got, accepts=accepts: bool(accepts(got * 0.5).all()),  # type: ignore[misc]
                },
                show=show,
            )
        )
    return found


def _same(
    stage: str, layer: LayerProblem, got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str
) -> Comparison:
    """Compare every byte of two loads, padding of the scales left out."""
    rows = Rows.valid([1] * layer.experts, 1, layer.device, "byte")
    return compare_equal(stage, _bytes(got), _bytes(wanted), rows, what)


def _bytes(loaded: Mapping[str, Tensor]) -> Tensor:
    parts = [
        loaded[name].contiguous().view(torch.uint8).view(len(loaded["w1"]), -1)
        for name in (*SCALES, "w1", "w2")
    ]
    parts += [_linear_scales(name, loaded).flatten(1) for name in ("w1", "w2")]
    return torch.cat(parts, dim=1)
