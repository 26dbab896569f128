"""Which experts, rows or blocks a fault is kept to: it always goes wrong everywhere, and merging.py takes a part of it.

The healthy and the faulty output of a stage are both there, so that the chosen places are ones where the two differ:
a fault that nobody could see is not planted.
"""

from __future__ import annotations

from random import Random

import torch
from torch import Tensor

from harness.faults.fault import Parameters


def chosen_rows(changed: Tensor, parameters: Parameters) -> Tensor:
    """Choose where a fault stays.

    Args:
        changed: `(experts, rows)` bool, valid rows in which the faulty output differs.
        parameters: the weakest fault takes one row; others some experts (all of their rows, or a share of them).

    Returns:
        `(experts, rows)` bool, a part of `changed`; empty only where nothing changed.
    """
    places = changed.nonzero().tolist()
    chosen = torch.zeros_like(changed)
    if not places:
        return chosen
    random = Random(parameters.place_seed)
    if parameters.weakest:
        expert, row = random.choice(places)
        chosen[expert, row] = True
        return chosen
    with_changes = sorted({expert for expert, _ in places})
    for expert in random.sample(with_changes, random.randint(1, len(with_changes))):
        chosen[expert] = changed[expert]
    if random.random() < 0.5:
        rows = chosen.nonzero().tolist()
        chosen = torch.zeros_like(changed)
        for expert, row in random.sample(rows, random.randint(1, len(rows))):
            chosen[expert, row] = True
    return chosen


def chosen_blocks(changed: Tensor, rows: Tensor, parameters: Parameters) -> Tensor:
    """Choose blocks within chosen rows.

    Args:
        changed: `(experts, rows, blocks)` bool.
        rows: `(experts, rows)` bool, from `chosen_rows`.
        parameters: the weakest fault takes one block; others all blocks of the rows, or the same share of every row.

    Returns:
        `(experts, rows, blocks)` bool, a part of `changed`.
    """
    inside = changed & rows.unsqueeze(-1)
    random = Random(f"{parameters.place_seed} blocks")
    if parameters.weakest:
        places = inside.nonzero().tolist()
        chosen = torch.zeros_like(inside)
        if places:
            chosen[tuple(random.choice(places))] = True
        return chosen
    if random.random() < 0.5:
        return inside
    blocks = inside.any(0).any(0).nonzero().flatten().tolist()
    if not blocks:
        return inside
    kept = torch.zeros(inside.shape[-1], dtype=torch.bool, device=inside.device)
    kept[random.sample(blocks, random.randint(1, len(blocks)))] = True
    return inside & kept
