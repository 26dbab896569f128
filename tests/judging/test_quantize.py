"""How quantizers are judged: scale first, codes given the stored scale, and what the counts and messages say."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from harness.emulation import quantize as kernel
from harness.judging.comparison import Comparison
from harness.judging.quantize import QuantizerInput, judge_quantized
from harness.problems.rows import Rows
from reference import e2m1, e4m3
from reference.legal import Arithmetic
from reference.moe import relu2, silu_mul
from reference.nvfp4 import BLOCK, quantize_nvfp4

PROBED = Arithmetic("fast", kernel.simulated_rcp)
SCALE = torch.tensor([512.0, 300.0])
ROWS = Rows.valid([5, 3], 6, "cpu")


def tokens(seed: int = 1, k: int = 64) -> Tensor:
    return torch.randn(8, k, generator=torch.Generator().manual_seed(seed)).bfloat16()


def stored(x: Tensor, *, exact: bool = False) -> tuple[Tensor, Tensor]:
    """Return what a correct kernel stores for the eight rows."""
    return kernel.quantize_kernel_order(x, SCALE[ROWS.expert], exact=exact)


def judge(
    x: Tensor | QuantizerInput,
    codes: Tensor,
    block_scale: Tensor,
    arithmetic: Arithmetic = PROBED,
    **options: bool,
) -> tuple[Comparison, Comparison]:
    given = x if isinstance(x, QuantizerInput) else QuantizerInput.known(x)
    scales, judged = judge_quantized("q", given, codes, block_scale, SCALE, ROWS, arithmetic, **options)
    for comparison in (scales, judged):
        assert sum(comparison.judged.values()) == comparison.compared
    return scales, judged


@pytest.mark.parametrize(
    "arithmetic",
    [PROBED, Arithmetic("fast"), Arithmetic("exact"), Arithmetic("real")],
    ids=Arithmetic.describe,
)
def test_a_correct_quantizer_passes_with_power(arithmetic: Arithmetic) -> None:
    """QUANT-1, QUANT-2: every element counted, altered copies refused."""
    x = tokens()
    if arithmetic.kind == "real":
        parts = [quantize_nvfp4(x[i : i + 1], SCALE[ROWS.expert[i]]) for i in range(8)]
        codes, block_scale = torch.cat([p.codes for p in parts]), torch.cat([p.block_scale for p in parts])
    else:
        codes, block_scale = stored(x, exact=arithmetic.kind == "exact")
    for comparison, count in zip(judge(x, codes, block_scale, arithmetic), (32, 512), strict=True):
        assert comparison.illegal == 0, comparison.message
        assert comparison.compared == count
        assert comparison.accepted_altered == []


def test_a_wrong_scale_is_named_and_codes_are_judged_given_it() -> None:
    """QUANT-1, QUANT-2: doubling a scale is one illegal byte; codes quantized with it stay legal."""
    x = tokens()
    codes, block_scale = stored(x)
    block_scale[6, 2] += 8
    factor = kernel.fast_factor(
        e4m3.decode_e4m3(block_scale[6:7]), SCALE[1].view(1, 1), torch.ones(1, 4), kernel.simulated_rcp
    )
    codes[6] = e2m1.encode_e2m1(x[6].float() * factor.repeat_interleave(BLOCK))
    scales, judged = judge(x, codes, block_scale)
    assert (scales.illegal, judged.illegal) == (1, 0)
    assert scales.place == {"expert": 1, "row": 1, "block": 2}
    assert scales.message.startswith("q.scale[expert 1, row 1, block 2] = 0x")
    assert "legal is 0x" in scales.message
    assert scales.extent["experts"] == [1]


def test_a_wrong_code_is_named_with_the_numbers_behind_it() -> None:
    """QUANT-2: place, stored and legal value, and the quotient."""
    x = tokens()
    codes, block_scale = stored(x)
    right = codes[2, 17].clone()
    codes[2, 17] = right ^ 1
    scales, judged = judge(x, codes, block_scale)
    assert (scales.illegal, judged.illegal) == (0, 1)
    assert judged.place == {"expert": 0, "row": 2, "col": 17}
    assert f"(code {int(right ^ 1)}), legal is " in judged.message
    assert "/ stored block scale" in judged.message


def test_a_flipped_sign_is_illegal_and_that_of_zero_where_it_is_kept() -> None:
    """QUANT-2: -0.0 is 0b1000 for the hardware; a candidate may declare otherwise."""
    x = tokens()
    x[0, :4] = torch.tensor([0.0, -0.0, 1e-4, -1e-4])  # the small ones round to zero as well
    codes, block_scale = stored(x)
    assert codes[0, :4].tolist() == [0, 8, 0, 8]
    for column in range(4):
        flipped = codes.clone()
        flipped[0, column] ^= 8
        assert judge(x, flipped, block_scale)[1].illegal == 1
        assert judge(x, flipped, block_scale, keeps_sign_of_zero=False)[1].illegal == 0
    large = int(x[1].float().abs().argmax())
    codes[1, large] ^= 8
    assert judge(x, codes, block_scale, keeps_sign_of_zero=False)[1].illegal == 1


def test_nan_must_be_stored_as_plus_six_and_leave_its_block_alone() -> None:
    """QUANT-3: code 7 whatever the NaN's sign; the message says why."""
    x = tokens()
    x[3, 5], x[3, 6] = torch.nan, -torch.nan
    codes, block_scale = stored(x)
    assert codes[3, 5:7].tolist() == [7, 7]
    assert [c.illegal for c in judge(x, codes, block_scale)] == [0, 0]
    codes[3, 6] = 15
    judged = judge(x, codes, block_scale)[1]
    assert judged.illegal == 1
    assert "the input is NaN, which is stored as code 7 (+6)" in judged.message


