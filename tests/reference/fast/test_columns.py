"""Blocks that stand as columns are quantized bit for bit as the definition has it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reference import e4m3, nvfp4
from reference.fast import columns

SCALES = [1.0, 523.7, 2.0**-126, 2.0**127, 3e38, 2.0**-149, 1.1754943e-38]


def both(x: Tensor, scale: list[float]) -> None:
    """Quantize `(groups, blocks, 16)` as columns and by definition, and compare; blocks beside a NaN are left alone."""
    codes, block_scale = (
        torch.full(x.shape, 99, dtype=torch.uint8),
        torch.empty(x.shape[:2], dtype=torch.uint8),
    )
    wanted, wanted_scale = codes.clone(), block_scale.clone()
    which = torch.arange(len(scale), dtype=torch.int32).repeat_interleave(x.shape[1])
    left = columns.quantize_blocks(x.view(-1, 16), codes.view(-1, 16), block_scale.view(-1), scale, which)
    nvfp4._quantize_by_definition(x, wanted, wanted_scale, torch.tensor(scale, dtype=torch.float64))
    done = torch.ones(block_scale.numel(), dtype=torch.bool)
    for part in left:
        assert bool(x.view(-1, 16)[part].isnan().any())
        done[part] = False
    assert torch.equal(block_scale.view(-1)[done], wanted_scale.view(-1)[done])
    assert torch.equal(codes.view(-1, 16)[done], wanted.view(-1, 16)[done])
    assert bool((codes.view(-1, 16)[~done] == 99).all())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(3))
def test_every_value_of_the_narrow_types(
    dtype: torch.dtype, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """NVFP4-1 to NVFP4-4: in order, and shuffled, infinities among them; NaN leaves its stretch to the definition."""
    monkeypatch.setattr(columns, "_BLOCKS", 100)
    bits = torch.arange(1 << 16, dtype=torch.int32).short()
    numbers = bits[~bits.view(dtype).isnan()]
    numbers = torch.cat([numbers, numbers[: -len(numbers) % 16]])
    shuffled = torch.randperm(len(numbers), generator=torch.Generator().manual_seed(seed))
    for values in (numbers[shuffled] if seed else numbers, bits):
        both(values.view(dtype).view(1, -1, 16).repeat(len(SCALES), 1, 1), SCALES)


def test_every_byte_is_that_of_the_definition() -> None:
    """NVFP4-1: every byte, every middle of two and its neighbours, what is too small or too large, and random numbers."""
    value = e4m3.decode_e4m3(torch.arange(127, dtype=torch.uint8)).double()
    middle, ends = (value[1:] + value[:-1]) / 2, torch.tensor([0.0, torch.inf], dtype=torch.float64)
    generator = torch.Generator().manual_seed(7)
    random = torch.rand(100_000, dtype=torch.float64, generator=generator)
    power = torch.randint(-20, 12, (100_000,), generator=generator)
    seldom = torch.tensor([5e-324, 2.0**-10, 449, 464, 465, 1e300], dtype=torch.float64)
    near = [torch.nextafter(middle, end) for end in ends]
    x = torch.cat([value, middle, *near, ends, seldom, torch.ldexp(random, power)])
    assert torch.equal(columns._rounded_to_byte(x), e4m3.round_to_byte(x).int())


@pytest.mark.parametrize("offset", range(5))
def test_where_it_begins_in_memory_changes_nothing(offset: int) -> None:
    memory = torch.randn(1 << 16, generator=torch.Generator().manual_seed(8)).bfloat16()
    x = memory[offset:][: 1 << 15].view(-1, 16)
    scale = torch.tensor([300.0])
    got, wanted = nvfp4.quantize_nvfp4(x, scale), nvfp4.quantize_nvfp4(x.clone(), scale)
    assert torch.equal(got.codes, wanted.codes)
    assert torch.equal(got.block_scale, wanted.block_scale)


def test_one_scale() -> None:
    x = torch.randn(1, 5000, 16, generator=torch.Generator().manual_seed(5)).bfloat16()
    both(x, [523.7])


def test_quantizing_many_takes_them_and_gives_the_definition(monkeypatch: pytest.MonkeyPatch) -> None:
    """NVFP4-1 to NVFP4-4: rows that share few scales, as a candidate hands them over, a NaN in one of them."""
    taken = []
    quantize = columns.quantize_blocks
    monkeypatch.setattr(columns, "quantize_blocks", lambda *given: taken.append(1) or quantize(*given))
    x = torch.randn(200, 1024, generator=torch.Generator().manual_seed(6)).bfloat16()
    x[70, 5] = torch.nan
    scale = torch.tensor([300.0, 77.0]).repeat(100)
    got = nvfp4.quantize_nvfp4(x, scale)
    codes, block_scale = torch.empty_like(got.codes), torch.empty_like(got.block_scale)
    nvfp4._quantize_by_definition(x.view(200, 64, 16), codes.view(200, 64, 16), block_scale, scale)
    assert taken
    assert torch.equal(got.codes, codes)
    assert torch.equal(got.block_scale, block_scale)


@pytest.mark.parametrize("fault", ["a stretch skipped", "the scale of another group"])
def test_a_fault_in_it_is_seen(fault: str, monkeypatch: pytest.MonkeyPatch) -> None:
    quantize = columns.quantize_blocks

    def faulty(
        x: Tensor, codes: Tensor, block_scale: Tensor, scale: list[float], which: Tensor
    ) -> list[slice]:
        if fault == "a stretch skipped":
            return quantize(x[:-16], codes[:-16], block_scale[:-16], scale, which[:-16])
        return quantize(x, codes, block_scale, scale, which.roll(1))

    monkeypatch.setattr(columns, "quantize_blocks", faulty)
    with pytest.raises(AssertionError):
        both(torch.randn(2, 64, 16, generator=torch.Generator().manual_seed(7)).bfloat16(), [300.0, 77.0])
