"""The adjudicator, exhaustively: every bfloat16 magnitude with every scale byte under every legal arithmetic.

`reference.legal` says what is legal; `harness.emulation.quantize` computes factors in the kernel's order, and rounding is
done here with tables of boundaries. The three share no code but the decoding of a scale byte.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
import torch
from torch import Tensor

from harness.emulation import quantize as kernel
from reference import e2m1, e4m3
from reference.legal import Arithmetic, encode_factors, legal_codes, legal_scales

MAGNITUDES = (
    torch.arange(0x7F81, dtype=torch.int32).to(torch.int16).view(torch.bfloat16).float()
)  # 0 to infinity
BYTES = torch.arange(128, dtype=torch.uint8)
UNITS = (-1, 0, 1)
BYTES_AT_ONCE = 16
RANDOM_SCALE = float(torch.rand((), generator=torch.Generator().manual_seed(20394)) * 2688)
SCALES = (1.0, 512.0, 448.0, 855.617, RANDOM_SCALE)
every_scale = pytest.mark.parametrize("gs", SCALES)


def boundaries(values: Tensor, rounding: str) -> Tensor:
    """Return, for every value but the first, the smallest float32 that is rounded to it or to a larger one.

    Args:
        values: float64, rising, those of codes 0, 1, 2, ...
        rounding: "even" (ties to the even code), "down", "away", "truncate" or "up".
    """
    middle = ((values[1:] + values[:-1]) / 2).float()
    after = torch.nextafter(middle, torch.full_like(middle, torch.inf))
    if rounding == "even":
        return torch.where(torch.arange(1, len(values)) % 2 == 0, middle, after)
    below = values[:-1].float()
    return {
        "down": after,
        "away": middle,
        "truncate": values[1:].float(),
        "up": torch.nextafter(below, torch.full_like(below, torch.inf)),
    }[rounding]


def rounded(x: Tensor, table: Tensor) -> Tensor:
    """Return the code of each element; NaN gets the last code, as the hardware stores it."""
    return torch.bucketize(x, table, right=True, out_int32=True).to(torch.uint8)


E2M1_VALUES = torch.tensor(e2m1.MAGNITUDES, dtype=torch.float64)
E4M3_VALUES = e4m3.decode_e4m3(BYTES[:-1]).double()
FAULTY_ROUNDINGS = ("down", "away", "truncate")
CODE = {rounding: boundaries(E2M1_VALUES, rounding) for rounding in ("even", *FAULTY_ROUNDINGS)}
SCALE = {rounding: boundaries(E4M3_VALUES, rounding) for rounding in ("even", *FAULTY_ROUNDINGS, "up")}


def another_rcp(x: Tensor) -> Tensor:
    """A second table of reciprocals, unlike the first: off by one unit, up or down, for two mantissas of three."""
    rounded_ = x.reciprocal()
    mantissa = x.view(torch.int32) & 0x7FFFFF
    turn = (mantissa * 0x85EBCA6B >> 9) % 3
    ends = torch.nextafter(rounded_, rounded_ * 2), torch.nextafter(rounded_, torch.zeros_like(rounded_))
    return torch.where(
        mantissa == 0, rounded_, torch.where(turn == 0, ends[0], torch.where(turn == 1, ends[1], rounded_))
    )


PROBED = {"simulated_rcp": kernel.simulated_rcp, "another table": another_rcp}


class Perturbed:
    """A reciprocal whose first call is off by the first number of units, its second call by the second, and so on."""

    def __init__(self, *units: int) -> None:
        self._units = list(units)

    def __call__(self, x: Tensor) -> Tensor:
        """Return the reciprocal; subnormal arguments give infinity and subnormal results zero, as .ftz has it."""
        result, units = x.reciprocal(), self._units.pop(0)
        if units:
            result = torch.nextafter(result, torch.full_like(result, torch.inf if units > 0 else 0.0))
        result = torch.where(x.abs() < 2.0**-126, torch.full_like(x, torch.inf), result)
        return torch.where(result < 2.0**-126, torch.zeros_like(result), result)


def chunks() -> Iterator[Tensor]:
    """Yield the scale bytes, a few at a time: a chunk with every magnitude fits the cache."""
    yield from BYTES.split(BYTES_AT_ONCE)


def is_free(stored: Tensor) -> Tensor:
    """Return which scale bytes make the codes irrelevant: zero and NaN, `(bytes, 1)`."""
    return ((stored == 0) | (stored == e4m3.NAN_BYTE)).unsqueeze(-1)


def products(factor: Tensor) -> Tensor:
    """Return every magnitude times the factor of every byte, `(bytes, magnitudes)` float32."""
    return MAGNITUDES * factor.unsqueeze(-1)


def fast_factor(stored: Tensor, gs: float, rcp: Callable[[Tensor], Tensor]) -> Tensor:
    scale = e4m3.decode_e4m3(stored)
    return kernel.fast_factor(scale, torch.tensor(gs), torch.ones_like(scale), rcp)


@every_scale
def test_no_legal_code_is_refused_and_every_code_that_is_accepted_can_happen(gs: float) -> None:
    """QUANT-2: 32,641 magnitudes x 128 bytes x 3 values of rcp(gs) x 3 of the outer rcp, 37.6 million encodes.

    Accepting exactly the hull of the nine also shows that "two legal codes" counts exactly what cannot be observed.
    """
    arithmetic = Arithmetic("fast")
    two_codes = encodes = 0
    for stored in chunks():
        legal = legal_codes(MAGNITUDES, MAGNITUDES, stored, torch.tensor(gs), arithmetic)
        low = high = None
        for inner in UNITS:
            for outer in UNITS:
                code = rounded(products(fast_factor(stored, gs, Perturbed(inner, outer))), CODE["even"])
                assert bool((legal.accepts(code) | is_free(stored)).all())
                low = code if low is None else torch.minimum(low, code)
                high = code if high is None else torch.maximum(high, code)
                encodes += code.numel()
        free = is_free(stored)
        assert torch.equal(legal.low, low.masked_fill(free, 0))
        assert torch.equal(legal.high, high.masked_fill(free, 7))
        two_codes += int((legal.ambiguous() & ~free).sum())
    print(
        f"encode scale {gs:.6g}: {encodes:,} encodes, {two_codes:,} of {encodes // 9:,} pairs have two legal codes"
    )
    assert encodes == 9 * 128 * 32_641


@every_scale
def test_the_range_of_factors_is_that_of_the_nine_perturbations(gs: float) -> None:
    """QUANT-2: bfloat16 has too few bits to tell one unit of a factor from two, so the factors are compared themselves."""
    stored = BYTES[1:-1]
    nine = [fast_factor(stored, gs, Perturbed(inner, outer)) for inner in UNITS for outer in UNITS]
    low, high = encode_factors(e4m3.decode_e4m3(stored), torch.tensor(gs), Arithmetic("fast"))
    assert torch.equal(low, torch.stack(nine).amin(0))
    assert torch.equal(high, torch.stack(nine).amax(0))


@every_scale
def test_in_exact_mode_every_fault_of_rounding_is_seen_wherever_it_changes_a_code(gs: float) -> None:
    """QUANT-2: one legal code, the kernel's; ties down, ties away and truncation are illegal exactly where they differ."""
    seen = dict.fromkeys(FAULTY_ROUNDINGS, 0)
    for stored in chunks():
        scale = e4m3.decode_e4m3(stored)
        y = products(kernel.exact_factor(scale, torch.tensor(gs), torch.ones_like(scale)))
        legal = legal_codes(MAGNITUDES, MAGNITUDES, stored, torch.tensor(gs), Arithmetic("exact"))
        _assert_one_legal_code(legal, y, stored, seen)
    _assert_ties_were_there(seen, gs)


