"""The legal interval of a GEMM: accumulators of every declared kind stay inside, and it is no wider than they need."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.emulation.accumulate import aligned_gemm, blocked_gemm
from reference import certificate
from reference.bounds import Accumulator, epilogue, legal_gemm
from reference.exact_products import BY_NORMS
from reference.nvfp4 import decode_blocks

WIDE = 60  # a window that loses nothing: the emulation adds a chunk exactly
OUTPUTS = [torch.bfloat16, torch.float16, torch.float32]


def operand(rows: int, k: int, seed: int, *, positive: bool = False, spread: int = 12) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    codes = torch.randint(0, 8 if positive else 16, (rows, k), generator=generator, dtype=torch.uint8)
    scale = torch.randint(56 - 4 * spread, 56 + 4 * spread, (rows, k // 16), generator=generator)
    return decode_blocks(codes, scale.to(torch.uint8), torch.float32)


@pytest.mark.parametrize("dtype", OUTPUTS)
@pytest.mark.parametrize("chunk", [1, 16, 64])
@pytest.mark.parametrize("positive", [False, True], ids=["signed", "positive"])
@pytest.mark.parametrize("rounding", ["truncate", "nearest"])
def test_accumulators_of_the_declared_chunk_stay_inside(
    dtype: torch.dtype, chunk: int, positive: bool, rounding: str
) -> None:
    """GEMM-3: magnitudes over 12 binades, so that the certificate refuses; sums of one sign lose at every truncation."""
    k = 16 * chunk
    a, b = operand(20, max(k, 16), 1, positive=positive), operand(16, max(k, 16), 2, positive=positive)
    alpha = torch.tensor(0.00371)
    legal = legal_gemm(a, b, alpha, dtype, Accumulator(24, chunk, measured=True))
    out = (blocked_gemm(a, b, chunk=chunk, rounding=rounding) * alpha).to(dtype)
    assert legal.accepts(out).all()
    assert legal.oracle_exact
    assert (legal.ratio(out) <= 1).all()


@pytest.mark.parametrize("bits", [14, 20, 24])
def test_the_bound_is_reached_within_a_factor_of_three(bits: int) -> None:
    """GEMM-3: sums of one sign, truncated once a chunk, use a good part of it; fewer bits are outside of 24."""
    a, b = operand(30, 4096, 3, positive=True), operand(30, 4096, 4, positive=True)
    legal = legal_gemm(a, b, None, torch.float32, Accumulator(bits, 64, measured=True, window=WIDE))
    out = blocked_gemm(a, b, chunk=64, bits=bits)
    ratio = legal.ratio(out)
    assert legal.accepts(out).all()
    assert ratio.max() > 1 / 4
    if bits < 24:
        claimed = Accumulator(24, 64, measured=True, window=WIDE)
        assert not legal_gemm(a, b, None, torch.float32, claimed).accepts(out).any()


@pytest.mark.parametrize("alpha", [0.37, -0.37])
def test_a_negative_alpha_turns_the_interval_around(alpha: float) -> None:
    """GEMM-3: low stays below high, and a truncating accumulator stays inside."""
    a, b = operand(20, 1024, 3, positive=True), operand(20, 1024, 4, positive=True)
    factor = torch.tensor(alpha)
    legal = legal_gemm(a, b, factor, torch.float32, Accumulator(24, 64, measured=True))
    assert (legal.low < legal.high).all()
    assert legal.accepts(blocked_gemm(a, b) * factor).all()


def test_the_emulated_accumulator_truncates_toward_zero() -> None:
    """GEMM-3: what tensor cores do, for both signs; or rounds to the nearest."""
    a = torch.ones(2, 64)
    a[:, 32:] = 0
    b = torch.zeros(1, 64)
    b[0, 0], b[0, 1] = 1, 1.5 * 2.0**-24
    a[1] *= -1
    assert blocked_gemm(a, b).flatten().tolist() == [1.0, -1.0]
    b[0, 1] = 1.75 * 2.0**-23
    assert blocked_gemm(a, b).flatten().tolist() == [1 + 2.0**-23, -1 - 2.0**-23]
    assert blocked_gemm(a, b, rounding="nearest").flatten().tolist() == [1 + 2.0**-22, -1 - 2.0**-22]
    assert blocked_gemm(a, b, bits=8).flatten().tolist() == [1.0, -1.0]


def test_a_smaller_chunk_than_declared_is_seen() -> None:
    """GEMM-3: truncating at every product although 64 are declared leaves the interval on most elements."""
    a, b = operand(30, 4096, 3, positive=True), operand(30, 4096, 4, positive=True)
    legal = legal_gemm(a, b, None, torch.float32, Accumulator(24, 64, measured=True, window=WIDE))
    assert legal.accepts(blocked_gemm(a, b, chunk=1)).float().mean() < 0.05


def test_bit_equality_needs_a_measured_accumulator_with_enough_bits() -> None:
    """GEMM-2: assumed bits, or fewer than the sums need, leave the interval open."""
    a, b = operand(8, 64, 5, spread=1), operand(8, 64, 6, spread=1)
    for accumulator, equal in (
        (Accumulator(24, 64, measured=True), True),
        (Accumulator(24, 64, measured=False), False),
        (Accumulator(8, 64, measured=True), False),
    ):
        legal = legal_gemm(a, b, None, torch.float32, accumulator)
        assert bool(legal.bit_equal.all()) == equal
        assert bool(legal.bit_equal.any()) == equal
        assert torch.equal(legal.low == legal.high, legal.bit_equal)
    assert Accumulator(53, 64, measured=True).units(64) < Accumulator(24, 64).units(64)


@pytest.mark.parametrize("dtype", OUTPUTS)
@pytest.mark.parametrize("alpha", [None, 1.0, -0.37, 2.0**-20, 0.0])
def test_the_only_legal_value_is_the_rounded_product(dtype: torch.dtype, alpha: float | None) -> None:
    """GEMM-2: under the certificate, for any sign of alpha; the neighbours on both sides are illegal."""
    a, b = operand(8, 64, 5, spread=1), operand(8, 64, 6, spread=1)
    factor = None if alpha is None else torch.tensor(alpha)
    legal = legal_gemm(a, b, factor, dtype, Accumulator(24, 64, measured=True))
    expected = (a.double() @ b.double().T).float()
    expected = (expected if factor is None else expected * factor).to(dtype)
    assert legal.bit_equal.all()
    assert legal.accepts(expected).all()
    for end in (torch.inf, -torch.inf):
        neighbour = torch.nextafter(expected, torch.full_like(expected, end))
        assert not legal.accepts(neighbour).any()
        assert (legal.ratio(neighbour) > 1).all()


def test_the_epilogue_rounds_to_float32_first_and_to_the_output_once() -> None:
    """GEMM-2: 1 + 2^-24 + 2^-40 is 1 + 2^-23 in float32; times 0.5 in float32; then bfloat16."""
    value = torch.tensor([1 + 2.0**-24 + 2.0**-40], dtype=torch.float64)
    assert float(epilogue(value, None, torch.float32)) == 1 + 2.0**-23
    assert float(epilogue(value, torch.tensor(0.5), torch.bfloat16)) == 0.5
    # just above the tie between 1 and 1 + 2^-7 in float64, the tie itself in float32
    above_tie = torch.tensor([1 + 2.0**-8 + 2.0**-40], dtype=torch.float64)
    assert float(epilogue(above_tie, None, torch.bfloat16)) == 1.0
    # 3 (1 + 2^-23) ties upward in float32; 3 (1 + 2^-24 + 2^-40) would not
    assert float(epilogue(value, torch.tensor(3.0), torch.float32)) == 3 + 2.0**-21
    assert epilogue(value * 1e6, None, torch.float16).isinf()


def test_nan_is_legal_exactly_where_the_exact_result_is_nan() -> None:
    """GEMM-1: a NaN block scale makes its rows NaN, and nothing else may be."""
    a, b = operand(3, 64, 7, spread=1), operand(4, 64, 8, spread=1)
    clean = (a.double() @ b.double().T).float()
    a[1, 5] = torch.nan
    legal = legal_gemm(a, b, None, torch.float32, Accumulator(24, 64, measured=True))
    out = clean.clone()
    assert legal.accepts(out).tolist() == [[True] * 4, [False] * 4, [True] * 4]
    out[1] = torch.nan
    assert legal.accepts(out).all()
    out[0, 0] = torch.nan
    assert not legal.accepts(out)[0, 0]


@pytest.mark.parametrize("alpha", [torch.inf, -torch.inf])
@pytest.mark.parametrize("measured", [True, False], ids=["certified", "by bound"])
def test_under_an_infinite_alpha_the_sign_of_the_sum_decides(alpha: float, measured: bool) -> None:
    """GEMM-3: an infinity; NaN where the sum is zero; where the bound leaves the sign open all three, but no number."""
    a, b = operand(8, 64, 5, spread=1), operand(8, 64, 6, spread=1)
    a[:, 32:], b[:, 32:] = a[:, :32], b[:, :32]
    b[0, 32:] *= -1  # a sum of zero
    factor = torch.tensor(alpha)
    exact = (a.double() @ b.double().T).float()
    legal = legal_gemm(a, b, factor, torch.bfloat16, Accumulator(24, 64, measured=measured))
    out = (exact * factor).bfloat16()
    assert (exact[:, 0] == 0).all()
    assert out[:, 0].isnan().all()
    assert legal.accepts(out).all()
    assert not legal.accepts(torch.zeros_like(out)).any()
    assert not legal.accepts(torch.full_like(out, 3e38)).any()
    assert not legal.accepts(-out)[:, 1:].any()
    infinite = torch.full_like(out, torch.inf)
    for value in (infinite, -infinite):
        assert legal.accepts(value)[:, 0].tolist() == [not measured] * 8


def one_large_and_many_small(k: int = 64) -> tuple[Tensor, Tensor]:
    """Return operands whose first product is the largest there is, the others being just too small to be kept beside it."""
    a, b = torch.full((1, k), 1.5 * 2.0**-2), torch.full((1, k), 2.0**-3)
    a[0, :16] = b[0, :16] = 0
    a[0, 0] = b[0, 0] = 6 * 256
    return a, b


@pytest.mark.parametrize("chunk", [16, 64])
@pytest.mark.parametrize("window", [14, 20, 24, 26])
@pytest.mark.parametrize("positive", [False, True], ids=["signed", "positive"])
def test_aligning_accumulators_stay_inside_the_bound_of_their_window(
    chunk: int, window: int, positive: bool
) -> None:
    """GEMM-3: terms that lose their low bits one by one, on data over 12 and over 2 binades and on the worst case."""
    accumulator = Accumulator(min(window, 24), chunk, measured=True, window=window)
    pairs = [one_large_and_many_small(), one_large_and_many_small(256)]
    for spread in (2, 12):
        operands = (operand(10, 512, seed, positive=positive, spread=spread) for seed in (1, 2))
        pairs.append(tuple(operands))
    for a, b in pairs:
        legal = legal_gemm(a, b, None, torch.float32, accumulator)
        out = aligned_gemm(a, b, chunk=chunk, bits=min(window, 24), window=window)
        assert legal.accepts(out).all()


def test_aligned_terms_leave_the_bound_of_a_wider_window() -> None:
    """GEMM-3: one product and 48 that it hides: nine units are lost at once, which no count of truncations covers."""
    a, b = one_large_and_many_small()
    out = aligned_gemm(a, b, window=24)
    for window, inside in ((WIDE, False), (24, True)):
        accumulator = Accumulator(24, 64, measured=True, window=window)
        assert bool(legal_gemm(a, b, None, torch.float32, accumulator).accepts(out)) == inside


def test_bit_equality_is_not_demanded_beyond_the_window() -> None:
    """GEMM-2: 24 bits of running sum are worth nothing where an instruction keeps 8 of its terms."""
    a, b = operand(8, 64, 5, spread=1), operand(8, 64, 6, spread=1)
    legal = legal_gemm(a, b, None, torch.float32, Accumulator(24, 64, measured=True, window=8))
    assert not legal.bit_equal.any()


def test_units_count_truncations_and_alignment() -> None:
    """GEMM-3: one truncation per chunk and two more; each of a chunk's terms and the running sum aligned once."""
    assert Accumulator(24, 64).truncation(7168) == 114 * 2.0**-23
    assert Accumulator(24, 64).truncation(65) == 4 * 2.0**-23
    assert Accumulator(14, 32).truncation(32) == 3 * 2.0**-13
    assert Accumulator(24, 64, window=26).alignment(128) == 2 * 65 * 2.0**-25
    assert Accumulator(24, 1).alignment(128) == 0
    both = Accumulator(24, 64).truncation(640) + Accumulator(24, 64).alignment(640)
    assert Accumulator(24, 64).units(640) == both


