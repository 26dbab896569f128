"""Candidates that are wrong at one element of one call, unmistakably: what any check with power notices.

A catalog fault is a mistake that somebody made; a probe is the smallest thing that a check must see, planted call by call
and place by place, so that a part of an output that a check never looks at shows.
"""

from __future__ import annotations

import functools
import inspect
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.protocol import ALL_STAGES, stages_of, traits_of

EVERY_CALL = -1
FAR = 30_000.0  # in bfloat16, float16 and float32; no output of the probing problems comes near
# expert (or rank), row, column: each end of each axis twice, in all combinations of two ends
PLACES = (
    ("first", "first", "first"),
    ("first", "last", "last"),
    ("last", "first", "last"),
    ("last", "last", "first"),
)
_QUANTIZERS = ("quantize_grouped", "silu_mul_quantize_grouped")
_SECOND_OUTPUT = (
    *_QUANTIZERS,
    "route_topk",
    "load_experts",
)  # scales beside codes, weights beside ids, alphas


@dataclass(frozen=True)
class Probe:
    """One mistake in one call.

    Attributes:
        stage: whose call.
        call: number of the call of that stage within the check, from 0, or EVERY_CALL.
        kind: "element" (a code, an output, an expert id, a weight's byte), "scale" (a block scale, a routing weight, an
            alpha), "everything zero", "raises", "input changed".
        place: expert or rank, row, column: "first" or "last" of the valid ones.
    """

    stage: str
    call: int
    kind: str
    place: tuple[str, str, str] = PLACES[0]

    def __str__(self) -> str:
        expert, row, column = self.place
        at = f" at {expert} expert, {row} row, {column} column" if self.kind in {"element", "scale"} else ""
        return f"{self.kind}{at} of {'every call' if self.call == EVERY_CALL else f'call {self.call}'} of {self.stage}"


class Probed:
    """A candidate with one probe, which counts the calls of its stages.

    Args:
        base: the right candidate.
        probe: None for none.
    """

    def __init__(self, base: Any, probe: Probe | None = None) -> None:
        self.base, self.probe = base, probe
        self.traits = traits_of(base)
        self.calls: Counter[str] = Counter()
        self.applied = False

    def __getattr__(self, name: str) -> Any:
        if name == "routed_moe_tapped":
            raise AttributeError(name)  # routed_moe is what is probed
        value = getattr(self.base, name)
        return self._stage(name, value) if name in ALL_STAGES else value

    def _stage(self, stage: str, function: Callable[..., Any]) -> Callable[..., Any]:
        names = list(inspect.signature(function).parameters)

        @functools.wraps(function)
        def call(*arguments: Any, **named: Any) -> Any:
            number = self.calls[stage]
            self.calls[stage] += 1
            probe = self.probe
            if probe is None or probe.stage != stage or probe.call not in {number, EVERY_CALL}:
                return function(*arguments, **named)
            self.applied = True
            if probe.kind == "raises":
                raise RuntimeError("planted: the stage raises")
            result = function(*arguments, **named)
            return _wrong(probe, result, dict(zip(names, arguments, strict=False)) | named)

        return call


def _wrong(probe: Probe, result: Any, given: dict[str, Any]) -> Any:
    """Return a stage's result with the mistake in it."""
    if probe.kind == "input changed":
        next(given[name] for name in ("alpha", "global_scale_enc", "w1_alpha") if name in given)[-1] += 1
        return result
    if probe.stage == "masked_grouped_gemm":
        _spoil(probe, given["out"].permute(2, 0, 1), given["masked_m"])
    elif probe.stage == "masked_moe":
        _spoil(probe, result, given["masked_m"])
    elif probe.stage == "prepare":
        weight = next(value for value in result.values() if isinstance(value, Tensor) and value.ndim == 3)
        _spoil(probe, weight.view(torch.uint8), torch.full((len(weight),), weight.shape[1]))
    elif probe.stage == "routed_moe":
        _spoil(probe, result.unsqueeze(0), torch.tensor([len(result)]))
    elif probe.stage in _QUANTIZERS:
        return _wrong_quantized(probe, result, given["masked_m"])
    else:
        _wrong_around(probe, result)
    return result