@every_scale
@pytest.mark.parametrize("table", PROBED)
def test_with_probed_reciprocals_fast_mode_sees_the_same_faults(gs: float, table: str) -> None:
    """QUANT-2: whatever table the probe read, there is one legal code, and no fault of rounding hides."""
    rcp = PROBED[table]
    seen = dict.fromkeys(FAULTY_ROUNDINGS, 0)
    for stored in chunks():
        y = products(fast_factor(stored, gs, rcp))
        legal = legal_codes(MAGNITUDES, MAGNITUDES, stored, torch.tensor(gs), Arithmetic("fast", rcp))
        _assert_one_legal_code(legal, y, stored, seen)
    _assert_ties_were_there(seen, gs)


def _assert_one_legal_code(legal: object, y: Tensor, stored: Tensor, seen: dict[str, int]) -> None:
    right = rounded(y, CODE["even"])
    free = is_free(stored)
    assert bool((legal.accepts(right) | free).all())
    for fault in FAULTY_ROUNDINGS:
        wrong = rounded(y, CODE[fault])
        changed = (wrong != right) & ~free
        assert torch.equal(~legal.accepts(wrong), changed), fault
        seen[fault] += int(changed.sum())
    assert not (legal.ambiguous() & ~free).any()


def _assert_ties_were_there(seen: dict[str, int], gs: float) -> None:
    """At powers of two ties are common; at other scales a float32 product seldom is one, but truncation always shows."""
    assert seen["truncate"] > 10_000
    if gs in {1.0, 512.0}:
        assert seen["down"] > 50
        assert seen["away"] > 50


