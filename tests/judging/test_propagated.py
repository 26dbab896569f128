"""The propagated bound of an opaque layer: right outputs lie inside, and it still sees ten per cent and a swapped row."""

from __future__ import annotations

import random
from dataclasses import dataclass
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates.controls.catalog import load_control
from harness.candidates.eager import Eager
from harness.candidates.physical import Physical
from harness.identification.measure import measure
from harness.judging.context import Context, Known
from harness.problems.problem import parse_problem
from harness.problems.traps import TRAPS
from harness.rules.layer import judge_opaque
from reference import propagate
from reference.activations import SILU
from reference.bounds import Accumulator, Stores
from reference.intervals import Interval, quantized_values
from reference.legal import Arithmetic
from reference.matrix_units import Summation
from reference.nvfp4 import decode_blocks, quantize_nvfp4

CANDIDATES = {"physical": Physical, "eager": Eager}


@cache
def subject(name: str) -> tuple[Any, Known]:
    candidate = CANDIDATES[name]()
    return candidate, measure(candidate).known


def problems(count: int) -> list[str]:
    """Problems as a run draws them: shapes, data, traps and options."""
    generator = random.Random(8)
    found = []
    for seed in range(count):
        capacity = generator.choice((2, 8, 20, 40))
        hidden, inter = (16 * generator.choice((2, 4, 5, 8, 16)) for _ in range(2))
        masked_m = f"{generator.randint(1, capacity)},{generator.randint(1, capacity)}"
        extras = generator.sample(
            sorted(trap.name for trap in TRAPS.values() if trap.finite and trap.where != "expert"),
            generator.choice((0, 0, 1, 2)),
        )
        extras += generator.choice(([], [], ["relu2"], ["prequantized"]))
        data = generator.choice(("normal", "grid"))
        text = f"2x{capacity}x{hidden}x{inter}:{masked_m}:{data}:{seed}"
        found.append(f"{text}:{'+'.join(extras)}" if extras else text)
    return found


PROBLEMS = problems(60)


@dataclass(frozen=True)
class Layer:
    """A candidate's output of one problem, and a copy of the candidate that returns another."""

    context: Context
    out: Tensor

    def illegal(self, out: Tensor) -> int:
        return judge_opaque(self.context, out).illegal


def layer(name: str, problem: str, known: Known | None = None) -> Layer:
    candidate, measured = subject(name)
    context = Context(candidate, parse_problem(problem), known or measured)
    pair = context.reference_operand() if "prequantized" in context.problem.extras else None
    return Layer(context, context.moe(pair))


def swapped(out: Tensor, masked_m: list[int]) -> Tensor:
    """Swap the first and the last row of the fullest expert, or of two experts where each has a single row."""
    expert = masked_m.index(max(masked_m))
    changed = out.clone()
    if masked_m[expert] > 1:
        changed[expert, [0, masked_m[expert] - 1]] = out[expert, [masked_m[expert] - 1, 0]]
    else:
        changed[[0, 1], 0] = out[[1, 0], 0]
    return changed


@pytest.mark.parametrize("name", CANDIDATES)
def test_right_layers_are_inside_and_ten_per_cent_or_a_swapped_row_are_not(name: str) -> None:
    """MOE-2: no false alarm on any problem; x1.1 and one swapped row are seen on at least 90 % of them."""
    seen = {"x1.1": 0, "one swapped row": 0}
    for problem in PROBLEMS:
        found = layer(name, problem)
        right = judge_opaque(found.context, found.out)
        assert right.illegal == 0, f"{problem}\n{right.message}"
        assert right.compared == found.context.problem.tokens * found.context.problem.hidden
        seen["x1.1"] += found.illegal((found.out * 1.1).bfloat16()) > 0
        seen["one swapped row"] += found.illegal(swapped(found.out, found.context.masked_m)) > 0
    for alteration, count in seen.items():
        print(f"propagated bound, {name}: {alteration} seen on {count} of {len(PROBLEMS)} problems")
        assert count >= 0.9 * len(PROBLEMS)


def test_nothing_measured_is_sound_too() -> None:
    """MOE-2: reciprocals free, accumulator assumed: wider, and the right layer is still inside."""
    candidate, _ = subject("physical")
    seen = 0
    for problem in PROBLEMS[:30]:
        found = layer("physical", problem, Known.declared(candidate.traits))
        assert judge_opaque(found.context, found.out).illegal == 0, problem
        seen += found.illegal((found.out * 1.1).bfloat16()) > 0
    print(f"propagated bound, physical, nothing measured: x1.1 seen on {seen} of 30 problems")
    assert seen >= 27


