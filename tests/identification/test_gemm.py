"""What a GEMM computes is found, named exactly, and nothing outside the family is given a name."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from harness.candidates.controls.catalog import CONTROLS
from harness.candidates.eager import Eager
from harness.candidates.physical import Physical
from harness.identification.gemm import GemmFound, gemm_findings
from reference.epilogue import Epilogue
from reference.matrix_units import matmul
from tests.identification.modes import Known, OfRows, Streams
from tests.identification.summing import Summing


def every(length: int) -> Any:
    """Return a split into parts of one length."""
    return lambda k: tuple(range(length, k, length))


CAST, ROUNDING, PARTIAL, ORDER = "cast", "rounding of the output", "partial sums", "order along k"
HALVES_FROM_1024 = "sm_90 f16; from 1024; parts 2"
# What it is, the points to name and their words, modes of the order, and which points deviate.
NAMED: list[tuple[Any, dict[str, str], tuple[str, ...], set[str]]] = [
    (Eager, {ORDER: "exact"}, (), set()),
    (Physical, {ORDER: "exact 64", CAST: "after alpha", ROUNDING: "to nearest even"}, (), set()),
    (lambda: Known("sm_90 f16"), {ORDER: "sm_90 f16", PARTIAL: "float32"}, (), set()),
    (lambda: Known("sm_80 f16"), {ORDER: "sm_80 f16"}, (), set()),
    (lambda: Known("sm_100 mxf4nvf4"), {ORDER: "sm_100 mxf4nvf4"}, (), set()),
    (lambda: Known("fma"), {ORDER: "fma"}, (), set()),
    (lambda: Known("exact 16"), {ORDER: "exact 16"}, (), set()),
    (lambda: Known("sm_90 f16; parts 2; tile 128"), {ORDER: "sm_90 f16; parts 2; tile 128"}, (), set()),
    (lambda: Known("sm_100 mxf4nvf4; parts 3; last first"), {ORDER: "sm_100 mxf4nvf4; parts 3; last first"}, (), set()),
    (lambda: Known("sm_100 mxf4nvf4; parts 8; pairwise"), {ORDER: "sm_100 mxf4nvf4; parts 8; pairwise"}, (), set()),
    (lambda: Known("sm_90 f16; promote 128"), {ORDER: "sm_90 f16; promote 128"}, (), set()),
    (lambda: Known("sm_90 f16; lanes 2"), {ORDER: "sm_90 f16; lanes 2"}, (), set()),
    (lambda: Known("sm_90 f16; lanes 4"), {ORDER: "sm_90 f16; lanes 4"}, (), set()),
    (lambda: Known("sm_100 mxf4nvf4; length 1024"), {ORDER: "sm_100 mxf4nvf4; length 1024"}, (), set()),
    (lambda: Known(HALVES_FROM_1024), {ORDER: "sm_90 f16"}, ("sm_90 f16; parts 2 from k 1,024 on",), set()),
    (
        lambda: Known("sm_100 mxf4nvf4; from 2048; parts 4"),
        {ORDER: "sm_100 mxf4nvf4"}, ("sm_100 mxf4nvf4; parts 4 from k 2,048 on",), set(),
    ),
    (
        lambda: OfRows("sm_100 mxf4nvf4", "sm_100 mxf4nvf4; parts 4", 32, all_rows=True),
        {ORDER: "sm_100 mxf4nvf4"}, ("sm_100 mxf4nvf4; parts 4 with 192 rows at k 1,024",), set(),
    ),
    (
        lambda: OfRows("sm_100 mxf4nvf4", "sm_100 mxf4nvf4; parts 2", 64),
        {ORDER: "sm_100 mxf4nvf4"},
        ("sm_100 mxf4nvf4; parts 2 with 192 rows at k 1,024 in 2 of 3 tiles of 64 rows",), set(),
    ),
    (
        lambda: Known("sm_100 mxf4nvf4; parts 2; partial bfloat16"),
        {PARTIAL: "bfloat16", ORDER: "sm_100 mxf4nvf4; parts 2; partial bfloat16"}, (), {PARTIAL},
    ),
    (lambda: Known("exact 64; parts 4; partial float16"), {PARTIAL: "float16"}, (), {PARTIAL}),
    (
        lambda: Streams("sm_90 f16; lanes 2", lambda k: every(512 if k < 4096 else 1024)(k)),
        {ORDER: "sm_90 f16; lanes 2", PARTIAL: "bfloat16", CAST: "after alpha"},
        ("sm_90 f16; lanes 2; stream from k 576 on",), {PARTIAL},
    ),
    (
        lambda: Streams("sm_100 mxf4nvf4", lambda k: (k // 128 * 64,) if k >= 1024 else (), out_dtypes=("bfloat16",)),
        {ORDER: "sm_100 mxf4nvf4", PARTIAL: "bfloat16"}, ("sm_100 mxf4nvf4; stream from k 1,024 on",), {PARTIAL},
    ),
    (lambda: Known("exact 64", Epilogue("before alpha")), {CAST: "before alpha", ORDER: "exact 64"}, (), {CAST}),
    (
        lambda: Known("exact", Epilogue("alpha rounded to bfloat16")),
        {CAST: "alpha rounded to bfloat16", ORDER: "exact"}, (), {CAST},
    ),
    (
        lambda: Known("exact", Epilogue("before alpha, alpha rounded to bfloat16")),
        {CAST: "before alpha, alpha rounded to bfloat16"}, (), {CAST},
    ),
    (lambda: Known("exact 32", Epilogue(fused=True)), {"product with alpha": "not rounded before the cast"}, (), set()),
    *(
        (lambda r=rounding: Known("exact 64", Epilogue(rounding=r)), {ROUNDING: rounding, ORDER: "exact 64"}, (), {ROUNDING})
        for rounding in ("toward zero", "away from zero", "to nearest, ties away from zero")
    ),
    (
        lambda: Known("sm_100 mxf4nvf4; parts 2", Epilogue(rounding="toward zero"), out_dtypes=("bfloat16",)),
        {ROUNDING: "toward zero", ORDER: "sm_100 mxf4nvf4; parts 2"}, (), {ROUNDING},
    ),
]  # fmt: skip
FAST = (0, 17, 19, 22, 26)


def found_of(make: Any) -> GemmFound:
    """Return what is found of a candidate that declares nothing of how it adds."""
    candidate = make()
    candidate.traits = replace(candidate.traits, summation="")
    return gemm_findings(candidate)


def is_named(make: Any, wanted: dict[str, str], modes: tuple[str, ...], deviating: set[str]) -> None:
    """Check the words of each point, exactly."""
    found = {finding.point: finding for finding in found_of(make).findings}
    assert {point: found[point].found for point in wanted} == wanted, [*map(str, found.values())]
    assert found[ORDER].modes == modes
    # A candidate of narrow partial sums has no accumulator of its own to be measured.
    assert {point for point, finding in found.items() if finding.deviates} == deviating


@pytest.mark.parametrize("case", [NAMED[i] for i in FAST], ids=FAST)
def test_an_implementation_is_named(case: Any) -> None:
    """A sample of what `make test-all` names."""
    is_named(*case)


@pytest.mark.long
@pytest.mark.parametrize("case", NAMED, ids=range(len(NAMED)))
def test_every_implementation_is_named(case: Any) -> None:
    """All of them, each word for word."""
    is_named(*case)


class Odd(Known):
    """Adds the products of odd k first, then those of even k."""

    def sums(self, expert: int, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sums in float32, product by product."""
        total = torch.zeros(len(a[0]), len(b[0]))
        for k in (*range(1, a[0].shape[1], 2), *range(0, a[0].shape[1], 2)):
            total += a[0][:, k, None].float() * b[0][None, :, k].float()
        return total


