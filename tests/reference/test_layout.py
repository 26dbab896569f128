"""Scale layouts against torchao's to_blocked, FlashInfer's own unswizzle, and the offset formulas."""

from __future__ import annotations

import importlib
import itertools

import pytest
import torch
from torch import Tensor

from reference.layout import (
    offset_8x4,
    offset_128x4,
    pad_scales,
    padded_extents,
    swizzle_8x4,
    swizzle_128x4,
    unswizzle_8x4,
    unswizzle_128x4,
)

ROWS = (1, 7, 127, 128, 129, 300)
COLUMNS = (1, 3, 4, 5, 29)
SHAPES = list(itertools.product(ROWS, COLUMNS))
LAYOUTS = {
    "128x4": (swizzle_128x4, unswizzle_128x4, offset_128x4),
    "8x4": (swizzle_8x4, unswizzle_8x4, offset_8x4),
}


def scales(rows: int, columns: int, *lead: int) -> Tensor:
    """Random bytes from 1 up: a padding byte of 0 cannot be mistaken for a scale."""
    generator = torch.Generator().manual_seed(rows * 100 + columns)
    return torch.randint(1, 256, (*lead, rows, columns), dtype=torch.uint8, generator=generator)


@pytest.mark.skipif(
    not hasattr(torch.nn.functional, "ScalingType"), reason="on this torch torchao cannot be imported"
)
@pytest.mark.filterwarnings("ignore:::torchao")  # deprecated torch calls of its own, when it is imported
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_128x4_equals_torchao_to_blocked_padding_included(rows: int, columns: int) -> None:
    """LAYOUT-1, LAYOUT-3: byte for byte, the zeros of the padding included."""
    from torchao.prototype.mx_formats.utils import from_blocked, to_blocked

    linear = scales(rows, columns)
    ours = swizzle_128x4(linear)
    theirs = to_blocked(linear)
    assert torch.equal(ours.flatten(), theirs)
    assert torch.equal(unswizzle_128x4(theirs.view(ours.shape), rows, columns), linear)
    padded = from_blocked(ours.flatten(), *ours.shape)
    assert torch.equal(padded, pad_scales(linear, "128x4"))


@pytest.mark.parametrize("layout", LAYOUTS)
def test_scales_are_read_from_any_byte_on_and_with_any_strides(layout: str) -> None:
    """Four of them are moved at once, and need not begin where four bytes do."""
    swizzle, unswizzle, _ = LAYOUTS[layout]
    linear = scales(129, 5, 2)
    swizzled = swizzle(linear)
    for first in range(1, 4):
        memory = torch.zeros(first + swizzled.numel(), dtype=torch.uint8)
        part = memory[first:].view(swizzled.shape).copy_(swizzled)
        assert torch.equal(unswizzle(part, 129, 5), linear)
    beside = torch.stack((swizzled, swizzled + 1), -1)[..., 0]
    assert torch.equal(unswizzle(beside, 129, 5), linear)
    assert torch.equal(swizzle(torch.stack((linear, linear), -1)[..., 1]), swizzled)


FLASHINFER_UNSWIZZLE = (
    "flashinfer.trace.templates.gemm:_unswizzle_sf_128x4",
    "flashinfer.gemm.gemm_bf16_fp4:_unswizzle_sf_128x4",
    "flashinfer.diffusion_ops.minimax_h3_fc1_swiglu:_unswizzle_sf_128x4",
)


def flashinfer_unswizzlers() -> list[object]:
    """Return FlashInfer's pure-torch inverses that the installed version has."""
    found = []
    for target in FLASHINFER_UNSWIZZLE:
        module, _, name = target.partition(":")
        try:
            found.append(getattr(importlib.import_module(module), name))
        except (ImportError, AttributeError):
            continue
    return found