@every_scale
def test_without_a_probe_a_fault_is_seen_unless_the_element_is_counted_as_ambiguous(gs: float) -> None:
    """QUANT-2: what a tie rule changes and nobody can see is exactly the part that is reported as having two codes."""
    hidden = seen = 0
    for stored in chunks():
        legal = legal_codes(MAGNITUDES, MAGNITUDES, stored, torch.tensor(gs), Arithmetic("fast"))
        y = products(fast_factor(stored, gs, Perturbed(0, 0)))
        right = rounded(y, CODE["even"])
        counted = legal.ambiguous() & ~is_free(stored)
        for fault in FAULTY_ROUNDINGS:
            wrong = rounded(y, CODE[fault])
            changed = (wrong != right) & ~is_free(stored)
            accepted = changed & legal.accepts(wrong)
            assert not (accepted & ~counted).any()
            hidden += int(accepted.sum())
            seen += int((changed & ~legal.accepts(wrong)).sum())
    print(
        f"encode scale {gs:.6g}, reciprocals free: {seen:,} changed codes seen, {hidden:,} counted as ambiguous"
    )
    assert seen > 10_000


@every_scale
def test_every_amax_gets_the_scale_of_its_arithmetic_and_faults_are_seen(gs: float) -> None:
    """QUANT-1: every bfloat16 amax x 3 values of rcp(6); rounding up, ties down or away and truncation in exact and
    probed mode."""
    scale = torch.tensor(gs)
    free = legal_scales(MAGNITUDES, MAGNITUDES, scale, Arithmetic("fast"))
    bytes_ = []
    for units in UNITS:
        unrounded = kernel.fast_scale(MAGNITUDES, scale, Perturbed(units))
        bytes_.append(rounded(unrounded, SCALE["even"]))
        assert free.accepts(bytes_[-1]).all()
    stack = torch.stack(bytes_)
    assert torch.equal(free.low, stack.amin(0))
    assert torch.equal(free.high, stack.amax(0))
    modes = {"exact": (Arithmetic("exact"), kernel.exact_scale(MAGNITUDES, scale))}
    for name, rcp in PROBED.items():
        modes[name] = Arithmetic("fast", rcp), kernel.fast_scale(MAGNITUDES, scale, rcp)
    for arithmetic, unrounded in modes.values():
        legal = legal_scales(MAGNITUDES, MAGNITUDES, scale, arithmetic)
        right = rounded(unrounded, SCALE["even"])
        assert legal.accepts(right).all()
        assert not legal.ambiguous().any()
        for fault in (*FAULTY_ROUNDINGS, "up"):
            wrong = rounded(unrounded, SCALE[fault])
            assert torch.equal(~legal.accepts(wrong), wrong != right), fault


@pytest.mark.parametrize("mode", ["exact", *PROBED])
@every_scale
def test_a_block_of_32_is_seen_wherever_it_changes_a_scale(gs: float, mode: str) -> None:
    """QUANT-1, QUANT-2: a scale from 32 elements is illegal exactly where it differs, and its codes are judged given it."""
    generator = torch.Generator().manual_seed(1)
    scale = torch.tensor(gs)
    x = torch.randn(500, 2, 16, generator=generator) * torch.exp2(
        torch.randint(-4, 5, (500, 2, 1), generator=generator)
    )
    x = (x * 40 / gs).bfloat16().float().abs()
    arithmetic = Arithmetic("exact") if mode == "exact" else Arithmetic("fast", PROBED[mode])

    def stored(amax: Tensor) -> Tensor:
        unrounded = (
            kernel.exact_scale(amax, scale)
            if mode == "exact"
            else kernel.fast_scale(amax, scale, PROBED[mode])
        )
        return rounded(unrounded, SCALE["even"])

    amax = x.amax(-1)
    right, wrong = stored(amax), stored(amax.amax(-1, keepdim=True).expand_as(amax))
    assert torch.equal(~legal_scales(amax, amax, scale, arithmetic).accepts(wrong), wrong != right)
    assert (wrong != right).sum() > 100
    decoded = e4m3.decode_e4m3(wrong)
    if mode == "exact":
        factor = kernel.exact_factor(decoded, scale, amax)
    else:
        factor = kernel.fast_factor(decoded, scale, amax, PROBED[mode])
    codes = rounded(x * factor.unsqueeze(-1), CODE["even"])
    assert legal_codes(x, x, wrong, scale, arithmetic).accepts(codes).all()


