"""Rows in two parts: they add up, and their products by float32 are those of float64, or the row is open."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from reference import nvfp4
from reference.e4m3 import decode_e4m3
from reference.fast import pairs, parts

K = 4128  # two pieces, not of the same length


def quantized(rows: int, k: int, spread: float, seed: int) -> tuple[Tensor, Tensor]:
    """Return codes and block scales of normal numbers, the gains of whose blocks are log-normal."""
    generator = torch.Generator().manual_seed(seed)
    gains = torch.exp(spread * torch.randn(rows, k // 16, 1, generator=generator))
    x = (torch.randn(rows, k // 16, 16, generator=generator) * gains).view(rows, k)
    of = nvfp4.quantize_nvfp4(x, 2688 / x.abs().max())
    return of.codes, of.block_scale


def test_every_scale_is_an_odd_number_of_its_steps() -> None:
    byte = torch.arange(256, dtype=torch.uint8)
    value = decode_e4m3(byte).abs() / 2
    units = (value * parts._finest(byte.view(256, 1)))[(value > 0)]  # zero and NaN have none
    assert len(units) == 252
    assert torch.equal(units % 2, torch.ones(252))


def test_the_finest_step_is_that_of_all_blocks() -> None:
    byte = torch.tensor([[0x40, 0x7E, 0x31, 0x00]], dtype=torch.uint8)  # 2, 448, 0.5625, 0
    assert parts._finest(byte).item() == 32
    assert parts._finest(byte[:, :2]).item() == 1


@pytest.mark.parametrize(
    ("k", "lengths"), [(16, [16]), (4096, [4096]), (K, [2064, 2064]), (8208, [2736] * 3)]
)
def test_pieces_are_all_of_k(k: int, lengths: list[int]) -> None:
    found = parts._pieces(k)
    assert [each.stop - each.start for each in found] == lengths
    assert [each.start for each in found] == [0, *(each.stop for each in found)][:-1]


@pytest.mark.parametrize("spread", [0.0, 0.7, 3.0])
def test_parts_add_up_and_are_coarse_and_small(spread: float) -> None:
    codes, block_scale = quantized(5, K, spread, 1)
    codes[4] = 0
    values = pairs.decode_blocks(codes, block_scale, torch.bfloat16)
    found, sizes = parts.split(values, block_scale)
    assert torch.equal(found.double().sum(1), values.double())
    whole = parts.sizes(values, block_scale)
    assert bool((sizes[:4] < whole[:4] / 8).all())
    assert bool((sizes[4] == 0).all())


def product(spread: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return a @ b.T of experts, the same in float64, and which rows were open."""
    counts, n = [9, 0, 14, 1], 20
    a, b = quantized(sum(counts), K, spread, 1), quantized(len(counts) * n, K, spread, 2)
    a[1][3, 5] = b[1][7, 9] = 0x7F  # rows of NaN, one of an expert's tokens and one of its weights
    a, b = ((pairs.decode_blocks(*each, torch.bfloat16), each[1]) for each in (a, b))
    b = b[0].view(len(counts), n, K), b[1].view(len(counts), n, -1)
    of_row = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    got = parts.products(a, b, counts, of_row)
    rows = a[0].double().split(counts)
    wanted = torch.cat([rows[e] @ b[0][e].double().T for e in range(len(counts))])
    return got, wanted, parts.open_rows(parts.split(*a)[1], parts.sizes(*b), of_row)


@pytest.mark.parametrize(("spread", "fewest", "most"), [(0.0, 0, 0), (0.5, 1, 23), (3.0, 23, 24)])
def test_products_are_exact(spread: float, fewest: int, most: int) -> None:
    got, wanted, is_open = product(spread)
    assert fewest <= int(is_open.sum()) <= most
    assert torch.equal(got.isnan(), wanted.isnan())
    assert int(wanted.isnan().sum()) == 20 + 9 - 1
    assert torch.equal(got.nan_to_num(), wanted.nan_to_num())


def test_rows_that_are_closed_by_mistake_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parts, "LIMIT", float("inf"))
    got, wanted, _ = product(3.0)
    assert not torch.equal(got.nan_to_num(), wanted.nan_to_num())


def test_a_piece_that_is_left_out_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = parts._pieces
    monkeypatch.setattr(parts, "_pieces", lambda k: pieces(k)[:1])
    got, wanted, _ = product(0.0)
    assert not torch.equal(got.nan_to_num(), wanted.nan_to_num())
