"""LOAD's judgement of the encode scales: the convention that they follow is found, and then every scale is held to it."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from harness.judging.comparison import Comparison, compare
from harness.problems.layer import LayerProblem
from harness.problems.rows import Rows
from reference.loading import tensor_name

_ROUNDINGS = 2.0**-23  # a reciprocal in float32 and what it is taken of


def judge_scales(
    layer: LayerProblem, checkpoint: Mapping[str, Tensor], loaded: Mapping[str, Tensor], form: str = ""
) -> list[Comparison]:
    """Judge the encode scales of the tokens and of the intermediate: one for all experts, or each expert's own.

    A scale that several matrices share is that of the largest of their input scales: all that was calibrated fits.

    Args:
        layer: whose experts they are.
        checkpoint: what was loaded.
        loaded: masked_moe's weight arguments.
        form: what is special about the checkpoint, for the names of the comparisons.
    """
    gated = tensor_name(0, "gate", "weight") in checkpoint
    names = {"input_global_scale": ("gate", "up") if gated else ("up",), "a2_global_scale": ("down",)}
    inputs = {name: _inputs(layer, checkpoint, projections) for name, projections in names.items()}
    others = {"input_global_scale": "a2_global_scale", "a2_global_scale": "input_global_scale"}
    return [
        _judge(layer, f"load.{name}{form}", loaded[name], inputs[name], inputs[others[name]])
        for name in names
    ]


def _inputs(
    layer: LayerProblem, checkpoint: Mapping[str, Tensor], projections: tuple[str, ...]
) -> dict[str, Tensor]:
    """Return each projection's input scales `(experts,)` float64."""
    return {
        p: torch.stack(
            [checkpoint[tensor_name(e, p, "input_scale")].double() for e in range(layer.experts)]
        ).cpu()
        for p in projections
    }


def _judge(
    layer: LayerProblem, stage: str, scale: Tensor, inputs: dict[str, Tensor], others: dict[str, Tensor]
) -> Comparison:
    got = scale.double().cpu()
    own = torch.stack(list(inputs.values())).amax(0)
    right = {
        "one scale for all experts": own.max().expand_as(own).reciprocal(),
        "each expert's own scale": own.reciprocal(),
    }
    shared = bool((got == got[0]).all())
    convention = max(right, key=lambda name: int(_close(got, right[name]).sum()) if not shared else 0)
    wanted = right[convention]
    wrong = _wrong_scales(inputs, own, torch.stack(list(others.values())).amax(0))
    reading = next((what for what, values in wrong.items() if bool(_close(got, values).all())), "")
    reading = reading or ("not a number: nothing was written there" if bool(got.isnan().any()) else "")

    def show(r: int, _: int) -> str:
        choices = " or ".join(f"{float(values[r]):.9g} ({name})" for name, values in right.items())
        return (
            f"= {float(got[r]):.9g}, the checkpoint's input scales make it {choices}"
            f"{f'; it is {reading}' if reading else ''}"
        )

    def accepts(values: Tensor) -> bool:
        return bool(_close(values, wanted).all())

    return compare(
        stage,
        _close(got, wanted).unsqueeze(-1),
        Rows.valid([1] * layer.experts, 1, "cpu"),
        judged={convention: got.numel()},
        altered={
            "zeros": lambda: accepts(torch.zeros_like(got)),
            "x0.5": lambda: accepts(got * 0.5),
        },
        show=show,
    )


def _close(got: Tensor, wanted: Tensor) -> Tensor:
    return (got - wanted).abs() <= wanted * _ROUNDINGS


def _wrong_scales(inputs: dict[str, Tensor], own: Tensor, other: Tensor) -> dict[str, Tensor]:
    """Return scales that loaders are known to make instead, by what is wrong with them.

    Args:
        inputs: input scales of each projection, `(experts,)`.
        own: the largest of them of each expert.
        other: those of the other GEMM's input.
    """
    found = {
        "not inverted": own.max().expand_as(own),
        "not inverted, each expert's own": own,
        "that of the smallest input scale of all": own.min().expand_as(own).reciprocal(),
        "that of the other GEMM's input": other.max().expand_as(own).reciprocal(),
        "1: no input scale was read": torch.ones_like(own),
    }
    if len(inputs) > 1:
        for kept, lost in (("up", "gate"), ("gate", "up")):
            said = f"that of {kept}_proj alone: {lost}_proj's input_scale is lost"
            found[said] = inputs[kept].max().expand_as(own).reciprocal()
            found[f"{said}, each expert's own"] = inputs[kept].reciprocal()
    return found
