"""Kernels whose fault shows in one kind of call only: one output type, one operand, a slice, a reused buffer, a neighbour.

FAULTS has each with the rule that must fail on it. Every class is `eager` but for its fault.
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any

import torch

from harness.candidates.eager import Eager

FAULTS: dict[str, tuple[str, Any]] = {}


def fails(rule: str, **settings: Any) -> Any:
    """Enter a class into FAULTS, once for every value of a setting if there is one."""

    def enter(kind: Any) -> Any:
        for name, values in settings.items() or [("", (None,))]:
            for value in values:
                made = type(kind.__name__, (kind,), {name: value} if name else {})
                FAULTS[f"{kind.__name__}-{value}" if name else kind.__name__] = rule, made
        return kind

    return enter


def canonical(tensor: Any, order: tuple[int, ...]) -> Any:
    """Read a tensor's memory as if it were contiguous with its axes in that order, whatever its strides say."""
    shape = [tensor.shape[axis] for axis in order]
    size = torch.empty(shape, device="meta").stride()
    return torch.as_strided(tensor, shape, size).permute(*(order.index(axis) for axis in range(len(order))))


class Gemm(Eager):
    """A GEMM with something before it and something after it."""

    def before(self, call: dict[str, Any]) -> None:
        """Change the arguments."""

    def after(self, call: dict[str, Any]) -> None:
        """Change what was written."""

    def masked_grouped_gemm(self, a, a_scale, b, b_scale, out, masked_m, alpha) -> None:
        call = {"a": a, "a_scale": a_scale, "b": b, "b_scale": b_scale}
        call |= {"out": out, "masked_m": masked_m, "alpha": alpha}
        self.before(call)
        super().masked_grouped_gemm(**call)
        self.after(call)


class WithType(Gemm):
    """Goes wrong with one output type."""

    dtype = "float32"

    def after(self, call) -> None:
        if call["out"].dtype is getattr(torch, self.dtype):
            self.wrong(**call)

    def wrong(self, **call: Any) -> None:
        """Do what goes wrong."""


@fails("WRITES", dtype=("bfloat16", "float16", "float32"))
class StoresOneRowMore(WithType):
    def wrong(self, out, masked_m, **_) -> None:
        for expert, rows in enumerate(masked_m.tolist()):
            out[rows : rows + 1, :, expert] = 0


@fails("WRITES", dtype=("float16", "float32"))
class ClearsEmptyExperts(WithType):
    def wrong(self, out, masked_m, **_) -> None:
        out[:1, :, masked_m == 0] = 0


@fails("WRITES", dtype=("float16", "float32"))
class StoresInFrontOfTheOutput(WithType):
    def wrong(self, out, **_) -> None:
        if start := out.storage_offset():
            torch.as_strided(out, (1,), (1,), start - 1).zero_()


@fails("PAD-OUT", dtype=("float16", "float32"))
class AddsToTheOutput(WithType):
    def before(self, call) -> None:
        self.held = call["out"].clone()

    def wrong(self, out, masked_m, **_) -> None:
        for expert, rows in enumerate(masked_m.tolist()):
            out[:rows, :, expert] += self.held[:rows, :, expert]


@fails("PAD-OUT", dtype=("float16", "float32"))
class SkipsTheLastColumn(AddsToTheOutput):
    def wrong(self, out, **_) -> None:
        out[:, -1] = self.held[:, -1]


@fails("INPUTS", dtype=("float16", "float32"))
class HalvesScalesOfA(WithType):
    def wrong(self, a_scale, **_) -> None:
        a_scale.copy_(a_scale.float() / 2)


@fails("INPUTS", dtype=("float16", "float32"))
class CountsDownMaskedM(WithType):
    def wrong(self, masked_m, **_) -> None:
        masked_m.sub_(1)


@fails("INPUTS")
class ClearsQuantizedTokens(Eager):
    def masked_moe(self, hidden_states, *arguments, **named):
        result = super().masked_moe(hidden_states, *arguments, **named)
        if hidden_states[1] is not None:
            hidden_states[0].zero_()
        return result


