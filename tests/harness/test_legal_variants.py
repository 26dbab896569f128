"""Kernels that do it differently and right: none may be called wrong.

Each variant declares truthfully how many products enter the accumulator between two roundings; everything else is what
real kernels differ in: order of accumulation, split k, truncation or rounding, mode of arithmetic, and what the padding
holds.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from harness import physical
from harness.candidates.eager import Eager
from harness.candidates.physical import Physical
from harness.context import Context, Known
from harness.emulation.accumulate import aligned_gemm, blocked_gemm, truncate
from harness.emulation.quantize import correctly_rounded_rcp, quantize_kernel_order
from harness.probes import measure
from harness.problem import OPTIONS, PLANTED_TRAPS, Problem
from harness.rules import find_rules
from reference.nvfp4 import decode_blocks


@dataclass(frozen=True)
class Habit:
    """What a variant does differently.

    Attributes:
        order: of the products: "forward", "reversed" or "shuffled".
        splits: parts of k that are summed on their own and then added.
        rounding: of the running sum: "truncate" or "nearest".
        chunk: products between two roundings.
        arithmetic: "fast" or "exact" quantization.
        rcp: reciprocals in fast mode: "simulated" or "rounded".
        probed: the judge knows the reciprocals.
        window: bits that an instruction's terms are aligned to, None where a chunk is added exactly.
        garbage: what quantizers leave in rows that they do not write: bytes, or None for 0xFF.
    """

    order: str = "forward"
    splits: int = 1
    rounding: str = "truncate"
    chunk: int = 64
    arithmetic: str = "fast"
    rcp: str = "simulated"
    probed: bool = True
    window: int | None = None
    garbage: int | None = None


class Variant(Physical):
    """`physical` with other habits."""

    def __init__(self, name: str, habit: Habit) -> None:
        self.name, self.habit = name, habit
        self.traits = replace(Physical.traits, accumulator_chunk=habit.chunk, arithmetic=habit.arithmetic)

    def reciprocal(self, x: Tensor) -> Tensor:
        return super().reciprocal(x) if self.habit.rcp == "simulated" else correctly_rounded_rcp(x)

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, gs: Tensor) -> tuple[Tensor, Tensor]:
        experts, rows, k = x.shape
        codes = torch.zeros(experts, rows, k, dtype=torch.uint8)
        block_scale = torch.zeros(experts, rows, k // 16, dtype=torch.uint8)
        fill = 0xFF if self.habit.garbage is None else self.habit.garbage
        packed_fill = torch.full((rows, k), fill & 0xF, dtype=torch.uint8)
        for expert, count in enumerate(masked_m.tolist()):
            got = quantize_kernel_order(
                x[expert, :count],
                gs[expert].expand(count),
                exact=self.habit.arithmetic == "exact",
                rcp=self.reciprocal,
            )
            codes[expert] = packed_fill
            codes[expert, :count], block_scale[expert, :count] = got
            block_scale[expert, count:] = fill
        return physical.operand(codes), physical.scales(block_scale, fill)

    def masked_grouped_gemm(
        self, a: Tensor, sa: Tensor, b: Tensor, sb: Tensor, out: Tensor, m: Tensor, alpha: Any
    ) -> None:
        rows, half_k, _ = a.shape
        columns = half_k // 8
        operands = (physical.codes_of(a), physical.block_scales_of(sa, rows, columns))
        weights = (physical.codes_of(b), physical.block_scales_of(sb, b.shape[0], columns))
        for expert, count in enumerate(m.tolist()):
            # whole tiles are computed and stored, whatever the rows past masked_m hold
            stored = min(-(-count // 128) * 128, rows)
            a_values = decode_blocks(
                operands[0][expert, :stored], operands[1][expert, :stored], torch.float32
            )
            b_values = decode_blocks(weights[0][expert], weights[1][expert], torch.float32)
            product = self.accumulate(a_values, b_values)
            out[:stored, :, expert] = (product if alpha is None else product * alpha[expert]).to(out.dtype)

    def accumulate(self, a: Tensor, b: Tensor) -> Tensor:
        """Return a @ b.T in this variant's order."""
        k = a.shape[1]
        order = torch.arange(k)
        if self.habit.order == "reversed":
            order = order.flip(0)
        if self.habit.order == "shuffled":
            order = torch.randperm(k, generator=torch.Generator().manual_seed(k))
        total = None
        for part in order.chunk(self.habit.splits):
            x, w = a[:, part], b[:, part]
            if self.habit.window is None:
                partial = blocked_gemm(x, w, chunk=self.habit.chunk, rounding=self.habit.rounding).double()
            else:
                partial = aligned_gemm(x, w, chunk=self.habit.chunk, window=self.habit.window).double()
            total = partial if total is None else total + partial
            total = truncate(total) if self.habit.rounding == "truncate" else total.float().double()
        return total.float()