def test_blocks_whose_scale_is_zero_or_nan_take_any_code_and_are_counted_so() -> None:
    """QUANT-3: they decode to zero or NaN; their scale is judged nevertheless."""
    x = tokens()
    x[0, :16], x[1, :16], x[2, 16:32] = 0.0, torch.nan, 1e-9
    codes, block_scale = stored(x)
    assert block_scale[0, 0] == 0
    assert block_scale[1, 0] == e4m3.NAN_BYTE
    assert block_scale[2, 1] == 0
    codes[0, :16], codes[1, :16], codes[2, 16:32] = 5, 3, 9
    scales, judged = judge(x, codes, block_scale)
    assert (scales.illegal, judged.illegal) == (0, 0)
    assert judged.judged["any code: the stored scale is zero or NaN"] == 48
    for row, wrong in ((0, 1), (1, 0), (2, e4m3.NAN_BYTE)):
        other = block_scale.clone()
        other[row, 1 if row == 2 else 0] = wrong
        assert judge(x, codes, other)[0].illegal == 1


def test_codes_under_a_scale_that_rounds_to_zero_may_saturate_or_be_zero() -> None:
    """QUANT-3: FlashInfer's CUDA kernel stores +-6 up to 0.7.2.post1 and +-0 since 0.7.4; both decode to zero."""
    x = tokens()
    x[:, 16:32] *= 2.0**-40
    codes, block_scale = stored(x)
    assert (block_scale[:, 1] == 0).all()
    assert ((codes[:, 16:32] & 7) == 7).all()
    zeros = codes.clone()
    zeros[:, 16:32] &= 8
    for either in (codes, zeros):
        assert [comparison.illegal for comparison in judge(x, either, block_scale)] == [0, 0]


@pytest.mark.parametrize("code", [16, 0x77, 0xFF])
def test_a_value_that_is_no_code_is_illegal_even_where_any_code_would_do(code: int) -> None:
    """QUANT-2: unpacked wrongly, for example."""
    x = tokens()
    x[0, :16] = 0
    codes, block_scale = stored(x)
    codes[0, 3], codes[4, 20] = code, code
    assert judge(x, codes, block_scale)[1].illegal == 2


