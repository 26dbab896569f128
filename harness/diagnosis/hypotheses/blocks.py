"""Which blocks of a row have a fault, read off the layer's final output.

The output is linear in the blocks of the second quantization: what each faulty block adds to it is computed once, and
the sum that comes nearest to what was seen is solved for. The blocks of the first quantization pass through the
activation: all subsets of few blocks are tried, each with the best choice in the second one.
"""

from __future__ import annotations

from itertools import product
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.diagnosis.cases.case import Case
from harness.diagnosis.cases.views import decoded_weights
from harness.diagnosis.hypotheses.hypothesis import Hypothesis, unharmed
from harness.diagnosis.hypotheses.planted_layer import Planted, is_second, quantized_in
from harness.faults.calls import split
from reference.nvfp4 import BLOCK, decode_blocks

MUCH_NEARER = 0.3  # of the distance of the right output: what an explanation must reach
_ENUMERATED = 8  # blocks of which all subsets are tried
_ROUNDS = 16


def blocks_of_row(case: Case, hypothesis: Hypothesis, expert: int, row: int) -> tuple[Tensor, Tensor] | None:
    """Find the blocks of the two quantizations whose faulty versions give a row; None where none come much nearer.

    Returns:
        `(k / 16,)` and `(n / 16,)` bool. Raises Failed where the fault cannot be planted.
    """
    x, x_scale = case.call.arguments["hidden_states"]
    if x_scale is not None:
        return None
    blocks = x.shape[2] // BLOCK
    target = case.seen[expert, row].flatten().double()
    size = target.norm().clamp(min=1e-30)
    right = float((target - case.healthy[expert, row].flatten().double()).norm() / size)
    found, chosen = MUCH_NEARER * right, None
    options = _subsets(blocks)
    for _ in range(_ROUNDS):
        left, seconds = _best_seconds(case, hypothesis, expert, row, options)
        best = int(left.argmin())
        if float(left[best] / size) >= found:
            break
        found, chosen = float(left[best] / size), (options[best], seconds[best])
        if blocks <= _ENUMERATED:
            break
        options = options[best] ^ torch.eye(blocks, dtype=torch.bool)
    return chosen


def _subsets(blocks: int) -> Tensor:
    """Return all subsets, `(subsets, blocks)` bool; of many blocks none, each single one, all but one, and all."""
    if blocks <= _ENUMERATED:
        return torch.tensor(list(product([False, True], repeat=blocks)))
    one = torch.eye(blocks, dtype=torch.bool)
    every = torch.ones(1, blocks, dtype=torch.bool)
    return torch.cat((~every, one, ~one, every))


def _best_seconds(
    case: Case, hypothesis: Hypothesis, expert: int, row: int, firsts: Tensor
) -> tuple[Tensor, Tensor]:
    """Return for each choice of first blocks the best choice of second ones, and how far it stays from what was seen."""
    arguments = _copies(case.call.arguments, expert, row, len(firsts))
    second: list[tuple[Any, Any]] = []

    def merge(stage: str, number: int, healthy: Any, faulty: Any) -> Any:
        if is_second(stage, number):
            second.append((healthy, faulty))
            return healthy
        return quantized_in(firsts.unsqueeze(0), healthy, faulty)

    planted = Planted(case.model.keep_to(None), hypothesis, hypothesis.parameters(), None, merge)
    with unharmed(case.call):
        out = planted.masked_moe(**arguments)[0].double()
    missing = (case.seen[expert, row].flatten().double() - out).nan_to_num(0, posinf=0, neginf=0)
    far = missing.norm(dim=-1).masked_fill(~out.isfinite().all(-1), torch.inf)
    blocks = arguments["w2"].shape[2] * 2 // BLOCK
    if not second:
        return far, torch.zeros(len(firsts), blocks, dtype=torch.bool)
    weights = decoded_weights(arguments["w2"], arguments["w2_blockscale"])[0].double()
    healthy, faulty = (_values(pair, len(firsts)) for pair in second[0])
    change = split((faulty - healthy).nan_to_num(0, posinf=0, neginf=0), BLOCK)
    effect = torch.einsum("fbi,kbi->fbk", change, split(weights, BLOCK))
    effect = effect * arguments["w2_alpha"].reshape(-1)[0].double()
    choices, left = _nearest_sum(effect, missing)
    return left.masked_fill(far.isinf(), torch.inf), choices


def _copies(arguments: dict[str, Any], expert: int, row: int, count: int) -> dict[str, Any]:
    """Return a layer's arguments with copies of one row, in its expert alone."""
    one = slice(expert, expert + 1)
    x = arguments["hidden_states"][0]
    kept = {
        name: value.reshape(-1)[one] if value.ndim == 1 else value[one]
        for name, value in arguments.items()
        if isinstance(value, Tensor) and value.shape[:1] == x.shape[:1]
    }
    copies = x[one, row : row + 1].expand(-1, count, -1).contiguous()
    masked_m = torch.full_like(kept["masked_m"], count)
    return arguments | kept | {"hidden_states": (copies, None), "masked_m": masked_m}


def _values(quantized: Any, rows: int) -> Tensor:
    """Return what a quantized operand of one expert stands for before its global scale, `(rows, k)` float64."""
    codes = layouts.codes_of(quantized[0])
    scales = layouts.block_scales_of(quantized[1], rows, codes.shape[2] // BLOCK)
    return decode_blocks(codes, scales, torch.float32)[0].double()


def _nearest_sum(effects: Tensor, wanted: Tensor) -> tuple[Tensor, Tensor]:
    """Choose which effects to add up to come nearest to a sum.

    Args:
        effects: `(cases, n, k)`.
        wanted: `(cases, k)`.

    Returns:
        `(cases, n)` bool and the distance that is left `(cases,)`; the nearest of all choices for few effects, otherwise what
        no single change improves.
    """
    inner = torch.einsum("fbk,fk->fb", effects, wanted)
    gram = effects @ effects.transpose(1, 2)
    count = effects.shape[1]
    if count <= _ENUMERATED:
        sets = _subsets(count)
        s = sets.double()
        pairs = (s.unsqueeze(-1) * s.unsqueeze(-2)).flatten(1)
        cost = gram.flatten(1) @ pairs.T - 2 * inner @ s.T
        chosen = sets[cost.argmin(-1)]
    else:
        chosen = torch.zeros(inner.shape, dtype=torch.bool)
        own = gram.diagonal(dim1=1, dim2=2)
        for _ in range(2 * count):
            now = chosen.double()
            sign = 1 - 2 * now
            gain = 2 * sign * (inner - (gram @ now.unsqueeze(-1)).squeeze(-1)) - own
            best = gain.argmax(-1, keepdim=True)
            better = gain.gather(-1, best) > 0
            if not bool(better.any()):
                break
            chosen = chosen ^ (torch.zeros_like(chosen).scatter(-1, best, better))
    left = wanted - (effects * chosen.unsqueeze(-1)).sum(1)
    return chosen, left.norm(dim=-1)
