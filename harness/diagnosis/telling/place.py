"""Where something is, in a few words: "experts 3 to 7, rows 0 to 31, block 2"."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from torch import Tensor

from harness.diagnosis.cases.views import SCALE
from harness.diagnosis.telling.numbers import numbers


def place_of_tokens(mask: Tensor) -> dict[str, Any]:
    """Say in which tokens and columns of a routed layer's output a mask `(1, tokens, 1, hidden)` is True, as `place` does."""
    tokens, columns = (mask.any(-1).flatten(), mask.flatten(0, 2).any(0))
    numbered = tokens.nonzero().flatten().tolist()
    found: dict[str, Any] = {"tokens": numbered}
    words = ["all tokens" if bool(tokens.all()) else _named("token", numbered)]
    if _tell(some := columns.nonzero().flatten().tolist(), len(columns)):
        found["columns"] = some
        words.append(_named("column", some))
    return {"words": "everywhere" if words == ["all tokens"] else ", ".join(words), **found}


def place(mask: Tensor, valid: Tensor) -> dict[str, Any]:
    """Say where a mask is True.

    Args:
        mask: `(groups, rows, cells, elements)` bool.
        valid: `(groups, rows)` bool: what it is a part of.

    Returns:
        "words", and the numbers: experts, rows (of all experts together), and blocks or columns where they are not all.
    """
    rows = mask.any(-1).any(-1)
    groups = rows.any(-1).nonzero().flatten().tolist()
    row_numbers = rows.any(0).nonzero().flatten().tolist()
    everywhere = bool((rows == valid).all())
    found: dict[str, Any] = {"experts": groups, "rows": row_numbers}
    part = ""
    if mask.shape[2] > 1:
        cells = mask.any(-1).any(0).any(0).nonzero().flatten().tolist()
        if len(cells) < mask.shape[2]:
            found["blocks"], part = cells, _named("block", cells)
    else:
        # Of the only block of a quantizer's row, the last element is its scale.
        elements = mask[..., :SCALE] if mask.shape[3] == SCALE + 1 else mask
        columns = elements.any(0).any(0).any(0).nonzero().flatten().tolist()
        if _tell(columns, mask.shape[3]):
            found["columns"], part = columns, _named("column", columns)
    if everywhere:
        words = ["all experts", "all rows", part] if part else ["everywhere"]
    else:
        all_groups = groups == valid.any(-1).nonzero().flatten().tolist()
        full = all(bool((rows[g] == valid[g]).all()) for g in groups)
        words = [
            "all experts" if all_groups and len(groups) > 1 else _named("expert", groups),
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
