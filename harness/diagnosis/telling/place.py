"""Where something is, in a few words: "experts 3 to 7, rows 0 to 31, block 2"."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

_MOST = 8  # numbers or ranges in one list


def numbers(values: Sequence[int]) -> str:
    """Return sorted numbers as words: "3", "3 and 5", "3 to 7", "0, 4, 8, ... (every 4th)"."""
    values = sorted(set(values))
    if not values:
        return "none"
    steps = {b - a for a, b in pairwise(values)}
    if len(values) > 3 and len(steps) == 1 and steps != {1}:
        return f"{values[0]}, {values[1]}, ... {values[-1]} (every {_ordinal(steps.pop())})"
    runs: list[list[int]] = []
    for value in values:
        if runs and value == runs[-1][1] + 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    words = []
    for first, last in runs:
        words += (
            [f"{first}"]
            if first == last
            else [f"{first}", f"{last}"]
            if last == first + 1
            else [f"{first} to {last}"]
        )
    if len(words) > _MOST:
        return f"{', '.join(words[:_MOST])}, ... ({len(values)} of them)"
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"


def _ordinal(number: int) -> str:
    ending = {1: "st", 2: "nd", 3: "rd"}.get(number % 10 if number % 100 not in {11, 12, 13} else 0, "th")
    return f"{number}{ending}"


def place(mask: Tensor, valid: Tensor, group: str = "expert", cell: str = "block") -> dict[str, Any]:
    """Say where a mask is True.

    Args:
        mask: `(groups, rows, cells, elements)` bool.
        valid: `(groups, rows)` bool: what it is a part of.
        group: name of a group.
        cell: name of a cell, where there is more than one.

    Returns:
        "words", and the numbers: experts, rows (of all experts together), and blocks or columns where they are not all.
    """
    rows = mask.any(-1).any(-1)
    groups = rows.any(-1).nonzero().flatten().tolist()
    row_numbers = rows.any(0).nonzero().flatten().tolist()
    everywhere = bool((rows == valid).all())
    found: dict[str, Any] = {f"{group}s": groups, "rows": row_numbers}
    part = ""
    if mask.shape[2] > 1:
        cells = mask.any(-1).any(0).any(0).nonzero().flatten().tolist()
        if len(cells) < mask.shape[2]:
            found[f"{cell}s"], part = cells, _named(cell, cells)
    else:
        columns = mask.any(0).any(0).any(0).nonzero().flatten().tolist()
        if _tell(columns, mask.shape[3]):
            found["columns"], part = columns, _named("column", columns)
    if everywhere:
        words = [f"all {group}s", "all rows", part] if part else ["everywhere"]
    else:
        all_groups = groups == valid.any(-1).nonzero().flatten().tolist()
        full = all(bool((rows[g] == valid[g]).all()) for g in groups)
        words = [
            f"all {group}s" if all_groups and len(groups) > 1 else _named(group, groups),
            "all rows" if full and len(row_numbers) > 1 else _named("row", row_numbers),
            *([part] if part else []),
        ]
    return {"words": ", ".join(words), **found}


def _tell(columns: Sequence[int], of: int) -> bool:
    """Return whether columns say something: whole tiles of 16 are free of them, or they are evenly spaced."""
    tiles = {column // 16 for column in columns}
    steps = {b - a for a, b in pairwise(columns)}
    return bool(columns) and (len(tiles) * 16 < of or (len(steps) == 1 and steps != {1} and len(columns) > 3))


def _named(name: str, values: Sequence[int]) -> str:
    return f"{name}{'' if len(values) == 1 else 's'} {numbers(values)}"
