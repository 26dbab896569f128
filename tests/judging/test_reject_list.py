"""What must never pass: outputs altered in ways that loose comparisons let through, on every judged stage.

Each case wraps a correct candidate and alters the output of one stage. That stage must be illegal, and the stages before
it, which are judged on their own inputs, must not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.eager import Eager
from harness.candidates.physical import Physical
from harness.identification.measure import measure
from harness.judging.comparison import Comparison
from harness.judging.context import Context, Known
from harness.problems.problem import parse_problem
from harness.problems.rows import Rows
from harness.rules import find_rules
from reference import e2m1, e4m3

CANDIDATES = {"physical": Physical, "eager": Eager}


class Values:
    """How one kind of output is scaled, and what zero and NaN are in it."""

    def __init__(
        self, decode: Callable[[Tensor], Tensor], encode: Callable[[Tensor], Tensor], nan: float | None
    ) -> None:
        self.decode, self.encode, self.nan = decode, encode, nan


KINDS = {
    "codes": Values(e2m1.decode_e2m1, e2m1.encode_e2m1, None),  # a code cannot be NaN
    "scale": Values(e4m3.decode_e4m3, e4m3.encode_e4m3, e4m3.NAN_BYTE),
    "gemm": Values(lambda x: x, lambda x: x, math.nan),
}


def scaled(factor: float) -> Callable[[Tensor, Values, torch.Generator], Tensor]:
    """Return the alteration that multiplies every element and stores it again in the stage's own type."""
    return lambda rows, kind, _: kind.encode(kind.decode(rows).float() * factor).to(rows.dtype)


def noise(rows: Tensor, kind: Values, generator: torch.Generator) -> Tensor:
    """Return numbers with the spread of the output and no relation to it: normal ones, or its own in random order."""
    if rows.dtype.is_floating_point:
        finite = rows.float()[rows.isfinite()]
        return (torch.randn(rows.shape, generator=generator) * finite.std()).to(rows.dtype)
    return rows.flatten()[torch.randperm(rows.numel(), generator=generator)].view_as(rows)


def rows_zeroed(rows: Tensor, kind: Values, generator: torch.Generator) -> Tensor:
    """Zero 22 % of the rows."""
    count = math.ceil(0.22 * len(rows))
    out = rows.clone()
    out[torch.randperm(len(rows), generator=generator)[:count]] = 0
    return out


def one_row_replaced(rows: Tensor, kind: Values, generator: torch.Generator) -> Tensor:
    """Replace one row by another."""
    first, second = torch.randperm(len(rows), generator=generator)[:2].tolist()
    out = rows.clone()
    out[first] = rows[second]
    return out


def nan_written(rows: Tensor, kind: Values, generator: torch.Generator) -> Tensor:
    """Write a single NaN."""
    out = rows.clone()
    place = int(torch.randint(rows.numel(), (), generator=generator))
    out.view(-1)[place] = kind.nan
    return out


ALTERATIONS: dict[str, Callable[[Tensor, Values, torch.Generator], Tensor]] = {
    "zeros": lambda rows, kind, _: torch.zeros_like(rows),
    "x0.5": scaled(0.5),
    "x1.49": scaled(1.49),
    "noise": noise,
    "22 % of rows zeroed": rows_zeroed,
    "one row replaced": one_row_replaced,
    "NaN written": nan_written,
}
STAGES = ("quantize.scale", "quantize.codes", "gemm1", "activation.scale", "activation.codes", "gemm2")
CASES = [
    (stage, name)
    for stage in STAGES
    for name in ALTERATIONS
    if not (stage.endswith("codes") and name == "NaN written")
]