@fails("INPUTS")
class ScalesTokensInPlace(Eager):
    def quantize_grouped(self, x, masked_m, global_scale_enc):
        result = super().quantize_grouped(x, masked_m, global_scale_enc)
        x.mul_(2)
        return result


@fails("LAYOUT-OUT", multiple=(32, 64))
class RoundsTheAddressDown(Gemm):
    def before(self, call) -> None:
        out = call["out"]
        short = out.data_ptr() % self.multiple // out.element_size()
        if short <= out.storage_offset():
            call["out"] = torch.as_strided(out, out.shape, out.stride(), out.storage_offset() - short)


@fails("LAYOUT-OUT")
class TakesRowsForDense(Gemm):
    def before(self, call) -> None:
        out = call["out"]
        if out.stride(1) == 1:
            call["out"] = torch.as_strided(out, out.shape, (out.shape[1], 1, out.stride(2)))


@fails("LAYOUT-OUT")
class TakesExpertsForDense(Gemm):
    def before(self, call) -> None:
        out = call["out"]
        if out.stride(1) == 1 and out.stride(0) == out.shape[1]:
            call["out"] = torch.as_strided(out, out.shape, (*out.stride()[:2], out.shape[0] * out.shape[1]))


@fails("LAYOUT-OUT", dtype=("bfloat16", "float32"))
class StoresWholeVectors(WithType):
    def wrong(self, out, masked_m, **_) -> None:
        rows, columns, _experts = out.shape
        if out.stride(1) == 1 and out.stride(0) > columns:
            wide = torch.as_strided(out, (rows, columns + 1, out.shape[2]), out.stride())
            for expert, count in enumerate(masked_m.tolist()):
                wide[:count, columns, expert] = 0


_SCALES = (5, 2, 4, 0, 1, 3)


@fails("LAYOUT-IN", operand=("a", "b"))
class MisreadsAnOperand(Gemm):
    def before(self, call) -> None:
        call[self.operand] = canonical(call[self.operand], (2, 0, 1))


@fails("LAYOUT-IN", operand=("a_scale", "b_scale"))
class MisreadsScales(Gemm):
    def before(self, call) -> None:
        call[self.operand] = canonical(call[self.operand], _SCALES)


@fails("LAYOUT-IN", operand=("a", "b"))
class MisreadsAWiderOperand(Gemm):
    def before(self, call) -> None:
        given = call[self.operand]
        if given.stride(1) == 1:
            call[self.operand] = torch.as_strided(given, given.shape, (given.shape[1], 1, given.stride(2)))


@fails("LAYOUT-IN", vector=("alpha", "masked_m"))
class MisreadsAnExpandedVector(Gemm):
    def before(self, call) -> None:
        if call[self.vector] is not None:
            call[self.vector] = canonical(call[self.vector], (0,))


@fails("LAYOUT-IN", stage=("quantize_grouped", "silu_mul_quantize_grouped"))
class MisreadsWhatItQuantizes(Eager):
    part = "x"

    def quantize_grouped(self, x, masked_m, global_scale_enc):
        return super().quantize_grouped(*self.read("quantize_grouped", x, global_scale_enc, masked_m))

    def silu_mul_quantize_grouped(self, gate_up, masked_m, global_scale_enc):
        given = self.read("silu_mul_quantize_grouped", gate_up, global_scale_enc, masked_m)
        return super().silu_mul_quantize_grouped(*given)

    def read(self, stage, x, scale, masked_m):
        if stage == self.stage:
            x, scale = (canonical(x, (0, 1, 2)), scale) if self.part == "x" else (x, canonical(scale, (0,)))
        return x, masked_m, scale


@fails("LAYOUT-IN", stage=("quantize_grouped", "silu_mul_quantize_grouped"))
class MisreadsExpandedEncodeScales(MisreadsWhatItQuantizes):
    part = "scale"


