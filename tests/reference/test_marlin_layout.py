"""Marlin's order of weights and scales, there and back; against both engines: tests/candidates/alone_marlin_layout.py."""

from __future__ import annotations

import pytest
import torch

from reference.e2m1 import pack_e2m1, unpack_e2m1
from reference.marlin_layout import from_marlin, scales_from_marlin, scales_to_marlin, to_marlin

K, ROWS = 64, 128


def drawn(*shape: int, most: int = 256) -> torch.Tensor:
    return torch.randint(0, most, shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)


def test_every_code_stands_where_its_thread_reads_it() -> None:
    """LAYOUT-6: one code after another."""
    for k, row in ((0, 0), (1, 0), (8, 0), (9, 8), (15, 63), (17, 64), (63, 127), (34, 100)):
        codes = torch.zeros(1, ROWS, K, dtype=torch.uint8)
        codes[0, row, k] = 15
        found = unpack_e2m1(to_marlin(pack_e2m1(codes)).view(torch.uint8)).flatten().nonzero().item()
        inside = k % 16
        thread = row % 8 * 4 + inside % 8 // 2
        value = row % 16 // 8 * 4 + inside // 8 * 2 + inside % 2
        word = ((k // 16 * ROWS // 64 + row // 64) * 32 + thread) * 4 + row % 64 // 16
        assert found == word * 8 + value // 2 + 4 * (value % 2)


def test_weights_go_there_and_back() -> None:
    """LAYOUT-6."""
    packed = drawn(2, ROWS, K // 2)
    assert torch.equal(from_marlin(to_marlin(packed)), packed)
    every = torch.arange(127, dtype=torch.uint8).repeat(17)[: 2 * ROWS * 8].view(2, ROWS, 8)
    assert torch.equal(scales_from_marlin(scales_to_marlin(every, "e4m3"), "e4m3"), every)
    powers = drawn(2, ROWS, 2)
    assert torch.equal(scales_from_marlin(scales_to_marlin(powers, "e8m0"), "e8m0"), powers)


def test_what_has_no_such_form_is_refused() -> None:
    with pytest.raises(ValueError, match="multiple of 16 and rows of 64, got 32 and 96"):
        to_marlin(drawn(1, 96, 16))
    with pytest.raises(ValueError, match="got a negative one or NaN"):
        scales_to_marlin(torch.full((1, 64, 4), 0x81, dtype=torch.uint8), "e4m3")
    with pytest.raises(ValueError, match="must be numbers of E4M3, got 480"):
        scales_from_marlin(torch.full((1, 4, 64), 0xF7, dtype=torch.uint8), "e4m3")