@pytest.mark.flashinfer
@pytest.mark.filterwarnings("ignore")  # what FlashInfer and its dependencies warn of on import is not ours
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_flashinfers_unswizzle_reads_our_128x4(rows: int, columns: int) -> None:
    """LAYOUT-1, LAYOUT-3: its own inverse gives the linear scales back, and read as a full tile also the padding."""
    pytest.importorskip("flashinfer", reason="flashinfer-python is not installed")
    theirs = flashinfer_unswizzlers()
    assert theirs, f"none of {FLASHINFER_UNSWIZZLE} is in this FlashInfer any more: look for its successor"
    linear = scales(rows, columns)
    swizzled = swizzle_128x4(linear, fill=0xA5)
    for unswizzle in theirs:
        assert torch.equal(unswizzle(swizzled.flatten(), rows, columns), linear)
        assert torch.equal(unswizzle(swizzled.flatten(), *swizzled.shape), pad_scales(linear, "128x4", 0xA5))


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("rows", "columns"), SHAPES)
def test_every_scale_lies_at_its_offset_and_everything_else_is_padding(
    layout: str, rows: int, columns: int
) -> None:
    """LAYOUT-1, LAYOUT-2, LAYOUT-3: the formula against the permutation, one scale at a time."""
    swizzle, unswizzle, offset = LAYOUTS[layout]
    linear = scales(rows, columns)
    memory = swizzle(linear, fill=0)
    places = [offset(r, c, columns) for r in range(rows) for c in range(columns)]
    assert memory.numel() == torch.Size(padded_extents(rows, columns, layout)).numel()
    expected = torch.zeros(memory.numel(), dtype=torch.uint8)
    expected[torch.tensor(places)] = linear.flatten()
    assert torch.equal(memory.flatten(), expected)
    assert len(set(places)) == rows * columns
    assert torch.equal(unswizzle(memory, rows, columns), linear)
    filled = swizzle(linear, fill=0x7F).flatten()
    padding = torch.ones(memory.numel(), dtype=torch.bool)
    padding[torch.tensor(places)] = False
    assert (filled[padding] == 0x7F).all()
    assert torch.equal(filled[~padding], memory.flatten()[~padding])


def test_offsets_of_known_places() -> None:
    """LAYOUT-1, LAYOUT-2: worked by hand from FlashInfer's formulas."""
    assert offset_128x4(0, 0, 8) == 0
    assert offset_128x4(1, 0, 8) == 16
    assert offset_128x4(32, 0, 8) == 4
    assert offset_128x4(0, 4, 8) == 512
    assert offset_128x4(128, 0, 8) == 1024
    assert offset_128x4(129 + 96, 7, 8) == 1024 + 512 + 16 + 12 + 3
    assert offset_128x4(128, 0, 5) == 1024  # 5 columns take two tiles
    assert offset_8x4(1, 2, 8) == 6
    assert offset_8x4(8, 5, 8) == 64 + 32 + 1


@pytest.mark.parametrize("layout", LAYOUTS)
def test_leading_extents_are_swizzled_one_by_one(layout: str) -> None:
    """LAYOUT-1, LAYOUT-2: experts follow each other, and the dtype is kept."""
    swizzle, unswizzle, _ = LAYOUTS[layout]
    linear = scales(130, 5, 3, 2)
    whole = swizzle(linear)
    for i, j in itertools.product(range(3), range(2)):
        assert torch.equal(whole[i, j], swizzle(linear[i, j]))
    typed = linear.clamp(max=0x7E).view(torch.float8_e4m3fn)
    again = unswizzle(swizzle(typed), 130, 5)
    assert again.dtype == torch.float8_e4m3fn
    assert torch.equal(again.view(torch.uint8), typed.view(torch.uint8))


def test_wrong_arguments_raise() -> None:
    """LAYOUT-3: extents that are not whole tiles, another element size, an unknown layout."""
    with pytest.raises(ValueError, match="300 x 5 scales fill 384 x 8 bytes in layout 128x4"):
        unswizzle_128x4(torch.zeros(300, 5, dtype=torch.uint8), 300, 5)
    with pytest.raises(ValueError, match="layout 8x4"):
        unswizzle_8x4(torch.zeros(128, 4, dtype=torch.uint8), 7, 4)
    with pytest.raises(ValueError, match="one-byte dtype"):
        unswizzle_128x4(torch.zeros(128, 4), 128, 4)
    with pytest.raises(ValueError, match="one of linear, 128x4, 8x4, got '4x128'"):
        padded_extents(1, 1, "4x128")
    assert padded_extents(0, 4, "128x4") == (0, 4)