def test_no_rows_and_no_columns_are_fine() -> None:
    """GEMM-3: an empty expert."""
    legal = legal_gemm(torch.zeros(0, 32), torch.zeros(4, 32), None, torch.bfloat16, Accumulator())
    assert legal.low.shape == (0, 4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alpha", [None, 0.37, -2.0, torch.inf, torch.nan])
def test_sums_that_are_rounded_once_need_no_model(dtype: torch.dtype, alpha: float | None) -> None:
    """GEMM-2: what the bound and a model of exact additions find together, at once; NaN included."""
    a, b = operand(12, 2048, 5), operand(16, 2048, 6, spread=6)
    b[3, :16] = torch.nan
    factor = None if alpha is None else torch.tensor(alpha)
    accumulator = Accumulator(24, 1, measured=True)
    exact = a.double() @ b.double().T
    model = legal_gemm(a, b, factor, dtype, accumulator, predict=lambda where: exact[where].float())
    once = legal_gemm(a, b, factor, dtype, accumulator, rounded_once=True)
    assert not model.bit_equal.all()
    assert torch.equal(once.exact.nan_to_num(7.0), model.exact.nan_to_num(7.0))
    settled = slice(None) if model.undecided is None else ~model.undecided
    for ends in ("low", "high"):
        assert torch.equal(
            getattr(once, ends)[settled].nan_to_num(7.0), getattr(model, ends)[settled].nan_to_num(7.0)
        )


def test_small_products_are_judged_without_their_sums_of_magnitudes(monkeypatch: pytest.MonkeyPatch) -> None:
    """GEMM-2: norms certify every element, and what comes out is what the sums of magnitudes would have said."""
    a, b = operand(6, 64, 7, spread=1), operand(5, 64, 8, spread=1)
    accumulator = Accumulator(24, 64, measured=True)
    wanted = epilogue(a.double() @ b.double().T, None, torch.bfloat16)
    monkeypatch.setattr(certificate, "magnitude_sums", lambda *_: pytest.fail("asked for the sums"))
    legal = legal_gemm(a, b, None, torch.bfloat16, accumulator)
    assert legal.bit_equal.all()
    assert legal.low is legal.high
    assert torch.equal(legal.low, wanted)
    assert legal.ways == {BY_NORMS: 30}


def test_each_element_has_one_way_of_being_exact() -> None:
    """GEMM-2: also where the bound judges."""
    for k, spread in ((64, 1), (2048, 4), (512, 14)):
        a, b = operand(6, k, 7, spread=spread), operand(5, k, 8, spread=spread)
        legal = legal_gemm(a, b, None, torch.bfloat16, Accumulator(24, 64, measured=True))
        assert sum(legal.ways.values()) == 30
