"""PREPARE: what a kernel makes once of a layer's weights."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.judging.comparison import Comparison, compare
from harness.judging.context import Context
from harness.judging.contract import ContractError
from harness.problems.rows import Rows
from harness.problems.weights import Weights
from harness.rules.memory import bytes_of, unchanged


def prepared(ctx: Context) -> list[Comparison]:
    """PREPARE: weights of both GEMMs prepared twice, and with those of one expert changed; the inputs keep every byte."""
    t = ctx.tensors
    found = []
    # Another expert of each: of several one is not the last, and one is not the first.
    for number, (name, weights, alpha) in enumerate((("w1", t.w1, t.w1_alpha), ("w2", t.w2, t.w2_alpha))):
        once = _prepared(ctx, weights, alpha)
        again = _prepared(ctx, weights, alpha)
        found.append(_compared(f"{name}, prepared twice", once, again, ctx, changed=None))
        expert = (ctx.problem.seed + number) % ctx.problem.experts
        other = _prepared(ctx, *_with_one_changed(weights, alpha, expert))
        found.append(
            _compared(f"{name}, expert {expert} has other weights", once, other, ctx, changed=expert)
        )
        b, b_scale = ctx.weights_operand(weights)
        given = {"b": b, "b_scale": b_scale, "alpha": alpha.clone()}
        call = partial(ctx.candidate.prepare, *given.values())
        found.append(unchanged(f"prepare, {name}", given, call))
    return found


def _prepared(ctx: Context, weights: Weights, alpha: Tensor) -> dict[str, Any]:
    """Return what the candidate makes of weights, or raise ContractError."""
    made = ctx.calls.prepare(*ctx.weights_operand(weights), alpha)
    if not isinstance(made, dict) or not any(isinstance(value, Tensor) for value in made.values()):
        raise ContractError(
            f"prepare must return a dict that holds tensors, got {type(made).__name__}: harness.candidates.protocol"
        )
    # A later call may reuse the memory: what is compared is what was there.
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in made.items()}


def _with_one_changed(weights: Weights, alpha: Tensor, expert: int) -> tuple[Weights, Tensor]:
    """Return weights and alphas of which one expert's rows are in another order: its largest and smallest scale stay."""
    codes, block_scale, alpha = weights.codes.clone(), weights.block_scale.clone(), alpha.clone()
    codes[expert], block_scale[expert] = codes[expert].roll(1, 0), block_scale[expert].roll(1, 0)
    alpha[expert] *= 2
    return replace(weights, codes=codes, block_scale=block_scale), alpha


def _compared(
    stage: str, once: dict[str, Any], other: dict[str, Any], ctx: Context, *, changed: int | None
) -> Comparison:
    """Compare each expert's part of each tensor, byte for byte; that of the changed expert must differ in one of them."""
    experts, names = ctx.problem.experts, [name for name, value in once.items() if isinstance(value, Tensor)]
    same = torch.stack([_same_parts(once[name], other.get(name), experts) for name in names], dim=1)
    rest = {name: value for name, value in once.items() if name not in names}
    if {name: value for name, value in other.items() if name not in names} != rest:
        same[:] = False  # another configuration: nothing of it can be compared
    if changed is not None:  # of other weights the same cannot come out
        same[changed] = not bool(same[changed].all())
    rows = Rows(torch.arange(experts), torch.zeros(experts, dtype=torch.long), experts, 1, "tensor")

    def show(expert: int, column: int) -> str:
        if expert == changed:
            return f"prepare made the same of expert {expert}, though its weights changed"
        what = "its weights are the same" if changed is None else f"only those of expert {changed} changed"
        return f"prepare made other bytes of expert {expert}'s part of {names[column]!r}, though {what}"

    return compare(
        stage,
        same,
        rows,
        judged={"parts compared byte for byte": same.numel()},
        altered={},
        show=show,
    )


def _same_parts(once: Tensor, other: Any, experts: int) -> Tensor:
    """Return of which experts two tensors hold the same bytes, `(experts,)` bool; one of all experts counts for each."""
    if not isinstance(other, Tensor) or (other.shape, other.dtype) != (once.shape, once.dtype):
        return torch.zeros(experts, dtype=torch.bool)
    if once.ndim and len(once) == experts:
        pairs = zip(once, other, strict=True)
        return torch.tensor([bool(torch.equal(bytes_of(x), bytes_of(y))) for x, y in pairs])
    return torch.full((experts,), bool(torch.equal(bytes_of(once), bytes_of(other))))