class Altered:
    """A correct candidate, one stage of which returns something else.

    Args:
        base: the correct candidate.
        stage: a name out of STAGES, "gemm", or "layer".
        alter: changes the valid rows of that output, `(rows, columns)`.
    """

    def __init__(
        self, base: Any, stage: str, alter: Callable[[Tensor, Values, torch.Generator], Tensor]
    ) -> None:
        self.base, self.stage, self.alter = base, stage, alter
        self.traits = base.traits
        self.gemms = 0

    def changed(self, kind: str, tensor: Tensor, masked_m: Tensor) -> Tensor:
        """Return a logical `(l, m, columns)` tensor with its valid rows altered."""
        rows = Rows.valid(masked_m.tolist(), tensor.shape[1], tensor.device)
        out = tensor.clone()
        if len(rows):
            generator = torch.Generator().manual_seed(1)
            out[rows.expert, rows.row] = self.alter(rows.take(tensor), KINDS[kind], generator)
        return out

    def quantized(self, name: str, result: tuple[Tensor, Tensor], masked_m: Tensor) -> tuple[Tensor, Tensor]:
        """Alter the codes or the scales of a quantizer's result."""
        packed, scales = result
        if self.stage == f"{name}.codes":
            packed = layouts.operand(self.changed("codes", layouts.codes_of(packed), masked_m))
        if self.stage == f"{name}.scale":
            linear = layouts.block_scales_of(scales, packed.shape[0], packed.shape[1] // 8)
            scales = layouts.scales(self.changed("scale", linear, masked_m))
        return packed, scales

    def quantize_grouped(self, x: Tensor, masked_m: Tensor, gs: Tensor) -> tuple[Tensor, Tensor]:
        return self.quantized("quantize", self.base.quantize_grouped(x, masked_m, gs), masked_m)

    def silu_mul_quantize_grouped(self, x: Tensor, masked_m: Tensor, gs: Tensor) -> tuple[Tensor, Tensor]:
        return self.quantized("activation", self.base.silu_mul_quantize_grouped(x, masked_m, gs), masked_m)

    def masked_grouped_gemm(
        self, a: Tensor, sa: Tensor, b: Tensor, sb: Tensor, out: Tensor, m: Tensor, alpha: Any
    ) -> None:
        self.base.masked_grouped_gemm(a, sa, b, sb, out, m, alpha)
        self.gemms += 1
        if self.stage in {"gemm", f"gemm{self.gemms}"}:
            logical = out.permute(2, 0, 1)
            logical.copy_(self.changed("gemm", logical, m))

    def masked_moe(self, **arguments: Any) -> Tensor:
        out = self.base.masked_moe(**arguments)
        return self.changed("gemm", out, arguments["masked_m"]) if self.stage == "layer" else out


@cache
def known(name: str) -> Known:
    """Return what probing finds about a built-in candidate."""
    return measure(CANDIDATES[name]()).known


def judged(
    rule: str, name: str, problem: str, stage: str, alter: Any, what: Known | None = None
) -> dict[str, Comparison]:
    """Run a rule on an altered candidate; return its comparisons by stage."""
    candidate = Altered(CANDIDATES[name](), stage, alter)
    found = find_rules([rule])[0].function()(Context(candidate, parse_problem(problem), what or known(name)))
    return {comparison.stage: comparison for comparison in found}


PIPELINES = (
    "2x12x128x64:12,5:normal:1",
    "3x9x256x64:2,0,9:grid:2",
    "1x20x128x64:18:normal:3:e2m1_ties+zero_row",
    "4x6x128x96:6,1,0,4:normal:6:magnitude_spread+outlier_block",
)


@pytest.mark.parametrize(("stage", "alteration"), CASES)
@pytest.mark.parametrize("name", CANDIDATES)
def test_an_altered_stage_always_fails_and_only_from_there_on(name: str, stage: str, alteration: str) -> None:
    """PIPELINE: on each problem; measured accumulator, and once with nothing but what is declared."""
    declared = Known.declared(CANDIDATES[name]().traits)
    for problem, what in [*((problem, known(name)) for problem in PIPELINES), (PIPELINES[0], declared)]:
        found = judged("PIPELINE", name, problem, stage, ALTERATIONS[alteration], what)
        assert found[stage].illegal > 0, problem
        assert found[stage].message.startswith(f"{stage}[expert ")
        before = STAGES[: STAGES.index(stage)]
        assert all(found[s].illegal == 0 for s in before), problem


@pytest.mark.parametrize("alteration", ALTERATIONS)
def test_an_altered_gemm_fails_where_only_a_bound_judges(alteration: str) -> None:
    """GEMM-3: at k 2,048 and 7,168 the certificate is gone, and the bound alone rejects."""
    for problem in ("2x12x2048x32:12,5:normal:5", "1x8x7168x32:8:normal:6"):
        assert judged("GEMM", "physical", problem, "gemm", ALTERATIONS[alteration])["gemm"].illegal > 0, (
            problem
        )


@pytest.mark.parametrize(("rule", "stage"), [("QUANT", "quantize"), ("ACT", "activation"), ("GEMM", "gemm")])
@pytest.mark.parametrize("alteration", ALTERATIONS)
@pytest.mark.parametrize("name", CANDIDATES)
def test_an_altered_stage_fails_on_its_own_rule(name: str, rule: str, stage: str, alteration: str) -> None:
    """QUANT, ACT, GEMM: on drawn inputs with traps, for every output type of the GEMM."""
    parts = [stage] if stage == "gemm" else [f"{stage}.scale"]
    if stage != "gemm" and alteration != "NaN written":
        parts.append(f"{stage}.codes")
    options = (
        ("", ":float32_out", ":float16_out", ":no_alpha")
        if stage == "gemm"
        else ("", ":e2m1_ties", ":nan+inf")
    )
    for part in parts:
        for option in options:
            problem = f"3x20x128x64:20,1,6:normal:11{option}"
            assert judged(rule, name, problem, part, ALTERATIONS[alteration])[part].illegal > 0, problem


def test_an_unaltered_candidate_passes_the_same_problems_with_power() -> None:
    """PIPELINE: the wrapper itself is not what fails."""
    for name in CANDIDATES:
        for problem in PIPELINES:
            for comparison in judged("PIPELINE", name, problem, "none", ALTERATIONS["zeros"]).values():
                assert comparison.illegal == 0, comparison.message
                assert not comparison.accepted_altered
                assert sum(comparison.judged.values()) == comparison.compared > 0


LAYERS = tuple(
    f"2x12x{shape}:12,5:{data}:{seed}"
    for shape, data in (("128x64", "normal"), ("256x64", "grid"))
    for seed in range(5)
)


@pytest.mark.parametrize("alteration", ALTERATIONS)
@pytest.mark.parametrize("name", CANDIDATES)
def test_an_altered_layer_never_passes(name: str, alteration: str) -> None:
    """MOE: judged by the propagated bound, it fails, or at least the comparison says that it has no power."""
    failed = 0
    for problem in LAYERS:
        found = judged("MOE", name, problem, "layer", ALTERATIONS[alteration])["layer, propagated"]
        assert found.illegal or found.accepted_altered, problem
        failed += found.illegal > 0
    print(f"layer of {name}, {alteration}: {failed} of {len(LAYERS)} fail")
    assert failed >= 0.9 * len(LAYERS)


@pytest.mark.parametrize("name", CANDIDATES)
def test_one_per_cent_fails_wherever_bit_equality_judges(name: str) -> None:
    """GEMM-2: every element that is not zero."""
    for problem in ("2x20x512x128:20,7:normal:1", "2x20x2048x64:20,7:grid:2", "1x9x7168x64:9:grid:3"):
        found = judged("GEMM", name, problem, "gemm", scaled(1.01))["gemm"]
        right = judged("GEMM", name, problem, "none", scaled(1.01))["gemm"]
        bit_equal = sum(count for word, count in found.judged.items() if word.startswith("bit equality"))
        assert bit_equal == found.compared
        assert right.illegal == 0
        zeros = found.compared - found.illegal
        assert zeros < 0.001 * found.compared


@pytest.mark.parametrize("option", ["", ":float32_out", ":float16_out"])
def test_one_per_cent_fails_on_most_elements_that_a_bound_judges(option: str) -> None:
    """GEMM-3: at k 7,168 with one truncation per 64 products."""
    bound = replace(known("physical"), summation=None)
    problem = f"1x32x7168x128:32:normal:8{option}"
    found = judged("GEMM", "physical", problem, "gemm", scaled(1.01), bound)["gemm"]
    by_bound = sum(count for word, count in found.judged.items() if word.startswith("derived bound"))
    share = found.illegal / found.compared
    print(f"x1.01 at k 7,168{option}: {share:.1%} of {by_bound:,} bound-judged elements are illegal")
    assert by_bound == found.compared
    assert share >= 0.8


@pytest.mark.parametrize("option", ["", ":float32_out", ":float16_out"])
@pytest.mark.parametrize("name", CANDIDATES)
def test_one_per_cent_fails_everywhere_where_the_summation_is_known(name: str, option: str) -> None:
    """GEMM-2: one legal value for every element at k 7,168."""
    found = judged("GEMM", name, f"1x32x7168x128:32:normal:8{option}", "gemm", scaled(1.01))["gemm"]
    assert found.judged[f"one value, predicted: {known(name).summation}"] == found.illegal == found.compared