def test_two_legal_codes_are_counted_as_not_observable() -> None:
    """QUANT-2: ties at a power-of-two scale, reciprocals free; with the probe there is one."""
    x = torch.zeros(8, 16).bfloat16()
    x[:] = torch.tensor([6.0, *e2m1.MIDPOINTS, *(-m for m in e2m1.MIDPOINTS), 0.0]) / 64
    codes, block_scale = kernel.quantize_kernel_order(x, torch.full((8,), 64.0))
    given = QuantizerInput.known(x)
    rows = Rows.valid([8], 8, "cpu")
    free = judge_quantized("q", given, codes, block_scale, torch.tensor([64.0]), rows, Arithmetic("fast"))[1]
    probed = judge_quantized("q", given, codes, block_scale, torch.tensor([64.0]), rows, PROBED)[1]
    assert (free.illegal, probed.illegal) == (0, 0)
    word = "two legal codes, tie rule not observable here: fast arithmetic, reciprocals free by 1 unit"
    assert free.judged[word] == 8 * 14
    assert set(probed.judged) == {"one legal code: fast arithmetic, reciprocals probed"}


def test_a_comparison_of_zeros_has_no_power() -> None:
    """POWER: a tensor of zeros, and rows that are all the same."""
    x = torch.zeros(8, 32).bfloat16()
    scales, judged = judge(x, *stored(x))
    assert scales.accepted_altered == ["zeros", "x0.5", "rolled rows", "one element zeroed"]
    assert judged.accepted_altered == ["zeros", "x0.5", "rolled rows", "one element zeroed"]
    x[:] = tokens(k=32)[0]
    rows = Rows.valid([8], 8, "cpu")
    codes, block_scale = kernel.quantize_kernel_order(x, torch.full((8,), 512.0))
    found = judge_quantized(
        "q", QuantizerInput.known(x), codes, block_scale, torch.tensor([512.0]), rows, PROBED
    )
    assert [comparison.accepted_altered for comparison in found] == [["rolled rows"], ["rolled rows"]]


def test_every_code_in_the_legal_range_and_none_outside_is_accepted() -> None:
    """QUANT-2: sixteen codes for one element."""
    x = tokens()
    codes, block_scale = stored(x)
    accepted = []
    for code in range(16):
        other = codes.clone()
        other[7, 9] = code
        if judge(x, other, block_scale)[1].illegal == 0:
            accepted.append(code)
    assert accepted == [int(codes[7, 9])]


def gate_up(rows: int = 400) -> Tensor:
    """Return gates from -100 to 100 and ups over many magnitudes, `(rows, 2 * 16)` bfloat16."""
    generator = torch.Generator().manual_seed(5)
    gate = torch.randn(rows, 16, generator=generator) * torch.exp2(
        torch.randint(-6, 6, (rows, 1), generator=generator)
    )
    gate[0], gate[1], gate[2] = torch.linspace(-100, 100, 16), 0.0, -0.0
    up = torch.randn(rows, 16, generator=generator) * torch.exp2(
        torch.randint(-20, 20, (rows, 1), generator=generator)
    )
    return torch.cat((gate, up), -1).bfloat16()


