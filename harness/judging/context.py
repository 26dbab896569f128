"""What a rule gets: a candidate, what is known about it, a problem's tensors, stage calls that are checked, and judgement."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.protocol import Traits, stages_of, traits_of
from harness.judging.comparison import Comparison
from harness.judging.contract import Quantized, checked_moe_output, checked_quantized
from harness.judging.gemm import judge_gemm
from harness.judging.known import Known as Known  # noqa: PLC0414 - a part of the context
from harness.judging.known import declared_summation as declared_summation  # noqa: PLC0414 - likewise
from harness.judging.lending import Lent
from harness.judging.lost import device_is_lost as device_is_lost  # noqa: PLC0414 - a part of the context
from harness.judging.lost import out_of_memory as out_of_memory  # noqa: PLC0414 - likewise
from harness.judging.order_here import asked_again
from harness.judging.predicted import Prediction
from harness.judging.quantize import QuantizerInput, judge_quantized
from harness.judging.scaled import judge_scaled
from harness.judging.unquantized import judge_unquantized
from harness.problems.layer import LayerProblem
from harness.problems.problem import Problem
from harness.problems.routed import RoutedProblem
from harness.problems.rows import Rows
from harness.problems.sparse import tensors_of
from harness.problems.tensors import ProblemTensors
from harness.problems.weights import Weights
from reference.formats import FORMATS, NVFP4, Coded, Format


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
    def activation(self) -> str:
        """The layer's activation on this problem: the one with a gate, or relu2."""
        return "relu2" if self.problem.activation == "relu2" else self.traits.gated

    @property
    def form(self) -> Format:
        """Format of the tokens and the intermediate when they are multiplied."""
        return FORMATS[self.traits.activation_format]

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
        return self.fresh_tensors()

    def fresh_tensors(self) -> ProblemTensors:
        """Return the problem's numbers, made now."""
        t = self.traits
        return tensors_of(self.problem, t.device, *t.formats, t.gated, powers=t.power_scales)

    @cached_property
    def layer(self) -> LayerProblem:
        """The problem's ranks, routes and checkpoint, for the stages around the kernels."""
        return LayerProblem(self.problem, self.traits)

    @cached_property
    def routed(self) -> RoutedProblem:
        """The problem's tokens, routes and experts, for a routed layer."""
        return RoutedProblem(self.problem, self.traits)

    def on(self, routed: RoutedProblem) -> Context:
        """Return the same context with other tokens or routes of a routed layer."""
        other = Context(self.candidate, self.problem, self.known)
        other.__dict__["routed"] = routed
        return other

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

    def encode(self, global_scale_enc: Tensor) -> Tensor:
        """Return encode scales as a stage gets them: ones where the format has none."""
        return global_scale_enc if self.form.encoded else torch.ones_like(global_scale_enc)

    def quantize(self, x: Tensor, global_scale_enc: Tensor, masked_m: Tensor | None = None) -> Quantized:
        """Call quantize_grouped on `(l, m, k)` bfloat16 and check what comes back."""
        masked_m = self.tensors.masked_m if masked_m is None else masked_m
        result = self.calls.quantize_grouped(x, masked_m, self.encode(global_scale_enc))
        return self.checked(result, x.shape, "quantize_grouped")

    def silu_mul_quantize(
        self, gate_up: Tensor, global_scale_enc: Tensor, masked_m: Tensor | None = None
    ) -> Quantized:
        """Call silu_mul_quantize_grouped on `(l, m, 2k)` bfloat16 and check what comes back."""
        masked_m = self.tensors.masked_m if masked_m is None else masked_m
        result = self.calls.silu_mul_quantize_grouped(gate_up, masked_m, self.encode(global_scale_enc))
        shape = torch.Size((*gate_up.shape[:2], gate_up.shape[2] // 2))
        return self.checked(result, shape, "silu_mul_quantize_grouped")

    def checked(self, result: Any, shape: torch.Size, stage: str) -> Quantized:
        """Return what a quantizer returned for `(l, m, k)` values, decoded, or raise ContractError."""
        return checked_quantized(result, shape, stage, self.traits.device, self.form)

    def passed_on(self, a: Quantized) -> Quantized:
        """Return a quantizer's output as the next stage gets it: without subnormal scales where it may read them as zero."""
        return a if self.traits.keeps_subnormals else a.without_subnormals()

    def gemm(
        self,
        a: layouts.Pair,
        weights: Weights,
        alpha: Tensor | None,
        *,
        dtype: torch.dtype | None = None,
        fill: float = float("nan"),
        b: layouts.Pair | None = None,
        masked_m: Tensor | None = None,
        hints: dict[str, Any] | None = None,
    ) -> Tensor:
        """Call masked_grouped_gemm into a buffer filled with `fill`; return it logical `(l, m, n)`.

        Args:
            a: packed operand and scales in the physical layout.
            weights: the other operand.
            alpha: `(l,)` float32 or None.
            dtype: of the output; None for the layer's own.
            fill: what the output holds before the call.
            b: replaces the packed weights and their scales (6-D), for rules about layouts and padding.
            masked_m: replaces the problem's own.
            hints: extra keyword arguments.
        """
        experts, n = weights.codes.shape[:2]
        dtype = dtype or self.tensors.layer_dtype
        out = layouts.empty_out(experts, a[0].shape[0], n, dtype, self.traits.device, fill)
        self.gemm_into(out, a, weights, alpha, b=b, masked_m=masked_m, hints=hints)
        return out.permute(2, 0, 1)

    def gemm_into(
        self,
        out: Tensor,
        a: layouts.Pair,
        weights: Weights,
        alpha: Tensor | None,
        *,
        b: layouts.Pair | None = None,
        masked_m: Tensor | None = None,
        hints: dict[str, Any] | None = None,
    ) -> None:
        """Call masked_grouped_gemm on an output of the caller's, logical `(m, n, l)`; arguments as those of `gemm`."""
        masked_m = self.tensors.masked_m if masked_m is None else masked_m
        b = self.weights_operand(weights) if b is None else b
        self.calls.masked_grouped_gemm(*a, *b, out, masked_m, alpha, **(hints or {}))

    def weights_operand(self, weights: Weights, scale_fill: int = 0) -> layouts.Pair:
        """Return weights as the GEMM takes them: packed, and their scales, the padding holding `scale_fill`."""
        if not scale_fill:
            return weights.operand()
        return layouts.stored(weights.form, Coded(weights.codes, weights.block_scale), scale_fill)

    def moe_arguments(self, hidden_states: layouts.Pair, masked_m: Tensor | None = None) -> dict[str, Any]:
        """Return the keyword arguments of masked_moe for this problem."""
        t = self.tensors
        (w1, w1_blockscale), (w2, w2_blockscale) = t.w1.for_layer(), t.w2.for_layer()
        prequantized = hidden_states[1] is not None
        return {
            "hidden_states": hidden_states,
            "input_global_scale": None if prequantized else self.encode(t.input_scale),
            "w1": w1,
            "w1_blockscale": w1_blockscale,
            "w1_alpha": t.w1_alpha,
            "w2": w2,
            "a2_global_scale": self.encode(t.a2_scale),
            "w2_blockscale": w2_blockscale,
            "w2_alpha": t.w2_alpha,
            "masked_m": t.masked_m if masked_m is None else masked_m,
            "activation": self.activation,
        }

    def moe(self, hidden_states: layouts.Pair | None = None, masked_m: Tensor | None = None) -> Tensor:
        """Call masked_moe and check the output's shape: `(l, m, k)` bfloat16."""
        hidden_states = (self.tensors.x, None) if hidden_states is None else hidden_states
        return self.checked_layer(self.calls.masked_moe(**self.moe_arguments(hidden_states, masked_m)))

    def checked_layer(self, out: Any, problem: Problem | None = None) -> Tensor:
        """Return masked_moe's output for this problem, or another one, or raise ContractError."""
        problem = self.problem if problem is None else problem
        return checked_moe_output(out, problem, self.traits.device, self.tensors.layer_dtype)

    def stored(self, coded: Coded, scale_fill: int = 0) -> layouts.Pair:
        """Return an operand A in the physical layout, the padding of its scales holding `scale_fill`."""
        return layouts.stored(self.form, coded, scale_fill)

    def reference_operand(self, scale_fill: int = 0) -> layouts.Pair:
        """Return the tokens quantized by the reference, in the physical layout."""
        return self.stored(self.reference_quantized(), scale_fill)

    def reference_quantized(self) -> Coded:
        """Return the tokens in the candidate's format, linear, by the reference."""
        quantized = self.form.quantize(self.tensors.x, self.encode(self.tensors.input_scale))
        return replace(quantized, block_scale=self.tensors.without_some_blocks(quantized.block_scale))

    def reference_values(self, dtype: torch.dtype = torch.float64) -> Tensor:
        """Return what `reference_quantized` stands for, `(l, m, k)`."""
        return self.form.values(self.reference_quantized(), dtype)

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
        coded, rows = self.reference_quantized() if a is None else a.coded, self.rows()
        dtype = torch.float64 if self.form.scale == "float32" else torch.float32
        values = torch.zeros(coded.codes.shape, dtype=dtype, device=coded.codes.device)
        values[rows.expert, rows.row] = self.form.values(coded.map(rows.take), dtype)
        known, k, prediction = self.known.summation, coded.codes.shape[2], None
        forms = self.form, weights.form
        told = (
            self.traits.summation or not self.form.rows
        )  # other orders are not asked for under factors of rows
        if told and (summation := known.at(k) if known else None) is not None:
            again = partial(asked_again, self.calls, summation, out, k, alpha, self.tensors.masked_m, forms)
            sides = values, coded.block_scale, weights.values, weights.block_scale
            prediction = Prediction(summation, *sides, None if self.traits.summation else again, forms)
        return judge_gemm(
            stage,
            out,
            values,
            weights.values,
            alpha,
            self.masked_m,
            self.known.accumulator,
            b_steps=weights.steps,
            row_scale=coded.row_scale,
            scaled_in=self.form.block if self.form.scale == "float32" else 0,
            prediction=prediction,
        )

    def activated(self, gate_up: Tensor) -> QuantizerInput:
        """Return what is quantized of gate and up `(rows, 2n)` bfloat16, rounded as the candidate does it."""
        return QuantizerInput.activated(gate_up, self.traits.gated, self._activated_type)

    @property
    def _activated_type(self) -> torch.dtype:
        return self.tensors.layer_dtype if self.form.plain else self.known.activated

    def judge_quantized(
        self,
        stage: str,
        given: QuantizerInput,
        stored: Coded,
        global_scale_enc: Tensor,
        rows: Rows,
        *,
        form: Format | None = None,
    ) -> list[Comparison]:
        """Judge what a quantizer stored: scales and codes, two comparisons, empty ones of no rows; of a format of values one.

        Args:
            stage: name for messages and the record; ".scale" and ".codes" are added.
            given: what was quantized.
            stored: `(rows, k)`.
            global_scale_enc: `(l,)` float32.
            rows: where the rows come from.
            form: of what was stored; None for that of the activations.
        """
        if (form or self.form).plain:
            return [judge_unquantized(stage, given, stored.codes, rows)]
        if not len(rows):
            return [Comparison(f"{stage}.scale"), Comparison(f"{stage}.codes")]
        if (form or self.form) != NVFP4:
            given_scale = self.encode(global_scale_enc).reshape(-1)[rows.expert].unsqueeze(-1)
            sign = self.traits.keeps_sign_of_zero
            return judge_scaled(stage, given, stored, given_scale, rows, self.form, keeps_sign_of_zero=sign)
        return judge_quantized(
            stage,
            given,
            stored.codes,
            stored.block_scale,
            global_scale_enc,
            rows,
            self.known.arithmetic,
            keeps_sign_of_zero=self.traits.keeps_sign_of_zero,
        )
