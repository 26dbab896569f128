"""How GEMMs are judged: how many elements by bit equality, what the counts say, and when there is no power."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.eager import Eager
from harness.candidates.physical import Physical
from harness.emulation.accumulate import aligned_gemm, blocked_gemm
from harness.identification.accumulator import probe_accumulator
from harness.identification.measure import measure
from harness.judging.comparison import Comparison
from harness.judging.context import Context, Known
from harness.judging.gemm import judge_gemm
from harness.problems.problem import parse_problem
from harness.problems.traps import TRAPS
from harness.rules import find_rules
from reference.bounds import Accumulator
from reference.nvfp4 import decode_blocks, quantize_nvfp4

CANDIDATES = {"physical": Physical, "eager": Eager}
both_candidates = pytest.mark.parametrize("name", CANDIDATES)


@cache
def subject(name: str) -> tuple[Any, Known]:
    candidate = CANDIDATES[name]()
    return candidate, measure(candidate).known


def gemms(name: str, rule: str, problem: str) -> list[Comparison]:
    """Judge as a candidate whose order is not known: of sums that are rounded once nothing is left to the certificate."""
    candidate, known = subject(name)
    known = replace(known, summation=None)
    found = find_rules([rule])[0].function()(Context(candidate, parse_problem(problem), known))
    return [comparison for comparison in found if comparison.stage.startswith("gemm")]


def by_bit_equality(comparison: Comparison) -> int:
    return sum(count for word, count in comparison.judged.items() if word.startswith("bit equality"))


def small_problems(count: int) -> list[str]:
    """Problems with k up to 512 and any trap that does not stretch magnitudes."""
    generator = random.Random(3)
    traps = sorted(trap.name for trap in TRAPS.values() if not trap.stretches)
    found = []
    for seed in range(count):
        hidden, inter = (16 * generator.choice((1, 2, 4, 5, 8, 16, 24, 32)) for _ in range(2))
        if seed % 4 == 0:
            hidden, inter = 512, 512
        extras = generator.sample(traps, generator.choice((0, 1, 2)))
        text = f"2x24x{hidden}x{inter}:{generator.randint(1, 24)},{generator.randint(0, 24)}:normal:{seed}"
        found.append(f"{text}:{'+'.join(extras)}" if extras else text)
    return found


@both_candidates
def test_most_elements_are_judged_by_bit_equality_up_to_k_512(name: str) -> None:
    """GEMM-2: at least 95 % of each GEMM's elements over normal data without traps that stretch magnitudes."""
    judged: dict[str, list[int]] = {}
    for problem in small_problems(24):
        for comparison in [*gemms(name, "GEMM", problem), *gemms(name, "PIPELINE", problem)]:
            equal, total = judged.setdefault(comparison.stage, [0, 0])
            judged[comparison.stage] = [equal + by_bit_equality(comparison), total + comparison.compared]
    for stage, (equal, total) in judged.items():
        print(f"{name} {stage}, k <= 512: {equal / total:.2%} of {total:,} elements by bit equality")
        assert equal >= 0.95 * total
    assert judged.keys() == {"gemm", "gemm1", "gemm2"}


@both_candidates
@pytest.mark.parametrize("k", [2048, 7168])
def test_coarse_grids_carry_bit_equality_to_the_widths_of_real_models(name: str, k: int) -> None:
    """GEMM-2: at least 50 % through data="grid", in the GEMM rule and in both GEMMs of the pipeline."""
    found = [
        *gemms(name, "GEMM", f"1x16x{k}x32:16:grid:1"),
        *gemms(name, "PIPELINE", f"1x8x{k}x32:8:grid:2")[:1],
        *gemms(name, "PIPELINE", f"1x8x32x{k}:8:grid:3")[1:],
    ]
    assert [comparison.stage for comparison in found] == ["gemm", "gemm1", "gemm2"]
    for comparison in found:
        share = by_bit_equality(comparison) / comparison.compared
        print(
            f"{name} {comparison.stage}, k {k}, grid: {share:.2%} of {comparison.compared:,} by bit equality"
        )
        assert share >= 0.5
        assert comparison.illegal == 0


