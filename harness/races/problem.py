"""The problem that a race hunt runs: small, but every pipeline of the kernel wraps around and every expert differs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from harness.candidates import cutedsl_on_cpu, layouts

if TYPE_CHECKING:
    from harness.interpreter.schedule import Schedule

SENTINEL = 13.0


@dataclass(frozen=True)
class Kernel:
    """Which compiled kernel is hunted: its options and name. One cluster does all tiles, so that its pipelines wrap around."""

    name: str
    options: dict[str, Any]


KERNELS = (
    Kernel("128x128", {"mma_tiler_mn": (128, 128), "sm_count": 1}),
    Kernel("128x256", {"mma_tiler_mn": (128, 256), "sm_count": 1}),
    Kernel("128x128-cluster-2x2", {"mma_tiler_mn": (128, 128), "cluster_shape_mn": (2, 2), "sm_count": 1}),
    Kernel("256x128-pair", {"mma_tiler_mn": (256, 128), "cluster_shape_mn": (2, 1), "sm_count": 1}),
)


@dataclass
class RaceProblem:
    """Arguments of one call, as tensors that a mutation may change.

    Attributes:
        a, a_scale, b, b_scale, masked_m, alpha: as grouped_gemm_nt_masked takes them.
        a_block_scale, b_block_scale: linear block scales `(l, rows, k / 16)`.
        shape: experts, capacity, n, k.
    """

    a: Tensor
    a_scale: Tensor
    b: Tensor
    b_scale: Tensor
    masked_m: Tensor
    alpha: Tensor
    a_block_scale: Tensor
    b_block_scale: Tensor
    shape: tuple[int, int, int, int]

    def run(self, options: dict[str, Any], schedule: Callable[[], Schedule] | None = None) -> Tensor:
        """Return the output `(l, m, n)` float32; rows that the kernel leaves alone hold a sentinel."""
        experts, rows, n, _ = self.shape
        out = layouts.empty_out(experts, rows, n, torch.float32, "cpu", SENTINEL)
        cutedsl_on_cpu.gemm(
            (self.a, self.a_scale),
            (self.b, self.b_scale),
            out,
            self.masked_m,
            self.alpha,
            options,
            schedule=schedule,
        )
        return out.permute(2, 0, 1)


def race_problem(seed: int = 0) -> RaceProblem:
    """Draw the problem: 4 experts of 256 rows (256, 129, 0 and 1 of them valid), n 256, k 1536."""
    experts, rows, n, k = 4, 256, 256, 1536
    draw = torch.Generator().manual_seed(seed)
    a_codes, b_codes = (
        torch.randint(0, 16, (experts, r, k), dtype=torch.uint8, generator=draw) for r in (rows, n)
    )
    a_scale, b_scale = (
        torch.randint(0x30, 0x48, (experts, r, k // 16), dtype=torch.uint8, generator=draw) for r in (rows, n)
    )
    return RaceProblem(
        layouts.operand(a_codes),
        layouts.scales(a_scale),
        layouts.operand(b_codes),
        layouts.scales(b_scale),
        torch.tensor([256, 129, 0, 1], dtype=torch.int32),
        torch.rand(experts, generator=draw) + 0.5,
        a_scale,
        b_scale,
        (experts, rows, n, k),
    )
