"""Thresholds quantize bit for bit as the definition: every value of the 16-bit types, and float32 next to every threshold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reference import nvfp4
from reference.fast import thresholds

SCALES = torch.tensor([1.0, 523.7, 2.0**-126, 2.0**127, 3e38, 2.0**-149, 1.1754943e-38]).double()


def both(x: Tensor, scale: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return codes and block scales of `(groups, blocks, 16)` by thresholds, and by definition."""
    codes, block_scale = torch.empty(x.shape, dtype=torch.uint8), torch.empty(x.shape[:2], dtype=torch.uint8)
    wanted, wanted_scale = codes.clone(), block_scale.clone()
    group = torch.arange(len(scale)).repeat_interleave(x.shape[1]) if len(scale) > 1 else None
    flat = x.view(-1, 16), codes.view(-1, 16), block_scale.view(-1)
    thresholds.quantize_blocks(*flat, scale.tolist(), group)
    nvfp4._quantize_by_definition(x, wanted, wanted_scale, scale)
    return codes, block_scale, wanted, wanted_scale


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("seed", range(3))
def test_every_value_of_the_narrow_types(dtype: torch.dtype, seed: int) -> None:
    """NVFP4-1 to NVFP4-4: in order, and shuffled, NaN and infinities among them."""
    generator = torch.Generator().manual_seed(seed)
    bits = torch.arange(1 << 16, dtype=torch.int32).short()
    shuffled = bits[torch.randperm(1 << 16, generator=generator)] if seed else bits
    x = shuffled.view(dtype).view(1, -1, 16).repeat(len(SCALES), 1, 1)
    codes, block_scale, wanted, wanted_scale = both(x, SCALES)
    assert torch.equal(block_scale, wanted_scale)
    assert torch.equal(codes, wanted)


def test_float32_next_to_every_threshold() -> None:
    """The largest of a block three values around each byte's threshold, the others around those of its codes."""
    scale = SCALES[:3]
    of_byte = thresholds.byte_thresholds(scale, torch.float32)[:, :126]
    largest = (of_byte.unsqueeze(-1) + torch.arange(-1, 2)).flatten(1)
    byte = torch.searchsorted(thresholds.byte_thresholds(scale, torch.float32), largest.int(), right=True)
    of_code = thresholds.code_thresholds(scale, torch.float32).take_along_dim(byte.unsqueeze(-1), 1)
    near = (of_code.unsqueeze(-1) + torch.arange(-1, 2)).flatten(-2)[..., :15]
    blocks = torch.cat([largest.unsqueeze(-1), torch.minimum(near, largest.unsqueeze(-1))], -1)
    x = blocks.int().clamp(min=0).view(torch.float32).contiguous()
    codes, block_scale, wanted, wanted_scale = both(x, scale)
    assert len(set(block_scale.flatten().tolist())) > 100
    assert torch.equal(block_scale, wanted_scale)
    assert torch.equal(codes, wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_any_bits(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(3)
    bits = torch.randint(-(1 << 31), (1 << 31) - 1, (3, 2000, 16), generator=generator, dtype=torch.int64)
    x = (bits.int() if dtype == torch.float32 else bits.short()).view(dtype)
    codes, block_scale, wanted, wanted_scale = both(x, SCALES[:3])
    assert torch.equal(block_scale, wanted_scale)
    assert torch.equal(codes, wanted)


def test_scales_that_have_none() -> None:
    for scale in (0.0, -1.0, torch.inf, torch.nan):
        assert not thresholds.has_thresholds([1.0, scale])
    assert thresholds.has_thresholds(SCALES.tolist())


def test_thresholds_of_other_scales_are_not_taken() -> None:
    """They are kept by the scales' values: the same tensor with other numbers in it has others."""
    x, scale = (
        torch.randn(1, 8, 16, generator=torch.Generator().manual_seed(0)),
        torch.tensor([300.0]).double(),
    )
    before, *_ = both(x, scale)
    scale.fill_(77.7)
    codes, block_scale, wanted, wanted_scale = both(x, scale)
    assert not torch.equal(codes, before)
    assert torch.equal(codes, wanted)
    assert torch.equal(block_scale, wanted_scale)


def test_groups_of_different_sizes() -> None:
    """Blocks of one group lie apart, and one group has none; NaN of either sign beside others and alone."""
    generator = torch.Generator().manual_seed(4)
    x = (torch.randn(40, 16, generator=generator) * 50).bfloat16()
    x[3, 5], x[7, 0], x[9] = torch.nan, -torch.nan, -torch.nan
    scale = torch.tensor([3.0, 500.0, 0.7, 21.0]).double()
    group = torch.tensor([0] * 5 + [3] * 20 + [2] * 1 + [0] * 14)
    codes, block_scale = torch.empty(x.shape, dtype=torch.uint8), torch.empty(len(x), dtype=torch.uint8)
    wanted, wanted_scale = codes.clone(), block_scale.clone()
    thresholds.quantize_blocks(x, codes, block_scale, scale.tolist(), group)
    nvfp4._quantize_blocks(x, wanted, wanted_scale, scale[group])
    assert torch.equal(block_scale, wanted_scale)
    assert torch.equal(codes, wanted)


def test_one_group_needs_no_list_of_groups() -> None:
    x = torch.randn(8, 16, generator=torch.Generator().manual_seed(5)).bfloat16()
    found = []
    for group in (None, torch.zeros(8, dtype=torch.int64)):
        codes, block_scale = torch.empty(x.shape, dtype=torch.uint8), torch.empty(8, dtype=torch.uint8)
        thresholds.quantize_blocks(x, codes, block_scale, [700.0], group)
        found.append((codes, block_scale))
    assert all(map(torch.equal, *found))