def test_a_bound_that_sees_nothing_says_so() -> None:
    """MOE-2, POWER: with an accumulator of 6 bits the range accepts x1.1, and the comparison reports it."""
    known = Known(Arithmetic("fast"), Accumulator(6, 1))
    found = layer("physical", "2x8x128x64:8,3:normal:1", known)
    comparison = judge_opaque(found.context, found.out)
    assert comparison.illegal == 0
    assert "x1.1" in comparison.accepted_altered


def test_rows_with_nan_are_expected_to_be_nan() -> None:
    """MOE-2, QUANT-3: a block of nothing but NaN makes its row NaN, and a number there is illegal."""
    for seed in range(3):
        found = layer("physical", f"1x8x64x64:8:normal:{seed}:nan")
        assert found.out[0].isnan().any()
        assert not found.out[0].isnan().all()
        assert found.illegal(found.out) == 0
        assert found.illegal(found.out.nan_to_num(0.0)) > 0
        clean = int((~found.out[0].isnan().any(-1)).nonzero()[0])
        other = found.out.clone()
        other[0, clean, 0] = torch.nan
        assert found.illegal(other) == 1


def test_no_valid_row_is_nothing_compared() -> None:
    """MASK: all experts empty."""
    found = layer("physical", "2x8x64x64:0,0:normal:1")
    assert judge_opaque(found.context, found.out).compared == 0


def interval(rows: int, k: int, seed: int, width: float) -> Interval:
    generator = torch.Generator().manual_seed(seed)
    middle = torch.randn(rows, k, generator=generator)
    reach = torch.rand(rows, k, generator=generator) * width
    return Interval((middle - reach).bfloat16().double(), (middle + reach).bfloat16().double())


def inside(x: Interval, seed: int) -> Tensor:
    """Return a bfloat16 point of the interval, ends included."""
    generator = torch.Generator().manual_seed(seed)
    where = torch.rand(x.low.shape, generator=generator, dtype=torch.float64).round(decimals=1)
    point = (x.low + (x.high - x.low) * where).bfloat16().double()
    return torch.minimum(torch.maximum(point, x.low), x.high)


def assert_holds(range_: Interval, value: Tensor) -> None:
    value = value.double()
    assert ((value >= range_.low) & (value <= range_.high)).all()


@pytest.mark.parametrize("kind", ["real", "exact", "fast"])
@pytest.mark.parametrize("width", [0.0, 0.01, 1.0])
def test_quantized_values_of_every_point_lie_in_the_hull(kind: str, width: float) -> None:
    """MOE-2: intervals across zero included; a point interval gives the legal value itself."""
    from harness.emulation.quantize import quantize_kernel_order

    x, gs = interval(40, 64, 1, width), torch.tensor(777.0)
    hull = quantized_values(x, gs, Arithmetic(kind))
    for seed in range(6):
        point = inside(x, seed).bfloat16()
        if kind == "real":
            q = quantize_nvfp4(point, gs)
            codes, block_scale = q.codes, q.block_scale
        else:
            codes, block_scale = quantize_kernel_order(point, gs.expand(40), exact=kind == "exact")
        assert_holds(hull, decode_blocks(codes, block_scale))
    if width == 0 and kind != "fast":
        assert torch.equal(hull.low, hull.high)


@pytest.mark.parametrize("width", [0.0, 0.05, 2.0])
def test_gemms_and_activations_of_every_point_lie_in_the_range(width: float) -> None:
    """MOE-2: a GEMM with its accumulator, silu with its minimum, relu2."""
    a, b = (
        interval(20, 64, 2, width),
        torch.randn(10, 64, generator=torch.Generator().manual_seed(3)).bfloat16(),
    )
    alpha = torch.tensor(0.37)
    product = propagate.gemm(a, b, alpha, torch.bfloat16, propagate.Added(Accumulator(24, 64)))
    gate_up = interval(50, 32, 4, width)
    wide = Interval(gate_up.low * 4, gate_up.high * 4)
    silu, relu2 = propagate.activated(wide, SILU), propagate.relu2(wide)
    for seed in range(6):
        point = inside(a, seed).float()
        assert_holds(product, (point @ b.float().T * alpha).bfloat16())
        gate, up = inside(wide, seed).chunk(2, -1)
        assert_holds(silu, (gate * torch.sigmoid(gate) * up).bfloat16())
        assert_holds(silu, (gate.float() / (1 + torch.exp(-gate.float())) * up.float()).bfloat16())
        assert_holds(relu2, inside(wide, seed).clamp(min=0).square().bfloat16())


