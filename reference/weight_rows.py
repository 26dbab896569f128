"""Where the rows of weight matrices stand for kernels that do not take them in order.

TRT-LLM-gen kernels read 32 rows at a time, row r of them from place (r % 4) * 8 + r // 4: `shuffled`. Of a gated layer the
rows of up and gate take turns before that, one by one. CuTe DSL's fused layer takes up and gate in turns of 64 rows: both
are `in_turns`. Block scales go with their rows, and are brought into 128x4 order afterwards.

Rules: LAYOUT-4 (32 rows), LAYOUT-5 (turns).
Source: FlashInfer utils.py, srcToDstBlk32RowMap and get_shuffle_matrix_a_row_indices; fused_moe/core.py,
get_reorder_rows_for_gated_act_gemm_row_indices; the docstring of cute_dsl_fused_moe.
"""

from __future__ import annotations

import torch
from torch import Tensor

SHUFFLED = 32
"""Rows that change places among themselves, where a kernel's tile is a multiple of 128 rows."""
CUTEDSL_TURN, TRTLLM_TURN = 64, 1
"""Rows of up, and then of gate, that follow each other."""


def shuffled(rows: Tensor) -> Tensor:
    """Return `(*, rows, columns)` in the order of TRT-LLM-gen kernels. Raises ValueError as `unshuffled`. Rule: LAYOUT-4."""
    _require_multiple("shuffled", rows, SHUFFLED)
    return _grouped(rows, SHUFFLED // 4, 4).transpose(-3, -2).flatten(-4, -2)


def unshuffled(rows: Tensor) -> Tensor:
    """Return the rows of TRT-LLM-gen kernels in their own order.

    Args:
        rows: `(*, rows, columns)` of any dtype.

    Raises:
        ValueError: rows are not a multiple of 32.

    Rule: LAYOUT-4.
    """
    _require_multiple("unshuffled", rows, SHUFFLED)
    return _grouped(rows, 4, SHUFFLED // 4).transpose(-3, -2).flatten(-4, -2)


def in_turns(first: Tensor, second: Tensor, turn: int) -> Tensor:
    """Return two matrices as one of which so many rows take turns.

    Args:
        first: `(*, rows, columns)`: the one that begins.
        second: likewise.
        turn: rows that follow each other.

    Raises:
        ValueError: rows are not a multiple of the turn.

    Rule: LAYOUT-5.
    """
    _require_multiple("in_turns", first, turn)
    parts = [_grouped(side, turn) for side in (first, second)]
    return torch.stack(parts, -3).flatten(-4, -2)


def of_turns(rows: Tensor, turn: int) -> tuple[Tensor, Tensor]:
    """Return the two matrices whose rows take turns, `(*, rows / 2, columns)`. Raises as `in_turns`. Rule: LAYOUT-5."""
    _require_multiple("of_turns", rows, 2 * turn)
    first, second = _grouped(rows, 2, turn).unbind(-3)
    return first.flatten(-3, -2), second.flatten(-3, -2)


def _grouped(rows: Tensor, *extents: int) -> Tensor:
    """Return `(*, groups, *extents, columns)`."""
    return rows.reshape(*rows.shape[:-2], -1, *extents, rows.shape[-1])


def _require_multiple(name: str, rows: Tensor, of: int) -> None:
    if rows.shape[-2] % of:
        raise ValueError(f"{name}: rows must be a multiple of {of}, got {rows.shape[-2]}")
