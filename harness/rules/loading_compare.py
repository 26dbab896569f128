"""LOAD's comparisons: of weights with what the checkpoint means, and of one load with another."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.nn.functional import pad

from harness.judging.comparison import Comparison, altered_copies, compare, compare_equal
from harness.judging.context import Context
from harness.judging.contract import ContractError
from harness.judging.layer_contract import SCALES, checked_loaded
from harness.problems.layer import LayerProblem
from harness.problems.rows import Rows
from reference.e2m1 import unpack_e2m1
from reference.layout import unswizzle_128x4
from reference.loading import tensor_name
from reference.nvfp4 import decode_blocks

# Of alpha * encode scale against weight_scale_2: a reciprocal, a product and the scale they share, 2^-24 each.
ROUNDINGS = 2.0**-22
_CODE_OF_1, _BYTE_OF_1 = 2, 0x38  # E2M1 and E4M3


def load_checked(
    ctx: Context, layer: LayerProblem, checkpoint: Mapping[str, Tensor], experts: range, *, gated: bool = True
) -> dict[str, Tensor]:
    """Call load_experts and check shapes and dtypes of what comes back."""
    loaded = ctx.calls.load_experts(dict(checkpoint), experts)
    return checked_loaded(loaded, len(experts), layer, gated=gated)


def load_unless_refused(
    ctx: Context, layer: LayerProblem, checkpoint: Mapping[str, Tensor]
) -> dict[str, Tensor] | None:
    """Load a checkpoint that may be refused; None where it is, in whatever way."""
    try:
        return load_checked(ctx, layer, checkpoint, range(layer.experts))
    except ContractError:
        raise
    except Exception:  # noqa: BLE001 - refusing, in whatever way, is right
        return None


def judge_matrix(
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
    codes, block_scale = unpack_e2m1(loaded[name]), linear_scales(name, loaded)
    # alpha = 1 / (input encode scale * weight encode scale): times the input's, it is the weights' decode scale
    of_rows = loaded[alpha].view(layer.experts, -1, 1)  # one for all, or gate's and up's
    of_rows = of_rows.repeat_interleave(count // of_rows.shape[1], 1)
    gain = of_rows.double() * loaded[scale].double().view(-1, 1, 1)
    values = (decode_blocks(codes, block_scale, torch.float64) * gain).flatten(0, 1)
    rows = Rows.valid([count] * layer.experts, count, layer.device)

    def accepts(values: Tensor, part: slice = slice(None)) -> Tensor:
        return (values - wanted[part]).abs() <= wanted[part].abs() * ROUNDINGS

    def reading(row: int) -> str:
        for what, other in (readings or {}).items():
            given = _matrices(layer, other, name, (count, half * 2))
            if bool(((values - given).abs() <= given.abs() * ROUNDINGS).all()):
                return f"; {what}"
        return _misplaced(layer, checkpoint, name, (codes, block_scale, gain), row)

    return compare(
        stage,
        accepts(values),
        rows,
        judged={"the checkpoint's value within the scales' roundings": values.numel()},
        altered=altered_copies(values, accepts),
        show=lambda r, c: (
            f"decodes to {float(values[r, c]):.9g}, the checkpoint's is {float(wanted[r, c]):.9g} "
            f"(alpha {float(of_rows[r // count, r % count]):.6g} * encode scale {float(loaded[scale][r // count]):.6g})"
            f"{reading(r)}"
        ),
    )


def _misplaced(
    layer: LayerProblem,
    checkpoint: Mapping[str, Tensor],
    name: str,
    loaded: tuple[Tensor, Tensor, Tensor],
    row: int,
) -> str:
    """Return the other row that a wrong one, or its codes or block scales alone, belong in, in words; "" where there is none.

    Args:
        layer: whose experts they are.
        checkpoint: what was loaded.
        name: "w1" or "w2".
        loaded: codes, linear block scale bytes, and what they are multiplied by.
        row: the wrong one, counted over all experts.
    """
    codes, block_scale, gain = loaded
    _, count, columns = codes.shape
    ones, of_ones = torch.full_like(codes, _CODE_OF_1), torch.full_like(block_scale, _BYTE_OF_1)
    for what, kind, part in (
        ("it is what belongs", "", (codes, block_scale)),
        ("its block scales belong", "weight", (ones, block_scale)),
        ("its codes belong", "weight_scale", (codes, of_ones)),
    ):
        held = (decode_blocks(part[0], part[1], torch.float64) * gain).flatten(0, 1)[row]
        right = _matrices(layer, _with_ones(checkpoint, kind), name, (count, columns))
        if place := _place(held, right, row, count):
            return f"; {what} in {place}"
    return ""


def _with_ones(checkpoint: Mapping[str, Tensor], kind: str) -> dict[str, Tensor]:
    """Return the checkpoint with ones for all codes ("weight") or all block scales ("weight_scale"); "": as it is."""
    return {
        name: tensor if name.rpartition(".")[2] != kind
        else torch.full_like(tensor.view(torch.uint8), _CODE_OF_1 * 17 if kind == "weight" else _BYTE_OF_1).view(tensor.dtype)
        for name, tensor in checkpoint.items()
    }  # fmt: skip


def _place(held: Tensor, right: Tensor, row: int, count: int) -> str:
    """Return the other row that values `(columns,)` belong in, in words; "" where there is none.

    Args:
        held: of a row.
        right: of all rows of all experts, `(rows, columns)`.
        row: where they are.
        count: rows of an expert.
    """
    same = ((held - right).abs() <= right.abs() * ROUNDINGS).all(-1)
    if bool(same[row]) or not bool(same.any()):
        return ""
    at = int(same.nonzero()[0])
    return f"row {at % count}" + (f" of expert {at // count}" if at // count != row // count else "")


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


def linear_scales(name: str, loaded: Mapping[str, Tensor]) -> Tensor:
    """Return the block scale bytes that belong to the codes of "w1" or "w2", `(l, rows, columns / 16)`."""
    _, rows, half = loaded[name].shape
    return unswizzle_128x4(loaded[f"{name}_blockscale"].view(torch.uint8), rows, half // 8)


def judge_same(
    stage: str, layer: LayerProblem, got: Mapping[str, Tensor], wanted: Mapping[str, Tensor], what: str
) -> Comparison:
    """Compare every byte of two loads, padding of the scales left out."""
    rows = Rows.valid([1] * len(wanted["w1"]), 1, layer.device, "byte")
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
    return parts | {f"{name}_blockscale": linear_scales(name, loaded).flatten(1) for name in ("w1", "w2")}
