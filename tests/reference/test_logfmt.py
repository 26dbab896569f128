"""LogFMT: the nearest value of each magnitude, what is coded at all, and what a kernel's arithmetic may make of it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from harness.emulation.logfmt import decode_by_kernel, encode_by_kernel
from reference.logfmt import CHANNELS, chunk_of, decode_logfmt, encode_logfmt, legal_logfmt

WIDTHS = (128, 512, 1024, 2560, 2048)


def drawn(seed: int, rows: int, width: int) -> Tensor:
    """Rows whose blocks differ in magnitude and in range: narrow, wide, with zeros; most of them coded."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator)

    def of_blocks(low: int, high: int) -> Tensor:
        return torch.randint(low, high, (rows, width // CHANNELS), generator=generator).repeat_interleave(
            CHANNELS, -1
        )

    normal = torch.randn(rows, width, generator=generator) * 0.05 * torch.exp2(-of_blocks(0, 24).float())
    kind = of_blocks(0, 5)
    far = normal * torch.exp2(-45 * uniform(rows, width))
    zeros = normal.masked_fill(uniform(rows, width) < 0.1, 0)
    units = torch.randint(0, 3, (rows, width), generator=generator)
    narrow = normal.sign() * (1 + units / 128) * torch.exp2(-of_blocks(1, 12).float())
    for number, other in enumerate((far, zeros, narrow)):
        normal = torch.where(kind == number, other, normal)
    return normal.bfloat16()


def brute_values(block: Tensor) -> Tensor:
    """All 512 values of one block of 128 finite magnitudes."""
    amax = block.double().abs().amax()
    low = torch.maximum(block.double().abs().amin(), amax * 2.0**-32)
    step = (amax / low).log2() / 510
    return torch.cat((torch.zeros(1), low * ((torch.arange(511)) * step).exp2()))


def test_every_element_becomes_the_nearest_value() -> None:
    """LOGFMT-1."""
    for row in drawn(1, 12, 512):
        got = decode_logfmt(encode_logfmt(row))
        for block, arrived in zip(row.view(-1, CHANNELS), got.view(-1, CHANNELS), strict=True):
            if not bool(encode_logfmt(row).coded.any()):
                continue
            values = brute_values(block)
            distance = (block.double().abs().unsqueeze(-1) - values).abs().amin(-1)
            mine = (block.double() - arrived.double()).abs()
            near = (
                block.double().abs() >= values[1]
            )  # below it code 0 begins at the middle of value(1) and one step less
            assert bool((mine <= distance + values[-1] * 2.0**-22)[near].all())


def test_the_extremes_arrive_exactly_and_zero_as_zero() -> None:
    row = torch.linspace(-0.9, 0.9, CHANNELS).bfloat16()
    row[5] = 0
    got = decode_logfmt(encode_logfmt(row))
    assert got[0] == row[0].float()
    assert got[-1] == row[-1].float()
    assert got[5] == 0
    assert torch.equal(got.sign(), row.float().sign())
    assert encode_logfmt(row).codes.max() == 511
    assert encode_logfmt(row).log_low == row.double().abs().amax().log2() - 32


@pytest.mark.parametrize("width", [1024, 2560])
def test_a_chunk_is_coded_or_not_as_a_whole(width: int) -> None:
    """LOGFMT-2."""
    chunk = chunk_of(width)
    row = (torch.rand(width, generator=torch.Generator().manual_seed(2)) * 0.5 + 0.1).bfloat16()
    assert bool(encode_logfmt(row).coded.all())
    for what in (
        torch.full((1,), -1.0),
        torch.full((CHANNELS,), 0.25),
        torch.full((1,), torch.inf),
        torch.zeros(CHANNELS),
    ):
        other = row.clone()
        other[CHANNELS : CHANNELS + len(what)] = what
        expected = (torch.arange(width) >= chunk)[::CHANNELS]
        assert torch.equal(encode_logfmt(other).coded, expected), what
        assert torch.equal(decode_logfmt(encode_logfmt(other))[:chunk], other[:chunk].float())


def test_nan_counts_for_no_extreme_and_arrives_as_zero_where_it_is_coded() -> None:
    row = drawn(3, 1, CHANNELS)[0].abs().clamp(2.0**-20, 0.5)
    row[0], row[1] = torch.nan, 0.75
    assert decode_logfmt(encode_logfmt(row))[0] == 0
    assert encode_logfmt(row).log_high == torch.tensor(0.75).double().log2()
    row[1] = 1.0
    assert bool(decode_logfmt(encode_logfmt(row))[0].isnan())


def test_a_width_without_whole_blocks_is_refused() -> None:
    with pytest.raises(ValueError, match="must be a multiple of 128, got"):
        encode_logfmt(torch.zeros(2, 100).bfloat16())


def erring(exact: Callable[[Tensor], Tensor], seed: int) -> Callable[[Tensor], Tensor]:
    """log2 or exp2 off by as much as the device's may be, in either direction, another time each call."""
    generator = torch.Generator().manual_seed(seed)

    def wrong(x: Tensor) -> Tensor:
        real = exact(x.double())
        unit = real.abs() if exact is torch.exp2 else torch.where((x > 0.5) & (x < 2), 1.0, real.abs())
        sign = torch.rand(real.shape, generator=generator).double() * 2 - 1
        return torch.where(real.isfinite(), real + sign * unit * (2.0**-22 - 2.0**-24), real).float()

    return wrong


@pytest.mark.parametrize("fused", [False, True])
def test_no_arithmetic_of_a_kernel_leaves_the_legal_interval(fused: bool) -> None:
    """LOGFMT-3."""
    blocks = 0
    for seed in range(20):
        x = drawn(seed, 48, WIDTHS[seed % len(WIDTHS)])
        low, high = legal_logfmt(x)
        log2, exp2 = erring(torch.log2, seed), erring(torch.exp2, seed)
        for encoded in (
            encode_by_kernel(x, fused=fused),
            encode_by_kernel(x, log2=log2, exp2=exp2, fused=fused),
            encode_logfmt(x),
        ):
            assert encoded.codes.max() <= 511
            blocks += int(encoded.coded.sum())
            for arrived in (decode_by_kernel(encoded), decode_by_kernel(encoded, exp2=exp2)):
                assert bool(((arrived >= low) & (arrived <= high)).all())
    assert blocks > 5_000


def test_the_interval_is_one_value_but_for_elements_near_a_threshold() -> None:
    x = (torch.randn(64, 2048, generator=torch.Generator().manual_seed(0)) * 0.05).bfloat16()
    low, high = legal_logfmt(x)
    assert float((high - low > 1e-3 * high.abs()).double().mean()) < 0.02
    assert bool((low <= high).all())


def test_no_rows_are_no_rows() -> None:
    """LOGFMT-1, LOGFMT-3: a rank that sends nothing."""
    none = torch.empty(0, 256, dtype=torch.bfloat16)
    assert decode_logfmt(encode_logfmt(none)).shape == (0, 256)
    assert [end.shape for end in legal_logfmt(none)] == [(0, 256)] * 2
