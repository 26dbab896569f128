"""What a rule gets: a candidate, what is known about it, a problem's tensors, stage calls that are checked, and judgement."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.errors import text_of
from harness.candidates.protocol import Traits, stages_of, traits_of
from harness.candidates.traits import VARIES
from harness.judging.comparison import Comparison
from harness.judging.contract import Quantized, checked_moe_output, checked_quantized
from harness.judging.gemm import judge_gemm
from harness.judging.lending import Lent
from harness.judging.order_here import asked_again
from harness.judging.predicted import Prediction
from harness.judging.quantize import QuantizerInput, judge_quantized
from harness.problems.layer import LayerProblem
from harness.problems.problem import Problem
from harness.problems.rows import Rows
from harness.problems.sparse import tensors_of
from harness.problems.tensors import ProblemTensors, Weights
from harness.verdict import UsageError
from reference.bounds import Accumulator
from reference.legal import Arithmetic
from reference.matrix_units import Summation
from reference.nvfp4 import decode_blocks, quantize_nvfp4


@dataclass(frozen=True)
class Known:
    """What is known about a candidate besides its code: declared, or measured through it (harness.identification).

    Attributes:
        arithmetic: of its quantizers.
        accumulator: what is measured or assumed of it.
        summation: of its GEMMs, bit for bit.
        unrounded: values of its layer that stay float32, as Traits.unrounded names them.
        activated: type that silu_mul_quantize_grouped quantizes silu(gate) * up in.
    """

    arithmetic: Arithmetic
    accumulator: Accumulator
    summation: Summation | None = None
    unrounded: tuple[str, ...] = ()
    activated: torch.dtype = torch.bfloat16

    @classmethod
    def declared(cls, traits: Traits) -> Known:
        """Return what the traits say, nothing measured."""
        arithmetic = Arithmetic(traits.arithmetic, keeps_subnormals=traits.keeps_subnormals)
        return cls(
            arithmetic,
            Accumulator(chunk=traits.accumulator_chunk),
            declared_summation(traits),
            tuple(traits.unrounded),
            torch.float32 if "hidden" in traits.unrounded else torch.bfloat16,
        )


def declared_summation(traits: Traits) -> Summation | None:
    """Return how a candidate says that its GEMM adds, or None.

    Raises:
        UsageError: the trait names none.
    """
    if traits.summation in ("", VARIES):
        return None
    try:
        return Summation.of(traits.summation)
    except ValueError as error:
        raise UsageError(f"Traits: {error}") from None


@dataclass
class Context:
    """One rule's view of one candidate and one problem.

    Attributes:
        candidate: as it is: for what it says of itself, and for rules that own the tensors which they hand it.
        problem: what it is judged on.
        known: its arithmetic and accumulator.
        traits: what it declares.
    """

    candidate: Any
    problem: Problem
    known: Known
    traits: Traits = field(init=False)

    def __post_init__(self) -> None:
        self.traits = traits_of(self.candidate)

    @property
    def calls(self) -> Any:
        """The candidate's stages; each call gets copies of its inputs, so that a changed one spoils no other judgement."""
        return Lent(self.candidate)

    @property
    def out_dtype(self) -> torch.dtype:
        """One of the declared output types of the GEMM, for rules that call it with a single one: the problem picks."""
        declared = self.traits.out_dtypes
        dtype: torch.dtype = getattr(torch, declared[self.problem.seed // 7 % len(declared)])
        return dtype

    @cached_property
    def tensors(self) -> ProblemTensors:
        """The problem's numbers for the kernels."""
        return tensors_of(self.problem, self.traits.device)

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
        result = self.calls.quantize_grouped(x, masked_m, global_scale_enc)
        return checked_quantized(result, x.shape, "quantize_grouped", self.traits.device)

    def silu_mul_quantize(
        self, gate_up: Tensor, global_scale_enc: Tensor, masked_m: Tensor | None = None
    ) -> Quantized:
        """Call silu_mul_quantize_grouped on `(l, m, 2k)` bfloat16 and check what comes back."""
        masked_m = self.tensors.masked_m if masked_m is None else masked_m
        shape = torch.Size((*gate_up.shape[:2], gate_up.shape[2] // 2))
        result = self.calls.silu_mul_quantize_grouped(gate_up, masked_m, global_scale_enc)
        return checked_quantized(result, shape, "silu_mul_quantize_grouped", self.traits.device)

    def passed_on(self, a: Quantized) -> Quantized:
        """Return a quantizer's output as the next stage gets it: without subnormal scales where it may read them as zero."""
        return a if self.traits.keeps_subnormals else a.without_subnormals()

    def gemm(
        self,
        a: tuple[Tensor, Tensor],
        weights: Weights,
        alpha: Tensor | None,
        *,
        dtype: torch.dtype = torch.bfloat16,
        fill: float = float("nan"),
        b: tuple[Tensor, Tensor] | None = None,
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
            b: replaces the packed weights and their scales (6-D), for rules about layouts and padding.
            masked_m: replaces the problem's own.
            hints: extra keyword arguments.
        """
        experts, n = weights.codes.shape[:2]
        out = layouts.empty_out(experts, a[0].shape[0], n, dtype, self.traits.device, fill)
        self.gemm_into(out, a, weights, alpha, b=b, masked_m=masked_m, hints=hints)
        return out.permute(2, 0, 1)

    def gemm_into(
        self,
        out: Tensor,
        a: tuple[Tensor, Tensor],
        weights: Weights,
        alpha: Tensor | None,
        *,
        b: tuple[Tensor, Tensor] | None = None,
        masked_m: Tensor | None = None,
        hints: dict[str, Any] | None = None,
    ) -> None:
        """Call masked_grouped_gemm on an output of the caller's, logical `(m, n, l)`; arguments as those of `gemm`."""
        masked_m = self.tensors.masked_m if masked_m is None else masked_m
        b = self.weights_operand(weights) if b is None else b
        self.calls.masked_grouped_gemm(*a, *b, out, masked_m, alpha, **(hints or {}))

    def weights_operand(self, weights: Weights, scale_fill: int = 0) -> tuple[Tensor, Tensor]:
        """Return weights as the GEMM takes them: packed, and their scales, the padding holding `scale_fill`."""
        return layouts.operand(weights.codes), layouts.scales(weights.block_scale, scale_fill)

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
        out = self.calls.masked_moe(**self.moe_arguments(hidden_states, masked_m))
        return checked_moe_output(out, self.problem, self.traits.device)

    def reference_operand(self, scale_fill: int = 0) -> tuple[Tensor, Tensor]:
        """Return the tokens quantized by the reference, in the physical layout."""
        quantized = self.reference_quantized()
        return layouts.operand(quantized[0]), layouts.scales(quantized[1], scale_fill)

    def reference_quantized(self) -> tuple[Tensor, Tensor]:
        """Return codes and linear block scales of the tokens, by the reference."""
        quantized = quantize_nvfp4(self.tensors.x, self.tensors.input_scale)
        return quantized.codes, self.tensors.without_some_blocks(quantized.block_scale)

    def judge_gemm(
        self, stage: str, out: Tensor, weights: Weights, alpha: Tensor | None, a: Quantized | None = None
    ) -> Comparison:
        """Judge a GEMM's output on the operand that it was really given.

        Args:
            stage: name for messages and the record.
            out: logical `(l, m, n)`.
            weights: the other operand.
            alpha: `(l,)` float32 or None.
            a: the operand, what a stage before returned; None: the reference's, as `reference_operand` gives it.
        """
        codes, block_scale = self.reference_quantized() if a is None else (a.codes, a.block_scale)
        rows, values = self.rows(), torch.zeros(codes.shape, dtype=torch.float32, device=codes.device)
        values[rows.expert, rows.row] = decode_blocks(rows.take(codes), rows.take(block_scale), torch.float32)
        known, k, prediction = self.known.summation, codes.shape[2], None
        if (summation := known.at(k) if known else None) is not None:
            again = partial(asked_again, self.calls, summation, out, k, alpha, self.tensors.masked_m)
            sides = values, block_scale, weights.values, weights.block_scale
            prediction = Prediction(summation, *sides, None if self.traits.summation else again)
        return judge_gemm(
            stage,
            out,
            values,
            weights.values,
            alpha,
            self.masked_m,
            self.known.accumulator,
            b_steps=weights.steps,
            prediction=prediction,
        )

    def activated(self, gate_up: Tensor) -> QuantizerInput:
        """Return what is quantized of gate and up `(rows, 2n)` bfloat16, rounded as the candidate does it."""
        return QuantizerInput.activated(gate_up, "silu", self.known.activated)

    def judge_quantized(
        self,
        stage: str,
        given: QuantizerInput,
        codes: Tensor,
        block_scale: Tensor,
        global_scale_enc: Tensor,
        rows: Rows,
    ) -> list[Comparison]:
        """Judge what a quantizer stored: scales and codes, two comparisons, empty ones of no rows.

        Args:
            stage: name for messages and the record; ".scale" and ".codes" are added.
            given: what was quantized.
            codes: `(rows, k)` uint8.
            block_scale: `(rows, k/16)` uint8.
            global_scale_enc: `(l,)` float32.
            rows: where the rows come from.
        """
        if not len(rows):
            return [Comparison(f"{stage}.scale"), Comparison(f"{stage}.codes")]
        return judge_quantized(
            stage,
            given,
            codes,
            block_scale,
            global_scale_enc,
            rows,
            self.known.arithmetic,
            keeps_sign_of_zero=self.traits.keeps_sign_of_zero,
        )


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error says that there is not memory enough, on the host or on a GPU."""
    text = text_of(error)
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or (
        isinstance(error, RuntimeError)
        and any(w in text for w in ("can't allocate memory", "not enough memory"))
    )


def device_is_lost(error: BaseException) -> bool:
    """Return whether a CUDA error makes every later call in this process fail, ours included."""
    text = text_of(error)
    return any(
        word in text for word in ("CUDA error", "device-side assert", "illegal memory access", "cudaError")
    )