def _wrong_quantized(probe: Probe, result: tuple[Tensor, Tensor], masked_m: Tensor) -> tuple[Tensor, Tensor]:
    codes = layouts.codes_of(result[0])
    block_scale = layouts.block_scales_of(result[1], codes.shape[1], codes.shape[2] // 16)
    if probe.kind == "everything zero":
        codes, block_scale = torch.zeros_like(codes), torch.zeros_like(block_scale)
    elif probe.kind == "scale":
        at = _place(probe, block_scale, masked_m)
        byte = int(block_scale[at])
        block_scale[at] = byte - 16 if byte >= 64 else byte + 16  # a quarter, or four times as large
    else:
        at = _place(probe, codes, masked_m)
        code = int(codes[at])
        codes[at] = (code & 8) | (0 if code & 7 > 3 else 7)
    return layouts.operand(codes), layouts.scales(block_scale)


def _wrong_around(probe: Probe, result: Any) -> None:
    """Spoil the result of a stage around the layer, in place."""
    if probe.stage == "route_topk":
        ids, weights = result
        both = (
            (weights,) if probe.kind == "everything zero" else (ids if probe.kind == "element" else weights,)
        )
        one = torch.tensor([len(ids)])
        for tensor in both:
            if probe.kind == "everything zero":
                tensor.zero_()
            elif len(tensor):
                at = _place(probe, tensor.unsqueeze(0), one)[1:]
                tensor[at] = -1 if tensor is ids else float(tensor[at]) * 4 + 1
    elif probe.stage == "combine":
        parts = [part for part in result if len(part)]
        if parts:
            out = parts[0 if probe.place[0] == "first" else -1].unsqueeze(0)
            _spoil(probe, out, torch.tensor([out.shape[1]]))
    elif probe.stage == "dispatch":
        parts = [part for part in result if int(part.masked_m.sum())]
        if parts:
            part = parts[0 if probe.place[0] == "first" else -1]
            _spoil(
                probe, part.x if part.x.dtype == torch.bfloat16 else part.x.view(torch.uint8), part.masked_m
            )
    else:  # load_experts: a byte of the second GEMM's weights, the last alpha
        w2 = result["w2"].view(torch.uint8)
        if probe.kind == "scale":
            result["w2_alpha"][0 if probe.place[0] == "first" else -1] *= 4
        else:
            _spoil(probe, w2, torch.full((len(w2),), w2.shape[1]))


def _spoil(probe: Probe, out: Tensor, masked_m: Tensor) -> None:
    """Spoil an output `(experts, rows, columns)` in place: bytes lose or get their large bits, numbers go far away."""
    if probe.kind == "everything zero":
        out.zero_()
    elif int(masked_m.sum()):
        at = _place(probe, out, masked_m)
        if out.dtype == torch.uint8:
            out[at] = int(out[at]) ^ 0x44
        else:
            out[at] = FAR if float(out[at]) != FAR else 0.0


def _place(probe: Probe, tensor: Tensor, masked_m: Tensor) -> tuple[int, int, int]:
    experts = masked_m.nonzero().flatten().tolist()
    expert = experts[0 if probe.place[0] == "first" else -1]
    row = 0 if probe.place[1] == "first" else int(masked_m[expert]) - 1
    return expert, row, 0 if probe.place[2] == "first" else tensor.shape[-1] - 1


def probes(calls: Counter[str], stages: list[str], *, every_call: bool) -> Iterator[Probe]:
    """Yield every probe for a check that makes these calls.

    Args:
        calls: how often it calls each stage.
        stages: those that it calls, in order.
        every_call: also the same mistake in all calls of a stage, for checks that know the right values.
    """
    for stage in stages:
        kinds = ("element", "scale") if stage in _SECOND_OUTPUT else ("element",)
        numbers = [*range(calls[stage]), *([EVERY_CALL] if every_call else [])]
        for number in numbers:
            yield from (Probe(stage, number, kind, place) for kind in kinds for place in PLACES)
        for kind in ("everything zero", "raises"):
            yield Probe(stage, 0, kind)


def stages_with_calls(base: Any, calls: Counter[str]) -> list[str]:
    """Return the stages that were called, in pipeline order."""
    return [stage for stage in stages_of(base) if calls[stage]]