def exp2_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu as __expf computes it: 2^(x log2 e), product and exponential in float32."""
    return gate / (1 + torch.exp2(-gate * 1.4426950408889634)) * up


def reciprocal_silu(gate: Tensor, up: Tensor) -> Tensor:
    """silu with an approximate reciprocal instead of a division."""
    return gate * kernel.simulated_rcp(1 + torch.exp(-gate)) * up


def other_association(gate: Tensor, up: Tensor) -> Tensor:
    """up first."""
    return gate * up * torch.sigmoid(gate)


def flushed_silu(gate: Tensor, up: Tensor) -> Tensor:
    """Subnormal results flushed to zero of their own sign."""
    value = gate / (1 + torch.exp(-gate)) * up
    return torch.where(value.abs() < 2.0**-126, torch.copysign(torch.zeros_like(value), value), value)


@pytest.mark.parametrize(
    "silu", [exp2_silu, reciprocal_silu, other_association, flushed_silu], ids=lambda f: f.__name__
)
def test_float32_activations_lie_in_the_interval(silu: object) -> None:
    """ACT-1: whatever way float32 computes it before the rounding to bfloat16."""
    x = gate_up()
    given = QuantizerInput.activated(x, "silu")
    got = silu(*x.float().chunk(2, -1)).bfloat16().float()
    outside = (got.abs() < given.low) | (got.abs() > given.high)
    assert not outside.any(), (
        x[outside.any(-1)][:2],
        got[outside][:4],
        given.low[outside][:4],
        given.high[outside][:4],
    )
    assert ((got.signbit() == given.negative) | (got == 0)).all()


@pytest.mark.parametrize("units", [-4, 4])
def test_an_error_of_four_units_stays_inside_on_both_sides(units: int) -> None:
    """ACT-1: float32 operations alone may lose that much; next to a rounding boundary it shows."""
    x = gate_up(30_000)
    given = QuantizerInput.activated(x, "silu")
    exact = silu_mul(x)
    got = (exact * (1 + units * 2.0**-23)).bfloat16().float()
    assert ((got.abs() >= given.low) & (got.abs() <= given.high)).all()
    assert (got != exact.bfloat16().float()).sum() > 10  # the data has such places


def test_the_interval_of_an_activation_is_at_most_two_neighbours_where_it_is_seen() -> None:
    """ACT-1: float32 freedom crosses one rounding boundary of bfloat16 at most."""
    x = gate_up()
    given = QuantizerInput.activated(x, "silu")
    normal = (given.low >= 2.0**-126) & (x[:, :16].float() > -20)
    bits = [end.bfloat16().view(torch.int16).int() for end in (given.low, given.high)]
    steps = (bits[1] - bits[0])[normal]
    assert steps.max() <= 1
    assert (steps == 0).float().mean() > 0.99
    exact = silu_mul(x).bfloat16().float().abs()
    assert ((exact >= given.low) & (exact <= given.high)).all()


@pytest.mark.parametrize("factor", [0.97, 1.03])
def test_a_wrong_activation_leaves_the_interval(factor: float) -> None:
    """ACT-1: three per cent on the product; gate and up swapped."""
    x = gate_up()
    given = QuantizerInput.activated(x, "silu")
    seen = given.low > 2.0**-100
    got = (silu_mul(x) * factor).bfloat16().float().abs()
    assert ((got < given.low) | (got > given.high))[seen].all()
    swapped = silu_mul(torch.cat(x.chunk(2, -1)[::-1], -1)).bfloat16().float().abs()
    assert ((swapped < given.low) | (swapped > given.high))[seen].float().mean() > 0.9


def test_nan_and_infinity_pass_through_the_activation() -> None:
    """ACT-1, QUANT-3: NaN elements are marked, infinity stays infinite."""
    x = torch.zeros(1, 32).bfloat16()
    x[0, :16], x[0, 16:] = 32.0, 1.0
    x[0, 16], x[0, 17], x[0, 18] = torch.nan, torch.inf, -torch.inf
    given = QuantizerInput.activated(x, "silu")
    assert given.is_nan is not None
    assert given.is_nan[0].tolist() == [True] + [False] * 15
    assert given.low[0, 1:3].tolist() == given.high[0, 1:3].tolist() == [torch.inf, torch.inf]
    assert given.negative[0, 1:3].tolist() == [False, True]


def test_relu2_is_known_exactly() -> None:
    """ACT-1: squaring a bfloat16 is exact in float32, so one rounding and one value."""
    x = tokens()
    given = QuantizerInput.activated(x, "relu2")
    assert given.low is given.high
    assert torch.equal(given.low, relu2(x).bfloat16().float())
