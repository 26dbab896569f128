"""Faults that only some blocks of a quantization have, read off a layer's final output.

The output is linear in the blocks of the second quantization: what each faulty block adds to it is computed once, and
the sum that comes nearest to what was seen is solved for. The blocks of the first quantization pass through the
activation: all subsets of few blocks are tried, each with the best choice in the second one. The blocks are found in a
few rows and tried on all.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any

import torch
from torch import Tensor

from harness.diagnosis.cases.layer_case import LayerCase, relative
from harness.diagnosis.cases.replay import unharmed
from harness.diagnosis.cases.views import decoded, decoded_weights
from harness.diagnosis.hypotheses.hypothesis import Hypothesis
from harness.diagnosis.hypotheses.layers import (
    MUCH_NEARER,
    NEAR,
    illegal_elements,
    planted_output,
    score_variants,
)
from harness.diagnosis.hypotheses.planted_layer import PlantedLayer, is_second, quantized_in
from harness.diagnosis.hypotheses.score import Score
from harness.faults.calls import split
from reference.nvfp4 import BLOCK

_ENUMERATED = 8  # blocks of which all subsets are tried
_ROUNDS = 16
_ASKED = 4  # failing rows that are asked for their blocks


def has_blocks(hypothesis: Hypothesis) -> bool:
    """Return whether a fault can sit in single blocks of a quantization."""
    return hypothesis.fault.unit == "block" and all("quantize" in stage for stage in hypothesis.fault.stages)


def score_blocks(cases: Sequence[LayerCase], hypothesis: Hypothesis) -> Score | None:
    """Test a fault of blocks that only some blocks of the rows have; None where it cannot be planted or finds no blocks."""
    result = Score(hypothesis, illegal_elements(cases, ("output",)))
    return score_variants(result, cases, lambda case, _: _variants(case, hypothesis) or None)


def _variants(case: LayerCase, hypothesis: Hypothesis) -> list[Tensor]:
    """Return outputs with the fault in the blocks of a few telling rows, until they explain the rows that tell most."""
    right = relative(case.seen, case.healthy)
    nearest = right
    variants: list[Tensor] = []
    tried: set[tuple[bool, ...]] = set()
    asked = torch.zeros_like(case.failing)
    union: tuple[Tensor, Tensor] | None = None
    for _ in range(_ASKED):
        unexplained = case.failing & ~asked & ((nearest > NEAR) | (nearest > MUCH_NEARER * right))
        telling = nearest.nan_to_num(0, posinf=0).masked_fill(~unexplained, 0)
        if not bool(telling.any()):
            break
        expert, row = divmod(int(telling.argmax()), telling.shape[1])
        asked[expert, row] = True
        found = _blocks_of_row(case, hypothesis, expert, row)
        if found is None:
            if not variants:  # the row that tells most has no answer
                break
            continue
        # A row that the fault does not change in some block does not show that block.
        union = found if union is None else (union[0] | found[0], union[1] | found[1])
        for first, second in (union, found):
            none = torch.zeros_like(first), torch.zeros_like(second)
            for masks in ((first, second), (first, none[1]), (none[0], second)):
                key = tuple(torch.cat(masks).tolist())
                if key not in tried and any(key):
                    tried.add(key)
                    variants.append(_with_blocks(case, hypothesis, *masks))
                    nearest = torch.minimum(nearest, relative(case.seen, variants[-1]))
    return variants


def _with_blocks(case: LayerCase, hypothesis: Hypothesis, first: Tensor, second: Tensor) -> Tensor:
    """Return the layer's output as elements with the fault in some blocks of each quantization only."""

    def merge(stage: str, number: int, right: Any, faulty: Any) -> Any:
        return quantized_in(second if is_second(stage, number) else first, right, faulty)

    return planted_output(case, hypothesis, merge=merge)


def _blocks_of_row(
    case: LayerCase, hypothesis: Hypothesis, expert: int, row: int
) -> tuple[Tensor, Tensor] | None:
    """Find the blocks of the two quantizations whose faulty versions give a row; None where none come much nearer.

    Returns:
        `(k / 16,)` and `(n / 16,)` bool.

    Raises:
        ReplayError: the fault cannot be planted.
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
    case: LayerCase, hypothesis: Hypothesis, expert: int, row: int, firsts: Tensor
) -> tuple[Tensor, Tensor]:
    """Return for each choice of first blocks the best choice of second ones, and how far it stays from what was seen."""
    arguments = _copies(case.call.arguments, expert, row, len(firsts))
    second: list[tuple[Any, Any]] = []

    def merge(stage: str, number: int, healthy: Any, faulty: Any) -> Any:
        if is_second(stage, number):
            second.append((healthy, faulty))
            return healthy
        return quantized_in(firsts.unsqueeze(0), healthy, faulty)

    planted = PlantedLayer(case.model.keep_to(None), hypothesis, hypothesis.parameters(), merge=merge)
    with unharmed(case.call):
        out = planted.masked_moe(**arguments)[0].double()
    missing = (case.seen[expert, row].flatten().double() - out).nan_to_num(0, posinf=0, neginf=0)
    far = missing.norm(dim=-1).masked_fill(~out.isfinite().all(-1), torch.inf)
    blocks = arguments["w2"].shape[2] * 2 // BLOCK
    if not second:
        return far, torch.zeros(len(firsts), blocks, dtype=torch.bool)
    weights = decoded_weights(arguments["w2"], arguments["w2_blockscale"])[0].double()
    healthy, faulty = (decoded(*quantized)[0].double() for quantized in second[0])
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
