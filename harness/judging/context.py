"""What a rule gets: the candidate, what is known about it, the problem's tensors, and checked calls of its stages."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.protocol import Traits, stages_of, traits_of
from harness.problems.layer import LayerProblem
from harness.problems.problem import Problem
from harness.problems.rows import Rows
from harness.problems.tensors import ProblemTensors, Weights
from reference.bounds import Accumulator
from reference.legal import Arithmetic


class ContractError(Exception):
    """A stage returned something of another shape, dtype or layout than the contract says: a FAIL, with the reason."""


@dataclass(frozen=True)
class Known:
    """What is known about a candidate besides its code: declared, or measured through it (harness.running.probes)."""

    arithmetic: Arithmetic
    accumulator: Accumulator

    @classmethod
    def declared(cls, traits: Traits) -> Known:
        """Return what the traits say, nothing measured."""
        return cls(Arithmetic(traits.arithmetic), Accumulator(chunk=traits.accumulator_chunk))


@dataclass(frozen=True)
class Quantized:
    """A stage's quantized output: as it was returned, and decoded.

    Attributes:
        packed: logical `(m, k/2, l)` uint8.
        scales: logical 6-D float8_e4m3fn.
        codes: `(l, m, k)` uint8.
        block_scale: `(l, m, k/16)` uint8.
    """

    packed: Tensor
    scales: Tensor
    codes: Tensor
    block_scale: Tensor

    def valid_bytes(self, rows: Rows) -> Tensor:
        """Return codes and scales of the valid rows side by side, `(rows, k + k/16)` uint8."""
        return torch.cat((rows.take(self.codes), rows.take(self.block_scale)), dim=-1)


@dataclass
class Context:
    """One rule's view of one candidate and one problem."""

    candidate: Any
    problem: Problem
    known: Known
    traits: Traits = field(init=False)

    def __post_init__(self) -> None:
        self.traits = traits_of(self.candidate)

    @cached_property
    def tensors(self) -> ProblemTensors:
        """The problem's numbers for the kernels."""
        return ProblemTensors(self.problem, self.traits.device)

    @cached_property
    def layer(self) -> LayerProblem:
        """The problem's ranks, routes and checkpoint, for the stages around the kernels."""
        return LayerProblem(self.problem, self.traits)

    @property
    def masked_m(self) -> list[int]:
        """Valid rows of each expert, as a list."""
        return list(self.problem.masked_m)

    def has(self, stage: str) -> bool:
        """Return whether the candidate implements the stage."""
        return stage in stages_of(self.candidate)

    def rows(self, column_name: str = "col") -> Rows:
        """Return the valid rows of the problem."""
        return Rows.valid(self.masked_m, self.problem.capacity, self.traits.device, column_name)

    def quantize(self, x: Tensor, global_scale_enc: Tensor, masked_m: Tensor | None = None) -> Quantized:
        """Call quantize_grouped on `(l, m, k)` bfloat16 and check what comes back."""
        masked_m = self.tensors.masked_m if masked_m is None else masked_m
        return checked_quantized(
            self.candidate.quantize_grouped(x, masked_m, global_scale_enc), x.shape, "quantize_grouped"
        )

    def silu_mul_quantize(
        self, gate_up: Tensor, global_scale_enc: Tensor, masked_m: Tensor | None = None
    ) -> Quantized:
        """Call silu_mul_quantize_grouped on `(l, m, 2k)` bfloat16 and check what comes back."""
        masked_m = self.tensors.masked_m if masked_m is None else masked_m
        shape = torch.Size((*gate_up.shape[:2], gate_up.shape[2] // 2))
        result = self.candidate.silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)
        return checked_quantized(result, shape, "silu_mul_quantize_grouped")

    def gemm(
        self,
        a: tuple[Tensor, Tensor],
        weights: Weights,
        alpha: Tensor | None,
        *,
        dtype: torch.dtype = torch.bfloat16,
        fill: float = float("nan"),
        b_scales: Tensor | None = None,
        masked_m: Tensor | None = None,
        hints: dict[str, Any] | None = None,
    ) -> Tensor:
        """Call masked_grouped_gemm into a buffer filled with `fill`; return it logical `(l, m, n)`.

        Args:
            a: packed operand and scales in the physical layout.
            weights: the other operand.
            alpha: `(l,)` float32 or None.
            dtype: of the output.
            fill: what the output holds before the call.
            b_scales: replaces the weights' scales (6-D), for rules about their padding.
            masked_m: replaces the problem's own.
            hints: extra keyword arguments.
        """
        masked_m = self.tensors.masked_m if masked_m is None else masked_m
        experts, n = weights.codes.shape[:2]
        out = layouts.empty_out(experts, a[0].shape[0], n, dtype, self.traits.device, fill)
        b_scales = layouts.scales(weights.block_scale) if b_scales is None else b_scales
        self.candidate.masked_grouped_gemm(
            *a, layouts.operand(weights.codes), b_scales, out, masked_m, alpha, **(hints or {})
        )
        return out.permute(2, 0, 1)

    def moe_arguments(
        self, hidden_states: tuple[Tensor, Tensor | None], masked_m: Tensor | None = None
    ) -> dict[str, Any]:
        """Return the keyword arguments of masked_moe for this problem."""
        from reference.e2m1 import pack_e2m1
        from reference.layout import swizzle_128x4

        t = self.tensors
        prequantized = hidden_states[1] is not None
        return {
            "hidden_states": hidden_states,
            "input_global_scale": None if prequantized else t.input_scale,
            "w1": pack_e2m1(t.w1.codes),
            "w1_blockscale": swizzle_128x4(t.w1.block_scale).view(torch.float8_e4m3fn),
            "w1_alpha": t.w1_alpha,
            "w2": pack_e2m1(t.w2.codes),
            "a2_global_scale": t.a2_scale,
            "w2_blockscale": swizzle_128x4(t.w2.block_scale).view(torch.float8_e4m3fn),
            "w2_alpha": t.w2_alpha,
            "masked_m": t.masked_m if masked_m is None else masked_m,
            "activation": self.problem.activation,
        }

    def moe(
        self, hidden_states: tuple[Tensor, Tensor | None] | None = None, masked_m: Tensor | None = None
    ) -> Tensor:
        """Call masked_moe and check the output's shape: `(l, m, k)` bfloat16."""
        hidden_states = (self.tensors.x, None) if hidden_states is None else hidden_states
        out: Tensor = self.candidate.masked_moe(**self.moe_arguments(hidden_states, masked_m))
        return checked_moe_output(out, self.problem)

    def reference_operand(self, scale_fill: int = 0) -> tuple[Tensor, Tensor]:
        """Return the tokens quantized by the reference, in the physical layout."""
        quantized = self.reference_quantized()
        return layouts.operand(quantized[0]), layouts.scales(quantized[1], scale_fill)

    def reference_quantized(self) -> tuple[Tensor, Tensor]:
        """Return codes and linear block scales of the tokens, by the reference."""
        from reference.nvfp4 import quantize_nvfp4

        quantized = quantize_nvfp4(self.tensors.x, self.tensors.input_scale)
        return quantized.codes, quantized.block_scale


def checked_moe_output(out: Any, problem: Problem) -> Tensor:
    """Return masked_moe's output, or raise ContractError if it is not `(l, m, k)` bfloat16."""
    wanted = (problem.experts, problem.capacity, problem.hidden)
    if not isinstance(out, Tensor) or tuple(out.shape) != wanted or out.dtype != torch.bfloat16:
        raise ContractError(f"masked_moe must return {wanted} bfloat16, got {_described(out)}")
    return out


def checked_quantized(result: Any, shape: torch.Size, stage: str) -> Quantized:
    """Return a stage's output decoded, or raise ContractError where shape, dtype or physical layout is another.

    Args:
        result: what the stage returned.
        shape: `(l, m, k)` that was quantized.
        stage: name for the message.
    """
    experts, rows, k = shape
    if not isinstance(result, tuple) or len(result) != 2:
        raise ContractError(f"{stage} must return (packed, block_scale), got {_described(result)}")
    packed, scales = result
    wanted, wanted_scales = (rows, k // 2, experts), layouts.expected_scale_shape(experts, rows, k // 16)
    if not isinstance(packed, Tensor) or tuple(packed.shape) != wanted or packed.dtype != torch.uint8:
        raise ContractError(
            f"{stage} must return packed codes {wanted} uint8, logical (m, k/2, l), got {_described(packed)}"
        )
    if not isinstance(scales, Tensor) or tuple(scales.shape) != wanted_scales or scales.element_size() != 1:
        raise ContractError(
            f"{stage} must return block scales {wanted_scales} float8_e4m3fn, logical (32, 4, rm, 4, rk, l), "
            f"got {_described(scales)}"
        )
    for kind, tensor in (("rows", packed), ("scales", scales)):
        if not layouts.canonical(tensor, kind):
            raise ContractError(
                f"{stage}: the {'packed codes' if kind == 'rows' else 'block scales'} lie in memory with strides "
                f"{tensor.stride()}; the GEMM reads raw memory, experts outermost, and ignores strides"
            )
    return Quantized(packed, scales, layouts.codes_of(packed), layouts.block_scales_of(scales, rows, k // 16))


def _described(value: Any) -> str:
    if isinstance(value, Tensor):
        return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')} on {value.device}"
    return type(value).__name__


def device_is_lost(error: BaseException) -> bool:
    """Return whether a CUDA error makes every later call in this process fail, ours included."""
    text = str(error)
    return any(
        word in text for word in ("CUDA error", "device-side assert", "illegal memory access", "cudaError")
    )


@contextmanager
def poisoned_allocations(device: str) -> Iterator[None]:
    """Make every `torch.empty` of the block hold NaN (0xFF in bytes), so that what no kernel writes shows.

    Uses torch.utils.deterministic.fill_uninitialized_memory, which C++ allocations honour as well.
    """
    was = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.use_deterministic_algorithms(mode=True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = True  # type: ignore[attr-defined]
    try:
        yield
        if device == "cuda":
            torch.cuda.synchronize()
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
        torch.use_deterministic_algorithms(was[0], warn_only=was[1])
