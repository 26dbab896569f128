"""FP8 tokens and MXFP4 weights in an FP8 unit: weights are scaled into E4M3, and every bit of the unit is demanded."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates import layouts
from harness.candidates.eager import EagerKernels
from harness.candidates.protocol import Traits
from harness.judging.context import Context, Known
from harness.judging.known import narrow_accumulator
from harness.judging.probe_operands import operands
from harness.problems.problem import parse_problem
from harness.problems.tensors import ProblemTensors
from harness.rules import find_rules
from harness.running.judge import Judge
from reference.formats import E4M3_BINADES, FORMATS, in_e4m3
from reference.legal import Arithmetic
from reference.matrix_units import UNITS, KOrder, Operand, Summation, matmul

TOKENS, WEIGHTS = FORMATS["fp8_token"], FORMATS["mxfp4"]
PROBLEMS = ("v2:2x9x256x128:9,4:normal:3", "v2:2x9x256x128:5,9:spread:4", "v2:1x5x512x128:5:normal:6:large")


class OfHopper(EagerKernels):
    """Weights times a power of two of their expert as E4M3, one pass of wgmma, factors of rows and experts in one product.

    Args:
        times: what the first tile is multiplied with.
    """

    def __init__(self, times: float = 1.0) -> None:
        super().__init__(activation_format="fp8_token", weight_format="mxfp4", k_multiple=64)
        self.times = times
        self.traits = Traits(
            device="cpu", activation_format="fp8_token", weight_format="mxfp4", arithmetic="real", accumulator_chunk=32,
            summation="sm_90 f8", k_multiple=64, n_multiple=64, store_rows=1, out_dtypes=("bfloat16",), far=False,
            activations=("silu",), reads_strides=True,
        )  # fmt: skip

    def masked_grouped_gemm(self, *arguments: Any) -> None:
        a, a_scale, b, b_scale, out, masked_m, alpha = arguments
        tokens, weights = layouts.loaded(TOKENS, (a, a_scale)), layouts.loaded(WEIGHTS, (b, b_scale))
        for expert, rows in enumerate(masked_m.tolist()):
            values = WEIGHTS.values(weights.map(lambda t, e=expert: t[e]), torch.float64)
            power = 2.0 ** (int(weights.block_scale[expert].max()) - 127 - 6)
            scaled = (values / power).float().to(torch.float8_e4m3fn).float()
            x = TOKENS.values(tokens.map(lambda t, e=expert, r=rows: t[e, :r]))
            factor = a_scale[expert, :rows] * (torch.tensor(1.0) if alpha is None else alpha[expert])
            sides = Operand.of(x, "e4m3"), Operand.of(scaled, "e4m3")
            stored = self.stored(*sides, factor * power, out.dtype)
            stored[:, :64] = (stored[:, :64].float() * self.times).to(out.dtype)
            out[:rows, :, expert] = stored

    def stored(self, x: Operand, weights: Operand, factor: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what an expert stores, `(rows, n)`, of factors `(rows, 1)`."""
        return (matmul(UNITS["sm_90 f8"], x, weights, KOrder()) * factor).to(dtype)