HABITS = {
    "as physical": Habit(),
    "reversed": Habit(order="reversed"),
    "shuffled, rounding": Habit(order="shuffled", rounding="nearest"),
    "split in two": Habit(splits=2),
    "split in five, reversed, rounding": Habit(splits=5, order="reversed", rounding="nearest", chunk=16),
    "chunks of 16": Habit(chunk=16, order="shuffled"),
    "one by one": Habit(chunk=1),
    "chunks of 256": Habit(chunk=256),
    "exact arithmetic": Habit(arithmetic="exact"),
    "rounded reciprocals": Habit(rcp="rounded", garbage=0x7F),
    "reciprocals not probed": Habit(probed=False),
    "rounded reciprocals, not probed": Habit(rcp="rounded", probed=False, garbage=0x12),
    "zeros in padding": Habit(garbage=0),
    "aligned to 26 bits": Habit(window=26),
    "aligned to 24 bits, reversed": Habit(window=24, order="reversed"),
}
CONTROLS = {"eager": Eager, "physical": Physical}
NAMES = (*HABITS, *CONTROLS)


@cache
def subject(name: str) -> tuple[Any, Known]:
    """Return a variant and what is known about it, probed once."""
    if name in CONTROLS:
        candidate = CONTROLS[name]()
        return candidate, measure(candidate).known
    candidate = Variant(name, HABITS[name])
    known = measure(candidate).known
    if not HABITS[name].probed:
        known = replace(known, arithmetic=replace(known.arithmetic, reciprocal=None))
    return candidate, known


def problems(seed: str, count: int) -> Iterator[tuple[str, Problem]]:
    """Yield rules and problems: any shape, capacity and trap."""
    generator = random.Random(seed)
    for index in range(count):
        experts = generator.choice((1, 1, 2, 3))
        capacity = generator.choice((1, 2, 9, 16, 40, 129, 140))
        if capacity > 100:
            experts = 1
        hidden, inter = (16 * generator.choice((1, 2, 3, 4, 5, 8, 12, 16)) for _ in range(2))
        rule = generator.choice(("PIPELINE", "PIPELINE", "MOE", "GEMM", "ACT"))
        data = generator.choice(("normal", "normal", "grid"))
        if index % 16 == 0:  # wide enough for the certificate to end: a bound judges
            hidden, capacity, rule, data = 4096, 4, "GEMM", "normal"
        masked_m = tuple(
            generator.choice((0, 1, capacity, generator.randint(0, capacity))) for _ in range(experts)
        )
        extras = set(generator.sample(sorted(PLANTED_TRAPS), generator.choice((0, 1, 1, 2, 4))))
        if index % 16 == 0:
            masked_m, extras = (capacity,) * experts, extras - {"zero_expert"}
        options = {
            "PIPELINE": ("relu2",),
            "MOE": ("relu2", "prequantized"),
            "GEMM": tuple(OPTIONS)[2:],
            "ACT": (),
        }[rule]
        if options and generator.random() < 0.5:
            extras.add(generator.choice(options))
        seed_of_numbers = generator.randint(0, 99_999)
        yield (
            rule,
            Problem(experts, capacity, hidden, inter, masked_m, data, seed_of_numbers, frozenset(extras)),
        )


def put_garbage_in_padding(context: Context, seed: int) -> None:
    """Fill the padding rows of the inputs with any bits, NaN and infinity among them."""
    generator = torch.Generator().manual_seed(seed)
    padding = torch.arange(context.problem.capacity) >= context.tensors.masked_m.unsqueeze(-1)
    for tensor in (context.tensors.x, context.tensors.gate_up):
        bits = torch.randint(
            -(1 << 15), 1 << 15, tensor[padding].shape, generator=generator, dtype=torch.int16
        )
        tensor[padding] = bits.view(torch.bfloat16)


def judge_many(name: str, count: int, seed: str) -> None:
    """Judge a variant on problems drawn from a seed; no element may be illegal."""
    candidate, known = subject(name)
    judged: dict[str, int] = {}
    for index, (rule, problem) in enumerate(problems(f"{name} {seed}", count)):
        context = Context(candidate, problem, known)
        # a GEMM, and a layer that takes a quantized pair, get the padding as the reference quantizes it
        if index % 2 and "prequantized" not in problem.extras and rule != "GEMM":
            put_garbage_in_padding(context, index)
        for comparison in find_rules([rule])[0].function()(context):
            assert comparison.illegal == 0, f"false alarm: {name}, {rule} on {problem}\n{comparison.message}"
            assert sum(comparison.judged.values()) == comparison.compared
            for word, elements in comparison.judged.items():
                kind = word.split(":")[0]
                judged[kind] = judged.get(kind, 0) + elements
    print(
        f"{name}: {count} problems, " + ", ".join(f"{elements:,} {word}" for word, elements in judged.items())
    )
    assert judged["derived bound"] > 0
    assert judged["bit equality"] > 0


@pytest.mark.parametrize("name", NAMES)
def test_a_right_kernel_is_never_called_wrong(name: str) -> None:
    """GEMM-2, GEMM-3, QUANT-1, QUANT-2, MOE-2: 272 problems over all variants."""
    judge_many(name, 16, "short")


PARTS = 4


@pytest.mark.long
@pytest.mark.parametrize("part", range(PARTS))
@pytest.mark.parametrize("name", NAMES)
def test_a_right_kernel_is_never_called_wrong_on_20000_problems(name: str, part: int) -> None:
    """GEMM-2, GEMM-3, QUANT-1, QUANT-2, MOE-2: the same at length, in parts that workers share."""
    judge_many(name, -(-20_000 // (len(NAMES) * PARTS)), f"part {part}")