@every_scale
def test_real_arithmetic_accepts_the_reference_and_sees_every_fault(gs: float) -> None:
    """QUANT-1, QUANT-2: candidates that declare the definition itself have one legal value."""
    from reference.nvfp4 import quantize_nvfp4

    generator = torch.Generator().manual_seed(2)
    x = (torch.randn(4000, 16, generator=generator) * 30 / gs).bfloat16()
    scale = torch.tensor(gs)
    got = quantize_nvfp4(x, scale)
    magnitude, amax = x.float().abs().view(4000, 1, 16), x.float().abs().amax(-1, keepdim=True)
    scales = legal_scales(amax, amax, scale, Arithmetic("real"))
    codes = legal_codes(magnitude, magnitude, got.block_scale, scale, Arithmetic("real"))
    assert not scales.ambiguous().any()
    assert torch.equal(scales.low, got.block_scale)
    assert torch.equal(codes.low.view(x.shape), got.codes & 7)
    assert torch.equal(codes.high.view(x.shape), got.codes & 7)


@pytest.mark.parametrize("kind", ["real", "exact", "fast"])
def test_an_interval_of_inputs_accepts_whatever_lies_in_it(kind: str) -> None:
    """QUANT-1, QUANT-2: the ends, and every bfloat16 between them, are legal where the input was not observed."""
    generator = torch.Generator().manual_seed(3)
    arithmetic, scale = Arithmetic(kind), torch.tensor(855.617)
    start = torch.randint(0x3000, 0x4300, (300, 1, 16), generator=generator, dtype=torch.int32)
    wide = torch.randint(0, 4, start.shape, generator=generator, dtype=torch.int32)
    low, high = (i.to(torch.int16).view(torch.bfloat16).float() for i in (start, start + wide))
    amax = legal_scales(low.amax(-1), high.amax(-1), scale, arithmetic)
    for step in range(4):
        x = (start + torch.minimum(wide, torch.tensor(step))).to(torch.int16).view(torch.bfloat16).float()
        one = legal_scales(x.amax(-1), x.amax(-1), scale, arithmetic)
        assert ((one.low >= amax.low) & (one.high <= amax.high)).all()
        for stored in (amax.low, amax.high):
            hull = legal_codes(low, high, stored, scale, arithmetic)
            inner = legal_codes(x, x, stored, scale, arithmetic)
            assert ((inner.low >= hull.low) & (inner.high <= hull.high)).all()


@pytest.mark.parametrize("gs", [2.0**-100, 3e-30, 1e20, 2.0**100])
def test_extreme_encode_scales_give_no_false_alarm(gs: float) -> None:
    """QUANT-2: far outside of what tensors have, up to where reciprocals become subnormal."""
    x = torch.exp2(torch.linspace(-120, 120, 4001)) * 1.001
    for stored in chunks():
        legal = legal_codes(x, x, stored, torch.tensor(gs), Arithmetic("fast"))
        for inner in UNITS:
            for outer in UNITS:
                code = rounded(
                    x * fast_factor(stored, gs, Perturbed(inner, outer)).unsqueeze(-1), CODE["even"]
                )
                assert bool((legal.accepts(code) | is_free(stored)).all())


def test_a_scale_per_row_is_used_row_by_row() -> None:
    """QUANT-1, QUANT-2: encode scales broadcast over blocks, not over elements."""
    x = torch.rand(3, 2, 16, generator=torch.Generator().manual_seed(4)).bfloat16().float()
    scale = torch.tensor([[1.0], [448.0], [77.7]])
    for kind in ("real", "exact", "fast"):
        arithmetic = Arithmetic(kind)
        scales = legal_scales(x.amax(-1), x.amax(-1), scale, arithmetic)
        codes = legal_codes(x, x, scales.low, scale, arithmetic)
        for row in range(3):
            one = legal_scales(x[row].amax(-1), x[row].amax(-1), scale[row, 0], arithmetic)
            assert torch.equal(one.low, scales.low[row])
            alone = legal_codes(x[row], x[row], one.low, scale[row, 0], arithmetic)
            assert torch.equal(alone.low, codes.low[row])
            assert torch.equal(alone.high, codes.high[row])


def test_a_block_without_numbers_has_the_scale_nan_and_free_codes() -> None:
    """QUANT-3: amax NaN stores 0x7F and nothing else; zero stores 0; infinity 448."""
    amax = torch.tensor([torch.nan, 0.0, torch.inf])
    for kind in ("real", "exact", "fast"):
        legal = legal_scales(amax, amax, torch.tensor(448.0), Arithmetic(kind))
        assert legal.low.tolist() == legal.high.tolist() == [e4m3.NAN_BYTE, 0, e4m3.MAX_BYTE]
        codes = legal_codes(
            torch.ones(3, 16), torch.ones(3, 16), legal.low, torch.tensor(448.0), Arithmetic(kind)
        )
        assert codes.low[:2].max() == 0
        assert codes.high[:2].min() == 7


def test_an_unknown_arithmetic_is_refused() -> None:
    """QUANT: the word is checked where it is written."""
    with pytest.raises(ValueError, match="one of real, exact, fast, got 'quick'"):
        Arithmetic("quick")
    assert Arithmetic("fast", kernel.simulated_rcp).describe() != Arithmetic("fast").describe()
