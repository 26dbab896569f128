"""Hypotheses about a whole layer of which only the final output was seen: faults of its stages, planted and composed."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.composition import compose_masked_moe
from harness.candidates.routed import ComposedRoutedMoe
from harness.diagnosis.cases.observation import INNER, MASKED_GEMM
from harness.diagnosis.hypotheses.choices import Choices
from harness.diagnosis.hypotheses.hypothesis import Hypothesis
from harness.faults.fault import Parameters
from harness.faults.mutant import CALLS
from reference.formats import FORMATS, NVFP4, Format
from reference.nvfp4 import BLOCK

Merge = Callable[[str, int, Any, Any], Any]
_OUT = 4  # place of `out` among the GEMM's arguments


class PlantedLayer:
    """A right model with a fault in its stages, everywhere, or in some of the stage calls of a layer only.

    Args:
        model: the model.
        hypothesis: the fault.
        parameters: kept from call to call.
        only: number of the call of the fault's stages that it is planted in; None for all.
        merge: what a planted call of a quantizer results in, given its stage, number, the healthy and the faulty result;
            None: the faulty.
        rows: `(experts, rows or 1)` bool, to which a planted call is kept; None for all.
        healthy: results of a healthy layer's stage calls by number, on the same arguments, used and filled up to the first
            planted call; None to compute them.
    """

    def __init__(
        self,
        model: Any,
        hypothesis: Hypothesis,
        parameters: Parameters,
        only: int | None = None,
        *,
        merge: Merge | None = None,
        rows: Tensor | None = None,
        healthy: dict[int, Any] | None = None,
    ) -> None:
        self.model, self.hypothesis, self.parameters = model, hypothesis, parameters
        self.only, self.merge, self.rows, self.healthy = only, merge, rows, healthy
        self._start()

    def _start(self) -> None:
        self._step, self._count, self._touched = 0, 0, False

    def __getattr__(self, name: str) -> Any:
        function = getattr(self.model, name)
        return self._step_of(name, function) if name in INNER else function

    def _step_of(self, stage: str, given: Callable[..., Any]) -> Callable[..., Any]:
        def call(*positional: Any, **named: Any) -> Any:
            function = partial(given, **named) if named else given
            step, self._step = self._step, self._step + 1
            if stage not in self.hypothesis.fault.stages:
                return self._right(step, stage, function, positional)
            number, self._count = self._count, self._count + 1
            if self.only is not None and number != self.only:
                return self._right(step, stage, function, positional)
            self._touched = True
            if isinstance(self.parameters.random, Choices):
                self.parameters.random.begin(number)
            if self.rows is not None:
                return self._in_rows(self.rows, stage, given, positional, named)
            right = function(*positional) if self.merge is not None else None
            faulty = self._faulty(stage, given, positional, named)
            return faulty if self.merge is None else self.merge(stage, number, right, faulty)

        return call

    def _faulty(
        self, stage: str, function: Callable[..., Any], positional: tuple[Any, ...], named: dict[str, Any]
    ) -> Any:
        """Run a stage call with the fault; return its result."""
        arguments = dict(zip(CALLS[stage].names, positional, strict=False)) | named
        planted = CALLS[stage](stage, function, self.model, arguments)
        self.hypothesis.fault.apply(planted, self.parameters)
        return planted.result()

    def _in_rows(
        self,
        rows: Tensor,
        stage: str,
        function: Callable[..., Any],
        positional: tuple[Any, ...],
        named: dict[str, Any],
    ) -> Any:
        """Run a planted call and a healthy one, and take the chosen rows of the first."""
        if stage != MASKED_GEMM:
            right = function(*positional)
            return quantized_in(
                rows.unsqueeze(-1),
                right,
                self._faulty(stage, function, positional, named),
                FORMATS[self.model.traits.activation_format],
            )
        out = positional[_OUT]
        faulty = out.clone(memory_format=torch.preserve_format)
        function(*positional, **named)
        self._faulty(stage, function, (*positional[:_OUT], faulty, *positional[_OUT + 1 :]), named)
        out.copy_(torch.where(rows.T.unsqueeze(1), faulty, out))
        return None

    def _right(self, step: int, stage: str, function: Callable[..., Any], positional: tuple[Any, ...]) -> Any:
        """Run a healthy stage call, or take its result from an earlier layer on the same arguments."""
        if self._touched or self.healthy is None:
            return function(*positional)
        if stage != MASKED_GEMM:
            if step not in self.healthy:
                self.healthy[step] = function(*positional)
            return self.healthy[step]
        out = positional[_OUT]
        if step in self.healthy:
            out.copy_(self.healthy[step])
        else:
            function(*positional)
            self.healthy[step] = out.clone(memory_format=torch.preserve_format)
        return None

    def masked_moe(self, **arguments: Any) -> Tensor:
        """Return the layer's output, composed of the planted stages."""
        self._start()
        return compose_masked_moe(self, **arguments, unrounded=self.model.unrounded)

    def routed_moe(self, **arguments: Any) -> Tensor:
        """Return a routed layer's output, composed of the planted stages."""
        self._start()
        return ComposedRoutedMoe.routed_moe(self, **arguments)


def faulted_calls(hypothesis: Hypothesis, activation: str) -> int:
    """Return how many stage calls of one layer a fault is planted in."""
    middle = "silu_mul_quantize_grouped" if activation != "relu2" else "quantize_grouped"
    calls = ("quantize_grouped", "masked_grouped_gemm", middle, "masked_grouped_gemm")
    return sum(stage in hypothesis.fault.stages for stage in calls)


def is_second(stage: str, number: int) -> bool:
    """Return whether a quantization is the second one of its layer, given its number among the planted ones."""
    return number == 1 or stage == "silu_mul_quantize_grouped"


def is_inner(hypothesis: Hypothesis) -> bool:
    """Return whether a fault sits in a stage of the layer."""
    return bool(set(hypothesis.fault.stages) & set(INNER))


def quantized_in(mask: Tensor, right: Any, wrong: Any, form: Format = NVFP4) -> Any:
    """Return a quantizer's result with the blocks of a mask `(experts, rows, blocks or 1)` taken from another one."""
    there, here = (layouts.loaded(form, result) for result in (wrong, right))
    block = form.block or BLOCK
    mask = mask.expand(*here.codes.shape[:2], here.codes.shape[2] // block)
    codes = torch.where(mask.repeat_interleave(block, -1), there.codes, here.codes)
    if form.rows:
        row_scale = torch.where(mask.any(-1, keepdim=True), wrong[1], right[1])
        return layouts.elements(form, codes), row_scale
    if not form.scale:
        return layouts.elements(form, codes), None
    block_scale = torch.where(mask, there.block_scale, here.block_scale)
    if not form.swizzled:
        return layouts.elements(form, codes), block_scale
    return layouts.elements(form, codes), layouts.with_block_scale(right[1], block_scale)
