"""Tensors of which nearly every row is padding: only the rows up to the last valid one are drawn, the rest is zero."""

from __future__ import annotations

import dataclasses
from functools import cached_property

from torch import Tensor

from harness.problems.problem import Problem
from harness.problems.tensors import ProblemTensors

SPARSE = 1 << 29
"""Elements of one tensor above which its padding is not drawn, on any device: on a CPU it would take seconds."""


def tensors_of(
    problem: Problem,
    device: str = "cpu",
    activations: str = "nvfp4",
    weights: str = "nvfp4",
    gated: str = "silu",
    *,
    powers: bool = False,
) -> ProblemTensors:
    """Return the tensors of a problem: drawn in full, or with padding of zeros where there is that much of it.

    Args:
        problem: which.
        device: torch device type.
        activations: name of their format, as Traits.activation_format has it.
        weights: likewise.
        gated: the activation with a gate.
        powers: alphas and encode scales are powers of two.
    """
    elements = problem.experts * problem.capacity * max(problem.hidden, 2 * problem.inter)
    kind = SparseTensors if elements > SPARSE else ProblemTensors
    return kind(problem, device, activations, weights, gated, powers=powers)


class SparseTensors(ProblemTensors):
    """Those of the problem with as few rows as there are valid ones, in as much memory as the capacity asks for."""

    def __init__(
        self,
        problem: Problem,
        device: str = "cpu",
        activations: str = "nvfp4",
        weights: str = "nvfp4",
        gated: str = "silu",
        *,
        powers: bool = False,
    ) -> None:
        fewer = dataclasses.replace(problem, capacity=max(*problem.masked_m, 1))
        super().__init__(fewer, device, activations, weights, gated, powers=powers)
        self._capacity = problem.capacity
        self.x = self._grown(self.x)

    @cached_property
    def gate_up(self) -> Tensor:
        """As of any problem."""
        return self._grown(super().gate_up)

    def _grown(self, tensor: Tensor) -> Tensor:
        experts, rows, columns = tensor.shape
        grown = tensor.new_zeros(experts, self._capacity, columns)
        grown[:, :rows] = tensor
        return grown