def test_the_minimum_of_silu_is_included() -> None:
    """MOE-2: between the ends of an interval across -1.278 silu is lower than at both."""
    x = Interval(torch.tensor([[-3.0, 1.0]]).double(), torch.tensor([[-0.1, 1.0]]).double())
    assert float(propagate.activated(x, SILU).low) <= -0.278
    assert float(propagate.activated(x, SILU).high) >= -0.05


@pytest.mark.parametrize("kind", ["real", "exact", "fast"])
@pytest.mark.parametrize("width", [0.0, 1.0])
def test_rows_with_scales_of_their_own_have_the_range_that_each_has_alone(kind: str, width: float) -> None:
    x, gs = interval(12, 64, 3, width), torch.logspace(-1, 4, 12).unsqueeze(-1)
    together = quantized_values(x, gs, Arithmetic(kind))
    for row in range(12):
        part = slice(row, row + 1)
        alone = quantized_values(Interval(x.low[part], x.high[part]), gs[row].squeeze(), Arithmetic(kind))
        assert torch.equal(together.low[part], alone.low)
        assert torch.equal(together.high[part], alone.high)


@pytest.mark.parametrize(
    "problem",
    [
        "v2:1x64x240x160:47:grid:65536:scale_saturation+zero_scales",
        "v2:3x191x464x128:129,190,151:grid:358:infinities",
    ],
)
def test_float16_that_overflows_between_the_gemms_is_no_failure(problem: str) -> None:
    """An intermediate that is a number or infinite, as the order of additions has it, says nothing of its row."""
    candidate = load_control("eager_fp16")
    ctx = Context(candidate, parse_problem(problem), measure(candidate).known)
    found = judge_opaque(ctx, ctx.moe())
    assert found.illegal == 0, found.message
    assert found.compared


def test_a_layer_of_nothing_but_nan_is_compared_with_nothing() -> None:
    candidate = load_control("eager_bf16")
    ctx = Context(candidate, parse_problem("v2:1x1x112x384:1:normal:99999:inf"), measure(candidate).known)
    out = ctx.moe()
    assert bool(out.isnan().all())
    assert judge_opaque(ctx, out).compared == 0
    assert judge_opaque(ctx, torch.zeros_like(out)).illegal > 0


@pytest.mark.parametrize("weighted", [False, True])
def test_rows_that_are_known_have_the_exact_sum_rounded_once(weighted: bool) -> None:
    """MOE-2: as the model of exact additions has it, beside rows that are ranges; NaN block scales among the weights."""
    a = quantized_values(interval(20, 64, 5, 0.0), torch.tensor(777.0), Arithmetic("real"))
    low, high = a.low.clone(), a.high.clone()
    high[4, 7] += 1000.0  # as next to a rounding boundary
    a = Interval(low, high, a.scale)
    generator = torch.Generator().manual_seed(6)
    b = torch.randint(-6, 7, (10, 64), generator=generator).float()
    b[2, :16] = torch.nan
    alpha, scale = torch.tensor(0.37), torch.ones(10, 4)
    weight = torch.rand(20, 1, generator=generator) if weighted else None
    given = b, alpha, torch.bfloat16, propagate.Added(Accumulator(24, 1), Summation("exact")), scale, weight
    got = propagate.gemm(a, *given)
    certain = a.certain()
    assert certain.sum() == 19
    sums = a.low[certain] @ b.double().T
    factor = None if weight is None else weight[certain]
    wanted = Stores(Accumulator().epilogue, alpha, torch.bfloat16, factor).range(sums)
    for end, of in zip((got.low, got.high), wanted, strict=True):
        assert torch.equal(end[certain].nan_to_num(7.0), of.double().nan_to_num(7.0))
    numbers = [row for row in range(10) if row != 2]
    assert (got.low[4, numbers] < got.high[4, numbers]).all()