class Uneven(Known):
    """Three parts, of 1, 2 and the rest of the tiles, added from the middle."""

    def sums(self, expert: int, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sums."""
        left, right = self.summation.operand(*a), self.summation.operand(*b)
        if left.k < 256:
            return super().sums(expert, a, b)
        ends = ((0, 64), (64, 192), (192, left.k))
        first, second, third = (
            matmul(self.summation.unit, left.along_k(*at), right.along_k(*at)) for at in ends
        )
        return (second + third) + first


class Lanes(Known):
    """Eight accumulators take 16 of k in turn."""

    def sums(self, expert: int, a: tuple[Tensor, Tensor], b: tuple[Tensor, Tensor]) -> Tensor:
        """Return the sums."""
        left, right = self.summation.operand(*a), self.summation.operand(*b)
        lanes = [
            matmul(self.summation.unit, left.turns(lane, 8, 16), right.turns(lane, 8, 16))
            for lane in range(min(8, left.k // 16))
        ]
        return torch.stack(lanes).sum(0)


class Squashes(Known):
    """An epilogue that clamps and adds a little: none of the family."""

    def outputs(self, expert: int, a: Any, b: Any, alpha: Tensor | None, dtype: torch.dtype) -> Tensor:
        """Return what an expert stores."""
        return (self.sums(expert, a, b) * (1.0 if alpha is None else alpha) * 1.0009765625).to(dtype)


OUTSIDE = [
    CONTROLS["reversed_accumulation"],
    CONTROLS["pairwise_tree"],
    CONTROLS["aligned_to_26_bits"],
    lambda: Odd("exact", far=False),
    lambda: Uneven("sm_90 f16", far=False),
    lambda: Lanes("sm_90 f16", far=False),
]


@pytest.mark.parametrize("make", OUTSIDE[1::2])
def test_what_is_outside_the_family_has_no_name(make: Any) -> None:
    """None fits, none is misnamed, and nothing is said to deviate."""
    found = {finding.point: finding for finding in found_of(make).findings}
    assert found[ORDER].found == ""
    assert found[PARTIAL].found in ("", "float32"), "sums that are exact in every order may tell"
    assert str(found[ORDER]) == "masked_grouped_gemm, order along k: not known"
    assert not any(finding.deviates for finding in found.values())


@pytest.mark.long
@pytest.mark.parametrize("make", OUTSIDE)
def test_nothing_outside_the_family_has_a_name(make: Any) -> None:
    """All of them."""
    test_what_is_outside_the_family_has_no_name(make)


def test_an_epilogue_outside_the_family_has_no_name() -> None:
    """The order is still found where float32 outputs show it; here nothing is."""
    found = {finding.point: finding for finding in found_of(lambda: Squashes("exact")).findings}
    assert [found[point].found for point in (CAST, ROUNDING, ORDER)] == ["", "", ""]


def test_what_is_declared_does_not_deviate() -> None:
    """Partial sums of a type, and stream k, by Traits.summation."""
    text = "sm_100 mxf4nvf4; parts 2; partial bfloat16"
    (partial,) = [f for f in gemm_findings(Summing(text, declares=True)).findings if f.point == PARTIAL]
    assert (partial.found, partial.fixed, partial.deviates) == ("bfloat16", "bfloat16", False)
    candidate = Streams(
        "sm_90 f16", every(512), summation="sm_90 f16; stream", place_invariant=False, far=False
    )
    found = {f.point: f for f in gemm_findings(candidate).findings}
    assert not found[PARTIAL].deviates


def test_fewer_bits_than_float32_deviate() -> None:
    """Fourteen, as the control of that name keeps."""
    found = {f.point: f for f in gemm_findings(CONTROLS["accumulator_of_14_bits"]()).findings}
    assert (
        str(found["accumulator"])
        == "masked_grouped_gemm, accumulator: 14 bits; the contract has 24 bits or more"
    )


def test_a_gemm_that_raises_is_not_measured(faulty: Any) -> None:
    """The words say what it raised."""
    found = gemm_findings(faulty.Raises())
    assert all(finding.found == "" for finding in found.findings)
    assert "raised KeyError" in found.notes["summation"]