class InParts(OfHopper):
    """Two or three parts of k, as float32 sums or, as stream k does, stored in the output's type and added to it.

    Args:
        stream: the latter.
        times: what the first tile is multiplied with.
    """

    def __init__(self, *, stream: bool, times: float = 1.0) -> None:
        super().__init__(times)
        self.stream = stream
        summation = "sm_90 f8; stream" if stream else "sm_90 f8"
        self.traits = replace(self.traits, summation=summation, place_invariant=not stream)

    def stored(self, x: Operand, weights: Operand, factor: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what an expert stores."""
        cuts = tuple(range(64, x.k, 128))
        if not self.stream:
            return (matmul(UNITS["sm_90 f8"], x, weights, KOrder(cuts)) * factor).to(dtype)
        first, *others = (
            super(InParts, self).stored(x.along_k(*ends), weights.along_k(*ends), factor, dtype)
            for ends in zip((0, *cuts), (*cuts, x.k), strict=True)
        )
        for other in others:
            first = (first.float() + other.float()).to(dtype)
        return first


def test_the_unit_is_confirmed_and_every_element_has_one_value() -> None:
    judge = Judge(OfHopper(), threads=1)
    assert judge.describe().measured["summation"].startswith("sm_90 f8: gives every bit")
    for problem in PROBLEMS:
        (found,) = judge.judge("GEMM", problem).comparisons
        assert found.illegal == 0, found.message
        assert found.judged == {"one value, predicted: sm_90 f8": found.compared}


def test_a_tile_that_is_off_is_seen() -> None:
    judge = Judge(OfHopper(1.01), threads=1)
    assert judge.judge("GEMM", PROBLEMS[0]).fails


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("later", [False, True])
def test_parts_of_k_are_found_where_rows_have_factors(stream: bool, later: bool) -> None:
    """GEMM-2: the factors belong to every part that is stored. What no cuts give is a fault all the same."""
    text = "sm_90 f8; stream" if stream else "sm_90 f8"
    begins = "stream" if stream else "parts 3"
    summation = Summation.of(f"sm_90 f8; parts 2; from 1024; {begins}" if later else text)
    known = Known(Arithmetic("real"), narrow_accumulator(summation), summation)
    for candidate in (InParts(stream=stream), InParts(stream=stream, times=1.01)):
        for problem in PROBLEMS:
            (found,) = find_rules(["GEMM"])[0].function()(Context(candidate, parse_problem(problem), known))
            if candidate.times != 1:
                assert found.illegal > 0
                continue
            assert found.illegal == 0, found.message
            assert any(
                "parts" in words or "another order" in words for words, count in found.judged.items() if count
            )


class InTurns(OfHopper):
    """Two accumulators that take so many elements of k in turn."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.order = KOrder(lanes=2, width=width)

    def stored(self, x: Operand, weights: Operand, factor: Tensor, dtype: torch.dtype) -> Tensor:
        """Return what an expert stores."""
        return (matmul(UNITS["sm_90 f8"], x, weights, self.order) * factor).to(dtype)


@pytest.mark.parametrize("text", ["sm_90 f8", "sm_90 f8; stream"])
@pytest.mark.parametrize("width", [64, 128])
def test_accumulators_take_64_or_128_of_k_in_turn(text: str, width: int) -> None:
    """Warps that share a block of k take 128 bytes each, or half where the block is as short."""
    summation = Summation.of(text)
    known = Known(Arithmetic("real"), narrow_accumulator(summation), summation)
    for problem in PROBLEMS:
        (found,) = find_rules(["GEMM"])[0].function()(Context(InTurns(width), parse_problem(problem), known))
        assert found.illegal == 0, found.message
        assert any(count for words, count in found.judged.items() if "added in another order" in words)


def test_without_probes_sums_of_the_declared_unit_are_legal() -> None:
    judge = Judge(OfHopper(), threads=1, probe=False)
    assert not any(judge.judge("GEMM", problem).fails for problem in PROBLEMS)


@pytest.mark.parametrize("data", ["normal", "spread"])
def test_weights_have_such_powers_of_two_as_e4m3_holds(data: str) -> None:
    problem = parse_problem(f"v2:3x4x256x128:4,0,2:{data}:1:nan_scales")
    scaled = ProblemTensors(problem, "cpu", "fp8_token", "mxfp4").w1.block_scale
    numbers = scaled.masked_fill(scaled == WEIGHTS.nan_scale, 0)
    least = scaled.amin((1, 2)).int()
    assert bool((numbers.amax((1, 2)).int() - least <= E4M3_BINADES).all())
    assert bool((scaled == WEIGHTS.nan_scale).any())
    as_they_are = ProblemTensors(problem, "cpu", "bf16", "mxfp4").w1.block_scale
    assert bool((as_they_are <= scaled).all())
    assert torch.equal(in_e4m3(as_they_are), scaled)


def test_operands_of_probes_have_too() -> None:
    wide = operands(8, 64, 256, (FORMATS["bf16"], WEIGHTS))[1].block_scale.int()
    held = operands(8, 64, 256, (TOKENS, WEIGHTS))[1].block_scale.int()
    assert int(wide.max() - wide.min()) > E4M3_BINADES
    assert int(held.max() - held.min()) == E4M3_BINADES