def operands(k: int = 64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return decoded operands of three experts with 4, 0 and 2 of 5 rows valid, alpha, and the right output."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor(600.0)
    a, b = (quantize_nvfp4(torch.randn(3, rows, k, generator=generator).bfloat16(), scale) for rows in (5, 8))
    values, weights = (
        decode_blocks(a.codes, a.block_scale, torch.float32),
        decode_blocks(b.codes, b.block_scale, torch.float32),
    )
    alpha = torch.tensor([0.5, 2.0, 0.003])
    out = (torch.bmm(values, weights.transpose(1, 2)) * alpha.view(-1, 1, 1)).bfloat16()
    out[0, 4:], out[1], out[2, 2:] = torch.nan, torch.nan, torch.nan  # padding is not looked at
    return values, weights, alpha, out


MASKED_M = [4, 0, 2]
MEASURED = Accumulator(24, 64, measured=True)


def test_only_valid_rows_are_compared_and_every_one_is_counted() -> None:
    """GEMM-2: garbage in padding rows of operands and output changes nothing."""
    a, b, alpha, out = operands()
    a[0, 4:], a[1] = torch.nan, 1e30
    found = judge_gemm("gemm", out, a, b, alpha, MASKED_M, MEASURED)
    assert found.illegal == 0, found.message
    assert found.compared == 6 * 8 == sum(found.judged.values())
    assert found.accepted_altered == []


def test_a_failure_names_its_place_extent_and_legal_value() -> None:
    """GEMM-2: expert, row and column of the worst element, and how much is wrong."""
    a, b, alpha, out = operands()
    right = float(out[2, 1, 3])
    out[2, 1, 3] *= 1.5
    out[2, 0, 3] = float(out[2, 0, 3]) * 1.02
    found = judge_gemm("gemm", out, a, b, alpha, MASKED_M, MEASURED)
    assert found.illegal == 2
    assert found.place == {"expert": 2, "row": 1, "col": 3}
    assert found.message.startswith("gemm[expert 2, row 1, col 3] = ")
    assert f"the only legal value is {right:.8g}" in found.message
    assert found.extent == {
        "elements": 2, "of": 48, "rows": 2, "of_rows": 6, "experts": [2], "columns": 1, "of_columns": 8,
    }  # fmt: skip
    assert found.worst_ratio is not None
    assert found.worst_ratio > 1
    assert found.heatmap is not None
    assert found.heatmap.rows == ["0", "1", "2"]  # those without an error too: where it is not says as much
    assert [sum(counts) for counts in found.heatmap.counts] == [0, 0, 2]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_not_a_number_fails_where_a_number_is_right(value: float) -> None:
    """GEMM-1: NaN compares false with everything, which must not read as legal."""
    for accumulator in (MEASURED, Accumulator()):
        a, b, alpha, out = operands()
        out[0, 0, 0] = value
        found = judge_gemm("gemm", out, a, b, alpha, MASKED_M, accumulator)
        assert found.illegal == 1
        assert found.place == {"expert": 0, "row": 0, "col": 0}


def test_a_row_that_must_be_nan_is_judged_as_such() -> None:
    """GEMM-1: a NaN block scale in the operand: numbers there are illegal."""
    a, b, alpha, out = operands()
    a[0, 1, :16] = torch.nan
    found = judge_gemm("gemm", out, a, b, alpha, MASKED_M, MEASURED)
    assert found.illegal == 8
    out[0, 1] = torch.nan
    assert judge_gemm("gemm", out, a, b, alpha, MASKED_M, MEASURED).illegal == 0


def test_zeros_of_either_sign_are_legal_for_an_exact_zero() -> None:
    """GEMM-2: the sign of a sum that cancels depends on the order."""
    a, b, alpha, out = operands()
    a[0, 2] = 0
    out[0, 2] = -0.0
    assert judge_gemm("gemm", out, a, b, alpha, MASKED_M, MEASURED).illegal == 0


def test_comparisons_without_power_say_so() -> None:
    """POWER: where everything is zero, or all rows are equal, an altered copy would pass as well."""
    a, b, alpha, out = operands()
    a.zero_()
    out.zero_()
    found = judge_gemm("gemm", out, a, b, alpha, MASKED_M, MEASURED)
    assert found.accepted_altered == ["zeros", "x0.5", "rolled rows", "one element zeroed"]
    a, b, alpha, out = operands()
    a[:] = a[0, 0].clone()
    b[:] = b[0].clone()
    out = torch.bmm(a, b.transpose(1, 2)).bfloat16()
    found = judge_gemm("gemm", out, a, b, None, MASKED_M, MEASURED)
    assert found.accepted_altered == ["rolled rows"]


def test_power_is_judged_on_every_row() -> None:
    """POWER: twenty rows of zeros before one of numbers: zeros in its place would not pass."""
    a, b, _, _ = operands()
    a = a[:1, :1].repeat(1, 21, 1)
    a[0, :20] = 0
    out = torch.bmm(a, b[:1].transpose(1, 2)).bfloat16()
    found = judge_gemm("gemm", out, a, b[:1], None, [21], MEASURED)
    assert found.illegal == 0
    assert found.accepted_altered == []


def test_one_row_is_rolled_along_its_columns() -> None:
    """POWER: a problem of one row can still have power."""
    a, b, alpha, out = operands()
    found = judge_gemm("gemm", out, a, b, alpha, [1, 0, 0], MEASURED)
    assert found.compared == 8
    assert found.accepted_altered == []


def test_nothing_valid_is_nothing_compared() -> None:
    """MASK: all experts empty."""
    a, b, alpha, out = operands()
    found = judge_gemm("gemm", out, a, b, alpha, [0, 0, 0], MEASURED)
    assert (found.compared, found.illegal, found.judged) == (0, 0, {})


def test_the_record_says_how_elements_were_judged() -> None:
    """GEMM-2, GEMM-3: by which model, measured or assumed; and when the float64 oracle itself rounded."""
    a, b, alpha, out = operands()
    assert MEASURED.describe().startswith("24-bit accumulator (measured), one truncation per 64 products")
    found = judge_gemm("g", out, a, b, alpha, MASKED_M, MEASURED)
    assert list(found.judged) == [f"bit equality: {MEASURED.describe()}"]
    assumed = Accumulator(20, 16)
    assert assumed.describe().startswith("20-bit accumulator (assumed), one truncation per 16 products")
    found = judge_gemm("g", out, a, b, alpha, MASKED_M, assumed)
    assert list(found.judged) == [f"derived bound: {assumed.describe()}"]
    assert found.histogram is not None
    assert sum(found.histogram.counts) == 48


def test_an_accumulator_of_fewer_bits_passes_when_measured_and_fails_when_24_are_claimed() -> None:
    """GEMM-2: why bits are measured and not assumed."""
    a, b, alpha, out = operands(512)
    for expert in range(3):
        out[expert] = (blocked_gemm(a[expert], b[expert], chunk=32, bits=14) * alpha[expert]).bfloat16()
    a, b = a.float(), b.float()
    assert judge_gemm("g", out, a, b, alpha, MASKED_M, Accumulator(14, 32, measured=True)).illegal == 0
    assert judge_gemm("g", out, a, b, alpha, MASKED_M, Accumulator(24, 32, measured=True)).illegal > 0


class Narrow(Physical):
    """`physical` with another accumulator."""

    def __init__(self, chunk: int, bits: int, window: int | None) -> None:
        self.traits = replace(Physical.traits, accumulator_chunk=chunk)
        self.bits, self.window = bits, window

    def masked_grouped_gemm(
        self, a: Tensor, sa: Tensor, b: Tensor, sb: Tensor, out: Tensor, m: Tensor, alpha: Any
    ) -> None:
        columns, chunk = a.shape[1] // 8, self.traits.accumulator_chunk
        x = layouts.codes_of(a), layouts.block_scales_of(sa, a.shape[0], columns)
        w = layouts.codes_of(b), layouts.block_scales_of(sb, b.shape[0], columns)
        for expert in range(a.shape[2]):
            pair = [decode_blocks(codes[expert], scale[expert], torch.float32) for codes, scale in (x, w)]
            if self.window is None:
                out[:, :, expert] = blocked_gemm(*pair, chunk=chunk, bits=self.bits)
            else:
                out[:, :, expert] = aligned_gemm(*pair, chunk=chunk, bits=self.bits, window=self.window)


@pytest.mark.parametrize("bits", [14, 17, 20, 23, 24])
@pytest.mark.parametrize("chunk", [16, 64])
def test_probing_reads_the_bits_that_the_accumulator_keeps(bits: int, chunk: int) -> None:
    """ACC: through the candidate's own GEMM, for truncating accumulators of several widths."""
    found = probe_accumulator(Narrow(chunk, bits, window=None))
    assert found.bits == bits, found.words


@pytest.mark.parametrize("window", [14, 20, 24, 26, 27])
def test_probing_reads_the_bits_that_aligned_terms_keep(window: int) -> None:
    """ACC: what an instruction drops below its largest term; the running sum keeps no more than that."""
    found = probe_accumulator(Narrow(64, 24, window))
    assert found.window == window, found.words
    assert found.bits == min(window, 24), found.words
