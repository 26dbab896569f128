"""Blocks of gate and up that an activation goes wrong on: far from zero, where exp overflows, zeros, NaN and infinities.

Every block is `(2, 16)` float64: gates as they are stored, ups in units of 1 / global_scale_enc.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from harness.problems.block_draw import BlockDraw

_ORDINARY = 64.0  # largest product of the elements beside the special ones; a block scale then is about 11
_GATES = (
    # around 64, where fixed-point and table exponentials end
    (-63.5, -64, -64.5, -65, -70, -80, 63.5, 64, 64.5, 65, 70, 80),
    # exp(-gate) is about 2^126 at -87.34, overflows at -88.73, and expf(gate) is zero from -103.98
    (-86.5, -87, -87.5, -88, -88.5, -89, -90, -100, 87.5, 88, 88.5, 89, 90, 100),
    (-104, -128, -1e3, -65536, -1e30, -3e38, 104, 128, 1e3, 65536, 1e30, 1e34),
    (0.0, -0.0, 0.0, -0.0, 1e-3, -1e-3, 1e-30, -1e-30),
)
_SMALLEST = -87.0
"""Below it silu may be zero: nothing makes up for that."""
SPECIAL = (
    (math.inf, 1.0), (-math.inf, 1.0), (math.nan, 1.0), (1.0, math.inf), (1.0, -math.inf), (1.0, math.nan),
    (0.0, math.inf), (-0.0, -math.inf), (math.inf, 0.0), (-math.inf, 0.0), (math.inf, -1.0), (math.inf, math.inf),
    (-math.inf, math.inf), (-100.0, math.inf), (1e30, 1e30), (1e30, -1e30),
)  # fmt: skip
"""Gate and up of the elements that are not finite, or whose product is not, one in each block."""


def gates(draw: BlockDraw, number: int) -> Tensor:
    """Return a block of finite gates far out; ups make every product that can be seen an ordinary one."""
    gate, up = ordinary(draw)
    values = _GATES[number % len(_GATES)]
    places = draw.draws.order(16)[: len(values)]
    gate[places] = torch.tensor(values, dtype=torch.float64)
    silu = gate * torch.sigmoid(gate)
    seen = (gate > _SMALLEST) & (silu.abs() > 1e-35)
    ups = (draw.uniform() * 0.9 + 0.1) * _ORDINARY * draw.sign
    return torch.stack((gate, torch.where(seen, ups / silu.abs().clamp(min=1e-35), up)))


def special(draw: BlockDraw, number: int) -> Tensor:
    """Return an ordinary block with one gate, up or both that are not finite."""
    block = ordinary(draw)
    gate, up = SPECIAL[number % len(SPECIAL)]
    place = draw.place()
    block[0, place], block[1, place] = gate, up
    return block


def ordinary(draw: BlockDraw) -> Tensor:
    """Return gates from -4 to 4 and ups such that products stay below `_ORDINARY`."""
    gate = draw.uniform() * 8 - 4
    return torch.stack((gate, (draw.uniform() * 2 - 1) * _ORDINARY / 4))