@fails("REPEAT")
class AddsOnTheSecondCall(Gemm):
    last: Any = staticmethod(lambda: None)

    def before(self, call) -> None:
        self.held = call["out"].clone() if AddsOnTheSecondCall.last() is call["out"] else None
        AddsOnTheSecondCall.last = weakref.ref(call["out"])

    def after(self, call) -> None:
        if self.held is not None:
            for expert, rows in enumerate(call["masked_m"].tolist()):
                call["out"][:rows, :, expert] += self.held[:rows, :, expert]


class Remembers(Eager):
    """Keeps what it read from a tensor by the object that it is, and does not look again."""

    def __init__(self) -> None:
        super().__init__()
        self.kept: dict[int, Any] = {}

    def known(self, tensor: Any) -> Any:
        """Return what was in the tensor when it was first seen."""
        if tensor is not None and id(tensor) not in self.kept:
            forget = weakref.finalize(tensor, self.kept.pop, id(tensor), None)
            forget.atexit = False
            self.kept[id(tensor)] = tensor.clone()
        return self.kept.get(id(tensor))


@fails("REPEAT", part=("a", "a_scale", "b", "b_scale", "masked_m", "alpha"))
class RemembersAnOperand(Remembers, Gemm):
    def before(self, call) -> None:
        call[self.part] = self.known(call[self.part])


@fails("REPEAT", place=(0, 1, 2))
class RemembersWhatItQuantized(Remembers):
    def quantize_grouped(self, *given):
        given = [self.known(t) if place == self.place else t for place, t in enumerate(given)]
        return super().quantize_grouped(*given)


@fails("REPEAT", part=("w1", "w1_alpha", "a2_global_scale"))
class RemembersALayersWeights(Remembers):
    def masked_moe(self, **named):
        return super().masked_moe(**named | {self.part: self.known(named[self.part])})


@fails("GEMM", empty=(1, 2, 3))
class LosesARowAfterEmptyExperts(Gemm):
    def after(self, call) -> None:
        for expert in behind(call["masked_m"].tolist(), self.empty):
            call["out"][0, :, expert] = 0


@fails("GEMM", empty=(1, 2, 3))
class LosesARowBeforeEmptyExperts(Gemm):
    def after(self, call) -> None:
        counts = call["masked_m"].tolist()
        for expert in behind(counts[::-1], self.empty):
            call["out"][counts[-1 - expert] - 1, :, -1 - expert] = 0


@fails("QUANT", empty=(1, 2, 3))
class QuantizesANeighbourAfterEmptyExperts(Eager):
    def quantize_grouped(self, x, masked_m, global_scale_enc):
        x = x.clone()
        for expert in behind(masked_m.tolist(), self.empty):
            x[expert, 0] = x[expert - 1, 0]
        return super().quantize_grouped(x, masked_m, global_scale_enc)


@fails("GEMM")
class LosesARowAfterThreeFullExperts(Gemm):
    def after(self, call) -> None:
        counts = call["masked_m"].tolist()
        for expert in range(4, len(counts)):
            if all(counts[expert - 3 : expert + 1]) and not counts[expert - 4]:
                call["out"][0, :, expert] = 0


def behind(counts: list[int], empty: int) -> list[int]:
    """Return the experts with rows that have exactly so many empty ones between themselves and another one with rows."""
    full = [expert for expert, rows in enumerate(counts) if rows]
    return [expert for last, expert in itertools.pairwise(full) if expert - last == empty + 1]


@fails("REPEAT")
class KeepsTheLastAlpha(Gemm):
    last: Any = None

    def before(self, call) -> None:
        if call["alpha"] is None and self.last is not None and len(self.last) == len(call["masked_m"]):
            call["alpha"] = self.last
        self.last = None if call["alpha"] is None else call["alpha"].clone()


@fails("LAYOUT-IN", part=("a", "b"))
class MisreadsASharedOperand(Gemm):
    def before(self, call) -> None:
        if call[self.part].stride(2) == 0:
            call[self.part] = canonical(call[self.part], (2, 0, 1))
